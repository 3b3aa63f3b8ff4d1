"""A portal, or a predictor, on a free port in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn

from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import Variant
from factory.testing.jobs import FakeJobs
from factory.variants.bundle import Bundle
from serve.app import Predictor
from serve.core import Core
from serve.inputs import EntityRows
from serve.limits import Limits
from serve.loaded import Loaded, Times
from serve.online import FeatureRead
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
def predictor(ledger: Ledger, bundle: Bundle) -> Iterator[str]:
    """Run a predictor that answers with one model for every variant that a ledger knows; yield its address."""

    def load(variant: Variant) -> Loaded:
        return Loaded(variant, bundle, {variant.name: 1.0}, Times.of(bundle))

    app = Predictor(Core(ledger, load=load, features=NoFeatures(), limits=Limits(rows=200, body_mb=1)))
    with running(lambda _: app) as address:
        yield address


class NoFeatures:
    """Stands where a feature store would, for variants that have none."""

    def read(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead:
        raise AssertionError("no variant of this test reads features")

    def last(self, entities: EntityRows, *, variant: Variant, bundle: Bundle) -> FeatureRead | None:
        raise AssertionError("no variant of this test reads features")

    def warm_up(self, service: str) -> None:
        raise AssertionError("no variant of this test has a feature service")

    def refresh(self) -> None:
        pass


@contextmanager
def running(made: Callable[[str], Any], *, lifespan: Literal["auto", "off"] = "auto") -> Iterator[str]:
    """Run an ASGI application; yield its address.

    Args:
        made: Makes it of its address.
        lifespan: ``off`` for one that its maker opens and closes.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            made(address), log_config=None, ws="none", lifespan=lifespan, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield address
        server.should_exit = True
        thread.join()
