"""Logs as lines of JSON, each with the ids of what it is about; for processes that are services, not for a library."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Let all that this thread or task logs meanwhile carry ids: of a call, of a request.

    >>> with about(request="r-1"):
    ...     json.loads(JsonLines().format(logging.makeLogRecord({"msg": "It waits."})))["request"]
    'r-1'
    """
    token = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def known(name: str) -> str | None:
    """Return an id that this thread or task is about, None where it is not known.

    >>> with about(trace="4bf92f35"):
    ...     known("trace")
    '4bf92f35'
    """
    return _about.get().get(name)


def trace_of(traceparent: str) -> str | None:
    """Return the id of the trace that a call came with (W3C Trace Context), None where it came with none.

    >>> trace_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    return None if found is None or set(found[1]) == {"0"} else found[1]


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON; what was logged by ``extra`` is in it by its name.

    Args:
        ids: That each line carries, whichever thread logs it.
    """

    def __init__(self, ids: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__()
        self._ids = ids

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._ids,
            **_about.get(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: int = logging.INFO) -> None:
    """Let this process log lines of JSON to its standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Each of our own lines tells a call already, and the answers of others are not news.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
