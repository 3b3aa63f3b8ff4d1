"""Which variant a name means now, and the bundles that are in memory.

Names are resolved through the ledger, which decides traffic; what it said is
kept for a second, and longer only while the ledger cannot be read.  Bundles
are loaded on demand, one load at a time for each variant however many callers
wait, and the least recently used go when there are too many.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, get_args

from factory.errors import Detail, NotFound, listing, suggest
from factory.ledger import Deployment
from factory.spec import ALIAS, Variant
from serve.doors import Keys
from serve.remembered import UNCHANGED_S, Changes, Flights, Remembered, in_thread

logger = logging.getLogger(__name__)


class Catalogue(Keys, Protocol):
    """What of the ledger is read here."""

    def alias(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points at."""

    def variants(self, name: str | None = None) -> list[Variant]:
        """Return the versions of a name."""

    def deployments(self) -> list[Deployment]:
        """Return what is to be served."""

    def catalogue_mark(self) -> Hashable:
        """Return what is another whenever an alias, a deployment or a share has changed."""


@dataclass(frozen=True)
class Reference:
    """What a caller named: a variant by alias, or by version.

    Attributes:
        name: Name of the variant, ``team.name``.
        alias: Alias; None of whoever takes what is served, which the champion is, or a canary.
        version: Version, or None.
    """

    name: str
    alias: str | None = None
    version: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it names neither a version nor an alias."""
        return self.alias is None and self.version is None

    @classmethod
    def written(cls, text: str) -> Reference:
        """Read ``name``, ``name@alias`` or ``name/version``, as people write it; raises as :meth:`parse`."""
        name, _, version = text.partition("/")
        return cls.parse(name, version=version or None)

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
        return cls(name, alias=alias or None)


class VariantTable:
    """Reference → variant, as the ledger had it a moment ago."""

    def __init__(self, catalogue: Catalogue, executor: Executor, *, changes: Changes) -> None:
        self._catalogue = catalogue
        self._known: Remembered[Reference, Variant] = Remembered(executor, max_age_s=UNCHANGED_S, changes=changes)
        self._versions: Remembered[str, list[int]] = Remembered(executor)

    async def resolve(self, reference: Reference) -> Variant:
        """Return the variant that a reference means now.

        Raises:
            NotFound: there is no such name, alias or version; the nearest are named.
            StorageFault: the ledger cannot be read, and nothing was known before.
        """
        return await self._known.get(reference, lambda: self._read(reference))

    def champion(self, name: str) -> int | None:
        """Return the champion of a name as it was told last; None where it never was."""
        known = self._known.peek(Reference(name)) or self._known.peek(Reference(name, alias="champion"))
        return None if known is None else known.version

    async def versions(self, name: str) -> list[int]:
        """Return the versions of a name as they were a moment ago, the oldest first.

        Raises:
            StorageFault: the ledger cannot be read, and nothing was known before.
        """
        return await self._versions.get(name, lambda: [v.version for v in self._catalogue.variants(name)])

    def _read(self, reference: Reference) -> Variant:
        version, alias = reference.version, reference.alias or "champion"
        if version is None:
            version = self._catalogue.alias(reference.name, alias)
        if version is None:
            versions = [variant.version for variant in self._catalogue.variants(reference.name)]
            if versions:
                raise NotFound(
                    f"{reference.name} has no {alias}.",
                    hint=f"Ask for one of its versions ({', '.join(map(str, versions))}), "
                    f"or promote one: `factory variants promote {reference.name}`.",
                    details=[Detail("name", f"no version is {alias}")],
                )
        # For a name that is not known this raises, with the nearest one.
        return self._catalogue.variant(reference.name, version or 1)


class Sized(Protocol):
    """What the cache has to know of what it keeps."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """Memory that its parts are counted with, in MB, by name; equal names are the same memory."""


L = TypeVar("L", bound=Sized)


class BundleCache(Generic[L]):
    """Loaded bundles, the least recently used out first.

    Args:
        load: Loads one variant; called in ``executor``.
        executor: Where loads run.
        most: Bundles at most.
        most_mb: MB of all bundles at most; one bundle alone may be larger.
        pinned: Whether a name's champion stays while others can go.
        champion: Returns the champion of a name as far as it is known.
    """

    def __init__(
        self,
        load: Callable[[Variant], L],
        executor: Executor,
        *,
        most: int,
        most_mb: float,
        pinned: Callable[[str], bool] = lambda _: False,
        champion: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._load = load
        self._executor = executor
        self._most = most
        self._most_mb = most_mb
        self._pinned, self._champion = pinned, champion
        self._of_pinned: set[tuple[str, int]] = set()
        self._loaded: OrderedDict[tuple[str, int], L] = OrderedDict()
        self._size_mb = 0.0
        self._sizes: dict[str, float] = {}
        self._holders: Counter[str] = Counter()
        self._flights: Flights[tuple[str, int], L] = Flights()

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, variant: object) -> bool:
        return isinstance(variant, Variant) and (variant.name, variant.version) in self._loaded

    @property
    def size_mb(self) -> float:
        """Memory that the loaded bundles are counted with, in MB."""
        return self._size_mb

    async def get(self, variant: Variant, threads: Executor | None = None) -> L:
        """Return a loaded variant; an error of the load is raised to all who wait for it, and is not remembered.

        Args:
            variant: Which one.
            threads: Where it is loaded if it is not yet, and nobody else has it loaded; those of all loads if none are
                given. One whose load may hang has its own.
        """
        if (loaded := self.peek(variant)) is not None:
            return loaded
        key = (variant.name, variant.version)
        return await self._flights.join(key, lambda: self._fetch(variant, threads or self._executor))

    def peek(self, variant: Variant) -> L | None:
        """Return a variant that is in memory, where it is the last that goes now; None where it is not."""
        key = (variant.name, variant.version)
        loaded = self._loaded.get(key)
        if loaded is not None:
            self._loaded.move_to_end(key)
        return loaded

    async def _fetch(self, variant: Variant, threads: Executor) -> L:
        """Load and keep a variant, also where everybody who waited has given up."""
        loaded = await in_thread(threads, lambda: self._load(variant))
        self._loaded[variant.name, variant.version] = loaded
        if self._pinned(variant.name):
            self._of_pinned.add((variant.name, variant.version))
        for part, size_mb in loaded.sizes.items():
            self._holders[part] += 1
            if part not in self._sizes:
                self._sizes[part] = size_mb
                self._size_mb += size_mb
        self._shrink()
        return loaded

    def _shrink(self) -> None:
        while len(self._loaded) > 1 and (len(self._loaded) > self._most or self._size_mb > self._most_mb):
            gone = self._next()
            self._of_pinned.discard(gone)
            for part in self._loaded.pop(gone).sizes:
                self._holders[part] -= 1
                if not self._holders[part]:
                    del self._holders[part]
                    self._size_mb -= self._sizes.pop(part)
            logger.info("unloaded %s/%d", *gone)

    def _next(self) -> tuple[str, int]:
        """Return what goes next: what a pinned champion has taken over from, then the others, and pinned ones last."""
        older = list(self._loaded)[:-1]
        of_pinned = [key for key in older if key in self._of_pinned] if self._of_pinned else []
        stays = {key for key in of_pinned if self._champion(key[0]) in (None, key[1])}
        for i, (name, version) in enumerate(of_pinned):
            # Less recently used than the champion, so that a version that somebody asks for by its number stays.
            champion = self._champion(name)
            newer = (name, champion) in of_pinned[i:] or next(reversed(self._loaded)) == (name, champion)
            if champion is not None and version < champion and newer:
                return name, version
        return next((key for key in older if key not in stays), older[0])
