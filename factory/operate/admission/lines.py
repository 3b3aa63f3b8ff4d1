"""What each team holds and may take, and the lines in which its requests wait."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from factory.operate.admission.terms import (
    DEPTH,
    PRIORITY_S,
    Amounts,
    Capacity,
    Running,
    TeamLoad,
    Waiting,
    dominant_share,
    fits,
    plus,
)
from factory.spec import Quota

NOTHING: Amounts = (0.0, 0.0, 0.0)
_ID, _SINCE = attrgetter("id"), attrgetter("since")


def guaranteed(quota: Quota, capacity: Capacity) -> Amounts:
    """Return what a quota guarantees.

    CPUs and memory that it does not name come along, in proportion to what it names: with half of the CPUs goes half
    of the memory, since either is of no use alone.  GPUs have to be named.

    >>> guaranteed(Quota(cpus=8), Capacity(16, 4, 64))
    (8.0, 0.0, 32.0)
    >>> guaranteed(Quota(cpus=2, gpus=1), Capacity(16, 4, 64))
    (2.0, 1.0, 16.0)
    """
    named = (quota.cpus or 0.0, quota.gpus or 0.0, quota.memory_gb or 0.0)
    part = dominant_share(named, capacity)
    return (
        part * capacity.cpus if quota.cpus is None else quota.cpus,
        named[1],
        part * capacity.memory_gb if quota.memory_gb is None else quota.memory_gb,
    )


class Account:
    """A team in one decision.

    Attributes:
        load: The team.
        guaranteed: What its quota guarantees.
        used: What it holds, what it was given or promised in this decision included.
        promised: The part of it that others still hold.
        staying: What it holds already and is not about to give back; what others may reclaim of it is taken off.
        n_open: Its requests that run, those of this decision included.
        share: Its dominant share by its weight.
        lines: Its lines: one, or with GPUs a second one.
    """

    __slots__ = ("_capacity", "guaranteed", "lines", "load", "n_open", "promised", "share", "staying", "used")

    def __init__(self, load: TeamLoad, capacity: Capacity) -> None:
        self.load = load
        self.guaranteed = guaranteed(load.quota, capacity)
        self.used = self.promised = self.staying = NOTHING
        self.n_open = 0
        self.share = 0.0
        self.lines: list[Line] = [Line(self, load.last_end, load.last_gpu_end)]
        if load.quota.requests is None:
            # Requests with GPUs do not stand in the way of those without, nor the other way round.
            self.lines = [Line(self, load.last_end), Line(self, load.last_gpu_end)]
        self._capacity = capacity

    def line(self, gpus: float) -> Line:
        """Return the line of requests that ask for so many GPUs."""
        return self.lines[gpus > 0 and len(self.lines) > 1]

    def hold(self, running: Running) -> None:
        """Count what runs already."""
        self.take(running.need)
        self.line(running.gpus).n_open += 1
        if not running.stopping:
            self.staying = plus(self.staying, running.need)

    def take(self, need: Amounts) -> None:
        """Count one request more."""
        self.used = plus(self.used, need)
        self.n_open += 1
        self.share = dominant_share(self.used, self._capacity) / self.load.quota.weight

    def promise(self, need: Amounts) -> None:
        """Count one request more, which starts when others have given back what it needs."""
        self.take(need)
        self.promised = plus(self.promised, need)

    @property
    def full(self) -> bool:
        """Whether it runs as many at once as it may."""
        most = self.load.quota.requests
        return most is not None and self.n_open >= most

    def within(self, need: Amounts) -> bool:
        """Return whether its guarantee covers one request more."""
        return fits(plus(self.used, need), self.guaranteed)

    @property
    def part(self) -> float:
        """The part of the cluster that its guarantee is."""
        return dominant_share(self.guaranteed, self._capacity)


class Line:
    """Requests of a team that wait for the same thing: the most urgent first, and of these who came first.

    Attributes:
        account: The team.
        requests: Those that wait, in order once the line is closed.
        at: Position of the one that is looked at.
        head: Position of the first one that has to wait; None while there is none.
        promised: Those that wait only for others to give back what is guaranteed.
        n_open: How many of the line run.
        turn: Since when it waits with nothing running; of no meaning while something runs.
        kept_for: The team for which a place is kept that the head would have fitted into.
    """

    __slots__ = ("_last_end", "account", "at", "head", "kept_for", "n_open", "promised", "requests", "turn")

    def __init__(self, account: Account, *last_ends: float | None) -> None:
        self.account = account
        self.at = self.n_open = 0
        self.head: int | None = None
        self.promised: list[int] = []
        self.kept_for: str | None = None
        self.requests: list[Waiting] = []
        self._last_end = max((end for end in last_ends if end is not None), default=float("-inf"))

    def close(self) -> bool:
        """Bring the line in order after the last one has joined; return whether somebody waits in it."""
        self.requests.sort(key=_ID)
        self.requests.sort(key=_order)  # whoever came at the same time stays in the order of ids
        self.turn = max(self._last_end, min(map(_SINCE, self.requests), default=0.0))
        return bool(self.requests)

    @property
    def candidate(self) -> Waiting:
        """The request that is looked at."""
        return self.requests[self.at]

    def overdue(self, now: float, patience_s: float) -> bool:
        """Return whether it has waited longer than the patience with nothing running."""
        return self.n_open == 0 and now - self.turn > patience_s

    @property
    def exhausted(self) -> bool:
        """Whether no further request of it is to be looked at."""
        return self.at >= len(self.requests) or (self.head is not None and self.at > self.head + DEPTH)


def _order(request: Waiting) -> float:
    """Return when a request would have come if it were of low priority; one number, which costs no memory."""
    return request.since - PRIORITY_S[request.priority]


def lines_of(accounts: Iterable[Account]) -> list[Line]:
    """Return all lines in which somebody waits, each in order."""
    return [line for account in accounts for line in account.lines if line.close()]
