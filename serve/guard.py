"""Whether a canary does worse than the champion: a test that may be looked at after every call.

Each question is a bet against the canary being good enough (Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", 2024): from
one unit of capital, a part of it is staked on every observation.  While the
canary is good enough the capital is a supermartingale, so that by Ville's
inequality (1939) it ever reaches 1/alpha with a probability of alpha at most,
however often and whenever one looks.  The capital is spread evenly over some
stakes, since nobody knows beforehand how bad a bad canary is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ALPHA = 0.01
"""Probability that a canary which is good enough is ever withdrawn, by both questions together."""
MOST_ERRORS = 0.01
"""Part of a canary's calls that may fail where the champion answers."""
SLOWER = 1.5
"""A canary is slower if in more than half of the comparisons it takes so many times what the champion took."""
_STAKES = np.array([0.05, 0.15, 0.3, 0.6, 0.95])
"""Parts of the largest stake by which no bet loses more than there is."""


@dataclass
class Bet:
    """A bet against the mean of observations in [0, 1] being ``most`` at most.

    Args:
        most: The mean under which it loses in the long run.
    """

    most: float
    n: int = 0
    total: float = 0.0
    _capital: np.ndarray = field(default_factory=lambda: np.zeros(len(_STAKES)))

    def see(self, x: float) -> None:
        """Take an observation."""
        self.n += 1
        self.total += x
        self._capital += np.log1p(_STAKES / self.most * (x - self.most))

    @property
    def capital(self) -> float:
        """What the unit that it began with has become."""
        return float(np.mean(np.exp(np.minimum(self._capital, 700.0))))

    @property
    def mean(self) -> float:
        """Of the observations; 0 where there was none."""
        return self.total / self.n if self.n else 0.0


@dataclass
class Guard:
    """Watches one canary beside its champion.

    Args:
        alpha: As :data:`ALPHA`.
    """

    alpha: float = ALPHA
    errors: Bet = field(default_factory=lambda: Bet(MOST_ERRORS))
    slower: Bet = field(default_factory=lambda: Bet(0.5))
    _champion_ms: float | None = None

    def champion(self, ms: float) -> None:
        """Take how long the champion took for a call."""
        self._champion_ms = ms

    def answered(self, ms: float) -> None:
        """Take that the canary has answered, and how long it took; each call of the champion is compared with once."""
        self.errors.see(0.0)
        if self._champion_ms is not None:
            self.slower.see(float(ms > SLOWER * self._champion_ms))
            self._champion_ms = None

    def failed(self) -> None:
        """Take that the canary has failed where the champion answers."""
        self.errors.see(1.0)

    @property
    def verdict(self) -> str:
        """Why the canary is to be withdrawn; empty while it may stay."""
        most = 2 / self.alpha
        if self.errors.capital >= most:
            return (
                f"{self.errors.mean:.1%} of its {self.errors.n:,} calls failed where the champion answered; "
                f"{MOST_ERRORS:.0%} may"
            )
        if self.slower.capital >= most:
            return (
                f"it took more than {SLOWER:g} times as long as the champion in {self.slower.mean:.0%} of "
                f"{self.slower.n:,} comparisons"
            )
        return ""
