"""Which configurations earn more folds, and which folds a blend may be chosen on.

Every configuration is fitted on the first fold.  Each further fold of a member
makes its part of the blend better (a bag of models); a member without further
folds stays in the blend with the one model that it has.  What a fold brings is
weighed by what was measured: a bag of f models has about :data:`BAG_GAIN` *
(1 - 1/f) less loss than one (docs/decisions/engine.md and frontier.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from factory.search.ensemble import Arena, bagged, resampled
from factory.search.metric import Metric
from factory.spec import Task

BAG_GAIN = {Task.BINARY: 0.006, Task.MULTICLASS: 0.04, Task.REGRESSION: 0.03}
"""Part of the loss that a large bag saves against a single model (measured; docs/decisions/frontier.md)."""
LEAST_WEIGHT = 0.05
"""A member with less weight in the blend of the first fold does not earn further folds."""
NEAR, CHANCE = 1.25, 0.2
"""Loss relative to the least up to which a bet gets its folds when there is time, and the share of resamples of the
rows in which it has to be so near: of few rows the losses differ by chance."""
DRAWS, CONTEST_ROWS, CONTEST_STEPS = 20, 2_000, 15
"""Resamples, rows looked at in each, and additions to a blend of them."""


def choose(
    metric: Metric, y: np.ndarray, predictions: Mapping[int, np.ndarray], *, weight: np.ndarray | None = None
) -> dict[int, float]:
    """Return the candidates that are worth further folds with their weights in the blend, the heaviest first.

    Args:
        metric: Greater is better.
        y: Validation rows of the first fold, (n_rows,).
        predictions: Candidate → its predictions of these rows, (n_rows[, n_classes]).
        weight: How much each row counts, (n_rows,); all the same if None.
    """
    shares = bagged(metric.chooser, y, predictions, weight=weight)
    order = sorted(shares, key=lambda n: (-shares[n], n))
    earners = [n for n in order if shares[n] >= LEAST_WEIGHT] or order[:1]
    return {n: shares[n] for n in earners}


def gain(weight: float, n_folds: int) -> float:
    """Return what one more fold of a member takes off the blend's loss, as a share of what a large bag would.

    Args:
        weight: Of the member in the blend.
        n_folds: That it has, 1 or more.

    >>> round(sum(gain(1.0, n) for n in range(1, 8)), 3)  # of eight folds in all
    0.875
    """
    return weight / (n_folds * (n_folds + 1))


def contenders(
    metric: Metric, y: np.ndarray, predictions: Mapping[int, np.ndarray], *, weight: np.ndarray | None = None
) -> frozenset[int]:
    """Return the candidates that may be near the best one: they are in one of a few resamples of the rows.

    Args:
        metric: Greater is better.
        y: Validation rows of the first fold, (n_rows,).
        predictions: Candidate → its predictions of these rows, (n_rows[, n_classes]).
        weight: How much each row counts, (n_rows,); all the same if None.
    """
    metric = metric.chooser
    draws = resampled(metric, y, most=DRAWS)
    near = dict.fromkeys(predictions, 0)
    first = _Rows([y], {n: [p] for n, p in predictions.items()}, None if weight is None else [weight])
    for rows in draws:
        arena = first.arena(metric, [rows])
        losses = {n: relative_loss(metric, arena.score({n: 1.0})) for n in predictions}
        least = min((loss for loss in losses.values() if np.isfinite(loss)), default=np.inf)
        for n, loss in losses.items():
            near[n] += loss <= NEAR * least
    return frozenset(n for n, times in near.items() if times >= CHANCE * len(draws))


def relative_loss(metric: Metric, score: float) -> float:
    """Return a score as a loss of which a percentage makes sense: of an AUC, what it lacks to 1."""
    return -score if metric.name.startswith("neg_") else 1 - score


def common_folds(
    metric: Metric,
    targets: Mapping[int, np.ndarray],
    predictions: Callable[[int, int], np.ndarray],
    folds: Mapping[int, tuple[int, ...]],
    *,
    weights: Mapping[int, np.ndarray] | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the candidates whose out-of-fold rows line up, and the folds that they all have.

    A blend is chosen on folds that all its members have, so few members have many of them and many have few. From the
    deepest on, more members with fewer folds take the place of fewer with more where they promise less loss on each
    half of the rows that both have. Weights are chosen without the half that they are judged by: of the fewer members
    by all other rows of all their folds, which is what speaks for them. What each member gains by being a bag of as
    many models as it has folds is taken off.

    Args:
        metric: Greater is better.
        targets: Fold → its validation rows' targets, (n_rows_of_fold,).
        predictions: Returns a candidate's predictions of a fold's rows, (n_rows_of_fold[, n_classes]).
        folds: Candidate → folds that it was fitted on; the first fold is among them.
        weights: Fold → how much each row counts, (n_rows_of_fold,); all the same if None.
    """
    found: tuple[int, ...] = ()
    for depth in sorted({len(done) for done in folds.values()}, reverse=True):
        members = tuple(n for n in sorted(folds) if len(folds[n]) >= depth)
        common = _shared(members, folds)
        if found:
            contest = _Contest(metric, targets, predictions, folds, weights, judged=common)
            if not contest.won_by(members, over=found):
                continue
        found = members
    return found, _shared(found, folds)


