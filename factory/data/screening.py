"""What is suspicious about the columns, each finding with a sentence for a person.

Runs once on the training rows, before any model: columns that cannot help are
left out, and a column that alone gives the target away is left out as well,
since a model that uses it is excellent here and useless where it matters.
Who knows better names the column in ``keep``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd

from factory.data.columns import column_digest, factorize
from factory.data.dataset import Dataset
from factory.errors import Detail, InvalidData
from factory.spec import ColumnType, Document, Task

LEAKAGE = 0.999
"""Cross-validated score of one column alone, from which on it is taken for the target in disguise.

Far above honest columns: the best single columns of well-known sets reach .94 to .99 (breast cancer "worst
perimeter" .975 AUC, diamonds "carat" .92 R2 on ranks), and a leak with no noise reaches 1 up to a few ties.
TransmogrifAI's SanityChecker takes |correlation| .95, which drops honest columns of physical data.
"""
HIGH_MISSING = 0.8
"""Share of missing values that is worth a warning; trees and indicators still use such a column."""

_ROWS = 6000
"""Rows that the leakage check looks at, drawn by class; enough to tell .999 from .99 within a few milliseconds."""
_PROMISING = 0.95
"""Score on one split below which a column is not looked at again."""
_LEAST_PER_CLASS = 10
"""Rows of a class below which a perfect separation by one column may be luck; such a class is not judged."""
_ID_NAME = re.compile(
    r"^(id|key|index|row|rownum|row_number)$|[_\s.-](id|uuid|guid|key)$|[a-z](ID|Id|Uuid|Key)$", re.ASCII
)

Action = Literal["drop", "warn", "keep"]


class Finding(Document):
    """One suspicion about one column, and what is done about it."""

    kind: Literal["constant", "all_missing", "identifier", "duplicate", "leakage", "high_missing"]
    column: str
    action: Action
    value: float | None = None
    message: str


def screen(dataset: Dataset, *, keep: tuple[str, ...] = (), seed: int = 0) -> tuple[Finding, ...]:
    """Return what is suspicious; at most one finding that drops for each column, in the order of the columns.

    Args:
        dataset: Training rows.
        keep: Columns that stay whatever is found; their findings have the action ``keep``.
        seed: Seed of the sample and of the splits of the leakage check.

    Raises:
        InvalidData: no column would be left.
    """
    findings: dict[str, Finding] = {}
    seen: dict[bytes, str] = {}
    for column in dataset.frame.columns:
        found = _useless(dataset, column) or _duplicate(dataset.frame[column], column, seen)
        if found is not None:
            findings[column] = found
    left = [c for c in dataset.frame.columns if c not in findings]
    for column, score in _alone(dataset, left, seed=seed).items():
        findings[column] = _leakage(dataset, column, score)
    for column in left:
        share = float(dataset.frame[column].isna().mean())
        if column not in findings and share > HIGH_MISSING:
            message = f"{column!r} is missing in {share:.0%} of the rows; it is used, but check where it comes from."
            findings[column] = Finding(kind="high_missing", column=column, action="warn", value=share, message=message)
    ordered = [findings[c] for c in dataset.frame.columns if c in findings]
    result = tuple(f.model_copy(update={"action": "keep"}) if f.column in keep else f for f in ordered)
    if sum(f.action == "drop" for f in result) == len(dataset.frame.columns):
        raise InvalidData(
            "No column is left after the screening: " + " ".join(f.message for f in result),
            hint="Give columns that say something about the target, or name one in 'keep' to use it all the same.",
            details=[Detail(f.column, f.message) for f in result],
        )
    return result


def _useless(dataset: Dataset, column: str) -> Finding | None:
    series, kind = dataset.frame[column], dataset.types[column]
    n_missing = int(series.isna().sum())
    if n_missing == len(series):
        message = f"{column!r} has no value in any row; it is left out."
        return Finding(kind="all_missing", column=column, action="drop", value=1.0, message=message)
    n_distinct = series.nunique()
    if n_distinct == 1 and n_missing == 0:
        message = f"{column!r} is {str(series.iloc[0])!r} in every row and says nothing; it is left out."
        return Finding(kind="constant", column=column, action="drop", message=message)
    if kind is ColumnType.IDENTIFIER or _numbers_rows(series, kind, n_distinct):
        message = (
            f"{column!r} differs in (almost) every row ({n_distinct} values in {len(series)} rows) and names the row "
            "rather than describing it; it is left out."
        )
        share = n_distinct / len(series)
        return Finding(kind="identifier", column=column, action="drop", value=share, message=message)
    return None


def _numbers_rows(series: pd.Series, kind: ColumnType, n_distinct: int) -> bool:
    """Whether whole numbers are a key: all different and named so, or simply counting the rows."""
    values = series.to_numpy()
    if kind is not ColumnType.NUMERIC or values.dtype.kind not in "iu":
        return False
    if n_distinct >= 0.98 * len(values) and _ID_NAME.search(str(series.name)):
        return True
    return bool((np.diff(values) == 1).all()) and values[0] in (0, 1)


def _duplicate(series: pd.Series, column: str, seen: dict[bytes, str]) -> Finding | None:
    other = seen.setdefault(column_digest(series), column)
    if other == column:
        return None
    message = f"{column!r} holds the same values as {other!r}; it is left out."
    return Finding(kind="duplicate", column=column, action="drop", value=1.0, message=message)


def _leakage(dataset: Dataset, column: str, score: float) -> Finding:
    measure = "R2 on ranks" if dataset.task is Task.REGRESSION else "AUC"
    message = (
        f"{column!r} alone gives the target away (cross-validated {measure} {score:.4f}). Such a column is usually "
        "known only after the outcome, so it is left out. Name it in 'keep' if it is known when predicting."
    )
    return Finding(kind="leakage", column=column, action="drop", value=round(score, 6), message=message)


# --- what a column says alone ---------------------------------------------------------


def _alone(dataset: Dataset, columns: list[str], *, seed: int) -> dict[str, float]:
    """Return the columns whose own cross-validated score reaches :data:`LEAKAGE`, with that score.

    A column is split by a deep decision tree (an exact relation is interpolated, noise is punished); a category is
    first replaced by its mean target among the training rows.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(dataset))[:_ROWS]
    regression = dataset.task is Task.REGRESSION
    y = _ranks(dataset.y[rows]) if regression else dataset.y[rows]
    if not regression:
        counts = np.bincount(y, minlength=len(dataset.classes))
        judged = np.flatnonzero(counts >= _LEAST_PER_CLASS)
        if len(judged) < 2:
            return {}
        inside = np.isin(y, judged)
        rows, y = rows[inside], np.searchsorted(judged, y[inside])
    score = _rank_r2 if regression else _auc
    folds = _folds(y, 4, regression=regression)
    found: dict[str, float] = {}
    for column in columns:
        signals = _signals(dataset.frame[column].iloc[rows], dataset.types[column], regression=regression)
        if not signals or _score_alone(signals[0], y, [folds == 0], score) < _PROMISING:
            continue
        whole = max(_score_alone(x, y, [folds == k for k in range(4)], score) for x in signals)
        if whole >= LEAKAGE:
            found[column] = whole
    return found


