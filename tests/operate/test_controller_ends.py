"""How requests end before they are made: cancelled, stopped to make room, or as jobs that came past the controller."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from factory.errors import Conflict
from factory.ledger import Refusal
from factory.operate.attending import GRACE_S
from factory.operate.controller import Controller
from factory.spec import Principal, Quota, RequestState
from factory.testing.controlled import Course

from .conftest import ANN, LONG, Plant, document

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


def test_a_job_reads_its_own_request_while_it_runs_and_nothing_else(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.ledger.create_team("growth", by=ANN)
    plant.order()
    controller = plant.controller()
    controller.reconcile()
    env = plant.jobs.specs["r-1-1"].env
    assert env["FACTORY_URL"] == plant.settings.public
    principal = plant.ledger.authenticate(env["FACTORY_TOKEN"])
    assert isinstance(principal, Principal)
    assert (principal.team, principal.request_id, principal.scopes) == ("growth", "r-1", {"read"})
    plant.to_the_end(controller)
    assert isinstance(plant.ledger.authenticate(env["FACTORY_TOKEN"]), Refusal)
    assert plant.ledger.verify_audit() is None
