"""Calls of one row that come at their own moments, whatever became of those before."""

from __future__ import annotations

import asyncio
import threading
import time

import aiohttp

from bench.served import Target

CALM_S = 5.0
"""Without a failed call, after which all is well."""


class Caller:
    """Calls in a thread of its own, whether calls before are answered or not.

    Args:
        target: What is called.
        a_second: Calls a second.

    Attributes:
        calls: When each was sent and answered, and with which status; 0 where there was no answer.
    """

    def __init__(self, target: Target, *, a_second: float) -> None:
        self._target, self._a_second = target, a_second
        self._over = threading.Event()
        self.calls: list[tuple[float, float, int]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def calm(self, *, after: float, patience_s: float) -> bool:
        """Wait until no call that was sent for a while has failed; return whether that came in time."""
        while time.monotonic() - after < patience_s:
            time.sleep(0.2)
            since = max(after, time.monotonic() - CALM_S)
            lately = [status for sent, _, status in list(self.calls) if sent >= since]
            if time.monotonic() - after > CALM_S and lately and all(status == 200 for status in lately):
                return True
        return False

    async def _run(self) -> None:
        headers = {**self._target.headers, "content-type": "application/json"}
        patience = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=patience) as session,
            asyncio.TaskGroup() as group,
        ):
            at = time.monotonic()
            while not self._over.is_set():
                group.create_task(self._call(session))
                at += 1 / self._a_second
                await asyncio.sleep(max(0.0, at - time.monotonic()))

    async def _call(self, session: aiohttp.ClientSession) -> None:
        sent = time.monotonic()
        try:
            async with session.post(self._target.url, data=self._target.body) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        self.calls.append((sent, time.monotonic(), status))
