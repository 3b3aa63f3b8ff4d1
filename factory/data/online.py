"""Features as they are now, for a server: one batch in, arrays and the state of each cell out.

Feast reports a row as present however old it is.  Training never saw such a
value: the point-in-time join leaves it out once the view's TTL has passed.  So
the age is judged here, by the same rule, and a stale value is handed out as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import pandas as pd

from factory.data.feature_service import FeatureColumn, KeyColumn, ServiceDefinition, ViewDefinition, resolve
from factory.data.feature_store import LOCK, feast_errors, open_store, refresh
from factory.errors import MOST_DETAILS, Detail, InvalidRequest, listing, suggest
from factory.settings import Settings

_NUMBERS = {"Float32", "Float64", "Int32", "Int64", "Bool"}
_ALLOWED: dict[str, tuple[type, ...]] = {"String": (str,), "Int64": (int, np.integer), "Int32": (int, np.integer)}


class CellStatus(IntEnum):
    """State of one feature of one entity."""

    PRESENT = 0
    MISSING = 1
    """The store has no value: an unknown entity, or none was recorded."""
    STALE = 2
    """The store's value is older than the view's TTL."""


@dataclass(frozen=True)
class OnlineFeatures:
    """A batch of entities' features; every array is (n_rows,) and in the order of the asked rows.

    Attributes:
        values: By feature column: float64 with NaN for numbers and booleans, object with None for the rest.
            Missing and stale cells hold no value.
        event_timestamps: By feature column: datetime64[us] in UTC, NaT where the store has no row.
        status: By feature column: int8, values of :class:`CellStatus`.
    """

    values: dict[str, np.ndarray]
    event_timestamps: dict[str, np.ndarray]
    status: dict[str, np.ndarray]

    def frame(self) -> pd.DataFrame:
        """Return the values as a data frame, (n_rows, n_features)."""
        return pd.DataFrame(self.values)

    def count(self, status: CellStatus) -> int:
        """Return how many cells are in that state."""
        return int(sum((column == status).sum() for column in self.status.values()))


class OnlineReader:
    """Reads one feature service for a server; made once, then used from many threads.

    Making it imports Feast and opens the registry (seconds); a read costs about what the online store takes.

    Args:
        settings: Where the store is.
        feature_service: Name of the service.

    Raises:
        InvalidRequest: the service does not exist.
        Conflict: the repository is not applied.
        ServiceFault: the store cannot be opened.
    """

    def __init__(self, settings: Settings, feature_service: str) -> None:
        with LOCK:
            self._store = open_store(settings)
            refresh(self._store)
            self._definition = resolve(self._store, feature_service)

    @property
    def definition(self) -> ServiceDefinition:
        """The service as it is held: columns, keys, views, digest."""
        return self._definition

    @property
    def entity_keys(self) -> tuple[str, ...]:
        """Names of the keys that each entity row must have."""
        return tuple(key.column for key in self._definition.keys)

    def read(self, entity_rows: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> OnlineFeatures:
        """Return the features of a batch of entities, read in one call.

        Args:
            entity_rows: One mapping of key name to value for each row, (n_rows,).
            now: Moment at which ages are judged; default: this one.

        Raises:
            InvalidRequest: a row lacks a key, has an unknown one or a value of the wrong type; all are named.
            ServiceFault: the online store cannot be read.
        """
        definition = self._definition
        rows = entity_columns(entity_rows, definition.keys)
        return read_views(
            self._store,
            definition.service,
            definition.views,
            rows,
            full_names=definition.full_names,
            now=now or datetime.now(UTC),
        )

    def refresh(self) -> bool:
        """Read the registry again, for a background task; return whether the service's definition changed.

        Raises:
            InvalidRequest: the service is gone; the reader keeps what it holds.
            ServiceFault: the registry cannot be read; the reader keeps what it holds.
        """
        with LOCK:
            refresh(self._store)
            fresh = resolve(self._store, self._definition.name)
        changed = fresh.digest != self._definition.digest
        self._definition = fresh
        return changed


def entity_columns(entity_rows: Sequence[Mapping[str, Any]], keys: Sequence[KeyColumn]) -> dict[str, list[Any]]:
    """Return entity rows as columns of key values, checked against the service's keys.

    Raises:
        InvalidRequest: naming each problem (the first twenty) with its row.
    """
    names = [key.column for key in keys]
    details: list[Detail] = []
    if not entity_rows:
        details.append(Detail("entities", "At least one entity is needed."))
    for number, row in enumerate(entity_rows):
        details += _row_problems(row, keys, names, where=f"entities[{number}]")
        if len(details) >= MOST_DETAILS:
            break
    if details:
        raise InvalidRequest(
            "The entities are not valid: " + " ".join(f"{d.field}: {d.message}" for d in details[:3]),
            hint=f"Each entity is an object with the keys {listing(names)}.",
            details=details[:MOST_DETAILS],
        )
    return {name: [row[name] for row in entity_rows] for name in names}


def _row_problems(row: Any, keys: Sequence[KeyColumn], names: list[str], *, where: str) -> list[Detail]:
    if not isinstance(row, Mapping):
        return [Detail(where, f"Received {row!r}; an entity is an object with the keys {listing(names)}.")]
    unknown = [name for name in row if name not in names]
    problems = [
        Detail(f"{where}.{name}", f"There is no such key.{suggest(str(name), names)} Allowed: {listing(names)}.")
        for name in unknown[:MOST_DETAILS]
    ]
    for key in keys:
        if key.column not in row:
            problems.append(Detail(f"{where}.{key.column}", "This entity key is required."))
            continue
        value, allowed = row[key.column], _ALLOWED.get(key.dtype)
        if value is None or (allowed and (not isinstance(value, allowed) or isinstance(value, bool))):
            problems.append(Detail(f"{where}.{key.column}", f"Received {value!r}; this key is of type {key.dtype}."))
    return problems


def read_views(
    store: Any,
    features: Any,
    views: Sequence[ViewDefinition],
    rows: dict[str, list[Any]],
    *,
    full_names: bool,
    now: datetime,
) -> OnlineFeatures:
    """Read features of entity rows and judge the age of each cell.

    Args:
        store: Feast's store.
        features: A feature service or a list of ``view:feature``.
        views: The views that the features come from.
        rows: Key name to values, each (n_rows,).
        full_names: Whether Feast is to call features ``view__feature``.
        now: Moment at which ages are judged.
    """
    with feast_errors("read online features"):
        answer = store.get_online_features(features=features, entity_rows=rows, full_feature_names=full_names).proto
    vectors = dict(zip(answer.metadata.feature_names.val, answer.results, strict=True))
    read = OnlineFeatures(values={}, event_timestamps={}, status={})
    for view in views:
        for feature in view.features:
            moments, status = _states(vectors[feature.column], ttl=view.ttl, now=now)
            read.values[feature.column] = _values(vectors[feature.column], feature, status)
            read.event_timestamps[feature.column] = moments
            read.status[feature.column] = status
    return read


def _states(vector: Any, *, ttl: timedelta | None, now: datetime) -> tuple[np.ndarray, np.ndarray]:
    """Return event timestamps (datetime64[us]) and states (int8) of a feature's cells."""
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    found = np.array([s != FieldStatus.NOT_FOUND for s in vector.statuses], dtype=bool)
    micros = np.array([t.seconds * 1_000_000 + t.nanos // 1000 for t in vector.event_timestamps], dtype=np.int64)
    moments = micros.view("datetime64[us]")
    empty = np.array([_is_empty(v) for v in vector.values], dtype=bool)
    # Feast's Redis store tells of an entity that it does not have as of one without values, in 1970.
    moments[~found | (empty & (micros == 0))] = np.datetime64("NaT")
    status = np.where(found & ~empty, CellStatus.PRESENT, CellStatus.MISSING).astype(np.int8)
    if ttl is not None:
        oldest = np.datetime64(now.astimezone(UTC).replace(tzinfo=None) - ttl, "us")
        # As offline: a value counts up to and including the moment at which its TTL ends.
        status[(status == CellStatus.PRESENT) & (moments < oldest)] = CellStatus.STALE
    return moments, status


def _is_empty(value: Any) -> bool:
    kind = value.WhichOneof("val")
    if kind in ("double_val", "float_val"):
        number = getattr(value, kind)
        return math.isnan(number)
    return kind is None or kind == "null_val"


def _values(vector: Any, feature: FeatureColumn, status: np.ndarray) -> np.ndarray:
    from feast.type_map import feast_value_type_to_python_type

    number = feature.dtype in _NUMBERS
    column = np.full(len(status), np.nan if number else None, dtype=np.float64 if number else object)
    for row in np.flatnonzero(status == CellStatus.PRESENT):
        value = vector.values[row]
        column[row] = getattr(value, value.WhichOneof("val")) if number else feast_value_type_to_python_type(value)
    return column
