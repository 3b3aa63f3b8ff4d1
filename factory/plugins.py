"""One door for everything that can be added: ``names(kind)`` and ``load(kind, name)``.

A built-in is a module of the kind's folder that defines a class or function
marked by :data:`MARK`; a third party's comes through the entry-point group
``factory.<kind>``.  Both are found by name without importing anything else,
so a framework is imported only where its family runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from factory.errors import InvalidRequest, SystemFault, listing, suggest

MARK = "PLUGIN"
"""A built-in module names its plug-in with a module-level ``PLUGIN = Class``."""

KINDS: dict[str, tuple[str, frozenset[str]]] = {
    "families": ("factory.families", frozenset({"base"})),
}
"""Kind → (package whose modules are the built-ins, modules that are not plug-ins)."""


@cache
def _registry(kind: str) -> dict[str, str]:
    """Return name → ``module:attribute`` for one kind; third parties cannot replace a built-in."""
    if kind not in KINDS:
        raise SystemFault(f"There is no plug-in kind {kind!r}.", hint=f"Kinds: {listing(KINDS)}.")
    package, skipped = KINDS[kind]
    folder = importlib.import_module(package).__path__
    found = {m.name: f"{package}.{m.name}:{MARK}" for m in pkgutil.iter_modules(folder) if m.name not in skipped}
    for point in entry_points(group=f"factory.{kind}"):
        found.setdefault(point.name, point.value)
    return found


def names(kind: str) -> tuple[str, ...]:
    """Return the names of all plug-ins of a kind, sorted; imports none of them."""
    return tuple(sorted(_registry(kind)))


def load(kind: str, name: str) -> object:
    """Import and return one plug-in.

    Raises:
        InvalidRequest: there is no plug-in of that name.
        SystemFault: it is there, but what it needs is not installed.
    """
    registry = _registry(kind)
    if name not in registry:
        raise InvalidRequest(
            f"There is no {kind[:-1] if kind != 'families' else 'family'} {name!r}.{suggest(name, registry)}",
            hint=f"Allowed: {listing(registry)}.",
        )
    module, _, attribute = registry[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise SystemFault(
            f"{name!r} needs a package that cannot be imported: {error}.",
            hint="Install it (see constraints.txt) or leave this plug-in out of the recipe.",
        ) from error
