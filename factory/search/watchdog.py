"""Work in this process that nobody waits for beyond its time.

A thread cannot be ended from outside: work that does not come back is left to
itself, and goes on taking a core and its memory until it does, or until this
process ends.  Where it never lets go of the interpreter's lock even that cannot
help; compiled code that loops so was not met in any family.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

LEFT_BEHIND_S = 8.0
"""So long after its deadline a fit in this process is no longer waited for; a late round or import takes less."""
OWED_S = 60.0
"""The same as long as there is no model at all: a late variant is better than none."""
LEFT_BEHIND = "It did not end in time, and was left behind."

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
