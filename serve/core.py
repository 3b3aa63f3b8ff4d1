"""What a replica answers with: the table of names, bundles, doors, traffic, the log, and the steps of a call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar
from uuid import uuid4

import numpy as np

from factory.errors import FactoryError, ServiceFault
from factory.ledger import Served
from factory.spec import Variant
from factory.variants.bundle import Bundle
from serve import invocations
from serve.call import Call
from serve.doors import Doors
from serve.inputs import EntityRows, NamedColumns, NamelessColumns, Payload, arrays, check_rows
from serve.limits import Limits, Places
from serve.loaded import Loaded
from serve.online import FeatureRead
from serve.recording import Answered, As, Recorder
from serve.remembered import Changes
from serve.store import BundleCache, Catalogue, Reference, VariantTable
from serve.telemetry import Telemetry
from serve.traffic import KEY_HEADER, Choice, Routes, Traffic

logger = logging.getLogger(__name__)

INLINE_MS = 5.0
"""A prediction below this runs in the event loop: handing it to a thread costs about as much (0.1 to 0.3 ms) as it
takes, and a stall of 5 ms is below what a caller notices."""
INLINE_BYTES = 16_384
"""A larger body is read, checked and predicted in a thread."""
FEATURES_S = 5.0
"""For which the online store is waited for, and no longer than half of a call's time: an answer is still due."""
PRELOADED = 16
"""Champions loaded at start, pinned ones first; of thousands of names most are never called."""
MIRRORED_AT_ONCE = 8
"""Calls that wait for a shadow; more are not mirrored."""
TOLD_EVERY_S = 10.0
"""Between two times that the ledger is told what was counted."""
_CALL_ID = "x-request-id"

T = TypeVar("T")
Watcher = Callable[[Call, str, int, float], None]
"""Of a call, its route, HTTP's status, and seconds."""
Adapt = Callable[[Payload, Bundle], Payload]


class Ledger(Catalogue, Routes, Protocol):
    """What of the ledger the predictor reads and changes."""

    def add_served(self, counted: Sequence[Served]) -> None:
        """Add calls to the sums of the fleet."""


