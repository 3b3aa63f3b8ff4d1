"""What the factory asks of a feature store: join, materialize, list.

The join is point-in-time: each row of an entity table sees the newest value
that was known at its moment and not older than the view's TTL.  Feast's DuckDB
store does it; what Feast leaves open is settled here: rows keep their order,
key types agree with the store, moments are UTC, and what was missing is counted.
Reading online is in ``online.py``, comparing the two in ``feature_check.py``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from factory.data.dataset import FeatureLineage
from factory.data.entity_table import MOMENT, entity_spine
from factory.data.feast_guard import has_function
from factory.data.feature_service import ServiceDefinition, ViewDefinition, resolve
from factory.data.feature_store import LOCK, offline, open_store, refresh, silence
from factory.data.historical import completed, stored_features
from factory.errors import Detail, InvalidData, InvalidRequest, listing, suggest
from factory.settings import Settings
from factory.spec import Document

logger = logging.getLogger(__name__)

_BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
"""Earlier than any event; where a view without TTL starts to be materialized."""


@dataclass(frozen=True)
class JoinedFeatures:
    """An entity table with its features.

    Attributes:
        frame: The entity table's other columns and the feature columns, (n_rows, ...), in the table's order.
        keys: The entity keys and the timestamp (UTC) of each row, (n_rows, n_keys + 1).
        missing_per_row: Features without a value in each row, int64 (n_rows,).
        absent_rows: Rows whose keys no view knows at any time.
        absent_examples: Up to five such keys, for a message.
        lineage: What was joined; recorded with the request and the variant.
    """

    frame: pd.DataFrame
    keys: pd.DataFrame
    missing_per_row: np.ndarray
    absent_rows: int
    absent_examples: tuple[str, ...]
    lineage: FeatureLineage


class ViewEntry(Document):
    """A feature view of the catalogue."""

    name: str
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    entities: tuple[str, ...] = Field(description="Join keys.")
    features: dict[str, str] = Field(description="Feature name to Feast type, as the service uses them.")
    ttl_s: float | None = None
    oldest: datetime | None = Field(None, description="Moment of the oldest row offline.")
    newest: datetime | None = Field(None, description="Moment of the newest row offline.")
    materialized: datetime | None = Field(None, description="Moment up to which the online store was filled.")
    computed: Literal["pandas", "python"] | None = Field(None, description="Mode of an on-demand view; None if stored.")


class ServiceEntry(Document):
    """A feature service of the catalogue."""

    name: str
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    definition: str = Field(description="Digest of the definition, as recorded with variants.")
    entities: tuple[str, ...]
    request: dict[str, str] = Field(default_factory=dict, description="Type of each value that rows bring themselves.")
    views: tuple[ViewEntry, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features."""
        return tuple(name for view in self.views for name in view.features)


class Materialized(Document):
    """What :func:`materialize` did to one view."""

    view: str
    since: datetime
    until: datetime
    skipped: bool = Field(False, description="The view had been filled up to that moment before.")
    foreign: bool = Field(False, description="Its rows come through a function: left to `feast materialize`.")


class _Coverage(NamedTuple):
    """What a view's source holds: its moments and its distinct keys (columns named as in entity tables)."""

    oldest: pd.Timestamp | None
    newest: pd.Timestamp | None
    keys: pd.DataFrame


def catalogue(settings: Settings) -> tuple[ServiceEntry, ...]:
    """Return the feature services with their views, owners, tags and freshness, by name.

    Raises:
        Conflict: the repository is not applied.
        ServiceFault: the store cannot be read.
    """
    with LOCK:
        store = open_store(settings)
        refresh(store)
        names = sorted(service.name for service in store.list_feature_services())
        services = [resolve(store, name, settings=settings) for name in names]
        seen: dict[str, _Coverage] = {}
        for view in (view for service in services for view in service.stored):
            if view.name not in seen:
                seen[view.name] = _coverage(store, view)
        return tuple(_service_entry(service, seen) for service in services)


