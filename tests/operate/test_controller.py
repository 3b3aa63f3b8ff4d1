"""What the controller makes of requests and jobs: scenarios with the real ledger, a simulated cluster, and faults."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.errors import Conflict, ServiceFault, StorageFault
from factory.ledger import Ledger
from factory.ledger.records import UNDER_WAY
from factory.operate.admission import Capacity
from factory.operate.attending import GRACE_S, KEPT_S, LEDGER, LOST_S, REFUSED_S, log_path
from factory.operate.controller import AT_ONCE, LEAD, LEASE_S, MOST_PAUSE_S, Controller, Pass
from factory.operate.jobs import JobSpec, JobState
from factory.spec import Actor, Quota, RequestState, VariantRequest
from factory.testing.controlled import Course, SimulatedFactory
from factory.testing.jobs import SMALL
from tests.postgres import MISSING, server

ANN = Actor(who="ann@example.com")
LONG = Course(trials=3, trial_s=100.0)


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


# --- one request ------------------------------------------------------------------


def test_a_request_is_admitted_run_and_made(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    first = controller.reconcile()
    assert first.led
    assert first.admitted == ("r-1",)
    assert plant.ledger.attempt("r-1-1").state == "submitted"
    assert plant.until(controller, plant.runs) <= 3
    plant.passes(controller)
    assert plant.ledger.attempt("r-1-1").state == "running"
    plant.to_the_end(controller)
    assert plant.state() is RequestState.REGISTERED
    assert plant.outcomes() == ["done"]
    assert plant.jobs.starts == {"r-1-1": 1}
    assert not controller.reconcile().admitted
    assert plant.ledger.usage()[0].cpu_s == pytest.approx(13, abs=5)
    assert plant.ledger.verify_events("r-1") is None


def test_a_job_gets_what_it_needs_and_no_more(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.order(cpus=2)
    plant.controller().reconcile()
    spec = plant.jobs.specs["r-1-1"]
    assert Path(spec.entrypoint[0]).name == "factory"
    assert spec.entrypoint[1:] == ("run", "r-1")
    assert spec.env["FACTORY_ATTEMPT"] == "r-1-1"
    assert spec.env["FACTORY_GRANTED_CPUS"] == "2"
    assert spec.env["FACTORY_HOME"] == str(plant.settings.root)
    assert spec.env["FACTORY_LEDGER_URL"] == plant.settings.ledger
    assert spec.folder == str(plant.settings.workspace("r-1"))
    assert (spec.cpus, spec.gpus, spec.memory_mb) == (0, 0, 0), "its trials could not start beside it"
    assert spec.metadata == {LEDGER: spec.metadata[LEDGER], "request": "r-1", "team": "growth"}


def test_who_waits_is_told_why_and_starts_when_there_is_room(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order("r-1", cpus=2)
    plant.advance(1)
    plant.order("r-2", cpus=1)
    assert controller.reconcile().held == 1
    held = plant.ledger.request("r-2").held
    assert held is not None
    assert held.sentence.startswith("waiting for 1 CPU: team growth holds 2 of 2")
    plant.to_the_end(controller, "r-1", "r-2")
    assert plant.state("r-2") is RequestState.REGISTERED
    assert plant.ledger.request("r-2").held is None


def test_the_log_of_a_job_is_kept_for_its_owner_only(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.order()
    plant.to_the_end(plant.controller())
    kept = log_path(plant.settings, "r-1", 1)
    assert kept.exists()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_no_more_is_begun_in_one_pass_than_others_can_wait_for(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=100, gpus=0, memory_gb=400))
    controller = plant.controller()
    for n in range(AT_ONCE + 3):
        plant.order(f"r-{n}")
    passes = plant.passes(controller, 2)
    assert [len(one.admitted) for one in passes] == [AT_ONCE, 3]
    assert [one.more for one in passes] == [True, False]


# --- faults -----------------------------------------------------------------------------


def test_what_the_user_can_mend_is_not_tried_again(make: Callable[..., Plant]) -> None:
    plant = make(Course("user_fault"))
    plant.order()
    plant.to_the_end(plant.controller())
    record = plant.ledger.request("r-1")
    assert (record.state, record.fault) == (RequestState.FAILED, "user")
    assert plant.outcomes() == ["user_fault"]
    assert plant.ledger.attempt("r-1-1").message == "The target has one class only."


def test_a_fault_of_ours_is_tried_again_later_each_time_and_given_up_after_three(make: Callable[..., Plant]) -> None:
    plant = make(Course("system_fault", trials=9))
    controller = plant.controller()
    plant.order()
    waits = []
    for number in (1, 2):
        plant.until(
            controller, lambda n=number: plant.outcomes()[-1:] == ["system_fault"] and len(plant.outcomes()) == n
        )
        waits.append(plant.until(controller, lambda n=number: len(plant.outcomes()) > n))
    assert waits == pytest.approx([10, 20], abs=2)
    plant.to_the_end(controller)
    record = plant.ledger.request("r-1")
    assert (record.state, record.fault) == (RequestState.FAILED, "system")
    assert record.error is not None
    assert (record.error.message, record.error.hint) == ("MLflow does not answer.", "Start it.")
    assert plant.outcomes() == ["system_fault"] * 3
    assert max(plant.drivers.fits.values()) == 1, "a finished trial was fitted again"


@pytest.mark.parametrize(("ending", "said"), [("crash", "exit code -9"), ("quits", "exit code 0")])
def test_a_driver_that_ends_without_a_word_is_a_fault_of_ours(
    make: Callable[..., Plant], ending: Any, said: str
) -> None:
    plant = make(lambda _id, number: Course(ending if number == 1 else "registered"))
    plant.order()
    plant.to_the_end(plant.controller())
    assert plant.outcomes() == ["system_fault", "done"]
    assert said in plant.ledger.attempt("r-1-1").message


@pytest.mark.parametrize("far", [False, True])
def test_a_job_whose_node_died_is_made_again_with_all_its_trials(make: Callable[..., Plant], far: bool) -> None:
    plant = make(Course(trials=4), far=far)
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: len(plant.ledger.trials("r-1")) == 2)
    plant.jobs.lose("r-1-1")
    plant.jobs.fail_next("logs", times=1000)  # its logs are gone with it
    plant.to_the_end(controller, step_s=3)
    assert plant.outcomes() == ["lost", "done"]
    assert plant.drivers.fits == {("r-1", number): 1 for number in range(4)}


def test_what_hangs_is_stopped_and_has_failed(make: Callable[..., Plant]) -> None:
    plant = make(Course("hangs"))
    plant.order()
    took_s = plant.to_the_end(plant.controller(), step_s=5)
    assert took_s == pytest.approx(2 * 60 + 300, abs=30)
    assert plant.state() is RequestState.FAILED
    assert plant.outcomes() == ["timed_out"]
    assert not plant.jobs.alive


def test_while_the_cluster_is_away_jobs_go_on_and_nothing_is_lost(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order("r-1", cpus=2)
    plant.order("r-2")
    plant.until(controller, plant.runs)
    plant.jobs.reachable = False
    for _ in range(60):
        with pytest.raises(ServiceFault):
            controller.reconcile()
        plant.advance(1)
    assert plant.state("r-1") is RequestState.REGISTERED
    assert plant.state("r-2") is RequestState.QUEUED
    plant.jobs.reachable = True
    plant.to_the_end(controller, "r-1", "r-2")
    assert plant.outcomes("r-1") == plant.outcomes("r-2") == ["done"]


def test_what_a_restarted_cluster_has_forgotten_is_made_again(make: Callable[..., Plant]) -> None:
    plant = make(LONG)
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: bool(plant.ledger.trials("r-1")), step_s=10)
    plant.jobs.restart()
    plant.advance(0)
    plant.to_the_end(controller, step_s=10)
    assert plant.outcomes() == ["lost", "done"]
    assert max(plant.drivers.fits.values()) == 1


def test_a_job_that_was_just_submitted_is_not_taken_for_lost(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    controller.reconcile()
    shown = plant.jobs.list
    plant.jobs.list = dict  # type: ignore[method-assign]
    plant.passes(controller, int(LOST_S) - 1)
    assert plant.outcomes() == [None]
    plant.jobs.list = shown  # type: ignore[method-assign]
    plant.to_the_end(controller)
    assert plant.outcomes() == ["done"]


def test_where_the_cluster_refuses_one_job_the_others_go_on(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=3, gpus=0, memory_gb=12))
    controller = plant.controller()
    submit = plant.jobs.submit

    def picky(spec: JobSpec) -> None:
        if spec.metadata["request"] == "r-odd":
            raise ServiceFault("Ray did not take it.", hint="Ask Ray.")
        submit(spec)

    plant.jobs.submit = picky  # type: ignore[method-assign]
    plant.order("r-odd")
    plant.order("r-2")
    controller.reconcile()
    plant.order("r-3")
    plant.to_the_end(controller, "r-2", "r-3")
    assert plant.state("r-3") is RequestState.REGISTERED
    assert plant.outcomes("r-odd") == [None]
    assert plant.to_the_end(controller, "r-odd", step_s=5) == pytest.approx(3 * REFUSED_S + 30, abs=30)
    error = plant.ledger.request("r-odd").error
    assert plant.outcomes("r-odd") == ["system_fault"] * 3
    assert error is not None
    assert (error.message, error.hint) == ("Ray did not take it.", "Ask Ray.")


def test_where_the_cluster_takes_no_job_running_ones_are_still_attended_to(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=9, gpus=0, memory_gb=40))
    controller = plant.controller()
    plant.order("r-1")
    plant.until(controller, lambda: plant.runs("r-1-1"))
    plant.jobs.fail_next("submit", times=10_000)
    for n in range(2, 8):
        plant.order(f"r-{n}")
    for _ in range(20):
        with suppress(ServiceFault):
            controller.reconcile()
        plant.advance(1)
    assert plant.outcomes("r-1") == ["done"]


def test_a_setting_that_no_job_can_be_given_is_told(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.settings = plant.settings.model_copy(update={"recipes": Path("/srv/$TEAM")})
    plant.order()
    plant.to_the_end(plant.controller())
    error = plant.ledger.request("r-1").error
    assert error is not None
    assert "FACTORY_RECIPES" in error.message
    assert plant.outcomes() == ["system_fault"] * 3


def test_what_nobody_foresaw_about_one_request_stops_no_other(
    make: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant = make()
    controller = plant.controller()
    admit = plant.ledger.admit

    def broken(request_id: str, **more: Any) -> Any:
        if request_id == "r-odd":
            raise ZeroDivisionError("nobody foresaw this")
        return admit(request_id, **more)

    monkeypatch.setattr(plant.ledger, "admit", broken)
    plant.order("r-odd")
    plant.order("r-2")
    with caplog.at_level(logging.ERROR):
        plant.to_the_end(controller, "r-2")
    assert "nobody foresaw this" in caplog.text
    assert plant.state("r-odd") is RequestState.QUEUED


def test_a_clock_that_is_set_back_ends_nothing_and_blocks_nothing(make: Callable[..., Plant]) -> None:
    plant = make(LONG)
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: bool(plant.ledger.trials("r-1")), step_s=10)
    plant.clock_off = -timedelta(hours=1)
    plant.order("r-2")
    plant.to_the_end(controller, "r-1", "r-2", step_s=10)
    assert plant.outcomes("r-1") == plant.outcomes("r-2") == ["done"]


def test_what_hangs_is_stopped_in_time_though_the_clock_was_set_back(make: Callable[..., Plant]) -> None:
    plant = make(Course("hangs"))
    controller = plant.controller()
    plant.order()
    plant.passes(controller, 30, step_s=10)
    plant.clock_off = -timedelta(hours=1)
    assert plant.to_the_end(controller, step_s=10) == pytest.approx(2 * 60 + 300, abs=30)
    assert plant.outcomes() == ["timed_out"]


# --- cancelling ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["queued", "admitted", "pending", "preparing", "searching", "evaluating", "faulty"])
def test_a_request_can_be_cancelled_at_any_moment(make: Callable[..., Plant], moment: str) -> None:
    plant = make(lambda _id, number: Course("crash" if moment == "faulty" and number == 1 else "registered", trials=4))
    controller = plant.controller()
    plant.order(cpus=2)
    if moment == "queued":
        plant.order("r-0", team="other", cpus=2)
    if moment == "admitted":
        plant.jobs.fail_next("submit", times=1)
    reached: dict[str, Callable[[], bool]] = {
        "queued": lambda: True,
        "admitted": lambda: bool(plant.ledger.open_attempts()),
        "pending": lambda: "r-1-1" in plant.jobs.alive,
        "preparing": lambda: plant.state() is RequestState.PREPARING,
        "searching": lambda: bool(plant.ledger.trials("r-1")),
        "evaluating": lambda: plant.state() is RequestState.EVALUATING,
        "faulty": lambda: plant.outcomes() == ["system_fault"],
    }
    plant.until(controller, reached[moment])
    plant.ledger.request_cancel("r-1", by=ANN)
    assert plant.to_the_end(controller) <= 5
    assert plant.state() is RequestState.CANCELLED
    assert not plant.jobs.alive - {"r-0-1"}
    assert not plant.ledger.waiting() or plant.ledger.waiting()[0].id == "r-0"
    plant.passes(controller, 30)
    assert "r-1" not in {attempt.request_id for attempt in plant.ledger.open_attempts()}
    assert plant.ledger.verify_events("r-1") is None


def test_what_is_made_is_not_cancelled_any_more(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: plant.state() is RequestState.REGISTERED)
    with pytest.raises(Conflict, match="is registered"):
        plant.ledger.request_cancel("r-1", by=ANN)
    plant.to_the_end(controller)
    assert plant.outcomes() == ["done"]


def test_a_cancelled_request_that_a_person_works_on_ends_with_that(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    with plant.ledger.claim("r-1"):
        plant.ledger.request_cancel("r-1", by=ANN)
        assert not controller.reconcile().admitted
        assert plant.state() is RequestState.QUEUED
    controller.reconcile()
    assert plant.state() is RequestState.CANCELLED
    assert plant.outcomes() == []


# --- making room ---------------------------------------------------------------------------------


def make_room(plant: Plant, controller: Controller) -> None:
    """Let a borrower run for a while, and then somebody come to whom half of the cluster is guaranteed."""
    plant.ledger.create_team("sure", quota=Quota(cpus=2), by=ANN)
    plant.order("r-1", cpus=2)
    plant.until(controller, lambda: bool(plant.ledger.trials("r-1")), step_s=10)
    plant.passes(controller, 15, step_s=10)
    plant.order("r-sure", team="sure", cpus=2)


@pytest.mark.parametrize(("trial_s", "stops_itself"), [(20.0, True), (190.0, False)])
def test_a_borrower_makes_room_and_goes_on_later_without_fitting_a_trial_again(
    make: Callable[..., Plant], trial_s: float, stops_itself: bool
) -> None:
    """It stops at the end of a trial, or after half a minute is stopped, and loses the trial that runs."""
    borrower = Course(trials=int(380 / trial_s) + 1, trial_s=trial_s)
    plant = make(lambda request_id, _number: borrower if request_id == "r-1" else Course())
    controller = plant.controller()
    make_room(plant, controller)
    plant.until(controller, lambda: plant.outcomes("r-1") == ["preempted"])
    told = plant.ledger.last_events(["r-1"], "preempt")["r-1"]
    ended = plant.ledger.attempt("r-1-1").ended_at
    assert ended is not None
    assert (ended - told.time).total_seconds() <= GRACE_S + 5
    assert bool(plant.ledger.last_events(["r-1"], "preempted")) is stops_itself
    plant.to_the_end(controller, "r-1", "r-sure", step_s=10)
    assert plant.outcomes("r-1") == ["preempted", "done"]
    assert plant.outcomes("r-sure") == ["done"]
    assert plant.ledger.request("r-1").preemptions == 1
    assert max(plant.drivers.fits.values()) == 1


def test_what_is_evaluated_is_not_stopped_to_make_room(make: Callable[..., Plant]) -> None:
    plant = make(lambda request_id, _number: Course(trials=2, trial_s=160.0, finish_s=60.0))
    controller = plant.controller()
    make_room(plant, controller)
    plant.until(controller, lambda: plant.state() is RequestState.EVALUATING)
    plant.ledger.request_preemption("r-1", for_id="r-sure")
    plant.to_the_end(controller, step_s=5)
    assert plant.outcomes("r-1") == ["done"]


# --- jobs that came past the controller --------------------------------------------------------------


def past(plant: Plant, job: str = "raysubmit_1") -> str:
    plant.past(job, document().model_dump(mode="json", by_alias=True))
    plant.advance(4)
    return f"r-{job}"


def test_a_job_that_came_past_the_controller_is_adopted(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    request_id = past(plant)
    assert controller.reconcile().admitted == (request_id,)
    assert plant.ledger.attempts(request_id)[0].kind == "adopted"
    plant.to_the_end(controller, request_id)
    assert plant.outcomes(request_id) == ["done"]
    assert set(plant.jobs.starts) == {"raysubmit_1"}, "another job was submitted for it"


def test_it_waits_for_its_turn_and_is_made_by_a_job_of_the_controller_where_it_dies(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order("r-1", cpus=2)
    controller.reconcile()
    request_id = past(plant)
    plant.passes(controller, 3)
    assert plant.outcomes(request_id) == []
    plant.jobs.kill("raysubmit_1")
    plant.to_the_end(controller, "r-1", request_id)
    assert plant.outcomes(request_id) == ["done"]
    assert plant.ledger.attempts(request_id)[0].kind == "controller"


def test_stopping_its_job_cancels_it(make: Callable[..., Plant]) -> None:
    plant = make(LONG)
    controller = plant.controller()
    request_id = past(plant)
    plant.passes(controller, 10)
    plant.jobs.stop("raysubmit_1")
    plant.to_the_end(controller, request_id)
    assert plant.state(request_id) is RequestState.CANCELLED
    assert plant.outcomes(request_id) == ["cancelled"]


@pytest.mark.parametrize("why", ["cancel", "late", "preempt"])
def test_a_job_that_the_controller_stops_is_not_taken_for_stopped_by_hand(make: Callable[..., Plant], why: str) -> None:
    plant = make(lambda _id, number: Course("hangs" if number == 1 else "registered"))
    controller = plant.controller()
    request_id = past(plant)
    plant.passes(controller, 10)
    if why == "cancel":
        plant.ledger.request_cancel(request_id, by=ANN)
    elif why == "preempt":
        plant.ledger.request_preemption(request_id, for_id="r-other")
    plant.to_the_end(controller, request_id, step_s=5)
    state, outcomes = plant.state(request_id), plant.outcomes(request_id)
    assert (state, outcomes) == {
        "cancel": (RequestState.CANCELLED, ["cancelled"]),
        "late": (RequestState.FAILED, ["timed_out"]),
        "preempt": (RequestState.REGISTERED, ["preempted", "done"]),
    }[why]


# --- several controllers -------------------------------------------------------------------------------


def test_of_two_controllers_one_leads_until_it_resigns_or_is_gone(make: Callable[..., Plant]) -> None:
    plant = make()
    first, second = plant.controller(), plant.controller()
    assert [first.reconcile().led, second.reconcile().led] == [True, False]
    stopping = threading.Event()
    stopping.set()
    first.run(stopping)
    assert [second.reconcile().led, first.reconcile().led] == [True, False]
    plant.advance(LEASE_S + 1)
    assert [first.reconcile().led, second.reconcile().led] == [True, False]


ENDINGS = {"r-1": "registered", "r-2": "system_fault", "r-3": "user_fault", "r-4": "crash"}
WRITES = {"admit", "mark_submitted", "mark_running", "end_attempt", "fail", "submit"}
"""Calls that change something; before and after others it is the same."""


def four_requests(make: Callable[..., Plant]) -> Plant:
    """A factory with requests that are made at the first try, at the second, and not at all for two reasons."""

    def course(request_id: str, number: int) -> Course:
        ending: Any = ENDINGS[request_id] if number == 1 or request_id == "r-4" else "registered"
        return Course(ending, trials=4 if request_id == "r-4" else 2, trial_s=1.0)

    plant = make(course, capacity=Capacity(cpus=4, gpus=0, memory_gb=16))
    for request_id in ENDINGS:
        plant.order(request_id)
    return plant


def interrupted(plant: Plant, at: int, interrupt: Callable[[], None]) -> bool:
    """Make passes until all is over, interrupted after the effect of one call; return whether it came to it."""
    calls = 0

    def meddle(name: str, done: bool) -> None:
        nonlocal calls
        if done and name in WRITES:
            calls += 1
            if calls == at:
                interrupt()

    plant.to_the_end(plant.controller(meddle), *ENDINGS, step_s=5)
    return calls >= at


def all_came_to_its_end(plant: Plant) -> None:
    plant.advance(LEASE_S + 1)
    plant.to_the_end(plant.controller(), *ENDINGS, step_s=5)
    three = ["system_fault"] * 3
    assert [plant.outcomes(one) for one in ENDINGS] == [["done"], ["system_fault", "done"], ["user_fault"], three]
    assert plant.ledger.request("r-4").fault == "system"
    assert max(plant.jobs.starts.values()) == 1, "a job was started twice"
    assert max(plant.drivers.fits.values()) == 1, "a finished trial was fitted again"
    assert all(plant.ledger.verify_events(one) is None for one in ENDINGS)


def test_a_controller_may_be_killed_between_any_two_writes(make: Callable[..., Plant]) -> None:
    """One is killed after each write in turn; the next one goes on."""

    def die() -> None:
        raise Killed

    for at in range(1, 1000):
        plant = four_requests(make)
        try:
            assert not interrupted(plant, at, die)
            break
        except Killed:
            all_came_to_its_end(plant)
    assert at > 15


def test_a_controller_that_was_held_up_changes_nothing_once_another_leads(make: Callable[..., Plant]) -> None:
    """It is held up after each write in turn, while another one goes on, and then believes that it still leads."""
    refused = 0
    for at in range(1, 1000):
        plant = four_requests(make)
        other = plant.controller()

        def others_turn(plant: Plant = plant, other: Controller = other) -> None:
            plant.advance(LEASE_S + 1)
            Context().run(plant.passes, other, 5, step_s=3)

        try:
            if not interrupted(plant, at, others_turn):
                break
        except Conflict as conflict:
            refused += "is over" in conflict.message
        all_came_to_its_end(plant)
    assert refused > 10


class Killed(BaseException):
    """The process of a controller is no more."""


# --- the cluster is kept tidy ------------------------------------------------------------------------------


def test_a_job_that_comes_up_after_its_attempt_has_ended_is_stopped(make: Callable[..., Plant]) -> None:
    plant = make(LONG)
    controller = plant.controller()
    plant.order()
    controller.reconcile()
    spec = plant.jobs.specs["r-1-1"]
    plant.jobs.restart()
    plant.until(controller, lambda: plant.outcomes() == ["lost"])
    plant.jobs.submit(spec)  # by a controller that was held up until now
    plant.passes(controller, 5)
    assert plant.jobs.calls["stop"] > 0
    assert "r-1-1" not in plant.jobs.alive
    plant.to_the_end(controller, step_s=5)
    assert plant.outcomes() == ["lost", "done"]


def test_the_cluster_forgets_our_jobs_an_hour_after_their_end(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    plant.jobs.submit(
        JobSpec(
            "somebodys",
            ("program",),
        )
    )
    plant.jobs.kill("somebodys")
    plant.to_the_end(controller)
    plant.passes(controller, 2, step_s=KEPT_S / 2)
    assert "r-1-1" in plant.jobs.list()
    plant.passes(controller, 2, step_s=10)
    assert set(plant.jobs.list()) == {"somebodys"}


def test_the_quota_of_an_archived_team_still_holds(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=9, gpus=0, memory_gb=40))
    plant.ledger.create_team("growth", quota=Quota(requests=1), by=ANN)
    plant.order("r-1")
    plant.order("r-2")
    plant.ledger.archive_team("growth", by=ANN)
    assert len(plant.controller().reconcile().admitted) == 1


# --- the process --------------------------------------------------------------------------------------------


class Moments(threading.Event):
    """Counts pauses instead of making them, and ends after some."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.pauses = n, []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        if len(self.pauses) == self.n:
            self.set()
        return self.is_set()


