"""Variants, their cards and how they are served, over HTTP."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.errors import ServiceFault, StorageFault
from factory.ledger import CanaryCounts, Served, ShadowCounts
from factory.spec import Actor, GroupSplit, Recipe, TimeSplit
from factory.variants.registry import Registry
from serve.portal import cards
from serve.portal.pages.forms import request_fields
from serve.portal.routes.recipes import request_schema
from tests.answers import error_of
from tests.portal.conftest import World, fields_of

ANN = Actor(who="ann")


pytestmark = pytest.mark.usefixtures("mirror")
"""No test here reaches MLflow."""


def test_versions_are_listed_with_their_aliases(world: World) -> None:
    first, second, other = world.made(), world.made(), world.made("growth.spend.asia")
    world.made("risk.fraud")
    world.ledger.set_alias("growth.churn", "champion", 2, who="x", why="y")
    reader = world("growth/read")
    items = reader.get("/variants", params={"sort": "name"}).json()["items"]
    assert [(item["name"], item["version"], item["aliases"]) for item in items] == [
        ("growth.churn", 1, []),
        ("growth.churn", 2, ["champion"]),
        ("growth.spend.asia", 1, []),
    ]
    found = reader.get("/variants", params={"request_id": second.request_id}).json()["items"]
    assert [item["version"] for item in found] == [2]
    assert len(reader.get("/variants", params={"name": "growth.churn", "limit": 1}).json()["items"]) == 1
    assert len(world("operator").get("/variants").json()["items"]) == 4
    assert {first.name, other.name} == {"growth.churn", "growth.spend.asia"}


def test_versions_are_found_by_their_data_and_their_recipe(world: World) -> None:
    world.made(recipe="tabular-fast")
    world.made("growth.upsell")

    def found(**filters: str) -> list[str]:
        items = world("growth/read").get("/variants", params={"sort": "name", **filters}).json()["items"]
        return [item["name"] for item in items]

    assert found(recipe="tabular-fast") == ["growth.churn"]
    assert found(dataset_digest="b" * 64) == ["growth.churn", "growth.upsell"]
    assert found(dataset_digest="b" * 64, recipe="tabular-auto") == ["growth.upsell"]
    assert found(dataset_digest="f" * 64) == []


def test_where_files_lie_is_told_to_nobody(world: World) -> None:
    made = world.made(artifacts="file:///srv/factory/artifacts/growth/m-1")
    assert world.ledger.variant(made.name, 1).artifacts
    for path in ("/variants", "/variants/growth.churn", "/variants/growth.churn/versions/1"):
        for who in ("growth/read", "operator"):
            assert "/srv/factory" not in world(who).get(path).text


def test_a_variant_tells_its_versions_and_champions(world: World) -> None:
    world.made()
    world.made(state="rejected")
    world().post("/variants/growth.churn/promote", json={"version": 1, "why": "x"})
    assert (
        world("growth/deploy").post("/variants/growth.churn/promote", json={"version": 1, "why": "First."}).is_success
    )
    shown = world("growth/read").get("/variants/growth.churn").json()
    assert (shown["team"], shown["aliases"]) == ("growth", {"champion": 1})
    assert [(v["version"], v["state"], v["aliases"]) for v in shown["versions"]] == [
        (1, "registered", ["champion"]),
        (2, "rejected", []),
    ]
    assert [(d["as_"], d["version"]) for d in shown["deployments"]] == [("champion", 1)]
    assert [change["why"] for change in shown["alias_history"]] == ["First."]
    assert world().get("/variants/growth.churn/versions/2").json()["state"] == "rejected"
    error_of(world().get("/variants/growth.churn/versions/3"), 404)


def test_a_variant_of_another_team_does_not_exist(world: World) -> None:
    world.made()
    theirs = world("risk/admin")
    body = {"version": 1, "why": "x"}
    for method, url, arguments in [
        ("GET", "/variants/NAME", {}),
        ("GET", "/variants/NAME/versions/1", {}),
        ("GET", "/variants/NAME/versions/1/report", {}),
        ("POST", "/variants/NAME/versions/1/predictions", {"json": {"rows": [{"age": 3}]}}),
        ("POST", "/variants/NAME/promote", {"json": body}),
        ("POST", "/variants/NAME/rollback", {"json": {"why": "x"}}),
        ("GET", "/deployments/NAME", {}),
        ("PUT", "/deployments/NAME", {"json": body}),
    ]:
        error = error_of(theirs(method, url.replace("NAME", "growth.churn"), **arguments), 404)
        nothing = error_of(theirs(method, url.replace("NAME", "growth.cherry"), **arguments), 404)
        assert error["message"].replace("growth.churn", "X") == nothing["message"].replace("growth.cherry", "X")
    assert theirs.get("/variants").json()["items"] == theirs.get("/deployments").json()["items"] == []


def test_a_shared_variant_is_read_and_not_changed(world: World) -> None:
    world.made()
    world.ledger.share("variant", "growth.churn", team="growth", with_team="risk", by=ANN)
    theirs = world("risk/admin")
    assert theirs.get("/variants/growth.churn").json()["name"] == "growth.churn"
    assert len(theirs.get("/variants").json()["items"]) == 1
    assert theirs.get("/variants", params={"shared": "false"}).json()["items"] == []
    assert (
        "growth"
        in error_of(theirs.post("/variants/growth.churn/promote", json={"version": 1, "why": "x"}), 403)["message"]
    )
    error_of(theirs.post("/variants/growth.churn/rollback", json={"why": "x"}), 403)
    error_of(theirs.put("/deployments/growth.churn", json={"version": 1}), 403)


@pytest.mark.parametrize(("name", "folder"), [("growth.churn", "pooled"), ("growth.churn.asia-2", "segment-asia-2")])
def test_a_card_is_shown_in_a_sandbox(name: str, folder: str, world: World) -> None:
    variant = world.made(name)
    place = world.settings.workspace(variant.request_id) / folder
    place.mkdir(parents=True)
    (place / "card.html").write_text("<title>Card</title><script>alert(1)</script>")
    response = world("growth/read").get(f"/variants/{name}/versions/1/report")
    assert response.text.startswith("<title>Card</title>")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers.get_list("content-security-policy")
    assert policy == [cards.POLICY]
    assert "sandbox" in policy[0]
    assert "default-src 'none'" in policy[0]
    assert "script" not in policy[0]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_card_that_is_elsewhere_comes_from_mlflow(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.made()

    def kept(_: object, name: str, version: int) -> Path:
        (tmp_path / "card.html").write_text(f"<p>{name} {version}</p>")
        return tmp_path / "card.html"

    def gone(*_: object) -> Path:
        raise ServiceFault("MLflow does not answer.", hint="Try again.")

    monkeypatch.setattr(Registry, "card", kept)
    assert world().get("/variants/growth.churn/versions/1/report").text == "<p>growth.churn 1</p>"
    monkeypatch.setattr(Registry, "card", gone)
    error_of(world().get("/variants/growth.churn/versions/1/report"), 503)


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOENT, 404), (None, 404), (errno.ENOSPC, 503), (errno.EIO, 503)]
)
def test_a_card_is_given_up_only_where_it_is_known_not_to_be_there(
    number: int | None, status: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.made()

    def refused(*_: object) -> Path:
        cause = OSError("No such file") if number is None else OSError(number, os.strerror(number))
        raise StorageFault("The artifacts could not be read.", hint="Look at the disk.") from cause

    monkeypatch.setattr(Registry, "card", refused)
    error_of(world().get("/variants/growth.churn/versions/1/report"), status)


def test_a_version_tells_what_is_in_it_where_its_bundle_can_be_looked_at(world: World) -> None:
    made = world.made()
    detail = world().get("/variants/growth.churn/versions/1").json()
    assert (detail["columns"], detail["members"]) == ([], [])
    assert not (world.settings.root / "mlflow.db").exists(), "to look at a version makes no registry"
    folder = world.settings.workspace(made.request_id) / "pooled" / "bundle"
    folder.mkdir(parents=True)
    entry = {"weight": 0.5, "preparation": 0}
    members = [entry | {"family": name, "folder": f"members/{n}"} for n, name in enumerate(("linear", "lightgbm"))]
    columns = [{"name": "age", "type": "numeric"}]
    manifest = {"format_version": 2, "task": "binary", "classes": ["no", "yes"], "preparations": 1}
    (folder / "variant.json").write_text(json.dumps(manifest | {"columns": columns, "members": members}))
    detail = world().get("/variants/growth.churn/versions/1").json()
    assert detail["columns"] == columns
    assert detail["members"] == [{"family": "linear", "weight": 0.5}, {"family": "lightgbm", "weight": 0.5}]
    assert detail["score"] == made.score


# --- promotion -------------------------------------------------------------------


def test_a_promotion_is_audited_and_mirrored(world: World, mirror: list[tuple[str, str, int | None]]) -> None:
    world.made()
    deployer = world("growth/deploy")
    for _ in range(2):
        response = deployer.post("/variants/growth.churn/promote", json={"version": 1, "why": "Better."})
        assert response.json()["aliases"] == ["champion"]
    assert mirror == [("growth.churn", "champion", 1)] * 2
    assert len(world.ledger.alias_history("growth.churn")) == 1
    (alias,) = [row for row in world.ledger.audit_page(limit=200).items if row.action == "alias.set"]
    assert alias.who.startswith("token:deploy/")
    assert (alias.origin, alias.detail["why"]) == ("10.0.0.7", "Better.")


def test_what_its_gate_turned_down_needs_an_override_that_is_recorded(world: World) -> None:
    world.made(state="rejected")
    deployer = world("growth/deploy")
    body: dict[str, Any] = {"version": 1, "why": "We know better."}
    error_of(deployer.post("/variants/growth.churn/promote", json=body), 409)
    error_of(deployer.put("/deployments/growth.churn", json={"version": 1}), 409)
    assert deployer.post("/variants/growth.churn/promote", json=body | {"override": True}).status_code == 200
    assert world.ledger.alias_history("growth.churn")[-1].why == "Override: We know better."


def test_a_rollback_goes_to_the_champion_before(world: World) -> None:
    deployer = world("growth/deploy")
    for version in (1, 2):
        world.made()
        deployer.post("/variants/growth.churn/promote", json={"version": version, "why": "x"})
    assert deployer.post("/variants/growth.churn/rollback", json={"why": "Slow."}).json()["version"] == 1
    assert world.ledger.alias_history("growth.churn")[-1].why == "Rollback: Slow."
    world.made("growth.spend")
    error_of(deployer.post("/variants/growth.spend/rollback", json={"why": "x"}), 404)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"/version", "/why"}),
        ({"version": 0, "why": ""}, {"/version", "/why"}),
        ({"version": "1", "why": "x"}, {"/version"}),
        ({"version": 1, "why": "x", "force": True}, {"/force"}),
    ],
)
def test_promotions_that_are_none(body: dict[str, Any], fields: set[str], world: World) -> None:
    world.made()
    assert fields_of(error_of(world("growth/deploy").post("/variants/growth.churn/promote", json=body), 400)) == fields


# --- deployments -------------------------------------------------------------------


def test_a_deployment_is_changed_as_it_was_seen(world: World) -> None:
    deployer = world("growth/deploy")
    for _ in range(2):
        world.made()
    empty = deployer.get("/deployments/growth.churn")
    assert empty.json() == {"name": "growth.churn", "served": [], "lately": None}
    first = deployer.put("/deployments/growth.churn", json={"version": 1}, headers={"if-match": empty.headers["etag"]})
    assert [(row["as_"], row["version"]) for row in first.json()["served"]] == [("champion", 1)]
    canary = {"version": 2, "as": "canary", "percent": 10}
    stale = {"if-match": empty.headers["etag"]}
    error_of(deployer.put("/deployments/growth.churn", json=canary, headers=stale), 412)
    fresh = {"if-match": first.headers["etag"]}
    second = deployer.put("/deployments/growth.churn", json=canary, headers=fresh)
    assert [(row["as_"], row["percent"]) for row in second.json()["served"]] == [("champion", None), ("canary", 10)]
    listed = world("growth/read").get("/deployments").json()
    assert listed["items"] == [second.json()]
    assert listed["predictor"] is None, "none runs here"
    gone = deployer.put("/deployments/growth.churn", json={"version": 2, "as": "none"})
    assert len(gone.json()["served"]) == 1
    assert world("operator").get("/deployments", params={"team": "risk"}).json()["items"] == []


def test_each_change_of_a_deployment_is_kept_with_its_reason(world: World) -> None:
    deployer = world("growth/deploy")
    for _ in range(2):
        world.made()
    for change in (
        {"version": 1, "why": "The first one."},
        {"version": 2, "as": "shadow", "why": "Only look."},
        {"version": 2, "as": "canary", "percent": 10, "why": "A little."},
        {"version": 2, "as": "none", "why": "Enough."},
    ):
        assert deployer.put("/deployments/growth.churn", json=change).status_code == 200
    found = world("growth/read").get("/deployments/growth.churn/history").json()
    assert [(one["version"], one["as_"], one["percent"], one["why"]) for one in found["changes"]] == [
        (2, "none", None, "Enough."),
        (2, "canary", 10, "A little."),
        (2, "shadow", None, "Only look."),
        (1, "champion", None, "The first one."),
    ]
    assert all(one["who"].startswith("token:deploy/") and one["time"] for one in found["changes"])
    audit = world("growth/admin").get("/audit", params={"action": "deployment.set"}).json()["items"]
    assert "Only look." in {row["detail"]["why"] for row in audit}
    error_of(world("risk/read").get("/deployments/growth.churn/history"), 404)


def test_what_is_out_of_traffic_is_so_for_all(world: World, mirror: list[tuple[str, str, int | None]]) -> None:
    deployer = world("growth/deploy")
    for _ in range(2):
        world.made()
    deployer.put("/deployments/growth.churn", json={"version": 1})
    deployer.put("/deployments/growth.churn", json={"version": 2, "as": "canary", "percent": 10})
    out = {"version": 1, "as": "none", "why": "It leaks."}
    error = error_of(deployer.put("/deployments/growth.churn", json=out), 409)
    assert "beside which there is canary growth.churn/2" in error["message"]
    deployer.put("/deployments/growth.churn", json={"version": 2, "as": "none"})
    assert deployer.put("/deployments/growth.churn", json=out).json()["served"] == []
    assert world("growth/read").get("/variants/growth.churn").json()["aliases"] == {}
    assert mirror[-1] == ("growth.churn", "champion", None)
    last = world.ledger.alias_history("growth.churn")[-1]
    assert (last.alias, last.version, last.why) == ("champion", None, "It leaks.")


def test_what_a_gate_turned_down_gets_to_no_caller(world: World) -> None:
    world.made(state="rejected")
    deployer = world("growth/deploy")
    for change in ({"version": 1}, {"version": 1, "as": "canary", "percent": 1}):
        error = error_of(deployer.put("/deployments/growth.churn", json=change), 409)
        assert "turned down by its gate" in error["message"]
    assert world.ledger.deployment("growth.churn") == []
    for kind in ("challenger", "shadow"):
        assert deployer.put("/deployments/growth.churn", json={"version": 1, "as": kind}).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"version": 1, "as": "canary"}, "/percent"),
        ({"version": 1, "as": "champion", "percent": 5}, "/percent"),
        ({"version": 1, "as": "canary", "percent": 100}, "/percent"),
        ({"version": 1, "as": "king"}, "/as"),
        ({"as": "champion"}, "/version"),
    ],
)
def test_deployments_that_are_none(body: dict[str, Any], field: str, world: World) -> None:
    world.made()
    assert fields_of(error_of(world("growth/deploy").put("/deployments/growth.churn", json=body), 400)) == {field}


def called(version: int, calls: int, *, failed: int = 0, minutes_ago: int = 1, name: str = "growth.churn") -> Served:
    latency = (calls // 2, 0, calls - calls // 2, *(0,) * 9)
    began = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return Served(name=name, version=version, began=began, calls=calls, failed=failed, latency=latency)


def test_how_a_variant_is_called_is_told_of_all_replicas(world: World) -> None:
    for _ in range(2):
        world.made()
    world.made("risk.fraud")
    deployer, reader = world("growth/deploy"), world("growth/read")
    deployer.put("/deployments/growth.churn", json={"version": 1})
    canary = deployer.put("/deployments/growth.churn", json={"version": 2, "as": "canary", "percent": 10}).json()
    assert reader.get("/deployments/growth.churn").json()["lately"] is None, "nobody has called it"
    since = datetime.fromisoformat(canary["served"][1]["updated"])
    for _ in range(2):
        world.ledger.add_served([called(1, 10), called(2, 2, failed=1), called(1, 8, minutes_ago=30)])
        world.ledger.add_canary("growth.churn", 2, since, CanaryCounts(calls=2, failed=1, compared=1))
    lately = reader.get("/deployments/growth.churn").json()["lately"]
    assert 24 / 6 <= lately["calls_a_minute"] <= 24 / 5
    assert lately["failed"] == pytest.approx(2 / 24)
    assert lately["p50_ms"] == 1.0
    assert 2 < lately["p95_ms"] < 5
    assert reader.get("/deployments").json()["items"][0]["lately"]["calls_a_minute"] > 0

    traffic = reader.get("/deployments/growth.churn/traffic").json()
    assert [(p["version"], p["calls"], p["failed"]) for p in traffic["points"]] == [(1, 16, 0), (1, 20, 0), (2, 4, 2)]
    assert (traffic["window"], traffic["span_s"]) == ("hour", 60)
    counts = {name: traffic["canary"][name] for name in ("version", "calls", "failed", "compared", "slower")}
    assert counts == {"version": 2, "calls": 4, "failed": 2, "compared": 2, "slower": 0}
    month = reader.get("/deployments/growth.churn/traffic", params={"window": "month"}).json()
    assert sum(point["calls"] for point in month["points"]) == 40
    error_of(reader.get("/deployments/growth.churn/traffic", params={"window": "year"}), 400)
    error_of(reader.get("/deployments/risk.fraud/traffic"), 404)


def test_how_a_shadow_compares_is_told(world: World) -> None:
    for _ in range(2):
        world.made()
    deployer, reader = world("growth/deploy"), world("growth/read")
    deployer.put("/deployments/growth.churn", json={"version": 1})
    shown = deployer.put("/deployments/growth.churn", json={"version": 2, "as": "shadow"}).json()
    since = datetime.fromisoformat(shown["served"][1]["updated"])
    assert reader.get("/deployments/growth.churn/traffic").json()["shadow"]["against"] == []
    for against, counts in (
        (1, ShadowCounts(calls=3, labelled=10, agreed=9)),
        (3, ShadowCounts(calls=1, measured=4, difference=2.0)),
    ):
        world.ledger.add_shadow("growth.churn", 2, since, against, counts)
    shadow = reader.get("/deployments/growth.churn/traffic").json()["shadow"]
    assert (shadow["version"], shadow["against"]) == (
        2,
        [
            {"version": 1, "calls": 3, "rows": 10, "agreed": 0.9, "difference": None},
            {"version": 3, "calls": 1, "rows": 4, "agreed": None, "difference": 0.5},
        ],
    )


# --- recipes -----------------------------------------------------------------------


def test_a_recipe_comes_with_the_form_to_order_it(world: World) -> None:
    listed = world("growth/read").get("/recipes").json()
    names = {item["name"]: item["digest"] for item in listed["items"]}
    assert {"tabular-auto", "tabular-fast", "tabular-neural"} <= set(names)
    assert listed["broken"] == []
    form = world().get("/recipes/tabular-fast").json()
    assert form["recipe"]["digest"] == names["tabular-fast"]
    fields = form["request_schema"]["properties"]
    assert fields["recipe"]["const"] == "tabular-fast"
    assert fields["families"]["anyOf"][0]["items"]["enum"] == form["recipe"]["families"]
    assert set(form["family_spaces"]["binary"]) <= set(form["recipe"]["families"])
    assert world().get(f"/recipes/tabular-fast@{names['tabular-fast'][:12]}").status_code == 200
    error_of(world().get("/recipes/tabular-fast@00000000"), 404)
    assert "Did you mean 'tabular-fast'?" in error_of(world().get("/recipes/tabular-fist"), 404)["message"]


@pytest.mark.parametrize("validation", [TimeSplit(column="day", gap=10), GroupSplit(column="shop")])
def test_the_form_offers_no_way_around_a_recipes_time_or_group(validation: TimeSplit | GroupSplit) -> None:
    schema = request_schema(Recipe(name="any", title="Any", families=("linear",), validation=validation))
    core, parts = schema["properties"]["validation"]["anyOf"][0], schema["$defs"]
    assert list(core["discriminator"]["mapping"]) == [validation.kind]
    assert core["oneOf"] == [{"$ref": core["discriminator"]["mapping"][validation.kind]}]
    own = parts[type(validation).__name__]["properties"]
    assert own["column"]["const"] == validation.column
    fields = {path: field for path, field in request_fields(schema).items() if path.startswith("validation.")}
    assert fields["validation.kind"].choices == (validation.kind,)
    if isinstance(validation, TimeSplit):
        assert (fields["validation.gap"].low, fields["validation.gap"].default) == (10, 10)
    assert set(fields) <= {"validation.kind", "validation.column", "validation.gap"}


def test_a_broken_recipe_hides_no_other(make_world: Any, tmp_path: Any) -> None:
    world = make_world(recipes=tmp_path / "recipes")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "bad.yaml").write_text("name: bad\n")
    (tmp_path / "recipes" / "good.yaml").write_text("{name: good, title: Good, families: [linear]}")
    listed = world().get("/recipes").json()
    assert [item["name"] for item in listed["items"]] == ["good"]
    assert [item["name"] for item in listed["broken"]] == ["bad"]
    error_of(world().get("/recipes/bad"), 400)
