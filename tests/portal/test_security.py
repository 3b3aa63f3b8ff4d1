"""What no other test of the portal asks: all routes at once, and what a caller could smuggle in or get out.

The list of threats, and which test is for which, is docs/security.md.
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from factory.ledger.moments import now
from factory.operate.json_logs import JsonLines
from factory.spec import BatchWish, DeploymentWish, Trial
from tests.answers import error_of
from tests.portal.conftest import SETUP, Client, World, fields_of
from tests.portal.test_identity import routes

EVERYBODYS = {
    *("list_recipes", "show_recipe", "list_recipe_versions", "publish_recipe", "withdraw_recipe", "end_sessions"),
    *("list_feature_services", "show_feature_service", "show_due_times"),
}
"""Routes of things that are no team's."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def all_routes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("routes"))
        return routes()


# --- isolation -----------------------------------------------------------------------


def test_no_route_tells_of_another_teams_things_or_changes_them(
    all_routes: dict[str, tuple[str, str]], world: World
) -> None:
    variant = world.made()
    request_id = world.submitted()
    world.ledger.record_trial(request_id, Trial(number=0, family="linear", parameters={}, state="succeeded", score=0.8))
    values = {
        "request_id": request_id,
        "digest": world.upload(),
        "name": variant.name,
        "version": "1",
        "proposal_id": world.ledger.propose(variant, DeploymentWish(), why="x", by=SETUP).id,
        "token_id": world.ledger.issue_token("theirs", team="growth", scopes=["read"], by=SETUP).record.id,
        "subject": "ann",
        "number": "1",
    }
    wish = BatchWish(team="growth", name="churn", variant=variant.name, path="/data/rows.csv")
    world.ledger.start_batch_run(world.ledger.create_batch(wish, anywhere=True, by=SETUP).name, by=SETUP)
    world.ledger.add_member("growth", "ann", scopes=["read"], by=SETUP)
    before = world.ledger.audit_page(limit=1).items[0].id
    bodies: dict[str, dict[str, Any]] = {
        "promote_variant": {"version": 1, "why": "x"},
        "roll_back_variant": {"why": "x"},
        "approve_proposal": {"why": "x"},
        "reject_proposal": {"why": "x"},
        "set_deployment": {"version": 1},
        "put_member": {"scopes": ["admin"]},
        "change_team": {"title": "Mine"},
        "set_priority": {"priority": "high"},
        "try_version": {"rows": [{}]},
    }
    queries = {"screen_dataset": {"target": "age"}}
    asked = 0
    for name, (method, path) in all_routes.items():
        if "{" not in path or name in EVERYBODYS or name == "archive_team":
            continue
        chosen = values | ({"name": "growth"} if path.startswith("/api/v1/teams/") else {})
        arguments = {"json": bodies[name]} if name in bodies else {}
        url = f"http://portal{path.format(**chosen)}"
        response = world("risk/admin")(method, url, params=queries.get(name), **arguments)
        assert response.status_code == 404, f"{name}: {response.status_code} {response.text}"
        asked += 1
    assert asked >= 25
    assert world.ledger.audit_page(limit=1).items[0].id == before


def test_no_list_shows_another_teams_things(all_routes: dict[str, tuple[str, str]], world: World) -> None:
    world.ledger.propose(world.made(), DeploymentWish(), why="of growth", by=SETUP)
    world.ledger.set_deployment("growth.churn", DeploymentWish(), version=1)
    world.submitted()
    for name, (method, path) in all_routes.items():
        if method == "GET" and "{" not in path and path.startswith("/api/v1/") and name not in EVERYBODYS:
            response = world("risk/admin").get(f"http://portal{path}", params={"kind": "variant", "subject": "x"})
            if response.status_code == 400:  # only the list of shares has these
                response = world("risk/admin").get(f"http://portal{path}")
            assert response.status_code == 200, f"{name}: {response.text}"
            assert "growth" not in response.text, name


# --- tokens --------------------------------------------------------------------------


def test_a_token_cannot_make_itself_last_longer(world: World) -> None:
    soon = now() + timedelta(hours=1)
    issued = world.ledger.issue_token("short", team="growth", scopes=["read"], expires=soon, by=SETUP)
    client = Client(world.app, issued.secret)
    path = f"/tokens/{issued.record.id}/rotate"
    error = error_of(client.post(path, json={"expires": "2099-01-01T00:00:00Z"}), 403)
    assert fields_of(error) == {"/expires"}
    earlier = (now() + timedelta(minutes=30)).isoformat()
    renewed = client.post(path, json={"expires": earlier}).json()
    assert renewed["token"]["expires"] is not None
    admin = world("growth/admin")
    longer = admin.post(f"/tokens/{renewed['token']['id']}/rotate", json={"expires": "2099-01-01T00:00:00Z"})
    assert longer.json()["token"]["expires"] == "2099-01-01T00:00:00Z"


