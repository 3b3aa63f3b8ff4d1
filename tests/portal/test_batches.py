"""Batches over HTTP and as pages: declared, listed, paused, run and deleted by their own team."""

from __future__ import annotations

from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from factory.operate.batches import run_log
from factory.spec import Schedule
from tests.answers import error_of
from tests.portal.conftest import World, customers, fields_of
from tests.portal.test_pages import Page, Visitor


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
    assert "daily at 4:30" in page.text
    assert "täglich um 04:30" in Visitor(world, language="de").signed_in("growth/read").get("/batches").text
    page = visitor.get(f"/batches/{declared}")
    assert "It has not run yet" in page.text
    answer = visitor.post(f"/batches/{declared}/run", csrf=page.csrf)
    assert answer.response.headers["location"] == f"/batches/{declared}"
    run = world.ledger.batch_runs(declared)[0]
    world.ledger.end_batch_run(run.id, "failed", "There is no table at it.")
    assert "There is no table at it." in visitor.get(f"/batches/{declared}").text
    shown = visitor.get(f"/batches/{declared}/runs/1").text
    assert "There is no table at it." in shown
    assert "The job has printed nothing yet." in shown
    assert visitor.get(f"/batches/{declared}/runs/2").response.status_code == 404
    visitor.post(f"/batches/{declared}/pause", csrf=page.csrf)
    assert "Paused" in visitor.get("/batches").text
    visitor.post(f"/batches/{declared}/resume", csrf=page.csrf)
    assert "Paused" not in visitor.get("/batches").text
    quiet = Visitor(world).signed_in("growth/read").get(f"/batches/{declared}").text
    assert "Run now" not in quiet
    assert "Delete" not in quiet
    answer = visitor.post(f"/batches/{declared}/delete", csrf=page.csrf)
    assert answer.response.headers["location"] == "/batches"
    assert world.ledger.batches() == []
    assert "There is no batch yet" in Visitor(world).signed_in("risk/submit").get("/batches").text


# --- schedules ----------------------------------------------------------------------


def test_it_is_told_when_a_schedule_is_due(world: World) -> None:
    reader = world("growth/read")
    query = {"cron": "30 4 * * *", "time_zone": "Europe/Berlin"}
    moments = [datetime.fromisoformat(one) for one in reader.get("/schedules/due", params=query).json()["items"]]
    assert len(moments) == 5
    assert moments == sorted(set(moments))
    assert {f"{one.astimezone(ZoneInfo('Europe/Berlin')):%H:%M}" for one in moments} == {"04:30"}
    assert moments[0] > datetime.now(UTC)
    assert len(reader.get("/schedules/due", params={"every": "15m", "limit": 7}).json()["items"]) == 7


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, ""),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "30 4 31 2 *"}, "cron"),
        ({"every": "soon"}, "every"),
        ({"cron": "0 * * * *", "time_zone": "Mars/Olympus"}, "time_zone"),
    ],
)
def test_what_is_no_schedule_names_its_part(query: dict[str, str], field: str, world: World) -> None:
    error = error_of(world("growth/read").get("/schedules/due", params=query), 400)
    assert fields_of(error) == {field}
    assert "received" not in error["message"]


# --- the form -----------------------------------------------------------------------


def typed(world: World, page: Page, **changes: str | list[str]) -> dict[str, str | list[str]]:
    fields: dict[str, str | list[str]] = {
        "csrf": page.csrf, "team": "growth", "name": "weekly", "variant": "growth.churn", "rows": "upload",
        "upload": world.upload(), "path": "", "keep": "age\nregion\n", "when": "weekly", "time": "04:30",
        "weekday": ["mon", "fri"], "time_zone": "Europe/Berlin", "keep_runs": "12", "hours": "1.5",
    }  # fmt: skip
    return fields | changes


