"""Server-sent events, as the HTML standard has them (WHATWG, 9.2), read from the bytes of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from factory.errors import ServiceFault

MOST_BYTES = 16 * 2**20
"""Of one message; longer ones do not come from a factory."""


@dataclass(frozen=True)
class Message:
    """One message of a stream.

    Attributes:
        id: To resume after it.
        event: What it is.
        data: Its content.
    """

    id: str
    event: str
    data: str


def messages(chunks: Iterable[bytes]) -> Iterator[Message | None]:
    """Yield the messages of a stream as they come, and None for each comment, by which a server shows that it lives.

    A message that is cut off by the end of the stream is dropped, as the standard has it.

    Raises:
        ServiceFault: a message is longer than any that a factory sends.

    >>> list(messages([b": hello\\nid: 7\\nda", b"ta: a\\ndata: b\\n\\nid: 8\\ndata: c"]))
    [None, Message(id='7', event='message', data='a\\nb')]
    """
    last_id, event, data = "", "", list[str]()
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(last_id, event or "message", "\n".join(data))
            event, data = "", []
        elif not name:
            yield None
        elif name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield whole lines without their ends. Not by ``str.splitlines``, which splits at characters inside of JSON."""
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if len(held) > MOST_BYTES:
            raise ServiceFault("A server-sent event does not end.", hint="Is FACTORY_URL the address of a portal?")
