"""Batches over HTTP and as pages: declared, listed, paused, run and deleted by their own team."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.operate.batches import run_log
from tests.answers import error_of
from tests.portal.conftest import World, fields_of
from tests.portal.test_pages import Visitor


def document(**changes: Any) -> dict[str, Any]:
    fields = {"team": "growth", "name": "nightly", "variant": "growth.churn", "path": "/data/rows.parquet"}
    return fields | {"schedule": {"cron": "30 4 * * *", "time_zone": "Europe/Berlin"}} | changes


@pytest.fixture
def declared(world: World) -> str:
    world.made()
    answer = world("operator").post("/batches", json=document())
    assert answer.status_code == 201, answer.text
    return str(answer.json()["name"])


def test_a_batch_is_declared_listed_and_shown(declared: str, world: World) -> None:
    reader = world("growth/read")
    [listed] = reader.get("/batches").json()["items"]
    assert (listed["name"], listed["wish"]["variant"], listed["enabled"], listed["last"]) == (
        declared, "growth.churn", True, None,
    )  # fmt: skip
    assert reader.get(f"/batches/{declared}").json() == listed
    assert world("risk/read").get("/batches").json()["items"] == []
    error_of(world("risk/read").get(f"/batches/{declared}"), 404)
    error_of(world("operator").post("/batches", json=document()), 409)
    error_of(reader.post("/batches", json=document(name="other")), 403)


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"path": None}, 400, ""),
        ({"path": "/etc/passwd"}, 400, "/path"),
        ({"variant": "growth.none"}, 400, "/variant"),
        ({"variant": "risk.fraud"}, 400, "/variant"),
        ({"path": None, "upload": "0" * 64}, 400, "/upload"),
        ({"schedule": {"cron": "61 * * * *"}}, 400, "/schedule"),
        ({"schedule": {"cron": "1 * * * *", "time_zone": "Europe/Bern"}}, 400, "/schedule"),
        ({"team": "risk"}, 404, "/team"),
        ({"team": "nobody"}, 404, "/team"),
    ],
)
def test_what_cannot_be_declared_names_its_field(
    changes: dict[str, Any], status: int, field: str, world: World
) -> None:
    world.made()
    world.made("risk.fraud")
    error = error_of(world("growth/submit").post("/batches", json=document(**changes)), status)
    assert fields_of(error) == {field}
    assert world.ledger.batches() == []


def test_batches_are_listed_in_pages(declared: str, world: World) -> None:
    assert world("operator").post("/batches", json=document(name="other")).status_code == 201
    first = world("growth/read").get("/batches?limit=1")
    assert [one["name"] for one in first.json()["items"]] == [declared]
    assert 'rel="next"' in first.headers["link"]
    rest = world("growth/read").get(f"/batches?limit=1&cursor={first.json()['next']}").json()
    assert ([one["name"] for one in rest["items"]], rest["next"]) == (["growth.other"], None)


def test_a_batch_is_paused_run_and_deleted_by_its_team(declared: str, world: World) -> None:
    ours, reader = world("growth/submit"), world("growth/read")
    settings = world.app.state.portal.settings
    assert ours.post(f"/batches/{declared}/pause").json()["next_due"] is None
    assert ours.post(f"/batches/{declared}/resume").json()["next_due"] is not None
    answer = ours.post(f"/batches/{declared}/runs")
    assert (answer.status_code, answer.json()["state"], answer.json()["number"]) == (202, "waiting", 1)
    error_of(ours.post(f"/batches/{declared}/runs"), 409)
    error_of(ours("DELETE", f"/batches/{declared}"), 409)
    for method, path in (("POST", "pause"), ("POST", "runs"), ("DELETE", "")):
        error_of(reader(method, f"/batches/{declared}/{path}".rstrip("/")), 403)
    run = world.ledger.batch_run(answer.json()["id"])
    assert reader.get(f"/batches/{declared}/runs/1/log").text == ""
    run_log(run, settings).parent.mkdir(parents=True)
    run_log(run, settings).write_text("predicting\n")
    assert reader.get(f"/batches/{declared}/runs/1/log").text == "predicting\n"
    error_of(reader.get(f"/batches/{declared}/runs/2/log"), 404)
    world.ledger.end_batch_run(run.id, "done", "12 predictions", rows=12, manifest=f"{run.folder}/_manifest.json")
    [shown] = reader.get(f"/batches/{declared}/runs").json()["items"]
    assert (shown["state"], shown["rows"], Path(shown["manifest"]).name) == ("done", 12, "_manifest.json")
    assert ours("DELETE", f"/batches/{declared}").status_code == 204
    error_of(reader.get(f"/batches/{declared}"), 404)


def test_pages_list_batches_with_their_runs(declared: str, world: World) -> None:
    visitor = Visitor(world).signed_in("growth/submit")
    page = visitor.get("/batches")
    assert declared in page.text
    assert "30 4 * * *" in page.text
    page = visitor.get(f"/batches/{declared}")
    assert "It has not run yet" in page.text
    answer = visitor.post(f"/batches/{declared}/run", csrf=page.csrf)
    assert answer.response.headers["location"] == f"/batches/{declared}"
    run = world.ledger.batch_runs(declared)[0]
    world.ledger.end_batch_run(run.id, "failed", "There is no table at it.")
    assert "There is no table at it." in visitor.get(f"/batches/{declared}").text
    visitor.post(f"/batches/{declared}/pause", csrf=page.csrf)
    assert "Paused" in visitor.get("/batches").text
    visitor.post(f"/batches/{declared}/resume", csrf=page.csrf)
    assert "Paused" not in visitor.get("/batches").text
    quiet = Visitor(world).signed_in("growth/read").get(f"/batches/{declared}").text
    assert "Run now" not in quiet
    assert "There is no batch yet" in Visitor(world).signed_in("risk/submit").get("/batches").text
