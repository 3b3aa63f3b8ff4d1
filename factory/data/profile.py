"""A dataset in numbers, for people and for choosing what to try first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from factory.data.columns import text_of
from factory.data.dataset import Dataset
from factory.spec import ColumnType, Document, Task

_HEAD_ROWS = 5
_TOP_LEVELS = 5
_LONGEST = 80


class Level(Document):
    """A frequent value of a column."""

    value: str
    count: int


class Moments(Document):
    """Distribution of finite numbers."""

    mean: float
    std: float
    minimum: float
    q25: float
    median: float
    q75: float
    maximum: float


class ColumnProfile(Document):
    """One column; ``numbers`` for numbers and ``top`` for levels, ``first`` and ``last`` for dates."""

    name: str
    type: ColumnType
    missing: int
    distinct: int
    numbers: Moments | None = None
    top: tuple[Level, ...] = ()
    first: str | None = None
    last: str | None = None


class DatasetProfile(Document):
    """A dataset in numbers.

    Attributes:
        n_rows: Rows with a target.
        dropped_rows: Rows left out because their target was missing.
        columns_by_type: Number of feature columns of each type.
        missing_share: Share of missing cells among all feature cells.
        class_balance: Share of the rows of each class, in class order; empty for regression.
        target_numbers: Distribution of a regression target.
        columns: One entry for each feature column.
        head: First rows as texts, empty where missing, target last.
    """

    n_rows: int
    n_columns: int
    dropped_rows: int
    task: Task
    target: str
    columns_by_type: dict[ColumnType, int]
    missing_share: float
    class_balance: dict[str, float]
    target_numbers: Moments | None
    columns: tuple[ColumnProfile, ...]
    head_columns: tuple[str, ...]
    head: tuple[tuple[str, ...], ...]


def profile(dataset: Dataset) -> DatasetProfile:
    """Return the profile of a dataset; one pass over each column."""
    columns = tuple(_column(dataset.frame[c], dataset.types[c]) for c in dataset.frame.columns)
    n_rows, n_columns = dataset.frame.shape
    types = [c.type for c in columns]
    counts = np.bincount(dataset.y, minlength=len(dataset.classes)) if dataset.classes else ()
    labels: list[Any] = [dataset.classes[i] for i in dataset.y[:_HEAD_ROWS]] if dataset.classes else list(dataset.y)
    head = [
        (*(_shown(v) for v in row), _shown(label))
        for row, label in zip(dataset.frame.head(_HEAD_ROWS).itertuples(index=False), labels, strict=False)
    ]
    return DatasetProfile(
        n_rows=n_rows,
        n_columns=n_columns,
        dropped_rows=dataset.dropped_rows,
        task=dataset.task,
        target=dataset.target,
        columns_by_type={kind: types.count(kind) for kind in ColumnType if kind in types},
        missing_share=sum(c.missing for c in columns) / max(n_rows * n_columns, 1),
        class_balance={c: float(k) / n_rows for c, k in zip(dataset.classes, counts, strict=True)},
        target_numbers=None if dataset.classes else _moments(dataset.y),
        columns=columns,
        head_columns=(*dataset.frame.columns, dataset.target),
        head=tuple(head),
    )


def _column(series: pd.Series, kind: ColumnType) -> ColumnProfile:
    name, missing = str(series.name), int(series.isna().sum())
    distinct = int(series.nunique())
    if kind is ColumnType.NUMERIC:
        return ColumnProfile(
            name=name, type=kind, missing=missing, distinct=distinct, numbers=_moments(series.dropna().to_numpy())
        )
    if kind is ColumnType.DATETIME:
        known = series.dropna()
        ends = (str(known.min()), str(known.max())) if len(known) else (None, None)
        return ColumnProfile(name=name, type=kind, missing=missing, distinct=distinct, first=ends[0], last=ends[1])
    top = tuple(Level(value=_shown(v), count=int(k)) for v, k in series.value_counts().head(_TOP_LEVELS).items())
    return ColumnProfile(name=name, type=kind, missing=missing, distinct=distinct, top=top)


def _moments(values: np.ndarray) -> Moments | None:
    if not len(values):
        return None
    numbers = values.astype(np.float64)
    low, q25, median, q75, high = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return Moments(
        mean=float(numbers.mean()), std=float(numbers.std()), minimum=low, q25=q25, median=median, q75=q75, maximum=high
    )


def _shown(value: Any) -> str:
    text = text_of(value) or ""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