def test_no_secret_is_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = world("growth/read").post("http://portal/auth/token", json={"token": world.secrets["growth/read"]})
    session = given.headers["set-cookie"].partition("=")[2].partition(";")[0]
    csrf = given.json()["csrf_token"]
    cookie = {"cookie": f"factory_session={session}", "x-csrf-token": csrf}
    assert world(None).get("http://portal/auth/session", headers=cookie).status_code == 200
    assert world(None).post("/requests", headers=cookie, json={"team": session}).status_code == 403
    world(None).get("http://portal/auth/callback?code=the-code&state=the-state")
    Client(world.app, "mvf_wrong-secret").get("/me")
    # What the tests' own client logs is not the portal's.
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    lines = "\n".join(JsonLines().format(record) for record in ours)
    assert "/auth/callback" in lines
    secrets = (session, csrf, world.secrets["growth/read"], "the-code", "the-state", "wrong-secret")
    assert [secret for secret in secrets if secret in lines] == []


# --- what is smuggled in ---------------------------------------------------------------

SQL = ["' OR '1'='1", "x'; DROP TABLE requests; --", "%", "_", '" OR ""="', "\\' OR 1=1 --"]


@pytest.mark.parametrize("text", SQL)
def test_texts_for_the_database_are_texts(text: str, world: World) -> None:
    request_id = world.submitted()
    reader, admin = world("growth/read"), world("growth/admin")
    for url, name in [("/requests", "variant"), ("/requests", "recipe"), ("/requests", "submitted_by")]:
        assert reader.get(url, params={name: text}).json()["items"] == []
    for url, name in [("/variants", "name"), ("/proposals", "name"), ("/datasets", "name")]:
        response = reader.get(url, params={name: text})
        assert response.status_code == 400 or response.json()["items"] == []
    for name in ("who", "subject", "action"):
        assert admin.get("/audit", params={name: text}).json()["items"] == []
    for place in ("requests", "variants", "proposals", "tokens"):
        error_of(admin.get(f"/{place}/{quote(text, safe='')}"), 404)
    error_of(Client(world.app, f"mvf_{text}").get("/me"), 401)
    assert [item["id"] for item in reader.get("/requests").json()["items"]] == [request_id]


PLACES = ["../../../../etc/passwd", "/etc/passwd", "..", ".", "....//", "a/../b", "\\..\\x", "x\x00.html", "~root"]


@pytest.mark.parametrize("text", PLACES)
def test_names_lead_to_no_file(text: str, world: World) -> None:
    client = world("growth/admin")
    name = quote(text, safe="").replace(".", "%2E")
    for url in [
        f"/recipes/{name}",
        f"/datasets/{name}",
        f"/requests/{name}/logs",
        f"/variants/{name}",
        f"/variants/{name}/versions/1/report",
        f"/deployments/{name}",
        f"/deployments/{name}/traffic",
        f"/deployments/{name}/history",
        f"/teams/{name}",
    ]:
        response = client.get(url)
        assert response.status_code in (400, 404), f"{url}: {response.status_code}"
        assert "root:" not in response.text
        error_of(response, response.status_code)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "portal@evil.example", ""])
def test_the_host_that_a_caller_names_is_told_to_nobody(host: str, world: World) -> None:
    headers = {"host": host, "x-forwarded-host": "evil.example", "x-forwarded-proto": "https"}
    for seed in range(2):
        response = world().post("/requests", json=world.order(seed=seed), headers=headers)
        assert response.headers["location"].startswith("/api/v1/requests/")
    page = world().get("/requests", params={"limit": 1}, headers=headers)
    assert page.headers["link"].startswith("</api/v1/requests?")
    assert "evil" not in str(page.headers) + page.text


@pytest.mark.parametrize("name", ["a\r\nset-cookie: x=1", "é\n", "<script>"])
def test_headers_of_a_call_do_not_come_back_as_headers(name: str, world: World) -> None:
    headers = {"x-request-id": name.encode("utf-8")}
    response = world("growth/read").get("/me", headers=headers)
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
    assert "set-cookie" not in response.headers


def test_what_is_shown_of_a_person_is_text(world: World) -> None:
    """Pages escape it; the API says that it is JSON and that nothing else may be made of it."""
    title = "<img src=x onerror=alert(1)>"
    response = world("growth/admin").patch("/teams/growth", json={"title": title})
    assert response.json()["title"] == title
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


# --- the list itself ---------------------------------------------------------------------


def test_every_test_that_the_list_of_threats_names_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) >= 30
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page):
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(), flags=re.MULTILINE), f"{file}::{test}"
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+`", row)] == []
