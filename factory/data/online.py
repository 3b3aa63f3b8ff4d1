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
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from factory.data.feature_columns import NUMBERS, FeatureColumn, KeyColumn, canonical, missing
from factory.data.feature_service import ServiceDefinition, StoredRead, resolve
from factory.data.feature_store import LOCK, feast_errors, open_store, refresh
from factory.data.on_demand import RequestField, compute
from factory.errors import MOST_DETAILS, Detail, InvalidData, InvalidRequest, listing, suggest
from factory.settings import Settings

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
        self._settings = settings
        with LOCK:
            self._store = open_store(settings, patient=False)
            refresh(self._store)
            self._definition = resolve(self._store, feature_service, settings=settings)

    @property
    def definition(self) -> ServiceDefinition:
        """The service as it is held: columns, keys, views, digest."""
        return self._definition

    @property
    def entity_keys(self) -> tuple[str, ...]:
        """Names of the keys that each entity row must have."""
        return tuple(key.column for key in self._definition.keys)

    @property
    def request_fields(self) -> tuple[str, ...]:
        """Names of the values that each entity row must bring, for on-demand views."""
        return tuple(field.name for field in self._definition.request)

    def read(self, entity_rows: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> OnlineFeatures:
        """Return the stored features of a batch of entities, read in one call; :meth:`complete` adds computed ones.

        A stored feature that only others are computed from is in it too, as ``view:feature``.

        Args:
            entity_rows: One mapping of key name to value for each row, (n_rows,); with the values that the row
                itself brings, where on-demand views are computed from some.
            now: Moment at which ages are judged; default: this one.

        Raises:
            InvalidRequest: a row lacks a key or a value, has an unknown one or one of the wrong type; all are named.
            ServiceFault: the online store cannot be read.
        """
        definition, now = self._definition, now or datetime.now(UTC)
        rows = entity_columns(entity_rows, definition.keys, definition.request)
        first, *others = definition.reads
        read = read_views(self._store, first, rows, now=now)
        for other in others:
            more = read_views(self._store, other, rows, now=now)
            read.values.update(more.values)
            read.event_timestamps.update(more.event_timestamps)
            read.status.update(more.status)
        return read

    def complete(self, read: OnlineFeatures, entity_rows: Sequence[Mapping[str, Any]]) -> OnlineFeatures:
        """Return the service's features: those of it that were read, and those of its on-demand views.

        Args:
            read: What :meth:`read` gave for the rows; values may be others by now, which counts.
            entity_rows: The rows.

        Raises:
            InvalidData: a value that was put in place of a stored one is not of its type.
            SystemFault: an on-demand view cannot be computed; it is named.
        """
        definition = self._definition
        if not definition.on_demand:
            return read
        columns: dict[str, np.ndarray] = {}
        for item in {item.column: item for view in definition.on_demand for item in view.inputs}.values():
            values = [row[item.column] for row in entity_rows] if item.is_request else read.values[item.column]
            try:
                columns[item.column] = canonical(values, item.dtype)
            except ValueError as error:
                raise InvalidData(
                    f"{item.column!r} is {error}; it is of type {item.dtype}.",
                    hint="Send values of that type, or leave them out: the store's count then.",
                    details=[Detail(item.column, f"Received {error}; this feature is of type {item.dtype}.")],
                ) from error
        computed = compute(definition.on_demand, columns, len(entity_rows))
        none = np.full(len(entity_rows), np.datetime64("NaT"), dtype="datetime64[us]")
        features = {**read.values, **computed}
        status = {
            name: np.where(missing(column), CellStatus.MISSING, CellStatus.PRESENT).astype(np.int8)
            for name, column in computed.items()
        }
        return OnlineFeatures(
            values={name: features[name] for name in definition.columns},
            event_timestamps={name: read.event_timestamps.get(name, none) for name in definition.columns},
            status={name: status[name] if name in status else read.status[name] for name in definition.columns},
        )

    def refresh(self) -> bool:
        """Read the registry again, for a background task; return whether the service's definition changed.

        Raises:
            InvalidRequest: the service is gone; the reader keeps what it holds.
            ServiceFault: the registry cannot be read; the reader keeps what it holds.
        """
        with LOCK:
            refresh(self._store)
            fresh = resolve(self._store, self._definition.name, settings=self._settings)
        changed = fresh.digest != self._definition.digest
        self._definition = fresh
        return changed


def entity_columns(
    entity_rows: Sequence[Mapping[str, Any]], keys: Sequence[KeyColumn], request: Sequence[RequestField] = ()
) -> dict[str, list[Any]]:
    """Return entity rows as columns of key values, checked against the service's keys and what rows must bring.

    Raises:
        InvalidRequest: naming each problem (the first twenty) with its row.
    """
    names = [key.column for key in keys]
    allowed = [*names, *(field.name for field in request)]
    details: list[Detail] = []
    if not entity_rows:
        details.append(Detail("entities", "At least one entity is needed."))
    for number, row in enumerate(entity_rows):
        details += _row_problems(row, keys, request, allowed, where=f"entities[{number}]")
        if len(details) >= MOST_DETAILS:
            break
    if details:
        raise InvalidRequest(
            "The entities are not valid: " + " ".join(f"{d.field}: {d.message}" for d in details[:3]),
            hint=f"Each entity is an object with the keys {listing(names)}"
            + (f" and the values {listing(allowed[len(names) :])}." if request else "."),
            details=details[:MOST_DETAILS],
        )
    return {name: [row[name] for row in entity_rows] for name in names}


def _row_problems(
    row: Any, keys: Sequence[KeyColumn], request: Sequence[RequestField], names: list[str], *, where: str
) -> list[Detail]:
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
    for field in request:
        at = f"{where}.{field.name}"
        if field.name not in row:
            needed = f"This value is required for the on-demand views {listing(field.views)}; null stands for none."
            problems.append(Detail(at, needed))
            continue
        try:
            canonical([row[field.name]], field.dtype)
        except ValueError as error:
            problems.append(Detail(at, f"Received {error}; this value is of type {field.dtype}."))
    return problems


def read_views(store: Any, asked: StoredRead, rows: Mapping[str, list[Any]], *, now: datetime) -> OnlineFeatures:
    """Read features of entity rows and judge the age of each cell.

    Args:
        store: Feast's store.
        asked: What is read.
        rows: Key column to values, each (n_rows,).
        now: Moment at which ages are judged.
    """
    keys = {name: rows[column] for name, column in asked.keys.items()}
    read_once = partial(
        store.get_online_features, features=asked.features, entity_rows=keys, full_feature_names=asked.full_names
    )
    with feast_errors("read online features"):
        try:
            answer = read_once().proto
        except Exception:  # noqa: BLE001 - what is wrong is raised by the second read
            # A connection that the store has closed meanwhile is found out by its use; the next one is new.
            answer = read_once().proto
    vectors = dict(zip(answer.metadata.feature_names.val, answer.results, strict=True))
    read = OnlineFeatures(values={}, event_timestamps={}, status={})
    for view in asked.views:
        of_view = [vectors[asked.answered(view, feature)] for feature in view.features]
        told = [[_told(value) for value in vector.values] for vector in of_view]
        moments, status = _states(of_view, told, ttl=view.ttl, now=now)
        for i, feature in enumerate(view.features):
            read.values[feature.column] = _values(of_view[i], told[i], feature, status[i])
            read.event_timestamps[feature.column] = moments[i]
            read.status[feature.column] = status[i]
    return read


def _states(
    vectors: Sequence[Any], told: Sequence[Sequence[Any]], *, ttl: timedelta | None, now: datetime
) -> tuple[np.ndarray, np.ndarray]:
    """Return event timestamps (datetime64[us]) and states (int8) of the cells of a view, (n_features, n_rows)."""
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    not_found = FieldStatus.NOT_FOUND
    found = np.array([[state != not_found for state in vector.statuses] for vector in vectors], dtype=bool)
    at = [[t.seconds * 1_000_000 + t.nanos // 1000 for t in vector.event_timestamps] for vector in vectors]
    micros = np.array(at, dtype=np.int64)
    moments = micros.view("datetime64[us]")
    empty = np.array([[value is None for value in values] for values in told], dtype=bool)
    # Feast's Redis store tells of an entity that it does not have as of one without values, in 1970.
    moments[~found | (empty & (micros == 0))] = np.datetime64("NaT")
    status = np.where(found & ~empty, CellStatus.PRESENT, CellStatus.MISSING).astype(np.int8)
    if ttl is not None:
        oldest = np.datetime64(now.astimezone(UTC).replace(tzinfo=None) - ttl, "us")
        # As offline: a value counts up to and including the moment at which its TTL ends.
        status[(status == CellStatus.PRESENT) & (moments < oldest)] = CellStatus.STALE
    return moments, status


def _told(value: Any) -> Any:
    """Return what a value of Feast's holds; None where that is nothing, or NaN."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    held = getattr(value, kind)
    return None if kind in ("double_val", "float_val") and math.isnan(held) else held


def _values(vector: Any, told: Sequence[Any], feature: FeatureColumn, status: np.ndarray) -> np.ndarray:
    present = [state == CellStatus.PRESENT for state in status.tolist()]
    if feature.dtype in NUMBERS:
        return np.array([held if there else math.nan for held, there in zip(told, present, strict=True)], dtype=float)
    from feast.type_map import feast_value_type_to_python_type

    column = np.full(len(present), None, dtype=object)
    for row in np.flatnonzero(present):
        column[row] = feast_value_type_to_python_type(vector.values[row])
    return column
