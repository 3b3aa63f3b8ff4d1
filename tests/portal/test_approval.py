"""Promotions that a second person has to approve, over HTTP: no way around, and each step in the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.ledger import AuditQuery
from factory.spec import Actor
from tests.answers import error_of
from tests.portal.conftest import SETUP, Client, MakeWorld, World, fields_of

WHY = {"why": "Seen."}
PROMOTE = {"version": 1, "why": "Better."}


pytestmark = pytest.mark.usefixtures("mirror")


@pytest.fixture
def world(make_world: MakeWorld, tmp_path: Path) -> World:
    """A portal with a variant whose recipe asks for approval."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name, asks in (("careful", "true"), ("tabular-auto", "false")):
        (recipes / f"{name}.yaml").write_text(f"{{name: {name}, title: T, families: [linear], approval: {asks}}}")
    world = make_world(recipes=recipes)
    world.made(recipe="careful")
    return world


def second(world: World, *scopes: str) -> Client:
    """Return another member of the team, whose token an operator has made."""
    issued = world.ledger.issue_token("second", team="growth", scopes=scopes or ("read", "deploy"), by=SETUP)  # type: ignore[arg-type]
    return Client(world.app, issued.secret)


def proposed(world: World, who: str = "growth/deploy") -> str:
    response = world(who).post("/variants/growth.churn/promote", json=PROMOTE)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/api/v1/proposals/{response.json()['id']}"
    proposal_id: str = response.json()["id"]
    return proposal_id


def served(world: World) -> list[tuple[str, int]]:
    return [(row.as_, row.version) for row in world.ledger.deployment("growth.churn")]


def test_another_member_approves_and_callers_get_it(world: World, mirror: list[tuple[str, str, int | None]]) -> None:
    proposal_id = proposed(world)
    assert (served(world), mirror) == ([], [])
    assert proposed(world) == proposal_id
    (item,) = world("growth/read").get("/proposals", params={"state": "open"}).json()["items"]
    assert (item["id"], item["why"], item["wish"]) == (proposal_id, "Better.", {"as": "champion", "percent": None})
    response = second(world).post(f"/proposals/{proposal_id}/approve", json=WHY)
    assert (response.status_code, response.json()["state"]) == (200, "approved")
    assert (served(world), mirror) == ([("champion", 1)], [("growth.churn", "champion", 1)])
    assert world("growth/read").get(f"/proposals/{proposal_id}").json() == response.json()
    rows = world.ledger.audit_page(AuditQuery(subject="growth.churn"), sort="id").items
    assert [row.action for row in rows] == [
        "promotion.propose",
        "alias.set",
        "deployment.set",
        "promotion.approve",
    ]
    assert (rows[0].who, rows[0].origin) == (item["proposed_by"], "10.0.0.7")
    assert world("growth/deploy").post("/variants/growth.churn/promote", json=PROMOTE).status_code == 200


def test_whoever_proposes_does_not_approve(world: World) -> None:
    proposal_id = proposed(world, "growth/admin")
    admin = world("growth/admin")
    helper = admin.post("/tokens", json={"name": "me", "scopes": ["deploy"]}).json()
    for client in (admin, Client(world.app, helper["secret"])):
        error = error_of(client.post(f"/proposals/{proposal_id}/approve", json=WHY), 409)
        assert fields_of(error) == {"decided_by"}
    error_of(world("growth/submit").post(f"/proposals/{proposal_id}/approve", json=WHY), 403)
    assert served(world) == []
    assert admin.post(f"/proposals/{proposal_id}/reject", json=WHY).json()["state"] == "rejected"
    error_of(second(world).post(f"/proposals/{proposal_id}/approve", json=WHY), 409)
    assert served(world) == []


def test_there_is_no_way_around(world: World) -> None:
    deployer = world("growth/deploy")
    for change in ({"version": 1}, {"version": 1, "as": "canary", "percent": 99}):
        error = error_of(deployer.put("/deployments/growth.churn", json=change), 409)
        assert "approved by a second person" in error["message"]
    error = error_of(deployer.post("/variants/growth.churn/promote", json=PROMOTE | {"override": True}), 403)
    assert error["details"] == [{"field": "scope", "message": "admin"}]
    assert served(world) == []
    for kind in ("challenger", "shadow"):
        assert deployer.put("/deployments/growth.churn", json={"version": 1, "as": kind}).status_code == 200
    assert {kind for kind, _ in served(world)} == {"challenger", "shadow"}


