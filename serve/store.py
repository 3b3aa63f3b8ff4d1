"""Which variant a name means now, and the bundles that are in memory.

Names are resolved through the ledger, which decides traffic; what it said is
kept for a second, and longer only while the ledger cannot be read.  Bundles
are loaded on demand, one load at a time for each variant however many callers
wait, and the least recently used go when there are too many.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, get_args

from factory.errors import Detail, NotFound, StorageFault, listing, suggest
from factory.ledger import Deployment
from factory.spec import ALIAS, Variant

logger = logging.getLogger(__name__)

MAX_AGE_S = 1.0
"""How long the ledger's answer is kept; a promotion is followed within this time."""
_MOST_NAMES = 10_000
"""Answers kept; each is about 2 kB."""


class Catalogue(Protocol):
    """What of the ledger is read here."""

    def alias(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points at."""

    def variant(self, name: str, version: int) -> Variant:
        """Return one version, or raise NotFound that names what there is."""

    def variants(self, name: str | None = None) -> list[Variant]:
        """Return the versions of a name."""

    def deployments(self) -> list[Deployment]:
        """Return what is to be served."""


@dataclass(frozen=True)
class Reference:
    """What a caller named: a variant by alias, or by version.

    Attributes:
        name: Name of the variant, ``team.name``.
        alias: Alias; counts where there is no version.
        version: Version, or None.
    """

    name: str
    alias: str = "champion"
    version: int | None = None

    @classmethod
    def parse(cls, text: str, *, version: str | None = None) -> Reference:
        """Read ``name`` or ``name@alias`` from a route, with the route's version where it has one.

        Raises:
            NotFound: the alias or the version cannot exist.
        """
        name, _, alias = text.partition("@")
        if version is not None:
            if alias or not (version.isascii() and version.isdigit() and len(version) < 10):
                message = "An alias and a version exclude each other." if alias else "A version is a whole number."
                raise NotFound(
                    f"{text!r} has no version {version!r}. {message}",
                    hint="Ask for name, name@alias or name/versions/number.",
                    details=[Detail("version", message)],
                )
            return cls(name, version=int(version))
        if alias and alias not in get_args(ALIAS):
            raise NotFound(
                f"There is no alias {alias!r}.{suggest(alias, get_args(ALIAS))}",
                hint=f"Allowed: {listing(get_args(ALIAS))}.",
                details=[Detail("alias", f"{alias!r} is not allowed")],
            )
        return cls(name, alias=alias or "champion")


class VariantTable:
    """Reference → variant, as the ledger has it, at most :data:`MAX_AGE_S` old."""

    def __init__(self, catalogue: Catalogue, executor: Executor, *, max_age_s: float = MAX_AGE_S) -> None:
        self._catalogue = catalogue
        self._executor = executor
        self._max_age_s = max_age_s
        self._known: OrderedDict[Reference, tuple[Variant, float]] = OrderedDict()
        self._flights: Flights[Reference, Variant] = Flights()

    async def resolve(self, reference: Reference) -> Variant:
        """Return the variant that a reference means now.

        Raises:
            NotFound: there is no such name, alias or version; the nearest are named.
            StorageFault: the ledger cannot be read, and nothing was known before.
        """
        known = self._known.get(reference)
        if known is not None and time.monotonic() - known[1] < self._max_age_s:
            return known[0]
        try:
            variant = await self._flights.join(reference, lambda: _in(self._executor, self._read, reference))
        except NotFound:
            self._known.pop(reference, None)
            raise
        except StorageFault:
            if known is None:
                raise
            logger.warning("the ledger cannot be read; %s stays %s", reference, known[0].version, exc_info=True)
            variant = known[0]
        self._known[reference] = (variant, time.monotonic())
        self._known.move_to_end(reference)
        if len(self._known) > _MOST_NAMES:
            self._known.popitem(last=False)
        return variant

    async def versions(self, name: str) -> list[int]:
        """Return the versions of a name, the oldest first."""
        return [variant.version for variant in await _in(self._executor, self._catalogue.variants, name)]

    def _read(self, reference: Reference) -> Variant:
        version = reference.version
        if version is None:
            version = self._catalogue.alias(reference.name, reference.alias)
        if version is None:
            versions = [variant.version for variant in self._catalogue.variants(reference.name)]
            if versions:
                raise NotFound(
                    f"{reference.name} has no {reference.alias}.",
                    hint=f"Ask for one of its versions ({', '.join(map(str, versions))}), "
                    f"or promote one: `factory variants promote {reference.name}`.",
                    details=[Detail("name", f"no version is {reference.alias}")],
                )
        # For a name that is not known this raises, with the nearest one.
        return self._catalogue.variant(reference.name, version or 1)


class Sized(Protocol):
    """What the cache has to know of what it keeps."""

    @property
    def size_mb(self) -> float:
        """Memory that it is counted with, in MB."""


L = TypeVar("L", bound=Sized)
K = TypeVar("K")
V = TypeVar("V")


class Flights(Generic[K, V]):
    """One call at a time for each key; whoever comes while it runs waits for the same result."""

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[V]] = {}

    async def join(self, key: K, start: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return the result of the running call, or of a new one.

        A caller who gives up does not stop the call, since others may wait for it.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(start())
            task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(task)

    def _end(self, key: K, task: asyncio.Task[V]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            # Marks the error as seen, since every waiter may have given up.
            task.exception()


class BundleCache(Generic[L]):
    """Loaded bundles, the least recently used out first.

    Args:
        load: Loads one variant; called in ``executor``.
        executor: Where loads run.
        most: Bundles at most.
        most_mb: MB of all bundles at most; one bundle alone may be larger.
    """

    def __init__(self, load: Callable[[Variant], L], executor: Executor, *, most: int, most_mb: float) -> None:
        self._load = load
        self._executor = executor
        self._most = most
        self._most_mb = most_mb
        self._loaded: OrderedDict[tuple[str, int], L] = OrderedDict()
        self._flights: Flights[tuple[str, int], L] = Flights()

    def __len__(self) -> int:
        return len(self._loaded)

    @property
    def size_mb(self) -> float:
        """Memory that the loaded bundles are counted with, in MB."""
        return sum(loaded.size_mb for loaded in self._loaded.values())

    async def get(self, variant: Variant) -> L:
        """Return a loaded variant; an error of the load is raised to all who wait for it, and is not remembered."""
        key = (variant.name, variant.version)
        loaded = self._loaded.get(key)
        if loaded is None:
            return await self._flights.join(key, lambda: self._fetch(variant))
        self._loaded.move_to_end(key)
        return loaded

    async def _fetch(self, variant: Variant) -> L:
        """Load and keep a variant, also where everybody who waited has given up."""
        loaded = await _in(self._executor, self._load, variant)
        self._loaded[variant.name, variant.version] = loaded
        self._shrink()
        return loaded

    def _shrink(self) -> None:
        while len(self._loaded) > 1 and (len(self._loaded) > self._most or self.size_mb > self._most_mb):
            (name, version), _ = self._loaded.popitem(last=False)
            logger.info("unloaded %s/%d", name, version)


A = TypeVar("A")


async def _in(executor: Executor, call: Callable[[A], V], argument: A) -> V:
    return await asyncio.get_running_loop().run_in_executor(executor, call, argument)
