"""Commands over a ledger that was filled by hand, and over one small variant made by the inline search."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from factory.data.tables import read_table
from factory.errors import InvalidData
from factory.ledger import Ledger
from factory.search.plan import recipe_files
from factory.settings import Settings
from factory.spec import RequestState, Trial, TrialState, VariantRequest
from factory.variants.registry import Registry

from .conftest import Answer, customers, factory

ORDER: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
    "families": ["linear"],
    "budget": {"time_s": 4, "trials": 1},
}


def done(answer: Answer, code: int = 0) -> Answer:
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    return answer


def refused(answer: Answer, *parts: str, code: int = 2) -> None:
    assert [part for part in parts if part not in done(answer, code).said] == [], answer.err


def write_order(path: str, **changes: Any) -> Path:
    Path(path).write_text(yaml.safe_dump(ORDER | changes))
    return Path(path)


# --- requests ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(home: Path) -> Settings:
    customers().to_csv("customers.csv", index=False)
    return Settings(home=home)


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
            assert f"{driven} is to be cancelled. Process {os.getpid()} on " in said
            assert "end that process" in said
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


# --- variants ------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """``growth.churn``: version 1 is champion, version 2 passed its gate without being promoted, 3 was rejected."""

    settings: Settings
    fitted: Answer
    ran: Answer
    rejected: Answer


@pytest.fixture(scope="module")
def made(settings: Settings) -> Made:
    rows = customers(400).drop(columns="left").iloc[-30:]
    rows.to_parquet("rows.parquet", index=False)
    words = [
        "fit",
        "--train",
        "customers.csv",
        "--target",
        "left",
        "--name",
        "growth.churn",
        "--recipe",
        "tabular-fast",
    ]
    fitted = factory(*words, "--budget", "4s", "--test", "rows.parquet", "--out", "predictions.parquet")
    second = write_order("second.yaml", gates={"baseline": "constant"}, deployment={"as": "none"})
    third = write_order("third.yaml", gates={"min_improvement": 10})
    return Made(settings, fitted, factory("run", second), factory("run", third, "--json"))


def test_fit_makes_a_variant_and_predicts_the_test_rows(made: Made) -> None:
    done(made.fitted)
    for part in ("Leaderboard", "folds", "training", "test", "linear", "lightgbm", "growth.churn/1", "Next: "):
        assert part in made.fitted.out
    assert "growth.churn/1: Passed." in made.fitted.err
    states = [line.split()[0] for line in made.fitted.err.splitlines() if line[:1].isupper()]
    assert states == ["PREPARING", "SEARCHING", "EVALUATING", "REGISTERED"]
    predictions = pd.read_parquet("predictions.parquet")
    assert list(predictions.columns) == ["no", "yes"]
    assert len(predictions) == 30
    assert predictions.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)


def test_a_gate_that_says_no_ends_with_3_and_leaves_the_champion(made: Made) -> None:
    answer = done(made.rejected, 3).json
    assert answer["state"] == "rejected"
    ranks = [row["folds"] for row in answer["leaderboard"] if row["score"] is not None]
    assert ranks == sorted(ranks, reverse=True)
    assert {"train_score", "score", "test_score", "weight"} <= set(answer["leaderboard"][0])
    assert [(v["name"], v["version"], v["state"]) for v in answer["variants"]] == [("growth.churn", 3, "rejected")]
    with Ledger.open(made.settings.ledger) as ledger:
        assert ledger.alias("growth.churn", "champion") == 1
        assert [d.version for d in ledger.deployment("growth.churn")] == [1]
    assert Registry(made.settings).aliases("growth.churn") == {"champion": 1}


def test_variants_are_listed_and_shown(made: Made) -> None:
    done(made.ran)
    listed = done(factory("variants", "list", "--json")).json
    assert [(v["name"], v["version"], v["state"]) for v in listed] == [
        ("growth.churn", 1, "registered"),
        ("growth.churn", 2, "registered"),
        ("growth.churn", 3, "rejected"),
    ]
    line = next(line for line in done(factory("variants", "list")).out.splitlines() if "growth.churn/1" in line)
    assert "champion" in line
    shown = done(factory("variants", "show", "growth.churn", "--json")).json
    assert shown["version"] == 1
    assert {c["name"]: c["type"] for c in shown["columns"]} == {
        "calls": "numeric",
        "minutes": "numeric",
        "plan": "categorical",
    }
    assert sum(member["weight"] for member in shown["members"]) == pytest.approx(1, abs=1e-3)
    text = done(factory("variants", "show", "growth.churn/3")).out
    assert "rejected" in text
    card = Path(text.partition("Model card: ")[2].strip())
    assert card.is_file()
    assert "growth.churn" in card.read_text()


def test_lineage_names_request_recipe_data_and_every_change_of_an_alias(made: Made) -> None:
    document = done(factory("variants", "lineage", "growth.churn", "--json")).json
    assert document["variant"]["version"] == 1
    assert document["request"]["dataset"]["path"] == "customers.csv"
    assert next((c["alias"], c["version"]) for c in document["alias_history"]) == ("champion", 1)
    shown = done(factory("variants", "lineage", "growth.churn/1")).out
    assert document["variant"]["request_id"] in shown
    assert document["variant"]["dataset_digest"][:12] in shown
    assert "Passed." in shown


def test_compare_tells_what_differs_first(made: Made) -> None:
    document = done(factory("variants", "compare", "growth.churn/1", "growth.churn/2", "--json")).json
    assert document["differs"]["version"] == [1, 2]
    assert document["alike"]["name"] == "growth.churn"
    shown = done(factory("variants", "compare", "growth.churn/1", "growth.churn/2")).out
    assert shown.index("What differs") < shown.index("Alike")
    refused(factory("variants", "compare", "growth.churn/1", "growth.churn/9"), "no version 9")


def test_promote_and_roll_back(made: Made) -> None:
    refused(
        factory("variants", "promote", "growth.churn/3", "--why", "I insist"), "turned down by its gate", "--override"
    )
    refused(factory("deployments", "set", "growth.churn/3"), "turned down by its gate", "--override")
    refused(factory("variants", "promote", "growth.churn/9", "--why", "new"), "no version 9", "Versions: 1, 2, 3")
    refused(factory("variants", "promote", "growth.chrun", "--why", "new"), "Did you mean 'growth.churn'?")
    refused(factory("variants", "promote", "growth.churn@best", "--why", "new"), "'best'", "challenger, champion")
    refused(factory("variants", "rollback", "growth.churn", "--why", "bad"), "no earlier champion")
    assert champion(made) == 1
    done(factory("variants", "promote", "growth.churn/2", "--why", "Smaller."))
    assert champion(made) == 2
    done(factory("variants", "rollback", "growth.churn", "--why", "Complaints."))
    assert champion(made) == 1
    done(factory("variants", "promote", "growth.churn/3", "--why", "Needed.", "--override"))
    assert champion(made) == 3
    done(factory("variants", "rollback", "growth.churn", "--why", "Enough."))
    assert champion(made) == 1
    history = done(factory("variants", "lineage", "growth.churn", "--json")).json["alias_history"]
    whys = [change["why"] for change in history if change["alias"] == "champion"]
    assert whys[1:] == ["Smaller.", "Rollback: Complaints.", "Override: Needed.", "Rollback: Enough."]
    assert all(change["who"] for change in history)


def champion(made: Made) -> int | None:
    """Return the champion, on which ledger, deployments and MLflow's mirror must agree."""
    with Ledger.open(made.settings.ledger) as ledger:
        version = ledger.alias("growth.churn", "champion")
        assert [d.version for d in ledger.deployment("growth.churn") if d.as_ == "champion"] == [version]
    assert Registry(made.settings).aliases("growth.churn")["champion"] == version
    return version


