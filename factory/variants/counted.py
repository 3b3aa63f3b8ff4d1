"""Metrics as functions of row counts, so that a thousand resamples are scored by a matrix product.

The usual metrics are sums over rows, or need the rows' order only once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from factory.search.metric import Metric
from factory.spec import Task

CountedForm = Callable[[np.ndarray], np.ndarray]
"""How often each row was drawn, times its weight, (n_resamples, n_rows), to scores (n_resamples,)."""


@dataclass(frozen=True)
class _Sums:
    """A score that depends on the rows through sums of per-row values only.

    Attributes:
        rows: Per-row values (n_rows, n_sums).
        finish: Turns sums (n_resamples, n_sums) and the rows' total (n_resamples,) into scores (n_resamples,).
    """

    rows: np.ndarray
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return self.finish(counts @ self.rows, counts.sum(axis=1))


@dataclass(frozen=True)
class _RankedAuc:
    """ROC AUC by weighted mid-ranks: rows sorted once, each resample a cumulative sum of counts."""

    order: np.ndarray
    group: np.ndarray
    positive: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, score: np.ndarray) -> _RankedAuc:
        order = np.argsort(score, kind="stable")
        ranked = score[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        return cls(order=order, group=starts, positive=(y[order] == 1).astype(np.float64))

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, self.order]
        positive = np.add.reduceat(drawn * self.positive, self.group, axis=1)
        negative = np.add.reduceat(drawn * (1 - self.positive), self.group, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray((positive * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))


@dataclass(frozen=True)
class _RankedPrecision:
    """Average precision: rows sorted once, each resample two cumulative sums of counts."""

    order: np.ndarray
    group: np.ndarray
    positive: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, score: np.ndarray) -> _RankedPrecision:
        ranked = _RankedAuc.of(y, -score)
        return cls(order=ranked.order, group=ranked.group, positive=ranked.positive)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, self.order]
        hits = np.add.reduceat(drawn * self.positive, self.group, axis=1)
        taken = np.cumsum(np.add.reduceat(drawn, self.group, axis=1), axis=1)
        total = hits.sum(axis=1)
        precision = np.cumsum(hits, axis=1) / np.where(taken > 0, taken, 1)
        return np.asarray((hits * precision).sum(axis=1) / np.where(total > 0, total, np.nan))


@dataclass(frozen=True)
class MeanOf:
    """The mean of several forms, as of each class against the rest."""

    forms: tuple[CountedForm, ...]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean([form(counts) for form in self.forms], axis=0))


@dataclass(frozen=True)
class _NegativeMedian:
    """Median of per-row losses, sorted once: where the cumulative counts pass the middle."""

    losses: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, losses: np.ndarray) -> _NegativeMedian:
        order = np.argsort(losses, kind="stable")
        return cls(losses=losses[order], order=order)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        passed = np.cumsum(counts[:, self.order], axis=1)
        half = passed[:, -1:] / 2
        places = (passed < half).sum(axis=1), (passed <= half).sum(axis=1)
        ends = [self.losses[np.minimum(place, len(self.losses) - 1)] for place in places]
        return np.asarray(-(ends[0] + ends[1]) / 2)


def _mean(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.asarray(sums[:, 0] / n)


def _negative_mean(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    return -_mean(sums, n)


def _negative_root(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.asarray(-np.sqrt(_mean(sums, n)))


def _r2(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    error, total, squares = sums.T
    spread = squares - np.square(total) / n
    return np.asarray(1 - error / np.where(spread > 0, spread, np.nan))


def _balanced_accuracy(sums: np.ndarray, _: np.ndarray) -> np.ndarray:
    hits, present = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((hits / np.where(present > 0, present, np.nan)).mean(axis=1))


def _f1_binary(sums: np.ndarray, _: np.ndarray) -> np.ndarray:
    hits, predicted, present = sums.T
    seen = predicted + present
    return np.asarray(2 * hits / np.where(seen > 0, seen, 1))


def _f1_macro(sums: np.ndarray, _: np.ndarray) -> np.ndarray:
    hits, seen = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nanmean(2 * hits / np.where(seen > 0, seen, np.nan), axis=1))


def counted_form(
    metric: Metric, y: np.ndarray, prediction: np.ndarray, *, weight: np.ndarray | None = None
) -> CountedForm | None:
    """Return the metric as a function of row counts, or None where it has no such form.

    A form is taken only if it gives the metric's own score on the whole sample.
    """
    builders = _REGRESSION if metric.task is Task.REGRESSION else _CLASSIFICATION
    build = builders.get(metric.name)
    if build is None or (
        metric.task is Task.MULTICLASS and metric.name in ("roc_auc", "f1", "neg_brier_score", "average_precision")
    ):
        return None
    form = build(y, np.asarray(prediction, dtype=np.float64))
    whole = form(np.ones((1, len(y))) if weight is None else weight[np.newaxis])[0]
    return form if np.isclose(whole, metric.score(y, prediction, weight=weight), rtol=1e-9, atol=1e-9) else None


_Builder = Callable[[np.ndarray, np.ndarray], CountedForm]


def _row_sums(rows: np.ndarray, finish: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _Sums:
    return _Sums(rows=rows.reshape(len(rows), -1).astype(np.float64), finish=finish)


def _log_likelihood(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    floor = np.finfo(np.float64).eps
    return np.asarray(np.log(np.clip(p[np.arange(len(y)), y], floor, 1)))


def _class_hits(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    present = np.eye(p.shape[1])[y][:, np.unique(y)]
    return np.hstack([present * (p.argmax(axis=1) == y)[:, None], present])


def _hits_and_seen(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Per class: rows of it that were found, and rows of it plus rows that were called it."""
    true, called = np.eye(p.shape[1])[y], np.eye(p.shape[1])[p.argmax(axis=1)]
    return np.hstack([true * called, true + called])


