"""Events as they happen and logs as they are written, over a real connection."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from factory.errors import InvalidData, StorageFault
from factory.spec import Actor, RequestState
from serve.portal.routes import streams
from tests.answers import error_of
from tests.portal.conftest import World

ANN = Actor(who="ann")
JSON = {"accept": "application/json"}
SSE = {"accept": "text/event-stream"}


@dataclass(frozen=True)
class Message:
    id: int
    event: str
    data: dict[str, Any]


async def messages(lines: AsyncIterator[str]) -> AsyncIterator[Message | str]:
    """Yield the events of a stream, and its comments as text."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith(":"):
            yield line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Message(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


@asynccontextmanager
async def connected(address: str, world: World, who: str = "growth/read") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {world.secrets[who]}"}
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=10) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


# --- events ------------------------------------------------------------------------


def test_events_come_as_they_happen_and_end_with_the_request(world: World, address: str) -> None:
    request_id = world.submitted()

    async def follow() -> list[int]:
        seen = []
        async with connected(address, world) as client, client.stream("GET", f"/requests/{request_id}/events") as got:
            assert got.headers["content-type"].startswith("text/event-stream")
            async for message in messages(got.aiter_lines()):
                if isinstance(message, str):
                    continue
                seen.append(message.id)
                assert message.data["sequence"] == message.id
                assert message.event == message.data["kind"]
                if message.id == 2:
                    world.ledger.reach(request_id, RequestState.PREPARING, "Reading.")
                    world.ledger.note(request_id, "search", "Three families.")
                if message.event == "search":
                    world.ledger.fail(request_id, InvalidData("No."))
        return seen

    assert asyncio.run(follow()) == [1, 2, 3, 4, 5]


def test_a_stream_is_taken_up_after_what_was_seen(world: World, address: str) -> None:
    request_id = world.submitted()
    world.ledger.fail(request_id, InvalidData("No."))

    async def resumed(headers: dict[str, str], **query: int) -> list[int]:
        async with connected(address, world) as client:
            response = await client.get(f"/requests/{request_id}/events", headers=SSE | headers, params=query)
            if response.status_code == 204:
                return []
            lines = iter(response.text.split("\n"))

            async def told() -> AsyncIterator[str]:
                for line in lines:
                    yield line

            return [m.id async for m in messages(told()) if isinstance(m, Message)]

    assert asyncio.run(resumed({})) == [1, 2, 3]
    assert asyncio.run(resumed({"last-event-id": "1"})) == [2, 3]
    assert asyncio.run(resumed({}, after=2)) == [3]
    assert asyncio.run(resumed({"last-event-id": "3"})) == []  # 204 ends an EventSource


def test_events_as_a_list(world: World) -> None:
    request_id = world.submitted()
    for n in range(4):
        world.ledger.note(request_id, "search", str(n))
    first = world().get(f"/requests/{request_id}/events", params={"limit": 4}, headers=JSON)
    assert [event["sequence"] for event in first.json()["items"]] == [1, 2, 3, 4]
    rest = world().get(first.links["next"]["url"].removeprefix("/api/v1"), headers=JSON).json()
    assert [event["sequence"] for event in rest["items"]] == [5, 6]
    assert rest["next"] is None
    for header in ("x", "-1", "1.5", "9" * 30):
        error_of(world().get(f"/requests/{request_id}/events", headers=JSON | {"last-event-id": header}), 400)


def test_a_silent_stream_shows_that_it_lives(world: World, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.05)
    request_id = world.submitted()

    async def signs() -> int:
        n_signs = 0
        async with connected(address, world) as client, client.stream("GET", f"/requests/{request_id}/events") as got:
            async for message in messages(got.aiter_lines()):
                n_signs += isinstance(message, str)
                if n_signs == 3:
                    return n_signs
        return n_signs

    assert asyncio.run(signs()) == 3


def test_a_stream_ends_with_its_token(world: World, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(streams, "LOOK_AGAIN_S", 0.0)
    request_id = world.submitted()
    token = world.ledger.issue_token("x", team="growth", scopes=["read"], by=ANN)

    async def follow() -> int:
        headers = {"authorization": f"Bearer {token.secret}"}
        n_events = 0
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=10) as client:
            async with client.stream("GET", f"/requests/{request_id}/events") as got:
                async for message in messages(got.aiter_lines()):
                    n_events += isinstance(message, Message)
                    if n_events == 2 and isinstance(message, Message):
                        world.ledger.revoke_token(token.record.id, by=ANN)
            assert (await client.get("/me")).status_code == 401
        return n_events

    assert asyncio.run(follow()) == 2


