"""Greedy ensemble selection over out-of-fold predictions.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries
of models" (ICML 2004): models are added one at a time, with replacement, and
the blend that scored best along the way is kept.

A step scores one blend for each candidate.  An :class:`Arena` therefore keeps
of each prediction only what the metric looks at (the probability of the true
class, the residual, the second class's probability) and scores all candidates
of a step at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from factory.search.metric import Metric
from factory.spec import Task

STEPS = 25
"""As in AutoGluon; further steps changed nothing on the measured sets."""
MOST_ROWS = 20_000
"""Rows that a step is scored on; the blend's noise is far below the differences that it is chosen by."""
MOST_CANDIDATES = 40
"""The best single ones go on after the first step; a weaker one was never chosen on the measured sets."""
ENOUGH_ROWS, MOST_BAGS = 8_000, 10
"""Rows from which on a blend is hardly chosen by noise, and blends of resamples where there are fewer."""
SLOW_ROWS, SLOW_CANDIDATES = 4_000, 8
"""The same bounds for a scorer that only scikit-learn has (1 to 5 ms a call), so that a blend takes seconds."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a blend is chosen from: predictions of rows that the models were not fitted on.

    Attributes:
        metric: Greater is better.
        targets: Class indices or targets of each fold that all candidates have, (n_rows_of_fold,).
        predictions: Trial number → its out-of-fold predictions of each of these folds, (n_rows_of_fold[, n_classes]).
        weights: How much each row counts, (n_rows_of_fold,); None where all count the same.
    """

    metric: Metric
    targets: tuple[np.ndarray, ...]
    predictions: dict[int, tuple[np.ndarray, ...]]
    weights: tuple[np.ndarray, ...] | None = None

    def score(self, predictions: Sequence[np.ndarray], metric: Metric) -> float:
        """Return the mean score over the folds of predictions of their rows, (n_rows_of_fold[, n_classes])."""
        weights = self.weights or (None,) * len(self.targets)
        folds = zip(self.targets, predictions, weights, strict=True)
        return float(np.mean([metric.score(y, p, weight=weight) for y, p, weight in folds]))

    def blended(self, weights: Mapping[int, float]) -> tuple[np.ndarray, ...]:
        """Return the blend's out-of-fold predictions of each fold, float64."""
        return tuple(
            np.sum([w * self.predictions[n][k].astype(np.float64) for n, w in weights.items()], axis=0)
            for k in range(len(self.targets))
        )


@dataclass(frozen=True)
class Blend:
    """Weights by candidate, summing to 1, and the score of the blend on the rows it was chosen on."""

    weights: dict[int, float]
    score: float


def greedy(
    metric: Metric,
    folds: Sequence[np.ndarray],
    predictions: Mapping[int, Sequence[np.ndarray]],
    *,
    weights: Sequence[np.ndarray] | None = None,
    steps: int = STEPS,
) -> Blend:
    """Choose the blend of candidates that scores best, as the mean over the folds.

    Fold by fold, since models of different folds need not agree on a scale (ranking metrics would suffer).

    Args:
        metric: Greater is better.
        folds: Class indices or targets of each fold, (n_rows_of_fold,).
        predictions: Candidate → its out-of-fold predictions of each fold, (n_rows_of_fold[, n_classes]).
        weights: How much each row counts, (n_rows_of_fold,); all the same if None.
        steps: Additions at most.

    Returns:
        The best blend seen; equal scores keep the smaller one. A metric of two classes' labels is served by the blend
        that ranks best; the score is the metric's own all the same. Without members where the metric is defined on
        no fold.
    """
    blend = Arena(metric.chooser, folds, predictions, weights=weights).greedy(steps=steps)
    if metric.chooser == metric:
        return blend
    if not blend.weights:  # folds of one class only rank nothing; their labels can be right all the same
        return Arena(metric, folds, predictions, weights=weights).greedy(steps=steps)
    chosen = {n: predictions[n] for n in blend.weights}
    return Blend(blend.weights, Arena(metric, folds, chosen, weights=weights).score(blend.weights))


def bagged(
    metric: Metric,
    y: np.ndarray,
    predictions: Mapping[int, np.ndarray],
    *,
    weight: np.ndarray | None = None,
) -> dict[int, float]:
    """Return the mean weights of the greedy blends of resamples of the rows, summing to 1 (Breiman 1996).

    What a blend of few rows is chosen by is noise to a good part: one resample takes this model, another one its
    equal.  Where rows are many, one blend of all of them is enough.

    Args:
        metric: Greater is better.
        y: Class indices or targets, (n_rows,).
        predictions: Candidate → its predictions of these rows, (n_rows[, n_classes]).
        weight: How much each row counts, (n_rows,); all the same if None.
    """
    mean: dict[int, float] = {}
    bags = resampled(metric, y)
    for rows in bags:
        shown = {n: [p[rows]] for n, p in predictions.items()}
        blend = greedy(metric, [y[rows]], shown, weights=None if weight is None else [weight[rows]])
        for n, w in blend.weights.items():
            mean[n] = mean.get(n, 0.0) + w
    total = sum(mean.values())
    return {n: mean[n] / total for n in sorted(mean)}


