"""The first page: what is served, what is running, and what waits for whoever looks."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from factory.ledger import RequestSummary
from factory.ledger.records import UNDER_WAY
from factory.operate.answers import ListedVariant
from serve.portal.documents import Deployments, Requests, Variants
from serve.portal.pages.kit import SignedIn
from serve.portal.routes import API
from serve.portal.routes.proposals import Proposals

router = APIRouter(include_in_schema=False)

SHOWN = 6
"""Lines of each list; a link leads to all of them."""
FAILING = 0.01
"""Part of a variant's calls that fail, from which on somebody should look."""


@router.get("/")
async def show_home(visitor: SignedIn) -> Response:
    """Show the first page."""
    running, failed, variants, deployments, proposals = await asyncio.gather(
        visitor.api.get(f"{API}/requests", Requests, {"state": [str(s) for s in UNDER_WAY], "limit": SHOWN + 1}),
        visitor.api.get(
            f"{API}/requests", Requests, {"state": ["failed", "rejected"], "shared": False, "limit": SHOWN}
        ),
        visitor.api.get(f"{API}/variants", Variants, {"limit": 100}),
        visitor.api.get(f"{API}/deployments", Deployments),
        visitor.api.get(f"{API}/proposals", Proposals, {"state": "open", "limit": SHOWN}),
    )
    return visitor.page(
        "home.html",
        running=running.items[:SHOWN],
        more_running=len(running.items) > SHOWN,
        failed=_latest(failed.items, variants.items),
        champions=[one for one in variants.items if "champion" in one.aliases][:SHOWN],
        challengers=[one for one in variants.items if "challenger" in one.aliases][:SHOWN],
        deployments={one.name: one.served for one in deployments.items},
        lately={one.name: one.lately for one in deployments.items},
        failing=[one for one in deployments.items if one.lately and one.lately.failed >= FAILING][:SHOWN],
        predictor=deployments.predictor,
        proposals=proposals.items,
    )


def _latest(failed: tuple[RequestSummary, ...], variants: tuple[ListedVariant, ...]) -> list[RequestSummary]:
    """Return the failed requests that nothing newer has made good: one for each variant."""
    made = {one.name: one.created for one in reversed(variants) if one.created}
    found: dict[str, RequestSummary] = {}
    for one in failed:
        since = made.get(one.variant)
        if one.variant not in found and (since is None or since < one.updated):
            found[one.variant] = one
    return list(found.values())
