"""Two versions beside each other: what differs first, in data and features column by column."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import Response

from factory.data.features import ServiceEntry
from factory.ledger import RequestRecord
from serve.portal.documents import DatasetView, VersionDetail
from serve.portal.pages.differences import difference
from serve.portal.pages.forms import asked_yaml
from serve.portal.pages.kit import SignedIn, Visitor, named
from serve.portal.pages.names import metric_named
from serve.portal.pages.words import UNKNOWN, Words
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)

MOST_COLUMNS = 200
"""Columns that differ and are shown; more are counted."""


@dataclass(frozen=True)
class Side:
    """One of the two versions, with what it was made from as far as the visitor may see it.

    Attributes:
        version: It.
        request: That made it.
        data: The uploaded table.
        service: The feature service, as the store has it now.
    """

    version: VersionDetail
    request: RequestRecord | None
    data: DatasetView | None
    service: ServiceEntry | None

    @property
    def asked(self) -> str:
        """The request's document as YAML."""
        return asked_yaml(self.request.request) if self.request else ""

    @property
    def n_rows(self) -> int | None:
        """Rows of its data."""
        return self.version.rows or (self.data.dataset.rows if self.data else None)

    @property
    def columns(self) -> dict[str, str]:
        """Type by name: of the columns that it needs to predict, else of the table's."""
        if self.version.columns:
            return {column.name: column.type for column in self.version.columns}
        left_out = {self.request.request.dataset.target, *self.request.request.dataset.drop} if self.request else set()
        shown = self.data.preview.columns if self.data else ()
        return {one.name: str(one.type or "") for one in shown if one.name not in left_out}

    @property
    def views(self) -> dict[str, tuple[str, ...]]:
        """Features by the view that they come from."""
        return {view.name: tuple(view.features) for view in self.service.views} if self.service else {}


@dataclass(frozen=True)
class Row:
    """A property of both versions, as people read it."""

    name: str
    left: str
    right: str

    @property
    def same(self) -> bool:
        """Whether both have the same."""
        return self.left == self.right


@dataclass(frozen=True)
class ColumnChange:
    """A column that only one of two versions needs, or that both need as another type.

    Attributes:
        name: Of the column.
        left: Type in the first version; empty where it has none.
        right: Type in the second one.
        view: Feature view that it comes from; empty where it came with the data.
    """

    name: str
    left: str
    right: str
    view: str = ""


@router.get("/variants/{name}/compare")
async def compare(visitor: SignedIn, name: str, a: int, b: int, other: str = "") -> Response:
    """Show what differs between two versions, of one variant or of two, and how sure their scores are."""
    left, right = await asyncio.gather(_side(visitor, name, a), _side(visitor, other.strip() or name, b))
    rows = rows_of(left, right, visitor.words)
    changed = column_changes(left, right)
    return visitor.page(
        "compare.html",
        name=name,
        a=left.version,
        b=right.version,
        differing=[row for row in rows if not row.same],
        alike=[row for row in rows if row.same],
        columns=changed[:MOST_COLUMNS],
        n_columns=len(changed),
        n_same=len(left.columns.keys() | right.columns.keys()) - len(changed),
        views=_views(left.views, right.views),
        asked=difference(left.asked, right.asked),
    )


async def _side(visitor: Visitor, name: str, version: int) -> Side:
    """Return a version with what it was made from; what the visitor may not see, or is gone, is left out."""
    api, gone = visitor.api, (404, 503)
    detail = await api.get(f"{API}/variants/{name}/versions/{version}", VersionDetail)
    request = await api.find(f"{API}/requests/{detail.request_id}", RequestRecord)
    upload = getattr(request.request.dataset, "upload", None) if request else None
    service = detail.feature_service
    data = await api.find(f"{API}/datasets/{upload}", DatasetView, absent=gone) if upload else None
    entry = await api.find(f"{API}/feature-services/{service}", ServiceEntry, absent=gone) if service else None
    return Side(detail, request, data, entry)


def rows_of(left: Side, right: Side, words: Words) -> list[Row]:
    """Return the properties of two versions, in the order in which people ask for them."""
    return [
        Row(name, one, other) for (name, one), (_, other) in zip(_told(left, words), _told(right, words), strict=True)
    ]


def _told(side: Side, words: Words) -> list[tuple[str, str]]:
    one, data, columns = side.version, side.data, side.columns
    interval = f"{words.score(one.score)} ({words.score(one.score_low)} {words('to')} {words.score(one.score_high)})"
    shares: dict[str, float] = {}
    for member in one.members:
        shares[member.family] = shares.get(member.family, 0.0) + member.weight
    models = [f"{named(words, 'family', f)} {words.percent(w)}" for f, w in sorted(shares.items(), key=lambda s: -s[1])]
    return [
        (words("Score"), interval),
        (words("Metric"), metric_named(one.metric)),
        (words("Gate"), named(words, "gate", one.state)),
        (words("Data"), data.dataset.name if data else one.dataset_digest[:12]),
        (words("Digest of the data"), one.dataset_digest[:12]),
        (words("Rows"), UNKNOWN if side.n_rows is None else words.number(side.n_rows)),
        (words("Columns"), words.number(len(columns)) if columns else UNKNOWN),
        (words("Feature service"), one.feature_service or UNKNOWN),
        (words("Definition of the features"), (one.feature_service_digest or UNKNOWN)[:12]),
        (words("Recipe"), one.recipe),
        (words("Digest of the recipe"), one.recipe_digest[:12]),
        (words("How"), named(words, "kind", one.kind)),
        (words("Parent"), one.parent or UNKNOWN),
        (words("Models"), ", ".join(models) or UNKNOWN),
        (words("Predicts"), named(words, "task", one.task)),
        (words("Segment"), one.segment or UNKNOWN),
        (words("One row"), f"{words.number(one.latency_ms, 2)} ms"),
        (words("Size"), words.size(one.size_mb * 1e6)),
        (words("Took to make"), words.seconds(one.cost_s)),
        (words("Random seed"), str(one.seed)),
        (words("Digest of the files"), one.bundle_digest[:12]),
    ]


def column_changes(left: Side, right: Side) -> list[ColumnChange]:
    """Return the columns in which two versions differ: those of one alone, and those of another type."""
    if not (left.columns and right.columns):
        return []
    origin = {feature: view for side in (right, left) for view, names in side.views.items() for feature in names}
    return [
        ColumnChange(name, left.columns.get(name, ""), right.columns.get(name, ""), origin.get(name, ""))
        for name in sorted(left.columns.keys() | right.columns.keys())
        if left.columns.get(name) != right.columns.get(name)
    ]


def _views(left: Mapping[str, tuple[str, ...]], right: Mapping[str, tuple[str, ...]]) -> list[tuple[str, int, int]]:
    """Return each feature view with how many features of it each of the versions has; those that differ first."""
    both = [(name, len(left.get(name, ())), len(right.get(name, ()))) for name in sorted(left.keys() | right.keys())]
    return sorted(both, key=lambda row: row[1] == row[2])
