"""The predictor's routes, and who answers each of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache, partial

from pydantic_core import to_json

from factory.errors import Detail, NotFound, StorageFault
from serve import explanations, invocations, open_inference
from serve.call import Call
from serve.core import Core
from serve.described import described
from serve.errors import MethodNotAllowed, UnsupportedMedia
from serve.inputs import arrays
from serve.outcomes import read_outcomes
from serve.predictions import Asked, Prediction, is_small
from serve.release import release
from serve.telemetry import CONTENT_TYPE

Handler = Callable[[Core, Call, Mapping[str, str]], Awaitable[bytes]]


async def alive(_: Core, __: Call, ___: Mapping[str, str]) -> bytes:
    """``GET /``: what KServe's first protocol asks whether a server lives."""
    return to_json({"status": "alive"})


async def live(_: Core, __: Call, ___: Mapping[str, str]) -> bytes:
    """``GET /v2/health/live``."""
    return to_json({"live": True})


async def require_ready(core: Core) -> None:
    """Return where the ledger can be read, or there are variants in memory, which do without it.

    Anybody may ask: it is looked at once a second, however many do.

    Raises:
        StorageFault: neither is so.
    """
    # A balancer would otherwise take all replicas out of traffic at once, which can answer most requests.
    if not len(core.cache):
        await core.changes.look()
        if core.changes.is_away:
            raise StorageFault("The ledger cannot be read.", hint="`factory doctor` looks at it.")


async def ready(core: Core, _: Call, __: Mapping[str, str]) -> bytes:
    """``GET /v2/health/ready``: requests can be answered."""
    await require_ready(core)
    return to_json({"ready": True})


async def server(_: Core, __: Call, ___: Mapping[str, str]) -> bytes:
    """``GET /v2``: server metadata."""
    return to_json({"name": "model-variant-factory", "version": release(), "extensions": ["binary_tensor_data"]})


async def metrics(core: Core, call: Call, _: Mapping[str, str]) -> bytes:
    """``GET /metrics``: of all replicas; they name variants of all teams, so an operator's token is asked for."""
    async with core.metrics_places.take(call):
        await core.doors.admit_operator(call.header("authorization"), origin=core.origin(call))
    call.answer_headers["content-type"] = CONTENT_TYPE
    text, fleet = core.metrics(), core.fleet
    return text if fleet is None else await core.in_("disk", lambda: fleet.exchange(text))


async def model_metadata(core: Core, call: Call, values: Mapping[str, str]) -> dict[str, object]:
    """Return the protocol's metadata of the variant that a route, or a message, names."""
    async with core.places.take(call):
        _, variant = await core.resolve(call, values)
        loaded = await core.cache.get(variant)
        try:
            versions = await core.table.versions(variant.name)
        except StorageFault:
            # Nobody has asked for them before the ledger went away; this one is in memory.
            versions = [variant.version]
        return open_inference.metadata(loaded.bundle, name=variant.name, versions=versions)


async def require_model(core: Core, call: Call, values: Mapping[str, str]) -> str:
    """Return the name of a variant once it is in memory, so that nobody waits for it."""
    async with core.places.take(call):
        _, variant = await core.resolve(call, values)
        await core.cache.get(variant)
        return variant.name


async def model(core: Core, call: Call, values: Mapping[str, str]) -> bytes:
    """``GET /v2/models/{name}[/versions/{n}]``: model metadata."""
    return to_json(await model_metadata(core, call, values))


async def model_ready(core: Core, call: Call, values: Mapping[str, str]) -> bytes:
    """``GET /v2/models/{name}[/versions/{n}]/ready``, and ``GET /v1/models/{name}``: it is loaded, so nobody waits."""
    return to_json({"name": await require_model(core, call, values), "ready": True})


async def invoke(core: Core, call: Call, values: Mapping[str, str]) -> bytes:
    """``POST /variants/{name}[/versions/{n}]/invocations``, and what others call it.

    MLflow's client for deployments calls ``/endpoints/{name}/invocations``, KServe's first protocol
    ``/v1/models/{name}:predict``.
    """

    def form(prediction: Prediction) -> bytes:
        return invocations.format_predictions(prediction.raw, prediction.loaded.bundle)

    async with core.places.take(call):
        return await core.answered(call, await core.read(call, values, places=core.places), form)


async def explained(core: Core, call: Call, values: Mapping[str, str]) -> bytes:
    """``POST /variants/{name}[/versions/{n}]/explain``, by KServe's first protocol ``/v1/models/{name}:explain``.

    It takes what ``/invocations`` takes, and wishes beside it.
    """
    async with core.explain_places.take(call):
        asked = await core.read(call, values, places=core.explain_places, parse=explanations.read_payload)
        kind = call.header("content-type")
        wish = await core.run(asked.small, lambda: explanations.read_wish(asked.body, kind))
        loaded = await core.loaded(call, asked.variant)
        columns = await core.columns(call, asked.payload, loaded)
        started = time.perf_counter()

        def made() -> bytes:
            return explanations.answer(loaded.bundle, arrays(columns, loaded.bundle), wish)

        body = await core.in_("explain", made)
        call.add_timing("explain", (time.perf_counter() - started) * 1e3)
        return body


