"""Many segments at once, each in a Ray task of its own; they come back as they end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factory.errors import FactoryError
from factory.families.base import Deadline
from factory.search.engine import RaySession
from factory.settings import Settings
from factory.variants.making import Made
from factory.variants.segments import SegmentOrder, make_segment

log = logging.getLogger(__name__)

FINISH_S = 1.5
"""What a segment takes beside its search: bundle, scores, gate and model card (measured .8 to 2 s)."""
LEAST_S = 1.0
"""Each segment's search gets as much, whatever the budget says: one late variant is better than none."""
RETRIES = 2
"""Times that a segment is taken up again whose worker died; it goes on with what its journal holds."""
IN_FLIGHT = 2
"""Tasks for each CPU: one that runs and one whose data is there when it ends."""


@dataclass(frozen=True)
class Failed:
    """A segment that was not made, and why."""

    reason: str


def fan_out(
    orders: Sequence[SegmentOrder], *, ray: RaySession, settings: Settings, deadline: Deadline
) -> Iterator[tuple[SegmentOrder, Made | Failed]]:
    """Make all segments, and yield each as it ends; one that fails is yielded as such and ends no other.

    Args:
        orders: The segments.
        ray: Connected to here; must be called from the main thread.
        settings: Of this process and of the workers.
        deadline: Of them all together.
    """
    cluster = ray.connect()
    import ray as _ray

    task = _ray.remote(num_cpus=1, max_retries=RETRIES)(_attempt)
    waiting = list(orders)
    running: dict[object, SegmentOrder] = {}
    while waiting or running:
        while waiting and len(running) < IN_FLIGHT * cluster.cpus:
            share_s = deadline.left_s * cluster.cpus / (len(waiting) + len(running)) - FINISH_S
            order = waiting.pop(0)
            running[task.remote(order, settings, max(share_s, LEAST_S))] = order
        (ended,), _ = _ray.wait(list(running), num_returns=1)
        order = running.pop(ended)
        try:
            yield order, _ray.get(ended)
        except _ray.exceptions.RayError:
            log.warning("segment %r was lost", order.order.lineage.segment, exc_info=True)
            yield order, Failed(f"its worker died {RETRIES + 1} times.")


def _attempt(order: SegmentOrder, settings: Settings, limit_s: float) -> Made | Failed:
    """Make one segment in a worker."""
    try:
        return make_segment(order, settings, limit_s=limit_s)
    except FactoryError as error:
        return Failed(error.message)
    except Exception as error:
        # One segment's surprise is no reason to lose the others; the worker's log has all of it.
        log.exception("segment %r failed", order.order.lineage.segment)
        return Failed(f"unexpected {type(error).__name__}: {str(error).strip()[:300]}")
