"""The edge: health, metrics, headers, ids, logs, errors nobody expected, and what is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import threading
from datetime import timedelta
from typing import Any

import pytest
from anyio import to_thread
from prometheus_client.parser import text_string_to_metric_families

from factory.ledger import UploadQuery
from factory.ledger.moments import now
from factory.operate.json_logs import JsonLines
from factory.spec import Trial
from serve.portal import context
from serve.portal.context import Portal
from tests.answers import error_of
from tests.portal.conftest import Client, MakeWorld, World, fields_of

ROOT = "http://portal"


# --- answers -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/api", "/api/v1", "/api/v1/requests/", "/api/v2/requests", "/docs"])
def test_a_route_that_does_not_exist(path: str, world: World) -> None:
    error = error_of(world().get(f"{ROOT}{path}"), 404)
    assert error["code"] == "not_found"
    assert fields_of(error) == {"path"}


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/requests"), ("PUT", "/me"), ("HEAD", "/teams"), ("BREW", "/me")]
)
def test_a_method_that_does_not_exist(method: str, path: str, world: World) -> None:
    response = world()(method, path)
    assert response.status_code == 405
    assert response.headers["allow"]
    if method != "HEAD":
        assert error_of(response, 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize("url", [f"{ROOT}/healthz", "/me", "/nothing", f"{ROOT}/openapi.json", "/requests?limit=0"])
def test_every_answer_is_safe_to_show(url: str, world: World) -> None:
    headers = world("growth/read").get(url).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers
    assert headers["x-request-id"]


def test_other_origins_are_allowed_nothing(world: World) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    response = world()("OPTIONS", "/requests", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_id_of_a_call_comes_back_and_is_made_where_it_cannot(world: World) -> None:
    client = world("growth/read")
    assert client.get("/me", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    made = {client.get("/me", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "a b", "x" * 65)}
    assert len(made) == 3
    assert all(len(one) == 16 for one in made)


def test_what_nobody_expected_is_an_id_to_the_caller_and_a_traceback_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret of the house")

    monkeypatch.setattr(type(world.ledger), "teams", broken)
    response = world("growth/read").get("/teams", headers={"x-request-id": "call-7"})
    error = error_of(response, 500)
    assert "call-7" in error["message"]
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "secret of the house" in JsonLines().format(record)


TRACED = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


def test_lines_of_the_log_are_json_with_the_id_of_the_call(world: World, caplog: pytest.LogCaptureFixture) -> None:
    lines = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLines().format(record)))

    handler = Handler()
    logger = logging.getLogger("serve.portal.edge")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger.name)
    try:
        world("growth/read").get("/requests/r-1?x=secret", headers={"x-request-id": "call-8"} | TRACED)
    finally:
        logger.removeHandler(handler)
    (line,) = lines
    assert line["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (line["call"], line["method"], line["route"]) == ("call-8", "GET", "/api/v1/requests/{request_id}")
    assert (line["status"], line["level"], line["client"]) == (404, "info", "10.0.0.7")
    assert line["who"].startswith("token:read/")
    assert "secret" not in json.dumps(line)
    assert world.secrets["growth/read"] not in json.dumps(line)
    assert "call" not in json.loads(JsonLines().format(logging.makeLogRecord({})))


# --- health ------------------------------------------------------------------------


def test_readiness_names_what_is_missing_and_stays_ready_without_the_cluster(world: World) -> None:
    def checks() -> tuple[int, dict[str, bool]]:
        world.app.state.portal._looked = (0.0, None)
        world.app.state.portal.outlook._asked = float("-inf")
        response = Client(world.app, None).get(f"{ROOT}/readyz")
        return response.status_code, {check["name"]: check["ok"] for check in response.json()["checks"]}

    assert checks() == (200, {"ledger": True, "controller": False, "ray": True, "mlflow": True, "storage": True})
    epoch = world.ledger.lead("controller", "me")
    assert epoch is not None
    assert checks()[1]["controller"]
    world.ledger.resign("controller", epoch)
    world.jobs.reachable = False
    assert checks() == (200, {"ledger": True, "controller": False, "ray": False, "mlflow": True, "storage": True})


def test_readiness_is_told_while_all_others_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(type(world.ledger), "shares", lambda *_, **__: [] if release.wait(60) else None)

    async def ask() -> tuple[int, list[int]]:
        to_thread.current_default_thread_limiter().total_tokens = 2
        waiting = [
            asyncio.create_task(world("growth/read").send("GET", "/shares?kind=dataset&subject=x")) for _ in range(4)
        ]
        while to_thread.current_default_thread_limiter().available_tokens:
            await asyncio.sleep(0.01)
        ready = await asyncio.wait_for(world(None).send("GET", f"{ROOT}/readyz"), 30)
        assert not any(task.done() for task in waiting)
        release.set()
        return ready.status_code, [answer.status_code for answer in await asyncio.gather(*waiting)]

    assert asyncio.run(ask()) == (200, [200] * 4)


def test_an_mlflow_that_does_not_answer(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    world = make_world()
    response = Client(world.app, None).get(f"{ROOT}/readyz")
    assert response.status_code == 200
    assert [check["ok"] for check in response.json()["checks"] if check["name"] == "mlflow"] == [False]
    assert "127.0.0.1" not in response.text
    assert world().post("/requests", json=world.order()).status_code == 202


def test_a_ledger_that_is_gone_is_503_and_comes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.settings.root / "ledger.db"
    portal: Portal = world.app.state.portal
    monkeypatch.setattr(context, "_AGAIN_S", 0.0)
    content = path.read_bytes()
    world.ledger.close()
    portal.close()
    path.write_bytes(b"this is no database" * 1000)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    for url in ("/me", "/requests", "/teams"):
        response = world("growth/read").get(url)
        assert error_of(response, 503)["code"] == "storage_fault"
        assert response.headers["retry-after"] == "1"
        assert str(world.settings.root) not in response.text
        assert "://" not in response.text
    ready = Client(world.app, None).get(f"{ROOT}/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert Client(world.app, None).get(f"{ROOT}/healthz").json() == {"alive": True}
    path.write_bytes(content)
    assert world("growth/read").get("/me").status_code == 200


def test_a_locked_ledger_is_read_and_writes_are_told_to_come_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "PATIENCE_S", 0.05)
    world = make_world()
    order = world.order()
    locked = sqlite3.connect(world.settings.root / "ledger.db", isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    response = world().post("/requests", json=order)
    error_of(response, 503)
    assert response.headers["retry-after"]
    assert world().get("/requests").json()["items"] == []
    locked.execute("ROLLBACK")
    locked.close()
    assert world().post("/requests", json=order).status_code == 202


def test_a_clock_that_is_set_back_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.submitted()
    now_before = now() - timedelta(days=1)
    monkeypatch.setattr("factory.ledger.moments.clock", lambda: now_before)
    second = world.submitted(seed=1)
    listed = [item["id"] for item in world().get("/requests").json()["items"]]
    assert sorted(listed) == sorted([first, second])
    assert world("operator").get(f"{ROOT}/metrics").status_code == 200


# --- metrics -----------------------------------------------------------------------


def samples(world: World) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = world("operator").get(f"{ROOT}/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_tell_queue_jobs_cost_and_calls(make_world: MakeWorld) -> None:
    world = make_world(cpu_hour=3600.0, gb_hour=0.0)

    def value(name: str, **labels: str) -> float:
        return samples(world)[name, frozenset(labels.items())]

    waiting, running, ended = (world.submitted(seed=seed) for seed in range(3))
    trial = Trial(number=0, family="linear", parameters={}, state="succeeded", cost_s=7.5, score=0.8)
    world.ledger.record_trial(running, trial)
    for one in (running, ended):
        world.ledger.admit(one)
    world.ledger.end_attempt(f"{ended}-1", "system_fault", retry_after_s=60)
    assert value("factory_queue_length", team="growth") == 1
    assert 0 <= value("factory_queue_oldest_seconds", team="growth") < 60
    assert value("factory_requests", team="growth", state="queued") == 3
    assert value("factory_open_attempts", team="growth") == 1
    assert value("factory_held", team="growth", resource="cpus") == 2
    assert value("factory_attempts_ended_total", team="growth", outcome="system_fault") == 1
    assert value("factory_month_trial_seconds", team="growth") == 7.5
    assert value("factory_trials_total", team="growth") == 1
    assert value("factory_trial_seconds_total", team="growth") == 7.5
    assert value("factory_month_cost", team="growth", currency="USD") > 0
    assert value("factory_admission_seconds_count", team="growth") == 2
    assert value("factory_ledger_up") == 1
    assert value("factory_controller_leads") == 0
    route = {"method": "POST", "route": "/api/v1/requests", "status": "202"}
    assert value("factory_http_seconds_count", **route) == 3
    world().get("/requests/r-1")
    assert value("factory_http_seconds_count", method="GET", route="/api/v1/requests/{request_id}", status="404") == 1
    world.ledger.request(waiting)
    world.ledger.admit(waiting)
    assert value("factory_admission_seconds_count", team="growth") == 3


def test_metrics_of_calls_are_told_though_the_ledger_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.errors import StorageFault

    def gone(*_: Any, **__: Any) -> Any:
        raise StorageFault("The ledger is away.")

    monkeypatch.setattr(type(world.ledger), "state_counts", gone)
    monkeypatch.setattr("serve.portal.metrics.admissions", gone)
    world().get("/me")
    found = samples(world)
    assert found["factory_ledger_up", frozenset()] == 0
    assert [name for name, _ in found if name == "factory_http_seconds_count"]
    assert UploadQuery().team is None


# --- the application ----------------------------------------------------------------


def test_the_application_is_made_when_a_server_asks_for_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.portal import app

    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(app.json_logs, "configure", lambda: None)
    made = app.app
    assert made is app.app
    assert (tmp_path / "home" / "ray_token").is_file()
    with pytest.raises(AttributeError):
        _ = app.nothing
    made.state.portal.jobs.close()
    app._app.cache_clear()


def test_a_stop_lets_go_of_what_was_opened(world: World) -> None:
    portal: Portal = world.app.state.portal

    async def live() -> None:
        async with world.app.router.lifespan_context(world.app):
            assert world.app.openapi_schema is not None
            assert (await world("growth/read").send("GET", "/me")).status_code == 200
            assert portal._ledger is not None
        assert portal._ledger is None

    asyncio.run(live())
    assert world("growth/read").get("/me").status_code == 200  # opened again
