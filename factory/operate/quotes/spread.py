"""Estimates with their 80 % interval: how they add up, and how what happened corrects them.

The correction is conformal prediction with residuals in units of the own
interval (Papadopoulos, Gammerman and Vovk, 2008, "Normalized nonconformity
measures"; Lei et al., 2018), so that requests of very different size teach
each other.  Split conformal needs dozens of cases before it says anything;
here the prior counts as a few cases of its own, so that one past request moves
the interval a little and forty make it what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from statistics import NormalDist

import numpy as np

PRIOR_CASES = 4.0
"""Past requests that the stated prior counts as much as."""
LOW, HIGH = 0.1, 0.9
_GRID = 25
_PRIOR = np.array([NormalDist().inv_cdf((k + 0.5) / _GRID) / NormalDist().inv_cdf(HIGH) for k in range(_GRID)])
"""Cases of the prior in units of its interval: -1 and 1 are its ends."""
_OUTLIER = 8.0
"""Residual beyond which a case counts no more: a machine that slept says nothing of the next request."""


@dataclass(frozen=True)
class Spread:
    """An estimate of something that is not negative, and its 80 % interval.

    >>> Spread(3, 5, 9) + Spread(6, 10, 13)
    Spread(low=10.53, mid=15.00, high=20.00)
    """

    low: float
    mid: float
    high: float

    def __repr__(self) -> str:
        return f"Spread(low={self.low:.2f}, mid={self.mid:.2f}, high={self.high:.2f})"

    def __add__(self, other: Spread) -> Spread:
        """Return the sum of two that do not depend on each other."""
        mid = self.mid + other.mid
        return Spread(
            mid - hypot(self.mid - self.low, other.mid - other.low),
            mid,
            mid + hypot(self.high - self.mid, other.high - other.mid),
        )

    def times(self, factor: float) -> Spread:
        """Return a multiple of it."""
        return Spread(factor * self.low, factor * self.mid, factor * self.high)

    def by(self, other: Spread) -> Spread:
        """Return the product with one that goes the same way: where this is low, the other one is low too.

        >>> Spread(0.5, 1, 2).by(Spread(2, 4, 8))
        Spread(low=1.00, mid=4.00, high=16.00)
        """
        return Spread(self.low * other.low, self.mid * other.mid, self.high * other.high)

    def between(self, least: float, most: float) -> Spread:
        """Return it where nothing can be less or more.

        >>> Spread(1, 20, 90).between(5, 60)
        Spread(low=5.00, mid=20.00, high=60.00)
        """
        low, mid, high = (min(max(value, least), most) for value in (self.low, self.mid, self.high))
        return Spread(low, mid, high)

    def residual(self, actual: float) -> float:
        """Return how far off a case was, in units of the interval's half on its side.

        >>> Spread(8, 10, 14).residual(12), Spread(8, 10, 14).residual(8)
        (0.5, -1.0)
        """
        half = self.high - self.mid if actual > self.mid else self.mid - self.low
        return (actual - self.mid) / max(half, 1e-9)

    def corrected(self, residuals: Sequence[float]) -> Spread:
        """Return it as past cases say, the prior among them.

        Args:
            residuals: Of past cases, each by the estimate that was made of it in the same way.

        >>> Spread(8, 10, 14).corrected([])
        Spread(low=8.00, mid=10.00, high=14.00)
        >>> Spread(8, 10, 14).corrected([0.4, 0.5, 0.6] * 10)
        Spread(low=11.60, mid=12.00, high=12.40)
        """
        low, mid, high = (self._at(z) for z in _quantiles(residuals))
        return Spread(low, mid, high)

    def _at(self, z: float) -> float:
        return self.mid + z * (self.high - self.mid if z > 0 else self.mid - self.low)


def _quantiles(residuals: Sequence[float]) -> list[float]:
    """Return the low end, the middle and the high end of past and prior cases."""
    known = np.array([z for z in residuals if abs(z) <= _OUTLIER])
    cases = np.concatenate([_PRIOR, known])
    weights = np.concatenate([np.full(_GRID, PRIOR_CASES / _GRID), np.ones(len(known))])
    order = np.argsort(cases, kind="stable")
    places = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    return [float(np.interp(share, places, cases[order])) for share in (LOW, 0.5, HIGH)]
