"""Where a ledger may lie: its URL, and a database engine with what SQLite and PostgreSQL each need.

What differs between the two when connecting is here: the write-ahead log,
waiting for locks, time limits, pools, and conflicts of an insert.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import ArgumentError, DisconnectionError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from factory.errors import Detail, InvalidRequest, NotFound, StorageFault
from factory.ledger.faults import storage_fault

LOCK_WAIT_S = 15.0
"""How long to wait for another writer; one holds the lock for milliseconds. The URL's ``timeout`` wins."""

STATEMENT_S = 60
"""Longest statement, and longest pause within a transaction, on PostgreSQL: a hung process lets go of its locks."""

POOL, POOL_MORE = 5, 15
"""Connections that are kept, and more that may be open at once; a driver has one or two, the API some for each page."""

WRITE = "ledger_write"
"""Execution option of a connection that is going to write."""

_FILE = "ledger_file"
"""Key under which a connection of SQLite's keeps which file it has open."""

_LOCKS = 0x4D5646
"""First half of the keys of PostgreSQL's advisory locks, so that they are ours."""


def parse_url(url: str) -> URL:
    """Return a ledger's URL with a driver.

    Raises:
        InvalidRequest: it cannot be understood, or the ledger would lie in memory.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
        lock_wait_s(parsed, LOCK_WAIT_S)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        shown = re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)
        raise InvalidRequest(
            f"{shown!r} is not the URL of a database: {str(error).replace(url, shown)}.",
            hint="Write it like sqlite:////folder/ledger.db or postgresql://user@host/factory (FACTORY_LEDGER_URL).",
            details=[Detail("FACTORY_LEDGER_URL", "not a database URL")],
        ) from error
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InvalidRequest(
            f"{url!r} keeps the ledger in memory, where no other process can see it.",
            hint="Name a file: sqlite:////folder/ledger.db.",
            details=[Detail("FACTORY_LEDGER_URL", "a file is needed")],
        )
    return parsed


def lock_wait_s(url: URL, patience_s: float) -> float:
    """Return how long to wait for a database: what the URL says in ``timeout``, or else ``patience_s``."""
    return float(str(url.query.get("timeout", patience_s)))


def prepare_file(url: URL, *, create: bool) -> None:
    """Make sure that there is a file, and that SQLite can write beside it; it says 'unable to open database file' only.

    Raises:
        NotFound: there is no file, and ``create`` is False.
        StorageFault: the folder cannot be made or written.
    """
    path = Path(str(url.database))
    if not create and not path.exists():
        raise NotFound(f"There is no ledger at {str(path)!r}.", hint="Submit a request first, or set FACTORY_HOME.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(path.parent))
        if not path.exists():
            path.touch()  # connections open what is there: see _sqlite
    except OSError as error:
        raise StorageFault(
            f"The ledger's folder {str(path.parent)!r} cannot be written: {error.strerror or error}.",
            hint="Set FACTORY_HOME (or FACTORY_LEDGER_URL) to a place that this user may write.",
            details=[Detail("FACTORY_LEDGER_URL", str(error))],
        ) from error


def make_engine(url: URL, *, patience_s: float) -> Engine:
    """Return an engine that waits for locks that long; nothing is connected yet.

    Raises:
        InvalidRequest: the driver of this database is not installed.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, patience_s)
    try:
        return _postgresql(url, patience_s)
    except ImportError as error:
        raise InvalidRequest(
            f"The driver of {url.drivername!r} is not installed: {error}.",
            hint="Install it, or leave FACTORY_LEDGER_URL empty for the embedded SQLite ledger.",
            details=[Detail("FACTORY_LEDGER_URL", str(error))],
        ) from error


