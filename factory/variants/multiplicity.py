"""How sure each of many comparisons must be, so that all of them together are as sure as one was meant to be.

A gate that is right in 95 % of the cases, asked for 54 segments, lets two or
three through by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Rule = Literal["holm", "benjamini_hochberg"]


def adjusted_confidence(probabilities: Sequence[float], *, confidence: float, rule: Rule = "holm") -> tuple[float, ...]:
    """Return the confidence that each comparison has to reach when all of them are judged at once.

    A comparison stands where its probability is at least its own adjusted confidence. By Holm's rule the chance that
    any stands by luck is at most ``1 - confidence``; by Benjamini and Hochberg's, the expected share of those that
    stand by luck among all that stand. For segments: put the adjusted confidence into the gates of each
    (``gates.model_copy(update={"confidence": ...})``) before judging.

    Args:
        probabilities: Of each comparison: share of its resamples in which it holds.
        confidence: That one comparison alone has to reach.
        rule: ``holm`` (Holm, 1979) or ``benjamini_hochberg`` (Benjamini and Hochberg, 1995).

    Returns:
        One for each comparison, in the same order; between ``confidence`` and 1.

    >>> [round(c, 4) for c in adjusted_confidence([1.0, 0.96, 0.99], confidence=0.95)]
    [0.9833, 0.95, 0.975]
    >>> [round(c, 4) for c in adjusted_confidence([1.0, 0.5, 0.96], confidence=0.95)]
    [0.9833, 0.975, 0.975]
    """
    n, alpha = len(probabilities), 1 - confidence
    luck = 1 - np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(luck, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    if rule == "holm":
        allowed = alpha / (n - np.arange(n))
        failed = np.flatnonzero(luck[order] > allowed + 1e-12)
        last = int(failed[0]) if len(failed) else n - 1
        return tuple((1 - allowed[np.minimum(place, last)]).tolist())
    allowed = alpha * (np.arange(n) + 1) / max(n, 1)
    stand = np.flatnonzero(luck[order] <= allowed + 1e-12)
    return (float(1 - allowed[stand[-1] if len(stand) else 0]),) * n if n else ()


def stands(probability: float, confidence: float) -> bool:
    """Whether a comparison reaches its adjusted confidence; up to rounding."""
    return probability >= confidence - 1e-12
