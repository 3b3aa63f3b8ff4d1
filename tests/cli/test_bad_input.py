"""Every bad input that a user may give: one clear error, the right exit code, and nothing half-registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from factory.ledger import Ledger
from factory.settings import Settings

from .conftest import customers, factory
from .refusals import REQUEST, nothing_registered, refused, requests

# --- tables -----------------------------------------------------------------------


def _infinite() -> pd.DataFrame:
    frame = customers()
    frame.loc[:2, "calls"] = np.inf
    frame.loc[7, "minutes"] = -np.inf
    return frame


def _without_a_useful_column() -> pd.DataFrame:
    frame = customers()[["left"]]
    return frame.assign(constant=1, nothing=np.nan, customer=[f"C{i:05d}" for i in range(len(frame))])


def _one_row_of_a_class() -> pd.DataFrame:
    frame = customers()
    frame.loc[0, "left"] = "perhaps"
    return frame


def _two_rows_of_one_class() -> pd.DataFrame:
    frame = customers()
    return frame.assign(left=np.where(frame.index < 2, "yes", "no"))


def _csv(frame: pd.DataFrame, **columns: str) -> bytes:
    return frame.rename(columns=columns).to_csv(index=False).encode()


TABLES: dict[str, tuple[str, Callable[[], bytes], list[str]]] = {
    "empty file": ("empty.csv", bytes, ["path", "'empty.csv' is empty", "Give Parquet, CSV"]),
    "blank file": ("blank.csv", lambda: b"\n\n \n", ["path", "'blank.csv' is empty"]),
    "header only": (
        "header.csv",
        lambda: b"calls,left\n",
        ["path", "The table has 0 rows", "at least 20 are needed"],
    ),
    "another format under this suffix": (
        "text.parquet",
        lambda: _csv(customers()),
        ["path", "'text.parquet' is named as Parquet, but its content is CSV", "table.csv"],
    ),
    "no table at all": ("noise.csv", lambda: bytes(range(256)), ["path", "'noise.csv'", "known formats", "CSV"]),
    "a page instead of the file": ("page.csv", lambda: b"<html><body>Sign in</body></html>", ["path", "'page.csv'"]),
    "broken Parquet": ("cut.parquet", lambda: b"PAR1" + 200 * b"x" + b"PAR1", ["path", "'cut.parquet' cannot be read"]),
    "unknown suffix": (
        "sheet.xlsx",
        lambda: b"PK\x03\x04",
        ["path", "'sheet.xlsx' is a ZIP archive or an Excel workbook", "Arrow"],
    ),
    "ragged rows": ("ragged.csv", lambda: b"calls,left\n1,yes\n2\n3,no,9\n", ["path", "'ragged.csv' cannot be read"]),
    "target absent": (
        "absent.csv",
        lambda: _csv(customers(), left="lefft"),
        ["dataset.target", "no column 'left'", "Did you mean 'lefft'?", "Columns: calls, lefft, minutes, plan"],
    ),
    "one class": (
        "one.csv",
        lambda: _csv(customers().assign(left="yes")),
        ["left", "one class only, 'yes'", "at least two are needed", "name another column as target"],
    ),
    "target missing in every row": (
        "unknown.csv",
        lambda: _csv(customers().assign(left="")),
        ["target 'left' is missing in every row", "name another target"],
    ),
    "duplicate column names": (
        "twice.csv",
        lambda: _csv(customers(), minutes="calls"),
        ["calls", "2 columns have this name", "a name of its own"],
    ),
    "no useful column": (
        "useless.csv",
        lambda: _csv(_without_a_useful_column()),
        ["No column says anything about the target", "constant, customer, nothing"],
    ),
    "ten rows": (
        "ten.csv",
        lambda: _csv(customers(10)),
        ["dataset", "The table has 10 rows", "at least 20 are needed"],
    ),
    "two rows of one of two classes": (
        "rare.csv",
        lambda: _csv(_two_rows_of_one_class()),
        ["dataset.target", "'yes'", "2 rows", "at least 4 rows"],
    ),
    "a class with one row": (
        "single.csv",
        lambda: _csv(_one_row_of_a_class()),
        ["left", "one row only (perhaps)", "each needs two", "Remove or merge them"],
    ),
    "infinite values": (
        "infinite.csv",
        lambda: _csv(_infinite()),
        ["2 problems", "calls: 3 infinite values", "minutes: 1 infinite value", "leave empty"],
    ),
}
AT_THE_DOOR = {
    "empty file", "blank file", "header only", "another format under this suffix", "no table at all",
    "a page instead of the file", "broken Parquet", "unknown suffix", "ragged rows", "target absent", "ten rows",
}  # fmt: skip
"""What a look at the file tells: no request is stored for it."""


@pytest.mark.parametrize("what", TABLES)
def test_a_bad_table(what: str, home: Path) -> None:
    name, content, parts = TABLES[what]
    Path(name).write_bytes(content())
    before = len(requests(home))
    answer = factory("fit", "--train", name, "--target", "left", "--budget", "4s")
    refused(answer, *parts)
    nothing_registered(home)
    found = requests(home)
    if what in AT_THE_DOOR:
        assert len(found) == before
        return
    assert len(found) == before + 1
    error = found[0].error
    assert error is not None
    assert error.message in answer.err.replace("Error: ", "") or len(error.details) > 1
    assert error.details, "the ledger's record names the field"
    with Ledger.open(Settings(home=home).ledger) as ledger:
        assert ledger.trials(found[0].id) == []


def test_a_file_that_does_not_exist_or_may_not_be_read(home: Path) -> None:
    refused(factory("fit", "--train", "none.csv", "--target", "left"), "path", "'none.csv' does not exist")
    Path("folder.csv").mkdir()
    refused(factory("fit", "--train", "folder.csv", "--target", "left"), "path", "'folder.csv' is no file")
    refused(factory("fit", "--train", "nix://bucket/a.csv", "--target", "left"), "path", "'nix://bucket/a.csv'", "nix")
    nothing_registered(home)


def test_infinite_values_in_another_format(home: Path) -> None:
    _infinite().to_parquet("infinite.parquet", index=False)
    answer = factory("fit", "--train", "infinite.parquet", "--target", "left")
    refused(answer, "calls: 3 infinite values", "minutes: 1 infinite value")
    nothing_registered(home)


# --- requests ------------------------------------------------------------------------

ORDERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown recipe": (
        {"recipe": "tabular-fats"},
        ["recipe", "'tabular-fats'", "Did you mean 'tabular-fast'?", "tabular-auto, tabular-fast, tabular-neural"],
    ),
    "a recipe that was changed since": (
        {"recipe": "tabular-fast@00000000"},
        ["recipe", "not '00000000'", "with the new digest"],
    ),
    "unknown family": (
        {"families": ["lightgmb"]},
        ["families.lightgmb", "Did you mean 'lightgbm'?", "Allowed: catboost, constant, lightgbm, linear, xgboost"],
    ),
    "a family that the recipe leaves out": ({"families": ["torch_network"]}, ["families.torch_network", "Allowed: "]),
    "a space that is widened": (
        {"spaces": {"lightgbm": {"num_leaves": [7, 500]}}},
        ["spaces.lightgbm.num_leaves", "[7, 500]", "allowed range 7 to 64", "never widen"],
    ),
    "an unknown parameter": (
        {"spaces": {"catboost": {"dpth": 3}}},
        ["spaces.catboost.dpth", "Did you mean 'depth'?", "Allowed: border_count, categoricals, crosses, depth"],
    ),
    "no budget": ({"budget": {"time_s": 0}}, ["budget.time_s", "greater than 0", "received 0"]),
    "no trials": ({"budget": {"trials": 0}}, ["budget.trials", "greater than or equal to 1", "received 0"]),
    "a budget beyond the ceiling": (
        {"budget": {"time_s": "2h", "trials": 5000, "memory_gb": 99}},
        [
            "budget.time_s: 7200 is beyond the recipe's ceiling; allowed: up to 3600",
            "budget.trials: 5000 is beyond the recipe's ceiling; allowed: up to 1000",
            "budget.memory_gb: 99 is beyond the recipe's ceiling; allowed: up to 16",
        ],
    ),
    "a budget that is no time": ({"budget": {"time_s": "soon"}}, ["budget.time_s", "'60s', '5m' or '1h'", "'soon'"]),
    "a ceiling above the recipe's": ({"ceilings": {"latency_ms": 50}}, ["ceilings.latency_ms", "50", "up to 20"]),
    "more workers than allowed": ({"resources": {"workers": 2}}, ["resources.workers", "2", "up to 1"]),
    "unknown metric": ({"metric": "roc_uac"}, ["metric: there", "'roc_uac'", "Did you mean 'roc_auc'?"]),
    "unknown field": ({"buget": {}}, ["buget", "Did you mean 'budget'?", "Allowed: budget, ceilings, dataset"]),
    "a field that is missing": ({"team": None}, ["team", "received None"]),
    "problems of every kind together": (
        {
            "team": "Growth!",
            "budget": {"time_s": -1},
            "families": ["lightgmb", "catboost"],
            "spaces": {"catboost": {"depth": [1, 20]}},
            "metric": "roc_uac",
        },
        ["5 problems", "team", "'Growth!'", "budget.time_s", "families.lightgmb", "spaces.catboost.depth", "metric"],
    ),
    "an unknown recipe and another problem": (
        {"recipe": "tabular-fats", "budget": {"time_s": 0}},
        ["2 problems", "recipe: There is no recipe 'tabular-fats'", "budget.time_s", "tabular-fast, tabular-neural"],
    ),
}


@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("command", ["submit", "run"])
def test_a_bad_request_is_not_stored(command: str, what: str, home: Path) -> None:
    changes, parts = ORDERS[what]
    customers().to_csv("customers.csv", index=False)
    Path("request.yaml").write_text(yaml.safe_dump(REQUEST | changes))
    before = len(requests(home))
    refused(factory(command, "request.yaml"), *parts)
    assert len(requests(home)) == before
    nothing_registered(home)


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--budget", "0", ["budget.time_s", "greater than 0", "received 0"]),
        ("--budget", "-5s", ["budget.time_s", "'60s', '5m' or '1h'", "'-5s'"]),
        ("--budget", "9h", ["budget.time_s", "32400", "allowed: up to 14400"]),
        ("--recipe", "nothing", ["recipe", "'nothing'", "tabular-auto"]),
        ("--task", "ranking", ["dataset.task", "'ranking'", "'binary', 'multiclass' or 'regression'"]),
        ("--metric", "r3", ["metric", "'r3'", "Usual ones", "roc_auc"]),
        ("--name", "churn", ["--name", "'churn'", "growth.churn"]),
        ("--gap", "3", ["--gap 3", "--time"]),
        ("--type", "age", ["--type", "'age'", "COLUMN=TYPE", "categorical"]),
        ("--family", "forest", ["families.forest", "'forest'", "random_forest"]),
        ("--latency-ms", "0", ["ceilings.latency_ms", "greater than 0"]),
        ("--memory-gb", "900", ["budget.memory_gb", "900", "allowed: up to"]),
        ("--seed", "-1", ["seed", "received -1", "greater than or equal to 0"]),
    ],
)
def test_a_bad_option_of_fit(option: str, value: str, parts: list[str], home: Path) -> None:
    customers().to_csv("customers.csv", index=False)
    before = len(requests(home))
    refused(factory("fit", "--train", "customers.csv", "--target", "left", option, value), *parts)
    assert len(requests(home)) == before
    nothing_registered(home)


@pytest.mark.parametrize(
    ("test", "out", "parts"),
    [
        ("none.csv", "predictions.parquet", ["'none.csv' does not exist"]),
        ("customers.csv", "predictions", ["'predictions' has no suffix", ".parquet"]),
        ("customers.csv", "none/predictions.csv", ["no folder 'none'", "Create the folder"]),
    ],
)
def test_rows_that_cannot_be_predicted_are_told_before_the_search(
    test: str, out: str, parts: list[str], home: Path
) -> None:
    customers().to_csv("customers.csv", index=False)
    before = len(requests(home))
    refused(factory("fit", "--train", "customers.csv", "--target", "left", "--test", test, "--out", out), *parts)
    assert len(requests(home)) == before


def test_test_and_out_go_together(home: Path) -> None:
    answer = factory("fit", "--train", "customers.csv", "--target", "left", "--out", "p.csv")
    refused(answer, "--test and --out go together")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["(document)", "'name: value'", "received None"]),
        ("- team", ["(document)", "received ['team']"]),
        ("team: [growth", ["'request.yaml' is not YAML"]),
        ("team: &a growth\nname: *a\n", ["'request.yaml' is not YAML", "anchors or aliases"]),
        ("team: !!python/object/apply:os.getpid []", ["'request.yaml' is not YAML", "python/object"]),
        ("1: 2", ["the name 1 is no text"]),
        ("name: " + "[" * 3_000, ["'request.yaml' is not YAML", "nesting depth"]),
        ("seed: " + "9" * 5_000, ["'request.yaml' is not YAML"]),
    ],
)
def test_a_file_that_is_no_request(content: str, parts: list[str], home: Path) -> None:
    Path("request.yaml").write_text(content)
    refused(factory("submit", "request.yaml"), *parts)
    assert requests(home) == [] or nothing_registered(home) is None


def test_a_request_that_does_not_exist(home: Path) -> None:
    refused(factory("submit", "nowhere.yaml"), "'nowhere.yaml' cannot be read", "No such file")
    refused(factory("run", "r-20200101"), "There is no request 'r-20200101'", "factory requests list")
    refused(factory("requests", "show", "r-20200101"), "There is no request 'r-20200101'")
    refused(factory("predict", "no.body", "--data", "x.csv"), "There is no variant 'no.body'")
    refused(factory("recipes", "show", "tabular"), "There is no recipe 'tabular'", "Allowed: tabular-auto")
