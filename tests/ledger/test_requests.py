"""Requests: stored, found again, moved forward only, by several processes at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from factory.errors import Conflict, InvalidData, InvalidRequest, NotFound, TrainingFault
from factory.ledger import Ledger
from factory.ledger.intake import new_request_id
from factory.spec import NEXT_STATES, RequestState, VariantRequest

from .conftest import make_order

S = RequestState
LINE = [S.RECEIVED, S.QUEUED, S.PREPARING, S.SEARCHING, S.EVALUATING, S.REGISTERED, S.SERVING]


def test_stored_request_is_what_was_sent(ledger: Ledger, order: VariantRequest) -> None:
    record = ledger.create_request(order)
    assert record == ledger.request(record.id)
    assert record.request == order
    assert (record.state, record.attempt, record.error, record.ended) == (S.RECEIVED, 0, None, False)
    assert record.created.tzinfo is not None
    assert record.created.utcoffset() == timedelta(0)
    [event] = ledger.events(record.id)
    assert (event.sequence, event.state, event.kind) == (1, S.RECEIVED, "state")


def test_ids_sort_by_time_and_differ(ledger: Ledger, order: VariantRequest) -> None:
    records = []
    for _ in range(5):
        records.append(ledger.create_request(order))
        time.sleep(0.002)
    ids = [record.id for record in records]
    assert ids == sorted(ids)
    assert [r.id for r in ledger.requests()] == ids[::-1]
    moment = records[0].created.astimezone(UTC)
    assert len({new_request_id(moment) for _ in range(200)}) == 200
    assert all(len(i) <= 26 for i in ids)


def test_own_id_is_kept_once(ledger: Ledger, order: VariantRequest) -> None:
    assert ledger.create_request(order, request_id="mine-1").id == "mine-1"
    with pytest.raises(Conflict, match="mine-1"):
        ledger.create_request(order, request_id="mine-1")
    assert len(ledger.events("mine-1")) == 1


@pytest.mark.parametrize("bad", ["", "../up", "UPPER", "a/b", "x" * 64, ".hidden", "with space", "line\n"])
def test_id_that_is_no_folder_name_is_refused(ledger: Ledger, order: VariantRequest, bad: str) -> None:
    with pytest.raises(InvalidRequest, match="id of a request"):
        ledger.create_request(order, request_id=bad)
    assert ledger.requests() == []


def test_lookup_by_beginning(ledger: Ledger, order: VariantRequest) -> None:
    for request_id in ("alpha-1", "alpha-2", "beta-1"):
        ledger.create_request(order, request_id=request_id)
    assert ledger.request("beta").id == "beta-1"
    assert ledger.request("alpha-2").id == "alpha-2"
    with pytest.raises(NotFound, match="alpha-1, alpha-2"):
        ledger.request("alpha")
    for unknown in ("alhpa-1", "%", "_", ""):
        with pytest.raises(NotFound, match="no request"):
            ledger.request(unknown)
    with pytest.raises(NotFound, match="nearest are: alpha-1, alpha-2"):
        ledger.request("alhpa-1")


@pytest.mark.parametrize(
    "act",
    [
        lambda ledger: ledger.advance("none", S.QUEUED, ""),
        lambda ledger: ledger.reach("none", S.QUEUED, ""),
        lambda ledger: ledger.note("none", "k", ""),
        lambda ledger: ledger.fail("none", InvalidData("x")),
        lambda ledger: ledger.events("none"),
        lambda ledger: ledger.trials("none"),
        lambda ledger: ledger.claim("none"),
        lambda ledger: ledger.create_request(make_order(), retry_of="none"),
    ],
)
def test_unknown_request_is_not_found_everywhere(ledger: Ledger, act: Callable[[Ledger], object]) -> None:
    with pytest.raises(NotFound, match="'none'"):
        act(ledger)


def test_listing_by_team_and_state(ledger: Ledger) -> None:
    growth = ledger.create_request(make_order()).id
    risk = ledger.create_request(make_order(team="risk")).id
    ledger.advance(risk, S.QUEUED, "")
    assert [r.id for r in ledger.requests(team="growth")] == [growth]
    assert [r.id for r in ledger.requests(state=S.QUEUED)] == [risk]
    assert ledger.requests(team="growth", state=S.QUEUED) == []
    assert len(ledger.requests(limit=1)) == 1


def test_whole_line_leaves_an_event_each(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    for state in LINE[1:]:
        assert ledger.advance(request_id, state, f"now {state}", payload={"n": 1}).state is state
    events = ledger.events(request_id)
    assert [e.state for e in events] == LINE
    assert [e.sequence for e in events] == list(range(1, 8))
    assert sorted(events, key=lambda e: e.time) == events
    assert ledger.events(request_id, after=5) == events[5:]
    assert ledger.events(request_id, after=7) == []
    assert ledger.request(request_id).ended


def test_illegal_step_names_both_states_and_what_is_allowed(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    ledger.reach(request_id, S.SEARCHING, "")
    for state in (S.QUEUED, S.SEARCHING, S.SERVING):
        with pytest.raises(Conflict, match=f"searching.*{state}.*allowed: cancelled, evaluating, failed, rejected"):
            ledger.advance(request_id, state, "")
    assert len(ledger.events(request_id)) == 4


def test_reach_is_idempotent(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    event = ledger.reach(request_id, S.PREPARING, "Reading.")
    assert event is not None
    assert (event.state, event.message) == (S.PREPARING, "Reading.")
    assert ledger.reach(request_id, S.PREPARING, "Reading.") is None
    assert ledger.reach(request_id, S.QUEUED, "") is None
    assert [e.state for e in ledger.events(request_id)] == LINE[:3]
    ledger.reach(request_id, S.CANCELLED, "Stop.")
    assert ledger.reach(request_id, S.CANCELLED, "Stop.") is None
    for state in (S.PREPARING, S.EVALUATING, S.FAILED):
        with pytest.raises(Conflict, match="cancelled"):
            ledger.reach(request_id, state, "")


def test_registered_request_cannot_be_reached_as_failed(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    ledger.reach(request_id, S.REGISTERED, "")
    with pytest.raises(Conflict, match="allowed: serving"):
        ledger.reach(request_id, S.FAILED, "")
    with pytest.raises(Conflict, match="allowed: serving"):
        ledger.fail(request_id, TrainingFault("late"))


@pytest.mark.parametrize(("kind", "fault"), [(InvalidData, "user"), (TrainingFault, "system")])
def test_failure_keeps_the_error_and_whose_it_is(
    ledger: Ledger, order: VariantRequest, kind: type[InvalidData], fault: str
) -> None:
    request_id = ledger.create_request(order).id
    ledger.fail(request_id, kind("It broke.", hint="Mend it."))
    record = ledger.request(request_id)
    assert (record.state, record.fault, record.ended) == (S.FAILED, fault, True)
    assert record.error is not None
    assert (record.error.code, record.error.message, record.error.hint) == (kind.code, "It broke.", "Mend it.")
    assert ledger.events(request_id)[-1].payload["fault"] == fault
    with pytest.raises(Conflict):
        ledger.fail(request_id, kind("again"))


def test_note_keeps_the_state_and_plain_payload(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    payload = {"nan": float("nan"), "tuple": (1, 2.5), "state": S.QUEUED, "order": order, "text": "ü"}
    ledger.note(request_id, "profile", "Profiled.", payload=payload)
    event = ledger.events(request_id)[-1]
    assert (event.kind, event.state) == ("profile", S.RECEIVED)
    assert event.payload["nan"] == "NaN"
    assert event.payload["tuple"] == [1, 2.5]
    assert event.payload["state"] == "queued"
    assert VariantRequest.model_validate(event.payload["order"]) == order


def test_retry_is_a_new_request_that_names_the_old(ledger: Ledger, order: VariantRequest) -> None:
    old = ledger.create_request(order).id
    with pytest.raises(Conflict, match="received"):
        ledger.create_request(order, retry_of=old)
    ledger.advance(old, S.CANCELLED, "")
    new = ledger.create_request(order, retry_of=old)
    assert (new.retry_of, new.state) == (old, S.RECEIVED)
    assert ledger.events(new.id)[0].payload == {"retry_of": old}
    assert ledger.request(old).state is S.CANCELLED


def test_events_are_read_in_parts(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    for number in range(5):
        ledger.note(request_id, "even" if number % 2 == 0 else "odd", str(number))
    events = ledger.events(request_id)
    assert ledger.events(request_id, limit=2) == events[:2]
    assert ledger.events(request_id, after=2, limit=3) == events[2:5]
    assert ledger.request(request_id).n_events == 6


def test_one_query_tells_of_many_requests_what_is_new(ledger: Ledger, order: VariantRequest) -> None:
    ids = [ledger.create_request(order).id for _ in range(3)]
    ledger.note(ids[1], "fault", "One.")
    last = ledger.note(ids[1], "fault", "Two.")
    ledger.note(ids[1], "note", "Three.")
    assert ledger.event_counts([*ids, ids[0], "none"]) == {ids[0]: 1, ids[1]: 4, ids[2]: 1}
    assert ledger.event_counts(f"r-{n}" for n in range(1200)) == {}
    assert ledger.last_events([*ids, "none"], "fault") == {ids[1]: last}


def test_threads_write_gapless_sequences(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.note(request_id, "n", str(n)), range(60)))
    events = ledger.events(request_id)
    assert [e.sequence for e in events] == list(range(1, 62))
    assert {e.message for e in events[1:]} == {str(n) for n in range(60)}


class States(RuleBasedStateMachine):
    """Whatever is asked for in whatever order, a request moves forward or stays."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.request_id = ledger.create_request(make_order()).id
        self.passed = [S.RECEIVED]

    @rule(state=st.sampled_from(S))
    def advance(self, state: RequestState) -> None:
        if state in NEXT_STATES[self.passed[-1]]:
            self.ledger.advance(self.request_id, state, "")
            self.passed.append(state)
        else:
            with pytest.raises(Conflict):
                self.ledger.advance(self.request_id, state, "")

    @rule(state=st.sampled_from(LINE))
    def reach(self, state: RequestState) -> None:
        present = self.passed[-1]
        if present not in LINE:
            with pytest.raises(Conflict):
                self.ledger.reach(self.request_id, state, "")
            return
        missing = LINE[LINE.index(present) + 1 : LINE.index(state) + 1]
        assert (self.ledger.reach(self.request_id, state, "") is None) == (not missing)
        self.passed += missing

    @rule()
    def note(self) -> None:
        self.ledger.note(self.request_id, "aside", "")

    @invariant()
    def never_backwards(self) -> None:
        assert self.ledger.request(self.request_id).state is self.passed[-1]
        events = self.ledger.events(self.request_id)
        assert [e.state for e in events if e.kind == "state"] == self.passed
        pairs = zip(self.passed, self.passed[1:], strict=False)
        assert all(after in NEXT_STATES[before] for before, after in pairs)


def test_states_never_go_backwards(ledger: Ledger) -> None:
    run_state_machine_as_test(
        lambda: States(ledger),
        settings=settings(
            max_examples=20,
            stateful_step_count=12,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
