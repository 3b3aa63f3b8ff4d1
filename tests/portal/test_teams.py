"""Teams, people, tokens, shares, usage and the audit log over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from factory.ledger.moments import now
from factory.spec import Actor, Trial
from tests.answers import error_of
from tests.portal.conftest import Client, MakeWorld, World, fields_of

ANN = Actor(who="ann")


def items(client: Client, url: str, **query: Any) -> list[dict[str, Any]]:
    response = client.get(url, params=query)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["items"]
    return found


# --- teams -----------------------------------------------------------------------


def test_an_operator_makes_teams_and_a_team_sees_itself(world: World) -> None:
    made = world("operator").post("/teams", json={"name": "sales", "quota": {"cpus": 2}})
    assert made.status_code == 201
    assert (made.json()["title"], made.json()["quota"]["cpus"]) == ("sales", 2)
    error_of(world("operator").post("/teams", json={"name": "sales"}), 409)
    assert [team["name"] for team in items(world("operator"), "/teams")] == ["growth", "risk", "sales"]
    assert [team["name"] for team in items(world("growth/read"), "/teams")] == ["growth"]
    assert world("growth/read").get("/teams/growth").json()["name"] == "growth"
    for name in ("risk", "nobody"):
        error = error_of(world("growth/admin").get(f"/teams/{name}"), 404)
        assert error["message"] == f"There is no team '{name}'."


def test_a_change_is_made_to_what_was_seen(world: World) -> None:
    operator = world("operator")
    seen = operator.get("/teams/growth")
    tag = seen.headers["etag"]
    first = operator.patch("/teams/growth", json={"quota": {"cpus": 8}}, headers={"if-match": tag})
    assert first.json()["quota"]["cpus"] == 8
    assert first.headers["etag"] != tag
    error = error_of(operator.patch("/teams/growth", json={"title": "X"}, headers={"if-match": tag}), 412)
    assert error["code"] == "precondition_failed"
    for header in ("*", first.headers["etag"], f'"other", {first.headers["etag"]}'):
        assert operator.patch("/teams/growth", json={}, headers={"if-match": header}).status_code == 200
    assert operator.patch("/teams/growth", json={"title": "Growth!"}).json()["title"] == "Growth!"
    for header in ("x", f"W/{first.headers['etag']}", '""'):
        error = error_of(operator.patch("/teams/growth", json={}, headers={"if-match": header}), 412)
        assert fields_of(error) == {"If-Match"}


def test_a_change_at_the_same_moment_is_told_as_such(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = world("operator").get("/teams/growth").headers["etag"]
    ledger = world.app.state.portal.ledger
    change = type(ledger).change_team

    def overtaken(self: Any, name: str, **arguments: Any) -> Any:
        monkeypatch.undo()
        change(self, name, title="Theirs", by=ANN)
        return change(self, name, **arguments)

    monkeypatch.setattr(type(ledger), "change_team", overtaken)
    error_of(world("operator").patch("/teams/growth", json={"title": "X"}, headers={"if-match": tag}), 412)
    assert world.ledger.team("growth").title == "Theirs"


def test_a_teams_admin_changes_its_title_and_not_its_quota(world: World) -> None:
    admin = world("growth/admin")
    assert admin.patch("/teams/growth", json={"title": "Growth and more"}).status_code == 200
    assert fields_of(error_of(admin.patch("/teams/growth", json={"quota": {"cpus": 100}}), 403)) == {"/quota"}
    error_of(admin.patch("/teams/risk", json={"title": "X"}), 404)
    assert fields_of(error_of(admin.patch("/teams/growth", json={"titel": "X"}), 400)) == {"/titel"}


def test_an_archived_team_is_shut_out_and_keeps_what_it_made(world: World) -> None:
    request_id = world.submitted("risk")
    assert world("operator").post("/teams/risk/archive").json()["archived_at"] is not None
    error_of(world("operator").post("/teams/risk/archive"), 409)
    error_of(world("risk/admin").get("/teams"), 401)
    assert world("operator").get(f"/requests/{request_id}").status_code == 200
    assert [team["name"] for team in items(world("operator"), "/teams")] == ["growth"]
    assert [team["name"] for team in items(world("operator"), "/teams", archived=True)] == ["growth", "risk"]


def test_people_are_added_changed_and_removed(world: World) -> None:
    admin = world("growth/admin")
    url = "/teams/growth/members/auth0%7C17"
    assert admin.put(url, json={"email": "ann@example.com", "scopes": ["read"]}).status_code == 200
    assert admin.put(url, json={"scopes": ["submit", "read"]}).json()["scopes"] == ["read", "submit"]
    assert [member["subject"] for member in items(admin, "/teams/growth/members")] == ["auth0|17"]
    assert "/scopes/0" in fields_of(error_of(admin.put(url, json={"scopes": ["root"]}), 400))
    error_of(admin.put(url.replace("growth", "risk"), json={"scopes": ["read"]}), 404)
    error_of(admin.get("/teams/risk/members"), 404)
    assert admin.delete(url).status_code == 204
    error_of(admin.delete(url), 404)


# --- tokens ----------------------------------------------------------------------


def test_a_token_is_made_shown_once_and_does_what_it_may(world: World) -> None:
    admin = world("growth/admin")
    response = admin.post("/tokens", json={"name": "ci", "scopes": ["submit", "read"]})
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    made = response.json()
    ci = Client(world.app, made["secret"])
    me = ci.get("/me").json()
    assert (me["team"], me["scopes"], me["token_id"]) == ("growth", ["read", "submit"], made["token"]["id"])
    assert ci.post("/requests", json=world.order()).status_code == 202
    error_of(ci.get("/tokens"), 403)
    listed = items(admin, "/tokens")
    assert made["token"]["id"] in [token["id"] for token in listed]
    assert {token["team"] for token in listed} == {"growth"}
    assert made["secret"] not in admin.get("/tokens").text


def test_a_teams_admin_makes_tokens_of_its_team_only(world: World) -> None:
    admin = world("growth/admin")
    error_of(admin.post("/tokens", json={"name": "x", "scopes": ["read"], "team": "risk"}), 404)
    body = {"name": "x", "scopes": ["read"], "all_teams": True}
    assert fields_of(error_of(admin.post("/tokens", json=body), 403)) == {"/all_teams"}
    theirs = world.ledger.tokens(team="risk")[0].id
    for method, url in [("GET", ""), ("DELETE", ""), ("POST", "/rotate")]:
        error = error_of(admin(method, f"/tokens/{theirs}{url}"), 404)
        nothing = error_of(admin(method, f"/tokens/t-nothing{url}"), 404)
        assert error["message"].replace(theirs, "X") == nothing["message"].replace("t-nothing", "X")
    error_of(admin.get("/tokens", params={"team": "risk"}), 404)


def test_an_operator_makes_tokens_of_any_team_and_of_all(world: World) -> None:
    operator = world("operator")
    of_risk = operator.post("/tokens", json={"name": "x", "scopes": ["read"], "team": "risk"}).json()
    assert of_risk["token"]["team"] == "risk"
    of_all = operator.post("/tokens", json={"name": "x", "scopes": ["read"], "all_teams": True}).json()
    assert of_all["token"]["team"] is None
    assert len(items(Client(world.app, of_all["secret"]), "/teams")) == 2
    error_of(Client(world.app, of_all["secret"]).post("/teams", json={"name": "y"}), 403)
    error_of(operator.post("/tokens", json={"name": "x", "scopes": ["read"]}), 404)
    error_of(operator.post("/tokens", json={"name": "x", "scopes": ["read"], "team": "nobody"}), 404)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["root"]}, "/scopes/0"),
        ({"name": ""}, "/name"),
        ({"expires": "2020-01-01T00:00:00Z"}, "/expires"),
        ({"expires": "2030-01-01T00:00:00"}, "/expires"),
        ({"expires": 1893456000}, "/expires"),
        ({"name": "a\u0007b"}, "/name"),
        ({"secret": "mine"}, "/secret"),
    ],
)
def test_tokens_that_cannot_be_made(change: dict[str, Any], field: str, world: World) -> None:
    body = {"name": "ci", "scopes": ["read"]} | change
    assert field in fields_of(error_of(world("growth/admin").post("/tokens", json=body), 400))


def test_a_token_rotates_and_revokes_itself_at_once(world: World) -> None:
    expires = (now() + timedelta(days=1)).isoformat()
    body = {"name": "ci", "scopes": ["submit"], "expires": expires}
    first = world("growth/admin").post("/tokens", json=body).json()
    old = Client(world.app, first["secret"])
    second = old.post(f"/tokens/{first['token']['id']}/rotate").json()
    assert "revoked" in error_of(old.get("/me"), 401)["message"]
    new = Client(world.app, second["secret"])
    assert new.get("/me").json()["scopes"] == ["submit"]
    assert new.get(f"/tokens/{second['token']['id']}").json()["expires"] is not None
    error_of(new.get(f"/tokens/{first['token']['id']}"), 404)
    assert new.delete(f"/tokens/{second['token']['id']}").json()["revoked_at"] is not None
    error_of(new.get("/me"), 401)
    actions = [row.action for row in world.ledger.audit_page(limit=3).items]
    assert actions == ["token.revoke", "token.rotate", "token.issue"]


# --- shares ----------------------------------------------------------------------


def test_what_is_shared_is_seen_until_it_is_no_more(world: World) -> None:
    request_id = world.submitted()
    wish = {"kind": "request", "subject": request_id, "with_team": "risk"}
    assert world().post("/shares", json=wish).status_code == 201
    assert world("risk/read").get(f"/requests/{request_id}").status_code == 200
    (share,) = items(world("growth/read"), "/shares", kind="request", subject=request_id)
    assert (share["team"], share["with_team"]) == ("growth", "risk")
    assert items(world("risk/read"), "/shares", kind="request", subject=request_id) == []
    assert world().delete("/shares", params=wish).status_code == 204
    error_of(world("risk/read").get(f"/requests/{request_id}"), 404)
    assert [row.action for row in world.ledger.audit_page(limit=2).items] == ["unshare", "share"]


def test_only_ones_own_is_shared_and_with_those_that_there_are(world: World) -> None:
    theirs = world.submitted("risk")
    error_of(world().post("/shares", json={"kind": "request", "subject": theirs, "with_team": "*"}), 404)
    mine = world.submitted()
    for name in ("nobody", "risc"):
        body = {"kind": "request", "subject": mine, "with_team": name}
        assert "risk" not in error_of(world().post("/shares", json=body), 404)["message"]
    error_of(world().post("/shares", json={"kind": "request", "subject": mine, "with_team": "growth"}), 400)
    error_of(world("operator").post("/shares", json={"kind": "request", "subject": mine, "with_team": "risk"}), 400)
    body = {"kind": "request", "subject": mine, "with_team": "risk", "team": "growth"}
    assert world("operator").post("/shares", json=body).status_code == 201
    error_of(world().get("/shares", params={"kind": "requests", "subject": mine}), 400)


# --- usage and audit ---------------------------------------------------------------


def test_usage_is_told_with_its_cost(make_world: MakeWorld) -> None:
    world = make_world(cpu_hour=3600.0, gb_hour=0.0, currency="EUR")
    for team in ("growth", "risk"):
        request_id = world.submitted(team)
        trial = Trial(number=0, family="linear", parameters={}, state="succeeded", cost_s=7.5, score=0.8)
        world.ledger.record_trial(request_id, trial)
    world.ledger.admit(request_id)
    (mine,) = items(world("growth/read"), "/usage")
    assert (mine["team"], mine["trials"], mine["trial_s"], mine["cost"]) == ("growth", 1, 7.5, 0.0)
    growth, risk = items(world("operator"), "/usage")
    assert (growth["team"], risk["team"], risk["currency"]) == ("growth", "risk", "EUR")
    assert risk["cost"] == pytest.approx(risk["cpu_s"], abs=0.001)
    assert items(world("operator"), "/usage", team="risk", month="2020-01") == []
    error_of(world().get("/usage", params={"month": "2026-13"}), 400)
    error_of(world().get("/usage", params={"team": "risk"}), 404)


def test_what_each_variant_costs_is_told_the_costliest_first(make_world: MakeWorld) -> None:
    world = make_world(cpu_hour=36.0, gb_hour=0.0, currency="EUR")
    for name, n_trials in (("churn", 1), ("upsell", 2), ("idle", 0)):
        request_id = world.submitted(name=name)
        for number in range(n_trials):
            trial = Trial(number=number, family="linear", parameters={}, state="succeeded", cost_s=7.5, score=0.8)
            world.ledger.record_trial(request_id, trial)
        if name == "upsell":
            world.ledger.admit(request_id)
    upsell, churn = items(world("growth/read"), "/usage/variants")
    assert (upsell["variant"], upsell["requests"], upsell["trials"]) == ("growth.upsell", 1, 2)
    assert (churn["variant"], churn["requests"], churn["trial_s"], churn["cost"]) == ("growth.churn", 0, 7.5, 0.0)
    (whole,) = items(world("growth/read"), "/usage")
    assert whole["cost"] == pytest.approx(upsell["cost"] + churn["cost"], abs=0.01)
    assert [one["variant"] for one in items(world("growth/read"), "/usage/variants", limit=1)] == ["growth.upsell"]
    assert items(world("operator"), "/usage/variants", team="growth", month="2020-01") == []
    error_of(world("operator").get("/usage/variants"), 400)
    error_of(world("risk/read").get("/usage/variants", params={"team": "growth"}), 404)


def test_the_audit_log_is_a_teams_own(world: World) -> None:
    world.submitted()
    world.submitted("risk")
    mine = items(world("growth/admin"), "/audit")
    assert {row["team"] for row in mine} == {"growth"}
    assert mine[0]["action"] == "request.submit"
    everything = items(world("operator"), "/audit", limit=200)
    assert {row["team"] for row in everything} == {None, "growth", "risk"}
    assert [row["id"] for row in everything] == list(range(len(everything), 0, -1))
    assert len(items(world("operator"), "/audit", action="request.submit", team="risk")) == 1
    error_of(world("growth/admin").get("/audit", params={"team": "risk"}), 404)
