"""Bootstrap of scores: an interval for one prediction, a comparison of two on the same rows.

Both draw the same resamples for the same seed.  The usual metrics are sums
over rows (or, for the ROC AUC, over ranks), so that a resample is a vector of
row counts and a thousand of them a matrix product; any other scorer is called
once for each resample, and gets fewer.  How many is decided by the number of
rows alone, never by the clock: same data and seed, same interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from factory.search.metric import Metric
from factory.spec import Document, Task

RESAMPLES = 1000
"""Enough for a 95 % percentile interval (Efron and Tibshirani, 1993, section 19.3)."""
MAX_CELLS = 20_000_000
"""Rows times resamples of the fast path: about a second on one core."""
SLOW_CELLS = 500_000
"""Rows times resamples where a scikit-learn scorer is called for each resample."""
MIN_RESAMPLES = 100
_BLOCK_CELLS = 2_000_000


class Interval(Document):
    """A score with its bootstrap percentile interval (Efron, 1979). Greater is better."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


class Comparison(Document):
    """Score of a candidate minus score of a baseline on the same rows.

    Attributes:
        difference: On all rows; positive where the candidate is better.
        low: Lower end of the two-sided interval.
        high: Upper end.
        probability: Share of the resamples in which the difference is above ``margin``.
        candidate: Score of the candidate.
        baseline: Score of the baseline.
    """

    difference: float
    low: float
    high: float
    probability: float
    margin: float = 0.0
    confidence: float = 0.95
    candidate: float
    baseline: float
    n_rows: int
    n_resamples: int


