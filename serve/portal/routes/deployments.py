"""Deployments: how variants are served, shown and changed."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from factory.errors import Detail, InvalidRequest
from factory.ledger import Ledger
from factory.ledger.catalog import team_of
from factory.ledger.serving import served_digest
from factory.operate.deployments import running_predictor
from factory.operate.promotion import deploy
from factory.operate.traffic import Traffic, Window, lately, traffic
from factory.spec import DeploymentWish, Document
from serve.portal.bodies import Incoming
from serve.portal.context import Here
from serve.portal.documents import DeploymentChange, DeploymentHistory, Deployments, NameDeployment
from serve.portal.identity import Deployer, Reader
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import IfMatch, matching, reply, tag
from serve.portal.routes import API
from serve.portal.routes.variants import Name, require_own_variant, seen_versions

router = APIRouter(prefix=f"{API}/deployments", tags=["deployments"], responses=refusals(*ALWAYS))

_ETAG = {"ETag": {"description": "For If-Match of a change.", "schema": {"type": "string"}, "required": True}}
_TAGGED = {"description": "How it is served.", "headers": _ETAG}


class DeploymentFilters(Document):
    """Which deployments."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")


class TrafficQuery(Document):
    """How far back."""

    window: Window = Field("hour", description="By minutes over an hour, by hours over a day or a month of 30 days.")


@router.get("", response_model=Deployments, responses=refusals(404))
def list_deployments(portal: Here, caller: Reader, filters: Annotated[DeploymentFilters, Query()]) -> Response:
    """List what is served of a team, by name, and where."""
    team = caller.own_team(filters.team)
    rows = [row for row in portal.ledger.deployments() if team in (None, team_of(row.name))]
    by_name = {name: tuple(those) for name, those in groupby(rows, key=lambda row: row.name)}
    called = lately(portal.ledger, list(by_name))
    items = [NameDeployment(name=name, served=served, lately=called.get(name)) for name, served in by_name.items()]
    running = running_predictor(portal.settings)
    return reply(Deployments(items=tuple(items), predictor=None if running is None else running.url))


@router.get("/{name}", response_model=NameDeployment, responses=refusals(404, also={200: _TAGGED}))
def show_deployment(portal: Here, caller: Reader, name: Name) -> Response:
    """Show how a variant is served; empty where it is not."""
    seen_versions(portal.ledger, caller, name)
    return _shown(portal.ledger, name)


@router.get("/{name}/traffic", response_model=Traffic, responses=refusals(404))
def show_traffic(portal: Here, caller: Reader, name: Name, query: Annotated[TrafficQuery, Query()]) -> Response:
    """Show how often a variant was called over a while, with faults and latencies, and what its canary has done."""
    seen_versions(portal.ledger, caller, name)
    return reply(traffic(portal.ledger, name, query.window))


@router.get("/{name}/history", response_model=DeploymentHistory, responses=refusals(404))
def show_history(portal: Here, caller: Reader, name: Name) -> Response:
    """Show who has changed how a variant is served, when and why: the last 200 changes, the last one first."""
    seen_versions(portal.ledger, caller, name)
    return reply(DeploymentHistory(name=name, changes=tuple(portal.ledger.deployment_history(name))))


@router.put(
    "/{name}",
    response_model=NameDeployment,
    responses=refusals(404, 409, 412, *BODY, also={200: _TAGGED}),
    openapi_extra=takes(DeploymentChange, {"version": 4, "as": "canary", "percent": 10, "why": "A first look."}),
)
def set_deployment(portal: Here, caller: Deployer, name: Name, body: Incoming, if_match: IfMatch = None) -> Response:
    """Serve a version as champion, challenger, canary or shadow, or take it out of traffic; other versions stay."""
    change = body.read(DeploymentChange, what="deployment")
    wish = _wish(change)
    require_own_variant(portal.ledger, caller, name)
    with matching(if_match, served_digest(portal.ledger.deployment(name)), f"The deployment of {name}") as seen:
        deploy(
            portal.ledger.variant(name, change.version),
            wish,
            ledger=portal.ledger,
            settings=portal.settings,
            by=caller.actor,
            why=change.why,
            if_digest=seen,
        )
    return _shown(portal.ledger, name)


def _wish(change: DeploymentChange) -> DeploymentWish:
    if (change.as_ == "canary") == (change.percent is not None):
        return DeploymentWish(as_=change.as_, percent=change.percent)
    message = "It goes with 'as: canary', and a canary needs one."
    raise InvalidRequest(
        f"percent: {message}",
        hint="Give a canary its percent of the requests, and no one else.",
        details=[Detail("/percent", message)],
    )


def _shown(ledger: Ledger, name: str) -> Response:
    served = ledger.deployment(name)
    shown = NameDeployment(name=name, served=tuple(served), lately=lately(ledger, [name]).get(name))
    return reply(shown, headers={"etag": tag(served_digest(served))})
