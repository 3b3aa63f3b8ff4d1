"""Requests: the list, one of them while it is worked on, and what can be done about it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.ledger import Event, RequestRecord
from factory.ledger.records import BROKEN_OFF, UNDER_WAY
from factory.operate.answers import ListedVariant
from factory.spec import NEXT_STATES, RequestState
from serve.portal.documents import Attempts, Events, Requests, Trials, Variants
from serve.portal.pages.charts import learning_curves, look_of, looks, score_over_trials
from serve.portal.pages.forms import asked_yaml, one, read_form
from serve.portal.pages.inner import Query, Refused
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.pages.names import metric_named
from serve.portal.progress import Progress
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)

RAIL = ("received", "queued", "preparing", "searching", "evaluating", "registered", "serving")
LATEST = 100
"""Trials of a page of them, with their parameters."""


@router.get("/requests")
async def show_requests(
    visitor: SignedIn, state: str = "", variant: str = "", cursor: str = "", team: str = "", sort: str = "-created"
) -> Response:
    """Show the list of requests."""
    states = [str(s) for s in UNDER_WAY] if state == "under_way" else [state] if state else []
    query: Query = {
        "state": states,
        "like": variant.strip(),
        "cursor": cursor,
        "team": team,
        "sort": sort,
        "limit": 50,
    }
    found = await visitor.api.get(f"{API}/requests", Requests, query)
    filters = {"state": state, "variant": variant, "team": team, "sort": sort}
    states_of = [str(s) for s in RequestState]
    return visitor.page("requests.html", items=found.items, next=found.next, filters=filters, states=states_of)


@router.get("/requests/{request_id}")
async def show_request(visitor: SignedIn, request_id: str) -> Response:
    """Show a request: where it stands, its trials, its resources and its events, live while it is worked on."""
    return visitor.page("request.html", **await _told(visitor, request_id))


@router.get("/requests/{request_id}/live")
async def show_live(visitor: SignedIn, request_id: str) -> Response:
    """Show the parts of a request's page that change while it is worked on."""
    return visitor.page("request_parts.html", **await _told(visitor, request_id))


@router.get("/requests/{request_id}/trials")
async def show_trials(visitor: SignedIn, request_id: str, cursor: str = "") -> Response:
    """Show the trials of the pooled variant with their parameters, the last one first."""
    place = f"{API}/requests/{request_id}"
    record = await visitor.api.get(place, RequestRecord)
    # The pooled variant's segment is the empty one, so it is a part of the address.
    query = {"segment": "", "sort": "-number", "limit": LATEST, **({"cursor": cursor} if cursor else {})}
    found, (metric, _) = await asyncio.gather(
        visitor.api.get(f"{place}/trials?{urlencode(query)}", Trials), _made(visitor, record)
    )
    layout = "part.html" if visitor.wants_part else "base.html"
    return visitor.page(
        "trials.html",
        layout=layout,
        record=record,
        trials=found.items,
        next=found.next,
        metric=metric or visitor.words("Score"),
    )


@router.get("/requests/{request_id}/log")
async def show_log(visitor: SignedIn, request_id: str, attempt: int | None = None) -> Response:
    """Show what the job of a request has printed, as a part of its page."""
    try:
        query = {"attempt": attempt}
        text = (await visitor.api.text(f"{API}/requests/{request_id}/logs", query))[-400_000:]
        problem = None
    except Refused as refused:
        text, problem = "", refused.error
    return visitor.page("log.html", text=text, problem=problem)


@router.post("/requests/{request_id}/cancel")
async def cancel(visitor: SignedIn, request: Request, request_id: str) -> Response:
    """Ask a request to end."""
    form = await read_form(request)
    document = {"why": one(form, "why")}
    await visitor.api.send("POST", f"{API}/requests/{request_id}/cancel", document, csrf=one(form, "csrf"))
    return visitor.go(f"/requests/{request_id}", visitor.words("The request is asked to end."))


@router.post("/requests/{request_id}/retry")
async def retry(visitor: SignedIn, request: Request, request_id: str) -> Response:
    """Order again what a request asked for."""
    form = await read_form(request)
    headers = {"idempotency-key": one(form, "key")} if one(form, "key") else None
    answer = await visitor.api.send(
        "POST", f"{API}/requests/{request_id}/retry", csrf=one(form, "csrf"), headers=headers
    )
    return visitor.go(f"/requests/{answer.read(RequestRecord).id}", visitor.words("It is ordered again."))


async def _told(visitor: Visitor, request_id: str) -> dict[str, Any]:
    place = f"{API}/requests/{request_id}"
    record = await visitor.api.get(place, RequestRecord)
    before = datetime.now(UTC)
    progress, attempts, events, (metric, made) = await asyncio.gather(
        visitor.api.get(f"{API}/requests/{record.id}/progress", Progress),
        visitor.api.get(f"{API}/requests/{record.id}/attempts", Attempts),
        _events(visitor, record),
        _made(visitor, record),
    )
    return {
        "record": record,
        "progress": progress,
        "look_of": look_of,
        "looks": looks((mark.family for mark in progress.marks), visitor.words),
        "scores": score_over_trials(progress, metric=metric or visitor.words("Score"), words=visitor.words),
        "curves": learning_curves(progress.curved, words=visitor.words),
        "metric": metric,
        "attempts": attempts.items,
        "events": events,
        "made": made,
        "rail": rail(record, events),
        "document": asked_yaml(record.request),
        "open": not (record.ended or record.state is RequestState.REGISTERED),
        "broken": record.state in BROKEN_OFF,
        "since": before.isoformat(),
        "may_change": visitor.may_change("submit", record.request.team),
        "can_cancel": RequestState.CANCELLED in NEXT_STATES[record.state] and record.cancel_requested_at is None,
    }


async def _made(visitor: Visitor, record: RequestRecord) -> tuple[str, tuple[ListedVariant, ...]]:
    """Return the name of the metric, empty where it is not known yet, and the variants that a request has made."""
    made = await visitor.api.get(f"{API}/variants", Variants, {"request_id": record.id, "limit": 200})
    named = made.items[0].metric if made.items else record.request.metric
    return metric_named(named) if named else "", made.items


async def _events(visitor: Visitor, record: RequestRecord) -> list[Event]:
    """Return the events of a request, of a long list the latest."""
    after = max(record.n_events - 190, 0)
    some = await visitor.api.get(f"{API}/requests/{record.id}/events", Events, {"after": after, "limit": 200})
    return list(some.items)


def rail(record: RequestRecord, events: list[Event]) -> list[tuple[str, str]]:
    """Return the states of the line with what each is: ``done``, ``now``, ``broken`` or empty."""
    reached = [str(event.state) for event in events if str(event.state) in RAIL]
    state = str(record.state)
    last = state if state in RAIL else reached[-1] if reached else RAIL[0]
    steps = [(name, "done" if RAIL.index(name) < RAIL.index(last) else "") for name in RAIL]
    if state in RAIL:
        now = "done" if state in ("registered", "serving") else "now"
        return [(name, now if name == last else how) for name, how in steps]
    kept = [(name, "done") for name in RAIL[: RAIL.index(last) + 1]]
    return [*kept, (state, "broken")]