class Columns(Protocol):
    """Reads online features; see :class:`serve.online.FeatureReaders`."""

    def read(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead:
        """Return the variant's columns for entity rows."""

    def last(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead | None:
        """Return the same with features as they were last read; None where not all were."""

    def warm_up(self, service: str) -> None:
        """Make ready for a feature service."""


@dataclass(frozen=True)
class Asked:
    """A call that was read.

    Attributes:
        reference: What it names.
        variant: The version that this means, beside which there may be a canary.
        payload: The rows.
        body: As it was sent.
    """

    reference: Reference
    variant: Variant
    payload: Payload
    body: bytes = field(repr=False)

    @property
    def small(self) -> bool:
        """Whether it is answered in the event loop, by a variant that is fast."""
        return is_small(self.body)


@dataclass(frozen=True)
class Prediction:
    """A prediction.

    Attributes:
        loaded: Who has made it.
        inputs: Column → values as they were predicted, each (n_rows,).
        raw: Of :meth:`~factory.variants.bundle.Bundle.predict_raw`.
        ms: That it took with the checks.
    """

    loaded: Loaded
    inputs: dict[str, np.ndarray]
    raw: np.ndarray
    ms: float

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Output → values: the prediction, or the probability of each class."""
        bundle = self.loaded.bundle
        if not bundle.classes:
            return {"prediction": self.raw}
        return dict(zip(bundle.output_names[1:], self.raw.T, strict=True))


class Core:
    """What the handlers of a replica share.

    Args:
        ledger: The ledger.
        load: Loads a variant's bundle; called in a thread.
        features: Reads online features.
        limits: What it takes on.
        warm_up: Called in a thread at the start, before champions are loaded; what it raises is logged.
        recorder: Writes predictions down; none are where it is None.
        watchers: Told of each call when it is answered.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        load: Callable[[Variant], Loaded],
        features: Columns,
        limits: Limits,
        warm_up: Callable[[], None] = lambda: None,
        recorder: Recorder | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._watchers = watchers
        self.ledger, self.limits, self.recorder = ledger, limits, recorder
        self.places = Places(limits)
        self.telemetry = Telemetry()
        self._features, self._warm_up = features, warm_up
        threads = {"ledger": 2, "load": 2, "features": 4, "predict": 2, "explain": 1, "shadow": 1, "disk": 1}
        # Apart from each other, so that a slow load, store or batch holds up nothing else.
        self._pools = {name: ThreadPoolExecutor(n, thread_name_prefix=name) for name, n in threads.items()}
        in_ledger = self._pools["ledger"]
        changes = Changes(ledger.catalogue_mark, in_ledger)
        self.table = VariantTable(ledger, in_ledger, changes=changes)
        self.traffic = Traffic(ledger, self.table, in_ledger, self.telemetry, changes=changes)
        self.doors = Doors(ledger, in_ledger, a_minute=limits.a_minute, changes=changes)
        self.cache = BundleCache(
            load, self._pools["load"], most=limits.bundles, most_mb=limits.bundles_mb, pinned=limits.pins
        )
        self._mirrored: set[asyncio.Task[None]] = set()

    async def preload(self) -> None:
        """Load the first champions before somebody asks for them; requests are answered meanwhile."""
        try:
            await self.in_("load", self._warm_up)
            names = await self.in_("ledger", lambda: [d.name for d in self.ledger.deployments()])
            for name in list(dict.fromkeys([*filter(self.limits.pins, names), *names]))[:PRELOADED]:
                loaded = await self.cache.get(await self.table.resolve(Reference(name)))
                if (service := loaded.variant.feature_service) is not None:
                    await self.in_("features", partial(self._features.warm_up, service))
        except FactoryError:
            logger.warning("champions are loaded when they are asked for", exc_info=True)

    async def keep_telling(self, over: asyncio.Event) -> None:
        """Tell the ledger every few seconds what was counted, and once more when it is over."""
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), TOLD_EVERY_S)
            await self.tell()

    async def tell(self) -> None:
        """Tell the ledger what was counted; what it does not take is told the next time."""
        counted = self.telemetry.tally.take()
        try:
            if counted:
                await self.in_("ledger", lambda: self.ledger.add_served(counted))
        except FactoryError:
            self.telemetry.tally.give_back(counted)
            logger.warning("the ledger does not take what was counted; it is told later", exc_info=True)
            return
        try:
            await self.traffic.tell()
        except FactoryError:
            logger.warning("the ledger does not take what was seen of canaries; it is told later", exc_info=True)

    def close(self) -> None:
        """End the threads; what waits to be written is."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        if self.recorder is not None:
            self.recorder.close()

    def note(self, call: Call, route: str, *, status: int, took_s: float) -> None:
        """Count a call that was answered, and tell the watchers of it."""
        self.telemetry.call(route, call.answer_headers.get("x-variant", ""), status, took_s)
        for watch in self._watchers:
            try:
                watch(call, route, status, took_s)
            except Exception:
                # The answer is made: a log that cannot be written does not take it away.
                logger.warning("a call could not be noted", exc_info=True)

    # --- steps -------------------------------------------------------------------

    async def resolve(self, call: Call, values: dict[str, str]) -> tuple[Reference, Variant]:
        """Return what a caller who may has named, and the version that it means."""
        await self.doors.admit(call.header("authorization"), values["name"].partition("@")[0])
        reference = Reference.parse(values["name"], version=values.get("version"))
        variant = await self.table.resolve(reference)
        _tell(call, variant)
        return reference, variant

    async def read(
        self, call: Call, values: dict[str, str], *, parse: Callable[[bytes, str], Payload] = invocations.parse
    ) -> Asked:
        """Read a call of ``/invocations``, or of what has its rows; ``parse`` reads these of body and content type."""
        reference, variant = await self.resolve(call, values)
        body = await call.read_body(limit_mb=self.limits.body_mb)
        kind = call.header("content-type")
        payload = await self.run(is_small(body), lambda: parse(body, kind))
        check_rows(payload, max_rows=self.limits.rows)
        return Asked(reference, variant, payload, body)

    async def answered(
        self,
        call: Call,
        asked: Asked,
        form: Callable[[Prediction], T],
        *,
        adapt: Adapt = lambda payload, _: payload,
        made: Callable[[Variant], Prediction | None] = lambda _: None,
    ) -> T:
        """Return the answer of whoever is to answer, and have it written down.

        Args:
            call: The call.
            asked: What was read of it.
            form: Makes the answer.
            adapt: Makes a payload one of a bundle's columns.
            made: Returns a version's prediction where it is made already, together with others'.
        """
        key = call.header(KEY_HEADER)
        choice = await self.traffic.choose(asked.reference, asked.variant, key.encode() or asked.body)

        async def make(variant: Variant) -> tuple[tuple[T, Prediction], float]:
            if (done := made(variant)) is not None:
                _tell(call, variant)
                return (form(done), done), done.ms
            loaded = await self.loaded(call, variant)
            columns = await self.columns(call, adapt(asked.payload, loaded.bundle), loaded)
            inline = asked.small and loaded.row_ms < INLINE_MS
            prediction = await self.run(inline, lambda: predicted(columns, loaded))
            call.add_timing("predict", prediction.ms)
            return (await self.run(inline, lambda: form(prediction)), prediction), prediction.ms

        answer, prediction = await self.traffic.answered(choice, make)
        self._follow(call, asked, choice, prediction)
        return answer

    async def loaded(self, call: Call, variant: Variant) -> Loaded:
        """Return a variant with its bundle, and say in the answer that it answers, and how long it took to load."""
        _tell(call, variant)
        known, started = variant in self.cache, time.perf_counter()
        loaded = await self.cache.get(variant)
        if not known:
            call.add_timing("load", (time.perf_counter() - started) * 1e3)
        return loaded

    async def columns(self, call: Call | None, payload: Payload, loaded: Loaded) -> NamedColumns | NamelessColumns:
        """Return a payload's columns; those of entities are read from the online store."""
        if not isinstance(payload, EntityRows):
            return payload
        started = time.perf_counter()
        read = await self._read(payload, loaded)
        self.telemetry.features(f"{loaded.variant.name}/{loaded.variant.version}", read.cells)
        if call is not None:
            call.add_timing("features", (time.perf_counter() - started) * 1e3)
        return read.columns

    async def _read(self, payload: EntityRows, loaded: Loaded) -> FeatureRead:
        """Read online features; where the store is away, those of the last read if the recipe says so."""
        variant, bundle = loaded.variant, loaded.bundle
        try:
            async with asyncio.timeout(min(FEATURES_S, self.limits.deadline_s / 2)):
                return await self.in_("features", lambda: self._features.read(payload, variant=variant, bundle=bundle))
        except (ServiceFault, TimeoutError) as error:
            if variant.online.store_down == "last":
                kept = self._features.last(payload, variant=variant, bundle=bundle)
                if kept is not None:
                    logger.warning("%s answers with the features of the last read: %s", variant.name, error)
                    return kept
            if isinstance(error, ServiceFault):
                raise
            raise ServiceFault(
                "The online store did not answer in time.", hint="Try again; `factory doctor` looks at the store."
            ) from error

    async def run(self, inline: bool, call: Callable[[], T]) -> T:
        """Return what a call returns, made here or in a thread."""
        return call() if inline else await self.in_("predict", call)

    async def in_(self, pool: str, call: Callable[[], T]) -> T:
        """Return what a call returns that is made in a thread of a pool."""
        executor: Executor = self._pools[pool]
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    # --- what follows an answer ----------------------------------------------------

    def _follow(self, call: Call, asked: Asked, choice: Choice, prediction: Prediction) -> None:
        """Have a prediction written down if it is to be, and mirror the call to a shadow."""
        if self.recorder is None:
            return
        shadow = choice.shadow
        if shadow is not None and len(self._mirrored) >= MIRRORED_AT_ONCE:
            self.telemetry.mirrored(f"{asked.reference.name}/{shadow}", "dropped")
            shadow = None
        if shadow is None and not self.recorder.wants():
            return
        call_id = call.header(_CALL_ID)[:100] or uuid4().hex
        version = prediction.loaded.variant.version
        of_canary = choice.canary is not None and choice.canary.version == version
        as_: As = "canary" if of_canary else "champion" if asked.reference.is_open else "named"
        self._record(call, call_id, as_, prediction)
        if shadow is not None:
            task = asyncio.create_task(self._mirror(call, call_id, asked, shadow))
            self._mirrored.add(task)
            task.add_done_callback(self._mirrored.discard)

    async def _mirror(self, call: Call, call_id: str, asked: Asked, version: int) -> None:
        """Let a shadow predict the same; nobody waits for it, and nobody hears of its faults."""
        name = f"{asked.reference.name}/{version}"
        try:
            variant = await self.table.resolve(Reference(asked.reference.name, version=version))
            loaded = await self.cache.get(variant)
            columns = await self.columns(None, asked.payload, loaded)
            self._record(call, call_id, "shadow", await self.in_("shadow", lambda: predicted(columns, loaded)))
        except Exception:
            logger.info("shadow %s failed", name, exc_info=True)
            self.telemetry.mirrored(name, "failed")
        else:
            self.telemetry.mirrored(name, "compared")

    def _record(self, call: Call, call_id: str, as_: As, prediction: Prediction) -> None:
        assert self.recorder is not None
        variant = prediction.loaded.variant
        self.recorder.put(
            Answered(
                call=call_id,
                key=call.header(KEY_HEADER)[:200],
                variant=variant.name,
                version=variant.version,
                as_=as_,
                ms=prediction.ms,
                inputs=prediction.inputs,
                outputs=prediction.outputs,
                moment=datetime.now(UTC),
            )
        )


def is_small(body: bytes) -> bool:
    """Return whether a body is read in the event loop."""
    return len(body) <= INLINE_BYTES


def predicted(payload: NamedColumns | NamelessColumns, loaded: Loaded) -> Prediction:
    """Return the prediction of a payload, which is checked."""
    started = time.perf_counter()
    inputs = arrays(payload, loaded.bundle)
    raw = loaded.bundle.predict_raw(inputs)
    return Prediction(loaded, inputs, raw, (time.perf_counter() - started) * 1e3)


def _tell(call: Call, variant: Variant) -> None:
    """Say in the answer who answers."""
    call.answer_headers["x-variant"] = f"{variant.name}/{variant.version}"
