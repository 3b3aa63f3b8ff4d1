"""Bootstrap of scores: an interval for one prediction, a comparison of two on the same rows.

Both draw the same resamples for the same seed.  Rows that are ordered in time
are drawn in blocks of neighbouring moments, and rows of groups as whole groups,
since neighbours and members of a group err alike.  The usual metrics are sums
over rows (or, for the ROC AUC, over ranks), so that a resample is a vector of
row counts and a thousand of them a matrix product; any other scorer is called
once for each resample, and gets fewer.  How many is decided by the number of
rows and the probability that is asked for, never by the clock: same data and
seed, same interval.

A hundred resamples cannot tell 99 % from 99.9 %.  A tail that holds fewer than
ten of them is therefore not believed: a normal one is put beside it
(:func:`_tailed`), and the less extreme of both is what is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd

from factory.data.dataset import Dataset
from factory.errors import NotFound
from factory.search.metric import Metric
from factory.spec import Document, GroupSplit, Task, TimeSplit, Validation
from factory.variants.counted import CountedForm, MeanOf, counted_form

RESAMPLES = 1000
"""Enough for a 95 % percentile interval (Efron and Tibshirani, 1993, section 19.3)."""
MAX_CELLS = 20_000_000
"""Rows times resamples of the fast path: about a second on one core."""
SLOW_CELLS = 500_000
"""Rows times resamples where a scikit-learn scorer is called for each resample."""
SLOW_RESAMPLES = 400
"""Of such a scorer at most: a call takes 0.5 to 2 ms, however few the rows are."""
MIN_RESAMPLES = 100
"""Enough for a standard error, on which a normal tail rests (Efron and Tibshirani, 1993, section 6.4: 50 to 200)."""
TAIL = 10
"""Resamples that a tail has to hold to be counted: its relative error is then a third."""
LEAST_UNITS = 8
"""Moments from which on they are drawn in blocks, since of fewer nearly all blocks are the same; and groups from which
on they are drawn as they are."""
_BLOCK_CELLS = 2_000_000


def ranks(values: pd.Series) -> np.ndarray:
    """Return the rank of each row's moment, or group, among these rows', from 0 on without gaps, int64 (n_rows,)."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Dependence:
    """Which rows err alike, so that they are drawn together: those of a group, or of neighbouring moments.

    Attributes:
        unit: Number of each row's group, or rank of its moment, from 0 on without gaps, int64 (n_rows,).
        ordered: Whether they are moments, one after the other.
    """

    unit: np.ndarray
    ordered: bool

    @classmethod
    def of(cls, rows: Dataset, validation: Validation) -> Dependence | None:
        """Return that of rows which a validation has set aside; None where they are random, or lack its column."""
        if not isinstance(validation, TimeSplit | GroupSplit):
            return None
        try:
            values = rows.column(validation.column)
        except NotFound:  # rows of a parent, which was validated otherwise
            return None
        ordered = isinstance(validation, TimeSplit)
        if ordered and values.dtype == object:
            return None
        return cls(ranks(values if ordered else values.astype(str)), ordered)

    def take(self, rows: np.ndarray) -> Dependence:
        """Return that of the rows at some positions."""
        return Dependence(np.unique(self.unit[rows], return_inverse=True)[1], self.ordered)

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        """Return the positions of a resample's rows, int64; about (n_rows,) of them.

        Moments are drawn in blocks around a circle, so that the first and the last are drawn as often as others
        (Politis and Romano, 1992; the moving blocks are Kuensch's, 1989). A block is the square root of their number
        long, longer than the cube root that is best for a mean (Hall, Horowitz and Jing, 1995): of hourly rows that
        would be less than a day. Rows of a moment stay together.

        Groups are drawn as they are (the cluster bootstrap: Davison and Hinkley, 1997, section 3.8). A few of them vary
        too little, one not at all, so that of each that is drawn its rows are drawn again.
        """
        n_rows, n_units = len(self.unit), int(self.unit.max(initial=-1)) + 1
        if self.ordered and n_units < LEAST_UNITS:
            return generator.integers(n_rows, size=n_rows)
        if self.ordered:
            length = math.ceil(math.sqrt(n_units))
            starts = generator.integers(n_units, size=math.ceil(n_units / length))
            chosen = ((starts[:, np.newaxis] + np.arange(length)) % n_units).ravel()[:n_units]
        else:
            chosen = generator.integers(n_units, size=n_units)
        if self.ordered or n_units >= LEAST_UNITS:
            return np.repeat(np.arange(n_rows), np.bincount(chosen, minlength=n_units)[self.unit])
        sizes = np.bincount(self.unit)
        first, n_own = (np.cumsum(sizes) - sizes)[chosen], sizes[chosen]
        place = (generator.random(int(n_own.sum())) * np.repeat(n_own, n_own)).astype(np.int64)
        return np.asarray(np.argsort(self.unit, kind="stable")[np.repeat(first, n_own) + place])


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
        probability: That the difference is above ``margin``: the share of the resamples in which it is.
        tail: ``normal`` where too few resamples lie on the other side to be counted, and the probability is the less
            extreme one of the share and of a normal distribution with the resamples' spread.
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
    tail: Literal["counted", "normal"] = "counted"


