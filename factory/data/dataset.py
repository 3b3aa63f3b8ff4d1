"""A table with a target, typed, checked and named by its content.

Whatever door the rows came through, from here on they are a :class:`Dataset`:
canonical feature columns, a clean target, and the columns that are no features
(keys, timestamps, what was left out) kept aside for splits and segments.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from factory.data.columns import FORMATS, clean, column_digest, infer_type, text_of
from factory.data.tables import read_table, write_table
from factory.data.target import read_target, read_weights, target_known, weighted_median
from factory.errors import Detail, InvalidData, NotFound, listing, suggest
from factory.spec import ColumnType, DatasetRef, Task

__all__ = ["Dataset", "FeatureLineage", "from_frame", "infer_types", "read_table", "table_digest", "write_table"]

MIN_ROWS = 20
"""Fewer rows cannot be split into folds whose scores mean anything."""


class FeatureLineage(BaseModel):
    """Where joined features came from. Not a Document, since its digest is the service definition's.

    Attributes:
        service: Name of the Feast feature service.
        digest: Digest of the service's definition.
        views: Feature views that it draws on.
        on_demand: Digest of the function's text of each on-demand view.
        interval: First and last event timestamp of the views' data that was joined, None without data.
        entity_keys: Columns that identify the entities.
        missing: Rows with a missing value, by feature.
        rows_with_missing: Rows with at least one missing feature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str
    digest: str
    views: tuple[str, ...]
    on_demand: dict[str, str] = Field(default_factory=dict)
    interval: tuple[datetime, datetime] | None
    entity_keys: tuple[str, ...]
    missing: dict[str, int]
    rows_with_missing: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to learn from.

    Attributes:
        frame: Feature columns in canonical form, (n_rows, n_columns), RangeIndex.
        y: int64 class indices (n_rows,), or float64 targets (n_rows,).
        task: What is predicted.
        classes: Class labels in index order; empty for regression.
        types: Type of each column of ``frame``.
        digest: SHA-256 of rows, schema and target; the same whatever the file format.
        target: Name of the target column.
        dropped_rows: Rows left out because their target was missing.
        features: Lineage of joined features; None for a plain table.
        context: Columns that are no features, aligned with ``frame``: entity keys, timestamp, what was left out.
        weights: How much each row counts, above 0, float64 (n_rows,); None where all count the same.
        weightless_rows: Rows left out because their weight was 0.
        numbered: Whether the table has the classes as numbers or truth values rather than as text.
    """

    frame: pd.DataFrame
    y: np.ndarray
    task: Task
    classes: tuple[str, ...]
    types: dict[str, ColumnType]
    digest: str
    target: str
    dropped_rows: int
    features: FeatureLineage | None
    context: pd.DataFrame
    weights: np.ndarray | None = None
    weightless_rows: int = 0
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, index: np.ndarray) -> Dataset:
        """Return the rows at integer positions or of a boolean mask; classes and types stay those of the whole.

        The digest becomes that of this selection from this dataset.
        """
        rows = np.flatnonzero(index) if index.dtype == bool else index
        selection = hashlib.sha256(self.digest.encode() + np.ascontiguousarray(rows, dtype="<i8").tobytes())
        return replace(
            self,
            frame=self.frame.iloc[rows].reset_index(drop=True),
            y=self.y[rows],
            digest=selection.hexdigest(),
            context=self.context.iloc[rows].reset_index(drop=True),
            weights=None if self.weights is None else self.weights[rows],
        )

    def weight(self, index: np.ndarray | None = None) -> np.ndarray | None:
        """Return the weights of the rows at integer positions, of all if None, scaled to a mean of 1.

        None where all count the same.
        """
        if self.weights is None:
            return None
        chosen = self.weights if index is None else self.weights[index]
        return chosen / chosen.mean() if len(chosen) else chosen

    def constant(self, n_rows: int, *, of: np.ndarray | None = None, median: bool = False) -> np.ndarray:
        """Return what a model that knows no feature predicts for ``n_rows`` rows, by weight.

        Args:
            n_rows: How often.
            of: Integer positions of the rows that it learned from; all if None.
            median: Whether a regression's is the median.

        Returns:
            The mean, or median, of the target (n_rows,), or the shares of the classes (n_rows, n_classes).
        """
        learned = np.arange(len(self.y)) if of is None else of
        y, weight = self.y[learned], self.weight(learned)
        if self.task is Task.REGRESSION:
            return np.full(n_rows, (weighted_median if median else np.average)(y, weights=weight))
        shares = np.bincount(y, weights=weight, minlength=len(self.classes))
        return np.tile(shares / shares.sum(), (n_rows, 1))

    @property
    def memory_mb(self) -> float:
        """What features and context take in memory; texts are estimated by a thousand rows of each column."""
        parts = (self.frame, self.context)
        return sum(_bytes_of(part[name]) for part in parts for name in part.columns) / 1e6

    def without(self, columns: Collection[str]) -> Dataset:
        """Return the dataset with some features moved to ``context``; the data is the same, and so is the digest."""
        moved = [c for c in self.frame.columns if c in set(columns)]
        return replace(
            self,
            frame=self.frame.drop(columns=moved),
            types={c: t for c, t in self.types.items() if c not in moved},
            context=pd.concat([self.context, self.frame[moved]], axis=1),
        )

    def column(self, name: str, *, field: str | None = None) -> pd.Series:
        """Return a column for splitting or segmenting, feature or not, (n_rows,).

        Args:
            name: Its name.
            field: Of the request, which names it.

        Raises:
            NotFound: there is no such column.
        """
        for part in (self.frame, self.context):
            if name in part.columns:
                return part[name]
        known = [*self.frame.columns, *self.context.columns]
        message = f"The dataset has no column {name!r}.{suggest(name, known)}"
        raise NotFound(
            f"{field}: {message}" if field else message,
            hint=f"Its columns: {listing(known)}.",
            details=[Detail(field or name, f"There is no column {name!r}.")],
        )


def _bytes_of(series: pd.Series) -> float:
    """Return what a column takes; equal texts are one object, as :func:`factory.data.columns.as_text` makes them."""
    values = series.to_numpy()
    if values.dtype != object:
        return float(values.nbytes)
    sample = values[:: max(1, len(values) // 1000)].tolist()
    distinct = {id(value): sys.getsizeof(value) for value in sample}
    return values.nbytes + sum(distinct.values()) * len(values) / max(len(sample), 1)


def infer_types(frame: pd.DataFrame) -> dict[str, ColumnType]:
    """Return the type of each column, as inferred from its values."""
    return {str(name): infer_type(frame[name]) for name in frame.columns}


def table_digest(frame: pd.DataFrame) -> str:
    """Return SHA-256 of a raw table's rows and schema, the same whatever file format it was read from."""
    cleaned = {str(name): clean(frame[name])[:2] for name in frame.columns}
    return _digest((name, kind, series) for name, (series, kind) in cleaned.items())


