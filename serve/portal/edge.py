"""The edge of the portal, around everything else: ids, logs, headers and times of calls, and what nobody expected.

Plain ASGI, since it also has to see streams as they are.
"""

from __future__ import annotations

import logging
import re
import time
from secrets import token_hex
from typing import Any

from factory.errors import SystemFault
from factory.operate.json_logs import about, trace_of
from serve.call import Message, Receive, Send
from serve.errors import answer
from serve.tracing import current_trace

log = logging.getLogger(__name__)

HEADERS: dict[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Of every answer that does not say otherwise."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """Middleware.

    Args:
        app: What answers.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _Call(scope, send)
        with about(call=call.id, **call.trace):
            try:
                await self._app(scope, receive, call.send)
            except Exception:
                log.exception("%s %s failed", scope["method"], scope["path"])
                await call.fail()
            finally:
                call.note()


class _Call:
    """A call while it is answered."""

    def __init__(self, scope: Message, send: Send) -> None:
        self._scope, self._send = scope, send
        self._began = time.perf_counter()
        self._status = 0
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        self.id = given if _ID.fullmatch(given) else token_hex(8)
        found = current_trace() or trace_of(headers.get(b"traceparent", ""))
        self.trace = {} if found is None else {"trace": found}

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            there = {name.lower() for name, _ in message["headers"]}
            ours = {**HEADERS, b"x-request-id": self.id.encode()}
            message["headers"] = [*message["headers"], *((n, v) for n, v in ours.items() if n not in there)]
        await self._send(message)

    async def fail(self) -> None:
        """Answer what nobody expected: no word of it to the caller but where it is in the log."""
        if self._status:
            return  # the answer has begun, and can only end
        fault = SystemFault(
            f"An unexpected fault ended this call; it is {self.id} in the portal's log.",
            hint="Try again, and report it with this id if it comes back.",
        )
        status, headers, body = answer(fault)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        length = [(b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": [*raw, *length]})
        await self._send({"type": "http.response.body", "body": body})

    def note(self) -> None:
        """Log the call, and count it."""
        took_s = time.perf_counter() - self._began
        route = getattr(self._scope.get("route"), "path", "(none)")
        method = self._scope["method"] if self._scope["method"].isalpha() and len(self._scope["method"]) < 10 else "?"
        self._scope["app"].state.portal.metrics.note_call(method, route, self._status, took_s)
        client = self._scope.get("client")
        log.info(
            "%s %s %d",
            method,
            self._scope["path"][:200],
            self._status,
            extra={
                "method": method,
                "route": route,
                "status": self._status,
                "ms": round(1e3 * took_s, 1),
                "who": self._scope.get("state", {}).get("who"),
                "client": client[0] if client else None,
            },
        )
