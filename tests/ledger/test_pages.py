"""Pages: every row once, also while rows come in; filters; cursors that are what they should be."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from pydantic import ValidationError
from sqlalchemy import update

from factory.errors import InvalidRequest
from factory.ledger import AuditQuery, Ledger, Page, RequestQuery, VariantQuery, schema
from factory.spec import RequestState, VariantRequest

from .conftest import ANN, make_order, make_variant

S = RequestState


def all_pages(page: Callable[..., Page], meanwhile: Callable[[], object] = lambda: None, **arguments: object) -> list:
    """Go through a list by its cursors, and do something after each page."""
    items, cursor = [], None
    while True:
        one = page(**arguments, cursor=cursor)
        items += one.items
        if one.next is None:
            return items
        assert len(one.items) == arguments.get("limit", 50)
        cursor = one.next
        meanwhile()


@pytest.fixture
def ids(ledger: Ledger, order: VariantRequest) -> list[str]:
    """Of 25 requests in the order in which they came in; some at the same moment."""
    ids = [ledger.create_request(order, request_id=f"r-{n:02d}").id for n in range(25)]
    first = ledger.request(ids[0]).created
    at = schema.requests.c
    with ledger._write() as connection:
        for number, request_id in enumerate(ids):
            moment = first + timedelta(seconds=number // 4)
            connection.execute(update(schema.requests).where(at.id == request_id).values(created=moment))
    return ids


@pytest.mark.parametrize("limit", [1, 4, 7, 24, 25, 200])
def test_pages_are_complete_and_in_order(ledger: Ledger, ids: list[str], limit: int) -> None:
    assert [r.id for r in all_pages(ledger.request_page, sort="created", limit=limit)] == ids
    assert [r.id for r in all_pages(ledger.request_page, sort="-created", limit=limit)] == ids[::-1]


@pytest.mark.parametrize("sort", ["created", "-created"])
def test_rows_that_come_in_meanwhile_neither_repeat_nor_hide_one(
    ledger: Ledger, ids: list[str], order: VariantRequest, sort: str
) -> None:
    def meanwhile() -> None:
        new = ledger.create_request(order).id
        with ledger._write() as connection:  # one at the very beginning as well, as after a clock that was set back
            moment = ledger.request(ids[0]).created - timedelta(seconds=1)
            connection.execute(update(schema.requests).where(schema.requests.c.id == new).values(created=moment))
        ledger.create_request(order)

    seen = [r.id for r in all_pages(ledger.request_page, meanwhile, sort=sort, limit=4)]
    assert len(seen) == len(set(seen))
    assert [i for i in seen if i in ids] == (ids if sort == "created" else ids[::-1])


def test_change_feed_by_updated_misses_no_change(ledger: Ledger, ids: list[str]) -> None:
    """Ascending, a request that changes meanwhile moves to the end, where it is seen again."""
    late = iter(ids[:3])
    seen = all_pages(ledger.request_page, lambda: ledger.note(next(late, ids[9]), "n", ""), sort="updated", limit=8)
    assert set(ids) <= {r.id for r in seen}
    assert {ids[0], ids[1]} <= {r.id for r in seen[-4:]}


def test_summary_says_where_a_request_stands(ledger: Ledger, order: VariantRequest) -> None:
    record = ledger.create_request(order, by=ANN, door="cli", expected_s=60, queued="Waiting.")
    [line] = ledger.request_page().items
    assert (line.id, line.team, line.variant, line.recipe) == (record.id, "growth", "growth.churn", "tabular-auto")
    assert (line.state, line.created, line.updated) == (S.QUEUED, record.created, record.updated)
    assert (line.door, line.submitted_by, line.expected_s, line.priority) == ("cli", ANN.who, 60, "normal")


def test_requests_are_filtered(ledger: Ledger) -> None:
    churn = ledger.create_request(make_order(), by=ANN, door="api").id
    basket = ledger.create_request(make_order(name="basket", recipe="tabular-fast@0123456789abcdef")).id
    risk = ledger.create_request(make_order(team="risk"), queued="Waiting.").id
    moment = ledger.request(basket).created

    def found(**where: object) -> list[str]:
        return [r.id for r in ledger.request_page(RequestQuery.model_validate(where), sort="created").items]

    assert found() == [churn, basket, risk]
    assert found(team="growth") == [churn, basket]
    assert found(team="nobody") == []
    assert found(states=["queued"]) == [risk]
    assert found(states=["queued", "received"], team="growth") == [churn, basket]
    assert found(variant="growth.basket") == found(recipe="tabular-fast") == [basket]
    assert found(door="api") == found(submitted_by=ANN.who) == [churn]
    assert found(created_from=moment) == [basket, risk]
    assert found(created_before=moment) == [churn]
    with pytest.raises(ValidationError, match="timezone"):
        RequestQuery(created_from=datetime(2026, 1, 1))


def test_what_is_shared_stands_among_a_teams_own(ledger: Ledger) -> None:
    for team in ("growth", "risk", "shop"):
        ledger.create_team(team, by=ANN)
    made = [ledger.create_request(make_order(team=team)).id for team in ("growth", "risk", "shop", "growth", "risk")]
    ledger.share("request", made[1], team="risk", with_team="growth", by=ANN)
    ledger.share("request", made[2], team="shop", with_team="*", by=ANN)
    ledger.share("request", made[3], team="growth", with_team="risk", by=ANN)
    for sort, expected in (("created", made[:4]), ("-created", made[3::-1])):
        for limit in (1, 2, 50):
            where = RequestQuery(team="growth", shared=True)
            assert [r.id for r in all_pages(ledger.request_page, where=where, sort=sort, limit=limit)] == expected
    assert [r.id for r in ledger.request_page(RequestQuery(team="growth")).items] == [made[3], made[0]]


def test_variants_are_paged_filtered_and_shared(ledger: Ledger, order: VariantRequest) -> None:
    for team in ("growth", "risk"):
        ledger.create_team(team, by=ANN)
    mine = ledger.create_request(order).id
    theirs = ledger.create_request(make_order(team="risk")).id
    for version in (1, 2, 3):
        ledger.record_variant(make_variant(mine, version))
    ledger.record_variant(make_variant(mine, name="growth.churn-eu"))
    ledger.record_variant(make_variant(theirs, name="risk.score"))
    names = [(v.name, v.version) for v in all_pages(ledger.variant_page, sort="name", limit=2)]
    assert sorted(names) == sorted(set(names))
    assert len(names) == 5
    assert [v.version for v in all_pages(ledger.variant_page, sort="-created", limit=2)][:2] == [1, 1]
    by_name = VariantQuery(name="growth.churn", state="registered")
    assert [v.version for v in all_pages(ledger.variant_page, where=by_name, sort="-name", limit=1)] == [3, 2, 1]
    of_team = VariantQuery(team="growth", shared=True)
    assert len(ledger.variant_page(of_team).items) == 4
    ledger.share("variant", "risk.score", team="risk", with_team="*", by=ANN)
    assert {v.name for v in all_pages(ledger.variant_page, where=of_team, limit=1)} == {
        "growth.churn", "growth.churn-eu", "risk.score",
    }  # fmt: skip
    assert [v.name for v in ledger.variant_page(VariantQuery(request_id=theirs)).items] == ["risk.score"]


def test_variants_are_found_by_what_they_were_made_from(ledger: Ledger, order: VariantRequest) -> None:
    mine = ledger.create_request(order).id
    first = make_variant(mine, 1)
    ledger.record_variant(first)
    for version, parent in ((2, "growth.churn/1"), (3, "growth.churn/11")):
        ledger.record_variant(first.model_copy(update={"version": version, "parent": parent}))
    other = {"name": "growth.rate", "parent": "growth.churn/1", "feature_service": "country_v1"}
    ledger.record_variant(first.model_copy(update=other))

    def found(**where: str) -> list[tuple[str, int]]:
        return [(v.name, v.version) for v in ledger.variant_page(VariantQuery(**where), sort="name").items]

    assert found(parent="growth.churn/1") == [("growth.churn", 2), ("growth.rate", 1)]
    assert found(feature_service="country_v1") == [("growth.rate", 1)]
    assert found(feature_service="country' OR 1=1 --") == []


def test_audit_is_paged_and_filtered(ledger: Ledger) -> None:
    for number in range(7):
        team = "growth" if number % 2 else None
        ledger.record_audit("recipe.publish", f"recipe-{number}", by=ANN, team=team, detail={"n": number})
    assert [row.id for row in all_pages(ledger.audit_page, limit=3)] == [7, 6, 5, 4, 3, 2, 1]
    where = AuditQuery(team="growth", who=ANN.who, action="recipe.publish")
    assert [row.id for row in all_pages(ledger.audit_page, where=where, sort="id", limit=1)] == [2, 4, 6]
    assert [row.detail for row in ledger.audit_page(AuditQuery(subject="recipe-3")).items] == [{"n": 3}]


@pytest.mark.parametrize("limit", [0, -1, 201, 10**9])
def test_limit_is_bounded(ledger: Ledger, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        ledger.request_page(limit=limit)


def test_order_that_does_not_exist_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InvalidRequest, match=r"-created, -updated, created, updated"):
        ledger.request_page(sort="document; DROP TABLE requests")


def forged(cursor: str, change: Callable[[list], object]) -> str:
    content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return base64.urlsafe_b64encode(json.dumps(change(content)).encode()).decode()


def test_cursor_that_no_list_gave_is_refused(ledger: Ledger, ids: list[str]) -> None:
    good = ledger.request_page(limit=2).next
    assert good is not None
    odd = [
        "",
        "x",
        "ü",
        "A" * 2000,
        good[:-4],
        forged(good, lambda c: c[:2]),
        forged(good, lambda c: [*c, 1]),
        forged(good, lambda c: [c[0], "soon", c[2]]),
        forged(good, lambda c: [c[0], "2026-01-01", c[2]]),
        forged(good, lambda c: [c[0], None, None]),
        forged(good, lambda c: {"a": c}),
        forged(good, lambda c: "[" * 500),
    ]
    for cursor in odd:
        with pytest.raises(InvalidRequest, match="cursor"):
            ledger.request_page(cursor=cursor)


def test_cursor_of_another_list_is_refused(ledger: Ledger, ids: list[str]) -> None:
    cursor = ledger.request_page(RequestQuery(team="growth"), limit=2).next
    for act in (
        lambda: ledger.request_page(RequestQuery(team="risk"), cursor=cursor),
        lambda: ledger.request_page(RequestQuery(team="growth"), sort="created", cursor=cursor),
        lambda: ledger.audit_page(cursor=cursor),
    ):
        with pytest.raises(InvalidRequest, match=r"another order|none that this list"):
            act()
