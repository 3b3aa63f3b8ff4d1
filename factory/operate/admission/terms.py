"""What a decision is made from and what comes out of it; amounts, and how long a line can wait.

Times are seconds since 1970, since nothing here may ask a clock.  The small
records are named tuples: ten thousand of them are made for each decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

from factory.spec import Quota

Amounts = Sequence[float]
"""CPUs, GPUs and GB of memory, in this order."""
Priority = Literal["low", "normal", "high"]

TOLERANCE = 1e-6
"""Sums of tenths of a CPU are not exact."""
PATIENCE_S = 3600.0
"""A line that has waited this long with nothing running comes before all others. As long as the longest search that
recipes allow by default, so that it is the exception on a cluster that is merely busy."""
PRIORITY_S: dict[Priority, float] = {"low": 0.0, "normal": 86_400.0, "high": 2 * 86_400.0}
"""A level of priority weighs as much as a day of waiting."""
MOST_PREEMPTIONS = 3
"""A request that made room so often is left alone."""
EXEMPT_S = 300.0
"""A request is left alone for its first minutes: it has only just started and read its data (Slurm's
PreemptExemptTime)."""
SOON_S = 60.0
"""What is expected to end within this is waited for; a preempted search would hardly stop sooner."""
DEPTH = 8
"""Requests of a line that are tried behind one of their own that has to wait."""


class Capacity(NamedTuple):
    """What the whole cluster has."""

    cpus: float
    gpus: float
    memory_gb: float


class Waiting(NamedTuple):
    """A request that may start now.

    Attributes:
        since: When it came; also for one that was preempted, which so keeps its place among its team's own.
        expected_s: How long it is expected to run; None where nobody knows.
    """

    id: str
    team: str
    cpus: float
    gpus: float
    memory_gb: float
    priority: Priority
    since: float
    expected_s: float | None = None

    @property
    def need(self) -> Amounts:
        """What it takes, all of it or nothing."""
        return (self.cpus, self.gpus, self.memory_gb)


class Running(NamedTuple):
    """An open attempt: it holds its resources from its admission until it has ended.

    Attributes:
        since: When it was admitted.
        expected_end: None where nobody knows; one in the past says that it is late.
        preemptible: Whether it can stop and go on later.
        n_preempted: How often its request has made room before.
        stopping: Whether it was told to stop (preempted or cancelled), so that its resources are free soon.
    """

    id: str
    team: str
    cpus: float
    gpus: float
    memory_gb: float
    priority: Priority
    since: float
    expected_end: float | None = None
    preemptible: bool = True
    n_preempted: int = 0
    stopping: bool = False

    @property
    def need(self) -> Amounts:
        """What it holds."""
        return (self.cpus, self.gpus, self.memory_gb)


class TeamLoad(NamedTuple):
    """A team as admission sees it.

    Attributes:
        trial_seconds_used: Of the calendar month (UTC) that ``now`` is in.
        last_end: When its last attempt without GPUs ended, whatever the outcome; None where there was none.
        last_gpu_end: The same of those with GPUs.
    """

    name: str
    quota: Quota
    trial_seconds_used: float = 0.0
    last_end: float | None = None
    last_gpu_end: float | None = None


class Rule(StrEnum):
    """Why a request is held back."""

    NEVER = "never"  # it asks for more than the cluster has or its team may ever take
    TRIAL_SECONDS = "trial_seconds"  # its team has used up its month
    REQUESTS = "requests"  # its team runs as many at once as it may
    RECLAIM = "reclaim"  # others give back what is guaranteed to its team
    CAPACITY = "capacity"  # what it needs is not free
    RESERVED = "reserved"  # what it needs is free, and kept for somebody who comes first
    ORDER = "order"  # others of its own team come first


class Held(NamedTuple):
    """Why a request waits, for who made it.

    Attributes:
        rule: Which rule holds it.
        sentence: The same in a sentence, with what is missing, which teams hold it and until about when.
        eta_s: Seconds until it is expected to start; None where nothing is known.
    """

    rule: Rule
    sentence: str
    eta_s: float | None


class Preemption(NamedTuple):
    """A running request that is to stop, and the waiting one that gets its place."""

    id: str
    for_id: str


def fits(need: Amounts, room: Amounts) -> bool:
    """Return whether there is room; of what is not needed there may be none, or less.

    >>> fits((2, 0, 4), (2, -1, 8)), fits((2, 1, 4), (2, 0, 8))
    (True, False)
    """
    cpus, gpus, memory_gb = need
    return (
        (cpus <= 0 or cpus <= room[0] + TOLERANCE)
        and (gpus <= 0 or gpus <= room[1] + TOLERANCE)
        and (memory_gb <= 0 or memory_gb <= room[2] + TOLERANCE)
    )


def plus(one: Amounts, other: Amounts) -> Amounts:
    """Return the sum, kind by kind."""
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2])


def minus(one: Amounts, other: Amounts) -> Amounts:
    """Return the difference, kind by kind."""
    return (one[0] - other[0], one[1] - other[1], one[2] - other[2])


def dominant_share(used: Amounts, capacity: Amounts) -> float:
    """Return the largest share of any one resource (Ghodsi et al., 2011); 0 of a cluster that has nothing.

    >>> dominant_share((4, 1, 8), (16, 2, 64))
    0.5
    """
    return max((part / whole for part, whole in zip(used, capacity, strict=True) if whole > 0), default=0.0)


def longest_wait_s(
    *, n_before: int, n_lines: int, largest_share: float, longest_s: float, patience_s: float = PATIENCE_S
) -> float:
    """Return the longest that a request can wait which fits the empty cluster and its team's limits.

    The proof is in docs/decisions/admission.md.

    Args:
        n_before: Requests of its own line that start before it.
        n_lines: Lines that have work meanwhile; a team has one, or two where it asks for GPUs as well.
        largest_share: The largest dominant share that one request asks for.
        longest_s: The longest from an admission until the resources are free again, the controller's interval added.
        patience_s: As given to :func:`decide`.

    >>> longest_wait_s(n_before=0, n_lines=50, largest_share=0.05, longest_s=7200) / 3600
    9.0
    """
    together = max(1, math.floor(1 / largest_share + TOLERANCE))
    return (n_before + 1) * (patience_s + (1 + math.ceil(n_lines / together)) * longest_s)
