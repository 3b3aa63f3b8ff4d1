"""Where a version comes from and what came of it, as a graph: what went in, the request, the version, its heirs.

What else came of the same data or the same parent stands beside the request.
The page draws it as SVG, from left to right or, on a phone, downwards; each
node that has a page of its own is a link to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal
from urllib.parse import quote, urlencode

from factory.data.features import ServiceEntry
from factory.ledger import RequestRecord
from factory.operate.answers import ListedVariant
from serve.portal.documents import Variants, VersionDetail
from serve.portal.pages.inner import Api, Query
from serve.portal.pages.words import Words
from serve.portal.routes import API

WIDTH, HEIGHT, GAP_X, GAP_Y = 188, 54, 30, 14
"""Of a node, and between nodes, in units of the drawing."""
DOWN_WIDTH, INDENT = 270, 18
"""Of a node of the drawing that goes downwards, and room for the line at its left."""
MOST = 6
"""Nodes of one kind that are drawn; the others are counted."""
LETTERS = 20
"""Of a name in a node; the whole name shows on hovering."""
_LOOKED_AT = 30
"""Versions among which siblings are looked for."""
Rank = Literal["views", "inputs", "request", "this", "after", "siblings"]


@dataclass(frozen=True)
class Node:
    """A box of the graph.

    Attributes:
        rank: What it is to the version.
        kind: What it is, as people read it.
        name: Which one; shortened.
        whole: The whole name.
        address: Of its page; empty where it has none.
        x: Of its left edge.
        y: Of its upper edge.
    """

    rank: Rank
    kind: str
    name: str
    whole: str
    address: str = ""
    x: int = 0
    y: int = 0

    @property
    def here(self) -> bool:
        """Whether it is the version that the graph is about."""
        return self.rank == "this"


@dataclass(frozen=True)
class Graph:
    """A laid out graph: boxes of one size, the lines between them as SVG paths, and its size.

    Attributes:
        faint: Lines to what is no ancestor and no heir.
    """

    nodes: tuple[Node, ...]
    lines: tuple[str, ...]
    width: int
    height: int
    faint: tuple[str, ...] = ()
    box: tuple[int, int] = (WIDTH, HEIGHT)


@dataclass(frozen=True)
class Relatives:
    """What a version is drawn with.

    Attributes:
        request: That made it, where the visitor may see it.
        heirs: Versions that were made from it.
        segments: Variants of its segments, made by the same request.
        siblings: Other variants that were made from the same data or the same parent.
        service: The feature service, as the store has it now.
    """

    request: RequestRecord | None = None
    heirs: Sequence[ListedVariant] = ()
    segments: Sequence[ListedVariant] = ()
    siblings: Sequence[ListedVariant] = ()
    service: ServiceEntry | None = None


async def relatives_of(api: Api, detail: VersionDetail) -> Relatives:
    """Return what a version is drawn with, as far as the API gives it."""
    me, service = f"{detail.name}/{detail.version}", detail.feature_service
    here = f"{API}/variants"
    same: Query = {"dataset_digest": detail.dataset_digest, "recipe": detail.recipe, "limit": _LOOKED_AT}
    request, heirs, together, like = await asyncio.gather(
        api.find(f"{API}/requests/{detail.request_id}", RequestRecord),
        api.get(here, Variants, {"parent": me, "sort": "created", "limit": 200}),
        api.get(here, Variants, {"request_id": detail.request_id, "sort": "name", "limit": 200}),
        api.get(here, Variants, same),
    )
    others = [*like.items]
    if detail.parent:
        others += (await api.get(here, Variants, {"parent": detail.parent, "limit": _LOOKED_AT})).items
    siblings = {f"{one.name}/{one.version}": one for one in others if not one.segment and one.parent != me}
    known = {detail.parent, *(f"{one.name}/{one.version}" for one in together.items)}
    place = f"{API}/feature-services/{service}"
    return Relatives(
        request=request,
        heirs=heirs.items,
        segments=[one for one in together.items if one.segment and not detail.segment],
        siblings=[one for name, one in siblings.items() if name not in known],
        service=await api.find(place, ServiceEntry, absent=(404, 503)) if service else None,
    )


def graphs(version: ListedVariant, relatives: Relatives, words: Words) -> tuple[Graph, Graph]:
    """Return the lineage of a version, laid out from left to right, and downwards."""
    nodes = [*_nodes(version, relatives, words)]
    return _beside(nodes, served=version.feature_service or ""), _downwards(nodes)


def _nodes(version: ListedVariant, relatives: Relatives, words: Words) -> Iterator[Node]:
    """Yield the boxes in their order, not placed yet."""
    request, service = relatives.request, version.feature_service
    features = f"/features/{quote(service, safe='')}" if service else ""
    if relatives.service is not None:
        views = [_node("views", words("Feature view"), view.name, features) for view in relatives.service.views]
        yield from _few(views, features, words)
    upload = getattr(request.request.dataset, "upload", None) if request else None
    yield _node("inputs", words("Data"), version.dataset_digest[:16], f"/datasets/{upload}" if upload else "")
    if service:
        yield _node("inputs", words("Features"), service, features)
    recipe = f"{version.recipe}@{version.recipe_digest[:8]}"
    yield _node("inputs", words("Recipe"), recipe, f"/recipes/{version.recipe}")
    if version.parent:
        name, _, number = version.parent.partition("/")
        place = _place(name, number) if number.isdigit() else ""
        yield _node("inputs", words("Parent"), version.parent, place)
    seen = f"/requests/{quote(version.request_id, safe='')}" if request else ""
    yield _node("request", words("Request"), version.request_id, seen)
    like = f"/variants?{urlencode({'like': version.name})}"
    siblings = [_version("siblings", words("Sibling"), one) for one in relatives.siblings]
    yield from _few(siblings, like, words)
    yield _version("this", words("This version"), version, linked=False)
    after = [_version("after", words("Made from it"), one) for one in relatives.heirs]
    after += [
        _node("after", words("Segment"), one.segment or one.name, _place(one.name, one.version))
        for one in relatives.segments
    ]
    yield from _few(after, like, words)


def _few(nodes: Sequence[Node], address: str, words: Words) -> Iterator[Node]:
    """Yield so many nodes as have room; the last one counts the others, and leads to them."""
    if len(nodes) <= MOST:
        yield from nodes
        return
    yield from nodes[: MOST - 1]
    rest = words.many("{n} more", "{n} more", len(nodes) - MOST + 1)
    yield Node(nodes[0].rank, words("And"), rest, rest, address)


def _version(rank: Rank, kind: str, one: ListedVariant, *, linked: bool = True) -> Node:
    return _node(rank, kind, f"{one.name}/{one.version}", _place(one.name, one.version) if linked else "")


def _place(name: str, number: int | str) -> str:
    return f"/variants/{quote(name, safe='')}/versions/{number}"


def _node(rank: Rank, kind: str, name: str, address: str = "") -> Node:
    return Node(rank, kind, *_short(name), address)


def _short(name: str) -> tuple[str, str]:
    """Return a name as a box shows it, its end kept, and the whole of it."""
    if len(name) <= LETTERS:
        return name, name
    return f"{name[: LETTERS - 10]}…{name[-9:]}", name


def _beside(nodes: Sequence[Node], *, served: str) -> Graph:
    """Put ranks beside each other, each in the middle of the height; siblings stand under the request."""
    columns = [[n for n in nodes if n.rank in ranks] for ranks in _COLUMNS]
    filled = [column for column in columns if column]
    height = max(len(column) * (HEIGHT + GAP_Y) - GAP_Y for column in filled)
    placed: list[list[Node]] = []
    for k, column in enumerate(filled):
        top = (height - (len(column) * (HEIGHT + GAP_Y) - GAP_Y)) // 2
        placed.append([replace(n, x=k * (WIDTH + GAP_X), y=top + i * (HEIGHT + GAP_Y)) for i, n in enumerate(column)])
    lines: list[str] = []
    faint: list[str] = []
    for left, right in pairwise(placed):
        for one in left:
            for other in right:
                if one.rank == "siblings" or (one.rank == "views" and other.whole != served):
                    continue
                (faint if other.rank == "siblings" else lines).append(_line(one, other))
    width = len(filled) * (WIDTH + GAP_X) - GAP_X
    return Graph(tuple(n for column in placed for n in column), tuple(lines), width, height, tuple(faint))


_COLUMNS: tuple[tuple[Rank, ...], ...] = (("views",), ("inputs",), ("request", "siblings"), ("this",), ("after",))


def _line(one: Node, other: Node) -> str:
    """Return a path from a box's right edge to another one's left edge."""
    x, y, to_x, to_y = one.x + WIDTH, one.y + HEIGHT // 2, other.x, other.y + HEIGHT // 2
    middle = (x + to_x) // 2
    return f"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"


def _downwards(nodes: Sequence[Node]) -> Graph:
    """Put the nodes under each other along a line at their left, what went in first, and siblings last."""
    order = [n for n in nodes if n.rank != "siblings"] + [n for n in nodes if n.rank == "siblings"]
    placed = [replace(n, x=INDENT, y=i * (HEIGHT + GAP_Y)) for i, n in enumerate(order)]
    middles = [n.y + HEIGHT // 2 for n in placed]
    lines: list[str] = []
    faint: list[str] = []
    for node, y in zip(placed, middles, strict=True):
        (faint if node.rank == "siblings" else lines).append(f"M4 {y}H{INDENT}")
    last = max(y for node, y in zip(placed, middles, strict=True) if node.rank != "siblings")
    lines.append(f"M4 {middles[0]}V{last}")
    if faint:
        faint.append(f"M4 {last}V{middles[-1]}")
    height = len(placed) * (HEIGHT + GAP_Y) - GAP_Y
    return Graph(tuple(placed), tuple(lines), INDENT + DOWN_WIDTH, height, tuple(faint), (DOWN_WIDTH, HEIGHT))
