"""Entity rows → a variant's columns, with features from the online store, as the recipe's policy has it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from factory.data.online import CellStatus, OnlineFeatures, OnlineReader
from factory.errors import Detail, FactoryError, InvalidData, InvalidRequest, ServiceFault, UserFault, listing
from factory.settings import Settings
from factory.spec import OnlinePolicy, Variant
from factory.variants.bundle import Bundle
from serve.inputs import EntityRows, NamedColumns, Values

logger = logging.getLogger(__name__)

MOST_LAST = 50_000
"""Entities of a service whose last features are kept, the least recently asked out first."""
_STATES = {CellStatus.MISSING: "missing", CellStatus.STALE: "stale"}


@dataclass(frozen=True)
class FeatureRead:
    """What became of entity rows.

    Attributes:
        columns: The variant's columns.
        cells: How many features were ``missing``, ``stale`` or ``last``: of an earlier read, as the store is away.
    """

    columns: NamedColumns
    cells: Mapping[str, int] = field(default_factory=dict)


class Reads(Protocol):
    """Reads online features, as :class:`FeatureReaders` does."""

    def read(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead:
        """Return the variant's columns for entity rows."""

    def last(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead | None:
        """Return the same with features as they were last read; None where not all were."""

    def warm_up(self, service: str) -> None:
        """Make ready for a feature service."""

    def refresh(self) -> None:
        """Learn what has changed of the feature services that are in use."""


class FeatureReaders:
    """One reader for each feature service, made at the first request that needs it; used from several threads.

    Args:
        settings: Where the feature store is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers: dict[str, OnlineReader] = {}
        self._lock = threading.Lock()
        self._last = _Last()

    def read(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead:
        """Return the variant's columns for entity rows; called in a thread, since stores are read synchronously.

        A row holds the entity's keys, and a value for each column of the variant that is not a feature; a feature that
        it holds counts instead of the store's. An entity or a value that the store does not have, or that is older than
        its view's TTL, is missing, as in training, or refused where the recipe says so. Features of on-demand views
        are computed from that, and from values that the row holds for them.

        Raises:
            InvalidRequest: the variant was not trained on a feature service, or a row has wrong keys or values.
            InvalidData: features are missing or stale, and the recipe refuses that.
            ServiceFault: the online store cannot be read.
            SystemFault: an on-demand view cannot be computed.
        """
        reader, asked = self._asked(entities, variant=variant, bundle=bundle)
        stored = _read(reader, asked)
        if variant.online.store_down == "last":
            self._last.keep(reader.definition.name, _entities_of(asked, reader), stored)
        read = _completed(stored, entities, reader, policy=variant.online, rows=asked)
        cells = {word: n for state, word in _STATES.items() if (n := read.count(state))}
        return FeatureRead(_columns(entities, read.values, bundle=bundle), cells)

    def last(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead | None:
        """Return what :meth:`read` would have with features as they were last read; None where not all were.

        It only looks into memory, so it may be called in an event loop.

        Raises:
            InvalidData: features are missing or stale, and the recipe refuses that.
        """
        reader = self._readers.get(variant.feature_service or "")
        if reader is None:
            return None
        asked = _keys(entities, reader, bundle=bundle)
        known = self._last.of(reader.definition.name, _entities_of(asked, reader))
        if known is None:
            return None
        read = _completed(known, entities, reader, policy=variant.online, rows=asked)
        columns = _columns(entities, read.values, bundle=bundle)
        return FeatureRead(columns, {"last": len(asked) * len(read.values)})

    def warm_up(self, service: str) -> None:
        """Make a service's reader before somebody asks for it: importing Feast takes seconds.

        Raises:
            ServiceFault: the store or the service is not there.
        """
        self._reader(service)

    def refresh(self) -> None:
        """Read the definitions of the services that are in use again; calls go on with those that are held meanwhile.

        Raises:
            ServiceFault: the registry cannot be read.
        """
        for service, reader in list(self._readers.items()):
            try:
                changed = reader.refresh()
            except UserFault as error:
                logger.warning("feature service %s: what is held of it counts: %s", service, error)
                continue
            if changed:
                # What was read before may lack features that it has now.
                self._last.forget(service)
                logger.info("feature service %s has changed", service)

    def _asked(
        self, entities: EntityRows, *, variant: Variant, bundle: Bundle
    ) -> tuple[OnlineReader, list[dict[str, object]]]:
        """Return who reads, and the keys of each row."""
        if variant.feature_service is None:
            names = ", ".join(column.name for column in bundle.columns)
            raise InvalidRequest(
                f"{variant.name}/{variant.version} was not trained on a feature service, so it knows no entities.",
                hint=f'Send its columns with "dataframe_records": {names}.',
                details=[Detail("entities", "This variant takes columns.")],
            )
        reader = self._reader(variant.feature_service)
        return reader, _keys(entities, reader, bundle=bundle)

    def _reader(self, service: str) -> OnlineReader:
        with self._lock:
            if service not in self._readers:
                try:
                    self._readers[service] = OnlineReader(self._settings, service)
                except UserFault as error:
                    # What is wrong with the store is no fault of a caller's.
                    raise ServiceFault(error.message, hint=error.hint, details=error.details) from error
            return self._readers[service]


class _Last:
    """Features of entities as the store had them last, by service; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, OrderedDict[Hashable, dict[str, _Cell]]] = {}

    def keep(self, service: str, rows: Sequence[Mapping[str, object]], read: OnlineFeatures) -> None:
        """Remember the features of some entities."""
        with self._lock:
            known = self._known.setdefault(service, OrderedDict())
            for i, row in enumerate(rows):
                known[_key(row)] = {
                    name: (column[i], int(read.status[name][i]), read.event_timestamps[name][i])
                    for name, column in read.values.items()
                }
                known.move_to_end(_key(row))
            while len(known) > MOST_LAST:
                known.popitem(last=False)

    def forget(self, service: str) -> None:
        """Forget the features of a service."""
        with self._lock:
            self._known.pop(service, None)

    def of(self, service: str, rows: Sequence[Mapping[str, object]]) -> OnlineFeatures | None:
        """Return the features of some entities; None where one of them is not known."""
        with self._lock:
            known = self._known.get(service, OrderedDict())
            found = [known.get(_key(row)) for row in rows]
        kept = [one for one in found if one is not None]
        if not kept or len(kept) < len(rows):
            return None
        read = OnlineFeatures(values={}, event_timestamps={}, status={})
        for name in kept[0]:
            values, states, moments = zip(*(one[name] for one in kept), strict=True)
            # As they came: of a number that is missing NaN, of anything else None.
            number = all(isinstance(value, float) for value in values)
            read.values[name] = np.array(values, dtype=np.float64 if number else object)
            read.status[name] = np.array(states, dtype=np.int8)
            read.event_timestamps[name] = np.array(moments, dtype="datetime64[us]")
        return read


