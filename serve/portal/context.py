"""What all handlers of the portal share: settings, the ledger, the cluster, uploads, and what is kept in memory.

Nothing is opened before it is needed, and what cannot be opened is tried again
by the next call: the portal starts, and says what is missing, also where the
database or Ray comes later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from factory.data.uploads import UploadStore
from factory.errors import StorageFault
from factory.ledger import Ledger
from factory.operate.jobs import Jobs
from factory.operate.outlook import Outlook
from factory.settings import Settings
from serve.addresses import networks
from serve.buckets import Buckets, KnownSecrets
from serve.errors import Overloaded
from serve.portal.browser import Cookies
from serve.portal.catalogue import Catalogue
from serve.portal.documents import Readiness
from serve.portal.feed import Feed
from serve.portal.metrics import Metrics
from serve.portal.oidc import Provider
from serve.portal.tails import Tails
from serve.portal.trying import OwnToken

PATIENCE_S = 2.0
"""For which a call waits for the ledger; then it is answered 503, and its sender comes again."""
FAILED_SIGN_INS = 30
"""That an address may make in a minute."""
AT_ONCE = 2
"""Requests that are checked and quoted at a time. That takes 10 to 15 ms of one CPU: with more at once, whoever holds
the ledger's lock waits for the interpreter's, and all others for him (16 threads on a busy machine: p99 of 1.9 s and
calls that find the ledger locked; 2: 0.3 s and none)."""
TRIED_AT_ONCE = 4
"""Callers whose rows are tried at a time: each of them holds a thread until the predictor has answered."""
EXPORTED_AT_ONCE = 2
"""Versions that are packed at a time, each on the disk for temporary files."""
TURN_S = 5.0
"""For which one waits for its turn; then it is told to come again, rather than keep all others waiting."""
LOOK_AGAIN_S = 1.0
"""For which an answer about readiness is good."""
_AGAIN_S = 1.0
"""Between two tries to open a ledger that could not be opened."""


@dataclass
class Portal:
    """What handlers share; safe to use from several threads.

    Args:
        settings: Of this process.
        jobs: The cluster, for logs and its size.
    """

    settings: Settings
    jobs: Jobs
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _ledger: Ledger | None = None
    _failure: tuple[float, StorageFault] | None = None

    def __post_init__(self) -> None:
        self.proxies = networks(self.settings.trusted_proxies)
        self.uploads = UploadStore(self.settings)
        self.calls = Buckets(self.settings.requests_a_minute)
        self.sign_ins = Buckets(FAILED_SIGN_INS)
        self.known_secrets = KnownSecrets()
        self.cookies = Cookies(self.settings)
        self.provider = Provider.of(self.settings)
        self.outlook = Outlook(lambda: self.ledger, self.jobs)
        self.feed = Feed(lambda: self.ledger)
        self.features = Catalogue(self.settings)
        self.own_token = OwnToken(lambda: self.ledger)
        self.tails = Tails()
        self.metrics = Metrics(self)
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._screens = threading.BoundedSemaphore(1)
        self._tries = threading.BoundedSemaphore(TRIED_AT_ONCE)
        self._exports = threading.BoundedSemaphore(EXPORTED_AT_ONCE)
        self._looking = threading.Lock()
        self.health_threads = CapacityLimiter(2)
        self._looked: tuple[float, Readiness | None] = (0.0, None)

    @property
    def ledger(self) -> Ledger:
        """The ledger, opened by the first who asks.

        Raises:
            StorageFault: it cannot be opened.
        """
        if self._ledger is not None:
            return self._ledger
        with self._lock:
            if self._ledger is None:
                if self._failure is not None and time.monotonic() - self._failure[0] < _AGAIN_S:
                    # Those who waited for the one who tried need not wait as long again.
                    raise StorageFault(self._failure[1].message, hint=self._failure[1].hint)
                try:
                    self._ledger = Ledger.open(self.settings.ledger, patience_s=PATIENCE_S)
                except StorageFault as fault:
                    self._failure = (time.monotonic(), fault)
                    raise
            return self._ledger

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Check and quote one of a few requests at a time.

        Raises:
            Overloaded: it did not come to its turn.
        """
        with _place(self._turns, TURN_S, "Too many requests are being submitted."):
            yield

    @contextmanager
    def screening(self) -> Iterator[None]:
        """Look at the first rows of one table at a time.

        Raises:
            Overloaded: it did not come to its turn.
        """
        with _place(self._screens, TURN_S, "Many tables are being looked at."):
            yield

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Ask the predictor for one of a few callers at a time.

        Raises:
            Overloaded: so many ask already.
        """
        with _place(self._tries, 0.0, "Too many people try variants at this moment."):
            yield

    @contextmanager
    def exporting(self) -> Iterator[None]:
        """Pack one of a few versions at a time.

        Raises:
            Overloaded: so many are being packed already.
        """
        with _place(self._exports, TURN_S, "Too many versions are being exported at this moment."):
            yield

    def readiness(self, look: Callable[[], Readiness]) -> Readiness:
        """Return what a look found a moment ago, or look: anybody may ask, and each look calls other services."""
        with self._looking:
            looked, found = self._looked
            if found is None or time.monotonic() - looked > LOOK_AGAIN_S:
                found = look()
                self._looked = (time.monotonic(), found)
            return found

    def close(self) -> None:
        """Let go of what was opened; what comes after opens it again."""
        self.feed.close()
        self.tails.close()
        with self._lock:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None


@contextmanager
def _place(places: threading.Semaphore, wait_s: float, told: str) -> Iterator[None]:
    """Hold one of a few places.

    Raises:
        Overloaded: none became free in time.
    """
    if not places.acquire(timeout=wait_s):
        raise Overloaded(told, hint="Try again in a moment.")
    try:
        yield
    finally:
        places.release()


async def portal_of(request: Request) -> Portal:
    """Return what the handlers of a call's application share."""
    portal = request.app.state.portal
    assert isinstance(portal, Portal)
    return portal


Here = Annotated[Portal, Depends(portal_of)]
"""What all handlers share, for a handler."""
