"""What one replica of the predictor takes on, and the places for those whom it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from factory.errors import Detail, InvalidRequest
from factory.operate.ports import HOST
from factory.settings import Settings
from serve.addresses import Networks, networks
from serve.bodies import Bodies
from serve.call import Call
from serve.errors import DeadlineExceeded, Overloaded, SlowRequest


@dataclass(frozen=True)
class Limits:
    """What one replica takes on.

    Attributes:
        rows: Rows of one request at most.
        body_mb: Body of one request at most, in MB.
        ongoing: Requests that are answered at one time; the next is told to come again.
        deadline_s: Seconds until a request is answered, with an error if need be.
        bundles: Bundles in memory at most.
        bundles_mb: MB of bundles in memory at most.
        pinned: Patterns of names whose bundles stay in memory while others can go.
        a_minute: Calls that a token may make in a minute.
        proxies: That are believed about where a call comes from.
    """

    rows: int
    body_mb: float
    ongoing: int = 32
    deadline_s: float = 30.0
    bundles: int = 10_000
    bundles_mb: float = 2048.0
    pinned: tuple[str, ...] = ()
    a_minute: float = 60_000.0
    proxies: Networks = ()

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings name."""
        return cls(
            rows=settings.max_request_rows,
            body_mb=settings.max_request_mb,
            ongoing=settings.serve_max_ongoing,
            deadline_s=settings.serve_deadline_s,
            bundles_mb=settings.serve_cache_mb,
            pinned=tuple(filter(None, map(str.strip, (settings.serve_pinned or "").split(",")))),
            a_minute=settings.predictions_a_minute,
            # The proxy for TLS stands before HAProxy on this machine.
            proxies=networks(settings.trusted_proxies) + (networks(HOST) if settings.serve_tls_cert else ()),
        )

    def deadline_of(self, call: Call) -> float:
        """Return the seconds that a call has: the deadline, or what its caller waits for where that is less.

        Raises:
            InvalidRequest: the caller's header says no time.
        """
        told = call.headers.get(TIMEOUT_HEADER)
        if told is None:
            return self.deadline_s
        text = told.decode("latin-1").strip()
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 12 and int(text)):
            message = f"Received {text[:40]!r}; expected a number of milliseconds above 0."
            raise InvalidRequest(
                f"The header {TIMEOUT_HEADER.decode()} is wrong. {message}",
                hint="It says for how long you wait; leave it out where you wait for as long as it takes.",
                details=[Detail(TIMEOUT_HEADER.decode(), message)],
            )
        return min(self.deadline_s, int(text) / 1e3)

    def bodies(self) -> Bodies:
        """Return who reads the bodies of a replica's calls."""
        most, limit_mb = max(int(BODIES_PART * self.ongoing), 1), self.body_mb
        return Bodies(most=most, most_bytes=int(max(most / 2, 1) * limit_mb * 1e6), limit_mb=limit_mb)

    def pins(self, name: str) -> bool:
        """Return whether a variant's bundles stay in memory while others can go."""
        return any(fnmatchcase(name, pattern) for pattern in self.pinned)


TIMEOUT_HEADER = b"x-envoy-expected-rq-timeout-ms"
"""Says for how long a caller waits. Envoy sets it, and what is made of it (Istio, KServe); HTTP has none of its own."""
BODIES_PART = 1 / 2
"""Of a replica's calls may have bodies that are on their way, with half of their largest size on the average. HAProxy
gives a replica no more calls than it has places, so that the other half is there for bodies of 16 kB and less, which
come whole."""


class Places:
    """Places for the calls that are answered at one time.

    Args:
        limits: Say for how long.
        most: Places.
        what: Is answered, for errors.
        bodies: Reads those that are on their way.
    """

    def __init__(self, limits: Limits, *, bodies: Bodies, most: int, what: str = "requests") -> None:
        self._limits, self._bodies, self._most, self._what = limits, bodies, most, what
        self._taken = 0

    async def read(self, call: Call) -> bytes:
        """Read the body of a call that has a place, which is another's until the body is there.

        Raises:
            Overloaded: all places are taken now.
            FactoryError: what :meth:`~serve.bodies.Bodies.read` raises.
        """
        self._taken -= 1
        try:
            body = await self._bodies.read(call)
        finally:
            self._taken += 1
        if self._taken > self._most:
            raise self._overloaded(self._most)
        return body

    @asynccontextmanager
    async def take(self, call: Call) -> AsyncIterator[None]:
        """Take one of the places, and end the call at its deadline.

        Raises:
            Overloaded: all places are taken.
            InvalidRequest: the caller's own deadline is none.
            SlowRequest: the body did not arrive in time.
            DeadlineExceeded: the answer was not ready in time.
        """
        deadline_s = self._limits.deadline_of(call)
        if self._taken >= self._most:
            raise self._overloaded(self._taken)
        self._taken += 1
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError as error:
            if call.reading:
                raise SlowRequest(
                    f"The body did not arrive within {deadline_s:g} s.", hint="Send it faster, or send less."
                ) from error
            raise DeadlineExceeded(
                f"The answer was not ready within {deadline_s:g} s.",
                hint="Send fewer rows, or try again: a variant that is being loaded stays in memory.",
            ) from error
        finally:
            self._taken -= 1

    def _overloaded(self, n: int) -> Overloaded:
        return Overloaded(f"{n} {self._what} are being answered; no more are taken.", hint="Try again in a moment.")
