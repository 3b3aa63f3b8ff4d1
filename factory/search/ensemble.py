"""Greedy ensemble selection over out-of-fold predictions.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries
of models" (ICML 2004): models are added one at a time, with replacement, and
the blend that scored best along the way is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from factory.search.metric import Metric

STEPS = 25
"""As in AutoGluon; further steps changed nothing on the measured sets."""
MOST_ROWS = 20_000
"""Rows that a step is scored on; the blend's noise is far below the differences that it is chosen by."""


@dataclass(frozen=True)
class Blend:
    """Weights by candidate, summing to 1, and the score of the blend on the rows it was chosen on."""

    weights: dict[int, float]
    score: float


def greedy(
    metric: Metric, y: np.ndarray, predictions: dict[int, np.ndarray], *, steps: int = STEPS, seed: int = 0
) -> Blend:
    """Choose the blend of candidates that scores best.

    Args:
        metric: Greater is better.
        y: Class indices or targets, (n_rows,).
        predictions: Candidate → probabilities (n_rows, n_classes) or predictions (n_rows,).
        steps: Additions at most.
        seed: Chooses the rows where there are more than :data:`MOST_ROWS`.

    Returns:
        The best blend seen; equal scores keep the smaller one.
    """
    if len(y) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(y), MOST_ROWS, replace=False))
        y, predictions = y[rows], {k: p[rows] for k, p in predictions.items()}
    names = sorted(predictions)
    candidates = {k: predictions[k].astype(np.float64) for k in names}
    counts = dict.fromkeys(names, 0)
    total = np.zeros_like(candidates[names[0]])
    best = Blend({}, -np.inf)
    for step in range(1, steps + 1):
        scores = {k: metric.score(y, (total + candidates[k]) / step) for k in names}
        winner = max(names, key=lambda k: (scores[k], -k))
        total += candidates[winner]
        counts[winner] += 1
        if scores[winner] > best.score:
            best = Blend({k: n / step for k, n in counts.items() if n}, scores[winner])
    return best
