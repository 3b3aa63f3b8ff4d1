"""Attempts: one open at most, whoever admits; ended once; what they held is counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import insert, update

from factory.errors import Conflict, InvalidRequest, NotFound
from factory.ledger import Ledger, Refusal, schema
from factory.ledger.moments import now
from factory.spec import RequestState, VariantRequest

from .conftest import ANN, make_order

S = RequestState


@pytest.fixture
def request_id(ledger: Ledger, order: VariantRequest) -> str:
    return ledger.create_request(order, queued="Waiting.").id


def test_admission_opens_an_attempt_that_holds_what_the_request_asks_for(ledger: Ledger) -> None:
    asks = {"resources": {"workers": 2, "gpus_per_worker": 0.5}, "budget": {"time_s": 90, "memory_gb": 8}}
    request_id = ledger.create_request(make_order(**asks), expected_s=75, queued="Waiting.").id
    attempt = ledger.admit(request_id)
    assert (attempt.number, attempt.submission_id, attempt.kind) == (1, f"{request_id}-1", "controller")
    assert (attempt.cpus, attempt.gpus, attempt.memory_gb, attempt.state) == (1, 1, 8, "admitted")
    assert ledger.attempts(request_id) == [attempt] == [ledger.attempt(attempt.submission_id)]
    [running] = ledger.open_attempts()
    assert (running.request_state, running.priority, running.wish) == (S.QUEUED, "normal", None)
    assert (running.time_s, running.expected_s, running.preemptions) == (90, 75, 0)
    event = ledger.events(request_id)[-1]
    assert event.message == "Admitted as attempt 1 with 1 CPU, 1 GPU, 8 GB."
    assert event.payload["submission_id"] == attempt.submission_id


def test_what_is_admitted_may_be_more_than_was_asked_for(ledger: Ledger, request_id: str) -> None:
    attempt = ledger.admit(request_id, kind="adopted", cpus=4, gpus=2, memory_gb=16)
    assert (attempt.kind, attempt.cpus, attempt.gpus, attempt.memory_gb) == ("adopted", 4, 2, 16)


def test_request_with_an_open_attempt_is_not_admitted_again(ledger: Ledger, request_id: str) -> None:
    ledger.admit(request_id)
    with pytest.raises(Conflict, match="open attempt 1"):
        ledger.admit(request_id)
    assert len(ledger.attempts(request_id)) == 1


@pytest.mark.parametrize("state", [S.REGISTERED, S.SERVING, S.FAILED, S.CANCELLED, S.REJECTED])
def test_request_of_which_no_work_is_left_is_not_admitted(ledger: Ledger, request_id: str, state: S) -> None:
    ledger.reach(request_id, state, "")
    with pytest.raises(Conflict, match=state.value):
        ledger.admit(request_id)


def test_request_that_a_driver_works_on_is_not_admitted(ledger: Ledger, request_id: str) -> None:
    with ledger.claim(request_id), pytest.raises(Conflict, match="worked on by process"):
        ledger.admit(request_id)
    assert ledger.admit(request_id).number == 1


def test_a_driver_that_died_at_its_very_end_is_let_go_with_its_attempt(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    lost = ledger.claim(request_id)
    ledger.reach(request_id, S.REGISTERED, "")
    lost._over.set()
    with ledger._write() as connection:
        connection.execute(update(schema.requests).values(driver_started=schema.requests.c.driver_started - 100))
    ledger.end_attempt(name, "done")
    assert ledger.request(request_id).driver is None


def test_an_attempt_that_is_ended_leaves_a_live_driver_alone(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    with ledger.claim(request_id):
        ledger.end_attempt(name, "lost")
        assert ledger.request(request_id).driver is not None


def test_two_open_attempts_are_refused_by_the_database_itself(ledger: Ledger, request_id: str) -> None:
    second = ledger.admit(request_id).model_dump() | {"number": 2, "submission_id": "other"}
    with pytest.raises(Conflict), ledger._write() as connection:
        connection.execute(insert(schema.attempts).values(second))


def test_attempt_moves_forward_only(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    submitted = ledger.mark_submitted(name)
    assert (submitted.state, submitted.running_at) == ("submitted", None)
    assert ledger.mark_submitted(name) == submitted
    running = ledger.mark_running(name)
    assert (running.state, running.submitted_at) == ("running", submitted.submitted_at)
    assert ledger.mark_submitted(name) == running == ledger.attempt(name)
    ended = ledger.end_attempt(name, "done")
    assert ledger.mark_running(name) == ended == ledger.attempt(name)


def test_running_at_once_was_submitted_too(ledger: Ledger, request_id: str) -> None:
    running = ledger.mark_running(ledger.admit(request_id).submission_id)
    assert running.submitted_at == running.running_at


def test_first_end_is_kept(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda n: ledger.end_attempt(name, "lost" if n % 2 else "done", str(n)), range(8)))
    assert len({(end.outcome, end.message, end.ended_at) for end in ends}) == 1
    assert ledger.attempt(name) == ends[0]
    assert [e.kind for e in ledger.events(request_id)].count("attempt") == 2
    assert ledger.request(request_id).state is S.QUEUED


def test_next_attempt_counts_on_and_gives_the_wishes_back(ledger: Ledger, request_id: str) -> None:
    first = ledger.admit(request_id)
    ledger.request_preemption(request_id, for_id="r-other")
    ledger.end_attempt(first.submission_id, "preempted")
    record = ledger.request(request_id)
    assert (record.preemptions, record.preempt_requested_at) == (1, None)
    second = ledger.admit(request_id)
    assert (second.number, second.submission_id) == (2, f"{request_id}-2")
    assert ledger.open_attempts()[0].preemptions == 1


def test_back_off_is_kept_and_bounded(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    with pytest.raises(InvalidRequest, match="601"):
        ledger.end_attempt(name, "system_fault", retry_after_s=601)
    ended = ledger.end_attempt(name, "system_fault", "Ray is gone.", retry_after_s=20)
    assert ended.ended_at is not None
    assert ledger.request(request_id).not_before == ended.ended_at + timedelta(seconds=20)


def test_faults_are_counted_since_the_last_attempt_that_had_none(ledger: Ledger, request_id: str) -> None:
    counts = []
    for outcome in ("system_fault", "lost", "preempted", "system_fault", "done", "system_fault", "cancelled"):
        ledger.end_attempt(ledger.admit(request_id).submission_id, outcome)
        counts.append(ledger.faults_in_a_row(request_id))
    assert counts == [1, 2, 2, 3, 0, 1, 1]


def test_end_of_an_attempt_voids_its_jobs_tokens(ledger: Ledger, request_id: str) -> None:
    ledger.create_team("growth", by=ANN)
    scopes = ["read"]
    of_job = ledger.issue_token("job", team="growth", scopes=scopes, request_id=request_id, by=ANN).secret
    of_team = ledger.issue_token("ci", team="growth", scopes=scopes, by=ANN).secret
    ledger.end_attempt(ledger.admit(request_id).submission_id, "done")
    assert ledger.authenticate(of_job) is Refusal.REVOKED
    assert not isinstance(ledger.authenticate(of_team), Refusal)


def test_last_ends_are_told_by_team_with_and_without_gpus(ledger: Ledger) -> None:
    ends: dict[str, list[datetime | None]] = {}
    for team, gpus in (("growth", 0), ("growth", 1), ("risk", 0)):
        request_id = ledger.create_request(make_order(team=team)).id
        name = ledger.admit(request_id, gpus=gpus).submission_id
        ends.setdefault(team, []).append(ledger.end_attempt(name, "lost").ended_at)
    ledger.admit(ledger.create_request(make_order(team="open")).id)
    told = ledger.last_ends()
    assert set(told) == {"growth", "risk"}
    assert [end and end.timestamp() for end in ends["growth"]] == list(told["growth"])
    assert told["risk"][1] is None


def test_unknown_attempts_and_requests_are_not_found(ledger: Ledger) -> None:
    for act in (ledger.attempt, ledger.mark_running, lambda name: ledger.end_attempt(name, "done")):
        with pytest.raises(NotFound, match="no attempt 'none-1'"):
            act("none-1")
    for act in (ledger.admit, ledger.attempts, ledger.faults_in_a_row):
        with pytest.raises(NotFound, match="no request 'none'"):
            act("none")


# --- what attempts and trials used ------------------------------------------


def test_usage_is_what_attempts_held_times_how_long(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id, cpus=2, gpus=1, memory_gb=4).submission_id
    month = f"{now():%Y-%m}"
    with ledger._write() as connection:
        connection.execute(update(schema.attempts).values(admitted_at=now() - timedelta(seconds=0.5)))
    [running] = ledger.usage(month)
    assert running.cpu_s >= 1
    ledger.end_attempt(name, "done")
    [ended] = ledger.usage()
    assert ended.cpu_s >= running.cpu_s
    assert (ended.gpu_s, ended.gb_s) == pytest.approx((ended.cpu_s / 2, ended.cpu_s * 2))
    assert ledger.usage("2001-01") == []


def test_usage_over_the_end_of_a_month_is_split(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id, cpus=2).submission_id
    this_month = now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    with ledger._write() as connection:
        connection.execute(update(schema.attempts).values(admitted_at=this_month - timedelta(seconds=30)))
    before = f"{this_month - timedelta(days=1):%Y-%m}"
    [running] = ledger.usage(before)
    ledger.end_attempt(name, "done")
    [ended] = ledger.usage(before)
    assert running.cpu_s == ended.cpu_s == 60
    assert len(ledger.usage()) == 1


def test_clock_that_was_set_back_uses_nothing(ledger: Ledger, request_id: str) -> None:
    name = ledger.admit(request_id).submission_id
    with ledger._write() as connection:
        connection.execute(update(schema.attempts).values(admitted_at=now() + timedelta(hours=1)))
    assert ledger.usage() == []
    assert ledger.end_attempt(name, "done").state == "ended"
    assert ledger.usage() == []


@pytest.mark.parametrize("month", ["2026", "2026-13", "11-2026", ""])
def test_month_that_is_none_is_refused(ledger: Ledger, month: str) -> None:
    with pytest.raises(InvalidRequest, match="no month"):
        ledger.usage(month)
