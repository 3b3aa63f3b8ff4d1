"""A dataset in a few numbers: what makes it a sibling of another, cheap to compute and small to keep.

Siblings (a region, a store, next month's rows) share their columns before all
else, so the names go in, as hashes; the numbers are the usual simple and
statistical meta-features (Vanschoren 2018, "Meta-learning: a survey").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from math import log10

import numpy as np

from factory.data.dataset import Dataset
from factory.spec import ColumnType, Traits

MOST_COLUMNS = 200
"""Hashes that are kept, the smallest; two datasets' smallest hashes estimate their overlap (Broder 1997)."""
WEIGHTS = {"columns": 0.5, "types": 0.1, "target": 0.15, "rows": 0.15, "width": 0.05, "missing": 0.05}
"""Of the parts of a distance; half for the columns, so that tables without a common column are never near."""
ROWS_APART = 2.0
"""Powers of ten between two numbers of rows (or of columns) beyond which they count as altogether different."""


def traits_of(dataset: Dataset) -> Traits:
    """Return a dataset's traits; one pass over the cells, to count the missing ones."""
    n_rows, n_columns = dataset.frame.shape
    kinds = [_kind(dataset.types[c]) for c in dataset.frame.columns]
    missing = int(dataset.frame.isna().to_numpy().sum()) if n_columns else 0
    skewness, kurtosis = (0.0, 0.0) if dataset.classes else _moments(dataset.y)
    return Traits(
        task=dataset.task,
        n_rows=n_rows,
        n_columns=n_columns,
        type_shares={kind: kinds.count(kind) / n_columns for kind in sorted(set(kinds))},
        missing_share=missing / max(n_rows * n_columns, 1),
        n_classes=len(dataset.classes),
        balance=_balance(dataset.y, len(dataset.classes)),
        skewness=skewness,
        kurtosis=kurtosis,
        columns=column_hashes(map(str, dataset.frame.columns)),
    )


def distance(one: Traits, other: Traits) -> float:
    """Return how far apart two datasets are, in [0, 1]: 0 for the same traits, 1 for another task.

    The weighted mean (:data:`WEIGHTS`) of: the share of column names that only one of them has (Jaccard), half the
    sum of differences between the types' shares, the difference between the targets (balance and number of classes, or
    the bent skewness and kurtosis), the powers of ten between their rows and between their columns, and the difference
    between their shares of missing cells.
    """
    if one.task is not other.task:
        return 1.0
    kinds = one.type_shares.keys() | other.type_shares.keys()
    values = {
        "types": sum(abs(one.type_shares.get(k, 0.0) - other.type_shares.get(k, 0.0)) for k in kinds) / 2,
        "target": _target_distance(one, other),
        "missing": abs(one.missing_share - other.missing_share),
    }
    shape = distance_by_shape(one.columns, n_rows=one.n_rows, n_columns=one.n_columns, other=other)
    return shape + _weighted(values)


def distance_by_shape(columns: tuple[str, ...], *, n_rows: int, n_columns: int, other: Traits) -> float:
    """Return how far apart a table is of which only names and size are known; its values are taken to be the other's.

    Args:
        columns: :func:`column_hashes` of its names.
        n_rows: Of the table.
        n_columns: Of the table.
        other: A dataset.
    """
    return _weighted(
        {
            "columns": _overlap(columns, other.columns),
            "rows": _powers_apart(n_rows, other.n_rows),
            "width": _powers_apart(n_columns, other.n_columns),
        }
    )


def _weighted(parts: Mapping[str, float]) -> float:
    return float(sum(WEIGHTS[name] * min(part, 1.0) for name, part in parts.items()))


def _kind(kind: ColumnType) -> str:
    return ColumnType.NUMERIC.value if kind is ColumnType.BOOLEAN else kind.value


def column_hashes(names: Iterable[str]) -> tuple[str, ...]:
    """Return what is kept of columns' names: their hashes, sorted; the smallest where there are many."""
    return tuple(
        sorted(hashlib.sha256(name.strip().lower().encode()).hexdigest()[:10] for name in names)[:MOST_COLUMNS]
    )


def _balance(y: np.ndarray, n_classes: int) -> float:
    if n_classes < 2 or not len(y):
        return 1.0
    shares = np.bincount(y, minlength=n_classes) / len(y)
    known = shares[shares > 0]
    return float(-(known * np.log(known)).sum() / np.log(n_classes))


def _moments(y: np.ndarray) -> tuple[float, float]:
    spread = float(y.std()) if len(y) else 0.0
    if not spread:
        return 0.0, 0.0
    z = (y - y.mean()) / spread
    return float((z**3).mean()), float((z**4).mean() - 3)


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    both = set(one) | set(other)
    return 1 - len(set(one) & set(other)) / len(both) if both else 0.0


def _target_distance(one: Traits, other: Traits) -> float:
    if one.n_classes or other.n_classes:
        return (abs(one.balance - other.balance) + _powers_apart(one.n_classes, other.n_classes)) / 2
    bent = [np.arcsinh([t.skewness, t.kurtosis]) for t in (one, other)]
    return float(np.abs(bent[0] - bent[1]).mean() / 2)


def _powers_apart(one: int, other: int) -> float:
    return abs(log10(max(one, 1)) - log10(max(other, 1))) / ROWS_APART