def _shared(members: Sequence[int], folds: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*(set(folds[n]) for n in members))))


@dataclass(frozen=True)
class _Rows:
    """Validation rows of some folds, as an :class:`~factory.search.ensemble.Arena` takes them."""

    targets: Sequence[np.ndarray]
    predictions: Mapping[int, Sequence[np.ndarray]]
    weights: Sequence[np.ndarray] | None

    def arena(self, metric: Metric, rows: Sequence[slice | np.ndarray]) -> Arena:
        """Return the arena of some rows of each fold."""
        return Arena(
            metric,
            [y[r] for y, r in zip(self.targets, rows, strict=True)],
            {n: [p[r] for p, r in zip(those, rows, strict=True)] for n, those in self.predictions.items()},
            weights=None if self.weights is None else [w[r] for w, r in zip(self.weights, rows, strict=True)],
            most_rows=CONTEST_ROWS,
        )


@dataclass(frozen=True)
class _Contest:
    """Two sets of candidates on the rows that both have; the fields are those of :func:`common_folds`.

    Attributes:
        judged: Folds that both have.
    """

    metric: Metric
    targets: Mapping[int, np.ndarray]
    predictions: Callable[[int, int], np.ndarray]
    folds: Mapping[int, tuple[int, ...]]
    weights: Mapping[int, np.ndarray] | None
    judged: tuple[int, ...]

    def won_by(self, members: Sequence[int], *, over: Sequence[int]) -> bool:
        """Return whether the blend of some candidates promises less loss than that of others, by each half."""
        ours, theirs = (self._promises(those) for those in (members, over))
        if ours is None or theirs is None:
            return self._alone(members) < self._alone(over)
        return all(a < b for a, b in zip(ours, theirs, strict=True))

    def _promises(self, members: Sequence[int]) -> list[float] | None:
        """Return the loss by each half of the judged rows of a blend that was chosen without that half.

        None where the metric is slow, or a half does not define it.
        """
        metric = self.metric.chooser
        if not metric.quick or min(len(self.targets[k]) for k in self.judged) < 2:
            return None
        folds = _shared(members, self.folds)
        known, judges = self._rows(members, folds), self._rows(members, self.judged)
        found = []
        for half in (0, 1):
            seen = [slice(1 - half, None, 2) if k in self.judged else slice(None) for k in folds]
            blend = known.arena(metric, seen).greedy(steps=CONTEST_STEPS).weights
            if not blend:
                return None
            score = judges.arena(metric, [slice(half, None, 2)] * len(self.judged)).score(blend)
            found.append(relative_loss(metric, score) * (1 - self._saved(blend)))
        return found if np.isfinite(found).all() else None

    def _alone(self, members: Sequence[int]) -> float:
        """Return the loss of the best candidate alone on all judged rows."""
        metric = self.metric.chooser
        arena = self._rows(members, self.judged).arena(metric, [slice(None)] * len(self.judged))
        losses = {n: np.nan_to_num(relative_loss(metric, arena.score({n: 1.0})), nan=np.inf) for n in members}
        best = min(losses, key=lambda n: (losses[n], n))
        return float(losses[best]) * (1 - self._saved({best: 1.0}))

    def _saved(self, blend: Mapping[int, float]) -> float:
        """Return the part of the loss that a blend's members save by being bags of the models that they have."""
        return BAG_GAIN[self.metric.task] * sum(w * (1 - 1 / len(self.folds[n])) for n, w in blend.items())

    def _rows(self, members: Sequence[int], folds: Sequence[int]) -> _Rows:
        return _Rows(
            [self.targets[k] for k in folds],
            {n: [self.predictions(n, k) for k in folds] for n in members},
            None if self.weights is None else [self.weights[k] for k in folds],
        )