def use_write_ahead_log(engine: Engine, *, patience_s: float) -> None:
    """Switch an SQLite file to WAL. SQLite does not wait for other processes here, so this does.

    Raises:
        StorageFault: the file is locked all the time, or no database.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with engine.connect() as connection:
                raw = connection.connection.cursor()
                if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    raw.execute("PRAGMA journal_mode=WAL")
                raw.close()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise storage_fault(error, engine.url) from error
            time.sleep(0.05)
        except sqlite3.DatabaseError as error:
            raise storage_fault(error, engine.url) from error


def exclusive(connection: Connection, what: str) -> None:
    """Wait until no other transaction does the same thing, and keep others from it until this one ends.

    For changes that have no row to lock; an SQLite transaction that writes is alone anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCKS, func.hashtext(what))))


def without_limits(connection: Connection) -> None:
    """Let this transaction take as long as it needs, and wait as long: for an upgrade."""
    if connection.dialect.name == "postgresql":
        for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(select(func.set_config(limit, "0", True)))


def insert_new(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Insert a row unless its key is there already; return whether it was inserted."""
    insertion = insert_into(connection, table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    result: CursorResult[Any] = connection.execute(insertion, values)
    return result.rowcount == 1


def insert_into(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that can say what happens where the key is there already."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _sqlite(url: URL, patience_s: float) -> Engine:
    path = Path(str(url.database)).absolute()
    engine = create_engine(
        url,
        connect_args={"timeout": patience_s},
        pool_size=POOL,
        max_overflow=POOL_MORE,
        hide_parameters=True,  # errors are logged, and values are documents of teams
    )

    def open_existing(_: Dialect, __: ConnectionPoolEntry, arguments: list[Any], named: dict[str, Any]) -> None:
        # Where the ledger's file was moved away, SQLite would make an empty one in its place.
        arguments[0] = f"{path.as_uri()}?mode=rw"
        named["uri"] = True

    def set_up(connection: Any, entry: ConnectionPoolEntry) -> None:
        # Transactions are begun by _begin_sqlite; the driver's own would begin at the first write, which is too late.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        # In WAL mode a commit then survives a killed process at any moment, and a power cut as well.
        connection.execute("PRAGMA synchronous=FULL")
        entry.info[_FILE] = _file_at(path)

    def refuse_removed(_: Any, entry: ConnectionPoolEntry, __: object) -> None:
        # What is written into a file that was removed is lost: the one that lies there now is opened anew.
        if entry.info[_FILE] is None or _file_at(path) != entry.info[_FILE]:
            raise DisconnectionError

    event.listen(engine, "do_connect", open_existing)
    event.listen(engine, "connect", set_up)
    event.listen(engine, "checkout", refuse_removed)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _file_at(path: Path) -> tuple[int, int] | None:
    """Return which file is at a path; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _postgresql(url: URL, patience_s: float) -> Engine:
    engine = create_engine(
        url.difference_update_query(["timeout"]),
        pool_pre_ping=True,  # after a restart of the server, what lies in the pool is dead
        pool_size=POOL,
        max_overflow=POOL_MORE,
        pool_timeout=max(patience_s, 1.0),
        pool_recycle=1800,
        hide_parameters=True,
        pool_use_lifo=True,  # so that connections which are not needed any more grow old and are closed
        connect_args={
            # Two seconds are libpq's least.
            "connect_timeout": max(2, min(10, math.ceil(patience_s))),
            # A server whose host is gone is noticed within half a minute, not after two hours.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        | ({} if "application_name" in url.query else {"application_name": "factory"}),
    )
    session = {
        "TimeZone": "UTC",
        "lock_timeout": f"{max(1, round(patience_s * 1000))}ms",
        "statement_timeout": f"{STATEMENT_S}s",
        "idle_in_transaction_session_timeout": f"{STATEMENT_S}s",
    }

    def set_up(connection: Any, _entry: ConnectionPoolEntry) -> None:
        with connection.cursor() as cursor:
            for name, value in session.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()

    event.listen(engine, "connect", set_up)
    return engine


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later cannot wait for a lock in WAL mode: take it at once.
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
