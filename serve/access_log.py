"""A line for each call of the predictor: who was asked, what came of it, and how long it took."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from factory.operate.json_logs import trace_of
from serve.call import Call
from serve.core import Watcher

FILE = "predictor-access.log"
_logger = logging.getLogger("factory.access")


def watcher(folder: Path) -> Watcher:
    """Return what writes a line of JSON for each call; the file may be moved away under it.

    Args:
        folder: Gets ``predictor-access.log``, to which all replicas of this machine append.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = WatchedFileHandler(folder / FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.handlers, _logger.propagate = [handler], False
    _logger.setLevel(logging.INFO)

    def write(call: Call, route: str, status: int, took_s: float) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": call.header("x-request-id")[:100],
            "trace": trace_of(call.header("traceparent")) or "",
            "route": route,
            "path": "/".join(call.parts)[:200],
            "variant": call.answer_headers.get("x-variant", ""),
            "status": status,
            "ms": round(1e3 * took_s, 2),
            **{f"{step}_ms": round(ms, 2) for step, ms in call.steps},
        }
        _logger.info(json.dumps(line))

    return write
