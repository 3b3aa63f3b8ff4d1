"""Long lists in pages: filtered, sorted, and gone through by a cursor.

A cursor names the last row that was seen, not a number of rows, so rows that
come in meanwhile neither repeat nor hide one, and the thousandth page costs
what the first does (keyset pagination; Winand, SQL Performance Explained,
2012).  To its holder it is opaque; it fits only the list that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, func, literal, select, tuple_, union_all

from factory.errors import Detail, InvalidRequest, listing
from factory.ledger import schema
from factory.ledger.audit import Audit, AuditRecord
from factory.ledger.proposals import Proposal, ProposalState, read_proposal
from factory.ledger.records import Door, RequestSummary
from factory.ledger.requests import held_of
from factory.ledger.visibility import shared_with
from factory.spec import ALIAS, Document, RequestState, Variant

MOST = 200
"""Most rows of a page."""

_CURSOR_MOST = 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows of a list, and the cursor of what follows; None at the end."""

    items: tuple[T, ...]
    next: str | None


class RequestQuery(Document):
    """Which requests. ``team`` with ``shared`` also takes those that others have shared with it."""

    team: str | None = None
    shared: bool = False
    states: tuple[RequestState, ...] = ()
    variant: str | None = None
    like: str | None = None
    recipe: str | None = None
    door: Door | None = None
    submitted_by: str | None = None
    created_from: AwareDatetime | None = None
    created_before: AwareDatetime | None = None


class VariantQuery(Document):
    """Which variants; ``team`` and ``shared`` as for requests."""

    team: str | None = None
    shared: bool = False
    name: str | None = None
    request_id: str | None = None
    state: Literal["registered", "rejected"] | None = None
    like: str | None = None
    alias: ALIAS | None = None
    feature_service: str | None = None
    parent: str | None = None
    dataset_digest: str | None = None
    recipe: str | None = None


class AuditQuery(Document):
    """Which rows of the audit log."""

    team: str | None = None
    who: str | None = None
    action: str | None = None
    subject: str | None = None


class ProposalQuery(Document):
    """Which proposals."""

    team: str | None = None
    name: str | None = None
    state: ProposalState | None = None


RequestSort = Literal["created", "-created", "updated", "-updated"]
VariantSort = Literal["created", "-created", "name", "-name"]
AuditSort = Literal["id", "-id"]
ProposalSort = Literal["created", "-created"]

_requests, _variants, _audit = schema.requests.c, schema.variants.c, schema.audit.c
_proposals = schema.proposals.c

_REQUEST_SORTS = {"created": (_requests.created, _requests.id), "updated": (_requests.updated, _requests.id)}
_VARIANT_SORTS = {
    "created": (_variants.created, _variants.name, _variants.version),
    "name": (_variants.name, _variants.version),
}
_AUDIT_SORTS = {"id": (_audit.id,)}
_PROPOSAL_SORTS = {"created": (_proposals.created, _proposals.id)}
_SUMMARY = [_requests[name] for name in RequestSummary.model_fields if name != "held"]


