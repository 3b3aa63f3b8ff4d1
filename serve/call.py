"""One HTTP request, and the headers of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class Call:
    """One request while it is answered; what is learnt on the way goes into the answer's headers.

    ``connection`` is its ASGI scope; over gRPC what of it says where the call comes from.
    """

    method: str
    parts: tuple[str, ...]
    headers: Mapping[bytes, bytes]
    receive: Receive
    connection: Mapping[str, Any] = field(default_factory=dict)
    answer_headers: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, float]] = field(default_factory=list)
    reading: bool = False

    def header(self, name: str) -> str:
        """Return a request header, empty where there is none; UTF-8, as most send it, or HTTP's own Latin-1."""
        raw = self.headers.get(name.encode())
        if not raw:
            return ""
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
