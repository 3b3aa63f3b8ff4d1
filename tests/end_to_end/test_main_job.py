"""The main job, as a user runs it: two requests through Ray Tune into MLflow, past a gate, and out over HTTP.

Every command is a process of its own. Nothing is replaced: Ray, Feast (DuckDB and SQLite), MLflow (SQLite) and
Ray Serve behind HAProxy are started by the commands themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
import tritonclient.http as triton
import yaml

from factory.data.features import join
from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import RequestState, TrialState
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry

pytestmark = pytest.mark.slow

LIMIT_S = 300
N_TRIALS = 20
"""Enough that some are left when Ray's workers have taken over from the inline thread."""
TOLERANCE = 1e-6
TUMOUR, RICHER = "clinic.tumour", "atlas.above"
COUNTRIES = ("Chile", "Germany", "Kenya", "Japan", "New Zealand")

LOAD = """
import json, sys
import mlflow, pandas as pd
name, uri, rows = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
answer = model.predict(pd.DataFrame(json.loads(rows)))
assert not [m for m in sys.modules if m.partition(".")[0] == "serve"]
print(json.dumps(answer.to_dict("records")))
"""


@dataclass(frozen=True)
class Job:
    """A home, and what its commands said."""

    settings: Settings
    tumour: dict[str, Any]
    countries: dict[str, Any]

    def run(self, *arguments: str, code: int = 0) -> Any:
        return run(self.settings.root, *arguments, code=code)


@dataclass(frozen=True)
class Served:
    job: Job
    url: str
    pid: int
    headers: dict[str, str]

    @property
    def how(self) -> dict[str, Any]:
        return {"headers": self.headers, "timeout": 60, "trust_env": False}

    def predict(self, name: str, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """Return what ``X-Variant`` says and the predictions."""
        answer = httpx.post(f"{self.url}/variants/{name}/invocations", json=body, **self.how)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Variant"], answer.json()["predictions"]


def environment(home: Path) -> dict[str, str]:
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FACTORY_") and k not in dropped}
    return kept | {"FACTORY_HOME": str(home), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def run(home: Path, *arguments: str, code: int = 0) -> Any:
    """Run ``factory ARGUMENTS --json`` as a process of its own and return what it printed."""
    command = [sys.executable, "-c", "from factory.cli import main; main()", *arguments, "--json"]
    done = subprocess.run(
        command, env=environment(home), cwd=home.parent, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def processes_of(home: Path) -> list[str]:
    """Return what runs with this home in its environment: drivers, Ray's processes, the predictor, HAProxy."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("FACTORY_HOME") == str(home)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def breast_cancer() -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    return data.data.assign(diagnosis=data.target.map(dict(enumerate(data.target_names))))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    home = folder / "home"
    breast_cancer().to_csv(folder / "tumour.csv", index=False)
    orders: dict[str, dict[str, Any]] = {
        "tumour": {
            "recipe": "tabular-auto",
            "dataset": {"path": "tumour.csv", "target": "diagnosis"},
            "families": ["constant", "lightgbm", "linear", "extra_trees"],
            "budget": {"time_s": 180, "trials": N_TRIALS},  # long enough for Ray
        },
        "above": {
            "recipe": "tabular-fast",
            "dataset": {
                "entities": str(home / "features" / "data" / "entities" / "above_median.parquet"),
                "target": "above_median_in_5_years",
                "feature_service": "country_v1",
            },
            "families": ["linear", "lightgbm"],
            "segments": {"by": "continent", "min_rows": 200},
            "budget": {"time_s": 60, "trials": 4},
        },
    }
    for name, order in orders.items():
        team = {"tumour": "clinic", "above": "atlas"}[name]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"team": team, "name": name, **order}))
    run(home, "features", "apply")
    made = {name: run(home, "run", f"{name}.yaml") for name in orders}
    run(home, "features", "materialize")
    assert processes_of(home) == [], "a finished command leaves no process"
    return Job(Settings(home=home), made["tumour"], made["above"])


@pytest.fixture(scope="module")
def served(job: Job) -> Iterator[Served]:
    started = job.run("deployments", "start", "--port", "0")
    try:
        assert started["token"], "the first start of all shows the first token"
        yield Served(job, started["url"], started["pid"], {"authorization": f"Bearer {started['token']}"})
    finally:
        run_quietly(job.settings.root, "deployments", "stop")


def run_quietly(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", "from factory.cli import main; main()", *arguments]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout


def in_a_new_process(job: Job, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Predict with what MLflow gives for ``models:/NAME@champion``, where nothing of ``serve/`` is imported."""
    records = rows.to_json(orient="records", double_precision=15)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name, job.settings.tracking_uri, records],
        env=environment(job.settings.root),
        cwd=job.settings.root,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))


