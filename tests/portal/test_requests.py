"""Requests over HTTP: taken in once, with all problems told at once, listed, shown, cancelled and retried."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.errors import InvalidData
from factory.ledger import Upload
from factory.spec import Actor, RequestState, Trial
from factory.testing.jobs import FakeJobs
from serve.portal import context
from tests.portal.conftest import MakeWorld, World, customers, error_of, fields_of

ANN = Actor(who="ann")


# --- submitting ----------------------------------------------------------------


def test_a_request_is_stored_with_its_quote_and_waits_in_the_queue(world: World) -> None:
    response = world().post("/requests", json=world.order())
    assert response.status_code == 202
    shown = response.json()
    assert response.headers["location"] == f"/api/v1/requests/{shown['id']}"
    assert "idempotency-replayed" not in response.headers
    record = world.ledger.request(shown["id"])
    assert (record.state, record.door, record.cpus, record.memory_gb) == ("queued", "api", 2, 4)
    assert record.submitted_by is not None
    assert record.submitted_by.startswith("token:submit/")
    assert record.quote is not None
    assert record.expected_s == record.quote["wall_s"]["expected"]
    assert shown["quote"] == record.quote
    (row,) = world.ledger.audit_page(limit=1).items
    assert (row.action, row.subject, row.who, row.origin) == (
        "request.submit",
        record.id,
        record.submitted_by,
        "10.0.0.7",
    )


def test_yaml_is_taken_as_json_is(world: World) -> None:
    order = world.order(budget={"time_s": "60s"}, spaces={"lightgbm": {"num_leaves": [15, 63]}}, families=["lightgbm"])
    order["dataset"]["types"] = {"city": "categorical"}
    for kind in ("application/yaml", "text/yaml; charset=utf-8", "application/x-yaml"):
        text = yaml.safe_dump(order).encode()
        response = world().post("/requests", content=text, headers={"content-type": kind})
        assert response.status_code == 202, response.text
        assert response.json()["request"]["budget"]["time_s"] == 60


def test_all_problems_of_a_document_are_told_at_once_by_json_pointers(world: World) -> None:
    order = world.order(budget={"time_s": 10**6, "trails": 5}, families=["lightgmb"], seed="0", metric="auc")
    order["dataset"] |= {"target": "churn", "drop": ["aeg"]}
    error = error_of(world().post("/requests", json=order), 400)
    assert fields_of(error) == {"/budget/trails", "/families/0", "/seed", "/metric"}
    assert "Did you mean 'trials'?" in error["message"]
    # What can be told of the data only when the rest is understood comes with the next try.
    order |= {"budget": {"time_s": 60}, "families": ["lightgbm"], "seed": 0, "metric": "roc_auc"}
    error = error_of(world().post("/requests", json=order), 400)
    assert fields_of(error) == {"/dataset/target", "/dataset/drop"}
    assert "Did you mean 'churned'?" in error["message"]
    assert world.ledger.request_page().items == ()


def test_the_data_of_a_document_that_is_wrong_elsewhere_are_looked_at_too(world: World) -> None:
    order = world.order(budget={"time_s": -1})
    order["dataset"]["upload"] = world.upload(seed=3)
    next(world.settings.uploads.glob(f"{order['dataset']['upload']}*")).unlink()
    error = error_of(world().post("/requests", json=order), 400)
    assert fields_of(error) == {"/budget/time_s", "/dataset/upload"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", "5"), ("seed", True), ("resources", {"workers": "1"}), ("gates", {"allow_leakage": "yes"})],
)
def test_a_value_of_another_type_is_not_converted(field: str, value: Any, world: World) -> None:
    error = error_of(world().post("/requests", json=world.order(**{field: value})), 400)
    (pointer,) = fields_of(error)
    assert pointer.startswith(f"/{field}")


def test_a_recipe_that_does_not_exist(world: World) -> None:
    error = error_of(world().post("/requests", json=world.order(recipe="tabular-autp")), 404)
    assert fields_of(error) == {"/recipe"}
    assert "Did you mean 'tabular-auto'?" in error["message"]


@pytest.mark.parametrize("team", ["risk", "nobody"])
def test_another_team_and_one_that_does_not_exist_are_alike(team: str, world: World) -> None:
    error = error_of(world().post("/requests", json=world.order() | {"team": team}), 404)
    assert error["message"].replace(team, "T") == "There is no team 'T' that you may order for."
    error = error_of(world().post("/quotes", json=world.order() | {"team": team}), 404)
    assert fields_of(error) == {"/team"}


def test_an_operator_orders_for_any_team_that_there_is(world: World) -> None:
    operator = world("operator")
    order = world.order("risk")
    assert operator.post("/requests", json=order).status_code == 202
    error_of(operator.post("/requests", json=order | {"team": "nobody"}), 404)
    world.ledger.archive_team("risk", by=ANN)
    error_of(operator.post("/requests", json=order), 409)
    error_of(world("risk/submit").post("/requests", json=order), 401)


def test_a_request_asks_for_as_many_cpus_as_its_memory_has_workers_for_and_the_cluster_has(world: World) -> None:
    assert world.ledger.request(world.submitted(budget={"time_s": 60, "memory_gb": 2})).cpus == 1
    assert world.ledger.request(world.submitted(budget={"time_s": 60, "memory_gb": 64})).cpus == 2


def test_requests_are_taken_in_while_the_cluster_is_gone(world: World) -> None:
    world.jobs.reachable = False
    assert world.ledger.request(world.submitted()).state is RequestState.QUEUED
    assert world().post("/quotes", json=world.order()).json()["place"] is None


def test_who_does_not_come_to_its_turn_is_told_to_come_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "TURN_S", 0.01)
    order = world.order()
    with ExitStack() as stack:
        for _ in range(context.AT_ONCE):
            stack.enter_context(world.app.state.portal.turn())
        response = world().post("/requests", json=order)
    assert error_of(response, 503)["code"] == "overloaded"
    assert response.headers["retry-after"]
    assert world().post("/requests", json=order).status_code == 202


# --- what may be named -----------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two folders with the same table, and a link that leads out of the first one."""
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        customers().to_parquet(tmp_path / name / "c.parquet")
    (tmp_path / "open" / "link.parquet").symlink_to(tmp_path / "closed" / "c.parquet")
    (tmp_path / "open" / "inside.parquet").symlink_to(tmp_path / "open" / "c.parquet")
    return tmp_path


