"""Many segments at once, each in a Ray task of its own; they come back as they end, and all of them in time.

The largest go first: when time is up, it is the thin ones that stay with the
pooled variant, which serves them best.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from factory.errors import FactoryError
from factory.families.base import Deadline
from factory.search.cluster import Cluster, Crew, RaySession, memory_budget_mb
from factory.search.executor import usual_fit_mb
from factory.search.yielding import Room
from factory.settings import Settings
from factory.variants.making import Made, Order
from factory.variants.segments import FINISH_S, SegmentOrder, make_segment

log = logging.getLogger(__name__)

LEAST_S = 1.0
"""Each segment's search gets as much, however little is left: one late variant is better than none."""
HANG_S = 30.0
"""A segment may take so much longer than its share: a worker's imports (6 to 8 s) on a busy machine, and its finish."""
LATE_S = 10.0
"""Nothing goes on for longer than this after the deadline, which leaves room for it (budget x 1.05 + 15 s)."""
POOLED_SHARE, POOLED_LEAST = 0.4, 0.2
"""Part of the time that the pooled variant's search gets: as a rule, and where segments need the rest."""
SEGMENT_S, UP_S = 3.0, 8.0
"""CPU-seconds that a segment needs at least, with its search and its registration, and seconds until workers are up."""
RETRIES = 2
"""Times that a segment is taken up again whose worker died; it goes on with what its journal holds."""
IN_FLIGHT = 2
"""Tasks for each place: one that runs and one whose data is there when it ends. One where reservations alone would let
more of them run."""
SEEN = 8
"""Segments that ended last, by which it is told what the next ones take beside their search."""
LOOK_S = 0.5
"""Seconds after which segments that did not end are looked at."""
BEGUN = "begun"
"""File in a segment's workspace that says when a worker took it up, in seconds since 1970."""


@dataclass(frozen=True)
class Failed:
    """A segment that was not made, and why."""

    reason: str


@dataclass(frozen=True)
class _Ended:
    """What became of a segment, and the seconds that it took beside its share; None where nobody knows."""

    outcome: Made | Failed
    beside_s: float | None = None


@dataclass(frozen=True)
class _Task:
    """A segment that was handed out, and the seconds that its search may take."""

    order: SegmentOrder
    share_s: float

    def over(self, deadline: Deadline) -> str:
        """Return why the segment has to be ended now; empty where it may go on."""
        if (begun := _begun(self.order.order.data.workspace)) is None:
            return "time was up before its turn came." if deadline.passed else ""
        spent_s = time.time() - begun
        if spent_s > self.share_s + FINISH_S + HANG_S:
            return f"it hung: {spent_s:.0f} s were spent on it, and {self.share_s:.0f} s were its share."
        if deadline.left_s < -LATE_S:
            return f"time was up: it was not done {LATE_S:.0f} s after the deadline."
        return ""


def pooled_share(n_segments: int, *, left_s: float, cpus: int) -> float:
    """Return the part of the time in which the pooled variant is searched, before its segments are made.

    Args:
        n_segments: That are to be made.
        left_s: Seconds for all of it.
        cpus: Of the cluster.
    """
    if not n_segments:
        return 1.0
    needed_s = n_segments * SEGMENT_S / cpus + UP_S
    return min(POOLED_SHARE, max(1 - needed_s / max(left_s, UP_S), POOLED_LEAST))


