"""A team: its people, tokens, quota and usage, and what was changed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.spec import SCOPES, Team
from serve.portal.documents import AuditLog, Members, Teams, Tokens
from serve.portal.pages.forms import one, read_form
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.routes import API
from serve.portal.team_documents import NewSecret, UsageList, VariantCosts

router = APIRouter(include_in_schema=False)

DAYS = (7, 30, 90, 365)
"""For which a token may be made on the page."""
MOST_COSTS = 25
"""Variants whose cost is shown, the costliest."""


@router.get("/team")
async def show_team(visitor: SignedIn, name: str = "") -> Response:
    """Show the team that the visitor acts for; an operator chooses one."""
    chosen = visitor.team or name
    if not chosen:
        teams = await visitor.api.get(f"{API}/teams", Teams, {"archived": True})
        usage = await visitor.api.get(f"{API}/usage", UsageList)
        return visitor.page("teams.html", teams=teams.items, usage={one.team: one for one in usage.items})
    return await _page(visitor, chosen)


@router.post("/team/{name}/tokens")
async def make_token(visitor: SignedIn, request: Request, name: str) -> Response:
    """Make a token, and show its secret once."""
    form = await read_form(request)
    days = int(one(form, "days")) if one(form, "days").isdigit() else DAYS[1]
    document = {
        "name": one(form, "name"),
        "team": name,
        "scopes": form.get("scopes", []),
        "variants": one(form, "variants") or None,
        "expires": (datetime.now(UTC) + timedelta(days=min(days, DAYS[-1]))).isoformat(),
    }
    answer = await visitor.api.send("POST", f"{API}/tokens", document, csrf=one(form, "csrf"))
    return await _page(visitor, name, fresh=answer.read(NewSecret))


@router.post("/team/{name}/tokens/{token_id}/revoke")
async def revoke_token(visitor: SignedIn, request: Request, name: str, token_id: str) -> Response:
    """Refuse a token from now on."""
    form = await read_form(request)
    await visitor.api.send("DELETE", f"{API}/tokens/{token_id}", csrf=one(form, "csrf"))
    return visitor.go(f"/team?name={name}", visitor.words("The token is refused from now on."))


@router.post("/team/{name}/members")
async def put_member(visitor: SignedIn, request: Request, name: str) -> Response:
    """Add a person, or give one other rights; without rights the person leaves the team."""
    form = await read_form(request)
    place = f"{API}/teams/{name}/members/{quote(one(form, 'subject'), safe='')}"
    if one(form, "leaves") == "true":
        await visitor.api.send("DELETE", place, csrf=one(form, "csrf"))
        return visitor.go(f"/team?name={name}", visitor.words("The person has left the team."))
    document = {"email": one(form, "email"), "scopes": form.get("scopes", [])}
    await visitor.api.send("PUT", place, document, csrf=one(form, "csrf"))
    return visitor.go(f"/team?name={name}", visitor.words("The person is in the team."))


async def _page(visitor: Visitor, name: str, *, fresh: NewSecret | None = None) -> Response:
    team, usage, costs = await asyncio.gather(
        visitor.api.get(f"{API}/teams/{name}", Team),
        visitor.api.get(f"{API}/usage", UsageList, {"team": name}),
        visitor.api.get(f"{API}/usage/variants", VariantCosts, {"team": name, "limit": MOST_COSTS}),
    )
    may = visitor.may("admin")
    members, tokens, audit = Members(items=()), Tokens(items=()), AuditLog(items=())
    if may:
        members, tokens, audit = await asyncio.gather(
            visitor.api.get(f"{API}/teams/{name}/members", Members),
            visitor.api.get(f"{API}/tokens", Tokens, {"team": name}),
            visitor.api.get(f"{API}/audit", AuditLog, {"team": name, "limit": 30}),
        )
    return visitor.page(
        "team.html",
        team=team,
        used=next(iter(usage.items), None),
        costs=costs.items,
        most_costs=MOST_COSTS,
        members=members.items,
        tokens=tokens.items,
        audit=audit.items,
        scopes=SCOPES,
        days=DAYS,
        fresh=fresh,
        may=may,
    )
