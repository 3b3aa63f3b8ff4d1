"""A ledger of a home, and a simulated factory for tests of the controller: on SQLite, made anew for each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.ledger import Ledger
from factory.ledger.records import UNDER_WAY
from factory.operate.controller import Controller, Pass
from factory.operate.jobs import JobState
from factory.settings import Settings
from factory.spec import Actor, RequestState, VariantRequest
from factory.testing.controlled import Course, SimulatedFactory

from .quoted import frame

ANN = Actor(who="ann@example.com")

LONG = Course(trials=3, trial_s=100.0)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, home=tmp_path / "home")


@pytest.fixture
def ledger(home: Settings) -> Iterator[Ledger]:
    with Ledger.open(home.ledger) as opened:
        yield opened


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame().to_parquet(tmp_path / "customers.parquet", index=False)
    return tmp_path / "customers.parquet"


class Plant(SimulatedFactory):
    """The simulated factory with what these tests do to it."""

    def order(self, request_id: str = "r-1", *, team: str = "growth", cpus: float = 1.0, **more: Any) -> str:
        asked = document(team)
        self.ledger.create_request(
            asked, request_id=request_id, door="api", by=ANN, cpus=cpus, queued="It waits.", **more
        )
        return request_id

    def passes(self, controller: Controller, n: int = 1, *, step_s: float = 1.0) -> list[Pass]:
        made = []
        for _ in range(n):
            made.append(controller.reconcile())
            self.advance(step_s)
        return made

    def until(self, controller: Controller, true: Callable[[], bool], *, step_s: float = 1.0) -> float:
        """Make passes until something is so; return after how many seconds it was."""
        began = self.jobs.now
        for _ in range(500):
            if true():
                return (self.jobs.now - began).total_seconds()
            self.passes(controller, step_s=step_s)
        raise AssertionError("it did not come")

    def to_the_end(self, controller: Controller, *request_ids: str, step_s: float = 1.0) -> float:
        ids = request_ids or ("r-1",)
        return self.until(controller, lambda: self.is_over(*ids), step_s=step_s)

    def is_over(self, *request_ids: str) -> bool:
        open_ = {attempt.request_id for attempt in self.ledger.open_attempts()}
        return all(self.state(one) not in UNDER_WAY and one not in open_ for one in request_ids)

    def state(self, request_id: str = "r-1") -> RequestState:
        return self.ledger.request(request_id).state

    def outcomes(self, request_id: str = "r-1") -> list[str | None]:
        return [attempt.outcome for attempt in self.ledger.attempts(request_id)]

    def runs(self, job: str = "r-1-1") -> bool:
        return job in self.jobs.alive and self.jobs.list()[job].state is JobState.RUNNING


def document(team: str = "growth") -> VariantRequest:
    return VariantRequest.model_validate(
        {
            "team": team,
            "name": "churn",
            "recipe": "tabular-auto",
            "dataset": {"path": "customers.parquet", "target": "churned"},
            "budget": {"time_s": 60, "memory_gb": 2},
        }
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    Ledger.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def make(template: Path, tmp_path: Path) -> Iterator[Callable[..., Plant]]:
    """Make simulated factories, each with a ledger of its own."""
    made: list[Plant] = []

    def one(course: Callable[[str, int], Course] | Course | None = None, **more: Any) -> Plant:
        close_last(made)
        home = tmp_path / f"home-{len(made)}"
        home.mkdir()
        shutil.copy(template, home / "ledger.db")
        if course is not None:
            more["course"] = course if callable(course) else lambda _id, _number: course
        made.append(Plant(f"sqlite:///{home / 'ledger.db'}", home, **more))
        return made[-1].__enter__()

    yield one
    close_last(made)


def close_last(made: list[Plant]) -> None:
    if made:
        made[-1].__exit__()
