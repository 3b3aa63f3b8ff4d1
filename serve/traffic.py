"""Which version answers whoever names a variant and no version: the champion, or for a share of the calls a canary.

The ledger says what the shares are, once a second at most.  Who gets the canary
follows from the request's key alone, on every replica alike and without a
memory: the same key gets the same version until the share is changed, and a
larger share only adds keys.  A canary hurts nobody: where it fails, or has not
answered in its part of a call's time, the champion answers, and the failure
counts against it (``guard.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import Protocol, Self, TypeVar

from factory.errors import FactoryError, StorageFault, UserFault
from factory.ledger import CanaryCounts, CanaryRecord, Deployment
from factory.spec import Actor, Variant
from serve.guard import Guard, Took, after
from serve.remembered import UNCHANGED_S, Changes, Remembered, in_thread
from serve.store import Reference, VariantTable
from serve.telemetry import Telemetry

logger = logging.getLogger(__name__)

KEY_HEADER = "x-request-key"
"""Names what a call is about, as a customer's number; the body stands for it where it is not sent."""
CANARY_PART = 1 / 3
"""Of a call's time: a canary that has not answered by then has failed, and the champion has the rest."""
CANARY_THREADS = 2
RESTS_TIMES = 30
"""As long as it kept somebody waiting for nothing a canary is not asked, up to a call's longest time: callers who
wait for a moment only, or hang up, do not end it, and one that hangs costs its callers a thirtieth of their time."""
_BY = Actor(who="predictor")
_MOST_WATCHED = 1_000

T = TypeVar("T")
clock = time.monotonic


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CANARY_THREADS, thread_name_prefix="canary")


