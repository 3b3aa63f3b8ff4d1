"""Commands over a ledger that was filled by hand, and over one small variant made by the inline search."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from factory.cli.fit import _validation
from factory.errors import InvalidData
from factory.ledger import Ledger
from factory.search.plan import recipe_files
from factory.settings import Settings
from factory.spec import Recipe, RequestState, Trial, TrialState, VariantRequest

from .conftest import factory
from .orders import ORDER, done, refused, write_order

# --- requests ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(settings: Settings) -> dict[str, str]:
    """Requests in several states; their ids by what happened to them."""
    ids = {}
    with Ledger.open(settings.ledger) as ledger:
        for what in ("searching", "failed", "queued"):
            order = VariantRequest.model_validate(ORDER | {"team": "ledger", "name": what})
            ids[what] = ledger.create_request(order, request_id=f"{what}-1").id
        ledger.reach("queued-1", RequestState.QUEUED, "Waiting for a driver.")
        ledger.reach("searching-1", RequestState.SEARCHING, "Searching [red]columns[/red].")
        parameters = {"penalty": 1.0}
        states = {0: TrialState.SUCCEEDED, 1: TrialState.OUT_OF_MEMORY, 2: TrialState.RUNNING}
        for number, state in states.items():
            trial = Trial(number=number, family="linear", parameters=parameters, state=state)
            scored = {"score": 0.75} if number == 0 else {"reason": "It took [900] MB." if number == 1 else ""}
            ledger.record_trial("searching-1", trial.model_copy(update=scored))
        ledger.reach("failed-1", RequestState.PREPARING, "Reading.")
        ledger.fail("failed-1", InvalidData("No rows in 'x.csv'.", hint="Give some."))
    return ids


def test_requests_are_listed_newest_first_and_by_team_and_state(filled: dict[str, str]) -> None:
    shown = done(factory("requests", "list", "--team", "ledger")).out
    assert all(request_id in shown for request_id in filled.values())
    assert shown.index("queued-1") < shown.index("failed-1") < shown.index("searching-1")
    found = done(factory("requests", "list", "--team", "ledger", "--state", "failed", "--json")).json
    assert [(r["id"], r["state"], r["fault"]) for r in found] == [("failed-1", "failed", "user")]
    assert len(done(factory("requests", "list", "--team", "ledger", "--limit", "2", "--json")).json) == 2
    assert done(factory("requests", "list", "--team", "nobody", "--json")).json == []


def test_a_request_is_shown_with_its_trials_and_whose_fault_it_was(filled: dict[str, str]) -> None:
    shown = done(factory("requests", "show", "searching")).out
    for part in ("searching-1", "ledger.searching", "out_of_memory", "It took [900] MB.", "0.75"):
        assert part in shown
    assert "Your fault: No rows in 'x.csv'. Give some." in done(factory("requests", "show", "failed-1")).out
    document = done(factory("requests", "show", "searching-1", "--json")).json
    assert document["request"]["request"]["families"] == ["linear"]
    assert [t["state"] for t in document["trials"]] == ["succeeded", "out_of_memory", "running"]
    assert document["variants"] == []


def test_logs_show_every_event_as_it_was_written(filled: dict[str, str]) -> None:
    lines = done(factory("requests", "logs", "searching-1")).out.splitlines()
    assert [line.split()[1] for line in lines] == ["received", "queued", "preparing", "searching"]
    assert lines[-1].endswith("Searching [red]columns[/red].")
    events = done(factory("requests", "logs", "failed-1", "--json")).json
    assert [e["sequence"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["state"] == "failed"


def test_an_id_may_be_cut_short_while_it_is_unique(filled: dict[str, str]) -> None:
    with Ledger.open(Settings(home=Path(os.environ["FACTORY_HOME"])).ledger) as ledger:
        ledger.create_request(ledger.request("queued-1").request, request_id="queued-2")
    refused(factory("requests", "show", "queued"), "queued-1", "queued-2", "Write more of the id")
    refused(factory("requests", "show", "quueed-1"), "queued-1")


def test_cancel_and_retry(settings: Settings, filled: dict[str, str]) -> None:
    assert "queued-1 is cancelled" in done(factory("requests", "cancel", "queued-1")).out
    assert "queued-1 is cancelled" in done(factory("requests", "cancel", "queued-1")).out, "to ask again is no fault"
    refused(factory("requests", "retry", "searching-1"), "searching-1 is searching", "factory run ID")
    refused(factory("run", "queued-1"), "queued-1 is cancelled", "nothing left to do")
    new_id = done(factory("requests", "retry", "queued-1")).out.split()[1]
    with Ledger.open(settings.ledger) as ledger:
        new = ledger.request(new_id)
        assert (new.state, new.retry_of) == (RequestState.QUEUED, "queued-1")
        assert new.request == ledger.request("queued-1").request


def test_a_driver_that_lives_is_named_and_of_one_that_was_killed_the_request_is_cancelled(
    settings: Settings, filled: dict[str, str]
) -> None:
    with Ledger.open(settings.ledger) as ledger:
        order = ledger.request("queued-1").request
        driven = ledger.create_request(order).id
        with ledger.claim(driven):
            said = " ".join(done(factory("requests", "cancel", driven)).out.split())
            assert f"{driven} is to be cancelled: process {os.getpid()} on " in said
            assert "stops when the trials that run have ended" in said
            assert ledger.request(driven).state is RequestState.RECEIVED
        done(factory("requests", "cancel", driven))
        assert ledger.request(driven).state is RequestState.CANCELLED
        killed = ledger.create_request(order).id
        code = (
            "import os, sys; from factory.ledger import Ledger\n"
            "with Ledger.open(sys.argv[1]) as ledger, ledger.claim(sys.argv[2]): os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", code, settings.ledger, killed], check=False).returncode == 9
        assert ledger.request(killed).driver is not None
        done(factory("requests", "cancel", killed))
        assert ledger.request(killed).state is RequestState.CANCELLED


def test_submit_checks_and_queues(settings: Settings) -> None:
    order = write_order("queued.yaml", team="doors")
    record = done(factory("submit", order, "--json")).json
    assert (record["state"], record["attempt"]) == ("queued", 0)
    assert "Next: factory run" in done(factory("submit", order)).out
    order.with_suffix(".json").write_text('{"team": "doors", "name": "x", "recipe": "tabular-fast"}')
    refused(factory("submit", "queued.json"), "dataset", "This field is required")


# --- recipes -------------------------------------------------------------------------


def test_recipes_are_listed_and_shown(settings: Settings) -> None:
    found = {recipe["name"]: recipe for recipe in done(factory("recipes", "list", "--json")).json}
    assert set(found) == set(recipe_files(settings)) >= {"tabular-auto", "tabular-fast", "tabular-neural"}
    listed = done(factory("recipes", "list")).out
    assert all(name in listed and recipe["digest"][:12] in listed for name, recipe in found.items())
    shown = done(factory("recipes", "show", "tabular-fast", "--json")).json
    assert shown["digest"] == found["tabular-fast"]["digest"]
    assert shown["family_spaces"]["binary"]["lightgbm"]["num_leaves"]["kind"] == "int"
    text = done(factory("recipes", "show", f"tabular-fast@{shown['digest'][:12]}")).out
    document, _, digest = text.rpartition("digest: ")
    assert yaml.safe_load(document)["name"] == "tabular-fast"
    assert digest.strip() == shown["digest"]


def test_a_recipe_is_validated_with_all_its_problems(settings: Settings) -> None:
    shipped = recipe_files(settings)["tabular-fast"]
    assert "is a valid recipe: tabular-fast" in done(factory("recipes", "validate", shipped)).out
    broken = yaml.safe_load(shipped.read_text())
    broken["families"] += ["lightgmb"]
    broken["spaces"]["catboost"] = {"depth": [1, 99]}
    broken["budget"]["default"]["time_s"] = "3h"
    Path("broken.yaml").write_text(yaml.safe_dump(broken))
    answer = factory("recipes", "validate", "broken.yaml")
    refused(answer, "3 problems", "families.lightgmb", "spaces.catboost.depth", "budget.default.time_s", "10800")


# --- features and doctor -------------------------------------------------------------


def test_features_are_applied_listed_and_filled(settings: Settings) -> None:
    first = done(factory("features", "apply", "--json")).json
    assert {"country_v1", "country_health"} <= {change["name"] for change in first["changes"]}
    assert "nothing changed" in done(factory("features", "apply")).out
    services = {service["name"]: service for service in done(factory("features", "list", "--json")).json}
    assert set(services) == {"country_v1", "country_comparison_v1"}
    assert services["country_v1"]["owner"] in done(factory("features", "list")).out
    filled = done(factory("features", "materialize", "--view", "country_health", "--json")).json
    assert [view["view"] for view in filled] == ["country_health"]
    refused(factory("features", "materialize", "--view", "country_helth"), "views", "Did you mean 'country_health'?")
    refused(factory("features", "check", "country_v9"), "'country_v9'", "country_v1")


def test_doctor_finds_nothing_wrong_and_says_what_it_saw(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_SERVE_PORT", "0")
    checks = done(factory("doctor", "--json")).json
    states = {check["name"]: check["state"] for check in checks}
    assert states == dict.fromkeys(states, "ok") | {"predictor": "note"}
    assert {"packages", "home", "ledger", "recipe", "features", "mlflow", "ray"} <= set(states)
    assert "Nothing is wrong." in done(factory("doctor")).out


def test_doctor_ends_with_1_where_something_is_wrong(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    answer = done(factory("doctor"), 1)
    assert "RAY_ADDRESS 127.0.0.1:1" in answer.out
    assert "http://127.0.0.1:1 does not answer" in answer.out
    assert "unset MLFLOW_TRACKING_URI" in answer.out


def test_a_gap_that_is_not_named_is_left_to_the_recipe() -> None:
    assert _validation(None, "day", None) == {"kind": "time", "column": "day"}
    assert _validation(None, "day", 0) == {"kind": "time", "column": "day", "gap": 0}
    document = {"team": "t", "name": "n", "recipe": "r", "dataset": {"path": "a.csv", "target": "y"}}
    request = VariantRequest.model_validate(document | {"validation": _validation(None, "day", None)})
    recipe = Recipe.model_validate(
        {"name": "r", "title": "R", "families": ["linear"], "validation": {"kind": "time", "column": "day", "gap": 7}}
    )
    assert request.filled(recipe).terms(recipe).validation == recipe.validation
