"""Several controllers, one that is killed, one that is held up; and a cluster that is kept tidy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

import pytest

from factory.errors import Conflict, ServiceFault
from factory.operate.admission import Capacity
from factory.operate.attending import KEPT_S
from factory.operate.controller import LEASE_S, MOST_REFUSALS, Controller
from factory.operate.jobs import JobSpec
from factory.spec import Quota, RequestState
from factory.testing.controlled import Course

from .conftest import ANN, LONG, Plant

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


@pytest.mark.parametrize("call", ["stop", "delete"])
def test_jobs_that_the_cluster_keeps_hold_nobody_up(call: str, make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    for n in range(1, MOST_REFUSALS + 3):
        plant.order(f"r-{n}")
    plant.to_the_end(controller, *(f"r-{n}" for n in range(1, MOST_REFUSALS + 3)))
    if call == "stop":
        plant.jobs.restart()
        for spec in list(plant.jobs.specs.values()):
            plant.jobs.submit(spec)
    else:
        plant.advance(KEPT_S + 1)
    plant.jobs.fail_next(call, times=10_000)
    plant.order("late")
    for _ in range(200):
        with suppress(ServiceFault):
            controller.reconcile()
        plant.advance(1)
    assert plant.state("late") is RequestState.REGISTERED


def test_the_quota_of_an_archived_team_still_holds(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=9, gpus=0, memory_gb=40))
    plant.ledger.create_team("growth", quota=Quota(requests=1), by=ANN)
    plant.order("r-1")
    plant.order("r-2")
    plant.ledger.archive_team("growth", by=ANN)
    assert len(plant.controller().reconcile().admitted) == 1
