"""The first page: what is served, what is running, and what waits for whoever looks."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from factory.ledger import RequestSummary
from factory.ledger.records import UNDER_WAY
from serve.portal.documents import Deployments, Readiness, Requests, Variants
from serve.portal.pages.inner import Refused
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.routes import API
from serve.portal.routes.proposals import Proposals

router = APIRouter(include_in_schema=False)

SHOWN = 6
"""Lines of each list; a link leads to all of them."""
LOOKED = 30
"""Failed requests, the newest, in which variants are looked for that nothing newer has made good."""
FAILING = 0.01
"""Part of a variant's calls that fail, from which on somebody should look."""


@router.get("/")
async def show_home(visitor: SignedIn) -> Response:
    """Show the first page."""
    running, failed, champions, challengers, deployments, proposals = await asyncio.gather(
        visitor.api.get(f"{API}/requests", Requests, {"state": [str(s) for s in UNDER_WAY], "limit": SHOWN + 1}),
        visitor.api.get(
            f"{API}/requests", Requests, {"state": ["failed", "rejected"], "shared": False, "limit": LOOKED}
        ),
        visitor.api.get(f"{API}/variants", Variants, {"alias": "champion", "limit": SHOWN + 1}),
        visitor.api.get(f"{API}/variants", Variants, {"alias": "challenger", "limit": SHOWN + 1}),
        visitor.api.get(f"{API}/deployments", Deployments),
        visitor.api.get(f"{API}/proposals", Proposals, {"state": "open", "limit": SHOWN}),
    )
    return visitor.page(
        "home.html",
        running=running.items[:SHOWN],
        more_running=len(running.items) > SHOWN,
        failed=await _unmended(visitor, failed.items),
        champions=champions.items[:SHOWN],
        more_champions=len(champions.items) > SHOWN,
        challengers=challengers.items[:SHOWN],
        more_challengers=len(challengers.items) > SHOWN,
        deployments={one.name: one.served for one in deployments.items},
        lately={one.name: one.lately for one in deployments.items},
        failing=[one for one in deployments.items if one.lately and one.lately.failed >= FAILING][:SHOWN],
        predictor=deployments.predictor,
        proposals=proposals.items,
    )


@router.get("/standing")
async def show_standing(visitor: SignedIn) -> Response:
    """Show, as a part of a page, what keeps the factory from working on requests; nothing where all is well."""
    try:
        found = await visitor.api.get("/readyz", Readiness)
    except Refused:  # the ledger does not answer, which the page itself tells
        return visitor.page("standing.html", missing=())
    return visitor.page("standing.html", missing=tuple(one.name for one in found.checks if not one.ok))


async def _unmended(visitor: Visitor, failed: tuple[RequestSummary, ...]) -> list[RequestSummary]:
    """Return the failed requests that nothing newer has made good: one for each variant, the newest."""
    latest: dict[str, RequestSummary] = {}
    for one in failed:
        latest.setdefault(one.variant, one)
    shown = list(latest.values())[:SHOWN]
    made = await asyncio.gather(
        *(visitor.api.get(f"{API}/variants", Variants, {"name": one.variant, "limit": 1}) for one in shown)
    )
    since = [found.items[0].created if found.items else None for found in made]
    return [one for one, at in zip(shown, since, strict=True) if at is None or at < one.updated]