async def infer(core: Core, call: Call, values: Mapping[str, str]) -> bytes:
    """``POST /v2/models/{name}[/versions/{n}]/infer``."""
    async with core.places.take(call):
        reference, variant = await core.resolve(call, values)
        kind = invocations.media_type(call.header("content-type"))
        header_length = call.header(open_inference.BINARY_HEADER) or None
        if kind not in invocations.JSON_TYPES | {"application/octet-stream"}:
            raise UnsupportedMedia(
                f"The content type {kind!r} is not read.",
                hint="Send application/json, with binary tensors after it where the header says so.",
                details=[Detail("content-type", f"received {kind!r}")],
            )
        body = await core.places.read(call)
        parse = partial(open_inference.parse, body, header_length=header_length, max_rows=core.limits.rows)
        request = await core.run(is_small(body), parse)

        def form(prediction: Prediction) -> tuple[bytes, int | None]:
            by = prediction.loaded
            return open_inference.format_answer(
                prediction.raw, by.bundle, name=by.variant.name, version=by.variant.version, request=request
            )

        asked = Asked(reference, variant, request.payload, body)
        answer_body, length = await core.answered(call, asked, form, adapt=open_inference.resolve_matrix)
        if length is not None:
            call.answer_headers[open_inference.BINARY_HEADER] = str(length)
            call.answer_headers["content-type"] = "application/octet-stream"
        return answer_body


async def outcomes(core: Core, call: Call, values: Mapping[str, str]) -> bytes:
    """``POST /variants/{name}/outcomes``: what became of what was predicted."""
    async with core.places.take(call):
        # Who may only read is told so by the second door.
        reference, _ = await core.resolve(call, values, scopes=("predict", "deploy", "read"))
        await core.doors.admit_owner(call.header("authorization"), reference.name, origin=core.origin(call))
        body = await core.places.read(call)
        told = await core.run(is_small(body), lambda: read_outcomes(body, most=core.limits.rows))
        recorder = core.recorder
        if recorder is None:
            raise StorageFault("This predictor writes nothing down.", hint="Ask one that was started with a folder.")
        try:
            await core.in_("disk", lambda: recorder.put_outcomes(reference.name, told))
        except OSError as error:
            raise StorageFault(
                f"The outcomes could not be written down: {error.strerror or error}.", hint="Send them again later."
            ) from error
        return to_json({"written": len(told)})


async def openapi(_: Core, __: Call, ___: Mapping[str, str]) -> bytes:
    """``GET /openapi.json``: this document."""
    return to_json(described(ROUTES))


ROUTES: tuple[tuple[str, tuple[str, ...], Handler], ...] = (
    ("POST", ("variants", "{name}", "invocations"), invoke),
    ("POST", ("variants", "{name}", "versions", "{version}", "invocations"), invoke),
    ("POST", ("variants", "{name}", "explain"), explained),
    ("POST", ("variants", "{name}", "versions", "{version}", "explain"), explained),
    ("POST", ("variants", "{name}", "outcomes"), outcomes),
    ("POST", ("endpoints", "{name}", "invocations"), invoke),
    ("POST", ("v1", "models", "{name}:predict"), invoke),
    ("POST", ("v1", "models", "{name}:explain"), explained),
    ("GET", ("v1", "models", "{name}"), model_ready),
    ("GET", (), alive),
    ("POST", ("v2", "models", "{name}", "infer"), infer),
    ("POST", ("v2", "models", "{name}", "versions", "{version}", "infer"), infer),
    ("GET", ("v2", "models", "{name}"), model),
    ("GET", ("v2", "models", "{name}", "versions", "{version}"), model),
    ("GET", ("v2", "models", "{name}", "ready"), model_ready),
    ("GET", ("v2", "models", "{name}", "versions", "{version}", "ready"), model_ready),
    ("GET", ("v2",), server),
    ("GET", ("v2", "health", "live"), live),
    ("GET", ("v2", "health", "ready"), ready),
    ("GET", ("metrics",), metrics),
    ("GET", ("openapi.json",), openapi),
)


MOST_KEPT = 300
"""Characters of a path whose route is remembered."""


def route(call: Call, path: str) -> tuple[Handler, Mapping[str, str]]:
    """Return who answers a request, and what stands in the route's braces.

    Raises:
        NotFound: there is no such route.
        MethodNotAllowed: there is, for another method; the answer's header says which.
    """
    found = _found(call.method, call.parts) if len(path) <= MOST_KEPT else _found.__wrapped__(call.method, call.parts)
    if isinstance(found, tuple):
        return found
    if found:
        call.answer_headers["allow"] = ", ".join(found)
        raise MethodNotAllowed(f"{call.method} is not allowed on {path!r}.", hint=f"Use {' or '.join(found)}.")
    routes = "; ".join(f"{method} /{'/'.join(pattern)}" for method, pattern, _ in ROUTES)
    raise NotFound(f"There is no route {path!r}.", hint=f"Routes: {routes}.", details=[Detail("path", path)])


@lru_cache(maxsize=4_096)
def _found(asked: str, parts: tuple[str, ...]) -> tuple[Handler, Mapping[str, str]] | list[str]:
    """Return who answers a method and a path, with what stands in the route's braces; or the methods that it has."""
    allowed: list[str] = []
    of_endings: list[str] = []
    for method, pattern, handler in ROUTES:
        if len(pattern) != len(parts):
            continue
        values, ends = {}, False
        for expected, part in zip(pattern, parts, strict=True):
            name, brace, ending = expected.partition("}")
            if not brace:
                if expected != part:
                    break
            elif part.endswith(ending):
                values[name[1:]] = part.removesuffix(ending)
                ends = bool(ending)
            else:
                break
        else:
            if method == asked:
                return handler, values
            # What ends in ":predict" is no name, though it could stand where one does.
            (of_endings if ends else allowed).append(method)
    return of_endings or allowed
