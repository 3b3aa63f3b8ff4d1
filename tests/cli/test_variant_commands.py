"""Variants from the command line: made, shown, promoted, predicted with and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from factory.data.tables import read_table
from factory.ledger import Ledger
from factory.settings import Settings
from factory.variants.registry import Registry

from .conftest import Answer, customers, factory
from .orders import done, refused, write_order


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
    as_canary = ("--as", "canary", "--percent", "5")
    refused(factory("deployments", "set", "growth.churn/3", *as_canary), "turned down by its gate", "shadow")
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
