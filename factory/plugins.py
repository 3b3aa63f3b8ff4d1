"""One door for everything that can be added: ``names(kind)`` and ``load(kind, name)``.

A built-in is a module of the kind's folder that names its plug-in by
:data:`MARK` (a module with a leading underscore is code that several share); a
third party's comes through the entry-point group ``factory.<kind>``.  Both are
found by name without importing anything else, so a framework is imported only
where its family runs.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from factory.errors import InvalidRequest, SystemFault, listing, suggest

MARK = "PLUGIN"
"""A built-in module names its plug-in with a module-level ``PLUGIN = Class()``."""

KINDS: dict[str, tuple[str, frozenset[str]]] = {
    "families": ("factory.families", frozenset({"base"})),
    "topics": ("factory.topics", frozenset({"base"})),
    "commands": ("factory.cli", frozenset()),
}
"""Kind → (package whose modules are the built-ins, modules that are not plug-ins)."""


@cache
def _registry(kind: str) -> dict[str, str]:
    """Return name → ``module:attribute`` for one kind; third parties cannot replace a built-in."""
    if kind not in KINDS:
        raise SystemFault(f"There is no plug-in kind {kind!r}.", hint=f"Kinds: {listing(KINDS)}.")
    package, skipped = KINDS[kind]
    folder = importlib.import_module(package).__path__
    modules = [m.name for m in pkgutil.iter_modules(folder) if m.name not in skipped and not m.name.startswith("_")]
    found = {name: f"{package}.{name}:{MARK}" for name in modules}
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
            f"There is no {_singular(kind)} {name!r}.{suggest(name, registry)}",
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


def summary(kind: str, name: str) -> str:
    """Return the first line of a built-in's module docstring, read from its source without importing it."""
    module = _registry(kind)[name].partition(":")[0]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    document = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return document.partition("\n")[0]


def _singular(kind: str) -> str:
    return kind[:-3] + "y" if kind.endswith("ies") else kind[:-1]
