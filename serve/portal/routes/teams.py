"""Teams: their quotas and their people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from factory.errors import Detail
from factory.spec import NAME, Document, Member, Team
from serve.errors import Forbidden
from serve.portal.bodies import Incoming, about
from serve.portal.context import Here
from serve.portal.documents import Members, Teams
from serve.portal.identity import Admin, OperatingAdmin, Reader
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import IfMatch, matching, reply, tag
from serve.portal.routes import API
from serve.portal.team_documents import Membership, NewTeam, TeamChange

router = APIRouter(prefix=f"{API}/teams", tags=["teams"], responses=refusals(*ALWAYS))

Name = Annotated[str, Path(pattern=NAME, description="Name of a team.")]
Subject = Annotated[str, Path(min_length=1, max_length=255, description="The sign-in provider's id of a person.")]
_ETAG = {"ETag": {"description": "For If-Match of a change.", "schema": {"type": "string"}, "required": True}}
_TAGGED = {"description": "The team.", "headers": _ETAG}
_QUOTA: dict[str, object] = {"cpus": 8, "gpus": 1, "memory_gb": 64, "requests": 20, "weight": 1}


class TeamFilters(Document):
    """Which teams."""

    archived: bool = Field(False, description="Also those that are archived.")


@router.get("", response_model=Teams)
def list_teams(portal: Here, caller: Reader, filters: Annotated[TeamFilters, Query()]) -> Response:
    """List the teams that the token sees: its own, or all of them."""
    teams = portal.ledger.teams(archived=filters.archived)
    return reply(Teams(items=tuple(team for team in teams if caller.principal.sees(team.name))))


@router.post(
    "",
    status_code=201,
    response_model=Team,
    responses=refusals(409, *BODY),
    openapi_extra=takes(NewTeam, {"name": "growth", "title": "Growth", "quota": _QUOTA}),
)
def create_team(portal: Here, caller: OperatingAdmin, body: Incoming) -> Response:
    """Create a team; operators do."""
    wish = body.read(NewTeam, what="team")
    with about(wish):
        team = portal.ledger.create_team(wish.name, title=wish.title, quota=wish.quota, by=caller.actor)
    return reply(team, 201, {"location": f"{API}/teams/{team.name}", "etag": tag(team.digest)})


@router.get("/{name}", response_model=Team, responses=refusals(404, also={200: _TAGGED}))
def show_team(portal: Here, caller: Reader, name: Name) -> Response:
    """Show a team with its quota."""
    return _shown(portal.ledger.team(caller.require_team(name)))


@router.patch(
    "/{name}",
    response_model=Team,
    responses=refusals(404, 409, 412, *BODY, also={200: _TAGGED}),
    openapi_extra=takes(TeamChange, {"title": "Growth and retention", "quota": _QUOTA}),
)
def change_team(portal: Here, caller: Admin, name: Name, body: Incoming, if_match: IfMatch = None) -> Response:
    """Give a team another title (its admins) or another quota (operators)."""
    change = body.read(TeamChange, what="change")
    team = portal.ledger.team(caller.require_team(name))
    if change.quota is not None and not caller.is_operator:
        raise Forbidden(
            "A team's quota is an operator's to give.", hint="Ask an operator.", details=[Detail("/quota", "operators")]
        )
    with matching(if_match, team.digest, f"Team {name}") as seen, about(change):
        changed = portal.ledger.change_team(
            name, title=change.title, quota=change.quota, if_digest=seen, by=caller.actor
        )
    return _shown(changed)


@router.post("/{name}/archive", response_model=Team, responses=refusals(404, 409))
def archive_team(portal: Here, caller: OperatingAdmin, name: Name) -> Response:
    """Take nothing new from a team: its tokens are refused from now on; what it made stays."""
    return reply(portal.ledger.archive_team(caller.require_team(name), by=caller.actor))


# --- people ------------------------------------------------------------------


@router.get("/{name}/members", response_model=Members, responses=refusals(404))
def list_members(portal: Here, caller: Admin, name: Name) -> Response:
    """List the people of a team."""
    return reply(Members(items=tuple(portal.ledger.members(caller.require_team(name)))))


@router.put(
    "/{name}/members/{subject}",
    response_model=Member,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(Membership, {"email": "ann@example.com", "scopes": ["read", "submit"]}),
)
def put_member(portal: Here, caller: Admin, name: Name, subject: Subject, body: Incoming) -> Response:
    """Add a person to a team, or give one who is in it other scopes."""
    wish = body.read(Membership, what="membership")
    team = caller.require_team(name)
    with about(wish):
        member = portal.ledger.add_member(team, subject, email=wish.email, scopes=wish.scopes, by=caller.actor)
    return reply(member)


@router.delete("/{name}/members/{subject}", status_code=204, responses=refusals(404))
def remove_member(portal: Here, caller: Admin, name: Name, subject: Subject) -> Response:
    """Take a person out of a team."""
    portal.ledger.remove_member(caller.require_team(name), subject, by=caller.actor)
    return Response(status_code=204)


def _shown(team: Team) -> Response:
    return reply(team, headers={"etag": tag(team.digest)})