def fan_out(
    orders: Sequence[SegmentOrder],
    *,
    ray: RaySession,
    settings: Settings,
    deadline: Deadline,
    room: Room | None = None,
) -> Iterator[tuple[SegmentOrder, Made | Failed]]:
    """Make all segments, and yield each as it ends; one that fails or hangs is yielded as such and ends no other.

    Args:
        orders: The segments.
        ray: Connected to here; must be called from the main thread.
        settings: Of this process and of the workers.
        deadline: Of them all together. None begins after it; what has begun may end within :data:`LATE_S`.
        room: Whether the request is asked to make room for another: then none begins, and what has begun ends.

    Raises:
        Preempted: room was asked for, and what had begun has ended.
    """
    room = room or Room()
    if not orders:
        return
    waiting = sorted(orders, key=lambda given: -len(given.order.data.dataset))
    data_mb = sum(given.order.data.dataset.memory_mb for given in orders)
    shares = shares_of(waiting[0].order, cluster=ray.connect(), settings=settings, data_mb=data_mb)
    import ray as _ray

    task = _ray.remote(num_cpus=shares.cpus, max_retries=RETRIES)(_attempt)
    for order in waiting:
        (order.order.data.workspace / BEGUN).unlink(missing_ok=True)
    running: dict[Any, _Task] = {}
    beside: deque[float] = deque([FINISH_S], maxlen=SEEN)
    while waiting or running:
        while waiting and len(running) < shares.in_flight and not deadline.passed and not room.asked:
            share_s = share_of(deadline, shares.at_once, len(waiting) + len(running), beside_s=median(beside))
            given = _Task(waiting.pop(0), share_s)
            running[task.remote(given.order, shares.settings, given.share_s)] = given
        if not running:
            room.make()
            yield from ((order, Failed("time was up before its turn came.")) for order in waiting)
            return
        ended, _ = _ray.wait(list(running), num_returns=1, timeout=LOOK_S)
        for reference in ended:
            result = _result(reference)
            beside += () if result.beside_s is None else (result.beside_s,)
            yield running.pop(reference).order, result.outcome
        # What has ended in the meantime is taken first: only what is still at work can be late.
        for reference, given in [] if ended else list(running.items()):
            if reason := given.over(deadline):
                del running[reference]
                _ray.cancel(reference, force=True)
                log.warning("segment %r was ended: %s", given.order.order.lineage.segment, reason)
                yield given.order, Failed(reason)


@dataclass(frozen=True)
class Shares:
    """What each segment's worker takes of the cluster.

    Attributes:
        at_once: Segments that are made at a time.
        in_flight: Segments that are handed out at a time.
        cpus: That each reserves, so that no more of them run.
        settings: Of a worker, with its part of the memory budget.
    """

    at_once: int
    in_flight: int
    cpus: int
    settings: Settings


def shares_of(largest: Order, *, cluster: Cluster, settings: Settings, data_mb: float = 0.0) -> Shares:
    """Return the shares by which driver and workers together keep the request's memory budget.

    Args:
        largest: The segment with the most rows.
        cluster: Where they are made.
        settings: Of this process.
        data_mb: What the tables of all segments take in the driver's memory.
    """
    memory_mb = memory_budget_mb(largest.plan.budget, settings)
    crew = Crew.of(
        cpus=cluster.cpus,
        memory_mb=memory_mb,
        fit_mb=usual_fit_mb(largest.plan, largest.data),
        data_mb=data_mb,
        sent_mb=largest.data.dataset.memory_mb,
    )
    own = settings.model_copy(update={"memory_gb": crew.worker_mb / 1000})
    workers = max(crew.workers, 1)
    reserved = ceil(cluster.cpus / workers)
    if reserved > cluster.node_cpus:
        return Shares(workers, workers, cluster.node_cpus, own)
    return Shares(cluster.cpus // reserved, IN_FLIGHT * (cluster.cpus // reserved), reserved, own)


def share_of(deadline: Deadline, at_once: int, n_left: int, *, beside_s: float) -> float:
    """Return the seconds that each of the segments that are not made yet may search.

    Args:
        deadline: Of them all.
        at_once: Segments that are made at a time.
        n_left: That are not made yet.
        beside_s: That each takes beside its search.
    """
    return max(deadline.left_s * at_once / n_left - beside_s, LEAST_S)


def _result(reference: Any) -> _Ended:
    import ray as _ray

    try:
        ended: _Ended = _ray.get(reference)
    except _ray.exceptions.RayError:
        log.warning("a segment was lost", exc_info=True)
        return _Ended(Failed(f"its worker died {RETRIES + 1} times."))
    return ended


def _begun(workspace: Path) -> float | None:
    """Return when a worker took a segment up, in seconds since 1970; None where none has."""
    try:
        return float((workspace / BEGUN).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _attempt(order: SegmentOrder, settings: Settings, limit_s: float) -> _Ended:
    """Make one segment in a worker."""
    began = time.monotonic()
    outcome = _made(order, settings, limit_s)
    return _Ended(outcome, time.monotonic() - began - limit_s)


def _made(order: SegmentOrder, settings: Settings, limit_s: float) -> Made | Failed:
    try:
        workspace = order.order.data.workspace
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / BEGUN).write_text(str(time.time()), encoding="ascii")
        return make_segment(order, settings, limit_s=limit_s)
    except FactoryError as error:
        return Failed(error.message)
    except Exception as error:
        # One segment's surprise is no reason to lose the others; the worker's log has all of it.
        log.exception("segment %r failed", order.order.lineage.segment)
        return Failed(f"unexpected {type(error).__name__}: {str(error).strip()[:300]}")
