"""RabbitMQ: replies and acknowledgements of a batch are one transaction of the channel that it came by."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue
from pamqp.commands import Basic

from factory.errors import ServiceFault
from factory.topics.base import QUIET, Broker, Gathering, GivenBack, Handler, Listening, Received, Reply, as_it_is

_LASTING = 2
"""Delivery mode of a message that outlives the server."""


class AmqpTopics(Broker):
    """RabbitMQ; ``amqp://user:password@host:port/vhost``, ``amqps://`` with TLS.

    A topic is a durable queue of the default exchange. It knows no groups: whoever reads a queue shares it. RabbitMQ
    remembers no keys, so a message that its sender publishes twice is answered twice; both answers have its key as
    ``message_id``.
    """

    remembers_keys: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._broker = RabbitBroker(url, specification_url=self.shown, **QUIET, graceful_timeout=30)
        self._gathering: Gathering | None = None
        self._in_transaction: set[Any] = set()

    @property
    def stream(self) -> RabbitBroker:
        """FastStream's broker."""
        return self._broker

    async def connect(self) -> None:
        """Connect."""
        await self._broker.connect()

    async def listen(self, to: Listening, handler: Handler) -> None:
        """Gather what is delivered to batches."""
        await self.make(to.topic)
        gathering = self._gathering = Gathering(handler, most=to.most)
        subscriber = self._broker.subscriber(
            RabbitQueue(to.topic, declare=False, durable=True),
            # Without confirmations, which exclude transactions; the next batch is there when one is settled.
            channel=Channel(prefetch_count=2 * to.most, publisher_confirms=False),
            ack_policy=AckPolicy.MANUAL,
            decoder=as_it_is,
        )

        async def handed(message: RabbitMessage) -> None:
            raw = message.raw_message
            counted = raw.headers.get("x-delivery-count")
            deliveries = 1 + (int(counted) if isinstance(counted, int) else int(bool(raw.redelivered)))
            await gathering.put(Received(raw.body, str(raw.delivery_tag), deliveries, raw))

        subscriber(handed)
        await self._broker.start()

    async def make(self, topic: str) -> None:
        """Make a topic's queue where there is none; one of another kind is taken as it is."""
        await self._queue_of(topic)

    async def publish_and_acknowledge(self, replies: Sequence[Reply]) -> int:
        """Publish and acknowledge in one transaction of each channel that the messages came by."""
        by_channel: dict[Any, list[Reply]] = {}
        lost = False
        for reply in replies:
            try:
                by_channel.setdefault(reply.to.receipt.channel, []).append(reply)
            except ChannelInvalidStateError:
                lost = True  # the connection was lost meanwhile, and what it had delivered comes by another one
        for channel, part in by_channel.items():
            try:
                await self._settle(channel, part)
            except (AMQPError, ConnectionError) as error:
                raise GivenBack from error
        if lost:
            raise GivenBack
        return 0

    async def _settle(self, channel: Any, replies: Sequence[Reply]) -> None:
        if channel not in self._in_transaction:
            await channel.tx_select()
            self._in_transaction = {channel}
        for reply in replies:
            properties = Basic.Properties(
                message_id=reply.key or None, delivery_mode=_LASTING, content_type="application/json"
            )
            await channel.basic_publish(reply.body, routing_key=reply.topic, properties=properties)
            await channel.basic_ack(reply.to.receipt.delivery_tag)
        await channel.tx_commit()

    async def _make(self, topics: Collection[str]) -> None:
        """Look each time: RabbitMQ drops what is published to a queue that was deleted."""
        for topic in topics:
            await self.make(topic)

    async def publish(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages, and wait until the server has them."""
        await asyncio.gather(
            *(self._broker.publish(body, queue=topic, persist=True, message_id=id_ or None) for id_, body in messages)
        )

    async def waiting(self, topic: str, group: str) -> int:  # noqa: ARG002 - a queue knows no groups
        """Return what is in the queue and not under way to a consumer."""
        return await self._queue_of(topic)

    async def close(self) -> None:
        """Let the batch in hand be settled, and disconnect; what is only delivered goes to others."""
        if self._gathering is not None:
            await self.stop_reading()
            await self._gathering.close()
        await super().close()

    async def _queue_of(self, topic: str) -> int:
        """Return the messages of a topic's queue, which is made where there is none."""
        connection: Any = await self._broker.connect()
        # Not through FastStream, which would have the consumer on the channel that has declared its queue.
        for options in ({"passive": True}, {"durable": True, "arguments": {"x-queue-type": "quorum"}}):
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(topic, **options)
                return int(queue.declaration_result.message_count or 0)
            except ChannelNotFoundEntity:
                continue
            finally:
                await channel.close()
        raise ServiceFault(f"RabbitMQ has lost the queue {topic!r} while it was made.", hint="Try again.")


PLUGIN = AmqpTopics
