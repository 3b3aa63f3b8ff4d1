"""Answers a topic: batches of messages, their answers, dead letters for what cannot be answered, and patience."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from factory.errors import FactoryError, InvalidData, ServiceFault, StorageFault, SystemFault, UserFault
from factory.topics.base import Broker, GivenBack, Received, Reply
from serve.core import Core
from serve.errors import DeadlineExceeded
from serve.in_hand import MOST_ENDED, InHand
from serve.invocations import format_predictions
from serve.messages import Message, answer_of, dead_letter, read_message
from serve.predictions import Prediction
from serve.together import Question, Told, answer_together

logger = logging.getLogger(__name__)

MOST_TRIES = 3
"""Of a message that the factory fails on for another reason than that something is away."""
FIRST_WAIT_S, MOST_WAIT_S = 0.2, 10.0
"""Between two tries while something is away."""
SETTLE_TRIES = 12
"""Of publishing answers, about a minute; a consumer that cannot has to be started again."""

wall_sleep = asyncio.sleep


@dataclass(frozen=True)
class Topics:
    """Where a consumer reads and writes.

    Attributes:
        source: Topic of the questions.
        answers: Topic of the answers.
        dead: Topic of what cannot be answered.
    """

    source: str
    answers: str
    dead: str


@dataclass
class Counts:
    """What a consumer has done."""

    answered: int = 0
    repeated: int = 0
    dead: int = 0
    waits: int = 0


class Consumer:
    """Answers messages; one batch at a time.

    Args:
        core: Of this process.
        broker: That delivers, connected.
        name: Variant that is answered for, or a pattern of several.
        topics: Where it reads and writes.
        in_hand: Knows which messages others died with.
    """

    def __init__(self, core: Core, broker: Broker, *, name: str, topics: Topics, in_hand: InHand) -> None:
        self._core, self._broker, self._name, self._topics = core, broker, name, topics
        self._in_hand = in_hand
        self.counts = Counts()
        self.stopping = asyncio.Event()
        self.failure: FactoryError | None = None

    async def handle(self, batch: Sequence[Received]) -> None:
        """Answer a batch, whatever it takes; what is not settled when the consumer stops is delivered again."""
        # One of those that a dead consumer had may have ended it; alone it takes no others with it.
        suspects = [one for one in batch if self._in_hand.suspects(one.body)]
        others = [one for one in batch if not self._in_hand.suspects(one.body)]
        for part in (others, *([one] for one in suspects)):
            if part and not self.stopping.is_set():
                await self._handle(part)

    async def _handle(self, part: Sequence[Received]) -> None:
        try:
            self._in_hand.take(one.body for one in part)
            await self._answer(part)
            self._in_hand.drop()
        except GivenBack:
            logger.warning("the broker has given %d messages back; they come again", len(part))
        except FactoryError as error:
            self.failure = error
            self.stopping.set()
        except Exception as error:
            # Whoever hands batches over would go on with the next one, and these would be lost to this process.
            logger.exception("a batch failed")
            self.failure = SystemFault(f"The consumer failed on a batch: {type(error).__name__}: {error}.")
            self.stopping.set()

    async def _answer(self, batch: Sequence[Received]) -> None:
        """Read and answer messages; what has to wait for something is tried until it is there."""
        left: list[Message] = []
        replies: list[Reply] = []
        for one in batch:
            try:
                if (ended := self._in_hand.ended(one.body)) >= MOST_ENDED:
                    raise SystemFault(
                        f"{ended} consumers have died with this message alone in hand.",
                        hint="It ends whoever reads it: look at the consumers' logs before it is sent again.",
                    )
                left.append(read_message(one, name=self._name))
            except FactoryError as error:
                replies.append(self._dead(one, error))
        wait_s, tries = FIRST_WAIT_S, 0
        while True:
            tries += 1
            left = await self._try(left, replies, tries=tries)
            await self._settle(replies)
            replies = []
            if not left or self.stopping.is_set():
                return
            self.counts.waits += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait_s)
            wait_s = min(2 * wait_s, MOST_WAIT_S)

    async def _try(self, messages: Sequence[Message], replies: list[Reply], *, tries: int) -> list[Message]:
        """Answer messages; return those that have to be tried again."""
        again = []
        questions = [Question(m.name, m.id, m.payload, m.received.body) for m in messages]
        for message, told in zip(messages, await answer_together(self._core, questions, _formed), strict=True):
            if isinstance(told, Told):
                body = answer_of(message, by=told.by, predictions=told.body)
                replies.append(self._reply(message, body))
            elif isinstance(told, UserFault) or (tries >= MOST_TRIES and not _passes(told)):
                replies.append(self._dead(message.received, told))
            else:
                logger.log(logging.WARNING if tries == 1 else logging.INFO, "a message waits: %s", told)
                again.append(message)
        return again

    def _reply(self, message: Message, body: bytes) -> Reply:
        if len(body) > (most := self._broker.most_bytes):
            error = InvalidData(
                f"The answer has {len(body):,} bytes; the broker takes {most:,}.", hint="Send fewer rows in a message."
            )
            return self._dead(message.received, error)
        about = f"{message.name}\n{message.id}" if message.id else ""
        return Reply(message.received, self._topics.answers, body, message.id, about)

    def _dead(self, received: Received, error: FactoryError) -> Reply:
        self.counts.dead += 1
        letter = dead_letter(received, error, topic=self._topics.source, most_bytes=self._broker.most_bytes)
        return Reply(received, self._topics.dead, letter)

    async def _settle(self, replies: Sequence[Reply]) -> None:
        """Publish replies.

        Raises:
            GivenBack: the messages come again by themselves.
            ServiceFault: the broker takes nothing any more.
        """
        if not replies:
            return
        began = time.monotonic()
        for n in range(SETTLE_TRIES):
            try:
                repeated = await self._broker.settle(replies)
            except GivenBack:
                raise
            except Exception as error:  # noqa: BLE001
                # Each driver has errors of its own, and what of them passes only time shows.
                logger.warning("the broker does not take %d answers: %s", len(replies), error)
                last = error
                await wall_sleep(min(FIRST_WAIT_S * 2**n, MOST_WAIT_S))
            else:
                self.counts.repeated += repeated
                self.counts.answered += sum(r.topic == self._topics.answers for r in replies) - repeated
                return
        raise ServiceFault(
            f"The broker at {self._broker.shown} has taken no answers for {time.monotonic() - began:.0f} s: {last}.",
            hint="Start this consumer again when the broker is back; nothing is lost.",
        ) from last


def _passes(error: FactoryError) -> bool:
    """Return whether an error is of something that is away, and comes back."""
    return isinstance(error, ServiceFault | StorageFault | DeadlineExceeded)


def _formed(prediction: Prediction) -> bytes:
    return format_predictions(prediction.raw, prediction.loaded.bundle)
