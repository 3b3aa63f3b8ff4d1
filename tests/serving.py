"""A portal on a free port, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(settings if isinstance(settings, Settings) else settings(address), jobs=FakeJobs())
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield address
        server.should_exit = True
        thread.join()
