"""The predictor's ASGI application: from a request to its handler, and from an error to its answer.

It is plain ASGI, since a web framework would cost more than a prediction does.
Ray Serve runs it in each replica (``replica.py``); a test drives it in-process.
Whatever names a variant asks for a token (``doors.py``); health does not.
"""

from __future__ import annotations

import asyncio
import logging
import time

from factory.errors import FactoryError, SystemFault
from serve.call import Call, Message, Receive, Send
from serve.core import Core
from serve.errors import DeadlineExceeded, Overloaded, answer, bounded, unexpected
from serve.handlers import route
from serve.upkeep import keep_refreshing, keep_writing_metrics, preload

logger = logging.getLogger(__name__)

_OIP_TEXT_CLIENTS = (b"gevent-http-client",)
"""tritonclient's HTTP client puts ``error`` into a sentence and fails with a TypeError on our object."""


class Predictor:
    """The ASGI application.

    Args:
        core: What its handlers share.
    """

    def __init__(self, core: Core) -> None:
        self.core = core

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, headers, body = await self._answer(scope, receive)
            headers["content-length"] = str(len(body))
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
                }
            )
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        over = asyncio.Event()
        loading = asyncio.create_task(preload(self.core))
        beside = [asyncio.create_task(keep(self.core, over)) for keep in (keep_refreshing, keep_writing_metrics)]
        telling = asyncio.create_task(self.core.keep_telling(over))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        loading.cancel()
        for task in beside:
            task.cancel()
        over.set()
        await telling
        self.core.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Message, receive: Receive) -> tuple[int, dict[str, str], bytes]:
        began = time.perf_counter()
        path: str = scope["path"]
        call = Call(
            method="GET" if scope["method"] == "HEAD" else scope["method"],
            parts=tuple(part for part in path.split("/") if part),
            headers=dict(scope["headers"]),
            receive=receive,
            connection=scope,
        )
        kind = "none"
        try:
            handler, values = route(call, path)
            kind = handler.__name__
            body = await handler(self.core, call, values)
            status, headers = 200, {"content-type": "application/json"}
        except FactoryError as error:
            if isinstance(error, SystemFault) and not isinstance(error, Overloaded | DeadlineExceeded):
                logger.warning("%s %s: %s", scope["method"], path, error, exc_info=True)
            status, headers, body = _told(error, call, path)
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], path)
            status, headers, body = _told(unexpected(error), call, path)
        self.core.note(call, kind, status=status, took_s=time.perf_counter() - began)
        return status, headers | call.answer_headers, body


def _told(error: FactoryError, call: Call, path: str) -> tuple[int, dict[str, str], bytes]:
    agent = call.headers.get(b"user-agent", b"")
    as_text = path.startswith("/v2") and any(client in agent for client in _OIP_TEXT_CLIENTS)
    return answer(bounded(error), as_text=as_text)
