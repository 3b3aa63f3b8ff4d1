"""The lineage of a version as a graph: what it holds, that nothing overlaps, and that it stays small."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from factory.data.features import ServiceEntry, ViewEntry
from factory.ledger import AliasChange
from serve.portal.documents import VersionDetail
from serve.portal.pages.aliases import NARROWEST, before, lanes, spans_of
from serve.portal.pages.lineage import HEIGHT, LETTERS, MOST, WIDTH, Graph, Relatives, graphs
from serve.portal.pages.variants import Scale, beside
from serve.portal.pages.words import Words
from tests.portal.conftest import World

WORDS = Words.of("en")
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def listed(world: World, name: str = "growth.churn", **changes: object) -> VersionDetail:
    variant = world.made(name, **changes)
    found = world("growth/read").get(f"/variants/{name}/versions/{variant.version}").json()
    return VersionDetail.model_validate(found)


def drawn(version: VersionDetail, **relatives: object) -> Graph:
    return graphs(version, Relatives(**relatives), WORDS)[0]  # type: ignore[arg-type]


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


def test_feature_views_feed_their_service_and_siblings_stand_beside_the_request(world: World) -> None:
    version = listed(world, feature_service="churn_v1")
    views = tuple(ViewEntry(name=name, entities=("id",), features={"a": "Float64"}) for name in ("calls", "bills"))
    service = ServiceEntry(name="churn_v1", definition="d" * 64, entities=("id",), views=views)
    found = drawn(version, service=service, siblings=[listed(world, "growth.upsell")])
    by_name = {node.name: node for node in found.nodes}
    assert by_name["calls"].address == by_name["churn_v1"].address == "/features/churn_v1"
    assert by_name["calls"].x < by_name["churn_v1"].x
    sibling, request = by_name["growth.upsell/1"], next(node for node in found.nodes if node.rank == "request")
    assert sibling.x == request.x
    assert sibling.address == "/variants/growth.upsell/versions/1"
    # Two views into the service; data, service and recipe into the request; the request into the version.
    assert (len(found.lines), len(found.faint)) == (2 + 3 + 1, 3)


def test_boxes_do_not_overlap_and_fill_the_drawing(world: World) -> None:
    version = listed(world, feature_service="churn_v1")
    relatives = Relatives(
        segments=[listed(world, f"growth.churn.{name}", segment=name) for name in ("north", "south")],
        siblings=[listed(world, "growth.upsell")],
    )
    beside_, downwards = graphs(version, relatives, WORDS)
    for found in (beside_, downwards):
        width, height = found.box
        for i, one in enumerate(found.nodes):
            for other in found.nodes[i + 1 :]:
                assert abs(one.x - other.x) >= width or abs(one.y - other.y) >= height
        assert max(node.x for node in found.nodes) + width == found.width
        assert max(node.y for node in found.nodes) + height <= found.height
    assert (beside_.box, downwards.width <= 290) == ((WIDTH, HEIGHT), True)
    assert downwards.nodes[-1].rank == "siblings", "what is no ancestor comes last"
    assert len({node.x for node in downwards.nodes}) == 1


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


# --- the alias ledger -----------------------------------------------------------------


def changed(alias: str, version: int | None, *, day: float) -> AliasChange:
    time = BEGAN + timedelta(days=day)
    return AliasChange(name="growth.churn", alias=alias, version=version, who="ann", why="x", evidence={}, time=time)


def test_who_was_champion_when_is_drawn_to_scale() -> None:
    history = [
        changed("champion", 1, day=0),
        changed("challenger", 2, day=1),
        changed("champion", 2, day=5),
        changed("champion", None, day=6),
        changed("champion", 1, day=8),
    ]
    found = lanes(history, now=BEGAN + timedelta(days=10))
    assert found is not None
    assert [(one.version, one.x, one.width) for one in found.spans["champion"]] == [
        (1, 80, 20),
        (2, 50, 10),
        (1, 0, 50),
    ]
    assert [(one.version, one.x, one.until) for one in found.spans["challenger"]] == [(2, 10, None)]
    assert (found.since, found.until) == (BEGAN, BEGAN + timedelta(days=10))


def test_the_shortest_span_is_seen_and_none_leaves_the_drawing() -> None:
    history = [changed("champion", 1, day=0), changed("champion", 2, day=9.999), changed("champion", 33, day=9.9999)]
    found = lanes(history, now=BEGAN + timedelta(days=10))
    assert found is not None
    spans = found.spans["champion"]
    assert all(one.width >= NARROWEST and one.x + one.width <= 100 for one in spans)
    assert [one.named for one in spans] == [False, False, True]
    assert lanes([], now=BEGAN) is None


def test_a_rollback_goes_to_the_last_other_champion() -> None:
    history = [changed("champion", 1, day=0), changed("champion", 2, day=1), changed("champion", None, day=2)]
    line = spans_of([*history, changed("champion", 2, day=3)])
    assert [one.version for one in line] == [2, 2, 1]
    last = before(line)
    assert last is not None
    assert last.version == 1
    assert before(spans_of([changed("champion", 1, day=0)])) is None


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
