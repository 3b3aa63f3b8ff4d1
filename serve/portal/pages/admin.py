"""What those who run the factory, or a team, look at: the queue with its priorities, teams and quotas, every change."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.ledger import RequestSummary
from factory.spec import RequestState
from serve.portal.documents import AuditLog, Requests
from serve.portal.pages.forms import Form, number, one, read_form
from serve.portal.pages.inner import Query
from serve.portal.pages.kit import SignedIn
from serve.portal.pages.words import Words
from serve.portal.routes import API
from serve.portal.routes.cluster import Cluster

router = APIRouter(include_in_schema=False)

WAITING = (RequestState.RECEIVED, RequestState.QUEUED)
WORKED_ON = (RequestState.PREPARING, RequestState.SEARCHING, RequestState.EVALUATING)
MOST = 100
"""Requests that are shown of those that wait, the oldest."""
PRIORITIES = ("high", "normal", "low")
QUOTAS = ("cpus", "gpus", "memory_gb", "requests", "trial_seconds_month", "weight")
"""Fields of a team's quota, in the form's order; one left empty is as the quota's own default."""


@router.get("/queue")
async def show_queue(visitor: SignedIn, team: str = "") -> Response:
    """Show what is worked on, and what waits in the order in which it came, by priority."""
    query: Query = {"team": team, "sort": "created", "limit": MOST, "shared": False}
    cluster, running, waiting = await asyncio.gather(
        visitor.api.get(f"{API}/cluster", Cluster),
        visitor.api.get(f"{API}/requests", Requests, {**query, "state": [str(s) for s in WORKED_ON]}),
        visitor.api.get(f"{API}/requests", Requests, {**query, "state": [str(s) for s in WAITING]}),
    )
    return visitor.page(
        "queue.html",
        cluster=cluster,
        running=running.items,
        waiting=by_priority(waiting.items),
        more=waiting.next is not None,
        priorities=PRIORITIES,
        may=visitor.may("admin"),
    )


def by_priority(waiting: tuple[RequestSummary, ...]) -> list[RequestSummary]:
    """Return requests with the highest priority first; the older ones of a priority first."""
    return sorted(waiting, key=lambda one: PRIORITIES.index(one.priority))


@router.post("/queue/{request_id}/priority")
async def change_priority(visitor: SignedIn, request: Request, request_id: str) -> Response:
    """Put a waiting request before, or behind, others."""
    form = await read_form(request)
    document = {"priority": one(form, "priority"), "why": one(form, "why")}
    await visitor.api.send("PUT", f"{API}/requests/{request_id}/priority", document, csrf=one(form, "csrf"))
    return visitor.go("/queue", visitor.words("Its priority is changed."))


@router.get("/audit")
async def show_audit(
    visitor: SignedIn, who: str = "", action: str = "", subject: str = "", team: str = "", cursor: str = ""
) -> Response:
    """Show who changed what, from where and when."""
    filters = {"who": who.strip(), "action": action.strip(), "subject": subject.strip(), "team": team.strip()}
    found = await visitor.api.get(f"{API}/audit", AuditLog, {**filters, "cursor": cursor, "limit": 50})
    return visitor.page("audit.html", items=found.items, next=found.next, filters=filters)


@router.post("/teams")
async def create_team(visitor: SignedIn, request: Request) -> Response:
    """Create a team with its quota."""
    form = await read_form(request)
    document = {"name": one(form, "name"), "title": one(form, "title"), "quota": quota_of(form, visitor.words)}
    await visitor.api.send("POST", f"{API}/teams", document, csrf=one(form, "csrf"))
    page = "/new?team=" if one(form, "then") == "order" else "/team?name="
    return visitor.go(f"{page}{document['name']}", visitor.words("The team is there."))


@router.post("/team/{name}/quota")
async def change_quota(visitor: SignedIn, request: Request, name: str) -> Response:
    """Give a team another quota."""
    form = await read_form(request)
    await visitor.api.send(
        "PATCH", f"{API}/teams/{name}", {"quota": quota_of(form, visitor.words)}, csrf=one(form, "csrf")
    )
    return visitor.go(f"/team?name={name}", visitor.words("The quota is changed."))


def quota_of(form: Form, words: Words) -> dict[str, object]:
    """Return the quota that a form tells; what is no number goes along as it was typed, and is refused."""
    return {field: number(one(form, field), words) for field in QUOTAS if one(form, field)}
