"""What the predictor's application does under way: promotions, many calls at a time, starts and stops."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from factory.errors import ServiceFault, UntrustedBundle
from factory.spec import DeploymentWish, Task, Variant
from factory.variants.bundle import Bundle
from factory.variants.shared import SharedParts
from serve import remembered, replica
from serve.loaded import LEAST_MB, Loaded
from serve.store import BundleCache
from tests.answers import error_of

from .calls import CHURN, ROW, expected, one
from .conftest import Shelf, variant_of


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


def test_the_least_recently_used_goes_first(own_shelf, churn, spend, make_caller):
    for name in ("growth.a", "growth.b", "growth.c"):
        own_shelf.put(name, spend)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load, bundles=2)
    row = {"json": {"dataframe_records": [{"age": 1, "income": 1}]}}
    for name in ("a", "b", "a", "c", "a", "b"):
        assert caller.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads == ["growth.a", "growth.b", "growth.c", "growth.b"]
    tight = make_caller(own_shelf, load=load, bundles_mb=1e-9)
    for name in ("a", "b"):
        assert tight.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads[-2:] == ["growth.a", "growth.b"]


def test_what_is_pinned_stays_while_others_can_go(own_shelf, spend, make_caller):
    for name in ("growth.a", "growth.b", "growth.c"):
        own_shelf.put(name, spend)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load, bundles=2, pinned=("growth.a",))
    row = {"json": {"dataframe_records": [{"age": 1, "income": 1}]}}
    for name in ("a", "b", "c", "a", "b", "a"):
        assert caller.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads == ["growth.a", "growth.b", "growth.c", "growth.b"]


def test_of_a_pinned_name_the_champion_stays_and_what_it_took_over_from_goes_first():
    champions = {"growth.a": 1}

    async def kept() -> list[list[tuple[str, int]]]:
        with ThreadPoolExecutor(1) as threads:
            cache = BundleCache(
                lambda variant: Parts({f"{variant.name}/{variant.version}": 1.0}),
                threads,
                most=3,
                most_mb=100.0,
                pinned=lambda name: name == "growth.a",
                champion=champions.get,
            )
            found = []
            for name, version in (("a", 1), ("b", 1), ("a", 2), ("c", 1), ("a", 2), ("d", 1), ("a", 3), ("e", 1)):
                if (name, version) == ("a", 2):
                    champions["growth.a"] = 2
                await cache.get(variant_of(f"growth.{name}", version, request_id="r", task=Task.BINARY, digest="0"))
                found.append([(key[0][-1], key[1]) for key in cache._loaded])
            return found

    *_, promoted, again, other, canary, last = asyncio.run(kept())
    assert promoted == [("b", 1), ("a", 2), ("c", 1)], (
        "not growth.b, which was used less recently than the first version"
    )
    assert again == [("b", 1), ("c", 1), ("a", 2)]
    assert other == [("c", 1), ("a", 2), ("d", 1)]
    assert canary == [("a", 2), ("d", 1), ("a", 3)], "no champion yet"
    assert last == [("a", 2), ("a", 3), ("e", 1)], "the champion stays, the canary goes when its turn comes"


def test_a_variant_counts_at_least_with_its_files(own_shelf, spend):
    variant = own_shelf.put("growth.a", spend)
    loaded = Loaded.read(variant, own_shelf.path("growth.a", 1), SharedParts())
    assert sum(loaded.sizes.values()) >= max(sum(loaded.bundle.parts.values()), LEAST_MB * len(loaded.sizes))
    assert loaded.sizes.keys() == {*loaded.bundle.parts, "growth.a/1"}
    (own_shelf.path("growth.a", 1) / "variant.json").write_text("{}")
    with pytest.raises(UntrustedBundle):
        Loaded.read(variant, own_shelf.path("growth.a", 1), SharedParts())


@dataclass(frozen=True)
class Parts:
    """What the cache sees of a loaded variant."""

    sizes: dict[str, float]


def test_a_part_that_several_hold_counts_once_and_as_long_as_one_holds_it():
    holds = {
        "growth.a": {"common": 10.0, "a": 1.0},
        "growth.b": {"common": 10.0, "b": 2.0},
        "growth.c": {"c": 4.0},
        "growth.d": {"d": 8.0},
    }

    async def sizes() -> list[float]:
        with ThreadPoolExecutor(1) as threads:
            cache = BundleCache(lambda variant: Parts(holds[variant.name]), threads, most=10, most_mb=20.0)
            found = []
            for name in holds:
                await cache.get(variant_of(name, 1, request_id="r", task=Task.BINARY, digest="0"))
                found.append(cache.size_mb)
            return found

    # The third leaves room for all; for the fourth the first goes, and then the second with what both held.
    assert asyncio.run(sizes()) == [11.0, 13.0, 17.0, 12.0]


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
        return Loaded(variant, broken if variant.name == "growth.churn" else loaded.bundle, {variant.name: 1.0}, 0.1)

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


def lifespan(app: Any, *, between: float) -> list[str]:
    """Start the application and end it as a server does; return what it says."""
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.sleep(between)
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    asyncio.run(app({"type": "lifespan"}, receive, send))
    return sent


def test_champions_are_loaded_when_the_server_starts(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    own_shelf.put("growth.idle", churn)
    own_shelf.ledger.set_deployment("growth.churn", DeploymentWish(), version=1)
    loads: list[str] = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    app = make_caller(own_shelf, load=load).app
    assert lifespan(app, between=0.3) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert loads == ["growth.churn"]


def test_a_champion_that_cannot_be_loaded_keeps_no_other_from_it(own_shelf, churn, make_caller, caplog):
    names = ["growth.broken", "growth.odd", "growth.sound"]
    for name in names:
        own_shelf.put(name, churn)
        own_shelf.ledger.set_deployment(name, DeploymentWish(), version=1)
    own_shelf.put("growth.also", churn, champion=False)
    own_shelf.ledger.set_deployment("growth.also", DeploymentWish(as_="canary", percent=5), version=1)
    own_shelf.put("growth.zero", churn)
    own_shelf.ledger.set_deployment("growth.zero", DeploymentWish(), version=1)
    tried: list[str] = []

    def load(variant: Variant) -> Loaded:
        tried.append(variant.name)
        if variant.name == "growth.broken":
            raise UntrustedBundle("changed")
        if variant.name == "growth.odd":
            raise MemoryError("no more")
        return own_shelf.load(variant)

    core = make_caller(own_shelf, load=load, pinned=("growth.zero",)).app.core
    asyncio.run(core.preload())
    assert tried == ["growth.zero", *names], "pinned ones first, and no name that has a canary only"
    assert len(core.cache) == 2
    assert "growth.broken is loaded when it is asked for" in caplog.text
    assert "growth.odd is loaded when it is asked for" in caplog.text


def test_a_failing_warm_up_does_not_stop_the_server(shelf, make_caller, caplog):
    def warm_up() -> None:
        raise ServiceFault("MLflow could not answer.")

    app = make_caller(shelf, warm_up=warm_up).app
    assert len(lifespan(app, between=0.1)) == 2
    assert "MLflow could not answer" in caplog.text


def test_websockets_are_refused(caller):
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(dict(message))

    asyncio.run(caller.app({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1003}]
