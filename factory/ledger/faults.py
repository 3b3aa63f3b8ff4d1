"""What a database says, as an error of the factory with a hint of what to do."""

from __future__ import annotations

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from factory.errors import Detail, StorageFault

_FULL = "Free some space on the disk that holds the ledger."
_BROKEN = "restore a backup, or move it away and begin anew."
_BUSY = "Another process holds what this one needs; try again, and end a hung `factory` process if it stays so."

_SQLITE = {
    "locked": "Another process holds the ledger; try again, and end a hung `factory` process if it stays so.",
    "disk is full": _FULL,
    "disk i/o error": "The disk of the ledger is full or fails: free some space, and look at the kernel's log.",
    "no such table": "An empty file is in the place of the ledger: put the ledger back, or start everything anew.",
    "not a database": f"The file is not a ledger or is damaged: {_BROKEN}",
    "malformed": f"The file is damaged: {_BROKEN}",
    "readonly": "Give this user the right to write the ledger's file, or set FACTORY_HOME to another place.",
    "unable to open": "Check that the path is a file that this user may write.",
}

_NO_ENTRY = {
    "password authentication failed": "Correct the user and password in FACTORY_LEDGER_URL.",
    "no password supplied": "Add the password to FACTORY_LEDGER_URL, or keep it in ~/.pgpass.",
    "no pg_hba.conf entry": "Let this host, user and database in, in the server's pg_hba.conf.",
    "resolve host": "Correct the host in FACTORY_LEDGER_URL.",
    "translate host name": "Correct the host in FACTORY_LEDGER_URL.",
    "does not exist": "Create the user and the database first (createuser, createdb), or correct FACTORY_LEDGER_URL.",
    "permission denied": "Let the user own the database: ALTER DATABASE name OWNER TO user.",
}
"""What waiting does not mend."""

_COMING_BACK = {
    "too many clients": "Raise max_connections of the server; each running request needs one or two.",
    "connection slots": "Raise max_connections of the server; each running request needs one or two.",
    "connection refused": "Start the database server, or correct host and port in FACTORY_LEDGER_URL.",
    "starting up": "The database server is starting; try again in a moment.",
    "shutting down": "The database server is stopping; start it again.",
    "recovery mode": "The database server is recovering from a crash; try again in a moment.",
    "terminating connection": "The database server stopped or ended this connection; try again.",
    "server closed the connection": "The database server stopped or crashed; try again.",
    "connection is lost": "The database server stopped or crashed; try again.",
    "timeout expired": "The database server does not answer; check that it runs and can be reached.",
}

_WITHIN = {
    "lock timeout": _BUSY,
    "deadlock detected": _BUSY,
    "statement timeout": "The database server is overloaded, or its tables need a VACUUM ANALYZE.",
    "idle-in-transaction timeout": "This process was held up for a minute; try again.",
    "no space left": _FULL,
    "could not extend file": _FULL,
    "read-only transaction": "FACTORY_LEDGER_URL leads to a standby: name the primary server.",
}

_POSTGRESQL = _WITHIN | _NO_ENTRY | _COMING_BACK


def storage_fault(error: Exception, url: URL) -> StorageFault:
    """Return what a database's error means, with a hint; the password of the URL is not shown."""
    cause = _cause(error)
    hints = _SQLITE if url.get_backend_name() == "sqlite" else _POSTGRESQL
    hint = next((h for part, h in hints.items() if part in cause.lower()), "See the ledger's chapter in operating.md.")
    return StorageFault(
        f"The ledger {url} cannot be used: {cause}.", hint=hint, details=[Detail("FACTORY_LEDGER_URL", cause)]
    )


def may_come_back(error: DBAPIError, url: URL) -> bool:
    """Whether a server that could not be connected to may answer later, for example after a restart."""
    cause = _cause(error).lower()
    return url.get_backend_name() != "sqlite" and not any(part in cause for part in _NO_ENTRY)


def _cause(error: Exception) -> str:
    """Return what happened on one line."""
    text = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    return (text if len(text) <= 500 else text[:499] + "…").rstrip(".")