def _positive_hits(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    predicted = p.argmax(axis=1) == 1
    return np.column_stack([predicted & (y == 1), predicted, y == 1])


_CLASSIFICATION: dict[str, _Builder] = {
    "roc_auc": lambda y, p: _RankedAuc.of(y, p[:, 1]),
    "neg_log_loss": lambda y, p: _row_sums(_log_likelihood(y, p), _mean),
    "accuracy": lambda y, p: _row_sums(p.argmax(axis=1) == y, _mean),
    "balanced_accuracy": lambda y, p: _row_sums(_class_hits(y, p), _balanced_accuracy),
    "f1": lambda y, p: _row_sums(_positive_hits(y, p), _f1_binary),
    "neg_brier_score": lambda y, p: _row_sums(np.square(p[:, 1] - (y == 1)), _negative_mean),
    "average_precision": lambda y, p: _RankedPrecision.of(y, p[:, 1]),
    "f1_macro": lambda y, p: _row_sums(_hits_and_seen(y, p), _f1_macro),
    "roc_auc_ovr": lambda y, p: MeanOf(
        tuple(_RankedAuc.of((y == k).astype(np.int64), p[:, k]) for k in range(p.shape[1]))
    ),
}
_REGRESSION: dict[str, _Builder] = {
    "neg_mean_squared_error": lambda y, p: _row_sums(np.square(y - p), _negative_mean),
    "neg_root_mean_squared_error": lambda y, p: _row_sums(np.square(y - p), _negative_root),
    "neg_mean_absolute_error": lambda y, p: _row_sums(np.abs(y - p), _negative_mean),
    "neg_median_absolute_error": lambda y, p: _NegativeMedian.of(np.abs(y - p)),
    "r2": lambda y, p: _row_sums(np.column_stack([np.square(y - p), y - y.mean(), np.square(y - y.mean())]), _r2),
}
