"""Publishing recipes over HTTP: who may, whose they are, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.ledger import AuditQuery
from factory.search.plan import load_recipe
from factory.spec import Scope
from tests.answers import error_of
from tests.portal.conftest import SETUP, Client, World, fields_of, yaml_of
from tests.portal.test_pages import Visitor

RECIPE: dict[str, Any] = {"name": "churn-linear", "title": "Churn by a line", "families": ["constant", "linear"]}
YAML = {"content-type": "application/yaml"}


def author(world: World, team: str = "growth", *scopes: Scope) -> Client:
    issued = world.ledger.issue_token("author", team=team, scopes=scopes or ("read", "publish"), by=SETUP)
    return Client(world.app, issued.secret)


def test_a_published_recipe_can_be_ordered_by_every_team(world: World) -> None:
    response = author(world).put("/recipes/churn-linear", json=RECIPE)
    assert response.status_code == 200, response.text
    published = response.json()
    assert (published["owner"], response.headers["etag"]) == ("growth", f'"{published["digest"]}"')
    assert load_recipe("churn-linear", settings=world.settings).digest == published["digest"]
    assert published["name"] in {item["name"] for item in world("risk/read").get("/recipes").json()["items"]}
    pinned = f"churn-linear@{published['digest'][:12]}"
    assert world("risk/submit").post("/requests", json=world.order("risk", recipe=pinned)).status_code == 202
    (row,) = world("operator").get("/audit", params={"action": "recipe.publish"}).json()["items"]
    assert (row["subject"], row["team"], row["who"].split("/")[0]) == ("churn-linear", "growth", "token:author")
    document = RECIPE | {"owner": "growth"}
    told = {"digest": published["digest"], "before": None, "owner": "growth", "approval": False}
    assert row["detail"] == told | {"document": document}


def test_the_same_again_changes_nothing_and_another_one_replaces_it(world: World) -> None:
    first = author(world).put("/recipes/churn-linear", json=RECIPE).json()["digest"]
    assert author(world).put("/recipes/churn-linear", content=yaml_of(RECIPE), headers=YAML).json()["digest"] == first
    stale = {"if-match": '"another"'}
    error_of(author(world).put("/recipes/churn-linear", json=RECIPE | {"title": "New"}, headers=stale), 412)
    error_of(author(world).put("/recipes/new", json=RECIPE | {"name": "new"}, headers=stale), 412)
    fresh = {"if-match": f'"{first}"'}
    second = author(world).put("/recipes/churn-linear", json=RECIPE | {"title": "Größer"}, headers=fresh).json()
    assert second["digest"] != first
    rows = world.ledger.audit_page(AuditQuery(action="recipe.publish"), sort="id").items
    assert [(row.detail["before"], row.detail["digest"]) for row in rows] == [(None, first), (first, second["digest"])]
    assert list(world.settings.published_recipes.iterdir()) == [world.settings.published_recipes / "churn-linear.yaml"]


def test_a_team_publishes_its_own_only(world: World) -> None:
    author(world).put("/recipes/churn-linear", json=RECIPE)
    theirs = author(world, "risk", "read", "admin")
    for method in ("PUT", "DELETE"):
        arguments = {"json": RECIPE} if method == "PUT" else {}
        assert fields_of(error_of(theirs(method, "/recipes/churn-linear", **arguments), 409)) <= {"owner", "/owner"}
    shipped = RECIPE | {"name": "tabular-fast"}
    error_of(theirs.put("/recipes/tabular-fast", json=shipped), 409)
    error_of(author(world).put("/recipes/mine", json=RECIPE | {"name": "mine", "owner": "risk"}), 409)
    operator = world("operator")
    assert operator.put("/recipes/churn-linear", json=RECIPE | {"owner": "risk"}).json()["owner"] == "risk"
    assert theirs.put("/recipes/churn-linear", json=RECIPE | {"title": "Ours now"}).status_code == 200


def test_a_withdrawn_recipe_shows_the_one_below_again(world: World) -> None:
    operator = world("operator")
    before = operator.get("/recipes/tabular-fast").json()["recipe"]["digest"]
    assert operator.put("/recipes/tabular-fast", json=RECIPE | {"name": "tabular-fast"}).json()["digest"] != before
    assert operator.delete("/recipes/tabular-fast").status_code == 204
    assert operator.get("/recipes/tabular-fast").json()["recipe"]["digest"] == before
    error_of(operator.delete("/recipes/tabular-fast"), 409)
    error_of(operator.delete("/recipes/none"), 404)
    assert world.ledger.audit_page(limit=1).items[0].action == "recipe.withdraw"


def test_what_a_recipe_was_before_is_known(world: World) -> None:
    first = author(world).put("/recipes/churn-linear", json=RECIPE).json()["digest"]
    second = author(world).put("/recipes/churn-linear", json=RECIPE | {"title": "Another"}).json()["digest"]

    def versions(name: str) -> list[tuple[str, bool, bool]]:
        items = world("risk/read").get(f"/recipes/{name}/versions").json()["items"]
        return [(item["digest"], item["published"] is not None, item["current"]) for item in items]

    assert versions("churn-linear") == [(second, True, True), (first, True, False)]
    page = Visitor(world).signed_in().get("/recipes/churn-linear").text
    assert '<span class="bad">- title: Churn by a line</span>' in page
    assert '<span class="ok">+ title: Another</span>' in page
    author(world).put("/recipes/churn-linear", json=RECIPE)
    assert versions("churn-linear") == [(first, True, True), (second, True, False), (first, True, False)]
    author(world).delete("/recipes/churn-linear")
    assert [current for *_, current in versions("churn-linear")] == [False] * 3, "what was made by it can be looked up"

    shipped = world("operator").get("/recipes/tabular-fast").json()["recipe"]["digest"]
    assert versions("tabular-fast") == [(shipped, False, True)]
    assert "What it was before" not in Visitor(world).signed_in().get("/recipes/tabular-fast").text
    ours = world("operator").put("/recipes/tabular-fast", json=RECIPE | {"name": "tabular-fast"}).json()["digest"]
    assert versions("tabular-fast") == [(ours, True, True), (shipped, False, False)]
    for name in ("none", "..", "a%2fb"):
        error_of(world("growth/read").get(f"/recipes/{name}/versions"), 404)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"families": ["lightgmb"]}, "/families/0"),
        ({"families": []}, "/families"),
        ({"title": None}, "/title"),
        ({"name": "other"}, "/name"),
        ({"max_workers": "8"}, "/max_workers"),
        ({"command": "rm -rf /"}, "/command"),
        ({"spaces": {"linear": {"alpha": [0, 1e30]}}}, "/spaces/linear/alpha"),
    ],
)
def test_a_recipe_that_is_none_is_not_published(change: dict[str, Any], field: str, world: World) -> None:
    error = error_of(author(world).put("/recipes/churn-linear", json=RECIPE | change), 400)
    assert any(found.startswith(field) for found in fields_of(error)), error
    assert not world.settings.published_recipes.exists()
    assert world.ledger.audit_page(AuditQuery(action="recipe.publish")).items == ()


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fx", "a%2fb", "A", ".hidden", "a.yaml", "x" * 64])
def test_a_name_leads_to_no_other_folder(name: str, world: World) -> None:
    response = author(world).put(f"/recipes/{name}", json=RECIPE | {"name": name})
    assert response.status_code in (400, 404, 405)
    assert not world.settings.published_recipes.exists()


def test_a_disk_that_is_full_leaves_the_recipe_as_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = author(world).put("/recipes/churn-linear", json=RECIPE).json()["digest"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("factory.operate.publishing.os.fsync", full)
    response = author(world).put("/recipes/churn-linear", json=RECIPE | {"title": "New"})
    assert error_of(response, 503)["code"] == "storage_fault"
    assert str(world.settings.root) not in response.text
    assert world("growth/read").get("/recipes/churn-linear").json()["recipe"]["digest"] == first
    assert len(list(Path(world.settings.published_recipes).iterdir())) == 1
