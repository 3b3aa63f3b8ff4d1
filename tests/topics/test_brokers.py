"""Every broker, on a real server, keeps the promises of ``Broker``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest

from factory.errors import InvalidRequest, ServiceFault
from factory.topics import base
from factory.topics.base import Broker, Listening, Received, Reply, broker_of
from tests.topics.brokers import server

PATIENCE_S = 30.0


@pytest.fixture(scope="module", params=["redis", "nats", "amqp"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(request.param, tmp_path_factory.mktemp(request.param)) as address:
        yield address


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:8]}"


@asynccontextmanager
async def connected(url: str) -> Any:
    others = asyncio.all_tasks()
    broker = broker_of(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()
    # What goes on reading may leave a connection open.
    await until(lambda: not asyncio.all_tasks() - others)


def to(topic: str, *, group: str = "g", idle_s: float = 60.0, most: int = 10) -> Listening:
    return Listening(topic, group, most=most, idle_s=idle_s)


async def until(done: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = done()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.05)


async def read_all(url: str, topic: str, n: int) -> list[bytes]:
    """Return what is published in a topic, once it is n messages and a moment longer."""
    found: list[bytes] = []
    async with connected(url) as broker:

        async def handle(batch: Sequence[Received]) -> None:
            found.extend(one.body for one in batch)
            await broker.settle([Reply(one, f"{topic}.read", b"") for one in batch])

        await broker.listen(Listening(topic, "reader"), handle)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while len(found) < n:
                    await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
    return found


def answering(broker: Broker, topic: str, seen: list[Received]) -> base.Handler:
    async def handle(batch: Sequence[Received]) -> None:
        seen.extend(batch)
        await broker.settle([Reply(one, f"{topic}.out", b"re " + one.body, about=one.body.decode()) for one in batch])

    return handle


def test_what_was_sent_before_anybody_listened_is_answered(url: str, topic: str) -> None:
    async def scenario() -> list[bytes]:
        seen: list[Received] = []
        async with connected(url) as broker:
            await broker.send(topic, [(f"{i}", f"{i}".encode()) for i in range(25)])
            assert await broker.waiting(topic, "g") == 25
            await broker.listen(to(topic), answering(broker, topic, seen))
            await until(lambda: len(seen) == 25)

            async def none_waits() -> bool:
                return await broker.waiting(topic, "g") == 0

            await until(none_waits)
        assert len({one.id for one in seen}) == 25
        assert {one.deliveries for one in seen} == {1}
        return await read_all(url, f"{topic}.out", 25)

    answers = asyncio.run(scenario())
    assert sorted(answers) == sorted(f"re {i}".encode() for i in range(25))


def test_what_a_consumer_leaves_comes_to_another_one(url: str, topic: str) -> None:
    async def scenario() -> list[Received]:
        left: list[Received] = []
        seen: list[Received] = []
        async with connected(url) as first:

            async def hang(batch: Sequence[Received]) -> None:
                left.extend(batch)

            await first.send(topic, [("", b"one"), ("", b"two")])
            await first.listen(to(topic, idle_s=1.0), hang)
            await until(lambda: len(left) >= 2)
        async with connected(url) as second:
            second.consumer += "-second"
            await second.listen(to(topic, idle_s=1.0), answering(second, topic, seen))
            await until(lambda: len(seen) >= 2)
        assert sorted(await read_all(url, f"{topic}.out", 2)) == [b"re one", b"re two"]
        return seen

    seen = asyncio.run(scenario())
    assert sorted(one.body for one in seen) == [b"one", b"two"]
    assert min(one.deliveries for one in seen) >= 2


def test_a_key_is_replied_to_once(url: str, topic: str) -> None:
    async def scenario() -> tuple[int, list[bytes]]:
        repeated = 0
        seen: list[Received] = []
        async with connected(url) as broker:
            if not broker.remembers_keys:
                pytest.skip("this broker remembers no keys")

            async def handle(batch: Sequence[Received]) -> None:
                nonlocal repeated
                seen.extend(batch)
                repeated += await broker.settle([Reply(one, f"{topic}.out", one.body, about="4711") for one in batch])

            await broker.send(topic, [("a", b"first"), ("b", b"second")])
            await broker.listen(to(topic), handle)
            await until(lambda: len(seen) == 2)
            await broker.send(topic, [("c", b"third")])
            await until(lambda: len(seen) == 3)
        return repeated, await read_all(url, f"{topic}.out", 1)

    repeated, answered = asyncio.run(scenario())
    assert repeated == 2
    # Messages that wait together come, and are answered, in any order.
    assert answered in ([b"first"], [b"second"])


def test_without_a_key_every_reply_is_published(url: str, topic: str) -> None:
    async def scenario() -> list[bytes]:
        seen: list[Received] = []
        async with connected(url) as broker:

            async def handle(batch: Sequence[Received]) -> None:
                seen.extend(batch)
                await broker.settle([Reply(one, f"{topic}.out", b"same") for one in batch])

            await broker.send(topic, [("", b"x"), ("", b"x")])
            await broker.listen(to(topic), handle)
            await until(lambda: len(seen) == 2)
        return await read_all(url, f"{topic}.out", 2)

    assert asyncio.run(scenario()) == [b"same", b"same"]


def test_what_is_settled_is_not_settled_again(url: str, topic: str) -> None:
    """As after an answer that was lost on its way back."""

    async def scenario() -> list[bytes]:
        seen: list[Received] = []
        async with connected(url) as broker:
            if not broker.remembers_keys:
                pytest.skip("a channel is closed by a second acknowledgement")

            async def handle(batch: Sequence[Received]) -> None:
                seen.extend(batch)
                for _ in range(2):
                    await broker.settle([Reply(one, f"{topic}.out", one.body) for one in batch])

            await broker.send(topic, [("", b"x")])
            await broker.listen(to(topic), handle)
            await until(lambda: len(seen) == 1)
        return await read_all(url, f"{topic}.out", 1)

    assert asyncio.run(scenario()) == [b"x"]


def test_messages_that_are_worked_on_for_long_are_not_delivered_again(url: str, topic: str) -> None:
    async def scenario() -> int:
        seen: list[Received] = []
        async with connected(url) as broker:

            async def handle(batch: Sequence[Received]) -> None:
                seen.extend(batch)
                await asyncio.sleep(3.0)
                await broker.settle([Reply(one, f"{topic}.out", one.body) for one in batch])

            await broker.send(topic, [("", b"x")])
            await broker.listen(to(topic, idle_s=1.0), handle)
            await until(lambda: len(seen) >= 1)
            await asyncio.sleep(4.0)
        await read_all(url, f"{topic}.out", 1)
        return len(await read_all(url, f"{topic}.out", 0))

    assert asyncio.run(scenario()) == 0


def test_no_server_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CONNECT_S", 0.3)
    with pytest.raises(ServiceFault, match=r"redis://127.0.0.1:1/0 does not answer") as found:
        asyncio.run(broker_of("redis://user:secret@127.0.0.1:1/0").start())
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("url", [None, "", "http://x", "redis", "mqtt://x"])
def test_an_address_of_no_known_kind_is_refused(url: str | None) -> None:
    with pytest.raises(InvalidRequest) as found:
        broker_of(url)
    assert found.value.details[0].field == "FACTORY_TOPICS_URL"
    assert "amqp://…" in found.value.hint