def test_paths_are_for_operators_unless_their_folder_is_allowed(files: Path, make_world: MakeWorld) -> None:
    closed = make_world()
    order = closed.order() | {"dataset": {"path": str(files / "open" / "c.parquet"), "target": "churned"}}
    error = error_of(closed().post("/requests", json=order), 400)
    assert fields_of(error) == {"/dataset/path"}
    assert "only as an upload" in error["message"]
    assert closed("operator").post("/requests", json=order).status_code == 202
    opened = make_world(dataset_folders=f"{files / 'open'}, s3://bucket/tables")
    assert opened().post("/requests", json=order).status_code == 202


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("{open}/c.parquet", True),
        ("{open}/inside.parquet", True),
        ("file://{open}/c.parquet", True),
        ("{open}/link.parquet", False),
        ("{open}/../closed/c.parquet", False),
        ("{open}er/c.parquet", False),
        ("{open}/%2e%2e/closed/c.parquet", True),  # a path is no URL: this is a file of that name
        ("file://{open}/%2e%2e/closed/c.parquet", False),
        ("{closed}/c.parquet", False),
        ("c.parquet", False),
        ("~/c.parquet", False),
        ("/etc/passwd", False),
        ("file:///etc/passwd", False),
        ("s3://bucket/tables/c.parquet", True),
        ("S3://bucket/tables/a/b.parquet", True),
        ("s3://bucket/tables", True),
        ("s3://bucket/tablesque/c.parquet", False),
        ("s3://bucket/tables/../secret", False),
        ("s3://bucket/tables/%2e%2e/secret", False),
        ("s3://other/tables/c.parquet", False),
        ("s3://user@bucket/tables/c.parquet", False),
        ("https://bucket/tables/c.parquet", False),
        ("http://169.254.169.254/latest", False),
        ("simplecache::s3://bucket/tables/c.parquet", False),
        ("zip://{closed}/c.zip::s3://bucket/tables/c", False),
        ("{open}/a\tb", False),
        ("{open}/" + "x" * 5000, False),
    ],
)
def test_what_may_be_named_over_the_network(place: str, allowed: bool, files: Path) -> None:
    from factory.operate.intake import may_be_named
    from factory.settings import Settings

    settings = Settings(_env_file=None, home=files, dataset_folders=f"{files / 'open'},s3://bucket/tables/")
    shown = place.replace("{open}", str(files / "open")).replace("{closed}", str(files / "closed"))
    assert may_be_named(shown, settings) is allowed
    assert not may_be_named(shown, Settings(_env_file=None, home=files))


