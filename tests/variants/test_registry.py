"""Variants in a real MLflow on SQLite: registered once, loaded anywhere, never unpickled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.errors import NotFound, ServiceFault, UntrustedBundle
from factory.settings import Settings
from factory.spec import CurvePoint, Variant
from factory.variants.bundle import Bundle
from factory.variants.contents import folder_size_mb
from factory.variants.mirror import differences
from factory.variants.mlflow_model import LOADER
from factory.variants.registry import Registry

pytestmark = pytest.mark.slow


def variant_of(made, digest: str, **changes: object) -> Variant:
    fields = {
        "name": "growth.churn",
        "version": 0,
        "request_id": "r-1",
        "task": made.bundle.task,
        "metric": "roc_auc",
        "score": 0.8,
        "score_low": 0.75,
        "score_high": 0.85,
        "recipe": "tabular-fast",
        "recipe_digest": "a" * 64,
        "dataset_digest": "b" * 64,
        "bundle_digest": digest,
        "seed": 7,
    }
    return Variant(**{**fields, **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home with space")


@pytest.fixture(scope="module")
def registry(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry = Registry(Settings(home=home))
        registry.warm_up()
        yield registry


@pytest.fixture(scope="module")
def bundle_folder(binary, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    return folder, binary.bundle.save(folder)


def register(registry: Registry, made, saved: tuple[Path, str], **changes: object) -> Variant:
    folder, digest = saved
    return registry.register(
        folder,
        variant=variant_of(made, digest, **changes),
        example=made.test.frame,
        metrics={"roc_auc": 0.8, "f1": float("nan")},
        parameters={"families": "linear, constant"},
        curves={"0 linear": [CurvePoint(step=i, train=1 / (i + 1), validation=None) for i in range(200)]},
        files={"model_card.html": "<p>card", "leaderboard.json": "[]"},
        description="Better than a constant.",
    )


@pytest.fixture(scope="module")
def registered(registry, binary, bundle_folder) -> Variant:
    return register(registry, binary, bundle_folder)


def test_version_carries_its_lineage(registry, registered):
    assert (registered.version, registered.model_uri) == (1, "models:/growth.churn/1")
    assert registered.created is not None
    version = registry.client().get_model_version("growth.churn", "1")
    assert version.tags["factory.request_id"] == "r-1"
    assert version.tags["factory.recipe_digest"] == "a" * 64
    assert version.tags["factory.kind"] == "cold"
    assert version.tags["factory.seed"] == "7"
    assert "factory.parent" not in version.tags
    assert version.description == "Better than a constant."


def test_run_keeps_metrics_curves_and_files(registry, registered):
    client = registry.client()
    run = client.get_run(client.get_model_version("growth.churn", "1").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["roc_auc"] == 0.8
    assert "f1" not in run.data.metrics
    assert run.data.params == {"families": "linear, constant"}
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"model_card.html", "leaderboard.json"}
    history = client.get_metric_history(run.info.run_id, "curve/0 linear/train")
    assert len(history) <= 61
    assert max(point.step for point in history) == 199


def test_artifacts_lie_in_the_home(registry, registered, home):
    folder = registry.local_bundle("growth.churn", 1)
    assert folder.is_relative_to(home / "artifacts" / "growth")
    assert folder_size_mb(folder) > 0


def test_same_request_and_segment_are_registered_once(registry, registered, binary, bundle_folder):
    assert register(registry, binary, bundle_folder) == registered
    africa = register(registry, binary, bundle_folder, segment="Côte d'Ivoire")
    assert africa.version == 2
    assert register(registry, binary, bundle_folder, segment="Côte d'Ivoire").version == 2
    assert register(registry, binary, bundle_folder, request_id="r-2").version == 3


def test_killed_registration_is_done_again(registry, registered, binary, bundle_folder, monkeypatch):
    client = registry.client()

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "create_model_version", kill)
        patch.setattr(client, "set_terminated", kill)
        with pytest.raises(KeyboardInterrupt):
            register(registry, binary, bundle_folder, name="growth.killed", request_id="r-9")
    assert register(registry, binary, bundle_folder, name="growth.killed", request_id="r-9").version == 1
    runs = client.search_runs(
        [client.get_experiment_by_name("growth").experiment_id], "tags.`factory.request_id` = 'r-9'"
    )
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]


def test_local_bundle_is_what_was_registered(registry, registered, binary):
    loaded = Bundle.load(registry.local_bundle("growth.churn", 1), digest=registered.bundle_digest)
    np.testing.assert_allclose(
        loaded.predict_raw(binary.test.frame), binary.bundle.predict_raw(binary.test.frame), atol=1e-6
    )
    with pytest.raises(NotFound, match=r"no version 99 of 'growth\.churn'"):
        registry.local_bundle("growth.churn", 99)


def test_a_bundle_is_found_by_the_ledger_alone(registry, registered, monkeypatch):
    found = registry.local_bundle("growth.churn", 1)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "client", lambda: pytest.fail("MLflow was asked"))
        assert registry.bundle_folder(registered) == found
    for elsewhere in ("", "file:///nowhere"):
        assert registry.bundle_folder(registered.model_copy(update={"artifacts": elsewhere})) == found


@pytest.mark.parametrize(("old", "new"), [(LOADER, "os"), ("code: null", "code: code"), ("data: data", "data: ..")])
def test_model_that_is_not_ours_is_refused(registry, binary, bundle_folder, old, new):
    made = register(registry, binary, bundle_folder, name="growth.forged", request_id=f"forged-{new}")
    description = registry.local_bundle("growth.forged", made.version).parents[1] / "MLmodel"
    text = description.read_text()
    assert old in text
    description.write_text(text.replace(old, new))
    with pytest.raises(UntrustedBundle):
        registry.local_bundle("growth.forged", made.version)


def test_aliases_are_set_cleared_and_compared(registry, registered, binary, bundle_folder):
    made = register(registry, binary, bundle_folder, name="growth.aliases")
    registry.set_alias("growth.aliases", "champion", made.version)
    assert registry.aliases("growth.aliases") == {"champion": 1}
    assert differences({"growth.aliases": {"champion": 1}}, registry.aliases) == []
    (difference,) = differences({"growth.aliases": {"champion": 2}}, registry.aliases)
    assert difference.field == "growth.aliases@champion"
    assert "The ledger says version 2, MLflow says version 1" in difference.message
    registry.set_alias("growth.aliases", "champion", None)
    assert registry.aliases("growth.aliases") == {}
    assert registry.aliases("growth.nobody") == {}
    with pytest.raises(NotFound):
        registry.set_alias("growth.aliases", "champion", 12)


def test_requirement_is_the_distribution(registry, registered):
    model = registry.local_bundle("growth.churn", 1).parents[1]
    requirements = (model / "requirements.txt").read_text().split()
    assert any(line.startswith("model-variant-factory") for line in requirements)
    assert not any(line.partition("=")[0].strip("<>") == "factory" for line in requirements)
    assert not (model / "code").exists()
    assert json.loads((model / "input_example.json").read_text())["columns"] == [
        "age",
        "income",
        "city",
        "member",
        "since",
    ]


def test_mlflow_that_does_not_answer(monkeypatch, tmp_path):
    (tmp_path / "broken.db").write_text("this is no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'broken.db'}")
    with pytest.raises(ServiceFault, match=r"broken\.db could not answer"):
        Registry(Settings(home=tmp_path)).warm_up()


SCRIPT = """
import json, pickle, sys
import mlflow.pyfunc
import pandas as pd