def test_an_emergency_is_an_admins_and_recorded_as_one(world: World, mirror: list[tuple[str, str, int | None]]) -> None:
    proposal_id = proposed(world)
    admin = world("growth/admin")
    error_of(admin.post("/variants/growth.churn/promote", json={"version": 1, "override": True}), 400)
    body = {"version": 1, "why": "The old one answers nonsense.", "override": True}
    assert admin.post("/variants/growth.churn/promote", json=body).json()["aliases"] == ["champion"]
    assert mirror == [("growth.churn", "champion", 1)]
    assert admin.get(f"/proposals/{proposal_id}").json()["state"] == "overridden"
    (row,) = admin.get("/audit", params={"action": "promotion.override"}).json()["items"]
    assert (row["detail"]["why"], row["detail"]["version"]) == ("The old one answers nonsense.", 1)
    assert row["who"].startswith("token:admin/")


@pytest.mark.parametrize("asked", ["then", "today"])
def test_the_recipe_counts_as_it_was_and_as_it_is(asked: str, world: World, tmp_path: Path) -> None:
    file = tmp_path / "recipes" / "tabular-auto.yaml"
    world.made(approval=asked == "then")
    if asked == "today":
        file.write_text(file.read_text().replace("approval: false", "approval: true"))
    else:
        file.unlink()
    body = {"version": 2, "why": "x"}
    assert world("growth/deploy").post("/variants/growth.churn/promote", json=body).status_code == 202


def test_a_rollback_is_not_held_up(world: World) -> None:
    second(world).post(f"/proposals/{proposed(world)}/approve", json=WHY)
    world.made(recipe="careful")
    response = world("growth/deploy").post("/variants/growth.churn/promote", json={"version": 2, "why": "x"})
    second(world).post(f"/proposals/{response.json()['id']}/approve", json=WHY)
    assert served(world) == [("champion", 2)]
    rolled = world("growth/deploy").post("/variants/growth.churn/rollback", json={"why": "Slow."})
    assert (rolled.status_code, served(world)) == (200, [("champion", 1)])


def test_an_approval_that_mlflow_missed_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.errors import ServiceFault
    from factory.operate import promotion

    class Gone(promotion.Registry):  # type: ignore[name-defined, misc]
        def set_alias(self, *_: object) -> None:
            raise ServiceFault("MLflow does not answer.", hint="Try again.")

    proposal_id, client = proposed(world), second(world)
    with monkeypatch.context() as patch:
        patch.setattr("factory.operate.promotion.Registry", Gone)
        error_of(client.post(f"/proposals/{proposal_id}/approve", json=WHY), 503)
    assert client.post(f"/proposals/{proposal_id}/approve", json=WHY).status_code == 200
    error_of(second(world).post(f"/proposals/{proposal_id}/approve", json=WHY), 409)
    assert len(world.ledger.alias_history("growth.churn")) == 1


def test_a_proposal_of_another_team_does_not_exist(world: World) -> None:
    proposal_id = proposed(world)
    theirs = world("risk/admin")
    assert theirs.get("/proposals").json()["items"] == []
    world.ledger.share("variant", "growth.churn", team="growth", with_team="risk", by=Actor(who="ann"))
    for method, url in [("GET", ""), ("POST", "/approve"), ("POST", "/reject")]:
        arguments = {"json": WHY} if method == "POST" else {}
        mine = error_of(theirs(method, f"/proposals/{proposal_id}{url}", **arguments), 404)
        nobodys = error_of(theirs(method, f"/proposals/p-none{url}", **arguments), 404)
        assert mine["message"].replace(proposal_id, "X") == nobodys["message"].replace("p-none", "X")
    error_of(theirs.get("/proposals", params={"team": "growth"}), 404)
    assert len(world("operator").get("/proposals").json()["items"]) == 1


@pytest.mark.parametrize("body", [{}, {"why": ""}, {"why": "x" * 1001}, {"why": 1}, {"why": "x", "force": True}])
def test_decisions_that_are_none(body: dict[str, Any], world: World) -> None:
    proposal_id = proposed(world)
    error_of(second(world).post(f"/proposals/{proposal_id}/approve", json=body), 400)
    assert world.ledger.proposal(proposal_id).state == "open"
