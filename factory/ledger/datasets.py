"""Datasets that teams have uploaded, and what teams let others see.

A file is stored once under the digest of its content.  Each team that has
uploaded it has a row of its own, so that none learns of another one's.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import Connection, Row, Select, String, bindparam, delete, select

from factory.errors import Detail, InvalidRequest, NotFound
from factory.ledger import schema
from factory.ledger.audit import Audit, append_audit
from factory.ledger.engines import insert_new
from factory.ledger.moments import now
from factory.ledger.pages import Order, Page
from factory.ledger.teams import required_team
from factory.ledger.visibility import EVERYONE, ShareKind, visible
from factory.spec import NAME, Actor, Document

_at, _shares = schema.uploads.c, schema.shares.c
_SORTS = {"created": (_at.created, _at.digest, _at.team)}

_KINDS: dict[ShareKind, tuple[Any, Any]] = {
    "dataset": (_at.digest, _at.team),
    "variant": (schema.variants.c.name, schema.variants.c.team),
    "request": (schema.requests.c.id, schema.requests.c.team),
}
"""Where what can be shared lies: columns of its name and its team."""


class Upload(BaseModel):
    """A dataset that a team has uploaded; its ``digest`` is that of the file.

    Attributes:
        digest: SHA-256 of the file, as 64 hexadecimal digits.
        name: Of the file as it came.
        rows: None where they were not counted.
        columns: Names of its columns; None where it was not read.
    """

    model_config = Document.model_config

    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    team: str = Field(pattern=NAME)
    name: str = Field(min_length=1, max_length=255)
    kind: Literal["parquet", "csv", "arrow"]
    bytes: int = Field(ge=0)
    rows: int | None = Field(None, ge=0)
    columns: tuple[str, ...] | None = None
    created: datetime
    created_by: str = Field(min_length=1, max_length=255)


class UploadQuery(Document):
    """Which uploads. ``team`` with ``shared`` also takes those that others have shared with it."""

    team: str | None = None
    shared: bool = False


class Share(Document):
    """What a team lets another one see; ``*`` is every team."""

    kind: ShareKind
    subject: str
    team: str
    with_team: str
    created: datetime
    created_by: str


class Datasets(Audit):
    """The part of the ledger that knows uploads and what is shared."""

    def record_upload(self, upload: Upload, *, by: Actor) -> Upload:
        """Store that a team has a dataset; where it has it already, return what is stored.

        Raises:
            NotFound: there is no such team.
        """
        with self._write() as connection:
            required_team(connection, upload.team)
            if not insert_new(connection, schema.uploads, upload.model_dump()):
                return _required_upload(connection, upload.digest, upload.team)
            detail = upload.model_dump(include={"name", "kind", "bytes"})
            append_audit(connection, "dataset.upload", upload.digest, by=by, team=upload.team, detail=detail)
        return upload

    def upload(self, digest: str, team: str) -> Upload:
        """Return a dataset that a team has uploaded.

        Raises:
            NotFound: it has not.
        """
        with self._read() as connection:
            return _required_upload(connection, digest, team)

    def upload_teams(self, digest: str) -> list[str]:
        """Return the teams that have uploaded a dataset; its file is of no use once there are none."""
        with self._read() as connection:
            return list(connection.scalars(select(_at.team).where(_at.digest == digest).order_by(_at.team)))

    def forget_upload(self, digest: str, team: str, *, by: Actor) -> None:
        """Forget that a team has a dataset, and whom it was shared with; the file is the caller's to remove.

        Raises:
            NotFound: the team does not have it.
        """
        with self._write() as connection:
            _required_upload(connection, digest, team)
            connection.execute(delete(schema.uploads).where(_at.digest == digest, _at.team == team))
            its_shares = (_shares.kind == "dataset") & (_shares.subject == digest) & (_shares.team == team)
            connection.execute(delete(schema.shares).where(its_shares))
            append_audit(connection, "dataset.forget", digest, by=by, team=team)

    def upload_page(
        self,
        where: UploadQuery = UploadQuery(),  # noqa: B008 - frozen
        *,
        sort: Literal["created", "-created"] = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Upload]:
        """Return a page of uploads; arguments and errors as of :meth:`~factory.ledger.pages.Pages.request_page`."""
        query = select(schema.uploads)
        queries = [query if where.team is None else query.where(_at.team == where.team)]
        if where.shared and where.team is not None:
            mine = (_shares.with_team.in_((where.team, EVERYONE))) & (_shares.team != where.team)
            this = (_shares.kind == "dataset") & (_shares.subject == _at.digest) & (_shares.team == _at.team)
            queries.append(query.where(select(_shares.subject).where(this, mine).exists()))
        order = Order.of(sort, _SORTS, where, limit=limit)
        with self._read() as connection:
            return order.page(connection, queries, cursor, _upload)

    def share(self, kind: ShareKind, subject: str, *, team: str, with_team: str, by: Actor) -> Share:
        """Let another team see something; sharing it again changes nothing.

        Args:
            kind: ``dataset``, ``variant`` (all versions of a name) or ``request``.
            subject: Digest, name or id.
            team: Whose it is.
            with_team: Who may see it; ``*`` for every team.
            by: Who shares.

        Raises:
            InvalidRequest: a team shares with itself.
            NotFound: the team has no such thing, or there is no such other team.
        """
        share = Share(kind=kind, subject=subject, team=team, with_team=with_team, created=now(), created_by=by.who)
        with self._write() as connection:
            _require_owned(connection, kind, subject, team)
            if with_team == team:
                raise InvalidRequest(
                    f"with_team: {team} has it already.",
                    hint="Name another team, or * for every team.",
                    details=[Detail("with_team", "is the owner")],
                )
            if with_team != EVERYONE:
                required_team(connection, with_team)
            if insert_new(connection, schema.shares, share.model_dump()):
                detail = {"kind": kind, "with_team": with_team}
                append_audit(connection, "share", subject, by=by, team=team, detail=detail)
                return share
            return Share.model_validate(connection.execute(_this_share(share)).one()._asdict())

    def unshare(self, kind: ShareKind, subject: str, *, team: str, with_team: str, by: Actor) -> None:
        """Let another team see something no more; does nothing where it was not shared."""
        this = (_shares.kind == kind) & (_shares.subject == subject)
        with self._write() as connection:
            change = delete(schema.shares).where(this, _shares.team == team, _shares.with_team == with_team)
            if connection.execute(change).rowcount:
                detail = {"kind": kind, "with_team": with_team}
                append_audit(connection, "unshare", subject, by=by, team=team, detail=detail)

    def shares(self, kind: ShareKind, subject: str, *, team: str | None = None) -> list[Share]:
        """Return whom something is shared with, by one owner where given."""
        query = select(schema.shares).where(_shares.kind == kind, _shares.subject == subject)
        if team is not None:
            query = query.where(_shares.team == team)
        with self._read() as connection:
            rows = connection.execute(query.order_by(_shares.team, _shares.with_team))
            return [Share.model_validate(row._asdict()) for row in rows]

    def may_see(self, kind: ShareKind, subject: str, team: str) -> bool:
        """Return whether something is a team's own or shared with it; False also where it does not exist."""
        with self._read() as connection:
            return connection.scalar(_seen_by_team(kind), {"subject": subject, "team": team}) is not None


