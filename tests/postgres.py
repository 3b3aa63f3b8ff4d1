"""A real PostgreSQL server for tests: started once in a process, in a temporary folder, ended with the process.

A conftest takes a server by ``server()``, and skips where it returns None::

    @pytest.fixture(scope="session")
    def postgres() -> PostgresServer:
        return server() or pytest.skip(MISSING)
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from factory.operate.ports import free_port

MISSING = "PostgreSQL's initdb and postgres are neither on the PATH nor in /usr/lib/postgresql/*/bin"

USER = "factory"
GUARDED, PASSWORD = "guarded", "it-is-secret"
"""A user who must give a password; all others need none."""

_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "lc_messages": "C",
    "log_min_messages": "fatal",
}


class PostgresServer:
    """A server on a free port of the loopback; it keeps port and data when it is stopped and started again.

    Args:
        binaries: Folder with ``initdb`` and ``postgres``.
        durable: Whether a commit is on the disk before it is answered, as in production; tests need not wait for that.
    """

    def __init__(self, binaries: Path, *, durable: bool = False) -> None:
        self._binaries = binaries
        self._settings = _SETTINGS | ({"fsync": "on", "full_page_writes": "on"} if durable else {})
        self._folder = Path(tempfile.mkdtemp(prefix="factory-postgres-"))
        self._process: subprocess.Popen[Any] | None = None
        self._databases = 0
        self.port = free_port(0)
        # Neither program runs as root.
        self._account = pwd.getpwnam(_unprivileged()) if os.geteuid() == 0 else None
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        self._initialize()
        self.start()
        self.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{PASSWORD}'")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command: list[str | Path] = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *settings]
        until = time.monotonic() + 30
        while True:
            if self._process is None or self._process.poll() is not None:
                # After a kill its children may hold the shared memory for a moment, and it does not start then.
                self._process = subprocess.Popen(
                    command, stderr=subprocess.DEVNULL, preexec_fn=_end_with_parent, **self._as_account()
                )
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            if time.monotonic() > until:
                raise RuntimeError("PostgreSQL does not start")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server in an orderly way, without waiting for its clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server, as a power cut would; what was committed is there at the next start."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """End the server and delete its data."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str, *, user: str = USER, password: str = "") -> str:
        """Return the URL of a database as FACTORY_LEDGER_URL has it."""
        account = f"{user}:{password}" if password else user
        return f"postgresql://{account}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """Run one statement as the owner of everything, outside of a transaction."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Yield the name of a new, empty database; it is gone afterwards."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _initialize(self) -> None:
        # Names are ordered as people do, so that a test which relies on the order of bytes fails.
        locale = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en"]
        command: list[str | Path] = [
            self._binaries / "initdb",
            "-D",
            self._data,
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run([*command, *locale], check=True, stdout=subprocess.DEVNULL, **self._as_account())
        rules = [f"host all {GUARDED} 127.0.0.1/32 scram-sha-256", "host all all 127.0.0.1/32 trust"]
        (self._data / "pg_hba.conf").write_text("\n".join(rules) + "\n")

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {"cwd": self._folder}
        return {
            "cwd": self._folder,
            "user": self._account.pw_uid,
            "group": self._account.pw_gid,
            "extra_groups": [],
        }

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
        self._process = None


@functools.cache
def server(*, durable: bool = False) -> PostgresServer | None:
    """Return the server of this process, started at the first call; None where PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        return None
    started = PostgresServer(binaries, durable=durable)
    atexit.register(started.remove)
    return started


def _binaries() -> Path | None:
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


def _unprivileged() -> str:
    names = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _end_with_parent() -> None:
    """Let the kernel stop the server where this process is killed and cannot do so itself (Linux)."""
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGQUIT)
