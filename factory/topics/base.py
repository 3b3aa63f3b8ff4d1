"""What every broker does for us: hand over messages in batches, and take replies that settle them.

A message is delivered at least once.  Where the broker can, its reply is
published and the message acknowledged at one stroke, and a key that was replied
to is not replied to again, so that a consumer that dies at any moment loses
nothing and answers nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from factory.errors import Detail, InvalidRequest, ServiceFault, listing
from factory.plugins import load, names

SENT_AT_ONCE = 1_000
CONNECT_S = 10.0
"""For which a broker is waited for at the start."""
STOP_S = 40.0
REMEMBERED_S = 24 * 3600
"""For which a key is known to be replied to."""
_WAIT_S = 0.5
_TLS = "s"

logger = logging.getLogger(__name__)
QUIET: dict[str, Any] = {"logger": logger, "log_level": logging.DEBUG}
"""Of FastStream's brokers: what fails is logged, and not every message."""

wall_sleep = asyncio.sleep

M = TypeVar("M")


@dataclass(frozen=True)
class Received:
    """A message as it has arrived.

    Attributes:
        body: As it was sent.
        id: Of the message; no other one of its topic has it.
        deliveries: How often it was delivered, this time included; 0 where the broker does not count.
        receipt: What the broker acknowledges it by.
    """

    body: bytes
    id: str
    deliveries: int = 1
    receipt: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Reply:
    """What settles a message.

    Attributes:
        to: The message, which is done with it.
        topic: Where it is published.
        body: What is published.
        key: What it is about, for whoever reads it; empty where the message does not say.
        about: A second reply about the same is not published; empty where each counts.
    """

    to: Received
    topic: str
    body: bytes
    key: str = ""
    about: str = ""


class GivenBack(Exception):
    """The broker has taken messages back meanwhile, and delivers them again: they cannot be settled any more."""


Handler = Callable[[Sequence[Received]], Awaitable[None]]


@dataclass(frozen=True)
class Listening:
    """What a consumer reads.

    Attributes:
        topic: Its messages.
        group: Consumers that share them; each message goes to one of a group.
        most: Messages of a batch.
        idle_s: Seconds after which a message is given to another consumer, if it is not settled.
    """

    topic: str
    group: str
    most: int = 256
    idle_s: float = 60.0


