"""Kafka: replies and the offsets of what they reply to are one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError
from aiokafka.helpers import create_ssl_context
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.security import BaseSecurity, SASLPlaintext

from factory.topics.base import QUIET, Broker, GivenBack, Handler, Listening, Received, Reply, as_it_is

PARTITIONS = 8
"""Of a topic that is made here: as many consumers of a group can share it."""
COPIES = 3
"""Of its partitions, where there are as many servers."""
_POLL_MS = 100
MOST_PATIENCE_S = 3_600.0
"""For which a batch may wait; then its partitions go to another consumer."""


class KafkaTopics(Broker):
    """Kafka; ``kafka://[user:password@]host:port[,host:port]``, ``kafkas://`` with TLS; SASL/PLAIN for a user.

    Kafka remembers no keys, so a message that its sender publishes twice is answered twice; both answers have its key
    as their record's key. It counts no deliveries either; what ends its consumer is known by what lies on disk beside
    it, as for every broker.

    When a group shares its partitions anew, the batch in hand is settled first, or dropped and delivered again:
    aiokafka tells Kafka nothing of the group's generation with a transaction's offsets, so Kafka would take a reply of
    one who has lost the partition. A consumer that stands still for longer than its session may still be taken so.
    """

    remembers_keys: ClassVar[bool] = False
    most_bytes: ClassVar[int] = 950_000

    def __init__(self, url: str) -> None:
        super().__init__(url)
        address = urlsplit(url)
        self._servers = address.netloc.rpartition("@")[2]
        tls = create_ssl_context() if address.scheme == "kafkas" else None
        login = address.netloc.rpartition("@")[0].partition(":")
        security: BaseSecurity | None = BaseSecurity(ssl_context=tls) if tls else None
        self._secure: dict[str, Any] = {"security_protocol": "SSL" if tls else "PLAINTEXT", "ssl_context": tls}
        if login[0]:
            user, password = unquote(login[0]), unquote(login[2])
            security = SASLPlaintext(user, password, use_ssl=tls is not None, ssl_context=tls)
            self._secure |= {
                "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "sasl_plain_username": user,
                "sasl_plain_password": password,
            }
        self._broker = KafkaBroker(
            self._servers.split(","),
            specification_url=self.shown,
            **QUIET,
            graceful_timeout=30,
            security=security,
        )
        self._producer: Any = None
        self._sender: Any = None
        self._to: Listening | None = None
        self._held: dict[TopicPartition, set[int]] = {}
        self._settling = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stream(self) -> KafkaBroker:
        """FastStream's broker."""
        return self._broker

    async def connect(self) -> None:
        """Connect."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers, **self._secure)
        await admin.start()
        await admin.close()

    async def listen(self, to: Listening, handler: Handler) -> None:
        """Read batches of the partitions that the group gives to this consumer."""
        self._to = to
        session_s = min(to.idle_s, 30.0)
        await self.make(to.topic)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._servers, transactional_id=f"{to.group}-{self.consumer}", **self._secure
        )
        await self._producer.start()
        subscriber = self._broker.subscriber(
            to.topic,
            group_id=to.group,
            batch=True,
            max_records=to.most,
            batch_timeout_ms=_POLL_MS,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            # A batch may have to wait for the online store.
            max_poll_interval_ms=int(1e3 * MOST_PATIENCE_S),
            session_timeout_ms=int(1e3 * session_s),
            listener=_Shared(self, wait_s=session_s / 3),
            ack_policy=AckPolicy.MANUAL,
            decoder=as_it_is,
        )

        async def handed(message: KafkaMessage) -> None:
            for record in message.raw_message:
                self._held.setdefault(_place(record), set()).add(record.offset)
            self._idle.clear()
            try:
                await handler([_received(record) for record in message.raw_message])
            finally:
                self._idle.set()

        subscriber(handed)
        await self._broker.start()

    async def publish_and_acknowledge(self, replies: Sequence[Reply]) -> int:
        """Publish and move the group's offsets in one transaction."""
        assert self._to is not None
        records = [reply.to.receipt for reply in replies]
        async with self._settling:
            if any(record.offset not in self._held.get(_place(record), ()) for record in records):
                raise GivenBack
            offsets = self._settled(records)
            async with self._producer.transaction():
                sent = [await self._producer.send(r.topic, r.body, key=r.key.encode() or None) for r in replies]
                await asyncio.gather(*sent)
                await self._producer.send_offsets_to_transaction(offsets, self._to.group)
            for record in records:
                self._held[_place(record)].discard(record.offset)
        return 0

    def leave(self, received: Received) -> None:
        """Let offsets pass a message, which stays in its topic."""
        record = received.receipt
        self._held.get(_place(record), set()).discard(record.offset)

    async def give_back(self, places: Iterable[TopicPartition], *, wait_s: float) -> None:
        """Wait a while for the batch in hand, then settle nothing more of partitions that others may have now."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), wait_s)
        async with self._settling:
            for place in places:
                self._held.pop(place, None)

    def _settled(self, records: Sequence[Any]) -> dict[TopicPartition, int]:
        """Return up to where all of each partition is settled when these records are: one that waits is not passed."""
        offsets: dict[TopicPartition, int] = {}
        done: dict[TopicPartition, set[int]] = {}
        for record in records:
            done.setdefault(_place(record), set()).add(record.offset)
        for place, settled in done.items():
            left = self._held.get(place, set()) - settled
            offsets[place] = min(left) if left else max(settled) + 1
        return offsets

    async def publish(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages, and wait until the servers have them."""
        if self._sender is None:
            self._sender = AIOKafkaProducer(bootstrap_servers=self._servers, enable_idempotence=True, **self._secure)
            await self._sender.start()
        await asyncio.gather(
            *[await self._sender.send(topic, body, key=id_.encode() or None) for id_, body in messages]
        )

    async def waiting(self, topic: str, group: str) -> int:
        """Return what the group has not settled."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers, **self._secure)
        await admin.start()
        try:
            [about] = await admin.describe_topics([topic])
            places = [TopicPartition(topic, p["partition"]) for p in about["partitions"]]
            settled = await admin.list_consumer_group_offsets(group, partitions=places)
        finally:
            await admin.close()
        reader = AIOKafkaConsumer(bootstrap_servers=self._servers, **self._secure)
        await reader.start()
        try:
            ends = await reader.end_offsets(places)
        finally:
            await reader.stop()
        return sum(end - max(settled[place].offset, 0) for place, end in ends.items())

    async def close(self) -> None:
        """Let the batch in hand be settled, and disconnect."""
        await super().close()
        for producer in (self._producer, self._sender):
            if producer is not None:
                await producer.stop()

    async def make(self, topic: str) -> None:
        """Make a topic where it is not there."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers, **self._secure)
        await admin.start()
        try:
            # A server that makes what it is asked for does so now, as its operator has set it up.
            [told] = await admin.describe_topics([topic])
            if told["error_code"] != UnknownTopicOrPartitionError.errno:
                return
            copies = min(COPIES, len((await admin.describe_cluster())["brokers"]))
            with suppress(TopicAlreadyExistsError):  # another consumer has made it meanwhile
                await admin.create_topics([NewTopic(topic, PARTITIONS, copies)])
        finally:
            await admin.close()


class _Shared(ConsumerRebalanceListener):  # type: ignore[misc]
    """Is told when the partitions of a group are shared anew."""

    def __init__(self, topics: KafkaTopics, *, wait_s: float) -> None:
        self._topics, self._wait_s = topics, wait_s

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Settle, or drop, what is in hand of them."""
        await self._topics.give_back(revoked, wait_s=self._wait_s)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Do nothing: what comes of them is delivered."""


def _place(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _received(record: Any) -> Received:
    return Received(record.value or b"", f"{record.partition}-{record.offset}", 0, record)


PLUGIN = KafkaTopics
