"""Promotions that wait for a second person: listed, approved and rejected."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from factory.ledger import Proposal, ProposalQuery, ProposalState
from factory.operate.promotion import decide
from factory.spec import Document
from serve.portal.bodies import Body, Incoming
from serve.portal.context import Here, Portal
from serve.portal.identity import Caller, Deployer, Reader
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import page, reply
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/proposals", tags=["variants"], responses=refusals(*ALWAYS))

Id = Annotated[str, Path(max_length=64, description="Id of a proposal.")]


class Decision(Document):
    """What a second person says to a proposal."""

    why: str = Field(min_length=1, max_length=1000, description="The reason; it is kept with the proposal.")


class Proposals(Document):
    """A page of proposals."""

    items: tuple[Proposal, ...]
    next: str | None = Field(None, description="Cursor of the page that follows; null at the end.")


class ProposalFilters(Document):
    """Which proposals, and in which order."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")
    name: str | None = Field(None, max_length=200, description="Of one variant, as team.name.")
    state: ProposalState | None = Field(None, description="`open` waits for a decision.")
    sort: Literal["created", "-created"] = Field("-created", description="- is the newest first")
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200)


@router.get("", response_model=Proposals, responses=refusals(404))
def list_proposals(
    portal: Here, caller: Reader, request: Request, filters: Annotated[ProposalFilters, Query()]
) -> Response:
    """List what waits for a second person, and what became of it."""
    where = ProposalQuery(
        **filters.model_dump(exclude={"team", "sort", "cursor", "limit"}), team=caller.own_team(filters.team)
    )
    found = portal.ledger.proposal_page(where, sort=filters.sort, cursor=filters.cursor, limit=filters.limit)
    return page(Proposals(items=found.items, next=found.next), request, found.next)


@router.get("/{proposal_id}", response_model=Proposal, responses=refusals(404))
def show_proposal(portal: Here, caller: Reader, proposal_id: Id) -> Response:
    """Show a proposal: who asks for what, why, and what was said to it."""
    return reply(portal.ledger.proposal(proposal_id, seen_by=caller.team))


@router.post(
    "/{proposal_id}/approve",
    response_model=Proposal,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(Decision, {"why": "The card is plausible."}),
)
def approve_proposal(portal: Here, caller: Deployer, proposal_id: Id, body: Incoming) -> Response:
    """Approve a proposal, which serves the version; whoever had a hand in proposing it cannot."""
    return _decided(portal, caller, proposal_id, body, approve=True)


@router.post(
    "/{proposal_id}/reject",
    response_model=Proposal,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(Decision, {"why": "It is worse for new customers."}),
)
def reject_proposal(portal: Here, caller: Deployer, proposal_id: Id, body: Incoming) -> Response:
    """Reject a proposal, or take one's own back."""
    return _decided(portal, caller, proposal_id, body, approve=False)


def _decided(portal: Portal, caller: Caller, proposal_id: str, body: Body, *, approve: bool) -> Response:
    wish = body.read(Decision, what="decision")
    proposal = portal.ledger.proposal(proposal_id, seen_by=caller.team)
    decided = decide(
        proposal.id, approve=approve, ledger=portal.ledger, settings=portal.settings, by=caller.actor, why=wish.why
    )
    return reply(decided)
