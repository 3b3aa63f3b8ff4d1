"""Greedy ensemble selection over out-of-fold predictions.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries
of models" (ICML 2004): models are added one at a time, with replacement, and
the blend that scored best along the way is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    metric: Metric, folds: Sequence[np.ndarray], predictions: dict[int, Sequence[np.ndarray]], *, steps: int = STEPS
) -> Blend:
    """Choose the blend of candidates that scores best, as the mean over the folds.

    Fold by fold, since models of different folds need not agree on a scale (ranking metrics would suffer).

    Args:
        metric: Greater is better.
        folds: Class indices or targets of each fold, (n_rows_of_fold,).
        predictions: Candidate → its out-of-fold predictions of each fold, (n_rows_of_fold[, n_classes]).
        steps: Additions at most.

    Returns:
        The best blend seen; equal scores keep the smaller one.
    """
    bounded = [_thinned(y, MOST_ROWS // len(folds)) for y in folds]
    targets = [y[rows] for y, rows in zip(folds, bounded, strict=True)]
    names = sorted(predictions)
    candidates = {
        k: [p[rows].astype(np.float64) for p, rows in zip(predictions[k], bounded, strict=True)] for k in names
    }
    counts = dict.fromkeys(names, 0)
    totals = [np.zeros_like(part) for part in candidates[names[0]]]
    best = Blend({}, -np.inf)
    for step in range(1, steps + 1):
        scores = {
            k: float(
                np.mean(
                    [metric.score(y, (t + c) / step) for y, t, c in zip(targets, totals, candidates[k], strict=True)]
                )
            )
            for k in names
        }
        winner = max(names, key=lambda k: (scores[k], -k))
        totals = [t + c for t, c in zip(totals, candidates[winner], strict=True)]
        counts[winner] += 1
        if scores[winner] > best.score:
            best = Blend({k: n / step for k, n in counts.items() if n}, scores[winner])
    return best


def _thinned(y: np.ndarray, most: int) -> np.ndarray:
    """Return evenly spaced positions, at most about ``most`` of them."""
    return np.arange(0, len(y), max(1, len(y) // most))
