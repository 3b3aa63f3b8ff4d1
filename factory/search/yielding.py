"""A search that makes room for another, or is cancelled: no further fit is started, those that run go on to their end.

Nothing is lost by it.  Every finished trial is in the ledger, and seeds the
search when it goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from factory.errors import Preempted
from factory.families.base import Deadline
from factory.search.jobs import FitJob, FitResult, Jobs

LOOK_S = 2.0
"""Seconds between two looks at whether room is asked for."""


class Room:
    """Whether a running request is asked to make room, or to end; looked up now and then, and once asked it stays so.

    Args:
        look: Says whether it is asked now; called by one thread at a time. An error of it counts as no.
    """

    def __init__(self, look: Callable[[], bool] = lambda: False) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._next = 0.0
        self._asked = False

    @property
    def asked(self) -> bool:
        """Whether room is asked for."""
        if self._asked or time.monotonic() < self._next or not self._lock.acquire(blocking=False):
            return self._asked
        try:
            self._next = time.monotonic() + LOOK_S
            self._asked = self._look()
        finally:
            self._lock.release()
        return self._asked

    def make(self) -> None:
        """Do nothing, or end what is done here where room is asked for.

        Raises:
            Preempted: it is.
        """
        if self.asked:
            raise Preempted(
                "The request makes room for another one.",
                hint="It goes on by itself with all finished trials as soon as there is room again.",
            )


class Yielding:
    """Jobs of which no further one is handed out once room is asked for."""

    def __init__(self, jobs: Jobs, room: Room) -> None:
        self._jobs, self._room = jobs, room

    @property
    def parallel(self) -> int:
        """Jobs that run at once."""
        return self._jobs.parallel

    @parallel.setter
    def parallel(self, value: int) -> None:
        self._jobs.parallel = value

    @property
    def deadline(self) -> Deadline:
        """When the jobs have to be over."""
        return self._jobs.deadline

    @deadline.setter
    def deadline(self, value: Deadline) -> None:
        self._jobs.deadline = value

    @property
    def exhausted(self) -> bool:
        """Whether no further job will come."""
        return self._room.asked or self._jobs.exhausted

    def next(self, *, quick: bool = False) -> FitJob | None:
        """Return the next job, or None when there is none now."""
        return None if self._room.asked else self._jobs.next(quick=quick)

    def done(self, job: FitJob, result: FitResult) -> None:
        """Take a job's result."""
        self._jobs.done(job, result)

    def lost(self, job: FitJob, reason: str) -> None:
        """Give up a job whose worker died."""
        self._jobs.lost(job, reason)