def refuse(*_, **__):
    raise AssertionError("something was unpickled")

pickle.load = pickle.loads = pickle.Unpickler = refuse
rows = pd.DataFrame(json.load(open(sys.argv[1])))
model = mlflow.pyfunc.load_model("models:/growth.churn@champion")
first = model.predict(rows)
second = model.predict(rows.assign(income=None, city=pd.Categorical(["Atlantis"] * len(rows)), age=rows["age"] + 0.0))
assert not any(name == "serve" or name.startswith("serve.") for name in sys.modules)
print(json.dumps([first.to_dict("list"), second.to_dict("list")]))
"""


def test_new_process_predicts_the_same_without_unpickling(registry, registered, binary, tmp_path):
    registry.set_alias("growth.churn", "champion", registered.version)
    frame = binary.test.frame.head(5)
    (tmp_path / "rows.json").write_text(frame.to_json(orient="records", date_format="iso"))
    environment = {"MLFLOW_TRACKING_URI": registry.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "rows.json")],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (pd.DataFrame(answer) for answer in json.loads(done.stdout.splitlines()[-1]))
    pd.testing.assert_frame_equal(first, binary.bundle.predict(frame), check_index_type=False, atol=1e-6)
    unknown = frame.assign(income=np.nan, city="Atlantis")
    pd.testing.assert_frame_equal(second, binary.bundle.predict(unknown), check_index_type=False, atol=1e-6)
