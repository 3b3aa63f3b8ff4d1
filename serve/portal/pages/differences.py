"""What differs between two texts, line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import ndiff
from itertools import zip_longest
from typing import Any

from factory.operate.recipe_history import RecipeVersion
from serve.portal.pages.forms import as_yaml


def difference(before: str, after: str) -> list[tuple[str, str]]:
    """Return the lines of two texts, each with ``-``, ``+`` or a blank.

    >>> difference("a\\nb", "a\\nc")
    [(' ', 'a'), ('-', 'b'), ('+', 'c')]
    """
    lines = ndiff(before.splitlines(), after.splitlines())
    return [(line[0], line[2:]) for line in lines if line[0] != "?"]


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what differs between two documents: dotted path, the value before and that of now; empty where none is.

    >>> differing({"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": [1, 2], "d": True})
    [('a.b', '1', '2'), ('d', '', 'true')]
    """
    was, is_ = _flat(before), _flat(now)
    return [(path, was.get(path, ""), is_.get(path, "")) for path in {**is_, **was} if was.get(path) != is_.get(path)]


def _flat(document: Mapping[str, Any], path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}{name}.")
        else:
            several = isinstance(value, list | tuple)
            found[f"{path}{name}"] = ", ".join(map(str, value)) if several else as_yaml(value).removesuffix("\n...")
    return found


@dataclass(frozen=True)
class Change:
    """A version of a recipe, and what it changed.

    Attributes:
        version: It.
        lines: What differs from the version before; empty of the first one that is known.
    """

    version: RecipeVersion
    lines: list[tuple[str, str]]


def changes(versions: Sequence[RecipeVersion]) -> list[Change]:
    """Return versions, the newest first, each beside the one before."""
    texts = [as_yaml(version.document) for version in versions]
    pairs = zip_longest(texts, texts[1:])
    return [
        Change(version, [] if before is None else difference(before, after))
        for version, (after, before) in zip(versions, pairs, strict=True)
    ]
