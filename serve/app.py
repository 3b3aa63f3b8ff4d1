"""The predictor's ASGI application: routes, limits, deadline, and what each answer carries.

It is plain ASGI, since a web framework would cost more than a prediction does.
Ray Serve runs it in each replica (``replica.py``); a test drives it in-process.
Whatever names a variant asks for a token (``doors.py``); health does not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from pydantic_core import to_json

from factory.errors import Detail, FactoryError, NotFound, StorageFault, SystemFault
from factory.spec import Variant
from factory.variants.bundle import Bundle
from factory.variants.explain import explain
from serve import invocations, open_inference
from serve.call import Call, Message, Receive, Send
from serve.doors import Doors
from serve.errors import (
    DeadlineExceeded,
    MethodNotAllowed,
    Overloaded,
    UnsupportedMedia,
    answer,
)
from serve.explanations import LIMIT_S, format_explanation
from serve.inputs import EntityRows, NamedColumns, NamelessColumns, Payload, arrays, check_rows
from serve.limits import Limits, Places
from serve.loaded import Loaded
from serve.release import release
from serve.store import BundleCache, Catalogue, Reference, VariantTable
from serve.traffic import KEY_HEADER, Choice, Routes, Traffic

logger = logging.getLogger(__name__)

T = TypeVar("T")

INLINE_MS = 5.0
"""A prediction below this runs in the event loop: handing it to a thread costs about as much (0.1 to 0.3 ms) as it
takes, and a stall of 5 ms is below what a caller notices."""
PRELOADED = 16
"""Champions loaded at start; of thousands of names most are never called."""
INLINE_BYTES = 16_384
"""A larger body is read, checked and predicted in a thread."""
_OIP_TEXT_CLIENTS = (b"gevent-http-client",)
"""tritonclient's HTTP client puts ``error`` into a sentence and fails with a TypeError on our object."""


class Ledger(Catalogue, Routes, Protocol):
    """What of the ledger the predictor reads and changes."""


