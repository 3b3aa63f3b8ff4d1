"""Which configurations earn more folds, and which folds a blend may be chosen on.

Every configuration is fitted on the first fold.  More folds of a member make
the blend better (a bag of models), and so do more members; both cost time.
The choice weighs them by what was measured: a bag of f models has about
:data:`BAGGING_GAIN` * (1 - 1/f) less loss than one (docs/decisions/engine.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from factory.search.ensemble import Arena, bagged, greedy, resampled
from factory.search.metric import Metric

BAGGING_GAIN = 0.03
"""Loss that a large bag saves against a single model: 2.5 to 4.4 % on six of seven sets with five folds."""
LEAST_WEIGHT = 0.05
"""A member with less weight in the blend of the first fold does not earn further folds."""
NEAR, CHANCE = 1.25, 0.2
"""Loss relative to the least up to which a bet gets its folds when there is time, and the share of resamples of the
rows in which it has to be so near: of few rows the losses differ by chance."""
DRAWS, CONTEST_ROWS, CONTEST_STEPS = 20, 2_000, 15
"""Resamples, rows looked at in each, and additions to a blend of them."""
COST_GROWTH = 1.1
"""A further fold costs what the first one did, give or take; some more, so that rounds are not left unfinished."""


def choose(
    metric: Metric,
    y: np.ndarray,
    predictions: Mapping[int, np.ndarray],
    *,
    weight: np.ndarray | None = None,
    fold_costs: Mapping[int, float],
    core_s: float,
    more_folds: int,
) -> tuple[int, ...]:
    """Return the candidates that are worth further folds, the heaviest first.

    Args:
        metric: Greater is better.
        y: Validation rows of the first fold, (n_rows,).
        predictions: Candidate → its predictions of these rows, (n_rows[, n_classes]).
        weight: How much each row counts, (n_rows,); all the same if None.
        fold_costs: Candidate → seconds that one fold takes.
        core_s: Core seconds that are left for folds; infinite where time does not count.
        more_folds: Folds beyond the first.
    """
    metric, weights = metric.chooser, None if weight is None else [weight]
    shares = bagged(metric, y, predictions, weight=weight)
    order = sorted(shares, key=lambda n: (-shares[n], n))
    order = [n for n in order if shares[n] >= LEAST_WEIGHT] or order[:1]
    best, chosen = float("inf"), order
    for size in range(1, len(order) + 1):
        members = order[:size]
        score = greedy(metric, [y], {n: [predictions[n]] for n in members}, weights=weights).score
        round_s = COST_GROWTH * sum(fold_costs[n] for n in members)
        rounds = more_folds if more_folds * round_s <= core_s else int(core_s / round_s)
        loss = relative_loss(metric, score) * (1 - BAGGING_GAIN * (1 - 1 / (1 + rounds)))
        if loss < best:
            best, chosen = loss, members
    return tuple(chosen)


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
    for rows in draws:
        arena = _arena(metric, y, predictions, weight, rows)
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
    y: np.ndarray,
    first: Mapping[int, np.ndarray],
    folds: Mapping[int, tuple[int, ...]],
    *,
    weight: np.ndarray | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the candidates whose out-of-fold rows line up, and the folds that they all have.

    A blend is chosen on folds that all its members have, so few members have many of them and many have few. Of the
    possible depths the one counts whose blend promises the least loss: what it has on rows of the first fold that its
    weights were not chosen by, less what a bag of so many models gains.

    Args:
        metric: Greater is better.
        y: Validation rows of the first fold, (n_rows,).
        first: Candidate → its predictions of these rows, (n_rows[, n_classes]).
        folds: Candidate → folds that it was fitted on; the first fold is among them.
        weight: How much each row counts, (n_rows,); all the same if None.
    """
    least, found = np.inf, tuple(sorted(folds))
    for depth in sorted({len(done) for done in folds.values()}, reverse=True):
        members = tuple(n for n in sorted(folds) if len(folds[n]) >= depth)
        loss = _promised_loss(metric.chooser, y, {n: first[n] for n in members}, weight)
        loss *= 1 - BAGGING_GAIN * (1 - 1 / depth)
        if loss < least:
            least, found = loss, members
    return found, tuple(sorted(set.intersection(*(set(folds[n]) for n in found))))


def _promised_loss(
    metric: Metric, y: np.ndarray, predictions: Mapping[int, np.ndarray], weight: np.ndarray | None
) -> float:
    """Return the loss of a blend on the half of the rows that it was not chosen by, as the mean over both halves.

    Of the best candidate alone, on all rows, where the metric is slow or a half does not define it.
    """
    whole = _arena(metric, y, predictions, weight, np.arange(len(y)))
    alone = [relative_loss(metric, whole.score({n: 1.0})) for n in predictions]
    best = min((loss for loss in alone if np.isfinite(loss)), default=np.inf)
    if not metric.quick:
        return best
    halves = [_arena(metric, y, predictions, weight, np.arange(start, len(y), 2)) for start in (0, 1)]
    blends = [half.greedy(steps=CONTEST_STEPS).weights for half in halves]
    if not all(blends):
        return best
    losses = [relative_loss(metric, half.score(blend)) for half, blend in zip(halves, blends[::-1], strict=True)]
    return float(np.mean(losses)) if np.isfinite(losses).all() else best


def _arena(
    metric: Metric,
    y: np.ndarray,
    predictions: Mapping[int, np.ndarray],
    weight: np.ndarray | None,
    rows: np.ndarray,
) -> Arena:
    return Arena(
        metric,
        [y[rows]],
        {n: [p[rows]] for n, p in predictions.items()},
        weights=None if weight is None else [weight[rows]],
        most_rows=CONTEST_ROWS,
    )
