"""Browsers: people sign in at the provider, or with a token, and keep a session in a cookie until they sign out."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import ConfigDict, Field
from starlette.responses import RedirectResponse, Response

from factory.errors import Detail, NotFound
from factory.ledger import PERSON, SignedIn, StartedSession
from factory.ledger.moments import now
from factory.spec import NAME, Actor, Document, Scope
from serve.errors import Forbidden, Unauthorized
from serve.portal.bodies import Incoming
from serve.portal.browser import SignIn, csrf_token, require_our_origin
from serve.portal.context import Here, Portal
from serve.portal.identity import Caller, InSession, OperatingAdmin, address_of, holder_of, require_tries
from serve.portal.oidc import CALLBACK, Person, Provider
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import reply
from serve.portal.routes import API
from serve.portal.team_documents import Me

log = logging.getLogger(__name__)

router = APIRouter(prefix="/auth", tags=["sign-in"], responses=refusals(*ALWAYS))
people = APIRouter(prefix=f"{API}/people", tags=["sign-in"], responses=refusals(*ALWAYS))

_ELSEWHERE = {
    "description": "There.",
    "headers": {"Location": {"description": "Where.", "schema": {"type": "string"}, "required": True}},
}


class LoginFilters(Document):
    """Where a sign-in leads."""

    next: str = Field("/", max_length=500, description="Path of the portal where the browser goes afterwards.")


class Answered(Document):
    """What the provider sends along when it sends somebody back; some send more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: str = Field("", max_length=200, description="Of the sign-in, as it was begun.")
    code: str = Field("", max_length=4000, description="For which the provider tells who has signed in.")
    error: str = Field("", max_length=200, description="Why nobody has.")
    iss: str = Field("", max_length=500, description="Which provider it is (RFC 9207).")


class TokenGiven(Document):
    """A token that opens a session."""

    token: str = Field(min_length=1, max_length=200)


class TeamChoice(Document):
    """The team that a session acts for."""

    team: str = Field(pattern=rf"^\*$|{NAME}", description="One of the session's teams; * is all teams.")


class SignOut(Document):
    """Which sessions end."""

    everywhere: bool = Field(False, description="Also those of the same person, or token, in other browsers.")


class Place(Document):
    """A team that a session may act for, and what it may do there."""

    team: str
    scopes: tuple[Scope, ...]


class SessionView(Document):
    """Who is signed in, and what a page needs to act for it."""

    me: Me
    email: str
    csrf_token: str = Field(description="For the header X-CSRF-Token of each change.")
    expires: datetime
    teams: tuple[Place, ...] = Field(description="That it may act for; * is all teams.")


@router.get("/login", status_code=303, responses=refusals(404, also={303: _ELSEWHERE}), response_class=Response)
def begin_sign_in(portal: Here, filters: Annotated[LoginFilters, Query()]) -> Response:
    """Send a browser to the provider, where its person signs in."""
    provider = _provider(portal)
    sign_in = SignIn.begin(filters.next)
    response = RedirectResponse(provider.begin(sign_in.secrets), status_code=303)
    portal.cookies.keep_sign_in(response, sign_in)
    return response


@router.get(
    CALLBACK.removeprefix("/auth"),
    status_code=303,
    responses=refusals(404, also={303: _ELSEWHERE}),
    response_class=Response,
)
def finish_sign_in(portal: Here, request: Request, answered: Annotated[Answered, Query()]) -> Response:
    """Start the session of whoever has signed in at the provider, which sends the browser here."""
    provider = _provider(portal)
    origin = address_of(request, portal.proxies)
    require_tries(portal, origin)
    try:
        sign_in = portal.cookies.sign_in_of(request)
        sign_in.require_state(answered.state)
        person = _who(provider, answered, sign_in)
        started = _start(portal, person, origin)
    except (Unauthorized, Forbidden):
        portal.sign_ins.take(origin)
        raise
    response = RedirectResponse(sign_in.following, status_code=303)
    portal.cookies.forget_sign_in(response)
    return _kept(portal, request, response, started, Actor(who=f"{PERSON}{person.subject}", origin=origin))


@router.post(
    "/token",
    response_model=SessionView,
    responses=refusals(*BODY),
    openapi_extra=takes(TokenGiven, {"token": "mvf_..."}),
)
def start_session(portal: Here, request: Request, body: Incoming) -> Response:
    """Start a session with a token; it may do what the token may, and ends with it."""
    require_our_origin(request, portal.settings)
    given = body.read(TokenGiven, what="token")
    origin = address_of(request, portal.proxies)
    holder = holder_of(portal, given.token, origin)
    if holder.token_id is None or holder.request_id is not None:
        raise Forbidden(
            "A job's token opens no session.", hint="Use a token of the team.", details=[Detail("/token", "is a job's")]
        )
    actor = holder.actor(origin)
    started = portal.ledger.start_token_session(holder.token_id, expires=_end(portal), by=actor)
    opened = portal.ledger.authenticate_session(started.secret)
    if not isinstance(opened, SignedIn):  # revoked at this very moment
        raise Unauthorized(opened.value, hint="Send a token that is good.")
    return _kept(portal, request, reply(_view(opened, started.secret)), started, actor)


