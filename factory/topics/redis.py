"""Redis Streams: a reply, what it is about and the acknowledgement are one script, in which nothing comes between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, ClassVar, cast

from faststream import AckPolicy
from faststream.redis import RedisBroker, RedisStreamMessage, StreamSub
from faststream.redis.parser import BinaryMessageFormatV1
from redis.exceptions import ResponseError

from factory.topics.base import QUIET, REMEMBERED_S, Broker, Handler, Listening, Received, Reply, as_it_is

KEPT = 1_000_000
"""Entries of a topic of replies, roughly; the oldest go, as Redis holds all of them in memory."""
_ENVELOPE, _PLAIN = b"__data__", b"data"
"""Field of an entry that FastStream has written, and of one that anybody has."""
_POLL_MS = 100
_SETTLE = """
local repeated = 0
for i = 3, #ARGV, 4 do
  local topic, body, id, about = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  -- What is not pending any more is settled already.
  if #redis.call('XPENDING', KEYS[1], KEYS[2], id, id, 1) > 0 then
    if about ~= '' and redis.call('EXISTS', about) == 1 then
      repeated = repeated + 1
    else
      -- First, since an error here ends the script: the message stays pending then.
      redis.call('XADD', topic, 'MAXLEN', '~', ARGV[1], '*', 'data', body)
      if about ~= '' then redis.call('SET', about, id, 'EX', ARGV[2]) end
    end
    redis.call('XACK', KEYS[1], KEYS[2], id)
  end
end
return repeated
"""


class RedisTopics(Broker):
    """Redis Streams; ``redis://[user:password@]host:port/db``, ``rediss://`` with TLS."""

    keyword: ClassVar[str | None] = "stream"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._broker = RedisBroker(url, specification_url=self.shown, **QUIET, graceful_timeout=30)
        self._redis: Any = None
        self._to: Listening | None = None

    @property
    def stream(self) -> RedisBroker:
        """FastStream's broker."""
        return self._broker

    async def connect(self) -> None:
        """Connect."""
        self._redis = await self._broker.connect()
        await self._redis.ping()

    async def listen(self, to: Listening, handler: Handler) -> None:
        """Read new messages in batches, and one by one those that another consumer has left unsettled."""
        self._to = to
        try:
            # From the first entry on: FastStream would make a group that begins with the next one.
            await self._redis.xgroup_create(to.topic, to.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        shared: dict[str, Any] = {"group": to.group, "consumer": self.consumer, "batch": True}
        fresh = StreamSub(to.topic, max_records=to.most, polling_interval=_POLL_MS, **shared)
        left = StreamSub(to.topic, min_idle_time=int(1e3 * to.idle_s), polling_interval=1_000, **shared)
        turn = asyncio.Lock()
        for source, is_left in ((fresh, False), (left, True)):
            self._subscribe(source, handler, turn, is_left=is_left)
        await self._broker.start()

    def _subscribe(self, source: StreamSub, handler: Handler, turn: asyncio.Lock, *, is_left: bool) -> None:
        subscriber = self._broker.subscriber(stream=source, ack_policy=AckPolicy.MANUAL, decoder=as_it_is)

        async def handed(message: RedisStreamMessage) -> None:
            entries = message.raw_message
            counts = await self._deliveries(entries["message_ids"]) if is_left else {}
            data = cast("list[dict[bytes, bytes]]", entries["data"])
            batch = [
                Received(_body(fields), id_.decode(), counts.get(id_, 1))
                for id_, fields in zip(entries["message_ids"], data, strict=True)
                if fields
            ]
            async with turn:
                await handler(batch)

        subscriber(handed)

    async def make(self, topic: str) -> None:
        """Make nothing: the first entry does."""

    async def publish_and_acknowledge(self, replies: Sequence[Reply]) -> int:
        """Publish and acknowledge in one script."""
        assert self._to is not None
        words: list[str | bytes | int] = [KEPT, REMEMBERED_S]
        for reply in replies:
            about = self._key(reply.topic, reply.about) if reply.about else ""
            words += (reply.topic, reply.body, reply.to.id, about)
        return int(await self._redis.eval(_SETTLE, 2, self._to.topic, self._to.group, *words))

    async def publish(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages in one go."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for _, body in messages:
                pipeline.xadd(topic, {_PLAIN: body})
            await pipeline.execute()

    async def waiting(self, topic: str, group: str) -> int:
        """Return what the group has not read, or not settled."""
        if not await self._redis.exists(topic):
            return 0
        for found in await self._redis.xinfo_groups(topic):
            if found["name"].decode() == group:
                return int(found["pending"]) + int(found.get("lag") or 0)
        return int(await self._redis.xlen(topic))

    async def close(self) -> None:
        """Settle, and leave the group, so that no dead consumers pile up in it."""
        if self._to is not None and self._redis is not None:
            await self.stop_reading()
            mine = await self._redis.xpending_range(
                self._to.topic, self._to.group, "-", "+", 1, consumername=self.consumer
            )
            if not mine:
                await self._redis.xgroup_delconsumer(self._to.topic, self._to.group, self.consumer)
        await super().close()

    async def _deliveries(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        assert self._to is not None
        told: dict[bytes, int] = {}
        for id_ in ids:
            found = await self._redis.xpending_range(self._to.topic, self._to.group, id_, id_, 1)
            told |= {one["message_id"]: int(one["times_delivered"]) for one in found}
        return told

    def _key(self, topic: str, key: str) -> str:
        assert self._to is not None
        return f"replied:{self._to.group}:{topic}:{sha256(key.encode()).hexdigest()[:32]}"


def _body(fields: dict[bytes, bytes]) -> bytes:
    """Return what an entry holds: of FastStream's envelope the inside, else the field ``data``."""
    if _ENVELOPE in fields:
        return BinaryMessageFormatV1.parse(fields[_ENVELOPE])[0]
    return fields.get(_PLAIN, b"")


PLUGIN = RedisTopics