@cache
def _seen_by_team(kind: ShareKind) -> Select[Any]:
    """Return the query of something of a kind, its ``subject``, for a ``team`` that may see it."""
    name, owner = _KINDS[kind]
    seen = visible(kind, name, owner, bindparam("team", type_=String))
    return select(owner).where(name == bindparam("subject", type_=String), seen).limit(1)


def _this_share(share: Share) -> Any:
    query = select(schema.shares).where(_shares.kind == share.kind, _shares.subject == share.subject)
    return query.where(_shares.team == share.team, _shares.with_team == share.with_team)


def _require_owned(connection: Connection, kind: ShareKind, subject: str, team: str) -> None:
    name, owner = _KINDS[kind]
    if connection.scalar(select(owner).where(name == subject, owner == team).limit(1)) is None:
        raise NotFound(
            f"Team {team[:80]} has no {kind} {subject[:80]!r}.",
            hint="Only what a team has can be shared by it.",
            details=[Detail("subject", f"is no {kind} of {team[:80]}")],
        )


def _required_upload(connection: Connection, digest: str, team: str) -> Upload:
    query = select(schema.uploads).where(_at.digest == digest, _at.team == team)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(
            f"Team {team[:80]} has no dataset {digest[:12]!r}.",
            hint="Upload it first.",
            details=[Detail("upload", f"{digest[:64]!r} is not known")],
        )
    return _upload(row)


def _upload(row: Row[Any]) -> Upload:
    return Upload.model_validate(row._asdict())
