"""Who is calling, from where, and whether that is allowed: tokens, sessions, scopes, teams, and how often.

What belongs to another team does not exist for a caller (404); what its own
token may not do is refused by the name of the scope that is missing (403).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from factory.errors import Detail, NotFound
from factory.ledger import Refusal, RequestRecord, SignedIn
from factory.spec import SCOPES, Actor, Principal, Scope
from serve.addresses import Networks, origin_of
from serve.errors import Forbidden, TooManyRequests, Unauthorized
from serve.portal.browser import SECURE_SESSION, require_csrf
from serve.portal.context import Here, Portal

_HINT = "Send the header 'Authorization: Bearer <token>'; a team's admin makes tokens, an operator the first one."

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    bearerFormat="mvf_…",
    description=f"A token of a team, or of an operator (all teams); scopes: {', '.join(SCOPES)}.",
)

cookie = APIKeyCookie(
    auto_error=False,
    scheme_name="session",
    name=SECURE_SESSION,
    description="A browser's session; without https its name has no `__Host-`. Changes need the header X-CSRF-Token, "
    "which GET /auth/session tells.",
)


@dataclass(frozen=True)
class Caller:
    """Whoever is calling.

    Attributes:
        principal: What its token or its session says.
        origin: Its address.
        signed_in: With a session: who that is.
        secret: With a session: its own.
    """

    principal: Principal
    origin: str
    signed_in: SignedIn | None = None
    secret: str | None = field(default=None, repr=False)

    @property
    def actor(self) -> Actor:
        """It, as the one who changes something."""
        return self.principal.actor(self.origin)

    @property
    def key(self) -> str:
        """What tells it from others: for its idempotency keys and its rate."""
        return self.principal.token_id or self.principal.name

    @property
    def team(self) -> str | None:
        """Its team; None sees all."""
        return self.principal.team

    @property
    def is_operator(self) -> bool:
        """Whether it sees all teams and may do everything."""
        return self.principal.team is None and self.principal.may("admin")

    def require_team(self, team: str) -> str:
        """Return a team that is its own.

        Raises:
            NotFound: it is another one's.
        """
        if not self.principal.sees(team):
            raise no_team(team)
        return team

    def own_team(self, named: str | None) -> str | None:
        """Return the team whose things are listed: the one that is named, else its own; None for all teams.

        Raises:
            NotFound: the one that is named is not its own.
        """
        return self.principal.team if named is None else self.require_team(named)

    def require_owner(self, record: RequestRecord) -> RequestRecord:
        """Return a request that belongs to its team.

        Raises:
            Forbidden: it was only shared with its team.
        """
        if not self.principal.sees(record.request.team):
            raise Forbidden(
                f"Request {record.id} is of team {record.request.team}, which has shared it for reading.",
                hint="Ask that team, or submit its document as a request of your own.",
                details=[Detail("team", record.request.team)],
            )
        return record


def may(scope: Scope | None, *, jobs: bool = False) -> Callable[..., Caller]:
    """Return the dependency of a route that asks for a scope.

    Args:
        scope: That is asked for; None lets every token in.
        jobs: Whether a job's own token is let in, which is good for its request only.
    """

    def caller(
        request: Request,
        portal: Here,
        given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
        _: Annotated[str | None, Security(cookie)],
    ) -> Caller:
        found = _signed_in(request, portal, given)
        principal = found.principal
        if principal.request_id is not None and not (
            jobs and request.path_params.get("request_id") == principal.request_id
        ):
            raise Forbidden(
                f"This token is of a job: it is good for reading request {principal.request_id}, and nothing else.",
                hint="Use a token of the team.",
                details=[Detail("scope", scope or "any")],
            )
        if scope is not None and not principal.may(scope):
            raise Forbidden(
                f"This needs the scope {scope!r}; you have {', '.join(sorted(principal.scopes))}.",
                hint="A team's admin gives it: POST /api/v1/tokens for programs, the team's members for people.",
                details=[Detail("scope", scope)],
            )
        return found

    return caller


Anyone = Annotated[Caller, Depends(may(None))]
Reader = Annotated[Caller, Depends(may("read"))]
JobReader = Annotated[Caller, Depends(may("read", jobs=True))]
Submitter = Annotated[Caller, Depends(may("submit"))]
Deployer = Annotated[Caller, Depends(may("deploy"))]
Publisher = Annotated[Caller, Depends(may("publish"))]
Admin = Annotated[Caller, Depends(may("admin"))]


async def in_session(caller: Anyone) -> Caller:
    """Return a caller that comes with a browser's session."""
    if caller.signed_in is None:
        raise Forbidden(
            "This is of a browser's session; a token has none.",
            hint="POST /auth/token starts one with a token.",
            details=[Detail("session", "This is required.")],
        )
    return caller


