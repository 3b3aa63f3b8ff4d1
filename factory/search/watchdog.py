"""Work that does not come back in time: in the driver nobody waits for it, a worker ends its own process.

A thread cannot be ended from outside: work that does not come back is left to
itself, and goes on taking a core and its memory until it does, or until this
process ends.  Where it never lets go of the interpreter's lock even that cannot
help; compiled code that loops so was not met in any family.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from factory.search.jobs import FitJob

LEFT_BEHIND_S = 8.0
"""So long after its deadline a fit in this process is no longer waited for; a late round or import takes less."""
OWED_S = 60.0
"""The same as long as there is no model at all: a late variant is better than none."""
OVERRUN_S = 2.0
"""A worker whose job is still running so long after its deadline ends itself: a framework may hang within one round,
and Tune takes ten seconds more to stop an actor that does not answer. Then it goes on with a new one."""
HANGING = 4.0
"""The same after so many times the job's limit; a busy machine may well need twice of it."""
_STDERR = 2
"""By its number: Ray puts an object in the place of the stream."""
LEFT_BEHIND = "It did not end in time, and was left behind."
DIED = "Its worker process died."
"""Of something else than its job, as far as is known: by being killed, for want of memory, with its node."""
UNANSWERED = "It was stopped when the search's time was up."
"""Of a worker that did not even end itself: mostly it went with its node, which Ray misses only some time later."""
HUNG = "Its worker ended itself, since the trial did not end in time."

T = TypeVar("T")


def awaited(work: Callable[[], T], *, name: str, until: float, usable: Callable[[], bool]) -> T | None:
    """Run a fit in a thread of its own; return its result, or None where it does not come back in time.

    Args:
        work: The fit; its result is not None.
        name: Of the thread.
        until: When it should be there, in seconds since the epoch.
        usable: Whether there is a model already, so that it is not waited for much longer.

    Raises:
        BaseException: whatever the fit raised.
    """
    answers: SimpleQueue[T | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            answers.put(work())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            answers.put(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    while True:
        left_s = until + (LEFT_BEHIND_S if usable() else OWED_S) - time.time()
        if left_s <= 0:
            return None
        with contextlib.suppress(Empty):
            # Asked again now and then: what another thread brings back may make this one dispensable.
            answer = answers.get(timeout=min(left_s, LEFT_BEHIND_S))
            if isinstance(answer, BaseException):
                raise answer
            return answer


@contextlib.contextmanager
def ending_this_process_after(job: FitJob) -> Iterator[None]:
    """End this process if the block goes far beyond the job's time; a distributed one waits for others by itself.

    Python's own watchdog does it: its thread needs no interpreter, so that code which never lets go of the lock is
    ended as well, and where it stood is told on stderr.
    """
    left_s = min(job.deadline_at - time.time(), _longest_s(job)) + OVERRUN_S
    if job.workers > 1 or left_s == float("inf"):
        yield
        return
    faulthandler.dump_traceback_later(max(left_s, OVERRUN_S), exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def death_of(job: FitJob, *, handed_at: float) -> str:
    """Return why a worker has died with its job: :data:`DIED`, or :data:`HUNG`.

    Args:
        job: What it worked on.
        handed_at: When it was handed out, in seconds since the epoch.
    """
    return HUNG if time.time() >= min(job.deadline_at, handed_at + _longest_s(job)) else DIED


def _longest_s(job: FitJob) -> float:
    return HANGING * job.limit_s * max(len(job.folds), 1)