def assert_same(answer: list[dict[str, Any]] | pd.DataFrame, expected: pd.DataFrame) -> None:
    """Labels are equal, and probabilities to within the tolerance."""
    found = pd.DataFrame(answer)
    assert list(found["prediction"]) == list(expected["prediction"])
    probabilities = [c for c in expected.columns if c.startswith("probability_")]
    assert probabilities
    assert np.abs(found[probabilities].to_numpy() - expected[probabilities].to_numpy()).max() <= TOLERANCE


def test_a_table_becomes_a_registered_champion(job: Job) -> None:
    assert job.tumour["state"] == "registered"
    [variant] = job.tumour["variants"]
    assert (variant["name"], variant["version"], variant["state"]) == (TUMOUR, 1, "registered")
    assert variant["score"] > 0.95
    with Ledger.open(job.settings.ledger) as ledger:
        request_id = job.tumour["request"]
        states = [event.state for event in ledger.events(request_id) if event.kind == "state"]
        trials = ledger.trials(request_id)
        assert ledger.alias(TUMOUR, "champion") == 1
    assert states == [
        RequestState.RECEIVED,
        RequestState.QUEUED,
        RequestState.PREPARING,
        RequestState.SEARCHING,
        RequestState.EVALUATING,
        RequestState.REGISTERED,
    ]
    assert len(trials) == N_TRIALS
    assert {t.state for t in trials} <= {TrialState.SUCCEEDED, TrialState.PRUNED}
    assert all(t.reason for t in trials if t.state is TrialState.PRUNED)
    assert {t.family for t in trials} >= {"lightgbm", "linear", "extra_trees"}


def test_trials_ran_on_ray_tune(job: Job) -> None:
    workspace = job.settings.workspace(job.tumour["request"])
    assert list(workspace.glob("pooled/tune/search-pooled/TrialWorker_*"))


def test_an_entity_table_becomes_a_variant_for_each_continent_and_a_pooled_one(job: Job) -> None:
    assert job.countries["state"] == "registered"
    variants = {v["segment"]: v for v in job.countries["variants"]}
    assert {"", "Africa", "Americas", "Asia"} <= set(variants)
    assert "Oceania" not in variants, "too few rows: served by the pooled variant"
    for segment, variant in variants.items():
        assert variant["name"] == RICHER + (f".{segment.lower()}" if segment else "")
        assert variant["feature_service"] == "country_v1"
        assert variant["parent"] == (RICHER if segment else None)
        assert len(variant["feature_service_digest"]) == 64
    logs = job.run("requests", "logs", job.countries["request"])
    assert any("'Oceania' is served by the pooled variant" in event["message"] for event in logs)


def test_mlflow_holds_the_lineage(job: Job) -> None:
    registry = Registry(job.settings)
    for variant in (*job.tumour["variants"], *job.countries["variants"]):
        version = registry.client().get_model_version(variant["name"], str(variant["version"]))
        for field in ("request_id", "recipe_digest", "dataset_digest", "bundle_digest", "kind", "seed"):
            assert version.tags[f"factory.{field}"] == str(variant[field])
        if variant["state"] == "registered":
            assert registry.aliases(variant["name"])["champion"] == variant["version"]


def test_a_new_process_predicts_what_the_endpoint_answers(served: Served) -> None:
    rows = breast_cancer().drop(columns="diagnosis").iloc[::40].reset_index(drop=True)
    said, answer = served.predict(
        TUMOUR, {"dataframe_split": json.loads(rows.to_json(orient="split", double_precision=15))}
    )
    assert said == f"{TUMOUR}/1"
    assert_same(answer, in_a_new_process(served.job, TUMOUR, rows))
    said, one = served.predict(
        TUMOUR, {"dataframe_records": json.loads(rows.head(1).to_json(orient="records", double_precision=15))}
    )
    assert_same(one, pd.DataFrame(answer).head(1))


def test_the_open_inference_protocol_answers_the_same(served: Served) -> None:
    rows = breast_cancer().drop(columns="diagnosis").iloc[::40].reset_index(drop=True)
    _, expected = served.predict(TUMOUR, {"dataframe_records": rows.to_dict("records")})
    tensors = [
        {"name": name, "shape": [len(rows)], "datatype": "FP64", "data": rows[name].tolist()} for name in rows.columns
    ]
    answer = httpx.post(f"{served.url}/v2/models/{TUMOUR}/infer", json={"inputs": tensors}, **served.how)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Variant"] == f"{TUMOUR}/1"
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert_same(pd.DataFrame(outputs), pd.DataFrame(expected))
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        inputs = []
        for name in rows.columns:
            inputs.append(triton.InferInput(name, [len(rows)], "FP64"))
            inputs[-1].set_data_from_numpy(rows[name].to_numpy())
        got = client.infer(TUMOUR, inputs, model_version="1", headers=dict(served.headers))
    columns = {name: got.as_numpy(name) for name in outputs}
    columns["prediction"] = np.array([value.decode() for value in columns["prediction"]])
    assert_same(pd.DataFrame(columns), pd.DataFrame(expected))


