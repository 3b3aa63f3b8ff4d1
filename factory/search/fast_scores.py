"""The usual metrics in numpy: a search scores the same rows thousands of times.

A step of a blend scores one blend for each candidate.  Each score agrees with
scikit-learn's own scorer of its name, rows' weights included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from factory.spec import Task

Score = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
"""Targets (n_rows,), predictions and weights (n_rows,) or None → score."""
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def _roc_auc(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    """Area under the ROC curve: the share of pairs in order, ties half (Mann and Whitney, 1947).

    A pair counts by the product of its rows' weights.
    """
    positive, negative = p[y == 1, 1], p[y == 0, 1]
    if not len(positive) or not len(negative):
        return float("nan")
    if w is None:
        positive, negative = np.sort(positive), np.sort(negative)
        below = sum(np.searchsorted(negative, positive, side=side).sum(dtype=np.int64) for side in _SIDES)
        return float(below / (2 * len(positive) * len(negative)))
    order, own = np.argsort(negative, kind="stable"), w[y == 1]
    up_to = np.append(0.0, np.cumsum(w[y == 0][order]))
    weight_below = sum(up_to[np.searchsorted(negative[order], positive, side=side)] for side in _SIDES)
    return float(own @ weight_below / (2 * own.sum() * up_to[-1]))


def _roc_auc_ovr(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    """Mean over the classes of the area of each against the rest."""
    return float(np.mean([_roc_auc(y == k, p[:, [k, k]], w) for k in range(p.shape[1])]))


def _average_precision(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    """Precision at each distinct probability, weighted by the recall gained there."""
    order = np.argsort(-p[:, 1], kind="stable")
    rows = np.ones(len(y)) if w is None else w[order]
    hits, taken = np.cumsum(rows * (y[order] == 1)), np.cumsum(rows)
    if not hits[-1]:
        return float("nan")
    ends = np.append(np.flatnonzero(np.diff(p[order, 1])), len(y) - 1)
    return float(np.sum(np.diff(hits[ends], prepend=0) * hits[ends] / taken[ends]) / hits[-1])


def _neg_log_loss(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    floor = np.finfo(np.float64).eps
    return float(np.average(np.log(np.clip(p[np.arange(len(y)), y], floor, 1)), weights=w))


def _neg_brier(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    return -float(np.average(np.square(p[:, 1] - y), weights=w))


def _accuracy(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    return float(np.average(p.argmax(axis=1) == y, weights=w))


def _counts(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each class its rows that were found, its rows, and the rows that were given to it, (n_classes,)."""
    n, said = p.shape[1], p.argmax(axis=1)
    right = said == y
    found = np.bincount(y[right], weights=None if w is None else w[right], minlength=n)
    return found, np.bincount(y, weights=w, minlength=n), np.bincount(said, weights=w, minlength=n)


def _balanced_accuracy(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    found, rows, _ = _counts(y, p, w)
    there = rows > 0
    return float((found[there] / rows[there]).mean())


def _f1_of_each(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    found, rows, given = _counts(y, p, w)
    known = rows + given > 0
    f1 = np.zeros(len(rows))
    f1[known] = 2 * found[known] / (rows + given)[known]
    return f1


def _f1(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    return float(_f1_of_each(y, p, w)[1])


def _f1_macro(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    """Mean over the classes that are there, or were said to be, as scikit-learn has it."""
    there = np.union1d(np.unique(y), np.unique(p.argmax(axis=1)))
    return float(_f1_of_each(y, p, w)[there].mean())


def _neg_mse(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    return -float(np.average(np.square(y - p), weights=w))


def _neg_rmse(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    return -float(np.sqrt(np.average(np.square(y - p), weights=w)))


def _neg_mae(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    return -float(np.average(np.abs(y - p), weights=w))


def _r2(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
    middle = np.average(y, weights=w)
    spread, error = (float(np.average(np.square(y - of), weights=w)) for of in (middle, p))
    return 1 - error / spread if spread else float(error == 0)


_CLASSIFICATION: dict[str, Score] = {
    "neg_log_loss": _neg_log_loss,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _f1_macro,
}
_REGRESSION: dict[str, Score] = {
    "neg_mean_squared_error": _neg_mse,
    "neg_root_mean_squared_error": _neg_rmse,
    "neg_mean_absolute_error": _neg_mae,
    "r2": _r2,
}
FAST: dict[Task, dict[str, Score]] = {
    Task.BINARY: {
        **_CLASSIFICATION,
        "roc_auc": _roc_auc,
        "average_precision": _average_precision,
        "f1": _f1,
        "neg_brier_score": _neg_brier,
    },
    Task.MULTICLASS: {**_CLASSIFICATION, "roc_auc_ovr": _roc_auc_ovr},
    Task.REGRESSION: _REGRESSION,
}
"""Task → scikit-learn scorer name → its score; greater is better."""
