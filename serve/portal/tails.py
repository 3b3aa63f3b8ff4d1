"""Logs that are followed while they are written: each takes a thread of its own, apart from those of the handlers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

from factory.errors import FactoryError
from serve.errors import Overloaded

log = logging.getLogger(__name__)

MOST_TAILS = 32


class Tails:
    """Follows logs, so many of them at a time.

    Args:
        most: Logs at most.
    """

    def __init__(self, most: int = MOST_TAILS) -> None:
        self._most, self._n_followed = most, 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(max(most, 1), thread_name_prefix="tail")

    def follow(self, lines: Iterator[str]) -> AsyncGenerator[str]:
        """Return a log as it is written; it ends with the job, or when nobody reads it any more.

        Args:
            lines: Of the job; an empty one now and then where it is silent, which is handed on.

        Raises:
            Overloaded: too many are followed already.
        """
        with self._lock:
            n_left = self._most - self._n_followed
        if n_left < 1:
            raise Overloaded(f"{self._most} logs are being followed already.", hint="Read the log without follow.")
        return self._follow(lines)

    async def _follow(self, lines: Iterator[str]) -> AsyncGenerator[str]:
        loop = asyncio.get_running_loop()
        self._count(1)
        try:
            while (line := await loop.run_in_executor(self._threads, next, lines, None)) is not None:
                yield line
        except FactoryError as fault:
            log.warning("a log breaks off: %s", fault.message)
            yield "\n[the log breaks off: the cluster does not answer any more]\n"
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._n_followed += change

    def close(self) -> None:
        """Start no more threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
