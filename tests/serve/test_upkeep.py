"""What a replica does beside its calls: champions are loaded at the start, feature services are looked at."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from factory.errors import ServiceFault, UntrustedBundle
from factory.spec import DeploymentWish, Variant
from serve import upkeep
from serve.loaded import Loaded
from serve.upkeep import preload


def test_feature_services_are_looked_at_now_and_then(shelf, make_caller, monkeypatch, caplog):
    monkeypatch.setattr(upkeep, "REFRESHED_EVERY_S", 0.001)
    looks = []

    class Features:
        def refresh(self) -> None:
            looks.append(threading.current_thread().name)
            if len(looks) < 3:
                raise ServiceFault("The registry is away.")

    async def scenario() -> None:
        over = asyncio.Event()
        task = asyncio.create_task(upkeep.keep_refreshing(make_caller(shelf, features=Features()).app.core, over))
        while len(looks) < 3:
            await asyncio.sleep(0.001)
        over.set()
        await task

    asyncio.run(scenario())
    assert all(name.startswith("registry") for name in looks)
    assert "The registry is away" in caplog.text


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
    asyncio.run(preload(core))
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