def test_entities_are_answered_as_their_offline_features_are_predicted(served: Served) -> None:
    settings = served.job.settings
    with Ledger.open(settings.ledger) as ledger:
        version = ledger.alias(RICHER, "champion")
        assert version is not None
        variant = ledger.variant(RICHER, version)
    bundle = Bundle.load(Registry(settings).local_bundle(RICHER, version), digest=variant.bundle_digest)
    table = pd.read_parquet(settings.feature_store / "data" / "entities" / "above_median.parquet")
    continents = table.drop_duplicates("country").set_index("country")["continent"]
    entities = pd.DataFrame({"country": COUNTRIES, "continent": [continents[c] for c in COUNTRIES]})
    now = entities.assign(event_timestamp=datetime.now(UTC))
    offline = join(now, timestamp="event_timestamp", feature_service="country_v1", settings=settings)
    assert int(offline.missing_per_row.sum()) == 0
    said, answer = served.predict(RICHER, {"entities": entities.to_dict("records")})
    assert said == f"{RICHER}/{version}"
    assert_same(answer, bundle.predict(offline.frame))
    assert_same(answer, in_a_new_process(served.job, RICHER, offline.frame))


def test_a_segments_variant_is_served_under_its_own_name(served: Served) -> None:
    body = {"entities": [{"country": "Kenya", "continent": "Africa"}]}
    said, [answer] = served.predict(f"{RICHER}.africa", body)
    assert said == f"{RICHER}.africa/1"
    _, [pooled] = served.predict(RICHER, body)
    assert answer["probability_yes"] != pooled["probability_yes"]


def test_a_served_request_says_so(served: Served) -> None:
    assert served.job.run("requests", "show", served.job.tumour["request"])["request"]["state"] == "serving"
    listed = served.job.run("deployments", "list")
    assert listed["predictor"] == served.url
    assert {TUMOUR, RICHER, f"{RICHER}.africa"} <= {d["name"] for d in listed["deployments"]}


def test_a_gate_that_says_no_leaves_the_champion_untouched(served: Served) -> None:
    job = served.job
    folder = job.settings.root.parent
    order = yaml.safe_load((folder / "tumour.yaml").read_text())
    order |= {"families": ["linear"], "budget": {"time_s": 20, "trials": 1}, "gates": {"min_improvement": 10}}
    (folder / "worse.yaml").write_text(yaml.safe_dump(order))
    made = job.run("run", "worse.yaml", code=3)
    assert made["state"] == "rejected"
    [variant] = made["variants"]
    assert (variant["name"], variant["version"], variant["state"]) == (TUMOUR, 2, "rejected")
    with Ledger.open(job.settings.ledger) as ledger:
        assert ledger.alias(TUMOUR, "champion") == 1
        assert [c.version for c in ledger.alias_history(TUMOUR)] == [1]
        assert [d.version for d in ledger.deployment(TUMOUR)] == [1]
        [reason] = [event.message for event in ledger.events(made["request"]) if event.kind == "gate"]
    assert reason.startswith(f"{TUMOUR}/2: Not passed.")
    assert f"of the champion {TUMOUR}/1" in reason
    assert "more than 10 in 0.0% of 1000 resamples" in reason
    registry = Registry(job.settings)
    assert registry.aliases(TUMOUR) == {"champion": 1}
    assert registry.client().get_model_version(TUMOUR, "2").tags["factory.state"] == "rejected"
    row = json.loads(breast_cancer().drop(columns="diagnosis").head(1).to_json(orient="records", double_precision=15))
    said, _ = served.predict(TUMOUR, {"dataframe_records": row})
    assert said == f"{TUMOUR}/1"


def test_stop_leaves_no_process(served: Served) -> None:
    home = served.job.settings.root
    assert psutil.pid_exists(served.pid)
    assert processes_of(home) != []
    assert "The predictor is stopped." in run_quietly(home, "deployments", "stop")
    assert processes_of(home) == []
    assert not psutil.pid_exists(served.pid)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/v2/health/live", timeout=5, trust_env=False)
