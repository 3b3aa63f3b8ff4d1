"""NATS JetStream: the server remembers a reply's id, so one that is published again is not another message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any, ClassVar

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from nats.errors import Error, MsgAlreadyAckdError
from nats.js.api import AckPolicy as ServerAckPolicy
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import NotFoundError

from factory.topics.base import QUIET, REMEMBERED_S, Broker, Gathering, Handler, Listening, Received, Reply, as_it_is

ID_HEADER = "Nats-Msg-Id"
PULL_S = 30.0
"""For which the server holds a pull while there are no messages."""
_AHEAD = 64
"""Batches that may be under way to the consumers of a group; each of them holds two."""


class NatsTopics(Broker):
    """NATS JetStream; ``nats://[user:password@]host:port``.

    A topic is a subject. Where no stream has it, one is made: its name is the topic's, with ``_`` for each dot.
    """

    most_bytes: ClassVar[int] = 950_000

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._broker = NatsBroker(
            url, specification_url=self.shown, **QUIET, graceful_timeout=30, max_reconnect_attempts=-1
        )
        self._js: Any = None
        self._to: Listening | None = None
        self._source = ""
        self._gathering: Gathering | None = None
        self._held: dict[str, Any] = {}
        self._holding: asyncio.Task[None] | None = None

    @property
    def stream(self) -> NatsBroker:
        """FastStream's broker."""
        return self._broker

    async def connect(self) -> None:
        """Connect."""
        connection: Any = await self._broker.connect()
        self._js = connection.jetstream(timeout=10)
        await self._js.account_info()

    async def listen(self, to: Listening, handler: Handler) -> None:
        """Pull messages; what is not settled in time is delivered again, to whoever asks next."""
        self._to = to
        self._source = await self._stream_of(to.topic)
        # FastStream's own batches are dropped for a while where a pull ends at the wrong moment.
        gathering = self._gathering = Gathering(handler, most=to.most)
        config = ConsumerConfig(
            durable_name=to.group,
            ack_policy=ServerAckPolicy.EXPLICIT,
            ack_wait=to.idle_s,
            max_ack_pending=_AHEAD * to.most,
            filter_subject=to.topic,
        )
        # A subscriber takes a consumer that is there as it is; this makes it what is asked for.
        await self._js.add_consumer(self._source, config)
        self._holding = asyncio.create_task(self._hold(to.idle_s / 3))
        subscriber = self._broker.subscriber(
            subject=to.topic,
            durable=to.group,
            stream=JStream(self._source, declare=False),
            pull_sub=PullSub(batch_size=to.most, timeout=PULL_S),
            config=config,
            ack_policy=AckPolicy.MANUAL,
            decoder=as_it_is,
        )

        async def handed(message: NatsMessage) -> None:
            raw: Any = message.raw_message
            about = raw.metadata
            number = str(about.sequence.stream)
            if number in self._held:
                return  # it came again while it is worked on
            self._held[number] = raw
            await gathering.put(Received(raw.data, number, about.num_delivered, raw))

        subscriber(handed)
        await self._broker.start()

    async def make(self, topic: str) -> None:
        """Make a stream for a topic that no stream has."""
        await self._stream_of(topic)

    async def publish_and_acknowledge(self, replies: Sequence[Reply]) -> int:
        """Publish each reply under an id that follows from its key, or from its message, then acknowledge."""
        told = await asyncio.gather(
            *(self._js.publish(r.topic, r.body, headers={ID_HEADER: self._id(r)}) for r in replies)
        )
        for reply in replies:
            self._held.pop(reply.to.id, None)
        await asyncio.gather(*(_acknowledge(reply.to.receipt) for reply in replies))
        return sum(bool(ack.duplicate) for ack in told)

    async def publish(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages, and wait until the server has them."""
        await asyncio.gather(
            *(self._js.publish(topic, body, headers={ID_HEADER: id_} if id_ else None) for id_, body in messages)
        )

    async def waiting(self, topic: str, group: str) -> int:
        """Return what the group has not read, or not settled."""
        name = await self._stream_of(topic)
        try:
            about = await self._js.consumer_info(name, group)
        except NotFoundError:
            return int((await self._js.stream_info(name)).state.messages)
        return int(about.num_pending) + int(about.num_ack_pending)

    async def close(self) -> None:
        """Let the batch in hand be settled, and disconnect."""
        if self._holding is not None:
            self._holding.cancel()
        if self._gathering is not None:
            await self.stop_reading()
            await self._gathering.close()
        await super().close()

    async def _stream_of(self, topic: str) -> str:
        """Return the stream that has a topic; made where there is none."""
        try:
            return str(await self._js.find_stream_name_by_subject(topic))
        except NotFoundError:
            name = topic.replace(".", "_")
            await self._js.add_stream(StreamConfig(name=name, subjects=[topic], duplicate_window=REMEMBERED_S))
            return name

    async def _hold(self, every_s: float) -> None:
        """Tell the server now and then that what is in hand is worked on, so that it is not delivered again."""
        while True:
            await asyncio.sleep(every_s)
            for raw in list(self._held.values()):
                with suppress(Error):
                    await raw.in_progress()

    def _id(self, reply: Reply) -> str:
        assert self._to is not None
        about = reply.about or f"{self._source}:{reply.to.id}"
        return sha256(f"{self._to.group}\n{reply.topic}\n{about}".encode()).hexdigest()[:32]


async def _acknowledge(message: Any) -> None:
    """Acknowledge a message, once: what is settled anew may have been acknowledged in part."""
    with suppress(MsgAlreadyAckdError):
        await message.ack()


PLUGIN = NatsTopics
