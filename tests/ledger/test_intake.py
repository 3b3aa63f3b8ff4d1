"""Requests come in once, whole, and with who asked for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from factory.errors import Conflict, InvalidRequest, NotFound
from factory.ledger import AuditQuery, Idempotency, Ledger
from factory.ledger.moments import now
from factory.spec import RequestState, VariantRequest

from .conftest import ANN, make_order

KEY = Idempotency(scope="t-1", key="order-77", digest="a" * 64)


def test_request_keeps_who_asked_by_which_door_and_what_it_would_take(ledger: Ledger, order: VariantRequest) -> None:
    record = ledger.create_request(
        order, by=ANN, door="api", quote={"time_s": 60.0, "low": float("nan")}, expected_s=60, cpus=2, memory_gb=3
    )
    assert (record.submitted_by, record.door, record.expected_s) == ("ann@example.com", "api", 60)
    assert record.quote == {"time_s": 60.0, "low": "NaN"}
    assert (record.cpus, record.gpus, record.memory_gb) == (2, 0, 3)
    assert ledger.request(record.id) == record, "what is returned is what is read again"
    [row] = ledger.audit_page().items
    assert (row.who, row.origin, row.action, row.subject, row.team) == (
        "ann@example.com", "10.0.0.7", "request.submit", record.id, "growth",
    )  # fmt: skip


def test_request_may_be_queued_in_the_same_step(ledger: Ledger, order: VariantRequest) -> None:
    record = ledger.create_request(order, queued="Waiting to be admitted.")
    assert (record.state, record.n_events) == (RequestState.QUEUED, 2)
    received, queued = ledger.events(record.id)
    assert (received.state, queued.state) == (RequestState.RECEIVED, RequestState.QUEUED)
    assert queued.message == "Waiting to be admitted."
    assert record.updated == queued.time
    assert ledger.verify_events(record.id) is None


def test_key_that_comes_again_gives_the_same_request(ledger: Ledger, order: VariantRequest) -> None:
    assert ledger.replayed(KEY) is None
    first = ledger.create_request(order, idempotency=KEY, by=ANN)
    assert ledger.create_request(order, idempotency=KEY, by=ANN) == first
    assert ledger.replayed(KEY) == first.id
    assert len(ledger.requests()) == len(ledger.audit_page().items) == 1


def test_key_of_another_scope_is_another_key(ledger: Ledger, order: VariantRequest) -> None:
    first = ledger.create_request(order, idempotency=KEY)
    other = ledger.create_request(order, idempotency=Idempotency("t-2", KEY.key, KEY.digest))
    assert first.id != other.id


def test_key_with_another_body_is_a_conflict(ledger: Ledger, order: VariantRequest) -> None:
    first = ledger.create_request(order, idempotency=KEY)
    other = Idempotency(KEY.scope, KEY.key, "b" * 64)
    for act in (lambda: ledger.replayed(other), lambda: ledger.create_request(order, idempotency=other)):
        with pytest.raises(Conflict, match=first.id) as caught:
            act()
        assert caught.value.details[0].field == "Idempotency-Key"
    assert len(ledger.requests()) == 1


def test_key_of_a_refused_request_stays_free(ledger: Ledger, order: VariantRequest) -> None:
    with pytest.raises(NotFound):
        ledger.create_request(order, idempotency=KEY, retry_of="nobody")
    assert ledger.replayed(KEY) is None
    assert ledger.create_request(order, idempotency=KEY).id


def test_keys_are_forgotten_when_they_are_old(ledger: Ledger, order: VariantRequest) -> None:
    first = ledger.create_request(order, idempotency=KEY)
    assert ledger.forget_keys(now() - timedelta(days=1)) == 0
    assert ledger.forget_keys(now() + timedelta(seconds=1)) == 1
    assert ledger.create_request(order, idempotency=KEY).id != first.id


@pytest.mark.parametrize("bad", ["", "k" * 129, "line\nbreak"])
def test_key_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        Idempotency("t-1", bad, "a" * 64)


def test_threads_that_send_the_same_make_one_request(ledger: Ledger, order: VariantRequest) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ledger.create_request(order, idempotency=KEY, by=ANN).id, range(16)))
    assert len(set(made)) == len(ledger.requests()) == 1
    assert ledger.verify_audit() is None


def test_team_finds_its_own_requests_and_learns_nothing_of_others(ledger: Ledger) -> None:
    mine = ledger.create_request(make_order(), request_id="churn-mine").id
    theirs = ledger.create_request(make_order(team="risk"), request_id="churn-theirs").id
    assert ledger.request(mine, seen_by="growth").id == ledger.request("churn", seen_by="growth").id == mine
    with pytest.raises(NotFound) as foreign:
        ledger.request(theirs, seen_by="growth")
    with pytest.raises(NotFound) as unknown:
        ledger.request("churn-nobodys", seen_by="growth")
    assert str(foreign.value).replace(theirs, "X") == str(unknown.value).replace("churn-nobodys", "X")
    assert "churn-mine" in str(unknown.value)
    ledger.create_team("growth", by=ANN)
    ledger.share("request", theirs, team="risk", with_team="growth", by=ANN)
    assert ledger.request(theirs, seen_by="growth").id == theirs


def test_retry_and_alias_and_deployment_are_audited_where_somebody_is_named(
    ledger: Ledger, order: VariantRequest
) -> None:
    old = ledger.create_request(order, by=ANN).id
    ledger.request_cancel(old, by=ANN)
    ledger.create_request(order, retry_of=old, by=ANN, door="cli")
    actions = [row.action for row in ledger.audit_page(AuditQuery(who=ANN.who), sort="id").items]
    assert actions == ["request.submit", "request.cancel", "request.submit"]
    assert ledger.audit_page(AuditQuery(subject=old)).items[0].action == "request.cancel"