class Gathering:
    """Makes batches of messages that come one by one, and has them handled one batch after the other.

    Args:
        handler: Of batches.
        most: Messages of a batch; as many may wait.
    """

    def __init__(self, handler: Handler, *, most: int) -> None:
        self._handler, self._most = handler, most
        self._waiting: asyncio.Queue[Received | None] = asyncio.Queue(most)
        self._task = asyncio.create_task(self._gather())

    async def put(self, received: Received) -> None:
        """Take a message; waits while enough others do."""
        await self._waiting.put(received)

    async def close(self) -> None:
        """Let the batch in hand be handled; what waits is not."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)
        await self._task

    async def _gather(self) -> None:
        while True:
            taken = [await self._waiting.get()]
            while len(taken) < self._most and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            batch = [one for one in taken if one is not None]
            if len(batch) < len(taken):
                return
            try:
                await self._handler(batch)
            except Exception:
                logger.exception("a batch was not handled; its messages come again")


class Broker(ABC):
    """A connection to a broker.

    Args:
        url: Address of the broker, which may carry a password.

    Attributes:
        remembers_keys: Whether keys are remembered by the broker.
        keyword: Of FastStream's argument that names a topic; None where it is the first one.
        most_bytes: Of one message.
    """

    remembers_keys: ClassVar[bool] = True
    keyword: ClassVar[str | None] = None
    most_bytes: ClassVar[int] = 100_000_000

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: set[str] = set()
        self.consumer = f"{socket.gethostname()}-{os.getpid()}"

    @property
    @abstractmethod
    def stream(self) -> Any:
        """FastStream's broker, which knows the subscriber once there is one."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect; whatever is raised says that the broker is not there."""

    @abstractmethod
    async def listen(self, to: Listening, handler: Handler) -> None:
        """Make topic and group where they are not there, and hand over batches one after the other.

        A message that was sent before there was a group is not missed.
        """

    @abstractmethod
    async def make(self, topic: str) -> None:
        """Make a topic where it is not there."""

    async def settle(self, replies: Sequence[Reply]) -> int:
        """Publish replies and acknowledge what they reply to; return how many keys had been replied to before.

        Raises:
            GivenBack: the broker has taken the messages back.
        """
        await self._make({reply.topic for reply in replies})
        return await self.publish_and_acknowledge(replies)

    @abstractmethod
    async def publish_and_acknowledge(self, replies: Sequence[Reply]) -> int:
        """Do what :meth:`settle` says; the topics are there."""

    def leave(self, received: Received) -> None:  # noqa: B027 - most brokers deliver it again by themselves
        """Leave a message where it is: whoever reads its topic later finds it, and others behind it can be settled."""

    async def send(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages: an id, empty for none, and a body each. The same id may be published once only."""
        await self._make({topic})
        for first in range(0, len(messages), SENT_AT_ONCE):
            await self.publish(topic, messages[first : first + SENT_AT_ONCE])

    @abstractmethod
    async def publish(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages to a topic that is there, and wait until the broker has them."""

    async def _make(self, topics: Collection[str]) -> None:
        for topic in sorted(set(topics) - self._made):
            await self.make(topic)
            self._made.add(topic)

    @abstractmethod
    async def waiting(self, topic: str, group: str) -> int:
        """Return how many messages of a topic a group has not settled."""

    async def start(self) -> None:
        """Connect, and wait a moment for a broker that is starting.

        Raises:
            ServiceFault: it is not there.
        """
        last: Exception | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                while True:
                    try:
                        await self.connect()
                    except Exception as error:  # noqa: BLE001
                        # Every driver has errors of its own.
                        last = error
                        await wall_sleep(_WAIT_S)
                    else:
                        return
        why = f"nothing within {CONNECT_S:g} s" if last is None else f"{type(last).__name__}: {last}"
        raise ServiceFault(
            f"The broker at {self.shown} does not answer: {why}.",
            hint="Is it running, and are user and password right? FACTORY_TOPICS_URL says where it is.",
            details=[Detail("FACTORY_TOPICS_URL", self.shown)],
        ) from last

    async def stop(self) -> None:
        """Let the batch in hand be settled, and disconnect; a broker that does not answer is left after a while."""
        try:
            async with asyncio.timeout(STOP_S):
                await self.close()
        except Exception:
            # What is not settled is delivered again, and whoever stops has other things to end.
            logger.warning("the broker at %s could not be left properly", self.shown, exc_info=True)

    @property
    def listens(self) -> bool:
        """Whether messages are still asked for; a broker that has lost its groups gives none any more."""
        return all(subscriber.running for subscriber in self.stream.subscribers)

    async def close(self) -> None:
        """Do what :meth:`stop` says, however long it takes."""
        await self.stop_reading()
        await self.stream.stop()

    async def stop_reading(self) -> None:
        """Take no message any more; those in hand have been handled on return.

        FastStream cancels what reads without waiting for it: it may be connecting then, and leaves its connection open.
        """
        reading = [task for subscriber in self.stream.subscribers for task in getattr(subscriber, "tasks", ())]
        for subscriber in self.stream.subscribers:
            await subscriber.stop()
        await asyncio.gather(*reading, return_exceptions=True)

    def place(self, topic: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the arguments by which FastStream's subscribers and publishers name a topic."""
        return ((), {self.keyword: topic}) if self.keyword else ((topic,), {})

    @property
    def shown(self) -> str:
        """The address without user and password, wherever they are."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


async def as_it_is(message: M) -> M:
    """Decode nothing, for FastStream: what a body holds is for whoever handles it."""
    return message


def broker_of(url: str | None) -> Broker:
    """Return the broker of an address, not connected.

    Args:
        url: ``redis://``, ``nats://``, ``amqp://`` or ``kafka://``; the first, third and fourth with an s for TLS.

    Raises:
        InvalidRequest: no broker is named, or one of no known kind.
    """
    kinds = names("topics")
    if not url:
        raise InvalidRequest(
            "No broker is named.",
            hint=f"Set FACTORY_TOPICS_URL to one's address: {listing(f'{kind}://…' for kind in kinds)}.",
            details=[Detail("FACTORY_TOPICS_URL", "is not set")],
        )
    scheme = url.partition("://")[0].lower()
    kind = scheme if scheme in kinds else scheme.removesuffix(_TLS)
    if kind not in kinds or "://" not in url:
        raise InvalidRequest(
            f"FACTORY_TOPICS_URL: there is no kind of broker {scheme[:40]!r}.",
            hint=f"Allowed: {listing(f'{kind}://…' for kind in kinds)}.",
            details=[Detail("FACTORY_TOPICS_URL", f"{scheme[:40]!r} is not allowed")],
        )
    made = load("topics", kind)
    assert isinstance(made, type)
    assert issubclass(made, Broker)
    return made(url)
