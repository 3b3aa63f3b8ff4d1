"""A variant that was exported predicts in a process that does not know the factory, and says the same."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from factory.errors import Conflict, InvalidRequest, UntrustedBundle
from factory.spec import Task, Variant
from factory.variants.bundle import Bundle
from factory.variants.export import closure, export, requirements
from factory.variants.mlflow_model import save_model
from factory.variants.onnx_file import as_inputs
from tests.serve.conftest import customers, make_bundle, variant_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Variant, Path, Bundle]:
    """A variant, the folder of its MLflow model, and its bundle."""
    from mlflow.models import Model

    columns = ["age", "income", "city", "member", "since"]
    bundle = make_bundle(columns, target="churned", task=Task.BINARY, family="lightgbm")
    folder = tmp_path_factory.mktemp("made")
    digest = bundle.save(folder / "bundle")
    save_model(folder / "bundle", folder / "model", example=customers(3)[columns], model=Model())
    variant = variant_of("growth.churn", 3, request_id="r", task=Task.BINARY, digest=digest)
    return variant.model_copy(update={"created": datetime(2026, 11, 29, tzinfo=UTC)}), folder / "model", bundle


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python as somebody without this project would."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=out.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_predicts_without_the_factory(made: tuple[Variant, Path, Bundle], tmp_path: Path) -> None:
    variant, folder, bundle = made
    out = tmp_path / "exported"
    export(variant, folder, out)
    rows = customers(50).drop(columns=["churned", "spend"])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    done = run(out, str(out / "predict.py"), str(tmp_path / "rows.csv"))
    assert done.returncode == 0, done.stderr
    told = pd.read_csv(io.StringIO(done.stdout))
    right = bundle.predict(rows)
    assert told["prediction"].tolist() == right["prediction"].tolist()
    np.testing.assert_allclose(told["probability_yes"], right["probability_yes"], atol=1e-9)
    where = "import sys; sys.path.insert(0, 'exported'); import predict, factory; print(factory.__file__)"
    assert str(out / "runtime") in run(out, "-c", where).stdout
    assert len((out / "predict.py").read_text().splitlines()) <= 32


def test_only_what_is_needed_comes_along(made: tuple[Variant, Path, Bundle], tmp_path: Path) -> None:
    variant, folder, _ = made
    out = tmp_path / "exported"
    export(variant, folder, out)
    lines = (out / "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0].lower() for line in lines}
    assert {"numpy", "pandas", "pydantic"} <= names
    assert "lightgbm" in names
    assert not {"xgboost", "catboost", "ray", "mlflow", "feast", "torch", "tensorflow", "fastapi", "sqlalchemy"} & names
    assert all("==" in line for line in lines)
    assert "growth.churn/3" in (out / "README.md").read_text()
    assert "| `income` | numeric |" in (out / "README.md").read_text()


def test_what_was_changed_is_refused(made: tuple[Variant, Path, Bundle], tmp_path: Path) -> None:
    variant, folder, _ = made
    out = tmp_path / "exported"
    export(variant, folder, out)
    manifest = out / "bundle" / "variant.json"
    manifest.write_text(manifest.read_text() + " ")
    (tmp_path / "rows.csv").write_text("age\n1\n")
    done = run(out, str(out / "predict.py"), str(tmp_path / "rows.csv"))
    assert done.returncode != 0
    assert "UntrustedBundle" in done.stderr
    with pytest.raises(UntrustedBundle):
        export(variant.model_copy(update={"bundle_digest": "0" * 64}), folder, tmp_path / "other")


def test_a_container_serves_its_mlflow_model(made: tuple[Variant, Path, Bundle], tmp_path: Path) -> None:
    variant, folder, bundle = made
    out = tmp_path / "exported"
    export(variant, folder, out, as_="docker")
    assert '"mlflow", "models", "serve", "-m", "model"' in (out / "Dockerfile").read_text()
    assert any(line.startswith("mlflow==") for line in (out / "requirements.txt").read_text().splitlines())
    rows = customers(3).drop(columns=["churned", "spend"])
    rows["since"] = rows["since"].dt.strftime("%Y-%m-%d")
    rows.to_json(tmp_path / "rows.json", orient="split", index=False)
    # What the server of `mlflow models serve` does with the model and a body of /invocations.
    script = """
import sys, pandas as pd, mlflow.pyfunc
sys.path.insert(0, "exported/runtime")
model = mlflow.pyfunc.load_model("exported/model")
print(model.predict(pd.read_json("rows.json", orient="split", convert_dates=False)).to_json(orient="split"))
"""
    done = run(out, "-c", script)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    at = told["columns"].index("probability_yes")
    right = bundle.predict(rows)["probability_yes"].tolist()
    np.testing.assert_allclose([row[at] for row in told["data"]], right, atol=1e-6)


def test_a_folder_that_is_not_empty_and_an_unknown_format_are_refused(
    made: tuple[Variant, Path, Bundle], tmp_path: Path
) -> None:
    variant, folder, _ = made
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(Conflict, match="is not empty"):
        export(variant, folder, tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "mine"
    with pytest.raises(InvalidRequest, match=r"There is none that is called .pickle."):
        export(variant, folder, tmp_path / "x", as_="pickle")  # type: ignore[arg-type]


def test_every_family_can_be_exported() -> None:
    from factory.plugins import names

    for family in names("families"):
        modules = set(closure(["factory.variants.bundle", f"factory.families.{family}"]))
        assert "factory.variants.bundle" in modules
        assert not {"factory.ledger", "factory.pipeline", "factory.operate"} & modules, family
        assert "numpy" in " ".join(requirements(modules))


def test_as_onnx_it_is_one_file_that_explains_itself(made: tuple[Variant, Path, Bundle], tmp_path: Path) -> None:
    variant, folder, bundle = made
    out = tmp_path / "exported"
    export(variant, folder, out, as_="onnx")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.onnx"]
    readme = (out / "README.md").read_text()
    assert "growth.churn/3" in readme
    assert "| `since` | int64: microseconds since 1970 in UTC" in readme
    assert "| `city` | string; empty is missing |" in readme
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map["digest"] == variant.bundle_digest
    rows = customers(50)
    fed = as_inputs(rows, {one.name: one.type for one in session.get_inputs()})
    told, shares = session.run(None, fed)
    right = bundle.predict(rows)
    assert told.tolist() == right["prediction"].tolist()
    np.testing.assert_allclose(shares[:, 1], right["probability_yes"], atol=1e-6)
