"""Traces and the access log: what is told of a call, under whose trace, and that nothing is where nobody wants it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer

from factory.variants.bundle import Bundle
from serve import access_log, tracing
from serve.app import Predictor
from serve.core import Core
from serve.limits import Limits
from serve.tracing import Traced, carried, tracer_of
from tests.serving import NoFeatures

from .calls import CHURN, one
from .conftest import Caller, Shelf

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "call-7"}


@pytest.fixture
def spans() -> tuple[Tracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("tests"), exporter


def caller_of(shelf: Shelf, *watchers: Any) -> Caller:
    core = Core(
        shelf.ledger, load=shelf.load, features=NoFeatures(), limits=Limits(rows=50, body_mb=0.1), watchers=watchers
    )
    return Caller(Predictor(core), shelf.secret)


def test_a_call_and_its_prediction_are_spans_of_the_callers_trace(
    own_shelf: Shelf, churn: Bundle, spans: tuple[Tracer, InMemorySpanExporter]
) -> None:
    tracer, exporter = spans
    own_shelf.put("growth.churn", churn)
    answer = caller_of(own_shelf, tracing.watcher(tracer)).post(headers=PARENT, **one())
    assert answer.status_code == 200
    load, predict, call = exporter.get_finished_spans()
    assert (call.name, load.name, predict.name, call.kind) == ("invoke", "load", "predict", SpanKind.SERVER)
    assert f"{call.context.trace_id:032x}" == TRACE
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == "b7ad6b7169203331"
    assert predict.parent is not None
    assert predict.parent.span_id == call.context.span_id
    assert call.attributes is not None
    assert call.attributes["factory.variant"] == "growth.churn/1"
    assert call.attributes["http.request.id"] == "call-7"
    assert call.start_time <= predict.start_time <= predict.end_time <= call.end_time  # type: ignore[operator]


def test_a_fault_of_ours_is_an_error_and_one_of_the_callers_is_none(
    own_shelf: Shelf, churn: Bundle, spans: tuple[Tracer, InMemorySpanExporter]
) -> None:
    tracer, exporter = spans
    own_shelf.put("growth.churn", churn)
    caller = caller_of(own_shelf, tracing.watcher(tracer))
    caller.post(CHURN, json={"dataframe_records": [{"age": "old"}]})
    (own_shelf.path("growth.churn", 1) / "variant.json").write_text("{}")
    caller_of(own_shelf, tracing.watcher(tracer)).post(**one())
    codes = [(s.attributes["http.response.status_code"], s.status.is_ok) for s in exporter.get_finished_spans()
             if s.attributes and "http.response.status_code" in s.attributes]  # fmt: skip
    assert codes == [(422, True), (500, False)]


def test_the_access_log_has_a_line_for_each_call_and_may_be_moved(
    own_shelf: Shelf, churn: Bundle, tmp_path: Path
) -> None:
    own_shelf.put("growth.churn", churn)
    caller = caller_of(own_shelf, access_log.watcher(tmp_path / "logs"))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    caller.post(headers={"x-request-id": "a1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}, **one())
    file = tmp_path / "logs" / access_log.FILE
    file.rename(tmp_path / "moved.log")
    caller.get("/v2/models/growth.none")
    [first] = [json.loads(line) for line in (tmp_path / "moved.log").read_text().splitlines()]
    [second] = [json.loads(line) for line in file.read_text().splitlines()]
    assert (first["request_id"], first["status"], first["variant"]) == ("a1", 200, "growth.churn/1")
    assert (first["trace"], second["trace"]) == (trace, "")
    assert first["ms"] >= first["predict_ms"] > 0
    assert (second["route"], second["status"], second["path"]) == ("model", 404, "v2/models/growth.none")


def test_the_portals_calls_are_spans_that_the_predictor_goes_on_with(
    spans: tuple[Tracer, InMemorySpanExporter],
) -> None:
    tracer, exporter = spans
    handed: list[dict[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handed.append(dict(carried({"authorization": "Bearer x"})))
        scope["route"] = type("Route", (), {"path": "/api/v1/things/{name}"})
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def call(path: str) -> None:
        transport = httpx.ASGITransport(Traced(app, tracer))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get(path, headers=PARENT)

    asyncio.run(call("/api/v1/things/a"))
    asyncio.run(call("/healthz"))
    [span] = exporter.get_finished_spans()
    assert span.name == "GET /api/v1/things/{name}"
    assert not span.status.is_ok
    assert f"{span.context.trace_id:032x}" == TRACE
    traced, quiet = handed
    assert traced["authorization"] == "Bearer x"
    assert TRACE in traced["traceparent"]
    assert "traceparent" not in quiet


def test_nothing_is_traced_where_no_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    assert tracer_of("predictor") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert tracer_of("predictor") is not None
