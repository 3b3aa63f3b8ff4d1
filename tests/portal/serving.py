"""An application behind a real server, for what a test client answers otherwise: streams, sockets, headers."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import httpx
import uvicorn
from fastapi import FastAPI

if TYPE_CHECKING:
    from tests.portal.conftest import World


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port meanwhile; yields its address."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@asynccontextmanager
async def connected(address: str, world: World, who: str = "growth/read") -> AsyncIterator[httpx.AsyncClient]:
    """Call a server's API with a token of the world."""
    headers = {"authorization": f"Bearer {world.secrets[who]}"}
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=10) as client:
        yield client
