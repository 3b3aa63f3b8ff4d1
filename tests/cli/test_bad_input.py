"""Every bad input that a user may give: one clear error, the right exit code, and nothing half-registered."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from factory.ledger import Ledger, RequestRecord
from factory.settings import Settings
from factory.spec import RequestState
from factory.variants.registry import Registry

from .conftest import Answer, customers, factory

REQUEST: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
}


def refused(answer: Answer, *parts: str, code: int = 2) -> None:
    """One error and one hint, with all parts in it, and no traceback."""
    assert answer.code == code, answer.err
    assert [part for part in parts if part not in answer.said] == [], answer.err
    starts = [line.partition(": ")[0] for line in answer.err.splitlines()]
    assert (starts.count("Error"), starts.count("Hint")) == (1, 1)
    assert "Traceback" not in answer.err
    assert answer.out.count("\n") <= 1, "no more than the line with the request's id"


def requests(home: Path) -> list[RequestRecord]:
    if not (home / "ledger.db").exists():
        return []
    with Ledger.open(Settings(home=home).ledger) as ledger:
        assert ledger.variants() == []
        assert ledger.deployments() == []
        return ledger.requests(limit=1000)


def nothing_registered(home: Path) -> None:
    """MLflow was not even opened, and what was stored ended as failed by the user's fault."""
    assert not (home / "mlflow.db").exists()
    assert not (home / "artifacts").exists()
    for record in requests(home):
        assert (record.state, record.fault) == (RequestState.FAILED, "user")
        assert record.driver is None


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
        ("team: [growth", ["'request.yaml' cannot be read"]),
        ("team: &a growth\nname: *a\n", ["'request.yaml' uses YAML aliases"]),
        ("team: !!python/object/apply:os.getpid []", ["'request.yaml' cannot be read", "python/object"]),
        ("1: 2", ["problems", "team: This field is required"]),
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


# --- feature stores --------------------------------------------------------------------


def _order_features(**dataset: str) -> Answer:
    Path("features.yaml").write_text(
        yaml.safe_dump(REQUEST | {"dataset": {"entities": "entities.csv", "target": "grew", **dataset}})
    )
    return factory("run", "features.yaml")


def _entities(**columns: Any) -> None:
    rows = {
        "country": ["Chile", "Kenya"] * 15,
        "event_timestamp": ["2000-01-01", "2003-06-01"] * 15,
        "grew": ["yes", "no"] * 15,
    }
    pd.DataFrame(rows | columns).to_csv("entities.csv", index=False)


def test_a_feature_service_that_does_not_exist(home: Path) -> None:
    _entities()
    answer = _order_features(feature_service="country_v2")
    refused(
        answer, "feature_service", "'country_v2'", "Did you mean 'country_v1'?", "country_comparison_v1, country_v1"
    )
    nothing_registered(home)


def test_entity_keys_that_the_store_does_not_know(home: Path) -> None:
    _entities(country=["Atlantis", "Utopia"] * 15)
    answer = _order_features(feature_service="country_v1")
    refused(answer, "country", "'country_v1' knows", "Atlantis", "the store has, for example", "Afghanistan")
    nothing_registered(home)


def test_an_entity_table_without_its_key(home: Path) -> None:
    _entities()
    table = pd.read_csv("entities.csv").rename(columns={"country": "land", "event_timestamp": "when"})
    table.to_csv("entities.csv", index=False)
    before = len(requests(home))
    answer = _order_features(feature_service="country_v1")
    refused(answer, "dataset.timestamp: There is no column 'event_timestamp'", "Columns: grew, land, when")
    assert len(requests(home)) == before, "that is told before a request is stored"
    table.rename(columns={"when": "event_timestamp"}).to_csv("entities.csv", index=False)
    answer = _order_features(feature_service="country_v1")
    refused(answer, "country: This entity key is not a column")
    nothing_registered(home)


def test_moments_at_which_nothing_was_known(home: Path) -> None:
    _entities(event_timestamp="1901-01-01")
    answer = _order_features(feature_service="country_v1")
    refused(answer, "No row of the entity table finds a value", "1901-01-01", "1952-12-31")
    nothing_registered(home)


# --- ports and homes -------------------------------------------------------------------