def join(entities: pd.DataFrame, *, timestamp: str, feature_service: str, settings: Settings) -> JoinedFeatures:
    """Join an entity table to a feature service as of each row's moment.

    A value counts when its event timestamp is not later than the row's moment and not earlier than the moment
    less the view's TTL; of several the newest counts. Two values with the same key, event and created timestamp
    are a tie that no store decides the same way twice.

    Args:
        entities: Entity keys, timestamp and any other columns, (n_rows, n_columns).
        timestamp: Column with the moments; dates without a zone are UTC.
        feature_service: Name of the service.
        settings: Where the store is.

    Raises:
        InvalidRequest: the service does not exist, or it has a view that cannot be joined or computed here.
        InvalidData: a key column, the timestamp or a column that on-demand views are computed from is missing or of
            the wrong type, a column is named like a feature, or no row finds any key or value.
        Conflict: the repository is not applied, or does not hold an on-demand view as it was applied.
        ServiceFault: the store cannot be read.
        SystemFault: the function of an on-demand view fails.
    """
    with LOCK:
        store = open_store(settings)
        refresh(store)
        service = resolve(store, feature_service, settings=settings)
        spine = entity_spine(entities, timestamp=timestamp, service=service)
        stored = stored_features(store, service, spine)
        coverage = [_coverage(store, view) for view in service.stored]
    values = completed(stored, entities, service=service)
    missing = values.isna().to_numpy()
    unknown = stored.isna().to_numpy()
    absent = _absent(spine, unknown, service=service, coverage=coverage)
    if len(spine) and unknown.all():
        raise _nothing_found(spine, service=service, coverage=coverage, absent=absent)
    columns = [key.column for key in service.keys]
    examples = tuple(_shown(row) for row in spine.loc[absent, columns].drop_duplicates().head(5).to_dict("records"))
    if absent.any():
        logger.warning("%d of %d rows have keys that no view knows, such as %s", absent.sum(), len(spine), examples)
    others = entities.drop(columns=[*columns, timestamp]).reset_index(drop=True)
    moments = [m for c in coverage for m in (c.oldest, c.newest) if m is not None]
    return JoinedFeatures(
        frame=pd.concat([others, values], axis=1),
        keys=spine[columns].assign(**{timestamp: spine[MOMENT]}),
        missing_per_row=missing.sum(axis=1),
        absent_rows=int(absent.sum()),
        absent_examples=examples,
        lineage=FeatureLineage(
            service=service.name,
            digest=service.digest,
            views=tuple(view.name for view in service.stored),
            on_demand={view.name: view.text_digest for view in service.on_demand},
            interval=(min(moments).to_pydatetime(), max(moments).to_pydatetime()) if moments else None,
            entity_keys=tuple(columns),
            missing={name: int(count) for name, count in zip(values.columns, missing.sum(axis=0), strict=True)},
            rows_with_missing=int(missing.any(axis=1).sum()),
        ),
    )


def materialize(
    settings: Settings, *, until: datetime | None = None, views: tuple[str, ...] | None = None, full: bool = False
) -> tuple[Materialized, ...]:
    """Fill the online store with each view's newest rows.

    A view that was filled before goes on from there. One that was not starts at ``until`` less its TTL: Feast's
    own incremental start, *now* less the TTL, would lose rows when ``until`` lies in the past. Rows that arrived
    late, stamped before the last filling, are seen with ``full`` only.

    Views whose rows come through a function are left to Feast, as :mod:`factory.data.feast_guard` says.

    Args:
        settings: Where the store is.
        until: Rows up to this moment count; default: now.
        views: Names of the views; default: all that are served online.
        full: Read the whole interval again.

    Raises:
        InvalidRequest: there is no such view, or its rows come through a function.
        Conflict: the repository is not applied.
        ServiceFault: a store cannot be read or written.
    """
    end = _utc(until or datetime.now(UTC))
    done = []
    with LOCK:
        store = open_store(settings)
        refresh(store)
        known = {view.name: view for view in store.list_batch_feature_views() if view.online}
        if unknown := [name for name in views or () if name not in known]:
            raise InvalidRequest(
                f"There is no feature view {unknown[0]!r} that is served online.{suggest(unknown[0], known)}",
                hint=f"Views of this store: {listing(known)}.",
                details=[Detail("views", f"Received {name!r}; allowed: {listing(known)}.") for name in unknown],
            )
        if foreign := sorted(name for name in views or () if has_function(known[name])):
            raise InvalidRequest(
                f"Rows of the feature view {foreign[0]!r} come through a function, which the factory does not run.",
                hint="Fill it with Feast's own `feast materialize`, where the function may run; it is read from here "
                "like any other.",
                details=[Detail("views", f"View {name!r} has a function.") for name in foreign],
            )
        for name in views or sorted(known):
            done.append(_materialize_view(store, known[name], end=end, full=full))
        refresh(store)
    return tuple(done)


def _materialize_view(store: Any, view: Any, *, end: datetime, full: bool) -> Materialized:
    if has_function(view):
        return Materialized(view=view.name, since=end, until=end, foreign=True)
    last = view.most_recent_end_time
    start = _utc(last) if last and not full else (end - view.ttl if view.ttl else _BEGINNING)
    if start >= end:
        return Materialized(view=view.name, since=start, until=end, skipped=True)
    with offline(f"materialize {view.name}"), silence():
        store.materialize(start_date=start, end_date=end, feature_views=[view.name])
    return Materialized(view=view.name, since=start, until=end)


def view_keys(store: Any, view: ViewDefinition) -> pd.DataFrame:
    """Return the distinct keys in a view's offline source, named as in the view, (n_keys, n_key_columns)."""
    return _coverage(store, view.in_own_names()).keys


