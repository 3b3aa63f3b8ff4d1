"""OpenTelemetry traces: what a call went through, sent where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says, if it does.

The variables are OpenTelemetry's own (``OTEL_SERVICE_NAME``,
``OTEL_TRACES_SAMPLER`` and so on).  A caller's ``traceparent`` is taken up, so
that the portal, the predictor and whoever calls them are one trace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from serve.call import Call, Message, Receive, Send
from serve.core import Watcher
from serve.release import release

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_CARRIED = ("traceparent", "tracestate", "baggage")
_QUIET = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by machines; a trace of each would hide the others."""

wall_ns = time.time_ns


def tracer_of(service: str) -> Tracer | None:
    """Return what makes spans of a service; None where nobody wants them.

    Args:
        service: Its name; ``OTEL_SERVICE_NAME`` wins.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Resource.create puts what the environment says over what is given here.
    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.version": release()}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("model-variant-factory", release())


def watcher(tracer: Tracer) -> Watcher:
    """Return what records a call of the predictor that was answered, with its steps one after the other."""

    def record(call: Call, route: str, status: int, took_s: float) -> None:
        end = wall_ns()
        begin = end - int(took_s * 1e9)
        carrier = {key: call.header(key) for key in _CARRIED if call.header(key)}
        span = tracer.start_span(
            route,
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=begin,
            attributes={
                "factory.variant": call.answer_headers.get("x-variant", ""),
                "http.request.id": call.header("x-request-id"),
                "http.response.status_code": status,
            },
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        within = trace.set_span_in_context(span)
        at = end - int(sum(ms for _, ms in call.steps) * 1e6)
        for step, ms in call.steps:
            child = tracer.start_span(step, context=within, start_time=max(at, begin))
            at += int(ms * 1e6)
            child.end(max(at, begin))
        span.end(end)

    return record


def carried(headers: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Return headers with the trace that is under way, for a call to another service."""
    propagate.inject(headers)
    return headers


def current_trace() -> str | None:
    """Return the id of the trace that is under way here, None where nobody traces."""
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}" if found.is_valid else None


class Traced:
    """ASGI middleware: a span around each call, under which others that it makes are.

    Args:
        app: What is called.
        tracer: Makes the spans; None for none.
    """

    def __init__(self, app: Any, tracer: Tracer | None) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Call the application within a span."""
        if self._tracer is None or scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        with _around(self._tracer, scope) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note(span, scope, int(message["status"]))
                await send(message)

            await self._app(scope, receive, noted)


@contextmanager
def _around(tracer: Tracer, scope: Message) -> Iterator[Span]:
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
    attributes = {"http.request.method": str(scope["method"]), "url.path": str(scope["path"])}
    with tracer.start_as_current_span(
        str(scope["method"]), context=propagate.extract(headers), kind=SpanKind.SERVER, attributes=attributes
    ) as span:
        yield span


def _note(span: Span, scope: Message, status: int) -> None:
    """Say what came of a call; which route it was is known once it is routed."""
    route = getattr(scope.get("route"), "path", "")
    if route:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
