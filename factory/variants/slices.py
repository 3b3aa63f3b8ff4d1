"""How a variant does on parts of the held-out rows: by the values of a column, against the same baseline.

A score over all rows hides a part that got worse.  What is told here is told
with its number of rows and its interval, since of many small parts some look
bad by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from factory.data.columns import factorize
from factory.data.dataset import Dataset
from factory.search.metric import Metric
from factory.spec import ColumnType, Document, Task
from factory.variants.multiplicity import adjusted_confidence, stands
from factory.variants.resampling import Comparison, Dependence, Interval, bootstrap, paired_bootstrap

LEAST_ROWS = 30
"""Rows of a slice below which its interval says nothing."""
MOST_VALUES = 8
"""Values of a column that are slices of their own; the others are one."""
MOST_COLUMNS = 4
"""Columns that are looked at where the request names none."""
_MOST_LEVELS = 50
_RESAMPLES = 500
"""Tells a probability from the next with Holm's rule over 25 slices."""
_WITHOUT_ALL_CLASSES = ("neg_log_loss", "accuracy", "neg_brier_score")
"""Sums over rows: defined where a class is absent."""
_OTHERS, _MISSING = "all others", "missing"


class Slice(Document):
    """A variant on the rows that have one value of one column.

    Attributes:
        column: By which the rows are cut.
        value: Of these rows; a range for numbers and dates.
        n_rows: How many held-out rows they are.
        score: With its interval; None where these rows do not define it, as the ROC AUC of one class.
        comparison: With the baseline on the same rows; its margin is the loss that is allowed, below zero.
    """

    column: str
    value: str
    n_rows: int
    score: Interval | None = None
    comparison: Comparison | None = None


def slice_columns(dataset: Dataset, wanted: Sequence[str], *, ranked: Sequence[str] = ()) -> dict[str, pd.Series]:
    """Return the columns by which to cut: those that are wanted, else the most important categorical features.

    Args:
        dataset: Held-out rows.
        wanted: Columns that the request names; features or not.
        ranked: Features by importance, the most important first; the others follow in their order.

    Raises:
        NotFound: there is no such column.
    """
    if wanted:
        return {name: dataset.column(name, field="gates.slices") for name in wanted}
    cut = (ColumnType.CATEGORICAL, ColumnType.BOOLEAN)
    ordered = [*(c for c in ranked if c in dataset.types), *(c for c in dataset.types if c not in set(ranked))]
    names = [c for c in ordered if dataset.types[c] in cut and 2 <= dataset.frame[c].nunique() <= _MOST_LEVELS]
    return {name: dataset.frame[name] for name in names[:MOST_COLUMNS]}


def slices(
    metric: Metric,
    y: np.ndarray,
    prediction: np.ndarray,
    *,
    baseline: np.ndarray,
    columns: Mapping[str, pd.Series],
    seed: int,
    weight: np.ndarray | None = None,
    dependence: Dependence | None = None,
    max_loss: float | None = None,
) -> tuple[Slice, ...]:
    """Score a variant and its baseline on each part of the rows that has enough of them.

    Args:
        metric: What was optimized.
        y: Class indices or targets (n_rows,).
        prediction: Of the variant, (n_rows[, n_classes]).
        baseline: Of what it is compared with, same shape.
        columns: Values by which the rows are cut, each (n_rows,).
        seed: Of the bootstraps.
        weight: How much each row counts, (n_rows,); all the same if None.
        dependence: Which rows err alike; None where they are independent of each other.
        max_loss: Loss that is allowed against the baseline; 0 if None.
    """
    found = []
    for name, series in columns.items():
        for value, rows in _parts(series):
            if len(rows) >= LEAST_ROWS:
                own = None if weight is None else weight[rows]
                alike = None if dependence is None else dependence.take(rows)
                one = _Rows(y[rows], prediction[rows], baseline[rows], own, alike)
                found.append(_slice(metric, one, column=name, value=value, seed=seed, margin=-(max_loss or 0.0)))
    return tuple(found)


def blamed(found: Sequence[Slice], *, confidence: float) -> tuple[Slice, ...]:
    """Return the slices that are surely worse than the margin of their comparison allows (Holm, 1979, over all)."""
    judged = [one for one in found if one.comparison is not None]
    worse = [1 - one.comparison.probability if one.comparison else 0.0 for one in judged]
    needed = adjusted_confidence(worse, confidence=confidence)
    return tuple(
        one
        for one, probability, least in zip(judged, worse, needed, strict=True)
        if one.comparison and one.comparison.difference < one.comparison.margin and stands(probability, least)
    )


@dataclass(frozen=True)
class _Rows:
    """Targets and two predictions of the same rows, how much each row counts, and which of them err alike."""

    y: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray
    weight: np.ndarray | None
    dependence: Dependence | None


def _slice(metric: Metric, rows: _Rows, *, column: str, value: str, seed: int, margin: float) -> Slice:
    bare = Slice(column=column, value=value, n_rows=len(rows.y))
    classes_lack = metric.task is not Task.REGRESSION and len(np.unique(rows.y)) < rows.candidate.shape[1]
    if classes_lack and metric.name not in _WITHOUT_ALL_CLASSES:
        return bare
    score = bootstrap(
        metric,
        rows.y,
        rows.candidate,
        seed=seed,
        weight=rows.weight,
        dependence=rows.dependence,
        n=_RESAMPLES,
    )
    comparison = paired_bootstrap(
        metric,
        rows.y,
        rows.candidate,
        rows.baseline,
        seed=seed,
        weight=rows.weight,
        dependence=rows.dependence,
        n=_RESAMPLES,
        margin=margin,
    )
    if not np.isfinite([score.value, comparison.difference]).all():
        return bare
    return bare.model_copy(update={"score": score, "comparison": comparison})


def _parts(series: pd.Series) -> list[tuple[str, np.ndarray]]:
    """Cut rows by the values of a column: (value, positions), the largest part first, ranges in their order."""
    values = series.to_numpy()
    missing = np.flatnonzero(series.isna().to_numpy())
    absent = [(_MISSING, missing)] if len(missing) else []
    if values.dtype.kind in "fiuM" and series.nunique() > MOST_VALUES:
        return [*_quarters(series), *absent]
    codes, texts = factorize(values)
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    order = np.argsort(-counts, kind="stable")
    own = [(texts[k], np.flatnonzero(codes == k)) for k in order[:MOST_VALUES]]
    rest = np.flatnonzero(np.isin(codes, order[MOST_VALUES:]))
    return [*own, *([(_OTHERS, rest)] if len(rest) else []), *absent]


def _quarters(series: pd.Series) -> list[tuple[str, np.ndarray]]:
    ordered = series.dropna().sort_values()
    edges = list(dict.fromkeys(ordered.iloc[[len(ordered) * k // 4 for k in range(1, 4)]].tolist()))
    place = np.searchsorted(np.asarray(edges, dtype=series.to_numpy().dtype), series.to_numpy(), side="right")
    place = np.where(series.isna().to_numpy(), -1, place)
    shown = [_edge(e) for e in edges]
    names = [f"below {shown[0]}", *(f"{a} to {b}" for a, b in pairwise(shown)), f"from {shown[-1]}"]
    return [(name, np.flatnonzero(place == k)) for k, name in enumerate(names)]


def _edge(value: float | pd.Timestamp) -> str:
    if isinstance(value, pd.Timestamp):
        return str(value.date())
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