def test_a_batch_is_declared_by_the_form_once(world: World) -> None:
    world.made()
    visitor = Visitor(world).signed_in("growth/submit")
    page = visitor.get("/batches/new?variant=growth.churn")
    for part in ('value="growth.churn"', 'value="churn"', "Next runs"):
        assert part in page.text
    for _ in range(2):
        answer = visitor.post("/batches", **typed(world, page))
        assert answer.response.headers["location"] == "/batches/growth.weekly"
    [batch] = world.ledger.batches()
    assert (batch.wish.keep, batch.wish.keep_runs, batch.wish.hours) == (("age", "region"), 12, 1.5)
    assert batch.wish.schedule == Schedule(cron="30 4 * * mon,fri", time_zone="Europe/Berlin")
    shown = visitor.get("/batches/growth.weekly").text
    for part in ("weekly on Mon and Fri at 4:30", "age, region", f"/datasets/{world.upload()}"):
        assert part in shown
    again = visitor.post("/batches", **typed(world, page, hours="2"))
    assert again.response.status_code == 409
    assert 'id="w-name"' in again.text


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"variant": "growth.none"}, "variant", "is not known"),
        ({"upload": ""}, "upload", "Choose a table."),
        ({"rows": "path", "path": "/etc/passwd"}, "path", "/etc/passwd"),
        ({"rows": "path", "path": ""}, "path", "Write where the rows are."),
        ({"time": "soon"}, "time", "Write a time of the day"),
        ({"weekday": []}, "weekday", "Choose a day at least."),
        ({"when": "daily", "time": "27:30"}, "time", "is not from 0 to 23"),
        ({"when": "hourly", "minute": "75"}, "minute", "is not from 0 to 59"),
        ({"when": "every", "n": "0", "unit": "h"}, "n", "is not as"),
        ({"when": "cron", "cron": "1 2 3"}, "cron", "has 3 fields"),
        ({"when": "cron", "cron": ""}, "cron", "Write the five fields"),
        ({"time_zone": "Mars/Olympus"}, "time_zone", "is not known"),
        ({"hours": "many"}, "hours", "number"),
        ({"keep_runs": "0"}, "keep_runs", "greater than"),
    ],
)
def test_what_is_wrong_stands_at_its_field_and_nothing_typed_is_lost(
    changes: dict[str, Any], field: str, says: str, world: World
) -> None:
    world.made()
    visitor = Visitor(world).signed_in("growth/submit")
    form = typed(world, visitor.get("/batches/new"), **changes)
    page = visitor.post("/batches", **form)
    assert page.response.status_code == 400
    told = page.text.partition(f'id="w-{field}">')[2].partition("</span>")[0]
    assert says in unescape(told)
    assert "received" not in told
    assert 'value="weekly"' in page.text
    assert ">age\nregion\n</textarea>" in page.text
    assert world.ledger.batches() == []


def test_the_next_runs_are_shown_while_one_types_and_without_scripts(world: World) -> None:
    world.made()
    visitor = Visitor(world).signed_in("growth/submit")
    part = visitor.get("/batches/due", params={"when": "daily", "time": "04:30", "time_zone": "UTC"}).text
    assert part.count("<li>") == 5
    assert "4:30" in part
    assert "has 1 fields" in visitor.get("/batches/due", params={"when": "cron", "cron": "noon"}).text
    assert "when somebody asks" in visitor.get("/batches/due", params={"when": "asked"}).text
    page = visitor.get("/batches/new")
    looked = visitor.post("/batches", **typed(world, page, look="yes", when="every", n="6", unit="h"))
    assert looked.text.partition('id="due"')[2].count("<li>") >= 5
    assert world.ledger.batches() == []


def test_who_acts_for_all_teams_says_first_whose_batch_it_is(world: World) -> None:
    world.made()
    visitor = Visitor(world).signed_in("operator")
    assert "/batches/new?team=growth" in visitor.get("/batches/new").text
    assert 'name="team" value="growth"' in visitor.get("/batches/new?variant=growth.churn").text


def test_a_table_is_uploaded_from_the_form_without_scripts(world: World) -> None:
    visitor = Visitor(world).signed_in("growth/submit")
    csrf = visitor.get("/batches/new").csrf
    files = {"file": ("rows.csv", customers(3).to_csv(index=False).encode(), "text/csv")}
    query = {"csrf": csrf, "team": "growth", "variant": "growth.churn"}
    answer = visitor("POST", "/batches/new/upload", params=query, files=files)
    assert answer.response.status_code == 303, answer.text
    shown = visitor.get(answer.response.headers["location"]).text
    assert "rows.csv" in shown
    assert " selected>rows.csv" in shown


def test_the_page_of_a_variant_leads_to_the_form(world: World) -> None:
    world.made()
    link = "/batches/new?variant=growth.churn"
    assert link in Visitor(world).signed_in("growth/submit").get("/variants/growth.churn").text
    assert link not in Visitor(world).signed_in("growth/read").get("/variants/growth.churn").text