def bootstrap(
    metric: Metric, y: np.ndarray, prediction: np.ndarray, *, seed: int, n: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return the score with its percentile interval.

    Args:
        metric: What is measured.
        y: Class indices or targets (n_rows,).
        prediction: Probabilities (n_rows, n_classes) or predictions (n_rows,).
        seed: Of the resamples.
        n: Resamples at most.
        confidence: Two-sided.
    """
    value = metric.score(y, prediction)
    (scores,) = _resampled(metric, y, [prediction], seed=seed, n=n)
    low, high = _ends(scores, confidence, otherwise=value)
    return Interval(value=value, low=low, high=high, confidence=confidence)


def paired_bootstrap(
    metric: Metric,
    y: np.ndarray,
    candidate: np.ndarray,
    baseline: np.ndarray,
    *,
    seed: int,
    n: int = RESAMPLES,
    margin: float = 0.0,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two predictions of the same rows; each resample scores both on the rows it drew.

    Pairing takes out what both have in common, the difficulty of the rows (Koehn, 2004, "Statistical significance
    tests for machine translation evaluation", made it usual for comparing two systems).

    Args:
        metric: What is measured; scores, so greater is better.
        y: Class indices or targets (n_rows,).
        candidate: Probabilities (n_rows, n_classes) or predictions (n_rows,).
        baseline: Same shape as ``candidate``.
        seed: Of the resamples.
        n: Resamples at most.
        margin: ``probability`` counts the differences above this one.
        confidence: Of the two-sided interval.
    """
    candidate_score, baseline_score = metric.score(y, candidate), metric.score(y, baseline)
    difference = candidate_score - baseline_score
    first, second = _resampled(metric, y, [candidate, baseline], seed=seed, n=n)
    differences = first - second
    valid = differences[np.isfinite(differences)]
    low, high = _ends(differences, confidence, otherwise=difference)
    return Comparison(
        difference=difference,
        low=low,
        high=high,
        probability=float((valid > margin).mean()) if len(valid) else float(difference > margin),
        margin=margin,
        confidence=confidence,
        candidate=candidate_score,
        baseline=baseline_score,
        n_rows=len(y),
        n_resamples=len(valid),
    )


def _ends(scores: np.ndarray, confidence: float, *, otherwise: float) -> tuple[float, float]:
    valid = scores[np.isfinite(scores)]
    if not len(valid):
        return otherwise, otherwise
    low, high = np.quantile(valid, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled(metric: Metric, y: np.ndarray, predictions: list[np.ndarray], *, seed: int, n: int) -> list[np.ndarray]:
    """Return the scores (n_resamples,) of each prediction; NaN where a resample has only one class."""
    generator = np.random.default_rng(seed)
    forms = [_counted_form(metric, y, p) for p in predictions]
    if all(form is not None for form in forms):
        return _by_counts([form for form in forms if form is not None], len(y), generator, n=n)
    resamples = _bounded(n, SLOW_CELLS // max(len(y), 1))
    scores: list[list[float]] = [[] for _ in predictions]
    for _ in range(resamples):
        rows = generator.integers(len(y), size=len(y))
        whole = metric.task is Task.REGRESSION or len(np.unique(y[rows])) == len(np.unique(y))
        for found, prediction in zip(scores, predictions, strict=True):
            found.append(metric.score(y[rows], prediction[rows]) if whole else np.nan)
    return [np.asarray(found) for found in scores]


def _bounded(n: int, allowed: int) -> int:
    return min(n, max(MIN_RESAMPLES, allowed))


def _by_counts(
    forms: list[Callable[[np.ndarray], np.ndarray]], n_rows: int, generator: np.random.Generator, *, n: int
) -> list[np.ndarray]:
    parts = max(len(form.forms) if isinstance(form, _MeanOf) else 1 for form in forms)
    resamples = _bounded(n, MAX_CELLS // max(n_rows * parts, 1))
    block = max(1, _BLOCK_CELLS // max(n_rows, 1))
    scores: list[list[np.ndarray]] = [[] for _ in forms]
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = np.empty((size, n_rows))
        for i in range(size):
            counts[i] = np.bincount(generator.integers(n_rows, size=n_rows), minlength=n_rows)
        for found, form in zip(scores, forms, strict=True):
            found.append(form(counts))
    return [np.concatenate(found) for found in scores]


# --- metrics as functions of row counts ------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """A score that depends on the rows through sums of per-row values only.

    Attributes:
        rows: Per-row values (n_rows, n_sums).
        finish: Turns sums (n_resamples, n_sums) and the number of rows into scores (n_resamples,).
    """

    rows: np.ndarray
    finish: Callable[[np.ndarray, int], np.ndarray]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return self.finish(counts @ self.rows, len(self.rows))


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
        precision = np.cumsum(hits, axis=1) / np.maximum(taken, 1)
        return np.asarray((hits * precision).sum(axis=1) / np.where(total > 0, total, np.nan))


@dataclass(frozen=True)
class _MeanOf:
    """The mean of several forms, as of each class against the rest."""

    forms: tuple[Callable[[np.ndarray], np.ndarray], ...]

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
        n = len(self.losses)
        ends = [self.losses[(passed <= middle).sum(axis=1)] for middle in ((n - 1) // 2, n // 2)]
        return np.asarray(-(ends[0] + ends[1]) / 2)


def _mean(sums: np.ndarray, n: int) -> np.ndarray:
    return np.asarray(sums[:, 0] / n)


def _negative_mean(sums: np.ndarray, n: int) -> np.ndarray:
    return -_mean(sums, n)


def _negative_root(sums: np.ndarray, n: int) -> np.ndarray:
    return np.asarray(-np.sqrt(_mean(sums, n)))


def _r2(sums: np.ndarray, n: int) -> np.ndarray:
    error, total, squares = sums.T
    spread = squares - np.square(total) / n
    return np.asarray(1 - error / np.where(spread > 0, spread, np.nan))


def _balanced_accuracy(sums: np.ndarray, _: int) -> np.ndarray:
    hits, present = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((hits / np.where(present > 0, present, np.nan)).mean(axis=1))


def _f1_binary(sums: np.ndarray, _: int) -> np.ndarray:
    hits, predicted, present = sums.T
    return np.asarray(2 * hits / np.maximum(predicted + present, 1))


def _f1_macro(sums: np.ndarray, _: int) -> np.ndarray:
    hits, seen = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nanmean(2 * hits / np.where(seen > 0, seen, np.nan), axis=1))


def _counted_form(metric: Metric, y: np.ndarray, prediction: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
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
    whole = form(np.ones((1, len(y))))[0]
    return form if np.isclose(whole, metric.score(y, prediction), rtol=1e-9, atol=1e-9) else None


_Builder = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def _row_sums(rows: np.ndarray, finish: Callable[[np.ndarray, int], np.ndarray]) -> _Sums:
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
    "roc_auc_ovr": lambda y, p: _MeanOf(
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
