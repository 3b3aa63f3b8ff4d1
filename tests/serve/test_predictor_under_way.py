"""What the predictor's application does under way: promotions, many calls at a time, starts and stops."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from factory.errors import StorageFault
from factory.spec import Variant
from factory.variants.bundle import Bundle
from serve import remembered, replica
from serve.call import Call
from serve.limits import TIMEOUT_HEADER, Limits
from serve.loaded import Loaded, Times
from tests.answers import error_of

from .calls import CHURN, ROW, expected, one
from .conftest import Shelf


async def together(caller: Any, calls: list[dict[str, Any]]) -> list[httpx.Response]:
    """Send several requests at one time."""
    async with caller.client() as client:
        return list(await asyncio.gather(*(client.request("POST", **call) for call in calls)))


def test_a_promotion_is_followed_within_a_second(own_shelf, churn, make_caller):
    caller = make_caller(own_shelf)
    own_shelf.put("growth.churn", churn)
    assert caller.post(**one()).headers["x-variant"] == "growth.churn/1"
    own_shelf.put("growth.churn", churn)
    time.sleep(1.01)
    assert caller.post(**one()).headers["x-variant"] == "growth.churn/2"
    old = caller.post(**one("/variants/growth.churn/versions/1/invocations"))
    assert old.headers["x-variant"] == "growth.churn/1"


def test_a_name_without_a_champion(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn, champion=False)
    error = error_of(make_caller(own_shelf).post(**one()), 404)
    assert "has no champion" in error["message"]
    assert "factory variants promote" in error["hint"]


def test_callers_who_wait_share_one_load(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.version)
        time.sleep(0.05)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load)
    answers = asyncio.run(together(caller, [one()] * 8))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert loads == [1]


def test_a_changed_bundle_is_not_loaded_and_is_tried_again(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    manifest = own_shelf.path("growth.churn", 1) / "variant.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good + b" ")
    caller = make_caller(own_shelf)
    response = caller.post(**one())
    assert error_of(response, 500)["code"] == "untrusted_bundle"
    assert response.headers["x-variant"] == "growth.churn/1"
    manifest.write_bytes(good)
    assert caller.post(**one()).status_code == 200


def test_what_is_loaded_is_served_while_the_ledger_is_gone(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    caller = make_caller(own_shelf)
    assert caller.post(**one()).status_code == 200
    time.sleep(1.01)
    own_shelf.ledger.close()
    database = own_shelf.folder.parent / "ledger.db"
    for path in database.parent.glob("ledger.db*"):
        path.unlink()
    database.write_bytes(b"this is not a database, and long enough to be none" * 100)
    assert caller.post(**one()).headers["x-variant"] == "growth.churn/1"
    assert error_of(caller.post(**one("/variants/growth.other/invocations")), 503)["code"] == "storage_fault"
    assert caller.get("/v2/health/ready").json() == {"ready": True}
    assert caller.get("/v2/health/live").status_code == 200
    empty = make_caller(own_shelf)
    assert error_of(empty.get("/v2/health/ready"), 503)["code"] == "storage_fault"
    assert empty.get("/v2/health/live").status_code == 200


def test_a_ledger_that_hangs_stalls_nobody_whose_variant_is_loaded(own_shelf, churn, make_caller, monkeypatch):
    monkeypatch.setattr(remembered, "WAITED_S", 0.02)
    clock = [100.0]
    monkeypatch.setattr(remembered, "clock", lambda: clock[0])
    own_shelf.put("growth.churn", churn)
    hangs, go_on = threading.Event(), threading.Event()

    class Hanging:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                if hangs.is_set():
                    assert go_on.wait(30)
                return getattr(own_shelf.ledger, name)(*arguments, **named)

            return call

    hanging = Shelf(own_shelf.folder, Hanging())
    monkeypatch.setitem(vars(hanging), "secret", own_shelf.secret)
    caller = make_caller(hanging)

    async def calls() -> list[int]:
        async with caller.client() as client:
            told = [(await client.request("POST", **one())).status_code]
            hangs.set()
            for _ in range(20):
                clock[0] += 1.5
                told.append((await client.request("POST", **one())).status_code)
            told.append((await client.get("/v2/health/ready")).status_code)
            assert not go_on.is_set()
            go_on.set()
            return told

    try:
        assert asyncio.run(calls()) == [200] * 22
    finally:
        go_on.set()


def test_the_predictor_opens_its_ledger_with_little_patience(registered_home, monkeypatch):
    predictor = replica.build(registered_home)
    assert predictor.core.ledger._patience_s == replica.LEDGER_S < 5
    predictor.core.ledger.close()
    predictor.core.close()


def test_more_requests_than_places_are_told_to_come_again(shelf, make_caller):
    release = threading.Event()

    def load(variant: Variant) -> Loaded:
        release.wait(5)
        return shelf.load(variant)

    caller = make_caller(shelf, load=load, ongoing=2)

    async def crowd() -> list[httpx.Response]:
        waiting = asyncio.create_task(together(caller, [one(), one()]))
        await asyncio.sleep(0.05)
        refused = await together(caller, [one()])
        release.set()
        return [*refused, *await waiting]

    refused, *served = asyncio.run(crowd())
    assert error_of(refused, 503)["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    assert [answer.status_code for answer in served] == [200, 200]


def test_the_deadline(shelf, make_caller):
    def load(variant: Variant) -> Loaded:
        time.sleep(0.3)
        return shelf.load(variant)

    caller = make_caller(shelf, load=load, deadline_s=0.1)

    async def twice() -> list[httpx.Response]:
        late = await together(caller, [one()])
        await asyncio.sleep(0.4)
        return late + await together(caller, [one()])

    late, again = asyncio.run(twice())
    assert error_of(late, 504)["code"] == "deadline_exceeded"
    assert again.status_code == 200, "the load went on although nobody waited for it"


def test_a_caller_that_waits_for_less_has_a_nearer_deadline(shelf, make_caller):
    release = threading.Event()

    def load(variant: Variant) -> Loaded:
        assert release.wait(20)
        return shelf.load(variant)

    caller = make_caller(shelf, load=load)
    late = caller.post(**one(), headers={"x-envoy-expected-rq-timeout-ms": "50"})
    assert "within 0.05 s" in error_of(late, 504)["message"]
    release.set()
    assert caller.post(**one(), headers={"x-envoy-expected-rq-timeout-ms": "60000"}).status_code == 200
    for wrong in ("", "soon", "-1", "0", "1.5", "9" * 40):
        error = error_of(caller.post(**one(), headers={"x-envoy-expected-rq-timeout-ms": wrong}), 400)
        assert "milliseconds" in error["message"]
    assert Limits(rows=1, body_mb=1, deadline_s=2.0).deadline_of(Call("GET", (), {TIMEOUT_HEADER: b"9000"}, None)) == 2


def test_metadata_of_what_is_loaded_needs_no_ledger(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    caller = make_caller(own_shelf)
    assert caller.post(**one()).status_code == 200

    def away(*_: Any) -> Any:
        raise StorageFault("away", hint="wait")

    told = caller.get("/v2/models/growth.churn").json()
    fresh = make_caller(own_shelf)
    assert fresh.post(**one()).status_code == 200
    for each in (caller, fresh):
        each.app.core.table._catalogue = SimpleNamespace(variants=away)
    assert caller.get("/v2/models/growth.churn").json() == fresh.get("/v2/models/growth.churn").json() == told


def test_a_body_that_does_not_arrive(shelf, make_caller):
    async def slow():
        yield b"{"
        await asyncio.sleep(0.5)
        yield b"}"

    response = make_caller(shelf, deadline_s=0.1).post(CHURN, content=slow())
    assert error_of(response, 408)["code"] == "slow_request"


def test_a_prediction_that_fails_is_ours_and_the_predictor_lives(shelf, make_caller, caplog):
    class Broken(Bundle):
        def predict_raw(self, columns: Any) -> np.ndarray:
            raise MemoryError("no more")

    def load(variant: Variant) -> Loaded:
        loaded = shelf.load(variant)
        broken = Broken(**{f: getattr(loaded.bundle, f) for f in Bundle.__dataclass_fields__})
        return Loaded(
            variant, broken if variant.name == "growth.churn" else loaded.bundle, {variant.name: 1.0}, Times(0.1)
        )

    caller = make_caller(shelf, load=load)
    error = error_of(caller.post(**one()), 500)
    assert "MemoryError" in error["message"]
    assert "no more" not in error["message"], "details of our process are for the log"
    assert "no more" in caplog.text
    row = {"dataframe_records": [{"age": 1, "income": 1}]}
    assert caller.post("/variants/growth.spend/invocations", json=row).status_code == 200


def test_a_large_body_is_predicted_in_a_thread(shelf, make_caller, churn):
    rows = [ROW | {"age": age % 60} for age in range(400)]
    answer = make_caller(shelf, rows=400, body_mb=1).post(CHURN, json={"dataframe_records": rows})
    assert answer.json()["predictions"] == expected(churn, rows)


def test_websockets_are_refused(caller):
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(dict(message))

    asyncio.run(caller.app({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1003}]
