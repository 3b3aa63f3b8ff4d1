"""What shadows would have answered beside who has: compared as it comes, and summed up in the ledger.

The log has both answers of each call, but of this machine only, and for some
weeks; whether a shadow says the same can be seen here at once, of all replicas.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from factory.ledger import ShadowCounts
from factory.variants.bundle import Bundle
from serve.remembered import in_thread
from serve.traffic import Beside

MOST_PAIRS = 1_000
"""Pairs of versions whose sums wait for the ledger; the oldest are given up for newer ones."""
MIRRORED_AT_ONCE = 8
"""Calls that wait for one shadow; more are not mirrored."""
_MOST_SHADOWS = 1_000

T = TypeVar("T")
clock = time.monotonic


class Sums(Protocol):
    """What of the ledger is changed here."""

    def add_shadow(self, name: str, version: int, since: datetime, against: int, counted: ShadowCounts) -> None:
        """Add to how a shadow's answers compare with a version's."""


def compared(answered: tuple[Bundle, np.ndarray], shadow: tuple[Bundle, np.ndarray]) -> ShadowCounts:
    """Return how two predictions of the same rows compare: by their labels, or by how far numbers lie apart.

    Args:
        answered: Who has answered, with its prediction as of :meth:`~factory.variants.bundle.Bundle.predict_raw`.
        shadow: The same of the shadow.
    """
    one, other = _answers(*answered), _answers(*shadow)
    if (one.dtype == object) != (other.dtype == object):
        return ShadowCounts(calls=1)  # one tells classes, one numbers
    if one.dtype == object:
        return ShadowCounts(calls=1, labelled=len(one), agreed=int(np.sum(one == other)))
    apart = np.abs(one - other)
    known = apart[np.isfinite(apart)]
    return ShadowCounts(calls=1, measured=len(known), difference=float(np.sum(known)))


def _answers(bundle: Bundle, raw: np.ndarray) -> np.ndarray:
    """Return labels as objects, or numbers, (n_rows,)."""
    return np.asarray(bundle.classes, dtype=object)[bundle.labels(raw)] if bundle.classes else raw


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="shadow")


@dataclass(eq=False)
class Place:
    """Where one shadow is loaded and predicts.

    Attributes:
        threads: Its own thread, since a shadow that hangs would take that of others.
        waiting: Calls that wait for it.
        rests_until: Until when it is not asked, since it has just taken longer than a call may.
    """

    threads: Executor = field(default_factory=_thread)
    waiting: int = 0
    rests_until: float = 0.0


class Mirrors:
    """Says which calls are mirrored to which shadow, and lets none wait for one that hangs; used in an event loop.

    Args:
        deadline_s: Seconds that a shadow has for an answer, loading included: those of a call.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._places: dict[Beside, Place] = {}

    def take(self, shadow: Beside) -> Place | None:
        """Return where a shadow is to predict a call's rows; None where the call is not to be mirrored.

        Whoever gets a place asks for the :meth:`answer`.
        """
        place = self._places.get(shadow)
        if place is None:
            if len(self._places) >= _MOST_SHADOWS:
                self._places.pop(next(iter(self._places)))
            place = self._places[shadow] = Place()
        if place.waiting >= MIRRORED_AT_ONCE or clock() < place.rests_until:
            return None
        place.waiting += 1
        return place

    async def answer(self, place: Place, answer: Awaitable[T]) -> T:
        """Return a shadow's answer.

        Raises:
            TimeoutError: it was not ready in time. The shadow is not asked again for as long as a call may take.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                return await answer
        except TimeoutError:
            place.rests_until = clock() + self._deadline_s
            raise
        finally:
            place.waiting -= 1


class Comparisons:
    """Adds up, by pairs of versions, how shadows compare; used in a replica's event loop.

    Args:
        sums: The ledger.
        executor: Where it is told.
    """

    def __init__(self, sums: Sums, executor: Executor) -> None:
        self._sums, self._executor = sums, executor
        self._untold: dict[tuple[Beside, int], ShadowCounts] = {}

    @property
    def untold(self) -> Mapping[tuple[Beside, int], ShadowCounts]:
        """Sums that the ledger does not have yet, by the shadow and the version that has answered."""
        return self._untold

    def add(self, shadow: Beside, against: int, counted: ShadowCounts) -> None:
        """Add how a shadow's answer compares with that of the version that has answered."""
        pair = (shadow, against)
        if pair not in self._untold and len(self._untold) >= MOST_PAIRS:
            self._untold.pop(next(iter(self._untold)))
        self._untold[pair] = self._untold.get(pair, ShadowCounts()) + counted

    async def tell(self) -> None:
        """Tell the ledger.

        Raises:
            StorageFault: it does not take it; it is told the next time.
        """
        for pair, counts in list(self._untold.items()):
            shadow, against = pair
            add = partial(self._sums.add_shadow, shadow.name, shadow.version, shadow.since, against, counts)
            await in_thread(self._executor, add)
            left = self._untold.pop(pair, counts) - counts
            if left.calls:
                self._untold[pair] = left