def resampled(metric: Metric, y: np.ndarray, *, most: int = MOST_BAGS) -> list[np.ndarray]:
    """Return positions of rows drawn with replacement, the more often the fewer rows there are; all rows if many.

    Args:
        metric: Of two classes the smaller one counts as the rows that there are. One that is not quick sees all rows
            once: a blend of 300 rows takes it a second, and a search asks for one after each trial.
        y: Class indices or targets, (n_rows,).
        most: Draws at most.
    """
    telling = 2 * int(np.bincount(y.astype(np.int64), minlength=2).min()) if metric.task is Task.BINARY else len(y)
    draws = min(most, ENOUGH_ROWS // max(telling, 1))
    if draws < 2 or not metric.quick:
        return [np.arange(len(y))]
    random = np.random.default_rng(len(y))
    return [random.integers(0, len(y), len(y)) for _ in range(draws)]


class Arena:
    """Candidates made ready to be blended and scored many times.

    Args:
        metric: Greater is better.
        folds: Class indices or targets of each fold, (n_rows_of_fold,).
        predictions: Candidate → its out-of-fold predictions of each fold, (n_rows_of_fold[, n_classes]).
        weights: How much each row counts, (n_rows_of_fold,); all the same if None.
        most_rows: Rows that are looked at, evenly spaced over all folds.
    """

    def __init__(
        self,
        metric: Metric,
        folds: Sequence[np.ndarray],
        predictions: Mapping[int, Sequence[np.ndarray]],
        *,
        weights: Sequence[np.ndarray] | None = None,
        most_rows: int = MOST_ROWS,
    ) -> None:
        self.names: tuple[int, ...] = tuple(sorted(predictions))
        self._most = MOST_CANDIDATES if metric.quick else SLOW_CANDIDATES
        most = max(1, (most_rows if metric.quick else min(most_rows, SLOW_ROWS)) // len(folds))
        self._folds = []
        for k, y in enumerate(folds):
            rows = _looked_at(y, most) if metric.task is Task.BINARY else thinned(len(y), most)
            shown = np.stack([predictions[n][k][rows] for n in self.names]).astype(np.float64)
            self._folds.append(_Fold.of(metric, y[rows], shown, None if weights is None else weights[k][rows]))
        self._telling = self._told_apart(metric)

    def score(self, weights: Mapping[int, float]) -> float:
        """Return the score of a blend, as the mean over the folds; NaN where it is not defined on any."""
        at = [self.names.index(n) for n in weights]
        shares = np.array(list(weights.values())) / sum(weights.values())
        blends = (np.tensordot(shares, fold.shown[at], axes=1)[None] for fold in self._folds)
        return float(_mean([fold.judge(blend) for fold, blend in zip(self._folds, blends, strict=True)])[0])

    def greedy(
        self,
        *,
        steps: int = STEPS,
        among: Collection[int] | None = None,
        affords: Callable[[frozenset[int]], bool] | None = None,
    ) -> Blend:
        """Choose the blend that scores best.

        Args:
            steps: Additions at most.
            among: Candidates that may be chosen; all if None.
            affords: Whether a set of members is allowed; every set if None.

        Returns:
            The best blend seen. It has no members, and scores -inf, where no single candidate is allowed, or the
            metric is defined on no fold.
        """
        places = [i for i, n in enumerate(self.names) if among is None or n in among]
        counts = dict.fromkeys(self.names, 0)
        members: frozenset[int] = frozenset()
        totals = [np.zeros(fold.shown.shape[1:]) for fold in self._folds]
        best = Blend({}, -np.inf)
        for step in range(1, steps + 1):
            open_ = [
                i for i in places if affords is None or self.names[i] in members or affords(members | {self.names[i]})
            ]
            open_ = [i for i in open_ if self._telling[i]] or open_
            if not open_:
                break
            scores = self._scores(totals, open_, step)
            # The first of equal ones: candidates stand in the order of their numbers.
            winner = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
            if step == 1 and len(open_) > self._most:
                places = sorted(open_[j] for j in np.argsort(-scores, kind="stable")[: self._most])
            place, name = open_[winner], self.names[open_[winner]]
            for total, fold in zip(totals, self._folds, strict=True):
                total += fold.shown[place]
            counts[name] += 1
            members |= {name}
            if scores[winner] > best.score:
                best = Blend({n: c / step for n, c in counts.items() if c}, float(scores[winner]))
        return best

    def _told_apart(self, metric: Metric) -> np.ndarray:
        """Whether each candidate can tell a blend anything, bool (n_candidates,).

        What is the same for all rows changes no ranking: it would only dull the blend's probabilities, and pass for a
        gain where rounding makes ties.
        """
        if not metric.ranks:
            return np.ones(len(self.names), dtype=bool)
        same = [(fold.shown == fold.shown[:, :1]).reshape(len(self.names), -1).all(axis=1) for fold in self._folds]
        return np.asarray(~np.all(same, axis=0))

    def _scores(self, totals: Sequence[np.ndarray], places: Sequence[int], step: int) -> np.ndarray:
        """Return what the blend would score with each of the candidates added, (len(places),)."""
        pairs = zip(totals, self._folds, strict=True)
        return _mean([fold.judge((total + fold.shown[places]) / step) for total, fold in pairs])


def _mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return the means over the folds that define a score; a fold of one class has no AUC. (n_blends,)."""
    table = np.stack(scores)
    told = ~np.isnan(table)
    return np.asarray(
        np.where(told.any(axis=0), np.where(told, table, 0).sum(axis=0) / np.maximum(told.sum(axis=0), 1), np.nan)
    )


Judge = Callable[[np.ndarray], np.ndarray]
"""Scores of blends (n_blends, n_rows[, n_classes]): float64 (n_blends,)."""


@dataclass(frozen=True, eq=False)
class _Fold:
    """What the metric looks at of each candidate, float64 (n_candidates, n_rows[, n_classes]), and how it judges."""

    shown: np.ndarray
    judge: Judge

    @classmethod
    def of(cls, metric: Metric, y: np.ndarray, predictions: np.ndarray, weight: np.ndarray | None) -> _Fold:
        """Reduce predictions (n_candidates, n_rows[, n_classes]) to what the metric looks at, where that is less."""
        if metric.name == "roc_auc" and metric.task is Task.BINARY:
            return cls(np.ascontiguousarray(predictions[:, :, 1]), _ranking(y, weight))
        if metric.name == "neg_log_loss":
            floor = np.finfo(np.float64).eps
            return cls(
                predictions[:, np.arange(len(y)), y],
                lambda blends: np.average(np.log(np.clip(blends, floor, 1)), axis=1, weights=weight),
            )
        if metric.task is Task.REGRESSION and metric.name in _OF_RESIDUALS:
            of_residuals = _OF_RESIDUALS[metric.name]
            return cls(predictions - y, lambda residuals: of_residuals(residuals, weight))
        return cls(predictions, lambda blends: np.array([metric.score(y, blend, weight=weight) for blend in blends]))


_OF_RESIDUALS: dict[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "neg_mean_squared_error": lambda r, w: -np.average(np.square(r), axis=1, weights=w),
    "neg_root_mean_squared_error": lambda r, w: -np.sqrt(np.average(np.square(r), axis=1, weights=w)),
    "neg_mean_absolute_error": lambda r, w: -np.average(np.abs(r), axis=1, weights=w),
}


def _ranking(y: np.ndarray, weight: np.ndarray | None) -> Judge:
    """Area under the ROC curve as the share of pairs in order (Mann and Whitney, 1947), from two sorted halves."""
    if weight is not None:
        auc = Metric("roc_auc", Task.BINARY)
        return lambda blends: np.array([auc.score(y, np.stack([1 - b, b], axis=1), weight=weight) for b in blends])
    few, many = sorted((np.flatnonzero(y == 1), np.flatnonzero(y == 0)), key=len)
    rising = len(few) == 0 or y[few[0]] == 1

    def judge(blends: np.ndarray) -> np.ndarray:
        if not len(few):
            return np.full(len(blends), np.nan)
        # float32 sorts in half the time; what it cannot tell apart, no caller would.
        narrow = blends.astype(np.float32)
        below = np.empty(len(blends))
        for i, blend in enumerate(narrow):
            needles, others = np.sort(blend[few]), np.sort(blend[many])
            left = np.searchsorted(others, needles, side="left").sum(dtype=np.int64)
            below[i] = (left + np.searchsorted(others, needles, side="right").sum(dtype=np.int64)) / 2
        share = below / (len(few) * len(many))
        return share if rising else 1 - share

    return judge


def _looked_at(y: np.ndarray, most: int) -> np.ndarray:
    """Return evenly spaced positions of two classes' rows; a class that they would all miss is taken whole."""
    rows = thinned(len(y), most)
    missed = np.isin(y, np.setdiff1d(y, y[rows]))
    return np.union1d(rows, np.flatnonzero(missed)) if missed.any() else rows


def thinned(n_rows: int, most: int) -> np.ndarray:
    """Return evenly spaced positions, ``most`` of them at most."""
    return np.arange(n_rows) if n_rows <= most else np.linspace(0, n_rows - 1, most).astype(np.int64)