@pytest.mark.parametrize("by", ["option", "setting"])
def test_a_busy_port(by: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        if by == "setting":
            monkeypatch.setenv("FACTORY_SERVE_PORT", port)
        answer = factory("deployments", "start", *(["--port", port] if by == "option" else []))
    refused(answer, f"Port {port} on 127.0.0.1", f"Process {os.getpid()}", "another port", "FACTORY_SERVE_PORT")
    assert not (home / "predictor.json").exists()
    assert not (home / "logs").exists()


@pytest.mark.parametrize("port", ["-1", "70000"])
def test_a_port_that_cannot_be(port: str, home: Path) -> None:
    answer = factory("deployments", "start", "--port", port)
    assert answer.code == 2
    assert "--port" in answer.said
    assert "Traceback" not in answer.err


def test_settings_that_are_not_valid_are_all_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CPUS", "none")
    monkeypatch.setenv("FACTORY_SERVE_PORT", "99999")
    refused(
        factory("requests", "list"), "2 problems", "FACTORY_CPUS", "FACTORY_SERVE_PORT", "less than or equal to 65535"
    )


@pytest.mark.parametrize(
    "words", [["requests", "list"], ["submit", "request.yaml"], ["deployments", "start", "--port", "0"], ["demo"]]
)
def test_a_home_that_cannot_be_made(words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    Path("request.yaml").write_text(yaml.safe_dump(REQUEST))
    monkeypatch.setenv("FACTORY_HOME", str(Path("file/home").absolute()))
    refused(
        factory(*words), "FACTORY_HOME", "file/home' cannot be written", "Not a directory", "set FACTORY_HOME", code=1
    )


def test_a_ledger_that_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("not-a-ledger.db").write_bytes(b"something else" * 100)
    monkeypatch.setenv("FACTORY_LEDGER_URL", "sqlite:///not-a-ledger.db")
    refused(factory("requests", "list"), "FACTORY_LEDGER_URL", "not-a-ledger.db", "restore a backup", code=1)


def test_doctor_says_what_is_wrong_with_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("FACTORY_HOME", str(Path("file/home").absolute()))
    answer = factory("doctor", "--json")
    assert answer.code == 1
    wrong = {check["name"]: check for check in answer.json if check["state"] == "wrong"}
    assert {"home", "ledger"} <= set(wrong)
    assert wrong["home"]["hint"]


@cache
def can_mount() -> bool:
    """Whether this user may mount file systems that nobody else sees."""
    try:
        done = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


own_mounts = pytest.mark.skipif(not can_mount(), reason="needs `unshare -rm` (user namespaces) to mount a small disk")


def on_mounts(mounts: str, *arguments: str) -> Answer:
    """Run ``factory`` as a process of its own, in a mount namespace that is set up by a shell script first."""
    command = shlex.join([sys.executable, "-c", "from factory.cli import main; main()", *arguments])
    script = f"set -e; {mounts}; exec {command}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


@own_mounts
def test_a_full_home(home: Path) -> None:
    home.mkdir(exist_ok=True)
    full = f"mount -t tmpfs -o size=64k tmpfs {home}; head -c 65536 /dev/zero > {home}/ballast"
    for words in (["requests", "list"], ["fit", "--train", "customers.csv", "--target", "left"]):
        answer = on_mounts(full, *words)
        refused(answer, "FACTORY_HOME", "cannot be written", "No space left on device", "Free some space", code=1)


@pytest.mark.skipif(can_mount(), reason="a disk that is full for real is tested")
def test_a_full_home_without_mounts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where no small disk can be mounted: the system's answer to the first write is replaced."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(factory("requests", "list"), "FACTORY_HOME", "No space left on device", "Free some space", code=1)


@own_mounts
def test_a_home_that_may_only_be_read(home: Path) -> None:
    home.mkdir(exist_ok=True)
    read_only = f"mount --bind {home} {home}; mount -o remount,ro,bind {home}"
    answer = on_mounts(read_only, "fit", "--train", "customers.csv", "--target", "left")
    refused(answer, "FACTORY_HOME", "cannot be written", "Read-only file system", "set FACTORY_HOME", code=1)


@own_mounts
@pytest.mark.slow
@pytest.mark.parametrize(
    ("full", "parts"),
    [
        ("artifacts", ["artifacts of MLflow could not be written", "No space left on device", "Free some space"]),
        ("requests", ["No space left on device"]),
    ],
)
def test_a_disk_that_becomes_full_leaves_nothing_half_registered(
    full: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    customers().to_csv("customers.csv", index=False)
    order = REQUEST | {"families": ["linear"], "budget": {"time_s": 4, "trials": 1}}
    Path("request.yaml").write_text(yaml.safe_dump(order))
    folder = tmp_path / "home" / full
    folder.mkdir(parents=True)
    answer = on_mounts(f"mount -t tmpfs -o size=16k tmpfs {folder}", "run", "request.yaml")
    refused(answer, *parts, code=1)
    settings = Settings(home=tmp_path / "home")
    assert Registry(settings).aliases("growth.churn") == {}
    assert Registry(settings).client().search_model_versions() == []
    with Ledger.open(settings.ledger) as ledger:
        assert ledger.variants() == []
        assert ledger.alias("growth.churn", "champion") is None
        [record] = ledger.requests()
    assert (record.state, record.fault) == (RequestState.FAILED, "system")
