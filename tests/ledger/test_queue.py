"""The queue: who waits, who waits no more, why; wishes to cancel and to make room."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import update

from factory.errors import Conflict, NotFound
from factory.ledger import MOST_BACK_OFF_S, Ledger, schema
from factory.ledger.moments import now
from factory.spec import RequestState, VariantRequest

from .conftest import ANN, make_order

S = RequestState


@dataclass(frozen=True)
class Reason:
    rule: str
    sentence: str
    eta_s: float | None


@pytest.fixture
def request_id(ledger: Ledger, order: VariantRequest) -> str:
    return ledger.create_request(order, queued="Waiting.").id


def waiting(ledger: Ledger) -> list[str]:
    return [queued.id for queued in ledger.waiting()]


def test_waiting_requests_are_told_with_what_admission_needs(ledger: Ledger) -> None:
    asks = {"priority": "high", "resources": {"workers": 2, "gpus_per_worker": 1}, "budget": {"memory_gb": 8}}
    first = ledger.create_request(make_order(**asks), expected_s=75, cpus=2, queued="Waiting.")
    second = ledger.create_request(make_order(team="risk"))
    one, other = ledger.waiting()
    assert one == (first.id, "growth", 2, 2, 8, "high", first.created, 75, 0, "queued")
    assert other == (second.id, "risk", 1, 0, None, "normal", second.created, None, 0, "received")


def test_request_waits_while_work_is_left_and_nobody_does_it(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    assert waiting(ledger) == []
    ledger.reach(request_id, S.SEARCHING, "")
    ledger.end_attempt(name, "preempted")
    assert [(q.id, q.n_preempted, q.state) for q in ledger.waiting()] == [(request_id, 1, "searching")]
    with ledger.claim(request_id):
        assert waiting(ledger) == []
    ledger.reach(request_id, S.REGISTERED, "")
    assert waiting(ledger) == []


@pytest.mark.parametrize("state", [S.REJECTED, S.FAILED, S.CANCELLED])
def test_what_has_ended_does_not_wait(ledger: Ledger, request_id: str, state: S) -> None:
    ledger.reach(request_id, state, "")
    assert waiting(ledger) == []


def test_request_of_a_dead_driver_waits_again(ledger: Ledger, request_id: str) -> None:
    lost = ledger.claim(request_id)
    lost._over.set()
    with ledger._write() as connection:
        connection.execute(update(schema.requests).values(driver_started=schema.requests.c.driver_started - 100))
    assert waiting(ledger) == [request_id]


def test_back_off_after_a_fault_holds_a_request_back(ledger: Ledger, request_id: str) -> None:
    ledger.end_attempt(ledger.admit(request_id).submission_id, "system_fault", retry_after_s=60)
    assert waiting(ledger) == []
    with ledger._write() as connection:
        connection.execute(update(schema.requests).values(not_before=now() - timedelta(seconds=1)))
    assert waiting(ledger) == [request_id]
    ledger.admit(request_id)
    assert ledger.request(request_id).not_before is None


def test_back_off_from_before_the_clock_was_set_back_is_void(ledger: Ledger, request_id: str) -> None:
    with ledger._write() as connection:
        later = now() + timedelta(seconds=2 * MOST_BACK_OFF_S)
        connection.execute(update(schema.requests).values(not_before=later))
    assert waiting(ledger) == [request_id]


def test_oldest_waits_first(ledger: Ledger, order: VariantRequest) -> None:
    ids = [ledger.create_request(order, request_id=f"r-{n}").id for n in (2, 1, 3)]
    assert waiting(ledger) == ids
    with ledger._write() as connection:
        connection.execute(update(schema.requests).values(created=now()))
    assert waiting(ledger) == sorted(ids)


def test_reason_is_kept_without_an_event_until_the_request_is_admitted(ledger: Ledger, request_id: str) -> None:
    before = ledger.request(request_id)
    ledger.hold({request_id: Reason("fairness", "others come first", None)})
    ledger.hold({request_id: Reason("quota", "waiting for 2 CPUs", 360.0)})
    record = ledger.request(request_id)
    assert record == ledger.requests()[0]
    assert record.held == ledger.request_page().items[0].held
    assert record.held is not None
    assert (record.held.rule, record.held.sentence, record.held.eta_s) == ("quota", "waiting for 2 CPUs", 360)
    assert (record.updated, record.n_events) == (before.updated, before.n_events)
    ledger.admit(request_id)
    assert ledger.request(request_id).held is None


def test_reason_is_over_when_a_driver_takes_the_request_up(ledger: Ledger, request_id: str) -> None:
    ledger.hold({request_id: Reason("quota", "waiting for 2 CPUs", 360.0)})
    with ledger.claim(request_id) as claim:
        assert claim.record.held is None


def test_reason_of_what_has_ended_is_not_told(ledger: Ledger, request_id: str) -> None:
    ledger.hold({request_id: Reason("quota", "waiting for 2 CPUs", 360.0)})
    ledger.request_cancel(request_id, by=ANN)
    assert ledger.request(request_id).held is None


def test_reason_of_an_unknown_request_is_refused(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="'none'"):
        ledger.hold({"none": Reason("quota", "waiting", None)})


def test_many_reasons_are_kept_at_once(ledger: Ledger, order: VariantRequest) -> None:
    ids = [ledger.create_request(order).id for _ in range(20)]
    ledger.hold({i: Reason("quota", f"waiting for {n} CPUs", None) for n, i in enumerate(ids)})
    held = [ledger.request(i).held for i in ids]
    assert [h and h.sentence for h in held] == [f"waiting for {n} CPUs" for n in range(20)]


def test_states_are_counted_by_team(ledger: Ledger) -> None:
    first = ledger.create_request(make_order())
    ledger.create_request(make_order())
    ledger.create_request(make_order(team="risk"), queued="Waiting.")
    counts = {(c.team, c.state): (c.n, c.oldest) for c in ledger.state_counts()}
    assert counts[("growth", S.RECEIVED)] == (2, first.created)
    assert counts[("risk", S.QUEUED)][0] == 1


# --- wishes ------------------------------------------------------------------


def test_request_that_nobody_works_on_is_cancelled_at_once(ledger: Ledger, request_id: str) -> None:
    record = ledger.request_cancel(request_id, by=ANN, message="The data are wrong.")
    assert (record.state, record.cancelled_by) == (S.CANCELLED, ANN.who)
    assert ledger.events(request_id)[-1].message == "Cancelled by ann@example.com. The data are wrong."
    assert ledger.request_cancel(request_id, by=ANN) == record
    assert ledger.cancels_due() == []


def test_wish_to_cancel_is_kept_while_somebody_works(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    assert ledger.wish(request_id) is None
    record = ledger.request_cancel(request_id, by=ANN)
    assert record.state is S.QUEUED
    assert ledger.wish(request_id) == "cancel" == ledger.open_attempts()[0].wish
    n_events = ledger.request_cancel(request_id, by=ANN).n_events
    assert n_events == record.n_events
    assert ledger.cancels_due() == []
    ledger.end_attempt(name, "cancelled")
    assert ledger.cancels_due() == [request_id]
    assert waiting(ledger) == []
    with pytest.raises(Conflict, match="to be cancelled"):
        ledger.admit(request_id)
    ledger.advance(request_id, S.CANCELLED, "Cancelled.")
    assert ledger.cancels_due() == []


def test_request_that_is_driven_by_hand_is_due_when_its_driver_is_gone(ledger: Ledger, request_id: str) -> None:
    with ledger.claim(request_id):
        assert ledger.request_cancel(request_id, by=ANN).state is S.QUEUED
        assert ledger.cancels_due() == []
    assert ledger.cancels_due() == [request_id]


@pytest.mark.parametrize("state", [S.REGISTERED, S.FAILED])
def test_what_is_made_or_has_ended_cannot_be_cancelled(ledger: Ledger, request_id: str, state: S) -> None:
    ledger.reach(request_id, state, "")
    with pytest.raises(Conflict, match=f"{state.value}.*any more"):
        ledger.request_cancel(request_id, by=ANN)


def test_wish_to_make_room_needs_an_open_attempt(ledger: Ledger, request_id: str) -> None:
    assert not ledger.request_preemption(request_id, for_id="r-2")
    name = ledger.admit(request_id).submission_id
    assert ledger.request_preemption(request_id, for_id="r-2")
    asked = ledger.request(request_id).preempt_requested_at
    assert ledger.request_preemption(request_id, for_id="r-3")
    assert ledger.request(request_id).preempt_requested_at == asked
    assert ledger.wish(request_id) == "preempt" == ledger.open_attempts()[0].wish
    ledger.request_cancel(request_id, by=ANN)
    assert ledger.wish(request_id) == "cancel"
    ledger.end_attempt(name, "cancelled")
    assert ledger.request(request_id).preempt_requested_at is None


def test_wishes_of_unknown_requests_are_not_found(ledger: Ledger) -> None:
    for act in (
        ledger.wish,
        lambda name: ledger.request_cancel(name, by=ANN),
        lambda name: ledger.request_preemption(name, for_id="x"),
    ):
        with pytest.raises(NotFound, match="'none'"):
            act("none")
