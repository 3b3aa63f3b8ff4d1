"""How sure each of many comparisons must be, so that all of them together are as sure as one was meant to be.

A gate that is right in 95 % of the cases, asked for 54 segments, lets two or
three through by luck.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def adjusted_confidence(probabilities: Sequence[float], *, confidence: float) -> tuple[float, ...]:
    """Return the confidence that each comparison has to reach when all of them are judged at once (Holm, 1979).

    A comparison stands where its probability is at least its own adjusted confidence. The chance that any stands by
    luck is then at most ``1 - confidence``.

    Args:
        probabilities: Of each comparison: that it holds.
        confidence: That one comparison alone has to reach.

    Returns:
        One for each comparison, in the same order; between ``confidence`` and :func:`strictest_confidence`.

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
    allowed = alpha / (n - np.arange(n))
    failed = np.flatnonzero(luck[order] > allowed + 1e-12)
    last = int(failed[0]) if len(failed) else n - 1
    return tuple((1 - allowed[np.minimum(place, last)]).tolist())


def strictest_confidence(n: int, *, confidence: float) -> float:
    """Return the confidence with which one of ``n`` comparisons stands whatever the others come to (Bonferroni).

    Holm's rule asks the luckiest for as much, and one that does not even reach ``confidence`` falls by it: only those
    in between have to wait for the others.

    >>> round(strictest_confidence(54, confidence=0.95), 5)
    0.99907
    """
    return 1 - (1 - confidence) / max(n, 1)


def stands(probability: float, confidence: float) -> bool:
    """Whether a comparison reaches its adjusted confidence; up to rounding."""
    return probability >= confidence - 1e-12