@router.get("/session", response_model=SessionView)
def show_session(caller: InSession) -> Response:
    """Tell who is signed in, for which teams, and what a page has to send along with changes."""
    return reply(_view(*_session(caller)))


@router.put(
    "/session", status_code=204, responses=refusals(404, *BODY), openapi_extra=takes(TeamChoice, {"team": "growth"})
)
def choose_team(portal: Here, caller: InSession, body: Incoming) -> Response:
    """Let the session act for another one of its teams."""
    _, secret = _session(caller)
    portal.ledger.switch_session(secret, body.read(TeamChoice, what="choice").team)
    return Response(status_code=204)


@router.post(
    "/logout",
    status_code=204,
    responses=refusals(*BODY),
    openapi_extra=takes(SignOut, {"everywhere": True}, optional=True),
)
def sign_out(portal: Here, caller: InSession, body: Incoming) -> Response:
    """End the session, or all of the same person in whichever browser."""
    wish = body.read(SignOut, what="sign-out", optional=True)
    _, secret = _session(caller)
    portal.ledger.end_session(secret, everywhere=wish.everywhere, by=caller.actor)
    response = Response(status_code=204)
    portal.cookies.forget_session(response)
    return response


@people.delete("/{subject}/sessions", status_code=204)
def end_sessions(
    portal: Here,
    caller: OperatingAdmin,
    subject: Annotated[str, Path(min_length=1, max_length=255, description="The provider's id of a person.")],
) -> Response:
    """Sign a person out in all browsers (operators): after a loss, or where groups have changed."""
    portal.ledger.end_sessions_of(subject, by=caller.actor)
    return Response(status_code=204)


def _provider(portal: Portal) -> Provider:
    if portal.provider is None:
        raise NotFound(
            "People do not sign in to this portal at a provider: none is set up.",
            hint="Send a token to POST /auth/token; an operator sets FACTORY_OIDC_ISSUER.",
            details=[Detail("FACTORY_OIDC_ISSUER", "is not set")],
        )
    return portal.provider


def _who(provider: Provider, answered: Answered, sign_in: SignIn) -> Person:
    """Return who has signed in; the state is known to be the sign-in's."""
    again = "Begin again: GET /auth/login."
    if answered.iss and answered.iss != provider.issuer:
        raise Unauthorized("Another provider has answered than the one that was asked.", hint=again)
    if answered.error or not answered.code:
        said = answered.error if answered.error.isprintable() else ""
        raise Unauthorized(f"Nobody has signed in: the provider says {said or 'nothing'!r}.", hint=again)
    return provider.finish(answered.code, sign_in.secrets)


def _start(portal: Portal, person: Person, origin: str) -> StartedSession:
    """Start a person's session; who is in no team gets none, and is told the id by which an admin can add it."""
    by = Actor(who=f"{PERSON}{person.subject}"[:255], origin=origin)
    try:
        return portal.ledger.start_session(
            person.subject, email=person.email, grants=person.grants, expires=_end(portal), by=by
        )
    except NotFound as error:
        log.warning("sign-in: %r (%s) is in no team", person.subject, person.email)
        raise Forbidden(error.message, hint=error.hint, details=error.details) from error


def _kept(portal: Portal, request: Request, response: Response, started: StartedSession, by: Actor) -> Response:
    """Give a browser its new session; the one that it had ends, so that none from before a sign-in is good after it."""
    if (before := portal.cookies.session_of(request)) is not None:
        portal.ledger.end_session(before, by=by)
    portal.cookies.keep_session(response, started.secret)
    return response


def _end(portal: Portal) -> datetime:
    return now() + timedelta(hours=portal.settings.session_hours)


def _session(caller: Caller) -> tuple[SignedIn, str]:
    assert caller.signed_in is not None
    assert caller.secret is not None
    return caller.signed_in, caller.secret


def _view(found: SignedIn, secret: str) -> SessionView:
    return SessionView(
        me=Me.of(found.principal, expires=found.session.expires),
        email=found.session.email,
        csrf_token=csrf_token(secret),
        expires=found.session.expires,
        teams=tuple(Place(team=team, scopes=scopes) for team, scopes in sorted(found.places.items())),
    )
