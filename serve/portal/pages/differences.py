"""What differs between two texts, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import ndiff
from itertools import zip_longest

from factory.operate.recipe_history import RecipeVersion
from serve.portal.pages.forms import as_yaml


def difference(before: str, after: str) -> list[tuple[str, str]]:
    """Return the lines of two texts, each with ``-``, ``+`` or a blank.

    >>> difference("a\\nb", "a\\nc")
    [(' ', 'a'), ('-', 'b'), ('+', 'c')]
    """
    lines = ndiff(before.splitlines(), after.splitlines())
    return [(line[0], line[2:]) for line in lines if line[0] != "?"]


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
