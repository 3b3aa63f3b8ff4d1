"""Whether the online store tells what the offline store tells, cell by cell, as of the same moment.

The moment of a view is the one up to which it was materialized: what arrived
later is a matter of freshness, not of truth.  A difference means a lost or
failed materialization, rows that arrived late, or a value someone wrote online.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from factory.data.feature_service import ServiceDefinition, StoredRead, ViewDefinition, resolve
from factory.data.feature_store import LOCK, open_store, refresh
from factory.data.features import view_keys
from factory.data.historical import historical
from factory.data.online import read_views
from factory.errors import Conflict, Detail, listing
from factory.settings import Settings
from factory.spec import Document

_TOLERANCE = 1e-6
"""Relative. A 64-bit source served as Float32 differs by 6e-8."""


class CellDifference(Document):
    """One cell that differs."""

    entity: dict[str, str]
    view: str
    feature: str
    online: float | str | None
    offline: float | str | None


class CheckedView(Document):
    """One view's part of a check."""

    view: str
    moment: datetime = Field(description="Moment as of which both stores were asked.")
    entities: int
    cells: int
    differences: int


class FeatureCheck(Document):
    """Result of :func:`check`."""

    feature_service: str
    views: tuple[CheckedView, ...]
    differences: tuple[CellDifference, ...] = Field(description="The first hundred.")

    @property
    def cells(self) -> int:
        """Cells that were compared."""
        return sum(view.cells for view in self.views)

    @property
    def n_differences(self) -> int:
        """Cells that differ."""
        return sum(view.differences for view in self.views)

    @property
    def ok(self) -> bool:
        """Whether no cell differs."""
        return self.n_differences == 0


def check(settings: Settings, feature_service: str, *, sample: int = 1000, seed: int = 0) -> FeatureCheck:
    """Compare the online store with the offline store for a sample of entities.

    Entities are sampled from the offline source; one that exists online only is not found. Rows that tie (same
    key, event and created timestamp) may differ, since no store decides a tie the same way twice.

    Args:
        settings: Where the store is.
        feature_service: Name of the service.
        sample: Entities of each view at most.
        seed: Decides which entities.

    Raises:
        InvalidRequest: the service does not exist.
        Conflict: the repository is not applied, or a view was never materialized.
        ServiceFault: a store cannot be read.
    """
    with LOCK:
        store = open_store(settings)
        refresh(store)
        service = resolve(store, feature_service, settings=settings)
        _require_materialized(service)
        checked, differences = [], []
        for view in service.stored:
            result, found = _check_view(store, view, sample=sample, seed=seed)
            checked.append(result)
            differences += found
    return FeatureCheck(feature_service=service.name, views=tuple(checked), differences=tuple(differences[:100]))


def _require_materialized(service: ServiceDefinition) -> None:
    never = [view.name for view in service.stored if view.view.most_recent_end_time is None]
    if never:
        raise Conflict(
            f"The online store was never filled for {listing(never)}.",
            hint="Run `factory features materialize` first.",
            details=[Detail("feature_service", f"View {name!r} was never materialized.") for name in never],
        )


def _check_view(
    store: Any, view: ViewDefinition, *, sample: int, seed: int
) -> tuple[CheckedView, list[CellDifference]]:
    moment = view.view.most_recent_end_time
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    keys = view_keys(store, view)
    names = [key.name for key in view.keys]
    keys = keys.sort_values(names, ignore_index=True)
    if len(keys) > sample:
        chosen = np.random.default_rng(seed).choice(len(keys), size=sample, replace=False)
        keys = keys.iloc[np.sort(chosen)].reset_index(drop=True)
    found: list[CellDifference] = []
    if len(keys):
        # Asked by reference, so that a service's aliases play no part: both answer in the view's own names.
        plain = view.in_own_names()
        asked = StoredRead.by_reference([plain])
        rows = {name: keys[name].tolist() for name in names}
        online = read_views(store, asked, rows, now=moment)
        spine = keys.assign(event_timestamp=pd.Timestamp(moment).as_unit("us"))
        offline = historical(store, asked, spine)
        for feature in plain.features:
            found += _differences(keys, view.name, feature.name, online.values[feature.name], offline[feature.name])
    return (
        CheckedView(
            view=view.name,
            moment=moment,
            entities=len(keys),
            cells=len(keys) * len(view.features),
            differences=len(found),
        ),
        found,
    )


def _differences(
    keys: pd.DataFrame, view: str, feature: str, online: np.ndarray, offline: pd.Series
) -> list[CellDifference]:
    if online.dtype == object:
        left, right = pd.Series(online, dtype=object), offline.astype(object)
        both_missing = (left.isna() & right.isna()).to_numpy()
        equal = both_missing | (left.map(str) == right.map(str)).to_numpy()
    else:
        numbers = pd.to_numeric(offline).to_numpy(dtype=np.float64, na_value=np.nan)
        equal = np.isclose(online, numbers, rtol=_TOLERANCE, atol=0, equal_nan=True)
    return [
        CellDifference(
            entity={str(name): str(value) for name, value in keys.iloc[row].items()},
            view=view,
            feature=feature,
            online=_cell(online[row]),
            offline=_cell(offline.iloc[row]),
        )
        for row in np.flatnonzero(~equal)
    ]


def _cell(value: Any) -> float | str | None:
    if isinstance(value, (int, float, np.number, np.bool_)):
        return None if np.isnan(value) else float(value)
    return None if value is None or value is pd.NA or value is pd.NaT else str(value)