def _coverage(store: Any, view: ViewDefinition) -> _Coverage:
    """Read the keys and moments of a view's source, in whatever offline store it is."""
    import pyarrow.compute as pc

    source = view.view.batch_source
    original = {new: old for old, new in source.field_mapping.items()}
    raw = [original.get(key.name, key.name) for key in view.keys]
    with offline(f"read the source of {view.name}"):
        table = store.provider.offline_store.pull_all_from_table_or_query(
            config=store.config,
            data_source=source,
            join_key_columns=raw,
            feature_name_columns=[],
            timestamp_field=source.timestamp_field,
        ).to_arrow()
    keys = table.group_by(raw).aggregate([]).to_pandas()[raw]
    keys.columns = pd.Index([key.column for key in view.keys])
    if not len(table):
        return _Coverage(None, None, keys)
    ends = pc.min_max(table.column(source.timestamp_field)).as_py()
    return _Coverage(_utc_timestamp(ends["min"]), _utc_timestamp(ends["max"]), keys)


def _absent(
    spine: pd.DataFrame, missing: np.ndarray, *, service: ServiceDefinition, coverage: list[_Coverage]
) -> np.ndarray:
    """Return which rows have keys that no view knows, bool (n_rows,)."""
    absent = np.asarray(missing.all(axis=1))
    for view, covered in zip(service.stored, coverage, strict=True):
        columns = [key.column for key in view.keys]
        # Only rows without any value can be absent, so mostly nothing is left to look up.
        rows = np.flatnonzero(absent)
        known = pd.MultiIndex.from_frame(covered.keys[columns])
        absent[rows] = ~pd.MultiIndex.from_frame(spine.loc[rows, columns]).isin(known)
    return absent


def _nothing_found(
    spine: pd.DataFrame, *, service: ServiceDefinition, coverage: list[_Coverage], absent: np.ndarray
) -> InvalidData:
    columns = [key.column for key in service.keys]
    if absent.all():
        asked = ", ".join(_shown(row) for row in spine[columns].drop_duplicates().head(3).to_dict("records"))
        held = ", ".join(_shown(row) for c in coverage for row in c.keys.head(3).to_dict("records")) or "no rows"
        return InvalidData(
            f"None of the entity table's {len(spine)} rows has keys that the feature service {service.name!r} knows.",
            hint="Check that the table names its entities as the feature store does.",
            details=[Detail(listing(columns), f"The table has {asked}; the store has, for example, {held}.")],
        )
    table = f"{spine[MOMENT].min():%Y-%m-%d} to {spine[MOMENT].max():%Y-%m-%d}"
    held = "; ".join(
        f"{v.name} {c.oldest:%Y-%m-%d} to {c.newest:%Y-%m-%d}, TTL {v.ttl or 'none'}"
        for v, c in zip(service.stored, coverage, strict=True)
        if c.oldest is not None and c.newest is not None
    )
    return InvalidData(
        f"No row of the entity table finds a value of the feature service {service.name!r} at its moment.",
        hint="Values count from their own moment on and until the TTL of their view has passed.",
        details=[Detail("timestamp", f"The table's moments: {table}; the store's: {held}.")],
    )


def _service_entry(service: ServiceDefinition, coverage: dict[str, _Coverage]) -> ServiceEntry:
    views = []
    for view in service.views:
        covered, last = coverage[view.name], view.view.most_recent_end_time
        views.append(
            ViewEntry(
                name=view.name,
                description=view.view.description,
                owner=view.view.owner,
                tags=dict(view.view.tags),
                entities=tuple(key.column for key in view.keys),
                features={feature.column: feature.dtype for feature in view.features},
                ttl_s=view.ttl.total_seconds() if view.ttl else None,
                oldest=covered.oldest.to_pydatetime() if covered.oldest is not None else None,
                newest=covered.newest.to_pydatetime() if covered.newest is not None else None,
                materialized=_utc(last) if last else None,
            )
        )
    for computed in service.on_demand:
        views.append(
            ViewEntry(
                name=computed.name,
                description=computed.view.description,
                owner=computed.view.owner,
                tags=dict(computed.view.tags),
                entities=(),
                features={feature.column: feature.dtype for feature in computed.features},
                computed="pandas" if computed.mode == "pandas" else "python",
            )
        )
    return ServiceEntry(
        name=service.name,
        description=service.service.description,
        owner=service.service.owner,
        tags=dict(service.service.tags),
        definition=service.digest,
        entities=tuple(key.column for key in service.keys),
        request={field.name: field.dtype for field in service.request},
        views=tuple(views),
    )


def _shown(row: dict[Any, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row.items())


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _utc_timestamp(moment: datetime) -> pd.Timestamp:
    return pd.Timestamp(_utc(moment))
