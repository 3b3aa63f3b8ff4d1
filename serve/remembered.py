"""What was looked up a moment ago: asked for again before it is a second old, while callers get what is known.

What depends on nothing but the catalogue of the ledger is asked for again only
when that has changed, which one question a second tells of all names together:
a thousand names that are called now and then would else be asked for at each
call.
"""

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
UNCHANGED_S = 60.0
"""For which it is good as long as nothing has changed."""
RENEWED_AFTER = 0.5
"""Part of that time after which a caller who comes has the answer renewed, without waiting for it."""
WAITED_S = 0.2
"""For which a caller waits for a new answer where an old one is known: an ask takes milliseconds."""
ASKED_S = 5.0
"""For which a caller waits for an answer where none is known; a place is another's then."""
AWAY_S = 5.0
"""For which nobody waits after the ledger has failed; whoever asks meanwhile has it looked at again."""
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

    While the ledger answers, no answer is told that is older than ``max_age_s``. Once it has failed, or has left a
    caller waiting for :data:`WAITED_S`, what is known is told at once, and one question at a time looks whether it is
    back.

    Args:
        executor: Where the ledger is read.
        max_age_s: For which an answer is good.
        without_s: For which it is good while the ledger cannot be read.
        most: Answers that are kept; those that were asked for longest ago go first.
        changes: Tell when no answer is good any longer.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        max_age_s: float = MAX_AGE_S,
        without_s: float = math.inf,
        most: int = MOST,
        changes: Changes | None = None,
    ) -> None:
        self._executor, self._changes = executor, changes
        self._max_age_s, self._without_s, self._most = max_age_s, without_s, most
        self._known: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._doubted = 0
        if changes is not None:
            changes.tell(self.doubt)
        self._flights: Flights[tuple[K, int], V] = Flights()
        self._renewals: set[asyncio.Task[V]] = set()
        self._overdue: set[asyncio.Task[V]] = set()
        self._away_until = -math.inf

    @property
    def is_away(self) -> bool:
        """Whether the ledger has failed a moment ago, or somebody waits for it in vain."""
        return bool(self._overdue) or clock() < self._away_until

    def peek(self, key: K) -> V | None:
        """Return what was told last, however old; None where nothing was."""
        known = self._known.get(key)
        return None if known is None else known.value

    def fresh(self, key: K) -> V | None:
        """Return an answer that need not be asked for anew now; None where there is none."""
        if self._changes is not None and not self._changes.all_know:
            return None
        known = self._known.get(key)
        return known.value if known is not None and clock() < known.renew_at else None

    async def get(self, key: K, read: Callable[[], V]) -> V:
        """Return the answer of a moment ago, or read it.

        Args:
            key: What it is about.
            read: Asks the ledger; called in a thread.

        Raises:
            StorageFault: the ledger cannot be read, and nothing that is still good was known before.
            FactoryError: what the ledger says; it is forgotten then.
        """
        if (value := self.fresh(key)) is not None:
            return value
        if self._changes is not None:
            await self._changes.look()
        known = self._known.get(key)
        now = clock()
        if known is None or (now >= known.good_until and now > known.told + self._without_s):
            return await self._first(key, read)
        if now >= known.good_until:
            if not self.is_away:
                return await self._soon(key, read, known)
            if not self._renewals:
                self._start(key, read)
        elif now >= known.renew_at:
            known.renew_at = known.good_until
            self._start(key, read)
        return known.value

    def doubt(self) -> None:
        """Ask again for everything, before it is told the next time; what is known counts while that cannot be."""
        self._doubted += 1
        for answer in self._known.values():
            answer.good_until = answer.renew_at = 0.0

    def _start(self, key: K, read: Callable[[], V]) -> asyncio.Task[V]:
        """Ask without waiting; what goes wrong is told to whoever asks next."""
        task = asyncio.create_task(self._ask(key, read))
        self._renewals.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[V]) -> None:
        self._renewals.discard(task)
        self._overdue.discard(task)
        if not task.cancelled():
            # Marks the error as seen, since everybody may have given up.
            task.exception()

    async def _first(self, key: K, read: Callable[[], V]) -> V:
        """Return an answer where there is none that could be told instead."""
        asking = self._start(key, read)
        done, _ = await asyncio.wait((asking,), timeout=ASKED_S)
        if not done:
            self._overdue.add(asking)
            raise StorageFault("The ledger has not answered in time.", hint="Try again; `factory doctor` looks at it.")
        return asking.result()

    async def _soon(self, key: K, read: Callable[[], V], known: _Answer[V]) -> V:
        """Return an answer that comes within a moment, or else the one that is known."""
        asking = self._start(key, read)
        done, _ = await asyncio.wait((asking,), timeout=WAITED_S)
        if not done:
            self._overdue.add(asking)
            logger.warning("the ledger has not answered in time; what it said before counts")
            return known.value
        try:
            return asking.result()
        except StorageFault:
            if clock() > known.told + self._without_s:
                raise
            logger.warning("the ledger cannot be read; what it said before counts", exc_info=True)
            return known.value

    async def _ask(self, key: K, read: Callable[[], V]) -> V:
        now, doubted = clock(), self._doubted
        try:
            answer = await self._flights.join((key, doubted), lambda: in_thread(self._executor, read))
        except StorageFault:
            self._away_until = clock() + AWAY_S
            if (known := self._known.get(key)) is not None:
                # Not asked again by each who comes, and soon all the same: something may have changed meanwhile.
                known.good_until = known.renew_at = clock() + min(self._max_age_s, MAX_AGE_S)
            raise
        except Exception:
            self._away_until = -math.inf
            self._known.pop(key, None)
            raise
        self._away_until = -math.inf
        if doubted != self._doubted:
            return answer  # something may have changed meanwhile
        # Of the moment of the question: the answer may be as old as that.
        good_until = now + self._max_age_s
        self._known[key] = _Answer(answer, now, good_until, now + RENEWED_AFTER * self._max_age_s)
        self._known.move_to_end(key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return answer


class Changes:
    """Looks once a second whether the ledger's catalogue has changed.

    Args:
        mark: Returns what is another whenever something has; called in ``executor``.
        executor: Where the ledger is read.
    """

    def __init__(self, mark: Callable[[], Hashable], executor: Executor) -> None:
        self._mark = mark
        self._marks: Remembered[str, Hashable] = Remembered(executor)
        self._seen: Hashable = None
        self._told: list[Callable[[], None]] = []

    def tell(self, told: Callable[[], None]) -> None:
        """Let somebody be called when something has changed."""
        self._told.append(told)

    @property
    def is_away(self) -> bool:
        """Whether the ledger has failed a moment ago, or somebody waits for it in vain."""
        return self._marks.is_away

    @property
    def all_know(self) -> bool:
        """Whether the ledger was looked at a moment ago, and everybody was told what was seen."""
        mark = self._marks.fresh("")
        return mark is not None and mark == self._seen

    async def look(self) -> None:
        """Tell everybody if something has changed.

        Raises:
            StorageFault: the ledger cannot be read, and never could.
        """
        mark = await self._marks.get("", self._mark)
        if mark != self._seen:
            self._seen = mark
            for told in self._told:
                told()


async def in_thread(executor: Executor, call: Callable[[], V]) -> V:
    """Return what a call returns that is made in a thread."""
    return await asyncio.get_running_loop().run_in_executor(executor, call)