def test_after_a_fault_it_looks_again_later_and_later(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.jobs.reachable = False
    moments = Moments(8)
    plant.controller().run(moments)
    assert moments.pauses == [2, 4, 8, 16, MOST_PAUSE_S, MOST_PAUSE_S, MOST_PAUSE_S, MOST_PAUSE_S]
    assert plant.ledger.leader(LEAD) is None


def test_it_goes_on_at_once_where_there_is_more_to_do(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=100, gpus=0, memory_gb=400))
    for n in range(AT_ONCE + 3):
        plant.order(f"r-{n}")
    moments = Moments(3)
    plant.controller().run(moments)
    assert moments.pauses == [0, 1, 1]


def test_a_ledger_that_is_gone_at_the_end_does_not_keep_it_from_ending(make: Callable[..., Plant]) -> None:
    plant = make()

    def gone(name: str, done: bool) -> None:
        if name == "resign":
            raise StorageFault("The ledger is gone.")

    plant.controller(gone).run(Moments(1))


@pytest.mark.slow
def test_the_process_leads_without_a_cluster_and_ends_when_it_is_told_to(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path / "ledger.db")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FACTORY_", "RAY_"))}
    environment |= {"FACTORY_HOME": str(tmp_path), "FACTORY_DASHBOARD_PORT": "9"}
    command = [sys.executable, "-W", "error", "-m", "factory.operate.controller"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
            until = time.monotonic() + 60
            while ledger.leader(LEAD) is None:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0, process.communicate()[1]
            assert ledger.leader(LEAD) is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_same_on_postgresql(tmp_path: Path) -> None:
    postgres = server() or pytest.skip(MISSING)
    with postgres.database() as name, Plant(postgres.url(name), tmp_path, capacity=SMALL) as plant:
        first, second = plant.controller(), plant.controller()
        for n in (1, 2, 3):
            plant.order(f"r-{n}")
        plant.passes(first, 3)
        assert not second.reconcile().led
        plant.advance(LEASE_S + 1)
        assert second.reconcile().led
        with pytest.raises(Conflict), plant.ledger.fenced(LEAD, 1):
            plant.ledger.note("r-3", "note", "This one leads no more.")
        plant.to_the_end(second, "r-1", "r-2", "r-3")
        assert [plant.outcomes(f"r-{n}") for n in (1, 2, 3)] == [["done"]] * 3
        assert max(plant.jobs.starts.values()) == 1
