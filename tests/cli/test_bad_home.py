"""Feature stores, ports, settings and homes that cannot be used: one error, one hint, nothing half-made."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import RequestState
from factory.variants.registry import Registry

from .conftest import Answer, customers, factory
from .refusals import REQUEST, nothing_registered, refused, requests

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
