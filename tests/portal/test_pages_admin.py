"""Pages of those who run a team or the factory: queue and priorities, teams and quotas, every change."""

from __future__ import annotations

import pytest

from factory.spec import RequestState
from tests.answers import error_of
from tests.portal.conftest import SETUP, World
from tests.portal.test_pages import Visitor


def test_the_queue_shows_what_waits_by_priority_and_an_admin_changes_it(world: World) -> None:
    first, second = world.submitted(name="first"), world.submitted(name="second")
    admin = Visitor(world).signed_in("growth/admin")
    page = admin.get("/queue")
    assert page.text.index("growth.first") < page.text.index("growth.second")
    answer = admin.post(f"/queue/{second}/priority", csrf=page.csrf, priority="high")
    assert answer.response.headers["location"] == "/queue"
    page = admin.get("/queue")
    assert page.text.index("growth.second") < page.text.index("growth.first")
    assert world.ledger.request(second).priority == "high"
    assert world.ledger.request(first).priority == "normal"
    told = world.ledger.events(second)[-1]
    assert (told.kind, told.state) == ("priority", RequestState.QUEUED)
    assert "high instead of normal" in told.message
    assert [row.action for row in world.ledger.audit_page(limit=1).items] == ["request.priority"]
    assert world.ledger.verify_events(second) is None


def test_the_queue_shows_who_holds_what_of_the_cluster(world: World) -> None:
    ours, theirs = world.submitted(), world.submitted("risk")
    for one, cpus in ((ours, 1), (theirs, 2)):
        world.ledger.admit(one, cpus=cpus, memory_gb=4)
    found = world("growth/read").get("/cluster").json()
    assert found["answers"]
    assert found["held"] == {"cpus": 3, "gpus": 0, "memory_gb": 8}
    assert [(one["team"], one["held"]["cpus"]) for one in found["teams"]] == [("growth", 1)]
    assert [one["team"] for one in world("operator").get("/cluster").json()["teams"]] == ["growth", "risk"]
    assert ", 1 by your team" in Visitor(world).signed_in().get("/queue").text
    assert "/team?name=risk" in Visitor(world).signed_in("operator").get("/queue").text
    quiet = Visitor(world).signed_in("risk/submit").get("/queue").text
    assert "/team?name=" not in quiet.split("<main")[1]


def test_who_is_no_admin_sees_the_queue_and_changes_nothing(world: World) -> None:
    request_id = world.submitted()
    visitor = Visitor(world).signed_in()
    page = visitor.get("/queue")
    assert "growth.churn" in page.text
    assert "<form" not in page.text.split("<main", 1)[1].split("</main>")[0]
    csrf = visitor.get("/new").csrf
    assert visitor.post(f"/queue/{request_id}/priority", csrf=csrf, priority="high").response.status_code == 403
    assert Visitor(world).signed_in("risk/admin").get("/queue").text.count("growth.churn") == 0


def test_a_priority_is_changed_while_it_waits_only(world: World) -> None:
    request_id = world.submitted()
    admin = world("growth/admin")
    assert admin.put(f"/requests/{request_id}/priority", json={"priority": "low"}).json()["priority"] == "low"
    n_events = len(world.ledger.events(request_id))
    assert admin.put(f"/requests/{request_id}/priority", json={"priority": "low"}).status_code == 200
    assert len(world.ledger.events(request_id)) == n_events, "made again it changes nothing"
    error_of(admin.put(f"/requests/{request_id}/priority", json={"priority": "urgent"}), 400)
    world.ledger.admit(request_id)
    world.ledger.advance(request_id, RequestState.PREPARING, "Begins.")
    assert (
        "preparing"
        in error_of(admin.put(f"/requests/{request_id}/priority", json={"priority": "high"}), 409)["message"]
    )
    error_of(world("risk/admin").put(f"/requests/{request_id}/priority", json={"priority": "high"}), 404)


def test_an_operator_makes_a_team_and_changes_its_quota(world: World) -> None:
    operator = Visitor(world).signed_in("operator")
    page = operator.get("/team")
    answer = operator.post("/teams", csrf=page.csrf, name="sales", title="Sales", cpus="2,5", requests="3")
    assert answer.response.headers["location"] == "/team?name=sales"
    assert (world.ledger.team("sales").quota.cpus, world.ledger.team("sales").quota.requests) == (2.5, 3)
    page = operator.get("/team?name=sales")
    assert 'name="cpus" inputmode="decimal" autocomplete="off" value="2.5"' in page.text
    operator.post("/team/sales/quota", csrf=page.csrf, cpus="4", weight="2")
    assert (world.ledger.team("sales").quota.cpus, world.ledger.team("sales").quota.weight) == (4, 2)
    assert world.ledger.team("sales").quota.requests is None
    wrong = operator.post("/team/sales/quota", csrf=page.csrf, cpus="many")
    assert wrong.response.status_code == 400
    assert world.ledger.team("sales").quota.cpus == 4


def test_an_operator_who_orders_makes_the_team_on_the_way(world: World) -> None:
    operator = Visitor(world).signed_in("operator")
    page = operator.get("/new")
    assert "Make a team" in page.text
    made = operator.post("/teams", csrf=page.csrf, name="sales", then="order")
    assert made.response.headers["location"] == "/new?team=sales"
    assert "What shall it learn from?" in operator.get("/new?team=sales").text
    for name in ("growth", "risk", "sales"):
        world.ledger.archive_team(name, by=SETUP)
    assert "First, make a team" in operator.get("/new").text


def test_changes_are_filtered_and_of_ones_own_team(world: World) -> None:
    world.ledger.create_team("sales", title="Sales", by=SETUP)
    operator = Visitor(world).signed_in("operator").get("/audit?action=team.create")
    assert "sales" in operator.text
    assert "token.issue" not in operator.text.split("<tbody>")[1]
    assert "sales" not in Visitor(world).signed_in("growth/admin").get("/audit").text.split("<main")[1]
    assert Visitor(world).signed_in("growth/read").get("/audit").response.status_code == 403


@pytest.mark.parametrize("who", ["growth/submit", "operator"])
def test_the_menu_leads_to_the_queue(who: str, world: World) -> None:
    assert 'href="/queue"' in Visitor(world).signed_in(who).get("/").text
