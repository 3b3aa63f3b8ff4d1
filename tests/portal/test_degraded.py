"""The table of degraded modes in docs/operating.md: each row is broken for real, and each cell of it is looked up.

The factory is the same before, while and after: nothing is started anew, so what it does afterwards it does by itself.
"""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from factory.data import uploads
from factory.ledger import moments
from factory.operate.ports import free_port
from factory.settings import Settings
from serve.portal import context
from tests.portal.whole import BRIEF_S, MlflowServer, Whole, whole
from tests.postgres import MISSING, PostgresServer, server
from tests.test_docs_pages import table

pytestmark = pytest.mark.slow

ROWS = table("operating.md", "Degraded modes")
COLUMNS = (
    *("read", "submit", "upload", "events", "promote", "ready", "command"),
    *("controller", "job", "predict", "first call", "entities"),
)


@dataclass(frozen=True)
class Standing:
    """A factory, and the servers that it stands on."""

    it: Whole
    postgres: PostgresServer | None = None
    mlflow: MlflowServer | None = None

    @property
    def home(self) -> Path:
        return self.it.world.settings.root


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Let the portal wait briefly, and look each time; its limits are those of people."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "PATIENCE_S", BRIEF_S)
        patch.setattr(context, "_AGAIN_S", 0.0)
        patch.setattr(context, "LOOK_AGAIN_S", 0.0)
        for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "FACTORY_URL", "FACTORY_TOKEN", "FACTORY_LEDGER_URL"):
            patch.delenv(name, raising=False)
        # As `python -m serve.portal` has it.
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def embedded(impatient: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """A home with all in its folder."""
    with whole(Settings(_env_file=None, home=tmp_path_factory.mktemp("embedded"))) as it:
        yield Standing(it)


@pytest.fixture(scope="module")
def served(impatient: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """A home whose ledger is in PostgreSQL, and whose MLflow is a server."""
    postgres = server() or pytest.skip(MISSING)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        url = postgres.url(stack.enter_context(postgres.database()))
        home = tmp_path_factory.mktemp("served")
        settings = Settings(_env_file=None, home=home, ledger_url=url, mlflow_port=free_port(0))
        mlflow = MlflowServer(settings)
        stack.callback(mlflow.kill)
        mlflow.start()
        patch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
        it = stack.enter_context(whole(settings))
        # The other home has none: it is set for those tests only that are of this one.
        patch.undo()
        yield Standing(it, postgres, mlflow)


# --- what breaks, and how it is mended ------------------------------------------------

Mend = Callable[[], None]


def lock_the_ledger(standing: Standing) -> Mend:
    other = sqlite3.connect(standing.home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other.close


def empty_the_log(standing: Standing) -> Path:
    """Empty the ledger's write-ahead log; return its file."""
    with sqlite3.connect(standing.home / "ledger.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return standing.home / "ledger.db-wal"


def damage_the_ledger(standing: Standing) -> Mend:
    files = [standing.home / f"ledger.db{suffix}" for suffix in ("", "-wal", "-shm")]
    empty_the_log(standing)
    away = standing.home / "away"
    away.mkdir()
    for path in files:
        path.rename(away / path.name)
    files[0].write_bytes(b"this is no ledger " * 500)

    def mend() -> None:
        for path in files:
            (away / path.name).replace(path)
        away.rmdir()

    return mend


def stop_postgresql(standing: Standing) -> Mend:
    assert standing.postgres is not None
    standing.postgres.stop()
    return standing.postgres.start


def fill_the_disk(standing: Standing) -> Mend:
    """Let no file grow beyond what the ledger's log has now, as a quota does, and tell that nothing is free."""
    log = empty_the_log(standing)
    for _ in range(20):
        standing.it.driver.note(standing.it.request_id, "search", "The log is longer than files of other use.")
    size = log.stat().st_size
    assert size > 50_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    patch = pytest.MonkeyPatch()
    patch.setattr(uploads.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))

    def mend() -> None:
        patch.undo()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return mend


def stop_ray(standing: Standing) -> Mend:
    standing.it.world.jobs.reachable = False
    standing.it.world.app.state.portal.outlook._asked = float("-inf")

    def mend() -> None:
        standing.it.world.jobs.reachable = True
        standing.it.world.app.state.portal.outlook._asked = float("-inf")

    return mend


def kill_mlflow(standing: Standing) -> Mend:
    assert standing.mlflow is not None
    standing.mlflow.kill()
    return standing.mlflow.start


def replace(path: Path) -> Mend:
    """Put a file where a folder was, so that nothing below it can be read or made."""
    away = path.with_name(f"{path.name}-away")
    path.rename(away)
    path.touch()

    def mend() -> None:
        path.unlink()
        away.rename(path)

    return mend


def take_the_artifacts(standing: Standing) -> Mend:
    return replace(standing.home / "artifacts")


def take_the_offline_store(standing: Standing) -> Mend:
    return replace(standing.home / "features" / "data")


def damage_the_online_store(standing: Standing) -> Mend:
    path = standing.home / "features" / "online.db"
    content = path.read_bytes()
    path.write_bytes(b"this is no database " * 500)

    def mend() -> None:
        path.write_bytes(content)

    return mend


def set_the_clock_back(_: Standing) -> Mend:
    patch = pytest.MonkeyPatch()
    clock = moments.clock
    patch.setattr(moments, "clock", lambda: clock() - timedelta(hours=1))
    return patch.undo


BREAKS: dict[str, tuple[str, Callable[[Standing], Mend]]] = {
    "Ledger in SQLite: locked by another process": ("embedded", lock_the_ledger),
    "Ledger in SQLite: damaged, or another file in its place": ("embedded", damage_the_ledger),
    "Ledger in PostgreSQL: stopped": ("served", stop_postgresql),
    "Disk of FACTORY_HOME: full": ("embedded", fill_the_disk),
    "Ray: head stopped": ("embedded", stop_ray),
    "MLflow: server stopped": ("served", kill_mlflow),
    "Artifacts: folder not there": ("embedded", take_the_artifacts),
    "Feast: offline store not there": ("embedded", take_the_offline_store),
    "Feast: online store damaged": ("embedded", damage_the_online_store),
    "Clock: set back by an hour": ("embedded", set_the_clock_back),
}


def test_every_row_is_tested_and_no_other() -> None:
    assert list(ROWS) == list(BREAKS)
    assert all(len(cells) == 1 + len(COLUMNS) for cells in ROWS.values())


@contextmanager
def broken(row: str, standing: Standing) -> Iterator[Mend]:
    """Break what a row says; yield what mends it, which is called at the end at the latest."""
    left = [BREAKS[row][1](standing)]

    def mend() -> None:
        while left:
            left.pop()()

    try:
        yield mend
    finally:
        mend()


@pytest.mark.parametrize("row", BREAKS)
def test_each_door_says_what_the_table_says_and_goes_on_afterwards(
    row: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing: Standing = request.getfixturevalue(BREAKS[row][0])
    it = standing.it
    if standing.mlflow is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", standing.mlflow.url)
    told = dict(zip(COLUMNS, ROWS[row][1:], strict=True))
    assert seen(it) == WELL
    with broken(row, standing) as mend:
        found = seen(it)
        assert {name: found[name] for name in found} == {name: told[name] for name in found}
        if row.startswith("Ray"):
            assert it.log() == 503
            mend()
            it.loses_its_job()
        else:
            it.works(told["job"], mend)
    with suppress(AssertionError):  # a server that was just started may refuse the first call
        assert it.promote() == 200
    assert seen(it) == WELL


WELL = {
    "read": "`200`", "submit": "`202`", "upload": "`201`", "events": "`200`", "promote": "`200`", "ready": "`200`",
    "command": "`0`", "controller": "goes on", "predict": "`200`", "first call": "`200`", "entities": "`200`",
}  # fmt: skip
"""What the doors say when all is well, beside a job, which is made then."""


def seen(it: Whole) -> dict[str, str]:
    """Ask at each door but the job."""
    status, missing = it.ready()
    named = "".join(f" {name}" for name in sorted(missing))
    return {
        "read": f"`{it.read()}`",
        "submit": f"`{it.submit()}`",
        "upload": f"`{it.upload()}`",
        "events": f"`{it.events()}`",
        "promote": f"`{it.promote()}`",
        "ready": f"`{status}`{named}",
        "command": f"`{it.command()}`",
        "controller": it.controls(),
        "predict": f"`{it.predict()}`",
        "first call": f"`{it.first_call()}`",
        "entities": f"`{it.by_entities()}`",
    }
