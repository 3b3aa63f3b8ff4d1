"""Whether a canary does worse than the champion: a test that may be looked at after every call.

Each question is a bet against the canary being good enough (Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", 2024): from
one unit of capital, a part of it is staked on every observation.  While the
canary is good enough the capital is a supermartingale, so that by Ville's
inequality (1939) it ever reaches 1/alpha with a probability of alpha at most,
however often and whenever one looks.  The capital is spread evenly over some
stakes, since nobody knows beforehand how bad a bad canary is.

Nor when it becomes bad: half of the capital is staked from the first call on,
and what is left over is, bit by bit, with every call that follows.  So there is
always some that a long good time has not used up (a mixture over the call at
which a bet begins, which is a supermartingale too, since what is added depends
on the number of calls alone).

How long a call takes depends on its rows first of all, and a key, which decides
who answers, may always come with many.  So only calls of about as many rows are
compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from factory.ledger import CanaryCounts, CanaryRecord

ALPHA = 0.01
"""Probability that a canary which is good enough is ever withdrawn, by both questions together."""
MOST_ERRORS = 0.01
"""Part of a canary's calls that may fail where the champion answers."""
SLOWER = 1.5
"""A canary is slower if in more than half of the comparisons it takes so many times what the champion took."""
ALIKE = 1.25
"""Calls are compared whose rows differ by less than this factor: well below :data:`SLOWER`, so that rows alone make
none slower."""
PART = 8
"""Calls that are taken together: a bet begins before the first of them."""
MOST_PARTS = 200
"""Parts that wait for the ledger; where there are more, two are made one."""
_STAKES = (0.05, 0.15, 0.3, 0.6, 0.95)
"""Parts of the largest stake by which no bet loses more than there is."""
_ONE = [[math.log1p(stake / most * (1 - most)) for stake in _STAKES] for most in (MOST_ERRORS, 0.5)]
_ZERO = [math.log1p(-stake) for stake in _STAKES]
"""What an observation that is 1, or 0, does to the logarithm of a bet, by question and stake, and by stake."""


def after(known: CanaryRecord, seen: Sequence[CanaryCounts]) -> CanaryRecord:
    """Return what is known of a canary after what was seen of it since.

    Args:
        known: Before. Where there are counts without bets, the bets are made by these at once.
        seen: What is new, by parts in their order; within a part the order makes no difference.
    """
    if not known.bets:
        seen = [known.counts, *seen] if known.counts.calls else seen
        known = CanaryRecord(CanaryCounts(), (1 - _left(0),) * (2 * len(_STAKES)))
    failures, speed = _halves(known)
    counts = known.counts
    for part in seen:
        failures = _bet(failures, _ONE[0], part.failed, part.calls, before=counts.calls)
        speed = _bet(speed, _ONE[1], part.slower, part.compared, before=counts.compared)
        counts += part
    return CanaryRecord(counts, (*failures, *speed))


def capitals(known: CanaryRecord) -> tuple[float, float]:
    """Return what one unit has become that was bet against a canary's answers, and one against its speed."""
    failures, speed = (math.fsum(bets) / len(_STAKES) for bets in _halves(after(known, ())))
    return failures + _left(known.counts.calls), speed + _left(known.counts.compared)


def _halves(known: CanaryRecord) -> tuple[Sequence[float], Sequence[float]]:
    return known.bets[: len(_STAKES)], known.bets[len(_STAKES) :]


def _bet(worth: Sequence[float], one: Sequence[float], ones: int, n: int, *, before: int) -> Sequence[float]:
    """Return what the bets of a question are worth after observations, and with what is staked anew on those to come.

    Args:
        worth: Before, by stake.
        one: Logarithm of what an observation that is 1 does to each.
        ones: Observations that were 1.
        n: All of them.
        before: All that came before them.
    """
    if not n:
        return worth
    new = _left(before) - _left(before + n)
    logs = (ones * up + (n - ones) * down for up, down in zip(one, _ZERO, strict=True))
    return [min(bet * math.exp(min(log, 300.0)), 1e100) + new for bet, log in zip(worth, logs, strict=True)]


def _left(n: int) -> float:
    """Return the capital that is not staked yet after so many observations."""
    return 0.5 / math.log2(n + 2)


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
    """Watches one canary beside its champion.

    What the ledger was told by all replicas decides; what this one has seen since only says what to expect.

    Args:
        alpha: As :data:`ALPHA`.
        fleet: What all replicas have told the ledger so far.
    """

    alpha: float = ALPHA
    fleet: CanaryRecord = field(default_factory=CanaryRecord)
    _telling: list[CanaryCounts] = field(default_factory=list)
    _parts: list[CanaryCounts] = field(default_factory=list)
    _open: CanaryCounts = field(default_factory=CanaryCounts)
    _size: int = PART
    _known: CanaryRecord = field(init=False)
    _champion_ms: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known = self.fleet

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
        self._see(CanaryCounts(calls=1, compared=int(compared), slower=int(slower)))

    def failed(self) -> None:
        """Take that the canary has failed where the champion answers."""
        self._see(CanaryCounts(calls=1, failed=1))

    def take(self) -> tuple[CanaryCounts, ...]:
        """Return what this replica has seen and not yet told the ledger, by parts; until it is told it is taken again.

        Where a part ends depends on the number of calls alone, and on the clock: never on what becomes of them.
        """
        self._close()
        self._telling = _fewer([*self._telling, *self._parts])
        self._parts, self._size = [], PART
        return tuple(self._telling)

    def told(self, fleet: CanaryRecord) -> None:
        """Take that the ledger was told what was taken, and what it knows now of all replicas."""
        self.fleet, self._telling = fleet, []
        self._known = after(fleet, self._parts)

    @property
    def counts(self) -> CanaryCounts:
        """What is known of the canary here."""
        return self._known.counts + self._open

    @property
    def verdict(self) -> str:
        """Why the canary is to be withdrawn, by what all replicas have told; empty while it may stay."""
        return self._found(self.fleet)

    @property
    def suspicion(self) -> str:
        """The same by what this replica has seen since as well, while others may have seen better: it can only wait."""
        return self._found(after(self._known, [self._open]))

    def _see(self, one: CanaryCounts) -> None:
        self._open += one
        if self._open.calls >= self._size:
            self._close()
            if len(self._parts) > MOST_PARTS:
                self._parts, self._size = _fewer(self._parts), 2 * self._size

    def _close(self) -> None:
        if self._open.calls:
            self._known = after(self._known, [self._open])
            self._parts.append(self._open)
            self._open = CanaryCounts()

    def _found(self, known: CanaryRecord) -> str:
        seen, most = known.counts, 2 / self.alpha
        failures, speed = capitals(known)
        if failures >= most:
            lately = "" if seen.failed > MOST_ERRORS * seen.calls else ", too many of them one soon after the other"
            return (
                f"{seen.failed:,} of its {seen.calls:,} calls failed where the champion answered{lately}; "
                f"{MOST_ERRORS:.0%} may"
            )
        if speed >= most:
            lately = "" if 2 * seen.slower > seen.compared else ", too many of them one soon after the other"
            return (
                f"it took more than {SLOWER:g} times as long as the champion in {seen.slower:,} of {seen.compared:,} "
                f"comparisons{lately}; half of them may"
            )
        return ""


def _fewer(parts: list[CanaryCounts]) -> list[CanaryCounts]:
    """Return parts as they are, or of too many always two as one."""
    while len(parts) > MOST_PARTS:
        parts = [sum(parts[i : i + 2], CanaryCounts()) for i in range(0, len(parts), 2)]
    return parts
