"""What a replica answers with: the table of names, bundles, doors, traffic, the log, and the steps of a call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol, TypeVar
from uuid import uuid4

from factory.errors import ServiceFault
from factory.ledger import Served
from factory.spec import Principal, Scope, Variant
from factory.variants.bundle import Bundle
from serve import invocations, predictions
from serve.addresses import Origins
from serve.call import Call
from serve.doors import Doors, Origin
from serve.fleet_metrics import FleetMetrics
from serve.guard import Took
from serve.inputs import EntityRows, NamedColumns, NamelessColumns, Payload
from serve.limits import Limits, Places
from serve.loaded import Loaded
from serve.micro_batches import MicroBatches
from serve.online import FeatureRead, Reads
from serve.predictions import INLINE_MS, Asked, Prediction, is_small
from serve.recording import Answered, As, Recorder
from serve.remembered import Changes, in_thread
from serve.shadows import Comparisons, Mirrors, Place, Sums, compared
from serve.store import BundleCache, Catalogue, Reference, VariantTable
from serve.telemetry import Telemetry
from serve.traffic import KEY_HEADER, Beside, Choice, Routes, Traffic

logger = logging.getLogger(__name__)

FEATURES_S = 5.0
"""For which the online store is waited for, and no longer than half of a call's time: an answer is still due."""
EXPLAINED_AT_ONCE = 3
"""Calls for explanations that a replica has at a time: each computes for about a second, one after the other."""
METRICS_AT_ONCE = 4
TOLD_EVERY_S = 10.0
"""Between two times that the ledger is told what was counted."""
_CALL_ID = "x-request-id"

T = TypeVar("T")
Watcher = Callable[[Call, str, int, float], None]
"""Of a call, its route, HTTP's status, and seconds."""
Adapt = Callable[[Payload, Bundle], Payload]


class Parse(Protocol):
    """Reads the rows of a body; see :func:`serve.invocations.parse`."""

    def __call__(self, body: bytes, content_type: str, *, max_rows: int) -> Payload:
        """Return them."""


class Ledger(Catalogue, Routes, Sums, Protocol):
    """What of the ledger the predictor reads and changes."""

    def add_served(self, counted: Sequence[Served]) -> None:
        """Add calls to the sums of the fleet."""


