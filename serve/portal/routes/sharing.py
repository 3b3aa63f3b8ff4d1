"""What teams let others see, what they have used, and who changed what."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from factory.errors import Detail, InvalidRequest, NotFound
from factory.ledger import AuditQuery, Share, ShareKind
from factory.spec import NAME, Document
from serve.portal.bodies import Incoming, about
from serve.portal.context import Here, Portal
from serve.portal.documents import AuditLog, Shares
from serve.portal.identity import Admin, Caller, Reader, Submitter
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import page, reply
from serve.portal.routes import API
from serve.portal.team_documents import NewShare, TeamUsage, UsageList, VariantCost, VariantCosts

router = APIRouter(prefix=API, tags=["teams"], responses=refusals(*ALWAYS))


class ShareFilters(Document):
    """Of what."""

    kind: ShareKind
    subject: str = Field(min_length=1, max_length=200, description="Digest of a dataset, name of a variant, or id.")
    team: str | None = Field(None, pattern=NAME, description="Whose it is; the token's own team where empty.")


class ShareNamed(ShareFilters):
    """Of what, with whom."""

    with_team: str = Field(pattern=r"^(\*|[a-z][a-z0-9_-]{0,62})$")


class UsageFilters(Document):
    """Whose, and of which month."""

    month: str | None = Field(
        None, pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$", description="As 2026-11, in UTC; this month if empty."
    )
    team: str | None = Field(None, max_length=63, description="Of one team.")


class VariantUsageFilters(UsageFilters):
    """Whose, of which month, and how many."""

    limit: int = Field(50, ge=1, le=1000, description="The costliest; the others are left out.")


class AuditFilters(Document):
    """Which changes."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")
    who: str | None = Field(None, max_length=255)
    action: str | None = Field(None, max_length=64, description="For example token.revoke.")
    subject: str | None = Field(None, max_length=255)
    sort: Literal["id", "-id"] = Field("-id", description="-id is the newest first.")
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200)


@router.get("/shares", response_model=Shares, responses=refusals(404))
def list_shares(portal: Here, caller: Reader, filters: Annotated[ShareFilters, Query()]) -> Response:
    """List whom a team lets see one of its datasets, variants or requests."""
    team = caller.own_team(filters.team)
    return reply(Shares(items=tuple(portal.ledger.shares(filters.kind, filters.subject, team=team))))


@router.post(
    "/shares",
    status_code=201,
    response_model=Share,
    responses=refusals(404, *BODY),
    openapi_extra=takes(NewShare, {"kind": "variant", "subject": "growth.churn", "with_team": "risk"}),
)
def share(portal: Here, caller: Submitter, body: Incoming) -> Response:
    """Let another team, or every team, see a dataset, a variant or a request; it may read, and no more."""
    wish = body.read(NewShare, what="share")
    team = _owner(caller, wish.team)
    _require_other_team(portal, caller, wish.with_team)
    with about(wish):
        shared = portal.ledger.share(wish.kind, wish.subject, team=team, with_team=wish.with_team, by=caller.actor)
    return reply(shared, 201)


@router.delete("/shares", status_code=204, responses=refusals(404))
def unshare(portal: Here, caller: Submitter, filters: Annotated[ShareNamed, Query()]) -> Response:
    """Let another team see it no more; does nothing where it was not shared."""
    team = _owner(caller, filters.team)
    portal.ledger.unshare(filters.kind, filters.subject, team=team, with_team=filters.with_team, by=caller.actor)
    return Response(status_code=204)


@router.get("/usage", response_model=UsageList, responses=refusals(404))
def list_usage(portal: Here, caller: Reader, filters: Annotated[UsageFilters, Query()]) -> Response:
    """Tell what the teams that the token sees have used in a month, and what that costs."""
    team = caller.own_team(filters.team)
    used = [usage for usage in portal.ledger.usage(filters.month) if team in (None, usage.team)]
    return reply(UsageList(items=tuple(TeamUsage.of(usage, portal.settings) for usage in used)))


@router.get("/usage/variants", response_model=VariantCosts, responses=refusals(404))
def list_variant_costs(portal: Here, caller: Reader, filters: Annotated[VariantUsageFilters, Query()]) -> Response:
    """Tell what the variants of a team have used in a month, and what that costs; the costliest first."""
    team = _owner(caller, filters.team)
    used = portal.ledger.usage_by_variant(team, filters.month)
    costs = sorted((VariantCost.of(one, portal.settings) for one in used), key=lambda one: (-one.cost, one.variant))
    return reply(VariantCosts(items=tuple(costs[: filters.limit])))


@router.get("/audit", response_model=AuditLog, responses=refusals(404))
def list_audit(portal: Here, caller: Admin, request: Request, filters: Annotated[AuditFilters, Query()]) -> Response:
    """List who changed what, from where and when: of a team, or for operators everything."""
    where = AuditQuery(
        **filters.model_dump(exclude={"team", "sort", "cursor", "limit"}), team=caller.own_team(filters.team)
    )
    found = portal.ledger.audit_page(where, sort=filters.sort, cursor=filters.cursor, limit=filters.limit)
    return page(AuditLog(items=found.items, next=found.next), request, found.next)


def _owner(caller: Caller, team: str | None) -> str:
    """Return the one team that a call is about."""
    owner = caller.own_team(team)
    if owner is None:
        raise InvalidRequest(
            "team: an operator's token is of no team.",
            hint="Say of which team.",
            details=[Detail("team", "This is required.")],
        )
    return owner


def _require_other_team(portal: Portal, caller: Caller, name: str) -> None:
    """Refuse a team that does not exist; which ones there are is told to operators only."""
    if name == "*":
        return
    try:
        portal.ledger.team(name)
    except NotFound as error:
        if caller.team is None:
            raise
        raise NotFound(
            f"There is no team {name!r} to share it with.",
            hint="Ask its people for the exact name.",
            details=[Detail("/with_team", "is not known")],
        ) from error