@pytest.mark.parametrize("broken", [{}, {"seed": -1}, {"team": None}, {"team": 5}])
def test_what_may_not_be_named_is_not_looked_at(
    broken: dict[str, Any], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object, **__: object) -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr("factory.operate.quotes.checks.read_metadata", look)
    document = {"team": "growth", "name": "churn", "recipe": "tabular-auto"} | broken
    document = {name: value for name, value in document.items() if value is not None}
    document["dataset"] = {"path": "/etc/passwd", "target": "churned", "scoring": "/etc/shadow"}
    error = error_of(world().post("/requests", json=document), 400)
    assert {"/dataset/path", "/dataset/scoring"} <= fields_of(error)
    told = world().post("/quotes", json=document).json()
    assert {"/dataset/path", "/dataset/scoring"} <= {problem["field"] for problem in told["problems"]}


def test_an_upload_of_another_team_is_as_one_that_does_not_exist(world: World) -> None:
    theirs = world.upload("risk", seed=7)
    order = world.order() | {"dataset": {"upload": theirs, "target": "churned"}}
    error = error_of(world().post("/requests", json=order), 400)
    nothing = error_of(
        world().post("/requests", json=order | {"dataset": {"upload": "0" * 64, "target": "churned"}}), 400
    )
    assert error["message"].replace(theirs[:12], "0" * 12) == nothing["message"]
    world.ledger.share("dataset", theirs, team="risk", with_team="growth", by=ANN)
    assert world().post("/requests", json=order).status_code == 202


def test_a_parent_of_another_team_is_as_one_that_does_not_exist(world: World) -> None:
    world.made("risk.fraud")
    world.ledger.set_alias("risk.fraud", "champion", 1, who="x", why="y")
    for parent in ("risk.fraud", "risk.nothing", "risk.fraud@champion", "risk.fraud/1"):
        order = world.order(making="warm_start", parent=parent)
        error = error_of(world().post("/requests", json=order), 400)
        name = parent.partition("@")[0].partition("/")[0]
        assert error["details"] == [{"field": "/parent", "message": f"There is no variant '{name}'."}]
        assert world().post("/quotes", json=order).json()["problems"] == error["details"]
    world.ledger.share("variant", "risk.fraud", team="risk", with_team="*", by=ANN)
    assert world().post("/requests", json=world.order(making="warm_start", parent="risk.fraud")).status_code == 202


# --- idempotency -----------------------------------------------------------------


def test_the_same_key_and_document_make_one_request(world: World) -> None:
    order = world.order()
    key = {"idempotency-key": "k-1"}
    first = world().post("/requests", json=order, headers=key)
    again = world().post("/requests", json=dict(reversed(order.items())), headers=key)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(world.ledger.request_page().items) == 1


def test_a_key_is_good_for_one_document_and_one_token(world: World) -> None:
    order = world.order()
    key = {"idempotency-key": "k-1"}
    made = world().post("/requests", json=order, headers=key).json()["id"]
    error = error_of(world().post("/requests", json=order | {"seed": 1}, headers=key), 409)
    assert made in error["message"]
    other = world("growth/admin").post("/requests", json=order, headers=key)
    assert other.status_code == 202
    assert other.json()["id"] != made


def test_a_replay_is_answered_though_the_data_are_gone(world: World) -> None:
    order = world.order()
    key = {"idempotency-key": "k-1"}
    first = world().post("/requests", json=order, headers=key)
    world().delete(f"/datasets/{order['dataset']['upload']}")
    assert world().post("/requests", json=order, headers=key).json()["id"] == first.json()["id"]
    error_of(world().post("/requests", json=order), 400)


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "ä"])
def test_a_key_that_cannot_be_one(key: str, world: World) -> None:
    response = world().post("/requests", json=world.order(), headers={"idempotency-key": key.encode("latin-1")})
    assert fields_of(error_of(response, 400)) == {"Idempotency-Key"}


def test_two_of_the_same_at_the_same_moment_are_one(world: World) -> None:
    order = world.order()
    send = world().send

    async def both() -> list[str]:
        sent = [send("POST", "/requests", json=order, headers={"idempotency-key": "race"}) for _ in range(8)]
        answers = await asyncio.gather(*sent)
        assert {answer.status_code for answer in answers} == {202}
        return [answer.json()["id"] for answer in answers]

    assert len(set(asyncio.run(both()))) == 1
    assert len(world.ledger.request_page().items) == 1


def test_many_submit_at_the_same_moment_and_none_is_lost(world: World) -> None:
    order = world.order()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: world().post("/requests", json=order | {"seed": seed}), range(12)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 12
    assert world.ledger.verify_audit() is None


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
