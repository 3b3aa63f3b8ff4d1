"""Which version answers whoever names a variant and no version: the champion, or for a share of the calls a canary.

The ledger says what the shares are, once a second at most.  Who gets the canary
follows from the request's key alone, on every replica alike and without a
memory: the same key gets the same version until the share is changed, and a
larger share only adds keys.  A canary hurts nobody: where it fails the champion
answers, and the failure counts against it (``guard.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import Protocol, Self, TypeVar

from factory.errors import FactoryError, StorageFault, UserFault
from factory.ledger import CanaryCounts, Deployment
from factory.spec import Actor, Variant
from serve.guard import Guard
from serve.remembered import UNCHANGED_S, Changes, Remembered, in_thread
from serve.store import Reference, VariantTable
from serve.telemetry import Telemetry

logger = logging.getLogger(__name__)

KEY_HEADER = "x-request-key"
"""Names what a call is about, as a customer's number; the body stands for it where it is not sent."""
_BY = Actor(who="predictor")
_MOST_GUARDS = 1_000

T = TypeVar("T")


class Routes(Protocol):
    """What of the ledger is read and changed here."""

    def deployment(self, name: str) -> list[Deployment]:
        """Return how a name is to be served."""

    def withdraw_canary(self, name: str, version: int, *, evidence: Mapping[str, object], by: Actor) -> bool:
        """Take a canary out of traffic; return whether it was it still."""

    def add_canary(self, name: str, version: int, since: datetime, counted: CanaryCounts) -> CanaryCounts:
        """Add to what a canary has done; return what it has done in all replicas."""


@dataclass(frozen=True)
class Canary:
    """A version that gets a share of a name's calls.

    Attributes:
        name: Of the variant.
        version: The canary.
        since: When it was given its share; in another one it is watched anew.
    """

    name: str
    version: int
    since: datetime

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Choice:
    """Who is to answer a call.

    Attributes:
        champion: Who answers, or would without the canary.
        canary: Who is asked first; None where the champion is.
        watched: The canary beside which the champion answers, if there is one.
        shadow: Version that is to predict the same, for nobody but the log.
    """

    champion: Variant
    canary: Variant | None = None
    watched: Canary | None = None
    shadow: int | None = None


@dataclass(frozen=True)
class _Served:
    """How a name is served beside its champion.

    Attributes:
        canary: Gets a share of the calls.
        share: From 0 to 1.
        shadow: Version that predicts the same as whoever answers.
    """

    canary: Canary | None = None
    share: float = 0.0
    shadow: int | None = None

    @classmethod
    def of(cls, rows: Sequence[Deployment]) -> Self:
        by_kind = {row.as_: row for row in rows}
        canary, shadow = by_kind.get("canary"), by_kind.get("shadow")
        share = (canary.percent or 0.0) / 100 if canary else 0.0
        given = Canary(canary.name, canary.version, canary.updated) if canary and share else None
        return cls(given, share, shadow.version if shadow else None)


