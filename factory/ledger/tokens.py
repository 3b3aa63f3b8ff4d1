"""Tokens: shown once, stored as a digest, checked at every call.

A secret is 32 random bytes, so there is nothing to guess and a plain SHA-256
is as good as a slow hash made for passwords (NIST SP 800-63B, 5.1.2.2, asks
for those below 112 bits only).  It is looked up by its digest in an index: how
long that takes says nothing of use, since nobody can choose the digest of a
secret that he does not know.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, StorageFault
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.bounds import bounded
from factory.ledger.engines import exclusive
from factory.ledger.moments import now
from factory.ledger.teams import Teams, checked_scopes, required_team
from factory.spec import Actor, Principal, Scope, TokenRecord

PREFIX = "mvf_"
"""By which a secret is known in a log or a repository, and found by a scanner."""

_RANDOM_BYTES = 32
_SECRET_MOST = 128
_PATTERN = re.compile(r"[a-z0-9_.*-]{1,200}")
_USED_EVERY = timedelta(minutes=1)
_WITH_TEAM = select(schema.tokens, schema.teams.c.archived_at).join_from(
    schema.tokens, schema.teams, schema.tokens.c.team == schema.teams.c.name, isouter=True
)
_OF_SECRET = _WITH_TEAM.where(schema.tokens.c.digest == bindparam("secret_digest"))
"""Made once: every call asks for it, and to make it takes longer than the database does."""
_OF_ID = _WITH_TEAM.where(schema.tokens.c.id == bindparam("token_id"))

_logger = logging.getLogger(__name__)


class Refusal(StrEnum):
    """Why a token or a session opens nothing, in a sentence."""

    UNKNOWN = "The token is not known."
    EXPIRED = "The token has expired."
    REVOKED = "The token was revoked."
    ARCHIVED = "The token's team is archived."
    NO_SESSION = "The session is not known, or has ended."
    NO_TEAM = "Whoever signed in is in no team any more."


@dataclass(frozen=True)
class IssuedToken:
    """A new token with its secret, which is nowhere else and cannot be shown again."""

    secret: str = field(repr=False)
    record: TokenRecord


class Tokens(Teams):
    """The part of the ledger that knows tokens."""

    def issue_token(
        self,
        name: str,
        *,
        team: str | None,
        scopes: Iterable[Scope],
        expires: datetime | None = None,
        request_id: str | None = None,
        variants: str | None = None,
        by: Actor,
    ) -> IssuedToken:
        """Make a token.

        Args:
            name: For people to know it by.
            team: Whose it is; None makes an operator's, which sees all teams.
            scopes: What it may do.
            expires: From when it is refused; never where not given.
            request_id: For a job's own token: the request that it is good for. It ends with the job's attempt.
            variants: Pattern of the variants that it may call, as ``growth.churn*``; with the scope predict alone,
                since nothing else is bounded by it.
            by: Who makes it.

        Raises:
            Conflict: the team is archived.
            InvalidRequest: the name, a scope or the expiry cannot be used.
            NotFound: there is no such team or request.
        """
        with self._write() as connection:
            if team is not None and required_team(connection, team).archived_at is not None:
                raise Conflict(f"Team {team} is archived.", hint="An archived team gets no tokens.")
            if request_id is not None:
                _require_request(connection, request_id)
            return _issue(
                connection,
                name,
                team=team,
                scopes=scopes,
                expires=expires,
                request_id=request_id,
                variants=variants,
                by=by,
            )

    def bootstrap_token(self, *, by: Actor) -> IssuedToken | None:
        """Make an operator's token with all scopes where there is none but jobs'; None where there is one."""
        with self._write() as connection:
            exclusive(connection, "first token")
            if connection.scalar(select(schema.tokens.c.id).where(schema.tokens.c.request_id.is_(None)).limit(1)):
                return None
            return _issue(connection, "admin", team=None, scopes=("admin",), by=by)

    def authenticate(self, secret: str) -> Principal | Refusal:
        """Return who comes with a secret, or why it opens nothing.

        One look into the ledger each time, so that a revocation counts at once. The last use is noted once a minute.
        """
        if not secret.startswith(PREFIX) or len(secret) > _SECRET_MOST or not secret.isascii():
            return Refusal.UNKNOWN
        with self._read() as connection:
            row = connection.execute(_OF_SECRET, {"secret_digest": digest_of(secret)}).one_or_none()
        holder = _holder(row)
        if row is not None and isinstance(holder, Principal):
            self._note_use(row, now())
        return holder

    def rotate_token(self, token_id: str, *, expires: datetime | None = None, by: Actor) -> IssuedToken:
        """Make a token that may do the same as another one, which is refused from now on.

        Args:
            token_id: The old one.
            expires: Of the new one; where not given, the new one is good for as long as the old one was made for.
            by: Who rotates.

        Raises:
            Conflict: the old one is revoked.
            InvalidRequest: the expiry is over.
            NotFound: there is no such token.
        """
        with self._write() as connection:
            old = locked_token(connection, token_id)
            if expires is None and old.expires is not None:
                expires = now() + (old.expires - old.created)
            issued = _issue(
                connection,
                old.name,
                team=old.team,
                scopes=old.scopes,
                expires=expires,
                request_id=old.request_id,
                variants=old.variants,
                by=by,
            )
            _revoke(connection, old, by=by, rotated_to=issued.record.id)
        return issued

    def revoke_token(self, token_id: str, *, by: Actor) -> TokenRecord:
        """Refuse a token from now on.

        Raises:
            Conflict: it is revoked already.
            NotFound: there is no such token.
        """
        with self._write() as connection:
            return _revoke(connection, locked_token(connection, token_id), by=by)

    def token(self, token_id: str) -> TokenRecord:
        """Return a token without its secret.

        Raises:
            NotFound: there is none.
        """
        query = select(schema.tokens).where(schema.tokens.c.id == token_id)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise _no_token(token_id)
        return _record(row)

    def tokens(self, *, team: str | None = None, revoked: bool = False) -> list[TokenRecord]:
        """Return tokens, the newest first: of one team where given, with the revoked ones where asked for.

        Those of jobs, which come and go with their attempts, are not among them.
        """
        at = schema.tokens.c
        query = select(schema.tokens).where(at.request_id.is_(None)).order_by(at.created.desc(), at.id)
        if team is not None:
            query = query.where(at.team == team)
        if not revoked:
            query = query.where(at.revoked_at.is_(None))
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def _note_use(self, row: Row[Any], moment: datetime) -> None:
        if row.last_used is not None and abs(moment - row.last_used) < _USED_EVERY:
            return
        try:
            with self._write() as connection:
                change = update(schema.tokens).where(schema.tokens.c.id == row.id)
                connection.execute(change.values(last_used=moment))
        except StorageFault as fault:  # a full disk or a busy writer keeps nobody out who only reads
            _logger.warning("token %s: its use was not noted: %s", row.id, fault.message)


def holder_of(connection: Connection, token_id: str) -> Principal | Refusal:
    """Return as whom a token acts, or why it opens nothing any more."""
    return _holder(connection.execute(_OF_ID, {"token_id": token_id}).one_or_none())


def _holder(row: Row[Any] | None) -> Principal | Refusal:
    if row is None:
        return Refusal.UNKNOWN
    if row.revoked_at is not None:
        return Refusal.REVOKED
    if row.expires is not None and row.expires <= now():
        return Refusal.EXPIRED
    if row.archived_at is not None:
        return Refusal.ARCHIVED
    return Principal(
        name=f"token:{row.name}/{row.id}",
        team=row.team,
        scopes=frozenset(row.scopes),
        token_id=row.id,
        request_id=row.request_id,
        variants=row.variants,
    )


def _issue(
    connection: Connection,
    name: str,
    *,
    team: str | None,
    scopes: Iterable[Scope],
    expires: datetime | None = None,
    request_id: str | None = None,
    variants: str | None = None,
    by: Actor,
) -> IssuedToken:
    moment = now()
    allowed = checked_scopes(scopes)
    if variants is not None:
        _require_pattern(variants, allowed)
    if expires is not None and (expires.tzinfo is None or expires <= moment):
        raise InvalidRequest(
            f"expires: {expires.isoformat()} is not a moment to come, with its time zone.",
            hint="Give a later moment, or none for a token that does not expire.",
            details=[Detail("expires", expires.isoformat())],
        )
    secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    record = TokenRecord(
        id=f"t-{secrets.token_hex(6)}",
        name=bounded("name", name, 64),
        team=team,
        scopes=allowed,
        created=moment,
        created_by=by.who,
        expires=expires,
        request_id=request_id,
        variants=variants,
    )
    connection.execute(insert(schema.tokens).values(record.model_dump() | {"digest": digest_of(secret)}))
    detail = record.model_dump(include={"name", "scopes", "expires", "request_id", "variants"})
    append_audit(connection, "token.issue", record.id, by=by, team=team, detail=detail)
    return IssuedToken(secret, record)


def _revoke(connection: Connection, token: TokenRecord, *, by: Actor, rotated_to: str | None = None) -> TokenRecord:
    values = {"revoked_at": now(), "rotated_to": rotated_to}
    connection.execute(update(schema.tokens).where(schema.tokens.c.id == token.id).values(values))
    action, detail = ("token.rotate", {"rotated_to": rotated_to}) if rotated_to else ("token.revoke", None)
    append_audit(connection, action, token.id, by=by, team=token.team, detail=detail)
    return token.model_copy(update=values)


def locked_token(connection: Connection, token_id: str) -> TokenRecord:
    """Return a token that is not revoked, which no other process changes until this transaction ends."""
    query = select(schema.tokens).where(schema.tokens.c.id == token_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _no_token(token_id)
    if row.revoked_at is not None:
        raise Conflict(
            f"Token {token_id} was revoked at {row.revoked_at:%Y-%m-%d %H:%M} UTC.",
            hint="Make a new one.",
            details=[Detail("token", "is revoked")],
        )
    return _record(row)


def _require_pattern(variants: str, scopes: tuple[Scope, ...]) -> None:
    if scopes != ("predict",):
        raise InvalidRequest(
            "variants: only a token with the scope predict, and no other, is bounded to some variants.",
            hint="Give it the scope predict alone, or leave the pattern out.",
            details=[Detail("variants", f"scopes are {', '.join(scopes)}")],
        )
    if not _PATTERN.fullmatch(variants):
        raise InvalidRequest(
            f"variants: {variants[:80]!r} is no pattern of names.",
            hint="Write small letters, digits, '.', '-' and '_', with '*' for anything: growth.churn*.",
            details=[Detail("variants", f"received {variants[:80]!r}")],
        )


def _require_request(connection: Connection, request_id: str) -> None:
    if connection.scalar(select(schema.requests.c.id).where(schema.requests.c.id == request_id)) is None:
        raise NotFound(
            f"There is no request {request_id[:80]!r}.",
            hint="A job's token is made after its request.",
            details=[Detail("request_id", "is not known")],
        )


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord.model_validate({name: getattr(row, name) for name in TokenRecord.model_fields})


def _no_token(token_id: str) -> NotFound:
    return NotFound(
        f"There is no token {token_id[:80]!r}.",
        hint="`factory tokens list` shows them by their ids.",
        details=[Detail("token", f"{token_id[:80]!r} is not known")],
    )


def digest_of(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
