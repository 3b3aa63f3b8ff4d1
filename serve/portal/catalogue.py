"""The feature services of the store, as they were a moment ago."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from factory.data.features import ServiceEntry, catalogue
from factory.errors import Detail, NotFound, listing, suggest
from factory.settings import Settings
from factory.spec import Document

LOOK_AGAIN_S = 60.0
"""For which an answer is good: how fresh each view is, is read from the data themselves."""


class FeatureServices(Document):
    """The feature services of the store, by name.

    Attributes:
        items: All of them.
        looked: When the store was looked at.
    """

    items: tuple[ServiceEntry, ...]
    looked: datetime

    def named(self, name: str) -> ServiceEntry:
        """Return a service.

        Raises:
            NotFound: there is none of that name.
        """
        found = {one.name: one for one in self.items}
        if name not in found:
            raise NotFound(
                f"There is no feature service {name[:80]!r}.{suggest(name, found)}",
                hint=f"There are: {listing(found)}." if found else "The store has none yet.",
                details=[Detail("name", f"{name[:80]!r} is not known")],
            )
        return found[name]


class Catalogue:
    """Looks at the feature store when somebody asks, and at most once a minute; safe to use from several threads.

    Args:
        settings: Say where the store is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._seen: FeatureServices | None = None
        self._looked = 0.0

    def services(self) -> FeatureServices:
        """Return the feature services; the first look imports Feast, which takes some seconds.

        Raises:
            Conflict: the repository was not applied.
            InvalidRequest: it is not valid.
            ServiceFault: the store cannot be read.
        """
        with self._lock:
            if self._seen is None or time.monotonic() - self._looked > LOOK_AGAIN_S:
                self._seen = FeatureServices(items=catalogue(self._settings), looked=datetime.now(UTC))
                self._looked = time.monotonic()
            return self._seen
