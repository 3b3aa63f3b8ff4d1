"""The lineage of a version as a graph: what it holds, that nothing overlaps, and that it stays small."""

from __future__ import annotations

from factory.ledger import RequestRecord
from serve.portal.documents import VersionDetail
from serve.portal.pages.lineage import HEIGHT, LETTERS, MOST, WIDTH, Graph, graph
from serve.portal.pages.variants import Scale, beside
from serve.portal.pages.words import Words
from tests.portal.conftest import World

WORDS = Words.of("en")


def listed(world: World, name: str = "growth.churn", **changes: object):
    variant = world.made(name, **changes)
    found = world("growth/read").get(f"/variants/{name}/versions/{variant.version}").json()
    return VersionDetail.model_validate(found)


def drawn(version, *, request: RequestRecord | None = None, heirs=(), segments=()) -> Graph:
    return graph(version, request=request, heirs=heirs, segments=segments, words=WORDS)


def test_what_went_in_stands_before_the_version_and_its_heirs_behind_it(world: World) -> None:
    version = listed(world, parent="growth.churn/7", kind="warm_start")
    heir = listed(world)
    found = drawn(version, heirs=[heir])
    by_kind = {node.kind: node for node in found.nodes}
    assert list(by_kind) == ["Data", "Recipe", "Parent", "Request", "This version", "Made from it"]
    assert by_kind["Parent"].address == "/variants/growth.churn/versions/7"
    assert by_kind["Made from it"].address == "/variants/growth.churn/versions/2"
    assert by_kind["Request"].address == "", "without a request that may be seen there is no link to one"
    assert by_kind["Parent"].x < by_kind["Request"].x < by_kind["This version"].x < by_kind["Made from it"].x
    assert [node.here for node in found.nodes].count(True) == 1
    assert len(found.lines) == 5


def test_boxes_do_not_overlap_and_fill_the_drawing(world: World) -> None:
    version = listed(world, feature_service="churn_v1")
    segments = [listed(world, f"growth.churn.{name}", segment=name) for name in ("north", "south")]
    found = drawn(version, segments=segments)
    for i, one in enumerate(found.nodes):
        for other in found.nodes[i + 1 :]:
            assert abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT
    assert max(node.x for node in found.nodes) + WIDTH == found.width
    assert max(node.y for node in found.nodes) + HEIGHT <= found.height


def test_many_heirs_are_counted_and_long_names_shortened(world: World) -> None:
    long = f"growth.{'a' * 40}"
    version = listed(world, long)
    heirs = [listed(world, long) for _ in range(MOST + 3)]
    found = drawn(version, heirs=heirs)
    after = [node for node in found.nodes if node.x == max(one.x for one in found.nodes)]
    assert len(after) == MOST
    assert after[-1].name == "4 more"
    assert after[-1].address.startswith("/variants?like=growth.")
    assert all(len(node.name) <= LETTERS for node in found.nodes)
    assert {node.whole for node in after[:-1]} == {f"{long}/{k}" for k in range(2, 7)}


def test_segments_stand_from_the_weakest_on_and_say_how_they_compare(world: World) -> None:
    pooled = listed(world)
    scores = {"weak": 0.7, "alike": 0.84, "strong": 0.95}
    segments = [
        listed(world, f"growth.churn.{name}", segment=name, score=at, score_low=at - 0.01, score_high=at + 0.01)
        for name, at in sorted(scores.items())
    ]
    assert [(one.segment, against) for one, against in beside(segments, pooled)] == [
        ("weak", "weak"),
        ("alike", ""),
        ("strong", "strong"),
    ]
    scale = Scale.of(segments)
    assert (scale(0.69), scale(0.96)) == (0.0, 100.0)