_Cell = tuple[object, int, np.datetime64]
"""Value, state and moment."""


def _key(row: Mapping[str, object]) -> Hashable:
    return tuple(sorted((name, repr(value)) for name, value in row.items()))


def _keys(entities: EntityRows, reader: OnlineReader, *, bundle: Bundle) -> list[dict[str, object]]:
    """Return the keys of each row, and what is neither a key nor a column: the reader refuses it."""
    known = {column.name for column in bundle.columns} | set(reader.definition.columns)
    keys = (*reader.entity_keys, *reader.request_fields)
    return [{k: v for k, v in row.items() if k in keys or k not in known} for row in entities.rows]


def _entities_of(rows: list[dict[str, object]], reader: OnlineReader) -> list[dict[str, object]]:
    """Return the entities of rows, without the values that rows bring for on-demand views."""
    if not reader.request_fields:
        return rows
    return [{name: row.get(name) for name in reader.entity_keys} for row in rows]


def _completed(
    stored: OnlineFeatures,
    entities: EntityRows,
    reader: OnlineReader,
    *,
    policy: OnlinePolicy,
    rows: list[dict[str, object]],
) -> OnlineFeatures:
    """Return all features of entity rows: on-demand views see what was sent, and nothing that the recipe refuses.

    Raises:
        InvalidData: features are missing or stale, and the recipe refuses that; or one was sent that has another type.
        SystemFault: an on-demand view cannot be computed.
    """
    read = _sent_over(stored, entities)
    _require(read, policy, rows=rows)
    if not reader.definition.on_demand:
        return read
    read = _sent_over(reader.complete(read, rows), entities)
    _require(read, policy, rows=rows)
    return read


def _read(reader: OnlineReader, rows: list[dict[str, object]]) -> OnlineFeatures:
    try:
        return reader.read(rows)
    except FactoryError:
        raise
    except Exception as error:
        # Every online store raises its own driver's errors, and Feast hands them on as they are.
        raise ServiceFault(
            f"The online store could not be read: {type(error).__name__}: {error}",
            hint="Check feature_store.yaml and that the online store answers; `factory doctor` looks.",
        ) from error


def _sent_over(read: OnlineFeatures, entities: EntityRows) -> OnlineFeatures:
    """Return features with those in place of the store's that were sent."""
    values, status = dict(read.values), dict(read.status)
    for name in values:
        sent = [i for i, row in enumerate(entities.rows) if name in row]
        if sent:
            values[name], status[name] = values[name].astype(object), status[name].copy()
            for i in sent:
                values[name][i] = entities.rows[i][name]
            status[name][sent] = CellStatus.PRESENT
    return replace(read, values=values, status=status)


def _require(read: OnlineFeatures, policy: OnlinePolicy, *, rows: Sequence[Mapping[str, object]]) -> None:
    """Refuse features that are not as they should be, where the recipe does.

    Raises:
        InvalidData: some are not; the first rows with their features are named.
    """
    refused = {
        state: word
        for state, word, what in (
            (CellStatus.MISSING, "missing", policy.missing),
            (CellStatus.STALE, "stale", policy.stale),
        )
        if what == "refuse"
    }
    details = []
    for state, word in refused.items():
        wrong = {name: np.flatnonzero(states == state) for name, states in read.status.items()}
        for i in sorted({int(i) for found in wrong.values() for i in found})[:20]:
            names = listing(name for name, found in wrong.items() if i in found)
            details.append(Detail(f"entities[{i}]", f"{dict(rows[i])}: {word}: {names}."))
    if details:
        raise InvalidData(
            "Features are not as this variant's recipe wants them: "
            + " ".join(f"{d.field}: {d.message}" for d in details[:3]),
            hint="Fill the online store (`factory features materialize`), or send the columns themselves.",
            details=details,
        )


def _columns(entities: EntityRows, values: Mapping[str, np.ndarray], *, bundle: Bundle) -> NamedColumns:
    """Return the variant's columns: features as they were read, the others as they were sent."""
    columns: dict[str, Values] = {
        column.name: values[column.name] if column.name in values else [row.get(column.name) for row in entities.rows]
        for column in bundle.columns
        if column.name in values or any(column.name in row for row in entities.rows)
    }
    return NamedColumns(columns)
