"""A portal, or a predictor, on a free port in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from factory.settings import Settings
from factory.testing.jobs import FakeJobs
from serve.portal.app import create_app


@contextmanager
def portal(settings: Settings | Callable[[str], Settings]) -> Iterator[str]:
    """Run a portal; yield its address.

    Args:
        settings: Its settings, or what makes them of its address.
    """

    def made(address: str) -> Any:
        return create_app(settings if isinstance(settings, Settings) else settings(address), jobs=FakeJobs())

    with running(made) as address:
        yield address


@contextmanager
def running(made: Callable[[str], Any]) -> Iterator[str]:
    """Run an ASGI application; yield its address.

    Args:
        made: Makes it of its address.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(made(address), log_config=None, ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield address
        server.should_exit = True
        thread.join()
