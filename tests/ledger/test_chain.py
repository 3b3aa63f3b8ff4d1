"""Events and the audit log as chains: whatever is changed, put in, taken out or cut off shows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import delete, insert, text, update

from factory.errors import NotFound
from factory.ledger import Ledger, moments, schema
from factory.ledger.chain import link
from factory.ledger.moments import now
from factory.spec import RequestState, VariantRequest

from .conftest import ANN

events, audit, requests = schema.events, schema.audit, schema.requests


@pytest.fixture
def request_id(ledger: Ledger, order: VariantRequest) -> str:
    """Of a request with six events, beside another one."""
    request_id = ledger.create_request(order, queued="Waiting.").id
    ledger.note(
        request_id, "profile", "Profiled: ü 漢 \u2028.", payload={"share": 0.1, "n": 10**15, "nan": float("nan")}
    )
    ledger.reach(request_id, RequestState.EVALUATING, "Searching.")
    ledger.create_request(order)
    return request_id


def test_untouched_events_are_as_they_were_written(ledger: Ledger, request_id: str) -> None:
    assert ledger.verify_events(request_id) is None
    hashes = [event.hash for event in ledger.events(request_id)]
    assert len(set(hashes)) == len(hashes) == 6
    with pytest.raises(NotFound):
        ledger.verify_events("none")


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        (update(events).where(events.c.sequence == 3).values(message="Nothing."), 3),
        (update(events).where(events.c.sequence == 3).values(payload={"share": 0.2}), 3),
        (update(events).where(events.c.sequence == 3).values(kind="other"), 3),
        (update(events).where(events.c.sequence == 3).values(state="failed"), 3),
        (update(events).where(events.c.sequence == 3).values(time=now() - timedelta(days=1)), 3),
        (update(events).where(events.c.sequence == 3).values(hash=None), 3),
        (update(events).values(hash=None), 1),
        (delete(events).where(events.c.sequence == 1), 1),
        (delete(events).where(events.c.sequence == 4), 4),
        (delete(events).where(events.c.sequence == 6), 6),
        (delete(events), 1),
        (update(events).where(events.c.sequence == 6).values(sequence=7), 6),
        (update(requests).values(state="registered"), 6),
        (update(requests).values(events=5), 5),
        (update(requests).values(unchained=3), 1),
    ],
)
def test_change_of_events_shows(ledger: Ledger, request_id: str, change: object, first_bad: int) -> None:
    with ledger._write() as connection:
        connection.execute(change)  # type: ignore[call-overload]
    assert ledger.verify_events(request_id) == first_bad


def test_event_that_was_put_in_shows_although_its_own_hash_is_right(ledger: Ledger, request_id: str) -> None:
    last = ledger.events(request_id)[-1]
    content = [request_id, 7, last.time, "evaluating", "note", "Forged.", {}]
    row = dict(zip(events.c.keys(), [*content, link(last.hash, content)], strict=True))
    with ledger._write() as connection:
        connection.execute(insert(events).values(row))
    assert ledger.verify_events(request_id) == 6


def test_what_is_no_json_any_more_shows(ledger: Ledger, request_id: str, url: str) -> None:
    if not url.startswith("sqlite"):
        pytest.skip("PostgreSQL keeps no JSON that is none")
    with ledger._write() as connection:
        connection.execute(text("UPDATE events SET payload = '{' WHERE sequence = 3"))
    assert ledger.verify_events(request_id) == 3


@pytest.fixture
def six_rows(ledger: Ledger) -> None:
    for number in range(6):
        ledger.record_audit("recipe.publish", f"recipe-{number}", by=ANN, detail={"n": number, "low": float("nan")})


def test_untouched_audit_log_is_as_it_was_written(ledger: Ledger, six_rows: None) -> None:
    assert ledger.verify_audit() is None
    assert [row.id for row in ledger.audit_page(sort="id").items] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        (update(audit).where(audit.c.id == 3).values(who="eve"), 3),
        (update(audit).where(audit.c.id == 3).values(origin="local"), 3),
        (update(audit).where(audit.c.id == 3).values(detail={}), 3),
        (update(audit).where(audit.c.id == 3).values(team="growth"), 3),
        (delete(audit).where(audit.c.id == 1), 1),
        (delete(audit).where(audit.c.id == 4), 4),
        (delete(audit).where(audit.c.id == 6), 6),
        (delete(audit), 1),
        (update(audit).where(audit.c.id == 6).values(id=7), 6),
        (delete(schema.chains), 7),
    ],
)
def test_change_of_the_audit_log_shows(ledger: Ledger, six_rows: None, change: object, first_bad: int) -> None:
    with ledger._write() as connection:
        connection.execute(change)  # type: ignore[call-overload]
    assert ledger.verify_audit() == first_bad


def test_rows_cut_off_show_also_after_others_were_added(ledger: Ledger, six_rows: None) -> None:
    with ledger._write() as connection:
        connection.execute(delete(audit).where(audit.c.id == 6))
    ledger.record_audit("recipe.publish", "recipe-7", by=ANN)
    assert ledger.verify_audit() == 6


def test_writers_at_once_make_one_chain(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.record_audit("a", str(n), by=ANN), range(40)))
    assert ledger.verify_audit() is None
    assert len(ledger.audit_page(limit=200).items) == 40


def test_order_of_events_is_that_of_writing_whatever_the_clock_says(
    ledger: Ledger, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = now() - timedelta(hours=2)
    monkeypatch.setattr(moments, "clock", lambda: earlier)
    event = ledger.note(request_id, "note", "After the clock was set back.")
    assert event.time == earlier
    assert ledger.events(request_id)[-1] == event
    assert ledger.verify_events(request_id) is None


def test_links_depend_on_all_that_came_before() -> None:
    assert link(None, ["a"]) == link("", ["a"]) != link("x", ["a"])
    assert link(None, [{"b": 1, "a": 2}]) == link(None, [{"a": 2, "b": 1}])
    with pytest.raises(TypeError, match="no place in a chain"):
        link(None, [object()])
