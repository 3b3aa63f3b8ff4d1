"""Requests as they come in over HTTP: checked, with what they may name, and once for each idempotency key."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.spec import Actor, RequestState
from serve.portal import context
from tests.answers import error_of
from tests.portal.conftest import MakeWorld, World, customers, fields_of

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
