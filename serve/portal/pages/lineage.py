"""Where a version comes from and what came of it, as a graph: what went in, the request, the version, its heirs.

The page draws it as SVG; each node that has a page of its own is a link to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import quote, urlencode

from factory.ledger import RequestRecord
from factory.operate.answers import ListedVariant
from serve.portal.pages.words import Words

WIDTH, HEIGHT, GAP_X, GAP_Y = 204, 54, 32, 14
"""Of a node, and between nodes, in units of the drawing."""
MOST = 6
"""Heirs that are drawn; the others are counted."""
LETTERS = 25
"""Of a name in a node; the whole name shows on hovering."""


@dataclass(frozen=True)
class Node:
    """A box of the graph.

    Attributes:
        kind: What it is, as people read it.
        name: Which one; shortened.
        whole: The whole name.
        address: Of its page; empty where it has none.
        here: Whether it is the version that the graph is about.
        x: Of its left edge.
        y: Of its upper edge.
    """

    kind: str
    name: str
    whole: str
    address: str = ""
    here: bool = False
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Graph:
    """A laid out graph: boxes of one size, the lines between them as SVG paths, and its size."""

    nodes: tuple[Node, ...]
    lines: tuple[str, ...]
    width: int
    height: int
    box: tuple[int, int] = (WIDTH, HEIGHT)


def graph(
    version: ListedVariant,
    *,
    request: RequestRecord | None,
    heirs: Sequence[ListedVariant],
    segments: Sequence[ListedVariant],
    words: Words,
) -> Graph:
    """Return the lineage of a version.

    Args:
        version: It.
        request: That made it, where the visitor may see it.
        heirs: Versions that were made from it.
        segments: Variants of its segments, made by the same request.
        words: In the visitor's language.
    """
    inputs = [*_data(version, request, words), _recipe(version, words)]
    if version.parent:
        name, _, number = version.parent.partition("/")
        inputs.append(_node(words("Parent"), version.parent, _place(name, number) if number.isdigit() else ""))
    seen = f"/requests/{quote(version.request_id, safe='')}" if request else ""
    maker = _node(words("Request"), version.request_id, seen)
    this = Node(words("This version"), *_short(f"{version.name}/{version.version}"), here=True)
    after = [_node(words("Made from it"), f"{one.name}/{one.version}", _place(one.name, one.version)) for one in heirs]
    after += [_node(words("Segment"), one.segment or one.name, _place(one.name, one.version)) for one in segments]
    if len(after) > MOST:
        left = len(after) - MOST + 1
        rest = words.many("{n} more", "{n} more", left)
        address = f"/variants?{urlencode({'like': version.name})}"
        after = [*after[: MOST - 1], Node(words("And"), rest, rest, address)]
    return _laid_out([inputs, [maker], [this], after])


def _data(version: ListedVariant, request: RequestRecord | None, words: Words) -> list[Node]:
    dataset = request.request.dataset if request else None
    upload = getattr(dataset, "upload", None)
    found = [_node(words("Data"), version.dataset_digest[:16], f"/datasets/{upload}" if upload else "")]
    if version.feature_service:
        place = f"/features/{quote(version.feature_service, safe='')}"
        found.append(_node(words("Features"), version.feature_service, place))
    return found


def _recipe(version: ListedVariant, words: Words) -> Node:
    return _node(words("Recipe"), f"{version.recipe}@{version.recipe_digest[:8]}", f"/recipes/{version.recipe}")


def _place(name: str, number: int | str) -> str:
    return f"/variants/{quote(name, safe='')}/versions/{number}"


def _node(kind: str, name: str, address: str = "") -> Node:
    return Node(kind, *_short(name), address)


def _short(name: str) -> tuple[str, str]:
    """Return a name as a box shows it, its end kept, and the whole of it."""
    if len(name) <= LETTERS:
        return name, name
    return f"{name[: LETTERS - 11]}…{name[-10:]}", name


def _laid_out(columns: Sequence[Sequence[Node]]) -> Graph:
    """Put columns of nodes beside each other, each in the middle of the height, and join each with all of the next."""
    filled = [column for column in columns if column]
    height = max(len(column) * (HEIGHT + GAP_Y) - GAP_Y for column in filled)
    placed: list[list[Node]] = []
    for k, column in enumerate(filled):
        top = (height - (len(column) * (HEIGHT + GAP_Y) - GAP_Y)) // 2
        placed.append(
            [
                Node(n.kind, n.name, n.whole, n.address, n.here, k * (WIDTH + GAP_X), top + i * (HEIGHT + GAP_Y))
                for i, n in enumerate(column)
            ]
        )
    lines = tuple(_line(one, other) for before, after in pairwise(placed) for one in before for other in after)
    nodes = tuple(node for column in placed for node in column)
    return Graph(nodes, lines, len(filled) * (WIDTH + GAP_X) - GAP_X, height)


def _line(one: Node, other: Node) -> str:
    """Return a path from a box's right edge to another one's left edge."""
    x, y, to_x, to_y = one.x + WIDTH, one.y + HEIGHT // 2, other.x, other.y + HEIGHT // 2
    middle = (x + to_x) // 2
    return f"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"
