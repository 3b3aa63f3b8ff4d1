"""Whether a canary does worse than the champion: a test that may be looked at after every call.

Each question is a bet against the canary being good enough (Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", 2024): from
one unit of capital, a part of it is staked on every observation.  While the
canary is good enough the capital is a supermartingale, so that by Ville's
inequality (1939) it ever reaches 1/alpha with a probability of alpha at most,
however often and whenever one looks.  The capital is spread evenly over some
stakes, since nobody knows beforehand how bad a bad canary is.

Each observation is a failure or none, so that the capital follows from counts
alone, which replicas add up in the ledger: one test for the whole fleet.

How long a call takes depends on its rows first of all, and a key, which decides
who answers, may always come with many.  So only calls of about as many rows are
compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from factory.ledger import CanaryCounts

ALPHA = 0.01
"""Probability that a canary which is good enough is ever withdrawn, by both questions together."""
MOST_ERRORS = 0.01
"""Part of a canary's calls that may fail where the champion answers."""
SLOWER = 1.5
"""A canary is slower if in more than half of the comparisons it takes so many times what the champion took."""
ALIKE = 1.25
"""Calls are compared whose rows differ by less than this factor: well below :data:`SLOWER`, so that rows alone make
none slower."""
_STAKES = np.array([0.05, 0.15, 0.3, 0.6, 0.95])
"""Parts of the largest stake by which no bet loses more than there is."""


def capital(n_ones: int, n: int, *, most: float) -> float:
    """Return what one unit has become that was bet against the mean of observations, each 0 or 1, being ``most``.

    Args:
        n_ones: Observations that were 1.
        n: All of them; their order makes no difference.
        most: The mean under which the bets lose in the long run.
    """
    logs = n_ones * np.log1p(_STAKES / most * (1 - most)) + (n - n_ones) * np.log1p(-_STAKES)
    return float(np.mean(np.exp(np.minimum(logs, 700.0))))


@dataclass(frozen=True, slots=True)
class Took:
    """What a prediction took.

    Attributes:
        rows: That it was of.
        ms: From the columns to the answer.
    """

    rows: int
    ms: float

    @property
    def size(self) -> int:
        """Group of predictions that it is compared with."""
        return int(math.log(max(self.rows, 1)) / math.log(ALIKE))


@dataclass
class Guard:
    """Watches one canary beside its champion, by what all replicas have seen of it.

    Args:
        alpha: As :data:`ALPHA`.
        fleet: What all replicas have told the ledger so far.
    """

    alpha: float = ALPHA
    fleet: CanaryCounts = field(default_factory=CanaryCounts)
    _own: CanaryCounts = field(default_factory=CanaryCounts)
    _champion_ms: dict[int, float] = field(default_factory=dict)

    def champion(self, took: Took) -> None:
        """Take how long the champion took for a call."""
        self._champion_ms[took.size] = took.ms

    def answered(self, took: Took | None) -> None:
        """Take that the canary has answered, and how long it took if that was a prediction of its own.

        It is compared with the champion's last call of about as many rows, and each of those once.
        """
        champion_ms = None if took is None else self._champion_ms.pop(took.size, None)
        compared = took is not None and champion_ms is not None
        slower = took is not None and champion_ms is not None and took.ms > SLOWER * champion_ms
        self._own += CanaryCounts(calls=1, compared=int(compared), slower=int(slower))

    def failed(self) -> None:
        """Take that the canary has failed where the champion answers."""
        self._own += CanaryCounts(calls=1, failed=1)

    @property
    def untold(self) -> CanaryCounts:
        """What this replica has seen, and not yet told the ledger."""
        return self._own

    def tell(self, told: CanaryCounts, fleet: CanaryCounts) -> None:
        """Take that the ledger has been told something, and what it knows now of all replicas."""
        self._own, self.fleet = self._own - told, fleet

    @property
    def counts(self) -> CanaryCounts:
        """What is known of the canary."""
        return self.fleet + self._own

    @property
    def verdict(self) -> str:
        """Why the canary is to be withdrawn; empty while it may stay."""
        seen, most = self.counts, 2 / self.alpha
        if capital(seen.failed, seen.calls, most=MOST_ERRORS) >= most:
            return (
                f"{seen.failed / seen.calls:.1%} of its {seen.calls:,} calls failed where the champion answered; "
                f"{MOST_ERRORS:.0%} may"
            )
        if capital(seen.slower, seen.compared, most=0.5) >= most:
            return (
                f"it took more than {SLOWER:g} times as long as the champion in {seen.slower / seen.compared:.0%} of "
                f"{seen.compared:,} comparisons"
            )
        return ""
