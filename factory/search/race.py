"""Which configurations earn more folds, and which folds a blend may be chosen on.

Every configuration is fitted on the first fold.  Each further fold of a member
makes its part of the blend better (a bag of models); a member without further
folds stays in the blend with the one model that it has.  What a fold brings is
weighed by what was measured: a bag of f models has about :data:`BAG_GAIN` *
(1 - 1/f) less loss than one (docs/decisions/engine.md and frontier.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
        arena = first.arena(metric, rows)
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
    deepest on, more members with fewer folds take the place of fewer with more where they promise less loss on the
    rows that both have: on the half of them that the weights were not chosen by, less what each member gains by being
    a bag of as many models as it has folds.

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
            rows = _Rows(
                [targets[k] for k in common],
                {n: [predictions(n, k) for k in common] for n in members},
                None if weights is None else [weights[k] for k in common],
            )
            fewer, more = (_promise(metric, rows.of(those), folds) for those in (found, members))
            if more >= fewer:
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

    def of(self, members: Sequence[int]) -> _Rows:
        return replace(self, predictions={n: self.predictions[n] for n in members})

    def arena(self, metric: Metric, rows: slice | np.ndarray = slice(None)) -> Arena:
        """Return the arena of some rows of each fold."""
        return Arena(
            metric,
            [y[rows] for y in self.targets],
            {n: [p[rows] for p in those] for n, those in self.predictions.items()},
            weights=None if self.weights is None else [w[rows] for w in self.weights],
            most_rows=CONTEST_ROWS,
        )


def _promise(metric: Metric, rows: _Rows, folds: Mapping[int, tuple[int, ...]]) -> float:
    """Return the loss that the blend of some candidates promises, as bags of the models that they have."""
    loss, blend = _held_out(metric.chooser, rows)
    return loss * (1 - BAG_GAIN[metric.task] * sum(w * (1 - 1 / len(folds[n])) for n, w in blend.items()))


def _held_out(metric: Metric, rows: _Rows) -> tuple[float, dict[int, float]]:
    """Return the loss of a blend on the half of the rows that it was not chosen by, as the mean over both halves.

    The weights are the mean over both as well. Where the metric is slow, or a half does not define it, the best
    candidate alone is the blend, and its loss that of all rows.
    """
    whole = rows.arena(metric)
    alone = {n: relative_loss(metric, whole.score({n: 1.0})) for n in rows.predictions}
    best = min(alone, key=lambda n: (np.nan_to_num(alone[n], nan=np.inf), n))
    alternative = (float(np.nan_to_num(alone[best], nan=np.inf)), {best: 1.0})
    if not metric.quick:
        return alternative
    halves = [rows.arena(metric, slice(start, None, 2)) for start in (0, 1)]
    blends = [half.greedy(steps=CONTEST_STEPS).weights for half in halves]
    if not all(blends):
        return alternative
    losses = [relative_loss(metric, half.score(blend)) for half, blend in zip(halves, blends[::-1], strict=True)]
    if not np.isfinite(losses).all():
        return alternative
    mean = {n: sum(blend.get(n, 0.0) for blend in blends) / len(blends) for n in rows.predictions}
    return float(np.mean(losses)), {n: w for n, w in mean.items() if w}
