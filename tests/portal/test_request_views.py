"""Requests over HTTP once they are there: listed, shown, cancelled, tried again; and quotes."""

from __future__ import annotations

from typing import Any

import pytest

from factory.errors import InvalidData
from factory.ledger import Upload
from factory.spec import Actor, Trial
from factory.testing.jobs import FakeJobs
from tests.answers import error_of
from tests.portal.conftest import MakeWorld, World, fields_of

ANN = Actor(who="ann")


# --- listing and showing -----------------------------------------------------------


def test_lists_come_in_pages_that_link_to_the_next(world: World) -> None:
    ids = [world.submitted(seed=seed) for seed in range(5)]
    seen, url, n_pages = [], "/requests?limit=2&state=queued&state=received", 0
    while url:
        response = world("growth/read").get(url)
        seen += [item["id"] for item in response.json()["items"]]
        n_pages += 1
        following = response.links.get("next", {}).get("url", "")
        assert ("cursor=" in following) == (response.json()["next"] is not None)
        url = following.removeprefix("/api/v1")
    assert (seen, n_pages) == (ids[::-1], 3)


def test_lists_are_filtered_and_sorted(world: World) -> None:
    ids = [world.submitted(name=name) for name in ("churn", "spend", "churn")]
    world.ledger.request_cancel(ids[0], by=ANN)
    reader = world("growth/read")

    def found(**query: Any) -> list[str]:
        response = reader.get("/requests", params=query)
        assert response.status_code == 200, response.text
        return [item["id"] for item in response.json()["items"]]

    assert found(variant="growth.churn", sort="created") == [ids[0], ids[2]]
    assert found(state="cancelled") == [ids[0]]
    assert found(recipe="tabular-fast") == found(door="cli") == []
    assert found(created_before="2020-01-01T00:00:00Z") == []
    assert found(team="growth") == ids[::-1]
    error_of(reader.get("/requests", params={"team": "risk"}), 404)
    everybody = world("operator").get("/requests", params={"team": "growth"}).json()["items"]
    assert len(everybody) == 3


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("sort=name", "sort"),
        ("state=done", "state.0"),
        ("cursor=nonsense", "cursor"),
        ("created_from=yesterday", "created_from"),
        ("created_from=2026-01-01T00:00:00", "created_from"),
        ("statee=queued", "statee"),
    ],
)
def test_parameters_that_are_wrong_are_named(query: str, field: str, world: World) -> None:
    assert fields_of(error_of(world().get(f"/requests?{query}"), 400)) == {field}


def test_a_cursor_of_another_list_is_refused(world: World) -> None:
    for seed in range(3):
        world.submitted(seed=seed)
    cursor = world().get("/requests?limit=1").json()["next"]
    error_of(world().get("/requests", params={"cursor": cursor, "state": "queued"}), 400)
    error_of(world().get("/datasets", params={"cursor": cursor}), 400)


def test_a_request_of_another_team_does_not_exist(world: World) -> None:
    mine = world.submitted()
    theirs = world("risk/admin")
    for method, url in [
        ("GET", f"/requests/{mine}"),
        ("GET", f"/requests/{mine}/trials"),
        ("GET", f"/requests/{mine}/attempts"),
        ("GET", f"/requests/{mine}/events"),
        ("GET", f"/requests/{mine}/logs"),
        ("POST", f"/requests/{mine}/cancel"),
        ("POST", f"/requests/{mine}/retry"),
    ]:
        error = error_of(theirs(method, url), 404)
        nothing = error_of(theirs(method, url.replace(mine, "r-nothing")), 404)
        assert error["message"].replace(mine, "X") == nothing["message"].replace("r-nothing", "X")
    assert theirs.get("/requests").json()["items"] == []
    assert world.ledger.request(mine).cancel_requested_at is None


def test_a_shared_request_is_read_and_not_changed(world: World) -> None:
    mine = world.submitted()
    world.ledger.share("request", mine, team="growth", with_team="risk", by=ANN)
    theirs = world("risk/admin")
    assert theirs.get(f"/requests/{mine}").json()["id"] == mine
    assert [item["id"] for item in theirs.get("/requests").json()["items"]] == [mine]
    assert theirs.get("/requests", params={"shared": "false"}).json()["items"] == []
    for action in ("cancel", "retry"):
        assert "growth" in error_of(theirs.post(f"/requests/{mine}/{action}"), 403)["message"]


