"""Bodies on their way hold no place of those that are answered, and neither do explanations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from factory.errors import Conflict
from serve import bodies, explanations
from serve.bodies import Bodies
from serve.call import Call, Message
from serve.core import EXPLAINED_AT_ONCE
from serve.errors import BodyTooLarge, Overloaded, SlowRequest
from serve.loaded import Loaded
from tests.answers import error_of

from .calls import CHURN, ROW, one
from .conftest import MakePredictor, Shelf

EXPLAIN = "/variants/growth.churn/explain"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def test_a_slow_body_holds_no_place(shelf: Shelf, make_caller: MakePredictor) -> None:
    caller = make_caller(shelf, ongoing=1)
    places = caller.app.core.places

    async def scenario() -> list[int]:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"dataframe_records": ['
            await go_on.wait()
            yield b'{"age": 1, "income": 1, "city": null, "member": true, "since": null}]}'

        async with caller.client() as client:
            late = asyncio.create_task(client.post(CHURN, content=slow()))
            await until(lambda: places._bodies._arriving == 1)
            quick = await client.request("POST", **one())
            go_on.set()
            return [quick.status_code, (await late).status_code]

    assert asyncio.run(scenario()) == [200, 200]
    assert (places._taken, places._bodies._arriving, places._bodies._bytes) == (0, 0, 0)


def test_large_bodies_that_come_slowly_leave_half_of_the_calls_to_others(
    shelf: Shelf, make_caller: MakePredictor
) -> None:
    """HAProxy lets a replica have as many calls as it has places, and passes large bodies on before they are whole."""
    caller = make_caller(shelf, ongoing=4)
    places = caller.app.core.places

    async def scenario() -> list[int]:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"dataframe_records": [' + b" " * 20_000
            await go_on.wait()
            yield b'{"age": 1, "income": 1, "city": null, "member": true, "since": null}]}'

        async with caller.client() as client:
            late = []
            for n in (1, 2):
                late.append(asyncio.create_task(client.post(CHURN, content=slow())))
                await until(lambda n=n: places._bodies._bytes > n * 20_000)
            further = await client.post(CHURN, content=slow())
            quick = await client.request("POST", **one())
            go_on.set()
            return [further.status_code, quick.status_code, *[(await each).status_code for each in late]]

    assert asyncio.run(scenario()) == [503, 200, 200, 200]


def test_a_body_that_arrives_when_all_places_are_taken_is_told_to_come_again(
    shelf: Shelf, make_caller: MakePredictor
) -> None:
    release = threading.Event()

    def load(variant: Any) -> Loaded:
        assert release.wait(20)
        return shelf.load(variant)

    caller = make_caller(shelf, load=load, ongoing=1)

    async def scenario() -> list[Any]:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await go_on.wait()
            yield b"}"

        async with caller.client() as client:
            late = asyncio.create_task(client.post(CHURN, content=slow()))
            await until(lambda: caller.app.core.places._bodies._arriving == 1)
            quick = asyncio.create_task(client.request("POST", **one()))
            await until(lambda: caller.app.core.places._taken == 1)
            go_on.set()
            refused = await late
            release.set()
            return [refused, await quick]

    refused, quick = asyncio.run(scenario())
    assert error_of(refused, 503)["code"] == "overloaded"
    assert quick.status_code == 200


def test_explanations_have_places_of_their_own(
    shelf: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def explain(*_: Any, **__: Any) -> None:
        assert release.wait(20)
        raise Conflict("explained", hint="none")

    monkeypatch.setattr(explanations, "answer", explain)
    caller = make_caller(shelf)
    places = caller.app.core.explain_places
    body = {"json": {"dataframe_records": [ROW]}}

    async def scenario() -> list[Any]:
        async with caller.client() as client:
            explained = [asyncio.create_task(client.post(EXPLAIN, **body)) for _ in range(EXPLAINED_AT_ONCE)]
            await until(lambda: places._taken == EXPLAINED_AT_ONCE and not places._bodies._arriving)
            refused = await client.post(EXPLAIN, **body)
            answered = await client.request("POST", **one())
            release.set()
            return [refused, answered, *await asyncio.gather(*explained)]

    refused, answered, *explained = asyncio.run(scenario())
    assert "explanations" in error_of(refused, 503)["message"]
    assert refused.headers["retry-after"] == "1"
    assert answered.status_code == 200
    assert [each.status_code for each in explained] == [409] * EXPLAINED_AT_ONCE


# --- how they are read ----------------------------------------------------------------


def call_of(receive: Callable[[], Any], **headers: str) -> Call:
    coded = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Call(method="POST", parts=(), headers=coded, receive=receive)


def sending(*parts: bytes, then: asyncio.Event | None = None) -> Callable[[], Any]:
    """Return what hands out parts, and waits before the last one."""
    left = list(parts)

    async def receive() -> Message:
        if then is not None and len(left) == 1:
            await then.wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


def test_where_too_many_are_on_their_way_those_that_are_there_are_read() -> None:
    async def scenario() -> None:
        reader, go_on = Bodies(most=2, most_bytes=10**6, limit_mb=1), asyncio.Event()
        slow = [asyncio.create_task(reader.read(call_of(sending(b"a", b"b", then=go_on)))) for _ in range(2)]
        await until(lambda: reader._arriving == 2)
        assert await reader.read(call_of(sending(b"whole"))) == b"whole"
        with pytest.raises(Overloaded, match="on their way"):
            await reader.read(call_of(sending(b"a", b"b", then=go_on)))
        with pytest.raises(Overloaded, match="on their way"):
            await reader.read(call_of(sending(b"a", then=go_on)))
        go_on.set()
        assert await asyncio.gather(*slow) == [b"ab", b"ab"]
        assert (reader._arriving, reader._bytes) == (0, 0)

    asyncio.run(scenario())


def test_their_bytes_together_are_bounded_and_those_of_each() -> None:
    async def scenario() -> None:
        reader, go_on = Bodies(most=9, most_bytes=1500, limit_mb=0.001), asyncio.Event()
        first = asyncio.create_task(reader.read(call_of(sending(b"x" * 900, b"x", then=go_on))))
        await until(lambda: reader._bytes == 900)
        with pytest.raises(Overloaded):
            await reader.read(call_of(sending(b"x" * 900, b"x")))
        for parts in ([b"x" * 1001], [b"x", b"x" * 1000, b"x"], [b"x" * 600, b"x" * 600]):
            with pytest.raises((BodyTooLarge, Overloaded)):
                await reader.read(call_of(sending(*parts)))
        go_on.set()
        assert len(await first) == 901
        with pytest.raises(BodyTooLarge):
            await reader.read(call_of(sending(b"x" * 600, b"x" * 600)))
        with pytest.raises(BodyTooLarge):
            await reader.read(call_of(sending(b"x"), content_length="1" * 5000))
        assert reader._bytes == 0

    asyncio.run(scenario())


def test_a_body_has_to_come_at_a_least_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "FIRST_S", 0.01)

    async def scenario() -> None:
        reader = Bodies(most=9, most_bytes=10**9, limit_mb=10)
        with pytest.raises(SlowRequest, match="too slowly"):
            await reader.read(call_of(sending(b"a", b"b", then=asyncio.Event())))
        # A megabyte that is there gives ten more seconds to the rest of it.
        go_on = asyncio.Event()
        large = asyncio.create_task(reader.read(call_of(sending(b"x" * 1_000_000, b"x", then=go_on))))
        await asyncio.sleep(0.05)
        go_on.set()
        assert len(await large) == 1_000_001

    asyncio.run(scenario())
