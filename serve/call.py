"""One HTTP request: its body within a limit, and the headers of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from factory.errors import Detail, InvalidRequest
from serve.errors import BodyTooLarge, UnsupportedMedia

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class Call:
    """One request while it is answered; what is learnt on the way goes into the answer's headers."""

    method: str
    parts: tuple[str, ...]
    headers: Mapping[bytes, bytes]
    receive: Receive
    answer_headers: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, float]] = field(default_factory=list)
    reading: bool = False

    def header(self, name: str) -> str:
        """Return a request header, empty where there is none; UTF-8, as most send it, or HTTP's own Latin-1."""
        raw = self.headers.get(name.encode(), b"")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    def add_timing(self, name: str, ms: float) -> None:
        """Note what a step took; it goes into the answer's header ``Server-Timing`` (W3C), and into the trace."""
        self.steps.append((name, ms))
        before = self.answer_headers.get("server-timing")
        entry = f"{name};dur={ms:.3f}"
        self.answer_headers["server-timing"] = f"{before}, {entry}" if before else entry

    async def read_body(self, *, limit_mb: float) -> bytes:
        """Read the body, and stop as soon as it is too large.

        Raises:
            BodyTooLarge: it is larger than ``limit_mb``.
            UnsupportedMedia: it is compressed.
            InvalidRequest: the caller hung up.
        """
        most = int(limit_mb * 1e6)
        if (encoding := self.header("content-encoding")) not in ("", "identity"):
            raise UnsupportedMedia(
                f"The content encoding {encoding!r} is not read.",
                hint="Send the body uncompressed.",
                details=[Detail("content-encoding", f"received {encoding!r}")],
            )
        declared = self.header("content-length")
        if declared.isascii() and declared.isdigit() and int(declared) > most:
            raise _too_large(declared, limit_mb)
        chunks, size = [], 0
        self.reading = True
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The caller hung up before the body was complete.")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise _too_large(f"more than {most}", limit_mb)
            chunks.append(chunk)
            if not message.get("more_body", False):
                self.reading = False
                return b"".join(chunks)


def _too_large(size: str, limit_mb: float) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body has {size} bytes; {limit_mb:g} MB are allowed.",
        hint="Send several smaller requests, or predict a file with `factory predict NAME --data FILE`.",
        details=[Detail("body", f"is larger than FACTORY_MAX_REQUEST_MB={limit_mb:g}")],
    )
