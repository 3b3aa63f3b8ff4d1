"""Opening the ledger's database, upgrading it, and transactions on it.

Every error of the database becomes a StorageFault, a lost race a Conflict.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection, Engine, inspect, select, table
from sqlalchemy import column as sql_column
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, StorageFault
from factory.ledger.engines import (
    LOCK_WAIT_S,
    WRITE,
    exclusive,
    lock_wait_s,
    make_engine,
    parse_url,
    prepare_file,
    use_write_ahead_log,
    without_limits,
)
from factory.ledger.faults import may_come_back, storage_fault
from factory.ledger.schema import HEAD, VERSION_TABLE, metadata

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
"""Between two tries to connect to a server that does not answer; each pause is twice the one before."""
GIVEN_UP_S = 1.0
"""After somebody has waited for a server in vain, others look once and do not wait: a service would have all of its
threads waiting, and answer nobody."""

_logger = logging.getLogger(__name__)

_D = TypeVar("_D", bound="Database")
_P = ParamSpec("_P")
_T = TypeVar("_T")


def repeatable(call: Callable[Concatenate[_D, _P], _T]) -> Callable[Concatenate[_D, _P], _T]:
    """Let a call be made again where the server went away in the midst of it, until the ledger's patience is over.

    Whether its transaction was kept is not known then. So this is for calls that may be made twice: that read, that
    find what they were to write, or that leave one event too many.
    """

    @wraps(call)
    def insisting(self: _D, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return call(self, *arguments, **named)
            except StorageFault as fault:
                broke_off = isinstance(fault.__cause__, DBAPIError) and fault.__cause__.connection_invalidated
                if not broke_off or time.monotonic() > until:
                    raise
                _logger.warning("%s is made again: %s", call.__name__, fault.message)
                time.sleep(_SHORTEST_PAUSE_S)

    return insisting


class Database:
    """A ledger's database at the present schema; safe to use from several threads and after a fork."""

    def __init__(self, engine: Engine, *, patience_s: float = LOCK_WAIT_S) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._pid = os.getpid()
        self._given_up = float("-inf")

    @classmethod
    def open(cls, url: str, *, create: bool = True, patience_s: float | None = None) -> Self:
        """Open a ledger; create it or bring it to the present schema where needed.

        Args:
            url: SQLAlchemy URL: ``sqlite:////var/lib/factory/ledger.db`` or ``postgresql://user@host/factory``.
            create: Whether a ledger that does not exist is created.
            patience_s: Seconds to wait for another writer, and for a PostgreSQL server that does not answer, at each
                call; 15 where not given. ``?timeout=`` in the URL wins.

        Raises:
            InvalidRequest: the URL cannot be understood, or its database driver is not installed.
            NotFound: there is no ledger, and ``create`` is False.
            StorageFault: the folder cannot be written, or the database is locked, corrupt, does not answer, or is of
                a newer schema.
        """
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            prepare_file(parsed, create=create)
        patience_s = lock_wait_s(parsed, LOCK_WAIT_S if patience_s is None else patience_s)
        database = cls(make_engine(parsed, patience_s=patience_s), patience_s=patience_s)
        try:
            database._bring_to_head(create=create)
        except BaseException:
            database.close()
            raise
        return database

    @property
    def url(self) -> str:
        """Where the database is; a password is not shown."""
        return str(self._engine.url)

    def ping(self) -> None:
        """Prove that the ledger can be read.

        Raises:
            StorageFault: it cannot.
        """
        with self._read() as connection:
            connection.execute(select(1))

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
        with self._mended(), self._connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """Yield a connection whose changes are all kept, or none of them."""
        with (
            self._mended(),
            self._connect().execution_options(**{WRITE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def _connect(self) -> Connection:
        """Return a connection; wait for a server that does not answer, since nothing has been asked of it yet."""
        if os.getpid() != self._pid:
            # Connections must not be carried over a fork; the parent still uses them, so they stay open.
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        began = time.monotonic()
        until = began if began < self._given_up + GIVEN_UP_S else began + self._patience_s
        pause_s = _SHORTEST_PAUSE_S
        while True:
            try:
                return self._engine.connect()
            except DBAPIError as error:
                if not may_come_back(error, self._engine.url):
                    raise
                left_s = until - time.monotonic()
                if left_s <= 0:
                    self._given_up = time.monotonic()
                    raise
                if pause_s == _SHORTEST_PAUSE_S:
                    _logger.warning("ledger %s: waiting up to %.0f s for it: %s", self.url, left_s, error.orig)
                time.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextmanager
    def _mended(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            cause = str(error.orig).partition("\n")[0]
            raise Conflict(
                f"Another process changed the same thing at the same moment: {cause}.", hint="Try again."
            ) from error
        except (DataError, UnicodeEncodeError, OverflowError) as error:
            cause = str(error.orig if isinstance(error, DataError) else error).partition("\n")[0]
            raise InvalidRequest(
                f"A value cannot be stored or looked up: {cause}.",
                hint="Leave out characters that cannot be printed, and numbers of more than 18 digits.",
            ) from error
        except (DBAPIError, PoolTimeout) as error:
            raise storage_fault(error, self._engine.url) from error

    def _bring_to_head(self, *, create: bool) -> None:
        if self._engine.dialect.name == "sqlite":
            with self._mended():
                use_write_ahead_log(self._engine, patience_s=self._patience_s)
        with self._read() as connection:
            version = _version(connection)
        if version == HEAD:
            return
        if version is None and not create:
            raise NotFound(f"There is no ledger in {self.url}.", hint="Submit a request first, or correct the URL.")
        with self._write() as connection:
            without_limits(connection)
            exclusive(connection, "upgrade")
            # Another process may have done it while this one waited for the lock.
            if (version := _version(connection)) != HEAD:
                self._upgrade(connection, version)

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


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(table(VERSION_TABLE, sql_column("version_num"))))