class Routes(Protocol):
    """What of the ledger is read and changed here."""

    def deployment(self, name: str) -> list[Deployment]:
        """Return how a name is to be served."""

    def alias(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points at."""

    def canary_record(self, name: str, version: int, since: datetime) -> CanaryRecord:
        """Return what is known of a canary in all replicas."""

    def withdraw_canary(
        self, name: str, version: int, since: datetime, *, evidence: Mapping[str, object], by: Actor
    ) -> bool:
        """Take a canary out of traffic; return whether it was it still."""

    def add_canary(
        self,
        name: str,
        version: int,
        since: datetime,
        counted: CanaryCounts,
        *,
        bet: Callable[[CanaryRecord], tuple[float, ...]],
    ) -> CanaryRecord:
        """Add to what a canary has done; return what is known of it in all replicas."""


@dataclass(frozen=True)
class Beside:
    """A version that is served beside a name's champion, as its canary or its shadow.

    Attributes:
        name: Of the variant.
        version: Of the canary, or the shadow.
        since: When it became that, or was given its share; what it does counts from then on.
    """

    name: str
    version: int
    since: datetime

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(eq=False)
class Watched:
    """A canary that this replica watches for as long as it has its share, however seldom it is called.

    Attributes:
        canary: Which one.
        guard: Judges it.
        threads: Where it predicts; its own, since one that hangs would take those of others.
        rests_until: Until when it is not asked, since it has just kept somebody waiting for nothing.
        suspected: Whether it is worse by what this replica knows: it is asked no more until the ledger was told, which
            decides.
    """

    canary: Beside
    guard: Guard
    threads: Executor = field(default_factory=_threads)
    rests_until: float = 0.0
    suspected: bool = False

    @property
    def asked(self) -> bool:
        """Whether calls of its share come to it now."""
        return not self.suspected and clock() >= self.rests_until


@dataclass(frozen=True)
class Choice:
    """Who is to answer a call.

    Attributes:
        champion: Who answers, or would without the canary.
        canary: Who is asked first; None where the champion is.
        watched: The canary that gets a share of such calls, whoever answers this one.
        shadow: Version that is to predict the same, for nobody but the log.
    """

    champion: Variant
    canary: Variant | None = None
    watched: Watched | None = None
    shadow: Beside | None = None


@dataclass(frozen=True)
class _Served:
    """How a name is served beside its champion.

    Attributes:
        canary: Gets a share of the calls.
        share: From 0 to 1.
        shadow: Version that predicts the same as whoever answers.
        seen: What was known of the canary in all replicas as this was read.
    """

    canary: Beside | None = None
    share: float = 0.0
    shadow: Beside | None = None
    seen: CanaryRecord = field(default_factory=CanaryRecord)

    @classmethod
    def of(cls, rows: Sequence[Deployment]) -> Self:
        by_kind = {row.as_: row for row in rows}
        canary, shadow = by_kind.get("canary"), by_kind.get("shadow")
        share = (canary.percent or 0.0) / 100 if canary else 0.0
        given = Beside(canary.name, canary.version, canary.updated) if canary and share else None
        return cls(given, share, Beside(shadow.name, shadow.version, shadow.updated) if shadow else None)


class Traffic:
    """Divides calls between champion and canary.

    Args:
        routes: The ledger.
        table: Finds versions.
        executor: Where the ledger is read.
        telemetry: Counts what canaries fail.
        deadline_s: Seconds until a call is answered, unless its caller waits for less.
        changes: Tell when a name is served in another way.
        mirror: Removes an alias of a name from MLflow, as the ledger has.
    """

    def __init__(
        self,
        routes: Routes,
        table: VariantTable,
        executor: Executor,
        telemetry: Telemetry,
        *,
        deadline_s: float,
        changes: Changes,
        mirror: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._deadline_s, self._mirror = deadline_s, mirror
        self._routes, self._table, self._executor, self._telemetry = routes, table, executor, telemetry
        self._known: Remembered[str, _Served] = Remembered(executor, max_age_s=UNCHANGED_S, changes=changes)
        self._watched: dict[str, Watched] = {}
        self._mirroring: set[asyncio.Task[None]] = set()

    async def choose(self, reference: Reference, champion: Variant, key: bytes) -> Choice:
        """Return who is to answer.

        Args:
            reference: What the caller has named.
            champion: Which version that means.
            key: Of the request; whoever sends the same one gets the same version.
        """
        served = await self._served(reference) if reference.is_open else _Served()
        shadow = served.shadow if served.shadow and served.shadow.version != champion.version else None
        choice = Choice(champion, shadow=shadow)
        if served.canary is None or served.canary.version == champion.version:
            return choice
        watched = self._watch(served.canary, served.seen)
        if not watched.asked:
            return choice
        beside = replace(choice, watched=watched)
        if position(reference.name, key) >= served.share:
            return beside
        try:
            canary = await self._table.resolve(Reference(reference.name, version=served.canary.version))
            return replace(beside, canary=canary)
        except FactoryError:
            logger.warning("canary %s cannot be found, the champion answers", served.canary, exc_info=True)
            return choice

    async def answered(
        self, choice: Choice, make: Callable[[Variant], Awaitable[tuple[T, Took | None]]], *, deadline_s: float
    ) -> T:
        """Return the answer of whoever was chosen; of the champion where the canary fails, or takes too long.

        Args:
            choice: Who is to answer.
            make: Makes a version's answer; also says what the prediction took if it is one of its own.
            deadline_s: Seconds that the call has.

        Raises:
            FactoryError: the champion's own.
        """
        watched = choice.watched
        if choice.canary is None:
            answer, took = await make(choice.champion)
            if watched is not None and took is not None:
                watched.guard.champion(took)
            return answer
        assert watched is not None
        try:
            answer, took = await self.ask(watched, make(choice.canary), deadline_s=deadline_s)
        except Exception as error:  # noqa: BLE001 - it is logged where it is counted
            # Raises where the caller is at fault, which is then nothing against the canary.
            began = clock()
            answer, _ = await make(choice.champion)
            self.failed(watched, error, champion_s=clock() - began, deadline_s=deadline_s)
        else:
            watched.guard.answered(took)
            self._judge(watched)
        return answer

    async def ask(self, watched: Watched, answer: Awaitable[T], *, deadline_s: float) -> T:
        """Return a canary's answer, for which it has a part of a call's time; where that is over, it is left alone.

        Raises:
            TimeoutError: it was not ready. This replica does not ask it again for a while (:data:`RESTS_TIMES`), nor
                where the caller was gone before it had answered, as one whose own deadline over gRPC was over.
        """
        began, most_s = clock(), CANARY_PART * deadline_s
        try:
            async with asyncio.timeout(most_s):
                return await answer
        except TimeoutError:
            self._rest(watched, most_s)
            raise
        except asyncio.CancelledError:
            self._rest(watched, clock() - began)
            raise

    def _rest(self, watched: Watched, waited_s: float) -> None:
        until = clock() + min(RESTS_TIMES * waited_s, self._deadline_s)
        watched.rests_until = max(watched.rests_until, until)

    def failed(self, watched: Watched, error: Exception, *, champion_s: float, deadline_s: float) -> None:
        """Count that a canary has failed where the champion has answered.

        Args:
            watched: The canary.
            error: What became of it.
            champion_s: Seconds that the champion took. A call for which a canary's time is too short for it too says
                nothing against the canary.
            deadline_s: Seconds that the call had.
        """
        if isinstance(error, TimeoutError) and champion_s >= CANARY_PART * deadline_s:
            return
        watched.guard.failed()
        self._telemetry.canary_failed(str(watched.canary))
        told = logging.INFO if isinstance(error, UserFault) else logging.WARNING
        logger.log(told, "%s failed as canary, the champion answered", watched.canary, exc_info=error)
        self._judge(watched)

    async def tell(self) -> None:
        """Tell the ledger what was seen of canaries, and judge them by what all replicas have seen.

        Raises:
            StorageFault: the ledger does not take it; what was seen is told the next time.
        """
        for watched in list(self._watched.values()):
            canary, guard = watched.canary, watched.guard
            if (await self._known.get(canary.name, partial(self._read, canary.name))).canary != canary:
                # It has another share, or none: what it has done is no part of that.
                if self._watched.get(canary.name) is watched:
                    del self._watched[canary.name]
                continue
            if parts := guard.take():
                counted = sum(parts, CanaryCounts())
                add = partial(self._routes.add_canary, canary.name, canary.version, canary.since, counted)
                guard.told(await in_thread(self._executor, partial(add, bet=partial(_bets, parts))))
            watched.suspected = bool(guard.verdict or guard.suspicion)
            if verdict := guard.verdict:
                await self._withdraw(watched, verdict)

    async def _served(self, reference: Reference) -> _Served:
        try:
            return await self._known.get(reference.name, partial(self._read, reference.name))
        except StorageFault:
            return _Served()  # the champion is in memory, and needs no ledger

    def _read(self, name: str) -> _Served:
        served = _Served.of(self._routes.deployment(name))
        if (canary := served.canary) is None:
            return served
        return replace(served, seen=self._routes.canary_record(canary.name, canary.version, canary.since))

    def _watch(self, canary: Beside, seen: CanaryRecord) -> Watched:
        """Return a canary as it is watched here; one that is new here begins with what all replicas have seen of it."""
        known = self._watched.get(canary.name)
        if known is None or known.canary != canary:
            if known is None and len(self._watched) >= _MOST_WATCHED:
                self._watched.pop(next(iter(self._watched)))
            known = self._watched[canary.name] = Watched(canary, Guard(fleet=seen))
        return known

    def _judge(self, watched: Watched) -> None:
        """Ask a canary no more that is worse by what is known here, until the ledger was told."""
        watched.suspected = watched.suspected or bool(watched.guard.suspicion)

    async def _withdraw(self, watched: Watched, verdict: str) -> None:
        """Take a canary out of traffic, in the whole fleet: the ledger is changed, which all replicas follow."""
        canary = watched.canary
        evidence = {"why": verdict, "version": canary.version} | asdict(watched.guard.fleet.counts)
        call = partial(
            self._routes.withdraw_canary, canary.name, canary.version, canary.since, evidence=evidence, by=_BY
        )
        try:
            if await in_thread(self._executor, call):
                logger.warning("canary %s is withdrawn: %s", canary, verdict)
                task = asyncio.create_task(self._clear(canary.name))
                self._mirroring.add(task)
                task.add_done_callback(self._mirroring.discard)
        except FactoryError:
            # It gets no calls of this replica any more, and is withdrawn when the ledger is told the next time.
            logger.warning("canary %s could not be withdrawn", canary, exc_info=True)
        else:
            self._known.doubt()

    async def _clear(self, name: str) -> None:
        """Let MLflow follow where the ledger has no challenger any more; nobody waits for it."""
        try:
            if await in_thread(self._executor, partial(self._routes.alias, name, "challenger")) is None:
                await self._mirror(name, "challenger")
        except FactoryError:
            logger.warning("MLflow does not hear that %s has no challenger", name, exc_info=True)


def _bets(parts: Sequence[CanaryCounts], known: CanaryRecord) -> tuple[float, ...]:
    return after(known, parts).bets


def position(name: str, key: bytes) -> float:
    """Return where a key stands between 0 and 1: the same for the same key, and of each name apart.

    >>> position("growth.churn", b"4711") == position("growth.churn", b"4711")
    True
    """
    digest = blake2b(key, digest_size=8, key=blake2b(name.encode(), digest_size=16).digest()).digest()
    return int.from_bytes(digest, "big") / 2**64
