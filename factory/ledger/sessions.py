"""Sessions of browsers: of people who signed in, and of whoever gave a token.

A session is a secret like a token's, stored as a digest; it ends by itself.
What it may do is looked up at each call, so that a person who is taken out of
a team, or a token that is revoked, counts at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from factory.errors import Detail, InvalidRequest, NotFound, listing
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.bounds import bounded
from factory.ledger.moments import now
from factory.ledger.teams import checked_scopes
from factory.ledger.tokens import Refusal, Tokens, digest_of, holder_of, locked_token
from factory.ledger.visibility import EVERYONE
from factory.spec import Actor, Grant, Principal, Scope, Session

PREFIX = "mvs_"
"""By which a session's secret is known, as a token's is by its own."""
PERSON = "person:"
"""Begins the name of a person in the audit log; the provider's id of it follows."""

_RANDOM_BYTES = 32
_SECRET_MOST = 128
_SUBJECT_MOST = 255 - len(PERSON)


@dataclass(frozen=True)
class StartedSession:
    """A new session with its secret, which is nowhere else."""

    secret: str = field(repr=False)
    session: Session


@dataclass(frozen=True)
class SignedIn:
    """Whoever comes with a session.

    Attributes:
        principal: As which it acts.
        session: The session.
        places: What it may do: by team, or ``*`` for all teams.
    """

    principal: Principal
    session: Session
    places: dict[str, tuple[Scope, ...]]


class Sessions(Tokens):
    """The part of the ledger that knows sessions."""

    def start_session(
        self, subject: str, *, email: str = "", grants: Iterable[Grant] = (), expires: datetime, by: Actor
    ) -> StartedSession:
        """Start the session of a person who has signed in.

        Args:
            subject: The provider's id of the person.
            email: For people to read.
            grants: What the provider's groups give.
            expires: When it ends by itself.
            by: The person, from an address.

        Raises:
            InvalidRequest: a text is too long.
            NotFound: the person is in no team, and the groups give nothing.
        """
        session = Session(
            subject=bounded("subject", subject, _SUBJECT_MOST),
            email=bounded("email", email, 255, least=0),
            grants=tuple(grants),
            created=now(),
            expires=expires,
        )
        with self._write() as connection:
            if not _places(connection, session):
                raise NotFound(
                    f"{subject!r} is in no team.",
                    hint=f"Ask a team's admin: factory teams add TEAM {subject!r} --scope read.",
                    details=[Detail("subject", f"{subject!r} is in no team")],
                )
            started = _start(connection, session)
            append_audit(connection, "session.start", subject, by=by, detail={"email": email, "expires": expires})
        return started

    def start_token_session(self, token_id: str, *, expires: datetime, by: Actor) -> StartedSession:
        """Start the session of whoever has a token; it ends with the token, too.

        Raises:
            Conflict: the token is revoked.
            NotFound: there is no such token.
        """
        with self._write() as connection:
            token = locked_token(connection, token_id)
            started = _start(connection, Session(token_id=token_id, created=now(), expires=expires))
            append_audit(
                connection, "session.start", token_id, by=by, team=token.team, detail={"email": "", "expires": expires}
            )
        return started

    def authenticate_session(self, secret: str) -> SignedIn | Refusal:
        """Return who comes with a session's secret, or why it opens nothing; one look into the ledger each time."""
        if not secret.startswith(PREFIX) or len(secret) > _SECRET_MOST or not secret.isascii():
            return Refusal.NO_SESSION
        with self._read() as connection:
            session = _session(connection, secret)
            if session is None or session.expires <= now():
                return Refusal.NO_SESSION
            if session.token_id is not None:
                holder = holder_of(connection, session.token_id)
                if isinstance(holder, Refusal):
                    return holder
                place = EVERYONE if holder.team is None else holder.team
                return SignedIn(holder, session, {place: checked_scopes(holder.scopes)})
            places = _places(connection, session)
        if not places:
            return Refusal.NO_TEAM
        place = session.team if session.team in places else min(places)  # "*" sorts before every team
        assert place is not None
        principal = Principal(
            name=f"{PERSON}{session.subject}",
            team=None if place == EVERYONE else place,
            scopes=frozenset(places[place]),
        )
        return SignedIn(principal, session, places)

    def switch_session(self, secret: str, team: str) -> None:
        """Let a session act for another one of its teams; ``*`` is all of them.

        Raises:
            NotFound: the session has ended, or the team is not one of its own.
        """
        with self._write() as connection:
            session = _session(connection, secret)
            places = {} if session is None else _places(connection, session)
            if team not in places:
                raise NotFound(
                    f"There is no team {team[:80]!r} for this session.",
                    hint=f"Its teams: {listing(places)}.",
                    details=[Detail("team", f"{team[:80]!r} is not known")],
                )
            change = update(schema.sessions).where(schema.sessions.c.digest == digest_of(secret))
            connection.execute(change.values(team=team))

    def end_session(self, secret: str, *, everywhere: bool = False, by: Actor) -> int:
        """End a session, or all of the same person or token; return how many have ended.

        Args:
            secret: Of the session.
            everywhere: Whether the others end as well.
            by: Who ends it.
        """
        at = schema.sessions.c
        with self._write() as connection:
            session = _session(connection, secret)
            if session is None:
                return 0
            these = at.digest == digest_of(secret)
            if everywhere:
                these = at.subject == session.subject if session.token_id is None else at.token_id == session.token_id
            ended = connection.execute(delete(schema.sessions).where(these)).rowcount
            whose = session.subject or session.token_id or ""
            append_audit(connection, "session.end", whose, by=by, detail={"sessions": ended})
        return ended

    def end_sessions_of(self, subject: str, *, by: Actor) -> int:
        """End all sessions of a person, for an admin; return how many have ended."""
        with self._write() as connection:
            change = delete(schema.sessions).where(schema.sessions.c.subject == subject)
            if ended := connection.execute(change).rowcount:
                append_audit(connection, "session.end", subject, by=by, detail={"sessions": ended})
        return ended


def _start(connection: Connection, session: Session) -> StartedSession:
    if session.expires <= session.created:
        raise InvalidRequest(
            f"expires: {session.expires.isoformat()} is over.",
            hint="Give a later moment.",
            details=[Detail("expires", "is over")],
        )
    # Those that have ended are of no use to anybody; each sign-in takes them away.
    connection.execute(delete(schema.sessions).where(schema.sessions.c.expires <= session.created))
    secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    row = session.model_dump() | {"digest": digest_of(secret)}
    connection.execute(insert(schema.sessions), row)
    return StartedSession(secret, session)


def _session(connection: Connection, secret: str) -> Session | None:
    query = select(schema.sessions).where(schema.sessions.c.digest == digest_of(secret))
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Session.model_validate({name: getattr(row, name) for name in Session.model_fields})


def _places(connection: Connection, session: Session) -> dict[str, tuple[Scope, ...]]:
    """Return what a person may do, by team: as the ledger says now, and as its groups said at the sign-in."""
    at, of = schema.members.c, schema.teams.c
    alive = connection.scalars(select(of.name).where(of.archived_at.is_(None))).all()
    found: dict[str, set[Scope]] = {}
    for row in connection.execute(select(at.team, at.scopes).where(at.subject == session.subject)):
        found.setdefault(row.team, set()).update(row.scopes)
    for grant in session.grants:
        found.setdefault(grant.team or EVERYONE, set()).update(grant.scopes)
    return {team: checked_scopes(scopes) for team, scopes in found.items() if team == EVERYONE or team in alive}