class Traffic:
    """Divides calls between champion and canary.

    Args:
        routes: The ledger.
        table: Finds versions.
        executor: Where the ledger is read.
        telemetry: Counts what canaries fail.
        changes: Tell when a name is served in another way.
    """

    def __init__(
        self, routes: Routes, table: VariantTable, executor: Executor, telemetry: Telemetry, *, changes: Changes
    ) -> None:
        self._routes, self._table, self._executor, self._telemetry = routes, table, executor, telemetry
        self._known: Remembered[str, _Served] = Remembered(executor, max_age_s=UNCHANGED_S, changes=changes)
        self._guards: dict[Canary, Guard] = {}
        self._withdrawing: set[asyncio.Task[None]] = set()

    async def choose(self, reference: Reference, champion: Variant, key: bytes) -> Choice:
        """Return who is to answer.

        Args:
            reference: What the caller has named.
            champion: Which version that means.
            key: Of the request; whoever sends the same one gets the same version.
        """
        served = await self._served(reference) if reference.is_open else _Served()
        choice = Choice(champion, shadow=served.shadow if served.shadow != champion.version else None)
        if served.canary is None or served.canary.version == champion.version:
            return choice
        watched = replace(choice, watched=served.canary)
        if position(reference.name, key) >= served.share:
            return watched
        try:
            return replace(
                watched, canary=await self._table.resolve(Reference(reference.name, version=served.canary.version))
            )
        except FactoryError:
            logger.warning("canary %s cannot be found, the champion answers", served.canary, exc_info=True)
            return choice

    async def answered(self, choice: Choice, make: Callable[[Variant], Awaitable[tuple[T, float]]]) -> T:
        """Return the answer of whoever was chosen; of the champion where the canary fails.

        Args:
            choice: Who is to answer.
            make: Makes a version's answer; also says how long the prediction took, in ms.

        Raises:
            FactoryError: the champion's own.
        """
        guard = None if choice.watched is None else self._guard(choice.watched)
        if choice.canary is None:
            answer, ms = await make(choice.champion)
            if guard is not None:
                guard.champion(ms)
            return answer
        assert guard is not None
        assert choice.watched is not None
        try:
            answer, ms = await make(choice.canary)
        except Exception as error:
            # Raises where the caller is at fault, which is then nothing against the canary.
            answer, _ = await make(choice.champion)
            guard.failed()
            self._telemetry.canary_failed(str(choice.watched))
            told = logging.INFO if isinstance(error, UserFault) else logging.WARNING
            logger.log(told, "%s failed as canary, the champion answered", choice.watched, exc_info=True)
        else:
            guard.answered(ms)
        if verdict := guard.verdict:
            self._withdraw(choice.watched, guard, verdict)
        return answer

    async def tell(self) -> None:
        """Tell the ledger what was seen of canaries, and learn what other replicas have seen of them.

        Raises:
            StorageFault: the ledger does not take it; what was seen is told the next time.
        """
        for canary, guard in list(self._guards.items()):
            untold = guard.untold
            if not untold.calls:
                # What others see meanwhile is read again as soon as there is a call.
                del self._guards[canary]
                continue
            add = partial(self._routes.add_canary, canary.name, canary.version, canary.since, untold)
            guard.tell(untold, await in_thread(self._executor, add))

    async def _served(self, reference: Reference) -> _Served:
        name = reference.name
        try:
            return await self._known.get(name, lambda: _Served.of(self._routes.deployment(name)))
        except StorageFault:
            return _Served()  # the champion is in memory, and needs no ledger

    def _guard(self, of: Canary) -> Guard:
        if of not in self._guards:
            if len(self._guards) >= _MOST_GUARDS:
                self._guards.pop(next(iter(self._guards)))
            self._guards[of] = Guard()
        return self._guards[of]

    def _withdraw(self, canary: Canary, guard: Guard, verdict: str) -> None:
        """Take a canary out of traffic, in the whole fleet: the ledger is changed, which all replicas follow."""
        self._guards.pop(canary, None)
        evidence = {"why": verdict, "version": canary.version} | asdict(guard.counts)

        async def withdraw() -> None:
            call = lambda: self._routes.withdraw_canary(  # noqa: E731
                canary.name, canary.version, evidence=evidence, by=_BY
            )
            try:
                if await in_thread(self._executor, call):
                    logger.warning("canary %s is withdrawn: %s", canary, verdict)
            except FactoryError:
                # The guard begins anew, and comes to the same while the canary is as it is.
                logger.warning("canary %s could not be withdrawn", canary, exc_info=True)

        task = asyncio.create_task(withdraw())
        self._withdrawing.add(task)
        task.add_done_callback(self._withdrawing.discard)


def position(name: str, key: bytes) -> float:
    """Return where a key stands between 0 and 1: the same for the same key, and of each name apart.

    >>> position("growth.churn", b"4711") == position("growth.churn", b"4711")
    True
    """
    digest = blake2b(key, digest_size=8, key=blake2b(name.encode(), digest_size=16).digest()).digest()
    return int.from_bytes(digest, "big") / 2**64