def test_a_hundred_listeners_are_told_by_one_query_of_one_thread(
    world: World, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [world.submitted(seed=seed) for seed in range(4)]
    portal = world.app.state.portal
    queries = []
    counts = type(portal.ledger).event_counts
    monkeypatch.setattr(
        type(portal.ledger), "event_counts", lambda self, ids: queries.append(len(ids)) or counts(self, ids)
    )

    async def listen(client: httpx.AsyncClient, request_id: str, heard: list[float]) -> None:
        async with client.stream("GET", f"/requests/{request_id}/events") as got:
            async for message in messages(got.aiter_lines()):
                if isinstance(message, Message) and message.event == "news":
                    heard.append(time.monotonic())
                    return

    async def everybody() -> tuple[float, list[float]]:
        heard: list[float] = []
        async with connected(address, world) as client, asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(listen(client, ids[n % 4], heard))
            await until(lambda: portal.feed.n_listeners == 100)
            told = time.monotonic()
            for request_id in ids:
                await asyncio.to_thread(world.ledger.note, request_id, "news", "Now.")
        await until(lambda: portal.feed.n_listeners == 0)
        return told, heard

    told, heard = asyncio.run(everybody())
    assert len(heard) == 100
    assert set(queries) <= {1, 2, 3, 4}
    assert [t.name for t in threading.enumerate()].count("feed") <= 1
    print(f"the last of 100 heard of it after {max(heard) - told:.2f} s")


def test_a_stream_stays_open_while_the_ledger_is_away(
    world: World, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(streams, "PAUSE_S", 0.05)
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.2)
    request_id = world.submitted()
    path = world.settings.root / "ledger.db"
    away = path.with_name("away.db")

    async def follow() -> list[str]:
        heard, signs = [], 0
        async with connected(address, world) as client, client.stream("GET", f"/requests/{request_id}/events") as got:
            async for message in messages(got.aiter_lines()):
                if isinstance(message, str):
                    signs += "does not answer" in message
                    if signs == 3 and not path.exists():
                        away.rename(path)
                        world.ledger.fail(request_id, InvalidData("No."))
                    continue
                heard.append(message.event)
                if message.id == 2:
                    path.rename(away)
                    error_of(await client.get(f"/requests/{request_id}"), 503)
                    error_of(await client.get(f"/requests/{request_id}/events", headers=SSE), 503)
        assert signs >= 3
        return heard

    assert asyncio.run(follow()) == ["state", "state", "state"]


def test_listeners_hear_of_what_they_missed(world: World) -> None:
    """The feed tells numbers; whoever was told too little reads the rest itself."""
    request_id = world.submitted()
    feed = world.app.state.portal.feed

    async def missed() -> list[tuple[int, int]]:
        listener = feed.listen(request_id)
        heard = []
        count, events = await listener.wait(5)
        heard.append((count, len(events)))  # at first only how many there are
        for n in range(3):
            await asyncio.to_thread(world.ledger.note, request_id, "search", str(n))
        total = 0
        while count < 5:
            count, events = await listener.wait(5)
            total += len(events)
        heard.append((count, total))
        listener.tell(900, events * 600)
        await asyncio.sleep(0)
        heard.append((len(listener._events), listener._count))  # more than is kept: to be read again
        feed.leave(listener)
        return heard

    assert asyncio.run(missed()) == [(2, 0), (5, 3), (0, 900)]


def test_listeners_wait_while_the_ledger_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = world.submitted()
    portal = world.app.state.portal
    away = iter([True, True])
    counts = type(portal.ledger).event_counts

    def event_counts(self: Any, ids: Any) -> Any:
        if next(away, False):
            raise StorageFault("The ledger is away.")
        return counts(self, ids)

    monkeypatch.setattr(type(portal.ledger), "event_counts", event_counts)

    async def heard() -> int:
        listener = portal.feed.listen(request_id)
        count, _ = await listener.wait(10)
        portal.feed.leave(listener)
        return count

    assert asyncio.run(heard()) == 2