class Core:
    """What the handlers of a replica share.

    Args:
        ledger: The ledger.
        load: Loads a variant's bundle; called in a thread.
        features: Reads online features.
        limits: What it takes on.
        warm_up: Called in a thread at the start, before champions are loaded; what it raises is logged.
        recorder: Writes predictions down; none are where it is None.
        fleet: Metrics of all replicas; only those of this one are told where it is None.
        mirror: Lets MLflow's alias of a name follow the ledger's; called in a thread.
        watchers: Told of each call when it is answered.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        load: Callable[[Variant], Loaded],
        features: Reads,
        limits: Limits,
        warm_up: Callable[[], None] = lambda: None,
        recorder: Recorder | None = None,
        fleet: FleetMetrics | None = None,
        mirror: Callable[[str, str, int | None], None] = lambda *_: None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._watchers = watchers
        self.ledger, self.limits, self.recorder, self.fleet = ledger, limits, recorder, fleet
        bodies = limits.bodies()
        self.places = Places(limits, bodies=bodies, most=limits.ongoing)
        self.metrics_places = Places(limits, bodies=bodies, most=METRICS_AT_ONCE, what="calls for metrics")
        self.explain_places = Places(limits, bodies=bodies, most=EXPLAINED_AT_ONCE, what="calls for explanations")
        self.telemetry = Telemetry()
        self.features, self.warm_up = features, warm_up
        threads = dict.fromkeys(("explain", "disk", "registry"), 1)
        threads |= {"ledger": 2, "load": 2, "features": 4, "predict": 2}
        # Apart from each other, so that a slow load, store or batch holds up nothing else.
        self._pools = {name: ThreadPoolExecutor(n, thread_name_prefix=name) for name, n in threads.items()}
        self.micro_batches = MicroBatches(self._pools["predict"])
        in_ledger = self._pools["ledger"]
        self.changes = Changes(ledger.catalogue_mark, in_ledger)
        self.table = VariantTable(ledger, in_ledger, changes=self.changes)
        self.traffic = Traffic(
            ledger,
            self.table,
            in_ledger,
            self.telemetry,
            deadline_s=limits.deadline_s,
            changes=self.changes,
            mirror=lambda name, alias: self.in_("registry", lambda: mirror(name, alias, None)),
        )
        self.comparisons = Comparisons(ledger, in_ledger)
        self.mirrors = Mirrors(limits.deadline_s)
        self.doors = Doors(ledger, in_ledger, a_minute=limits.a_minute, changes=self.changes)
        self.origins = Origins(limits.proxies)
        self.cache = BundleCache(
            load,
            self._pools["load"],
            most=limits.bundles,
            most_mb=limits.bundles_mb,
            pinned=limits.pins,
            champion=self.table.champion,
        )
        self._mirrored: set[asyncio.Task[None]] = set()

    async def keep_telling(self, over: asyncio.Event) -> None:
        """Tell the ledger every few seconds what was counted, and once more when it is over."""
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), TOLD_EVERY_S)
            await self.tell()

    async def tell(self) -> None:
        """Tell the ledger what was counted; what it does not take is told the next time.

        Whatever goes wrong is logged: a fault of today's must not end what is told tomorrow.
        """
        counted = self.telemetry.tally.take()
        try:
            if counted:
                await self.in_("ledger", lambda: self.ledger.add_served(counted))
        except Exception:
            self.telemetry.tally.give_back(counted)
            logger.warning("the ledger does not take what was counted; it is told later", exc_info=True)
            return
        for what, tell in (("canaries", self.traffic.tell), ("shadows", self.comparisons.tell)):
            try:
                await tell()
            except Exception:
                logger.warning("the ledger does not take what was seen of %s; it is told later", what, exc_info=True)

    def close(self) -> None:
        """End the threads; what waits to be written is."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        if self.recorder is not None:
            self.recorder.close()
        if self.fleet is not None:
            self.fleet.close()

    def metrics(self) -> bytes:
        """Return the metrics of this replica."""
        return self.telemetry.text(
            bundles=len(self.cache),
            bundles_mb=self.cache.size_mb,
            dropped=0 if self.recorder is None else self.recorder.n_dropped,
            replica="0" if self.fleet is None else self.fleet.replica,
        )

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

    def origin(self, call: Call) -> Origin:
        """Return what says where a call comes from, for who wants to know."""
        return lambda: self.origins.of(call.connection)

    async def knows(self, call: Call) -> Principal:
        """Return who calls; raises as :meth:`~serve.doors.Doors.known`."""
        return await self.doors.known(call.header("authorization"), self.origin(call))

    async def resolve(
        self, call: Call, values: Mapping[str, str], *, scopes: tuple[Scope, ...] = ("predict", "read")
    ) -> tuple[Reference, Variant]:
        """Return what a caller with one of some scopes has named, and the version that it means."""
        name = values["name"].partition("@")[0]
        await self.doors.admit(call.header("authorization"), name, origin=self.origin(call), scopes=scopes)
        reference = Reference.parse(values["name"], version=values.get("version"))
        variant = await self.table.resolve(reference)
        _tell(call, variant)
        return reference, variant

    async def read(
        self, call: Call, values: Mapping[str, str], *, places: Places, parse: Parse = invocations.parse
    ) -> Asked:
        """Read a call of ``/invocations``, or of what has its rows, that has one of the places."""
        reference, variant = await self.resolve(call, values)
        body = await places.read(call)
        kind = call.header("content-type")
        most = self.limits.rows
        if is_small(body):
            return Asked(reference, variant, parse(body, kind, max_rows=most), body)
        payload = await self.in_("predict", lambda: parse(body, kind, max_rows=most))
        return Asked(reference, variant, payload, body)

    async def answered(
        self,
        call: Call,
        asked: Asked,
        form: Callable[[Prediction], T],
        *,
        adapt: Adapt = lambda payload, _: payload,
        made: Callable[[Variant], Prediction | None] = lambda _: None,
        choice: Choice | None = None,
    ) -> T:
        """Return the answer of whoever is to answer, and have it written down.

        Args:
            call: The call.
            asked: What was read of it.
            form: Makes the answer.
            adapt: Makes a payload one of a bundle's columns.
            made: Returns a version's prediction where it is made already, together with others'.
            choice: Who is to answer, where that was chosen already.
        """
        key = call.header(KEY_HEADER).encode() or asked.body
        chosen = choice or await self.traffic.choose(asked.reference, asked.variant, key)

        async def make(variant: Variant) -> tuple[tuple[T, Prediction], Took | None]:
            if (done := made(variant)) is not None:
                _tell(call, variant)
                return (form(done), done), done.took
            watched = chosen.watched
            own = watched.threads if watched and variant is chosen.canary else None
            loaded = await self.loaded(call, variant, own)
            columns = await self.columns(call, adapt(asked.payload, loaded.bundle), loaded)
            # A canary that hangs would hold up the event loop; and what both take is compared, so both go to threads.
            if asked.small and watched is None and self.micro_batches.take(columns, loaded):
                prediction = await self.micro_batches.predicted(columns, loaded)
                answer = form(prediction)
            elif asked.small and loaded.times.row_ms < INLINE_MS and watched is None:
                prediction = predictions.predicted(columns, loaded)
                answer = form(prediction)
            else:
                threads = own or self._pools["predict"]
                prediction = await in_thread(threads, lambda: predictions.predicted(columns, loaded))
                answer = await in_thread(threads, lambda: form(prediction))
            call.add_timing("predict", prediction.ms)
            return (answer, prediction), prediction.took

        answer, prediction = await self.traffic.answered(chosen, make, deadline_s=self.limits.deadline_of(call))
        self._follow(call, asked, chosen, prediction)
        return answer

    async def loaded(self, call: Call, variant: Variant, threads: Executor | None = None) -> Loaded:
        """Return a variant with its bundle, and say in the answer that it answers, and how long it took to load."""
        _tell(call, variant)
        if (known := self.cache.peek(variant)) is not None:
            return known
        started = time.perf_counter()
        loaded = await self.cache.get(variant, threads)
        call.add_timing("load", (time.perf_counter() - started) * 1e3)
        return loaded

    async def columns(self, call: Call | None, payload: Payload, loaded: Loaded) -> NamedColumns | NamelessColumns:
        """Return a payload's columns; those of entities are read from the online store."""
        if not isinstance(payload, EntityRows):
            return payload
        started = time.perf_counter()
        deadline_s = self.limits.deadline_s if call is None else self.limits.deadline_of(call)
        read = await self._read(payload, loaded, deadline_s=deadline_s)
        self.telemetry.features(f"{loaded.variant.name}/{loaded.variant.version}", read.cells)
        if call is not None:
            call.add_timing("features", (time.perf_counter() - started) * 1e3)
        return read.columns

    async def _read(self, payload: EntityRows, loaded: Loaded, *, deadline_s: float) -> FeatureRead:
        """Read online features; where the store is away, those of the last read if the recipe says so."""
        variant, bundle = loaded.variant, loaded.bundle
        try:
            async with asyncio.timeout(min(FEATURES_S, deadline_s / 2)):
                return await self.in_("features", lambda: self.features.read(payload, variant=variant, bundle=bundle))
        except (ServiceFault, TimeoutError) as error:
            if variant.online.store_down == "last":
                kept = self.features.last(payload, variant=variant, bundle=bundle)
                if kept is not None:
                    logger.warning("%s answers with the features of the last read: %s", variant.name, error)
                    return kept
            if isinstance(error, ServiceFault):
                raise
            raise ServiceFault(
                "The online store did not answer in time.", hint="Try again; `factory doctor` looks at the store."
            ) from error

    async def run(self, inline: bool, call: Callable[[], T], threads: Executor | None = None) -> T:
        """Return what a call returns, made here or in a thread; of those for predictions if no others are given."""
        return call() if inline else await in_thread(threads or self._pools["predict"], call)

    async def in_(self, pool: str, call: Callable[[], T]) -> T:
        """Return what a call returns that is made in a thread of a pool."""
        return await in_thread(self._pools[pool], call)

    # --- what follows an answer ----------------------------------------------------

    def _follow(self, call: Call, asked: Asked, choice: Choice, prediction: Prediction) -> None:
        """Have a prediction written down if it is to be, and mirror the call to a shadow."""
        shadow = choice.shadow
        place = None if shadow is None else self.mirrors.take(shadow)
        if shadow is not None and place is None:
            self.telemetry.mirrored(str(shadow), "dropped")
            shadow = None
        recorded = self.recorder is not None and (shadow is not None or self.recorder.wants())
        if not recorded and shadow is None:
            return
        call_id = call.header(_CALL_ID)[:100] or uuid4().hex
        if recorded:
            version = prediction.loaded.variant.version
            of_canary = choice.canary is not None and choice.canary.version == version
            as_: As = "canary" if of_canary else "champion" if asked.reference.is_open else "named"
            self._record(call, call_id, as_, prediction)
        if shadow is not None and place is not None:
            task = asyncio.create_task(self._mirror(call, call_id, asked, shadow, place, prediction))
            self._mirrored.add(task)
            task.add_done_callback(self._mirrored.discard)

    async def _mirror(
        self, call: Call, call_id: str, asked: Asked, shadow: Beside, place: Place, answered: Prediction
    ) -> None:
        """Let a shadow predict the same; nobody waits for it, and nobody hears of its faults."""

        async def make() -> Prediction:
            variant = await self.table.resolve(Reference(shadow.name, version=shadow.version))
            loaded = await self.cache.get(variant, place.threads)
            columns = await self.columns(None, asked.payload, loaded)
            return await in_thread(place.threads, lambda: predictions.predicted(columns, loaded))

        try:
            made = await self.mirrors.answer(place, make())
            self._record(call, call_id, "shadow", made)
            both = ((one.loaded.bundle, one.raw) for one in (answered, made))
            self.comparisons.add(shadow, answered.loaded.variant.version, compared(*both))
        except Exception:
            logger.info("shadow %s failed", shadow, exc_info=True)
            self.telemetry.mirrored(str(shadow), "failed")
        else:
            self.telemetry.mirrored(str(shadow), "compared")

    def _record(self, call: Call, call_id: str, as_: As, prediction: Prediction) -> None:
        if self.recorder is None:
            return
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


def _tell(call: Call, variant: Variant) -> None:
    """Say in the answer who answers."""
    call.answer_headers["x-variant"] = f"{variant.name}/{variant.version}"
