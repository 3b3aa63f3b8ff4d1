"""Opening the ledger's database, upgrading it, and transactions on it.

What differs between SQLite and other databases is here and nowhere else:
write-ahead log, waiting for a lock, and taking the write lock when a
transaction begins.  Every error of the database becomes a StorageFault.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, select, table
from sqlalchemy import column as sql_column
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, StorageFault
from factory.ledger.schema import HEAD, VERSION_TABLE, metadata

LOCK_WAIT_S = 15.0
"""How long to wait for another writer; one holds the lock for milliseconds. The URL's ``timeout`` wins."""

_WRITE = "ledger_write"


class Database:
    """A ledger's database at the present schema; safe to use from several threads and after a fork."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pid = os.getpid()

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open a ledger; create it or bring it to the present schema where needed.

        Args:
            url: SQLAlchemy URL, for example ``sqlite:////var/lib/factory/ledger.db``.
            create: Whether a ledger that does not exist is created.

        Raises:
            InvalidRequest: the URL cannot be understood, or its database driver is not installed.
            NotFound: there is no ledger, and ``create`` is False.
            StorageFault: the folder cannot be written, or the database is locked, corrupt or of a newer schema.
        """
        parsed = _parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            _prepare_file(parsed, create=create)
        database = cls(_engine(parsed))
        try:
            database._bring_to_head()
        except BaseException:
            database.close()
            raise
        return database

    @property
    def url(self) -> str:
        """Where the database is; a password is not shown."""
        return str(self._engine.url)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """Yield a connection that sees one moment of the ledger."""
        with self._mended(), self._connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """Yield a connection whose changes are all kept, or none of them."""
        with (
            self._mended(),
            self._connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def _connect(self) -> Connection:
        if os.getpid() != self._pid:
            # SQLite's connections must not be carried over a fork; the parent still uses them, so they stay open.
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return self._engine.connect()

    @contextmanager
    def _mended(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise Conflict(
                f"Another process changed the same thing at the same moment: {error.orig}.", hint="Try again."
            ) from error
        except DBAPIError as error:
            raise _storage_fault(error, self._engine.url) from error

    def _bring_to_head(self) -> None:
        if self._engine.dialect.name == "sqlite":
            self._use_write_ahead_log()
        with self._read() as connection:
            if _version(connection) == HEAD:
                return
        with self._write() as connection:
            # Another process may have done it while this one waited for the lock.
            if (version := _version(connection)) != HEAD:
                self._upgrade(connection, version)

    def _use_write_ahead_log(self) -> None:
        """Switch the file to WAL. SQLite does not wait for other processes here, so this does."""
        deadline = time.monotonic() + _lock_wait_s(self._engine.url)
        while True:
            try:
                with self._mended(), self._engine.connect() as connection:
                    raw = connection.connection.cursor()
                    if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                        raw.execute("PRAGMA journal_mode=WAL")
                    raw.close()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise _storage_fault(error, self._engine.url) from error
                time.sleep(0.05)
            except sqlite3.DatabaseError as error:
                raise _storage_fault(error, self._engine.url) from error

    def _upgrade(self, connection: Connection, version: str | None) -> None:
        # Alembic takes as long to import as everything else here, and is needed once in a ledger's life.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        folder = Path(__file__).with_name("migrations")
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if version is not None and version not in known:
            raise StorageFault(
                f"The ledger {self.url} has schema {version!r}, which this release (schema {HEAD!r}) does not know.",
                hint="A newer release of model-variant-factory has upgraded it: use that release, or another ledger.",
                details=[Detail("FACTORY_LEDGER_URL", f"schema {version!r} is newer than {HEAD!r}")],
            )
        taken = set(inspect(connection).get_table_names()) & set(metadata.tables)
        if version is None and taken:
            raise StorageFault(
                f"{self.url} is no ledger, but has tables of the same names: {', '.join(sorted(taken))}.",
                hint="Set FACTORY_LEDGER_URL to a database or file of its own.",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
        _lock_wait_s(parsed)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InvalidRequest(
            f"{url!r} is not the URL of a database: {error}.",
            hint="Write it like sqlite:////folder/ledger.db (FACTORY_LEDGER_URL).",
            details=[Detail("FACTORY_LEDGER_URL", str(error))],
        ) from error
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InvalidRequest(
            f"{url!r} keeps the ledger in memory, where no other process can see it.",
            hint="Name a file: sqlite:////folder/ledger.db.",
            details=[Detail("FACTORY_LEDGER_URL", "a file is needed")],
        )
    return parsed


def _prepare_file(url: URL, *, create: bool) -> None:
    """Make sure that SQLite can create its files; it would only say 'unable to open database file'."""
    path = Path(str(url.database))
    if not create and not path.exists():
        raise NotFound(f"There is no ledger at {str(path)!r}.", hint="Submit a request first, or set FACTORY_HOME.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(path.parent))
    except OSError as error:
        raise StorageFault(
            f"The ledger's folder {str(path.parent)!r} cannot be written: {error.strerror or error}.",
            hint="Set FACTORY_HOME (or FACTORY_LEDGER_URL) to a place that this user may write.",
            details=[Detail("FACTORY_LEDGER_URL", str(error))],
        ) from error


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_pre_ping=True)
        except ImportError as error:
            raise InvalidRequest(
                f"The driver of {url.drivername!r} is not installed: {error}.",
                hint="Install it, or leave FACTORY_LEDGER_URL empty for the embedded SQLite ledger.",
                details=[Detail("FACTORY_LEDGER_URL", str(error))],
            ) from error
    engine = create_engine(url, connect_args={"timeout": _lock_wait_s(url)})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _lock_wait_s(url: URL) -> float:
    return float(str(url.query.get("timeout", LOCK_WAIT_S)))


def _set_up_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # Transactions are begun by _begin_sqlite; the driver's own would begin at the first write, which is too late.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    # In WAL mode a commit then survives a killed process at any moment, and a power cut as well.
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later cannot wait for a lock in WAL mode: take it at once.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(table(VERSION_TABLE, sql_column("version_num"))))


_HINTS = {
    "locked": "Another process holds the ledger; try again, and end a hung `factory` process if it stays so.",
    "disk is full": "Free some space on the disk that holds the ledger.",
    "not a database": "The file is not a ledger or is damaged: restore a backup, or move it away and begin anew.",
    "malformed": "The file is damaged: restore a backup, or move it away and begin anew.",
    "readonly": "Give this user the right to write the ledger's file, or set FACTORY_HOME to another place.",
    "unable to open": "Check that the path is a file that this user may write.",
}


def _storage_fault(error: Exception, url: URL) -> StorageFault:
    cause = str(error.orig if isinstance(error, DBAPIError) else error)
    hint = next((h for part, h in _HINTS.items() if part in cause), "See the ledger's chapter in docs/operating.md.")
    return StorageFault(
        f"The ledger {url} cannot be used: {cause}.", hint=hint, details=[Detail("FACTORY_LEDGER_URL", cause)]
    )
