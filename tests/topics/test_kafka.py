"""Kafka, against librdkafka's mock of a cluster: it speaks the protocol, but keeps no transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from aiokafka import TopicPartition

from factory.topics import kafka
from factory.topics.base import GivenBack, Listening, Received, Reply, broker_of
from tests.topics.brokers import server

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server("kafka", tmp_path_factory.mktemp("kafka")) as address:
        yield address


def test_messages_arrive_and_are_settled_in_transactions(url: str) -> None:
    """What the mock has stored of a transaction has a checksum that no client accepts, so it is not read back."""

    async def scenario() -> tuple[list[Received], int]:
        seen: list[Received] = []
        broker = broker_of(url)
        await broker.start()
        settled = 0
        try:
            await broker.send("orders", [(f"k{i}", f"{i}".encode()) for i in range(25)])

            async def answer(batch: Sequence[Received]) -> None:
                nonlocal settled
                seen.extend(batch)
                await broker.settle([Reply(one, "replies", b"re " + one.body, key=one.body.decode()) for one in batch])
                settled += len(batch)

            await broker.listen(Listening("orders", "g", most=10), answer)
            async with asyncio.timeout(60):
                while settled < 25:
                    await asyncio.sleep(0.1)
        finally:
            await broker.stop()
        return seen, settled

    seen, settled = asyncio.run(scenario())
    assert (len({one.id for one in seen}), settled) == (25, 25)
    assert sorted(int(one.body) for one in seen) == list(range(25))


def test_offsets_are_those_behind_the_last_message_of_each_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock does not keep them, so they are looked at on their way."""
    told: list[tuple[dict[object, int], str]] = []

    class Producer:
        def transaction(self) -> object:
            return self

        async def __aenter__(self) -> None:
            told.append(({}, "begin"))

        async def __aexit__(self, *error: object) -> None:
            told.append(({}, "abort" if error[0] else "commit"))

        async def send(self, topic: str, body: bytes, *, key: bytes | None) -> asyncio.Future[None]:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

        async def send_offsets_to_transaction(self, offsets: dict[object, int], group: str) -> None:
            told.append((dict(offsets), group))

    async def scenario() -> None:
        broker = kafka.KafkaTopics("kafka://127.0.0.1:1")
        monkeypatch.setattr(broker, "_producer", Producer())
        monkeypatch.setattr(broker, "_to", Listening("orders", "shop"))
        records = [
            type("Record", (), {"topic": "orders", "partition": p, "offset": o}) for p, o in ((0, 4), (1, 9), (0, 5))
        ]
        for record in records:
            broker._held.setdefault(TopicPartition("orders", record.partition), set()).add(record.offset)
        replies = [Reply(Received(b"", f"{i}", 0, record), "replies", b"x") for i, record in enumerate(records)]
        # The first one of partition 0 waits for something, and the others do not.
        await broker.publish_and_acknowledge(replies[1:])
        await broker.publish_and_acknowledge(replies[:1])

    asyncio.run(scenario())
    (_, began), (early, _), (_, ended), _, (offsets, group), _ = told
    assert (began, group, ended) == ("begin", "shop", "commit")
    assert {(place.topic, place.partition): offset for place, offset in early.items()} == {  # type: ignore[attr-defined]
        ("orders", 0): 4,
        ("orders", 1): 10,
    }
    assert {(place.topic, place.partition): offset for place, offset in offsets.items()} == {  # type: ignore[attr-defined]
        ("orders", 0): 5,
    }


def test_what_is_in_hand_is_not_settled_once_others_have_its_partition() -> None:
    async def scenario() -> None:
        broker = kafka.KafkaTopics("kafka://127.0.0.1:1")
        broker._to = Listening("orders", "shop")
        place = TopicPartition("orders", 0)
        record = type("Record", (), {"topic": "orders", "partition": 0, "offset": 4})
        broker._held[place] = {4}
        # A batch that ends in time is waited for.
        broker._idle.clear()
        waiting = asyncio.create_task(broker.give_back([place], wait_s=60))
        await asyncio.sleep(0)
        assert broker._held[place] == {4}
        broker._idle.set()
        await waiting
        # One that does not is dropped: no producer is asked for anything.
        broker._held[place] = {4}
        broker._idle.clear()
        await broker.give_back([place], wait_s=0.01)
        with pytest.raises(GivenBack):
            await broker.publish_and_acknowledge([Reply(Received(b"", "0-4", 0, record), "replies", b"x")])

    asyncio.run(scenario())


def test_offsets_pass_what_is_left_in_its_topic() -> None:
    async def scenario() -> None:
        broker = kafka.KafkaTopics("kafka://127.0.0.1:1")
        records = [type("Record", (), {"topic": "lost", "partition": 0, "offset": o}) for o in (4, 5)]
        broker._held[TopicPartition("lost", 0)] = {4, 5}
        broker.leave(Received(b"", "0-4", 0, records[0]))
        assert broker._settled(records[1:]) == {TopicPartition("lost", 0): 6}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("kafka://host:9092", "PLAINTEXT"),
        ("kafkas://host:9092", "SSL"),
        ("kafka://user:p%40ss@host:9092,other:9092", "SASL_PLAINTEXT"),
        ("kafkas://user:p%40ss@host:9092", "SASL_SSL"),
    ],
)
def test_an_address_says_how_the_connection_is_secured(url: str, protocol: str) -> None:
    broker = kafka.KafkaTopics(url)
    assert broker._secure["security_protocol"] == protocol
    assert broker._secure.get("sasl_plain_password") == ("p@ss" if "user" in url else None)
    assert "p%40ss" not in broker.shown
    assert broker._servers.startswith("host:9092")