def _digest(columns: Iterable[tuple[str, ColumnType | Task, pd.Series]]) -> str:
    digest = hashlib.sha256()
    for name, kind, series in columns:
        digest.update(f"{len(name)}:{name}:{kind.value}:{len(series)}:".encode() + column_digest(series))
    return digest.hexdigest()


def from_frame(
    frame: pd.DataFrame,
    ref: DatasetRef,
    *,
    features: FeatureLineage | None = None,
    aside: Collection[str] = (),
    least_rows: int = MIN_ROWS,
) -> Dataset:
    """Check, type and clean a frame.

    Args:
        frame: Rows with the target and the features, (n_rows, n_columns).
        ref: What the request says about them: target, task, types, columns to leave out or to keep.
        features: Lineage of joined features.
        aside: Further columns that are no features (entity keys, timestamp).
        least_rows: Fewer rows are refused.

    Raises:
        InvalidData: what makes the table unusable, every problem with the column it is about.
    """
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    _check_names(frame, ref)
    used = target_known(frame, ref)
    dropped = int(len(used) - used.sum())
    weights: np.ndarray | None = None
    problems: list[Detail] = []
    if ref.weights is not None:
        weights, problems = read_weights(frame[ref.weights], field="dataset.weights", known=used)
    if weights is not None:
        used = used & (weights > 0)
    n_rows, weightless = int(used.sum()), int(len(used) - dropped - used.sum())
    if n_rows < least_rows:
        raise InvalidData(
            f"The table has {n_rows} usable rows; at least {least_rows} are needed."
            + (f" {dropped} more have no target." if dropped else "")
            + (f" {weightless} more have weight 0." if weightless else "")
            + "".join(f" {d.message}" for d in problems),
            hint="Give more rows.",
            details=[Detail("dataset", f"{n_rows} rows, at least {least_rows} needed"), *problems],
        )
    frame = frame[used].reset_index(drop=True) if n_rows < len(used) else frame.reset_index(drop=True)
    weights = None if weights is None else weights[used]
    task, classes, y, target_problems = read_target(frame[ref.target], ref)
    problems += target_problems
    left = {*ref.drop, *aside, *((ref.weights,) if ref.weights else ())}
    names = [c for c in frame.columns if c != ref.target]
    columns, types, formats = _clean_all(frame[[c for c in names if c not in left]], ref)
    problems += _infinite(columns)
    if not problems and not _any_useful(columns, types):
        problems.append(Detail("dataset", _USELESS.format(listing(columns) if columns else "there are none")))
    if problems:
        raise InvalidData(
            "The table cannot be used: " + " ".join(f"{d.field}: {d.message}" for d in problems),
            hint=(
                "Mend the target or the weights, or name another column as target."
                if {d.field for d in problems} <= {ref.target, "dataset.weights"}
                else "Mend the named columns, or leave them out with 'drop'."
            ),
            details=problems,
        )
    features_frame = pd.DataFrame(columns, index=pd.RangeIndex(len(y)))
    features_frame.attrs[FORMATS] = formats
    parts = [(name, types[name], series) for name, series in columns.items()]
    if weights is not None:
        parts.append(("weights", ColumnType.NUMERIC, pd.Series(weights)))
    labels = pd.Series(np.array(classes, dtype=object)[y] if classes else y)
    return Dataset(
        frame=features_frame,
        y=y,
        task=task,
        classes=classes,
        types=types,
        digest=_digest([*parts, (ref.target, task, labels)]),
        target=ref.target,
        dropped_rows=dropped,
        features=features,
        context=_context(frame[[c for c in names if c in left]], ref),
        weights=weights,
        weightless_rows=weightless,
        numbered=bool(classes) and not any(isinstance(value, str) for value in frame[ref.target].tolist()),
    )