def test_deployments_are_listed_and_set(made: Made) -> None:
    document = done(factory("deployments", "list", "--json")).json
    assert document["predictor"] is None
    assert [(d["name"], d["as_"]) for d in document["deployments"]] == [("growth.churn", "champion")]
    done(factory("deployments", "set", "growth.churn/2", "--as", "challenger", "--why", "Try it."))
    shown = done(factory("deployments", "list")).out
    assert "not running" in shown
    assert "challenger" in shown
    assert Registry(made.settings).aliases("growth.churn")["challenger"] == 2
    assert "No predictor of this FACTORY_HOME runs." in done(factory("deployments", "stop")).out


def test_predict_prints_and_writes_what_fit_predicted(made: Made) -> None:
    written = pd.read_parquet("predictions.parquet")
    answer = done(factory("predict", "growth.churn/1", "--data", "rows.parquet", "--json")).json
    assert answer["variant"] == "growth.churn/1"
    assert pd.DataFrame(answer["predictions"]).to_numpy() == pytest.approx(written.to_numpy(), abs=1e-9)
    assert "first 20 of 30 rows" in " ".join(
        done(factory("predict", "growth.churn", "--data", "rows.parquet")).out.split()
    )
    done(factory("predict", "growth.churn/1", "--data", "rows.parquet", "--out", "again.csv"))
    again = read_table("again.csv", max_rows=100)
    assert again.to_numpy() == pytest.approx(written.to_numpy(), abs=1e-6)
    pd.DataFrame({"calls": ["many"], "plan": ["pro"]}).to_csv("wrong.csv", index=False)
    refused(factory("predict", "growth.churn", "--data", "wrong.csv"), "2 problems", "calls", "minutes")


def test_verify_finds_a_changed_file(made: Made) -> None:
    assert "is what was registered" in done(factory("variants", "verify", "growth.churn/2")).out
    folder = Registry(made.settings).local_bundle("growth.churn", 2)
    victim = next(path for path in sorted(folder.rglob("*.npz")))
    content = victim.read_bytes()
    try:
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused(factory("variants", "verify", "growth.churn/2"), "digest", code=1)
        refused(factory("predict", "growth.churn/2", "--data", "rows.parquet"), "digest", code=1)
    finally:
        victim.write_bytes(content)
    done(factory("variants", "verify", "growth.churn/2"))


def test_a_finished_request_is_not_made_again(made: Made) -> None:
    with Ledger.open(made.settings.ledger) as ledger:
        request_id = ledger.variant("growth.churn", 2).request_id
    refused(factory("run", request_id), "is registered", "nothing left to do", "factory requests show")
    refused(factory("requests", "cancel", request_id), "is registered", "cannot be cancelled any more")
    refused(factory("requests", "retry", request_id), "is registered", "rejected, failed or cancelled")
    assert len(done(factory("variants", "list", "--json")).json) == 3


def test_submit_and_wait_is_run(made: Made) -> None:
    answer = done(factory("submit", write_order("waited.yaml", name="waited"), "--wait", "--json")).json
    assert answer["state"] == "registered"
    assert answer["variants"][0]["name"] == "growth.waited"


def test_json_goes_alone_to_standard_output(made: Made) -> None:
    for words in (["requests", "list"], ["variants", "list"], ["deployments", "list"], ["recipes", "list"]):
        answer = done(factory(*words, "--json"))
        assert answer.json is not None
        assert answer.err == ""
