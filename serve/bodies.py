"""Bodies of requests on their way: read within limits of size and time, without a place of those that are answered.

A body that is there already, as nearly all are, is read whatever else is on its
way.  The others cost memory and no processor, so that there may be several for
each place; who sends one slowly has to keep to a least speed.
"""

from __future__ import annotations

import asyncio

from factory.errors import Detail, InvalidRequest
from serve.call import Call, Message
from serve.errors import BodyTooLarge, Overloaded, SlowRequest, UnsupportedMedia

FIRST_S, BYTES_A_S = 5.0, 100_000
"""A body that comes in parts has so many seconds, and one more for each so many bytes: a slow telephone's line."""
THERE_S = 0.05
"""For which a body is waited for where too many are on their way."""


class Bodies:
    """The bodies that are on their way to a replica.

    Args:
        most: That may be so at one time; of further ones only those are read that are there already.
        most_bytes: Of those that are there in part.
        limit_mb: Of one body.
    """

    def __init__(self, *, most: int, most_bytes: int, limit_mb: float) -> None:
        self._most, self._most_bytes, self._limit_mb = most, most_bytes, limit_mb
        self._arriving = self._bytes = 0

    async def read(self, call: Call) -> bytes:
        """Read a body, and stop as soon as it is too large or too slow.

        Raises:
            BodyTooLarge: it is larger than one may be.
            UnsupportedMedia: it is compressed.
            InvalidRequest: the caller hung up.
            SlowRequest: it comes too slowly.
            Overloaded: too many others are on their way.
        """
        self._require_readable(call)
        call.reading = True
        self._arriving += 1
        try:
            first = await self._next(call)
            body = _part(first)
            if first.get("more_body", False):
                body = await self._rest(call, body)
        finally:
            self._arriving -= 1
        if len(body) > self._limit_mb * 1e6:
            raise self._too_large(str(len(body)))
        call.reading = False
        return body

    def _require_readable(self, call: Call) -> None:
        if (encoding := call.header("content-encoding")) not in ("", "identity"):
            raise UnsupportedMedia(
                f"The content encoding {encoding!r} is not read.",
                hint="Send the body uncompressed.",
                details=[Detail("content-encoding", f"received {encoding!r}")],
            )
        declared = call.header("content-length")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._limit_mb * 1e6:
            raise self._too_large(declared[:20])

    async def _next(self, call: Call) -> Message:
        """Return the next part of a body; where too many are on their way, only if it is there already."""
        if self._arriving <= self._most:
            return await call.receive()
        try:
            async with asyncio.timeout(THERE_S):
                return await call.receive()
        except TimeoutError as error:
            raise self._overloaded() from error

    async def _rest(self, call: Call, first: bytes) -> bytes:
        """Return the whole of a body whose first part is there."""
        parts, size, began = [first], len(first), asyncio.get_running_loop().time()
        self._bytes += size
        try:
            async with asyncio.timeout(FIRST_S) as within:
                more = True
                while more:
                    if size > self._limit_mb * 1e6:
                        raise self._too_large(f"more than {self._limit_mb * 1e6:.0f}")
                    if self._bytes > self._most_bytes:
                        raise self._overloaded()
                    within.reschedule(began + FIRST_S + size / BYTES_A_S)
                    message = await self._next(call)
                    part, more = _part(message), message.get("more_body", False)
                    parts.append(part)
                    size += len(part)
                    self._bytes += len(part)
        except TimeoutError as error:
            if not within.expired():
                raise
            raise SlowRequest(
                f"The body came too slowly: {size} bytes in {FIRST_S + size / BYTES_A_S:.0f} s.",
                hint=f"Send it at {BYTES_A_S / 1e3:g} kB a second or faster, or send less.",
            ) from error
        finally:
            self._bytes -= size
        return b"".join(parts)

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"{self._arriving} bodies with {self._bytes / 1e6:.0f} MB are on their way; no more are taken.",
            hint="Try again in a moment.",
        )

    def _too_large(self, size: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body has {size} bytes; {self._limit_mb:g} MB are allowed.",
            hint="Send several smaller requests, or predict a file with `factory predict NAME --data FILE`.",
            details=[Detail("body", f"is larger than FACTORY_MAX_REQUEST_MB={self._limit_mb:g}")],
        )


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise InvalidRequest("The caller hung up before the body was complete.")
    body: bytes = message.get("body", b"")
    return body