def best_score(metric: Metric) -> float:
    """Return the best score there is: 0 of a loss, 1 of all others."""
    return 0.0 if metric.name.startswith("neg_") else 1.0


def bootstrap(
    metric: Metric,
    y: np.ndarray,
    prediction: np.ndarray,
    *,
    seed: int,
    weight: np.ndarray | None = None,
    dependence: Dependence | None = None,
    n: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Return the score with its percentile interval.

    Args:
        metric: What is measured.
        y: Class indices or targets (n_rows,).
        prediction: Probabilities (n_rows, n_classes) or predictions (n_rows,).
        seed: Of the resamples.
        weight: How much each row counts whenever it is drawn, (n_rows,); all the same if None.
        dependence: Which rows err alike; None where they are independent of each other.
        n: Resamples at most.
        confidence: Two-sided.
    """
    value = metric.score(y, prediction, weight=weight)
    (scores,) = _resampled(metric, _Judged(y, weight, dependence), [prediction], seed=seed, n=n)
    low, high = _ends(scores, confidence, otherwise=value)
    return Interval(value=value, low=low, high=high, confidence=confidence)


def paired_bootstrap(
    metric: Metric,
    y: np.ndarray,
    candidate: np.ndarray,
    baseline: np.ndarray,
    *,
    seed: int,
    weight: np.ndarray | None = None,
    dependence: Dependence | None = None,
    n: int = RESAMPLES,
    margin: float = 0.0,
    confidence: float = 0.95,
    asked: float | None = None,
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
        weight: How much each row counts whenever it is drawn, (n_rows,); all the same if None.
        dependence: Which rows err alike; None where they are independent of each other.
        n: Resamples at most; of a metric that is counted so many more that ``asked`` can be told by counting.
        margin: ``probability`` is of differences above this one.
        confidence: Of the two-sided interval.
        asked: The probability that a gate will ask for, where that is known.
    """
    candidate_score, baseline_score = (metric.score(y, p, weight=weight) for p in (candidate, baseline))
    difference = candidate_score - baseline_score
    most = max(n, _telling(asked) if asked else 0)
    first, second = _resampled(metric, _Judged(y, weight, dependence), [candidate, baseline], seed=seed, n=most)
    differences = first - second
    valid = differences[np.isfinite(differences)]
    probability, tail = _tailed(valid, difference, margin)
    low, high = _ends(differences, confidence, otherwise=difference)
    return Comparison(
        difference=difference,
        low=low,
        high=high,
        probability=probability,
        margin=margin,
        confidence=confidence,
        candidate=candidate_score,
        baseline=baseline_score,
        n_rows=len(y),
        n_resamples=len(valid),
        tail=tail,
    )


def _telling(asked: float) -> int:
    """Return the resamples of which ten lie beyond a probability."""
    return math.ceil(TAIL / (1 - asked) - 1e-9) if asked < 1 else 0


def _tailed(valid: np.ndarray, difference: float, margin: float) -> tuple[float, Literal["counted", "normal"]]:
    """Return the probability that the difference is above the margin, and how its tail was found.

    Where fewer than :data:`TAIL` resamples lie in the thinner tail, a normal distribution around the difference, with
    the resamples' standard deviation, says how thick it is (the standard interval of Efron and Tibshirani, 1993,
    chapter 13). It deviates from the counted one where the metric is skewed, so the thicker of both tails counts: no
    comparison stands, and no slice is blamed, by a normal tail that a resample contradicts.
    """
    if not len(valid):
        return float(difference > margin), "counted"
    share, spread = float((valid > margin).mean()), float(valid.std())
    if min(share, 1 - share) * len(valid) >= TAIL or spread <= 0:
        return share, "counted"
    normal = NormalDist(difference, spread).cdf(margin)
    above = min(share, 1 - normal) if share > 0.5 else max(share, 1 - normal)
    return above, "normal"


def _ends(scores: np.ndarray, confidence: float, *, otherwise: float) -> tuple[float, float]:
    valid = scores[np.isfinite(scores)]
    if not len(valid):
        return otherwise, otherwise
    low, high = np.quantile(valid, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Judged:
    """Rows that predictions are judged by: targets and how much each counts, (n_rows,); and which of them err alike."""

    y: np.ndarray
    weight: np.ndarray | None
    dependence: Dependence | None = None

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        """Return the positions of a resample's rows, int64; about (n_rows,) of them."""
        if self.dependence is None:
            return generator.integers(len(self.y), size=len(self.y))
        return self.dependence.drawn(generator)


def _resampled(
    metric: Metric, judged: _Judged, predictions: list[np.ndarray], *, seed: int, n: int
) -> list[np.ndarray]:
    """Return the scores (n_resamples,) of each prediction; NaN where a resample has only one class."""
    generator, y, weight = np.random.default_rng(seed), judged.y, judged.weight
    forms = [counted_form(metric, y, p, weight=weight) for p in predictions]
    if all(form is not None for form in forms):
        return _by_counts([form for form in forms if form is not None], judged, generator, n=n)
    resamples = _bounded(min(n, SLOW_RESAMPLES), SLOW_CELLS // max(len(y), 1))
    scores: list[list[float]] = [[] for _ in predictions]
    for _ in range(resamples):
        rows = judged.drawn(generator)
        whole = metric.task is Task.REGRESSION or len(np.unique(y[rows])) == len(np.unique(y))
        for found, prediction in zip(scores, predictions, strict=True):
            drawn = None if weight is None else weight[rows]
            found.append(metric.score(y[rows], prediction[rows], weight=drawn) if whole else np.nan)
    return [np.asarray(found) for found in scores]


def _bounded(n: int, allowed: int) -> int:
    return min(n, max(MIN_RESAMPLES, allowed))


def _by_counts(
    forms: list[CountedForm], judged: _Judged, generator: np.random.Generator, *, n: int
) -> list[np.ndarray]:
    n_rows = len(judged.y)
    parts = max(len(form.forms) if isinstance(form, MeanOf) else 1 for form in forms)
    resamples = _bounded(n, MAX_CELLS // max(n_rows * parts, 1))
    block = max(1, _BLOCK_CELLS // max(n_rows, 1))
    scores: list[list[np.ndarray]] = [[] for _ in forms]
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = np.empty((size, n_rows))
        for i in range(size):
            counts[i] = np.bincount(judged.drawn(generator), minlength=n_rows)
        if judged.weight is not None:
            counts *= judged.weight
        for found, form in zip(scores, forms, strict=True):
            found.append(form(counts))
    return [np.concatenate(found) for found in scores]