class Columns(Protocol):
    """Reads online features; see :class:`serve.online.FeatureReaders`."""

    def columns(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> NamedColumns:
        """Return the variant's columns for entity rows."""

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
        small: Whether it is answered in the event loop, by a variant that is fast.
    """

    reference: Reference
    variant: Variant
    payload: Payload
    body: bytes
    small: bool


Handler = Callable[["Predictor", Call, dict[str, str]], Awaitable[bytes]]


class Predictor:
    """The ASGI application.

    Args:
        catalogue: The ledger.
        load: Loads a variant's bundle; called in a thread.
        features: Reads online features.
        limits: What it takes on.
        warm_up: Called in a thread when the server starts, before champions are loaded; what it raises is logged.
    """

    def __init__(
        self,
        catalogue: Ledger,
        *,
        load: Callable[[Variant], Loaded],
        features: Columns,
        limits: Limits,
        warm_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._catalogue = catalogue
        self._features = features
        self._limits = limits
        self._warm_up = warm_up
        self._places = Places(limits)
        # Apart from each other, so that a slow load, store or batch holds up nothing else.
        self._pools = {
            name: ThreadPoolExecutor(threads, thread_name_prefix=name)
            for name, threads in (("ledger", 2), ("load", 2), ("features", 4), ("predict", 2), ("explain", 1))
        }
        self._table = VariantTable(catalogue, self._pools["ledger"])
        self._traffic = Traffic(catalogue, self._table, self._pools["ledger"])
        self._doors = Doors(catalogue, self._pools["ledger"], a_minute=limits.a_minute)
        self._cache = BundleCache(load, self._pools["load"], most=limits.bundles, most_mb=limits.bundles_mb)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, headers, body = await self._answer(scope, receive)
            headers["content-length"] = str(len(body))
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
                }
            )
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        preload = asyncio.create_task(self._preload())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        preload.cancel()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _preload(self) -> None:
        """Load the first champions before somebody asks for them; requests are answered meanwhile."""
        try:
            await self._in("load", self._warm_up)
            names = await self._in("ledger", lambda: [d.name for d in self._catalogue.deployments()])
            for name in list(dict.fromkeys(names))[:PRELOADED]:
                loaded = await self._cache.get(await self._table.resolve(Reference(name)))
                if (service := loaded.variant.feature_service) is not None:
                    await self._in("features", partial(self._features.warm_up, service))
        except FactoryError:
            logger.warning("champions are loaded when they are asked for", exc_info=True)

    async def _answer(self, scope: Message, receive: Receive) -> tuple[int, dict[str, str], bytes]:
        path: str = scope["path"]
        call = Call(
            method="GET" if scope["method"] == "HEAD" else scope["method"],
            parts=tuple(part for part in path.split("/") if part),
            headers=dict(scope["headers"]),
            receive=receive,
        )
        try:
            handler, values = _route(call, path)
            body = await handler(self, call, values)
            return 200, {"content-type": "application/json", **call.answer_headers}, body
        except FactoryError as problem:
            error = problem
            if isinstance(error, SystemFault) and not isinstance(error, Overloaded | DeadlineExceeded):
                logger.warning("%s %s: %s", scope["method"], path, error, exc_info=True)
        except Exception as problem:
            logger.exception("%s %s failed", scope["method"], path)
            error = SystemFault(
                f"The predictor failed on this request: {type(problem).__name__}.",
                hint="This is ours to mend; the predictor's log has the traceback.",
            )
        agent = call.headers.get(b"user-agent", b"")
        as_text = path.startswith("/v2") and any(client in agent for client in _OIP_TEXT_CLIENTS)
        status, headers, body = answer(error, as_text=as_text)
        return status, headers | call.answer_headers, body

    # --- routes ------------------------------------------------------------------

    async def live(self, _call: Call, _values: dict[str, str]) -> bytes:
        """``GET /v2/health/live``."""
        return to_json({"live": True})

    async def ready(self, _call: Call, _values: dict[str, str]) -> bytes:
        """``GET /v2/health/ready``: the ledger can be read, or there are variants in memory, which do without it."""
        try:
            await self._in("ledger", lambda: self._catalogue.alias("", "champion"))
        except StorageFault:
            # A balancer would otherwise take all replicas out of traffic at once, which can answer most requests.
            if not len(self._cache):
                raise
        return to_json({"ready": True})

    async def server(self, _call: Call, _values: dict[str, str]) -> bytes:
        """``GET /v2``: server metadata."""
        return to_json({"name": "model-variant-factory", "version": release(), "extensions": ["binary_tensor_data"]})

    async def model(self, call: Call, values: dict[str, str]) -> bytes:
        """``GET /v2/models/{name}[/versions/{n}]``: model metadata."""
        async with self._places.take(call):
            loaded = await self._cache.get((await self._resolve(call, values))[1])
            name = loaded.variant.name
            versions = await self._table.versions(name)
            return to_json(open_inference.metadata(loaded.bundle, name=name, versions=versions))

    async def model_ready(self, call: Call, values: dict[str, str]) -> bytes:
        """``GET /v2/models/{name}[/versions/{n}]/ready``: it is loaded, so the next prediction does not wait."""
        async with self._places.take(call):
            loaded = await self._cache.get((await self._resolve(call, values))[1])
            return to_json({"name": loaded.variant.name, "ready": True})

    async def invoke(self, call: Call, values: dict[str, str]) -> bytes:
        """``POST /variants/{name}[/versions/{n}]/invocations``."""
        async with self._places.take(call):
            asked = await self._read(call, values)

            async def predicted(variant: Variant) -> tuple[bytes, float]:
                loaded = await self._loaded(call, variant)
                inline = asked.small and loaded.row_ms < INLINE_MS
                columns = await self._columns(call, asked.payload, loaded)
                raw, ms = await self._run(inline, lambda: _predict(columns, loaded.bundle))
                call.add_timing("predict", ms)
                return await self._run(inline, lambda: invocations.format_predictions(raw, loaded.bundle)), ms

            return await self._traffic.answered(await self._choose(call, asked), predicted)

    async def explain(self, call: Call, values: dict[str, str]) -> bytes:
        """``POST /variants/{name}[/versions/{n}]/explain``: takes what ``/invocations`` takes."""
        async with self._places.take(call):
            asked = await self._read(call, values)
            loaded = await self._loaded(call, asked.variant)
            columns = await self._columns(call, asked.payload, loaded)
            started = time.perf_counter()
            answer_body = await self._in("explain", lambda: _explain(columns, loaded.bundle))
            call.add_timing("explain", (time.perf_counter() - started) * 1e3)
            return answer_body

    async def infer(self, call: Call, values: dict[str, str]) -> bytes:
        """``POST /v2/models/{name}[/versions/{n}]/infer``."""
        async with self._places.take(call):
            reference, variant = await self._resolve(call, values)
            kind = invocations.media_type(call.header("content-type"))
            header_length = call.header(open_inference.BINARY_HEADER) or None
            if kind not in invocations.JSON_TYPES | {"application/octet-stream"}:
                raise UnsupportedMedia(
                    f"The content type {kind!r} is not read.",
                    hint="Send application/json, with binary tensors after it where the header says so.",
                    details=[Detail("content-type", f"received {kind!r}")],
                )
            body = await call.read_body(limit_mb=self._limits.body_mb)
            small = len(body) <= INLINE_BYTES
            request = await self._run(small, lambda: open_inference.parse(body, header_length=header_length))
            check_rows(request.payload, max_rows=self._limits.rows)
            asked = Asked(reference, variant, request.payload, body, small)

            async def inferred(chosen: Variant) -> tuple[tuple[bytes, int | None], float]:
                loaded = await self._loaded(call, chosen)
                inline = small and loaded.row_ms < INLINE_MS
                payload = open_inference.resolve_matrix(request.payload, loaded.bundle)
                raw, ms = await self._run(inline, lambda: _predict(payload, loaded.bundle))
                call.add_timing("predict", ms)
                name, version = chosen.name, chosen.version
                form = partial(open_inference.format_answer, raw, loaded.bundle, name=name, version=version)
                return await self._run(inline, lambda: form(request=request)), ms

            answer_body, length = await self._traffic.answered(await self._choose(call, asked), inferred)
            if length is not None:
                call.answer_headers[open_inference.BINARY_HEADER] = str(length)
                call.answer_headers["content-type"] = "application/octet-stream"
            return answer_body

    # --- steps -------------------------------------------------------------------

    async def _resolve(self, call: Call, values: dict[str, str]) -> tuple[Reference, Variant]:
        """Return what a caller who may has named, and the version that it means."""
        await self._doors.admit(call.header("authorization"), values["name"].partition("@")[0])
        reference = Reference.parse(values["name"], version=values.get("version"))
        variant = await self._table.resolve(reference)
        _tell(call, variant)
        return reference, variant

    async def _read(self, call: Call, values: dict[str, str]) -> Asked:
        """Read a body of ``/invocations``."""
        reference, variant = await self._resolve(call, values)
        body = await call.read_body(limit_mb=self._limits.body_mb)
        small = len(body) <= INLINE_BYTES
        payload = await self._run(small, lambda: invocations.parse(body, call.header("content-type")))
        check_rows(payload, max_rows=self._limits.rows)
        return Asked(reference, variant, payload, body, small)

    async def _choose(self, call: Call, asked: Asked) -> Choice:
        key = call.header(KEY_HEADER).encode("latin-1") or asked.body
        return await self._traffic.choose(asked.reference, asked.variant, key)

    async def _loaded(self, call: Call, variant: Variant) -> Loaded:
        _tell(call, variant)
        return await self._cache.get(variant)

    async def _columns(self, call: Call, payload: Payload, loaded: Loaded) -> NamedColumns | NamelessColumns:
        """Return a payload's columns; those of entities are read from the online store."""
        if not isinstance(payload, EntityRows):
            return payload
        started = time.perf_counter()
        columns = await self._in(
            "features", lambda: self._features.columns(payload, variant=loaded.variant, bundle=loaded.bundle)
        )
        call.add_timing("features", (time.perf_counter() - started) * 1e3)
        return columns

    async def _run(self, inline: bool, call: Callable[[], T]) -> T:
        return call() if inline else await self._in("predict", call)

    async def _in(self, pool: str, call: Callable[[], T]) -> T:
        executor: Executor = self._pools[pool]
        return await asyncio.get_running_loop().run_in_executor(executor, call)


ROUTES: tuple[tuple[str, tuple[str, ...], Handler], ...] = (
    ("POST", ("variants", "{name}", "invocations"), Predictor.invoke),
    ("POST", ("variants", "{name}", "versions", "{version}", "invocations"), Predictor.invoke),
    ("POST", ("variants", "{name}", "explain"), Predictor.explain),
    ("POST", ("variants", "{name}", "versions", "{version}", "explain"), Predictor.explain),
    ("POST", ("v2", "models", "{name}", "infer"), Predictor.infer),
    ("POST", ("v2", "models", "{name}", "versions", "{version}", "infer"), Predictor.infer),
    ("GET", ("v2", "models", "{name}"), Predictor.model),
    ("GET", ("v2", "models", "{name}", "versions", "{version}"), Predictor.model),
    ("GET", ("v2", "models", "{name}", "ready"), Predictor.model_ready),
    ("GET", ("v2", "models", "{name}", "versions", "{version}", "ready"), Predictor.model_ready),
    ("GET", ("v2",), Predictor.server),
    ("GET", ("v2", "health", "live"), Predictor.live),
    ("GET", ("v2", "health", "ready"), Predictor.ready),
)


def _route(call: Call, path: str) -> tuple[Handler, dict[str, str]]:
    """Return who answers a request, and what stands in the route's braces.

    Raises:
        NotFound: there is no such route.
        MethodNotAllowed: there is, for another method; the answer's header says which.
    """
    allowed = []
    for method, pattern, handler in ROUTES:
        if len(pattern) != len(call.parts):
            continue
        values = {}
        for expected, part in zip(pattern, call.parts, strict=True):
            if expected[0] == "{":
                values[expected[1:-1]] = part
            elif expected != part:
                break
        else:
            if method == call.method:
                return handler, values
            allowed.append(method)
    if allowed:
        call.answer_headers["allow"] = ", ".join(allowed)
        raise MethodNotAllowed(f"{call.method} is not allowed on {path!r}.", hint=f"Use {' or '.join(allowed)}.")
    routes = "; ".join(f"{method} /{'/'.join(pattern)}" for method, pattern, _ in ROUTES)
    raise NotFound(f"There is no route {path!r}.", hint=f"Routes: {routes}.", details=[Detail("path", path)])


def _tell(call: Call, variant: Variant) -> None:
    """Say in the answer who answers."""
    call.answer_headers["x-variant"] = f"{variant.name}/{variant.version}"


def _predict(payload: NamedColumns | NamelessColumns, bundle: Bundle) -> tuple[np.ndarray, float]:
    """Return the raw prediction of a checked payload, and its time in ms with the checks."""
    started = time.perf_counter()
    raw = bundle.predict_raw(arrays(payload, bundle))
    return raw, (time.perf_counter() - started) * 1e3


def _explain(payload: NamedColumns | NamelessColumns, bundle: Bundle) -> bytes:
    return format_explanation(explain(bundle, arrays(payload, bundle), limit_s=LIMIT_S))
