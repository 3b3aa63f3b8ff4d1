"""When the time of a command that makes a variant began: with its process, where that was started for it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import psutil
import pytest

from factory import client
from factory.cli import _following
from factory.cli._clock import own_clock
from factory.cli._following import Watcher
from factory.cli.fit import PREDICTED_ROW_S, PREDICTED_S
from factory.errors import InvalidRequest
from factory.ledger.records import Event
from factory.search.clock import Clock
from factory.spec import RequestState

from .conftest import customers, factory


def test_a_commands_clock_began_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()
    monkeypatch.setattr(sys, "argv", ["factory", *process.cmdline()[1:]])
    clock = own_clock(after_s=2.0, of_process=True)
    assert (clock.began, clock.after_s, clock.of_process) == (process.create_time(), 2.0, True)


def test_a_command_that_is_called_in_a_process_of_another_begins_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 5.0)
    monkeypatch.setattr(sys, "argv", ["factory", "run", "r-1"])
    clock = own_clock(after_s=2.0, of_process=True)
    assert (clock.began, clock.after_s, clock.of_process) == (5.0, 2.0, False)
    assert clock.start_s is None


def test_who_follows_a_job_counts_its_time_from_its_process_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_following.time, "monotonic", lambda: 100.0)
    record = SimpleNamespace(
        id="r-1", state=RequestState.QUEUED, request=SimpleNamespace(budget=SimpleNamespace(time_s=60.0))
    )
    told: list[float] = []
    watcher = Watcher(record, SimpleNamespace(), lambda progress: told.append(progress.left_s))  # type: ignore[arg-type]
    event = Event(
        request_id="r-1", sequence=1, time=datetime.now(UTC), state=RequestState.PREPARING, kind="state", message="x"
    )
    watcher.tell(event.model_copy(update={"payload": {"start_s": 4.5}}))
    assert told == [55.5]


@pytest.mark.usefixtures("home")
def test_a_fit_keeps_time_for_the_rows_that_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: list[Clock] = []

    def fit(*_: object, clock: Clock, **__: object) -> None:
        clocks.append(clock)
        raise InvalidRequest("It is enough that it was called.")

    monkeypatch.setattr(client, "fit", fit)
    customers(50).to_csv("rows.csv", index=False)
    given = ["fit", "--train", "rows.csv", "--target", "left"]
    assert "it was called" in factory(*given, "--test", "rows.csv", "--out", "predicted.csv").said
    assert "it was called" in factory(*given).said
    assert clocks[0].after_s >= PREDICTED_S + 50 * PREDICTED_ROW_S
    assert clocks[1].after_s == 0
