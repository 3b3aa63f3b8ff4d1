"""A fresh ledger on each database, and documents to put into it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from factory.ledger import Ledger, schema
from factory.spec import Actor, Trial, TrialState, Variant, VariantRequest
from tests.postgres import MISSING, PostgresServer, server

ROOT = Path(__file__).resolve().parents[2]

ANN = Actor(who="ann@example.com", origin="10.0.0.7")


@pytest.fixture(scope="session")
def postgres() -> PostgresServer:
    return server() or pytest.skip(MISSING)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """Where no SQLite ledger is yet."""
    return f"sqlite:///{tmp_path / 'home' / 'ledger.db'}"


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where no ledger is yet, on each database."""
    if backend == "sqlite":
        yield request.getfixturevalue("file_url")
        return
    postgres = request.getfixturevalue("postgres")
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where an empty ledger of the present schema is, on each database."""
    if backend == "sqlite":
        url = request.getfixturevalue("file_url")
        file_of(url).parent.mkdir(mode=0o700)
        shutil.copy(request.getfixturevalue("template_file"), file_of(url))
        yield url
        return
    yield request.getfixturevalue("postgres_url")


@pytest.fixture
def postgres_url(shared_url: str) -> str:
    """Where an empty ledger is in PostgreSQL: always the same database, since a new one takes half a second."""
    tables = [table.name for table in reversed(schema.metadata.sorted_tables)]
    with psycopg.connect(shared_url, autocommit=True) as connection:
        connection.execute("; ".join(f"DELETE FROM {name}" for name in tables))
        connection.execute("INSERT INTO chains VALUES ('audit', 0, '')")
    return shared_url


@pytest.fixture(scope="session")
def template_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    Ledger.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def shared_url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as name:
        Ledger.open(postgres.url(name)).close()
        yield postgres.url(name)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as opened:
        yield opened


@pytest.fixture
def order() -> VariantRequest:
    return make_order()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in a process of its own; what is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", code, *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def together(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., list[list[str]]]:
    """Run code in processes, one for each list of arguments, that go on together from where it calls ``begin()``.

    Returns the lines that each has printed.
    """
    prelude = "import sys\ndef begin():\n    print('ready', flush=True)\n    sys.stdin.readline()\n"

    def run(code: str, *arguments: list[str]) -> list[list[str]]:
        processes = [start(prelude + code, *mine) for mine in arguments]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60) for process in processes]
        assert [errors for _, errors in answers] == [""] * len(processes)
        return [output.splitlines() for output, _ in answers]

    return run


def file_of(url: str) -> Path:
    """Return the file of an SQLite ledger."""
    return Path(url.removeprefix("sqlite:///").partition("?")[0])


def make_order(
    *, team: str = "growth", name: str = "churn", recipe: str = "tabular-auto", **fields: object
) -> VariantRequest:
    return VariantRequest.model_validate(
        {
            "team": team,
            "name": name,
            "recipe": recipe,
            "dataset": {"path": "customers.parquet", "target": "churned"},
            "spaces": {"lightgbm": {"num_leaves": [15, 63]}},
            "deployment": {"as": "canary", "percent": 10},
        }
        | fields
    )


def make_trial(number: int = 0, *, segment: str = "", state: TrialState = TrialState.SUCCEEDED) -> Trial:
    return Trial(
        number=number,
        family="lightgbm",
        parameters={"num_leaves": 31, "learning_rate": 0.1, "extra_trees": True, "max_bin": None},
        state=state,
        score=0.84 if state is TrialState.SUCCEEDED else None,
        folds=(0, 1) if state is TrialState.SUCCEEDED else (),
        fold_scores=(0.83, 0.85) if state is TrialState.SUCCEEDED else (),
        segment=segment,
    )


def make_variant(request_id: str, version: int = 1, *, name: str = "growth.churn") -> Variant:
    return Variant(
        name=name,
        version=version,
        request_id=request_id,
        task="binary",
        metric="roc_auc",
        score=0.84,
        score_low=0.82,
        score_high=0.86,
        recipe="tabular-auto",
        recipe_digest="a" * 64,
        dataset_digest="b" * 64,
        bundle_digest="c" * 64,
    )