class Pages(Audit):
    """The part of the ledger that shows long lists."""

    def request_page(
        self,
        where: RequestQuery = RequestQuery(),  # noqa: B008 - frozen
        *,
        sort: RequestSort = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[RequestSummary]:
        """Return a page of requests.

        Args:
            where: Which ones.
            sort: ``created`` or ``updated``, with ``-`` the newest first. A request that changes meanwhile moves in
                the order of ``updated``, and may be seen twice or not at all; by ``created`` every one is seen once.
            cursor: ``next`` of the page before; the first page without.
            limit: Rows at most, 1 to 200.

        Raises:
            InvalidRequest: the cursor is not of this list, or another argument is out of bounds.
        """
        query = select(*_SUMMARY)
        for column in ("variant", "recipe", "door", "submitted_by"):
            query = _equal(query, _requests[column], getattr(where, column))
        if where.like is not None:
            query = query.where(_requests.variant.contains(where.like, autoescape=True))
        if where.states:
            query = query.where(_requests.state.in_([state.value for state in where.states]))
        if where.created_from is not None:
            query = query.where(_requests.created >= where.created_from)
        if where.created_before is not None:
            query = query.where(_requests.created < where.created_before)
        queries = [_equal(query, _requests.team, where.team)]
        if where.shared and where.team is not None:
            queries.append(query.where(_requests.id.in_(shared_with("request", where.team))))
        order = Order.of(sort, _REQUEST_SORTS, where, limit=limit)
        with self._read() as connection:
            page = order.page(connection, queries, cursor, lambda row: row)
            # Joined to the list itself, SQLite would sort all of it rather than go along an index.
            ids = [row.id for row in page.items]
            held = connection.execute(select(schema.holds).where(schema.holds.c.request_id.in_(ids)))
            why = {row.request_id: row for row in held}
        return Page(tuple(_summary(row, why.get(row.id)) for row in page.items), page.next)

    def variant_page(
        self,
        where: VariantQuery = VariantQuery(),  # noqa: B008 - frozen
        *,
        sort: VariantSort = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Variant]:
        """Return a page of variants, each version by itself; arguments and errors as of :meth:`request_page`."""
        query = select(_variants.document, *_VARIANT_SORTS["created"])
        for column in ("name", "request_id", "state"):
            query = _equal(query, _variants[column], getattr(where, column))
        if where.like is not None:
            query = query.where(_variants.name.contains(where.like, autoescape=True))
        for field in ("feature_service", "parent", "dataset_digest", "recipe"):
            query = _equal(query, _variants.document[field].as_string(), getattr(where, field))
        if where.alias is not None:
            query = query.where(tuple_(_variants.name, _variants.version).in_(_pointed_at(where.alias)))
        queries = [_equal(query, _variants.team, where.team)]
        if where.shared and where.team is not None:
            queries.append(query.where(_variants.name.in_(shared_with("variant", where.team))))
        order = Order.of(sort, _VARIANT_SORTS, where, limit=limit)
        with self._read() as connection:
            return order.page(connection, queries, cursor, lambda row: Variant.model_validate(row.document))

    def audit_page(
        self,
        where: AuditQuery = AuditQuery(),  # noqa: B008 - frozen
        *,
        sort: AuditSort = "-id",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[AuditRecord]:
        """Return a page of the audit log; arguments and errors as of :meth:`request_page`."""
        query = select(schema.audit)
        for column in AuditQuery.model_fields:
            query = _equal(query, _audit[column], getattr(where, column))
        order = Order.of(sort, _AUDIT_SORTS, where, limit=limit)
        with self._read() as connection:
            return order.page(connection, [query], cursor, lambda row: AuditRecord.model_validate(row._asdict()))

    def proposal_page(
        self,
        where: ProposalQuery = ProposalQuery(),  # noqa: B008 - frozen
        *,
        sort: ProposalSort = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Proposal]:
        """Return a page of proposals; arguments and errors as of :meth:`request_page`."""
        query = select(schema.proposals)
        for column in ProposalQuery.model_fields:
            query = _equal(query, _proposals[column], getattr(where, column))
        order = Order.of(sort, _PROPOSAL_SORTS, where, limit=limit)
        with self._read() as connection:
            return order.page(connection, [query], cursor, read_proposal)


@dataclass(frozen=True)
class Order:
    """The order of a list, and which list it is.

    Attributes:
        columns: By which it is sorted; together they tell every row from every other.
        descending: Whether the greatest comes first.
        list_digest: Of the filters and the order, which a cursor has to match.
        limit: Rows at most.
    """

    columns: tuple[Column[Any], ...]
    descending: bool
    list_digest: str
    limit: int

    @classmethod
    def of(cls, sort: str, sorts: Mapping[str, tuple[Column[Any], ...]], where: Document, *, limit: int) -> Order:
        """Return the order that a client asks for.

        Raises:
            InvalidRequest: there is no such order, or the limit is out of bounds.
        """
        if not 1 <= limit <= MOST:
            raise _invalid("limit", f"{limit} is not between 1 and {MOST}.")
        descending, name = sort.startswith("-"), sort.removeprefix("-")
        if name not in sorts:
            allowed = listing([*sorts, *(f"-{key}" for key in sorts)])
            raise _invalid("sort", f"{sort[:40]!r} is not allowed; allowed: {allowed}.")
        digest = hashlib.sha256(f"{type(where).__name__} {where.digest} {sort}".encode()).hexdigest()[:12]
        return cls(sorts[name], descending, digest, limit)

    def page(
        self,
        connection: Connection,
        queries: Sequence[Select[Any]],
        cursor: str | None,
        item: Callable[[Row[Any]], T],
    ) -> Page[T]:
        """Return what follows a cursor in the union of queries that have no row in common.

        Each query is limited by itself, so that each goes along an index.
        """
        begin = None if cursor is None else self._read_cursor(cursor)
        parts = [self._sorted(self._after(query, begin), self.columns) for query in queries]
        if len(parts) == 1:
            rows = connection.execute(parts[0]).all()
        else:
            union = union_all(*(select(part.subquery()) for part in parts)).subquery()
            columns = tuple(union.c[column.key] for column in self.columns)
            rows = connection.execute(self._sorted(select(union), columns)).all()
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        return Page(tuple(item(row) for row in shown), self._write_cursor(shown[-1]) if more else None)

    def _after(self, query: Select[Any], begin: list[Any] | None) -> Select[Any]:
        if begin is None:
            return query
        keys = tuple_(*self.columns)
        last = tuple_(*(literal(value, column.type) for value, column in zip(begin, self.columns, strict=True)))
        return query.where(keys < last if self.descending else keys > last)

    def _sorted(self, query: Select[Any], columns: Sequence[Any]) -> Select[Any]:
        ordered = query.order_by(*(column.desc() if self.descending else column.asc() for column in columns))
        return ordered.limit(self.limit + 1)

    def _write_cursor(self, row: Row[Any]) -> str:
        values = [row._mapping[column.key] for column in self.columns]
        plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
        text = json.dumps([self.list_digest, *plain], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _read_cursor(self, cursor: str) -> list[Any]:
        try:
            if len(cursor) > _CURSOR_MOST:
                raise ValueError("too long")
            text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
            digest, *plain = json.loads(text)
            kinds = [column.type.python_type for column in self.columns]
            values = [
                datetime.fromisoformat(value) if kind is datetime else kind(value)
                for value, kind in zip(plain, kinds, strict=True)
            ]
            if any(isinstance(value, datetime) and value.tzinfo is None for value in values):
                raise ValueError("no moment")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _invalid("cursor", "it is none that this list has given.") from error
        if digest != self.list_digest:
            raise _invalid("cursor", "it belongs to a list of other filters or another order.")
        return values


def _summary(row: Row[Any], held: Row[Any] | None) -> RequestSummary:
    return RequestSummary.model_validate(row._asdict() | {"held": held_of(row.state, held)})


def _equal(query: Select[Any], column: ColumnElement[Any], value: object) -> Select[Any]:
    return query if value is None else query.where(column == value)


def _pointed_at(alias: str) -> Select[Any]:
    """Return the versions that an alias points at now, by name: its last change is the one that holds."""
    at = schema.aliases.c
    latest = select(func.max(at.id)).where(at.alias == alias).group_by(at.name)
    return select(at.name, at.version).where(at.id.in_(latest), at.version.is_not(None))


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: {message}",
        hint="Begin with the first page, without a cursor." if field == "cursor" else f"Give an allowed {field}.",
        details=[Detail(field, message)],
    )
