"""Sends dead letters to their topic again; what cannot be sent is left where it is, and is in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from factory.errors import Detail, FactoryError, InvalidRequest, SystemFault
from factory.topics.base import Broker, Received, Reply
from serve.messages import original_of

QUIET_S = 10.0
"""Without a message, after which a replay ends."""
MOST_TOLD = 10
"""Of the messages that a replay has left."""


class Replay:
    """Sends the messages of dead letters again, until it has seen as many letters as there were.

    Args:
        broker: That delivers them, connected.
        to: Topic that gets them.

    Attributes:
        wanted: Letters to look at.
        done: Messages that were sent.
    """

    def __init__(self, broker: Broker, to: str) -> None:
        self._broker, self._to = broker, to
        self.wanted = self.done = 0
        self._left: dict[str, FactoryError] = {}
        self._moved = asyncio.Event()
        self._fault: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is no more to look at, or nothing can be sent."""
        return self.done + len(self._left) >= self.wanted or self._fault is not None

    async def handle(self, batch: Sequence[Received]) -> None:
        """Send the messages of a batch of letters again."""
        try:
            for one in batch:
                if self.is_over:
                    break
                await self._send(one)
        except Exception as error:  # noqa: BLE001
            self._fault = error  # raised at the end, where somebody hears it
        self._moved.set()

    async def ended(self) -> None:
        """Wait until all letters were looked at, or no more come: another replay has taken them."""
        while not self.is_over:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), QUIET_S)
            except TimeoutError:
                break

    def require_whole(self, source: str) -> None:
        """Return where all letters of a topic were sent.

        Raises:
            SystemFault: some are no letters, or are without their message; they are named.
        """
        if self._fault is not None:
            raise self._fault
        if not self._left:
            return
        told = " ".join(f"{id_}: {wrong.message}" for id_, wrong in list(self._left.items())[:MOST_TOLD])
        more = f" And {len(self._left) - MOST_TOLD:,} more." if len(self._left) > MOST_TOLD else ""
        raise SystemFault(
            f"{len(self._left):,} messages of {source} cannot be sent again, and are still there. {told}{more}",
            hint="Send what was too large once more from where it came from, in smaller ones.",
            details=[Detail(id_, wrong.message) for id_, wrong in self._left.items()],
        )

    async def _send(self, letter: Received) -> None:
        try:
            _, body = original_of(letter.body)
        except InvalidRequest as wrong:
            self._left.setdefault(letter.id, wrong)
            self._broker.leave(letter)
            return
        await self._broker.settle([Reply(letter, self._to, body)])
        self.done += 1
