"""What was looked up a moment ago: asked for again at most once a second, however many callers wait for it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from factory.errors import StorageFault

logger = logging.getLogger(__name__)

MAX_AGE_S = 1.0
"""For which an answer of the ledger is good: a promotion, or a revocation, counts within this time."""
clock = time.monotonic
MOST = 10_000
"""Answers kept by each table."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """One call at a time for each key; whoever comes while it runs waits for the same result."""

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[V]] = {}

    async def join(self, key: K, start: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return the result of the running call, or of a new one.

        A caller who gives up does not stop the call, since others may wait for it.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(start())
            task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(task)

    def _end(self, key: K, task: asyncio.Task[V]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            # Marks the error as seen, since every waiter may have given up.
            task.exception()


@dataclass
class _Answer(Generic[V]):
    value: V
    told: float
    good_until: float


class Remembered(Generic[K, V]):
    """Answers of the ledger by key.

    Args:
        executor: Where the ledger is read.
        max_age_s: For which an answer is good.
        without_s: For which it is good while the ledger cannot be read.
        most: Answers that are kept; those that were asked for longest ago go first.
    """

    def __init__(
        self, executor: Executor, *, max_age_s: float = MAX_AGE_S, without_s: float = math.inf, most: int = MOST
    ) -> None:
        self._executor = executor
        self._max_age_s, self._without_s, self._most = max_age_s, without_s, most
        self._known: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._flights: Flights[K, V] = Flights()

    async def get(self, key: K, read: Callable[[], V]) -> V:
        """Return the answer of a moment ago, or read it.

        Args:
            key: What it is about.
            read: Asks the ledger; called in a thread.

        Raises:
            StorageFault: the ledger cannot be read, and nothing that is still good was known before.
            FactoryError: what the ledger says; it is forgotten then.
        """
        known = self._known.get(key)
        if known is not None and clock() < known.good_until:
            return known.value
        try:
            answer = await self._flights.join(key, lambda: in_thread(self._executor, read))
        except StorageFault:
            if known is None or clock() > known.told + self._without_s:
                raise
            logger.warning("the ledger cannot be read; what it said before counts", exc_info=True)
            # Not asked again by each who comes: a look at what does not answer takes long.
            known.good_until = clock() + self._max_age_s
            return known.value
        except BaseException:
            self._known.pop(key, None)
            raise
        now = clock()
        self._known[key] = _Answer(answer, told=now, good_until=now + self._max_age_s)
        self._known.move_to_end(key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return answer


async def in_thread(executor: Executor, call: Callable[[], V]) -> V:
    """Return what a call returns that is made in a thread."""
    return await asyncio.get_running_loop().run_in_executor(executor, call)
