"""What was looked up a moment ago: asked for again before it is a second old, while callers get what is known."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from factory.errors import StorageFault

logger = logging.getLogger(__name__)

MAX_AGE_S = 1.0
"""For which an answer of the ledger is good: a promotion, or a revocation, counts within this time."""
RENEWED_AFTER = 0.5
"""Part of that time after which a caller who comes has the answer renewed, without waiting for it."""
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
    renew_at: float


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
        self._renewals: set[asyncio.Task[None]] = set()

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
        now = clock()
        if known is None or now >= known.good_until:
            return await self._ask(key, read, known)
        if now >= known.renew_at:
            known.renew_at = known.good_until
            task = asyncio.create_task(self._renew(key, read, known))
            self._renewals.add(task)
            task.add_done_callback(self._renewals.discard)
        return known.value

    async def _renew(self, key: K, read: Callable[[], V], known: _Answer[V]) -> None:
        """Ask before anybody has to wait; what goes wrong is told to whoever asks next."""
        with suppress(Exception):
            await self._ask(key, read, known)

    async def _ask(self, key: K, read: Callable[[], V], known: _Answer[V] | None) -> V:
        now = clock()
        try:
            answer = await self._flights.join(key, lambda: in_thread(self._executor, read))
        except StorageFault:
            if known is None or clock() > known.told + self._without_s:
                raise
            logger.warning("the ledger cannot be read; what it said before counts", exc_info=True)
            # Not asked again by each who comes: a look at what does not answer takes long.
            known.good_until = known.renew_at = clock() + self._max_age_s
            return known.value
        except BaseException:
            self._known.pop(key, None)
            raise
        # Of the moment of the question: the answer may be as old as that.
        good_until = now + self._max_age_s
        self._known[key] = _Answer(answer, now, good_until, now + RENEWED_AFTER * self._max_age_s)
        self._known.move_to_end(key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return answer


async def in_thread(executor: Executor, call: Callable[[], V]) -> V:
    """Return what a call returns that is made in a thread."""
    return await asyncio.get_running_loop().run_in_executor(executor, call)
