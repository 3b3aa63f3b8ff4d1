"""Batches of messages that come one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from factory.topics.base import Gathering, Received


def test_a_batch_that_fails_ends_nothing() -> None:
    """Its messages are not settled, so the broker delivers them again; the next batch is handled meanwhile."""

    async def scenario() -> list[str]:
        seen: list[str] = []
        both = asyncio.Event()

        async def handle(batch: Sequence[Received]) -> None:
            seen.extend(one.id for one in batch)
            if len(seen) == 2:
                both.set()
            raise ValueError("not today")

        gathering = Gathering(handle, most=1)
        for id_ in ("1", "2"):
            await gathering.put(Received(b"x", id_))
        async with asyncio.timeout(30):
            await both.wait()
            await gathering.close()
        return seen

    assert asyncio.run(scenario()) == ["1", "2"]