InSession = Annotated[Caller, Depends(in_session)]


async def operator(caller: Reader) -> Caller:
    """Return a caller that sees all teams; the dependency of a route that tells of all of them."""
    return _of_all_teams(caller)


async def operating(caller: Admin) -> Caller:
    """Return a caller that may change what all teams share."""
    return _of_all_teams(caller)


Operator = Annotated[Caller, Depends(operator)]
OperatingAdmin = Annotated[Caller, Depends(operating)]


def no_team(team: str) -> NotFound:
    """Return the error of a team that does not exist for a caller."""
    return NotFound(
        f"There is no team {team[:80]!r}.",
        hint="GET /api/v1/teams lists those that you see.",
        details=[Detail("team", f"{team[:80]!r} is not known")],
    )


def _of_all_teams(caller: Caller) -> Caller:
    if caller.team is not None:
        raise Forbidden(
            f"This is for all teams; you act for team {caller.team}.",
            hint="Use an operator's token, or let the session act for all teams.",
            details=[Detail("team", caller.team)],
        )
    return caller


def _signed_in(request: Request, portal: Portal, given: HTTPAuthorizationCredentials | None) -> Caller:
    origin = address_of(request, portal.proxies)
    if given is not None and given.credentials:
        caller = Caller(holder_of(portal, given.credentials, origin), origin)
    elif (secret := portal.cookies.session_of(request)) is not None:
        found = _session_of(portal, secret, origin)
        require_csrf(request, secret, portal.settings)
        caller = Caller(found.principal, origin, signed_in=found, secret=secret)
    else:
        raise Unauthorized("No token was sent.", hint=_HINT)
    request.state.who = caller.principal.name
    if wait_s := portal.calls.take(caller.key):
        raise TooManyRequests.wait(
            wait_s,
            f"This is more than {portal.settings.requests_a_minute:,} calls a minute.",
            hint="Wait as long as Retry-After says; follow events instead of asking again and again.",
        )
    return caller


def holder_of(portal: Portal, secret: str, origin: str) -> Principal:
    """Return as whom a token acts.

    Raises:
        TooManyRequests: too many were refused from this address.
        Unauthorized: it opens nothing.
    """
    require_tries(portal, origin, secret)
    principal = portal.ledger.authenticate(secret)
    if isinstance(principal, Refusal):
        portal.sign_ins.take(origin)
        raise Unauthorized(principal.value, hint=_HINT)
    portal.known_secrets.add(secret)
    return principal


def _session_of(portal: Portal, secret: str, origin: str) -> SignedIn:
    require_tries(portal, origin, secret)
    found = portal.ledger.authenticate_session(secret)
    if isinstance(found, Refusal):
        # Sessions end by themselves in browsers that go on asking: only what was never one counts as a try.
        if secret not in portal.known_secrets:
            portal.sign_ins.take(origin)
        raise Unauthorized(found.value, hint="Sign in again: GET /auth/login, or POST /auth/token with a token.")
    portal.known_secrets.add(secret)
    return found


def require_tries(portal: Portal, origin: str, secret: str = "") -> None:
    """Refuse an address from which too much was refused, unless it comes with what was good a moment ago.

    Raises:
        TooManyRequests: it is one.
    """
    if secret not in portal.known_secrets and (wait_s := portal.sign_ins.wait_s(origin)):
        raise TooManyRequests.wait(
            wait_s, "Too many tokens or sign-ins from this address were refused.", hint="Wait, then try again."
        )


def is_still_good(portal: Portal, request: Request, caller: Caller) -> bool:
    """Whether a call that goes on for long would be let in again; what it may do is looked up anew."""
    if caller.secret is not None:
        found = portal.ledger.authenticate_session(caller.secret)
        principal = found.principal if isinstance(found, SignedIn) else found
    else:
        principal = portal.ledger.authenticate(request.headers.get("authorization", "").partition(" ")[2].strip())
    return isinstance(principal, Principal) and principal.may("read") and principal.team == caller.team


def address_of(request: Request, proxies: Networks) -> str:
    """Return the address of whoever calls; one that a proxy tells only where that proxy is believed."""
    client = request.client.host if request.client is not None else "local"
    return origin_of(client, request.headers.getlist("x-forwarded-for"), proxies)
