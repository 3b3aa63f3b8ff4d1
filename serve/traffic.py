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
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol, Self, TypeVar

from factory.errors import FactoryError, StorageFault, UserFault
from factory.ledger import Deployment
from factory.spec import Actor, Variant
from serve.guard import Guard
from serve.remembered import Remembered, in_thread
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
    watched: tuple[str, int] | None = None
    shadow: int | None = None


@dataclass(frozen=True)
class _Served:
    """How a name is served beside its champion.

    Attributes:
        canary: Version that gets a share of the calls.
        share: From 0 to 1.
        shadow: Version that predicts the same as whoever answers.
    """

    canary: int | None = None
    share: float = 0.0
    shadow: int | None = None

    @classmethod
    def of(cls, rows: Sequence[Deployment]) -> Self:
        by_kind = {row.as_: row for row in rows}
        canary, shadow = by_kind.get("canary"), by_kind.get("shadow")
        share = (canary.percent or 0.0) / 100 if canary else 0.0
        return cls(canary.version if canary and share else None, share, shadow.version if shadow else None)


class Traffic:
    """Divides calls between champion and canary.

    Args:
        routes: The ledger.
        table: Finds versions.
        executor: Where the ledger is read.
        telemetry: Counts what canaries fail.
    """

    def __init__(self, routes: Routes, table: VariantTable, executor: Executor, telemetry: Telemetry) -> None:
        self._routes, self._table, self._executor, self._telemetry = routes, table, executor, telemetry
        self._known: Remembered[str, _Served] = Remembered(executor)
        self._guards: dict[tuple[str, int], Guard] = {}
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
        if served.canary in (None, champion.version):
            return choice
        assert served.canary is not None
        watched = replace(choice, watched=(reference.name, served.canary))
        if position(reference.name, key) >= served.share:
            return watched
        try:
            return replace(watched, canary=await self._table.resolve(Reference(reference.name, version=served.canary)))
        except FactoryError:
            logger.warning("canary %s/%d cannot be found, the champion answers", *watched.watched or (), exc_info=True)
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
        try:
            answer, ms = await make(choice.canary)
        except Exception as error:
            # Raises where the caller is at fault, which is then nothing against the canary.
            answer, _ = await make(choice.champion)
            guard.failed()
            self._telemetry.canary_failed(f"{choice.canary.name}/{choice.canary.version}")
            told = logging.INFO if isinstance(error, UserFault) else logging.WARNING
            logger.log(told, "%s/%d failed as canary, the champion answered", *choice.watched or (), exc_info=True)
        else:
            guard.answered(ms)
        if verdict := guard.verdict:
            self._withdraw(choice.canary, guard, verdict)
        return answer

    async def _served(self, reference: Reference) -> _Served:
        name = reference.name
        try:
            return await self._known.get(name, lambda: _Served.of(self._routes.deployment(name)))
        except StorageFault:
            return _Served()  # the champion is in memory, and needs no ledger

    def _guard(self, of: tuple[str, int]) -> Guard:
        if of not in self._guards:
            if len(self._guards) >= _MOST_GUARDS:
                self._guards.pop(next(iter(self._guards)))
            self._guards[of] = Guard()
        return self._guards[of]

    def _withdraw(self, canary: Variant, guard: Guard, verdict: str) -> None:
        """Take a canary out of traffic, in the whole fleet: the ledger is changed, which all replicas follow."""
        self._guards.pop((canary.name, canary.version), None)
        evidence = {
            "why": verdict,
            "version": canary.version,
            "calls": guard.errors.n,
            "failed": guard.errors.mean,
            "compared": guard.slower.n,
            "slower": guard.slower.mean,
        }

        async def withdraw() -> None:
            call = lambda: self._routes.withdraw_canary(  # noqa: E731
                canary.name, canary.version, evidence=evidence, by=_BY
            )
            try:
                if await in_thread(self._executor, call):
                    logger.warning("canary %s/%d is withdrawn: %s", canary.name, canary.version, verdict)
            except FactoryError:
                # The guard begins anew, and comes to the same while the canary is as it is.
                logger.warning("canary %s/%d could not be withdrawn", canary.name, canary.version, exc_info=True)

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
