"""What one column says about the target when nothing else is known.

A column is split by a deep decision tree (an exact relation is interpolated,
noise is punished); a category is first replaced by its mean target among the
training rows.  Four folds, a sample of rows: milliseconds a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from factory.data.columns import factorize
from factory.data.dataset import Dataset
from factory.spec import ColumnType, Task

_ROWS = 6000
"""Rows looked at, as many of each class as there are; enough to tell .999 from .99 within a few milliseconds."""
_WIDE = 100
"""Columns from which on fewer rows are looked at, so that a wide table takes no longer than a few seconds."""
_LEAST_ROWS = 600
_NEIGHBOURS = 2
"""Rows on each side by whose mean a wide table's columns are judged at first."""
_PROMISING = 0.95
"""Score on one split below which a column is not looked at again."""
_LEAST_PER_CLASS = 10
"""Rows of a class below which a perfect separation by one column may be luck; such a class is not judged."""


@dataclass(frozen=True)
class Alone:
    """How well single columns predict the target.

    Attributes:
        measure: Name of the score for people.
        whole: Columns that came close on the first fold: their score over all folds.
        first: Every judged column's score on the first fold.
    """

    measure: str
    whole: dict[str, float]
    first: dict[str, float]

    def next_best(self, besides: Sequence[str]) -> float | None:
        """Return the best first-fold score among the other columns, None where there is no other."""
        return max((score for name, score in self.first.items() if name not in set(besides)), default=None)


def score_alone(dataset: Dataset, columns: Sequence[str], *, seed: int) -> Alone:
    """Score each column's own cross-validated predictions of the target.

    Args:
        dataset: Rows to look at; a sample is drawn.
        columns: Which of its columns.
        seed: Of the sample and the folds.

    Returns:
        ROC AUC (mean over classes, one against the rest), or R2 on the target's ranks for regression.
    """
    rng = np.random.default_rng(seed)
    n_rows = _ROWS if len(columns) <= _WIDE else max(_LEAST_ROWS, _ROWS * _WIDE // len(columns))
    regression = dataset.task is Task.REGRESSION
    rows = rng.permutation(len(dataset))
    rows = rows[:n_rows] if regression else rows[_by_class(dataset.y[rows], n_rows)]
    measure = "R2 on ranks" if regression else "AUC"
    y = _ranks(dataset.y[rows]) if regression else dataset.y[rows]
    if not regression:
        counts = np.bincount(y, minlength=len(dataset.classes))
        judged = np.flatnonzero(counts >= _LEAST_PER_CLASS)
        if len(judged) < 2:
            return Alone(measure, {}, {})
        inside = np.isin(y, judged)
        rows, y = rows[inside], np.searchsorted(judged, y[inside])
    score = _rank_r2 if regression else _auc
    folds = _folds(y, 4, regression=regression)
    first: dict[str, float] = {}
    whole: dict[str, float] = {}
    frame = dataset.frame.iloc[rows]
    for names in _batches(columns, _at_once(y)):
        signals = {c: _signals(frame[c], dataset.types[c], regression=regression) for c in names}
        signals = {c: forms for c, forms in signals.items() if forms}
        if len(columns) > _WIDE:
            first |= _smoothed_scores({c: forms[0] for c, forms in signals.items()}, y, folds == 0, score)
        else:
            first |= {c: _score_alone(forms[0], y, [folds == 0], score) for c, forms in signals.items()}
        for column, forms in signals.items():
            if first[column] >= _PROMISING:
                whole[column] = max(_score_alone(x, y, [folds == k for k in range(4)], score) for x in forms)
    return Alone(measure, whole, first)


def _by_class(y: np.ndarray, n_rows: int) -> np.ndarray:
    """Return ascending positions of so many rows at most: the first one of each class, the second one, and so on."""
    turn = pd.Series(y).groupby(y).cumcount().to_numpy()
    return np.sort(np.argsort(turn, kind="stable")[:n_rows])


def _at_once(y: np.ndarray) -> int:
    """Return the columns that are smoothed at once, so that their windows take 100 MB at most."""
    n_targets = 1 if y.dtype.kind == "f" else int(y.max()) + 1
    return max(1, 4_000_000 // (len(y) * n_targets))


def _batches(columns: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(columns), size):
        yield columns[start : start + size]


def _smoothed_scores(
    signals: dict[str, _Signal], y: np.ndarray, test: np.ndarray, score: Callable[[np.ndarray, np.ndarray], float]
) -> dict[str, float]:
    """Score many columns at once by the means of neighbouring training rows: 30 times as fast as a tree for each.

    Args:
        signals: Column → its values.
        y: Ranks of the target or class indices, (n_rows,).
        test: Rows that are predicted, bool (n_rows,).
        score: Of targets and predictions.
    """
    if not signals:
        return {}
    targets = y[:, None] if y.dtype.kind == "f" else _one_against_rest(y)
    order = np.argsort(np.column_stack([x for x, _ in signals.values()]), axis=0, kind="stable")
    known = ~test[order]
    n_known = _windows(known.astype(np.float64))
    predicted = np.empty((*order.shape, targets.shape[1]))
    for k, target in enumerate(targets.T):
        means = _windows(np.where(known, target[order], 0.0)) / np.maximum(n_known, 1.0)
        np.put_along_axis(predicted[:, :, k], order, means, axis=0)
    return {name: score(targets[test], predicted[test, i]) for i, name in enumerate(signals)}


def _windows(values: np.ndarray) -> np.ndarray:
    """Return the sums over each row, its neighbours above and those below, (n_rows, n_columns)."""
    n_rows = len(values)
    sums = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    at = np.arange(n_rows)
    return np.asarray(sums[np.minimum(at + _NEIGHBOURS + 1, n_rows)] - sums[np.maximum(at - _NEIGHBOURS, 0)])


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

    A text that honestly says much (its language, its topic) must not be left out: its words are only told of
    (:mod:`factory.data.words`).

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
    targets = y[:, None] if regression else _one_against_rest(y)
    predicted = np.full(targets.shape, np.nan)
    for test in held_out:
        if coded:
            predicted[test] = _level_means(x, targets, ~test)[x[test]]
        else:
            predicted[test] = _tree_means(x, targets, test)
    tested = np.logical_or.reduce(held_out)
    return score(targets[tested], predicted[tested])


def _one_against_rest(y: np.ndarray) -> np.ndarray:
    """Indicators (n_rows, n_classes); of two classes the second one's only, since the first's says the same."""
    n_classes = int(y.max()) + 1
    return y[:, None].astype(np.float64) if n_classes == 2 else np.eye(n_classes)[y]


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
    narrow = x[:, None].astype(np.float32)  # what trees work on; unchecked, since a wide table has thousands of fits
    tree.fit(narrow[~test], targets[~test], check_input=False)
    predicted = tree.predict(narrow[test], check_input=False)
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
