"""Tokens: made, listed, rotated and revoked; and who is calling."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from factory.errors import Detail, NotFound
from factory.ledger.moments import now
from factory.spec import Document, TokenRecord
from serve.errors import Forbidden
from serve.portal.bodies import Incoming, about
from serve.portal.context import Here, Portal
from serve.portal.documents import Tokens
from serve.portal.identity import Admin, Anyone, Caller
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import reply
from serve.portal.routes import API
from serve.portal.team_documents import Me, NewSecret, NewToken, Rotation

router = APIRouter(prefix=API, tags=["identity"], responses=refusals(*ALWAYS))

Id = Annotated[str, Path(max_length=64, description="Id of a token, which is no secret.")]


class TokenFilters(Document):
    """Which tokens."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")
    revoked: bool = Field(False, description="Also those that were revoked.")


@router.get("/me", response_model=Me)
def show_me(portal: Here, caller: Anyone) -> Response:
    """Tell who is calling, and what that may do."""
    token_id = caller.principal.token_id
    if caller.signed_in is not None:
        expires: datetime | None = caller.signed_in.session.expires
    else:
        expires = None if token_id is None else portal.ledger.token(token_id).expires
    return reply(Me.of(caller.principal, expires=expires))


@router.get("/tokens", response_model=Tokens, responses=refusals(404))
def list_tokens(portal: Here, caller: Admin, filters: Annotated[TokenFilters, Query()]) -> Response:
    """List tokens, never with their secrets: of a team, or for operators of all of them."""
    found = portal.ledger.tokens(team=caller.own_team(filters.team), revoked=filters.revoked)
    return reply(Tokens(items=tuple(found)))


@router.post(
    "/tokens",
    status_code=201,
    response_model=NewSecret,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(NewToken, {"name": "ci", "scopes": ["read", "submit"], "expires": "2030-01-01T00:00:00Z"}),
)
def create_token(portal: Here, caller: Admin, body: Incoming) -> Response:
    """Make a token; its secret is in this answer and nowhere else."""
    wish = body.read(NewToken, what="token")
    team = caller.own_team(wish.team)
    if wish.all_teams and (team is not None or not caller.is_operator):
        raise Forbidden(
            "Only an operator makes a token for all teams, and names no team then.",
            hint="Leave all_teams out.",
            details=[Detail("/all_teams", "operators")],
        )
    if team is None and not wish.all_teams:
        raise NotFound(
            "No team is named.",
            hint="Name one, or set all_teams for another operator's token.",
            details=[Detail("/team", "This is required.")],
        )
    with about(wish):
        issued = portal.ledger.issue_token(
            wish.name,
            team=team,
            scopes=wish.scopes,
            expires=wish.expires,
            variants=wish.variants,
            by=caller.actor,
        )
    location = {"location": f"{API}/tokens/{issued.record.id}"}
    return reply(NewSecret(secret=issued.secret, token=issued.record), 201, location)


@router.get("/tokens/{token_id}", response_model=TokenRecord, responses=refusals(404))
def show_token(portal: Here, caller: Anyone, token_id: Id) -> Response:
    """Show a token without its secret: any one of its team to an admin, to others their own."""
    return reply(_token(portal, caller, token_id))


@router.post(
    "/tokens/{token_id}/rotate",
    response_model=NewSecret,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(Rotation, {"expires": "2030-01-01T00:00:00Z"}, optional=True),
)
def rotate_token(portal: Here, caller: Anyone, token_id: Id, body: Incoming) -> Response:
    """Replace a token by one that may do the same; the old one is refused at once. A token may rotate itself."""
    wish = body.read(Rotation, what="rotation", optional=True)
    token = _token(portal, caller, token_id)
    if not caller.principal.may("admin"):
        _require_no_longer(token, wish.expires)
    with about(wish):
        issued = portal.ledger.rotate_token(token.id, expires=wish.expires, by=caller.actor)
    return reply(NewSecret(secret=issued.secret, token=issued.record))


@router.delete("/tokens/{token_id}", response_model=TokenRecord, responses=refusals(404, 409))
def revoke_token(portal: Here, caller: Anyone, token_id: Id) -> Response:
    """Refuse a token from now on. A token may revoke itself."""
    token = _token(portal, caller, token_id)
    return reply(portal.ledger.revoke_token(token.id, by=caller.actor))


def _require_no_longer(token: TokenRecord, expires: datetime | None) -> None:
    """Refuse that a token makes itself last longer than it was made for: whoever stole it could keep it for ever.

    Raises:
        Forbidden: it would.
    """
    if expires is None or token.expires is None or expires <= now() + (token.expires - token.created):
        return
    raise Forbidden(
        "A token does not make itself last longer than it was made for.",
        hint="Leave expires out, or let a team's admin rotate it.",
        details=[Detail("/expires", f"at most {token.expires - token.created} from now")],
    )


def _token(portal: Portal, caller: Caller, token_id: str) -> TokenRecord:
    """Return a token that a caller may see and change: its own, or as an admin any one of its team.

    Raises:
        NotFound: it does not exist for the caller.
    """
    token = portal.ledger.token(token_id)
    mine = token.id == caller.principal.token_id
    if mine or (caller.principal.may("admin") and caller.team in (None, token.team)):
        return token
    raise NotFound(
        f"There is no token {token_id[:64]!r}.",
        hint="GET /api/v1/tokens lists those that you may see.",
        details=[Detail("token", f"{token_id[:64]!r} is not known")],
    )