def _folds(y: np.ndarray, n_folds: int, *, regression: bool) -> np.ndarray:
    """Fold of each row, balanced within classes; the rows are in random order already."""
    if regression:
        return np.arange(len(y)) % n_folds
    folds = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        folds[members] = np.arange(len(members)) % n_folds
    return folds


def _ranks(y: np.ndarray) -> np.ndarray:
    """Average ranks in 0..1: an exact but skewed relation then scores as high as a straight one."""
    return pd.Series(y).rank(pct=True).to_numpy()


_Signal = tuple[np.ndarray, bool]
"""A column as numbers (n_rows,), and whether these are codes of levels."""


def _signals(series: pd.Series, kind: ColumnType, *, regression: bool) -> list[_Signal]:
    """Return the forms in which a column is judged: codes, or ranks and values; none for prose.

    Ranks keep apart what lies close beside an outlier, values keep the gaps between groups.
    """
    values = series.to_numpy()
    if kind is ColumnType.TEXT:
        return []
    if kind is ColumnType.CATEGORICAL:
        return [(factorize(values)[0] + 1, True)]
    numbers = values.astype("M8[us]").astype(np.float64) if kind is ColumnType.DATETIME else values.astype(np.float64)
    missing = series.isna().to_numpy()
    if missing.all():
        return []
    if kind is ColumnType.DATETIME and regression:
        # A slow series is interpolated between neighbouring dates, which is no leak; the absence of a date may be one.
        return [(missing.astype(np.float64), False)]
    low, high = numbers[~missing].min(), numbers[~missing].max()
    scaled = np.where(missing, -1.0, (numbers - low) / max(high - low, 1e-300))
    return [(np.unique(scaled, return_inverse=True)[1].astype(np.float64), False), (scaled, False)]


def _score_alone(
    signal: _Signal,
    y: np.ndarray,
    held_out: list[np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], float],
) -> float:
    """Score the column's own predictions on held-out rows, all folds together."""
    x, coded = signal
    regression = y.dtype.kind == "f"
    targets = y[:, None] if regression else np.eye(int(y.max()) + 1)[y]
    predicted = np.full(targets.shape, np.nan)
    for test in held_out:
        if coded:
            predicted[test] = _level_means(x, targets, ~test)[x[test]]
        else:
            predicted[test] = _tree_means(x, targets, test)
    tested = np.logical_or.reduce(held_out)
    return score(targets[tested], predicted[tested])


def _level_means(codes: np.ndarray, targets: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Mean target of each level over the training rows, (n_levels, n_targets); the overall mean where unseen."""
    n_levels = int(codes.max()) + 1
    counts = np.bincount(codes[train], minlength=n_levels)[:, None]
    sums = np.column_stack([np.bincount(codes[train], weights=t[train], minlength=n_levels) for t in targets.T])
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), targets[train].mean(axis=0))
    return means


def _tree_means(x: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.tree import DecisionTreeRegressor

    tree: Any = DecisionTreeRegressor(min_samples_leaf=2, max_leaf_nodes=1024, random_state=0)
    predicted = tree.fit(x[~test, None], targets[~test]).predict(x[test, None])
    return np.asarray(predicted).reshape(int(test.sum()), -1)


def _rank_r2(targets: np.ndarray, predicted: np.ndarray) -> float:
    rest = float(((targets - predicted) ** 2).sum())
    return 1 - rest / max(float(((targets - targets.mean()) ** 2).sum()), 1e-12)


def _auc(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes of the area under the ROC curve, one against the rest, ties counted half."""
    areas = []
    for truth, guess in zip(targets.T, predicted.T, strict=True):
        positive = truth > 0.5
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        if n_positive and n_negative:
            ranks = pd.Series(guess).rank().to_numpy()
            above = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
            areas.append(above / (n_positive * n_negative))
    return float(np.mean(areas)) if areas else 0.0