def test_trials_come_in_pages_without_folders_of_ours(world: World) -> None:
    request_id = world.submitted()
    for number in range(5):
        trial = Trial(number=number, family="linear", parameters={}, state="succeeded", artifacts="/srv/secret")
        world.ledger.record_trial(request_id, trial.model_copy(update={"score": float("nan")}))
    first = world().get(f"/requests/{request_id}/trials", params={"limit": 3})
    rest = world().get(first.links["next"]["url"].removeprefix("/api/v1")).json()
    shown = [*first.json()["items"], *rest["items"]]
    assert [trial["number"] for trial in shown] == list(range(5))
    assert rest["next"] is None
    assert {(trial["artifacts"], trial["score"]) for trial in shown} == {(None, None)}
    error_of(world().get(f"/requests/{request_id}/trials", params={"cursor": "x"}), 400)


# --- cancelling and retrying --------------------------------------------------------


def test_cancelling_ends_a_request_that_nobody_works_on_and_may_be_repeated(world: World) -> None:
    request_id = world.submitted()
    for _ in range(2):
        response = world().post(f"/requests/{request_id}/cancel", json={"why": "The data were wrong."})
        assert response.json()["state"] == "cancelled"
    assert "The data were wrong." in world.ledger.events(request_id)[-1].message
    assert [row.action for row in world.ledger.audit_page(limit=1).items] == ["request.cancel"]


def test_cancelling_a_running_request_is_a_wish(world: World) -> None:
    request_id = world.submitted()
    world.ledger.admit(request_id)
    shown = world().post(f"/requests/{request_id}/cancel").json()
    assert shown["state"] == "queued"
    assert shown["cancel_requested_at"] is not None


def test_what_has_ended_is_retried_as_a_new_request(world: World) -> None:
    request_id = world.submitted()
    error_of(world().post(f"/requests/{request_id}/retry"), 409)
    world.ledger.fail(request_id, InvalidData("No."))
    error_of(world().post(f"/requests/{request_id}/cancel"), 409)
    key = {"idempotency-key": "again"}
    response = world().post(f"/requests/{request_id}/retry", headers=key)
    assert response.status_code == 202
    shown = response.json()
    assert (shown["retry_of"], shown["state"]) == (request_id, "queued")
    assert shown["request"] == world.ledger.request(request_id).request.model_dump(mode="json", by_alias=True)
    assert world().post(f"/requests/{request_id}/retry", headers=key).json()["id"] == shown["id"]


# --- quotes ------------------------------------------------------------------------


def test_a_quote_tells_time_cost_and_place_and_starts_nothing(world: World) -> None:
    told = world("growth/read").post("/quotes", json=world.order()).json()
    assert told["problems"] == []
    assert 0 < told["wall_s"]["low"] < told["wall_s"]["expected"] < told["wall_s"]["high"] <= told["promise_s"]
    assert told["place"] == {"position": 1, "eta_s": 0.0, "sentence": "starts at once, as the queue is now"}
    assert world.ledger.request_page().items == ()


def test_a_quote_tells_what_is_wrong_instead_of_refusing_it(world: World) -> None:
    order = world.order(seed="1", recipe="nothing")
    told = world().post("/quotes", json=order).json()
    assert {problem["field"] for problem in told["problems"]} == {"/seed", "/recipe"}
    assert world().post("/quotes", json={}).status_code == 200
    error_of(world().post("/quotes", json=[]), 400)


def test_a_place_behind_those_who_wait(make_world: MakeWorld) -> None:
    world = make_world()
    running = world.submitted(budget={"time_s": 60, "memory_gb": 6})
    world.ledger.admit(running)
    for seed in range(2):
        world.submitted(seed=seed)
    assert isinstance(world.jobs, FakeJobs)
    place = world().post("/quotes", json=world.order()).json()["place"]
    assert place["position"] == 3
    assert place["sentence"]


def test_uploads_are_named_by_whoever_has_them(world: World) -> None:
    digest = world.upload()
    assert isinstance(world.ledger.upload(digest, "growth"), Upload)