_USELESS = (
    "No column says anything about the target: every feature is constant, missing throughout or an identifier ({})."
)


def _check_names(frame: pd.DataFrame, ref: DatasetRef) -> None:
    """Names in the table and names in the request: all that do not fit, at once."""
    names = list(frame.columns)
    problems = [Detail(n, f"{k} columns have this name.") for n, k in Counter(names).items() if k > 1]
    asked: list[tuple[str, str]] = [("dataset.target", ref.target)]
    asked += [("dataset.weights", ref.weights)] if ref.weights is not None else []
    asked += [(f"dataset.types.{c}", c) for c in ref.types]
    asked += [("dataset.drop", c) for c in ref.drop] + [("dataset.keep", c) for c in ref.keep]
    for field, name in asked:
        if name not in names:
            message = f"There is no column {name!r}.{suggest(name, names)} Columns: {listing(names)}."
            problems.append(Detail(field, message))
    if ref.target in ref.drop:
        problems.append(Detail("dataset.drop", f"The target {ref.target!r} cannot be left out."))
    if problems:
        raise InvalidData(
            "The table does not fit the request: " + " ".join(f"{d.field}: {d.message}" for d in problems),
            hint="Mend the names in the request or in the table.",
            details=problems,
        )


def _clean_all(
    frame: pd.DataFrame, ref: DatasetRef
) -> tuple[dict[str, pd.Series], dict[str, ColumnType], dict[str, str]]:
    """Return canonical columns, their types and the formats of dates that were text."""
    nested = [Detail(c, "holds lists or structures") for c in frame.columns if _nested(frame[c])]
    if nested:
        raise InvalidData(
            f"Columns that hold lists, structures or bytes cannot be used: {listing(d.field for d in nested)}.",
            hint="Turn them into plain columns, or leave them out with 'drop'.",
            details=nested,
        )
    columns: dict[str, pd.Series] = {}
    types: dict[str, ColumnType] = {}
    formats: dict[str, str] = {}
    unread: list[Detail] = []
    for name in frame.columns:
        series, kind, text_format = clean(frame[name], ref.types.get(name))
        if kind is ColumnType.IDENTIFIER and name in ref.keep and name not in ref.types:
            kind = ColumnType.CATEGORICAL
        columns[name], types[name] = series, kind
        if text_format is not None:
            formats[name] = text_format
        if kind is ColumnType.DATETIME and series.isna().all():
            first = next((value for value in frame[name].tolist() if text_of(value) is not None), None)
            unread += [] if first is None else [Detail(f"dataset.types.{name}", _UNREAD.format(first))]
    if unread:
        raise InvalidData(
            "The types do not fit the table: " + " ".join(f"{d.field}: {d.message}" for d in unread),
            hint="Mend the types or the columns.",
            details=unread,
        )
    return columns, types, formats


_UNREAD = (
    "No value is read as a date, such as {0!r}. Read are ISO 8601 (2024-01-31, 2024-01-31T12:00), 20240131, and dates "
    "like 31/1/2024, 1/31/2024, 31.1.2024, 31 Jan 2024, Jan 2024; turn seconds since 1970 into one of them."
)


def _context(frame: pd.DataFrame, ref: DatasetRef) -> pd.DataFrame:
    """Columns that are no features, in canonical form where they have one; of the type that the request says."""
    columns = {c: frame[c] if _nested(frame[c]) else clean(frame[c], ref.types.get(c))[0] for c in frame.columns}
    return pd.DataFrame(columns, index=frame.index)


_STRUCTURES = (list, dict, tuple, set, np.ndarray, bytes)


def _nested(series: pd.Series) -> bool:
    if series.dtype != object:
        return False
    plain = pd.api.types.infer_dtype(series, skipna=True) == "string"  # which is known a hundred times as fast
    return not plain and any(isinstance(value, _STRUCTURES) for value in series.tolist())


def _infinite(columns: Mapping[str, pd.Series]) -> list[Detail]:
    counts = {n: int(np.isinf(s.to_numpy()).sum()) for n, s in columns.items() if s.dtype.kind == "f"}
    return [
        Detail(n, f"{k} infinite value{'s' if k > 1 else ''}; replace by a number or leave empty.")
        for n, k in counts.items()
        if k
    ]


def _any_useful(columns: Mapping[str, pd.Series], types: Mapping[str, ColumnType]) -> bool:
    """Whether one feature at least varies; a value against a missing value is a variation too."""
    return any(types[n] is not ColumnType.IDENTIFIER and s.nunique(dropna=False) > 1 for n, s in columns.items())
