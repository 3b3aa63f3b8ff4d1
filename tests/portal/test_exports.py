"""Versions that are taken away: an archive of one's own team's version, or why there is none."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from factory.data.dataset import from_frame
from factory.spec import FileDataset, Task
from factory.variants.bundle import Bundle
from factory.variants.mlflow_model import save_model
from serve.portal import exporting
from tests.answers import error_of
from tests.portal.conftest import SETUP, World
from tests.serve.conftest import customers, fitted, make_bundle

COLUMNS = ["age", "income", "city", "member", "since"]
PLACE = "/variants/growth.churn/versions/1/export"


def saved(bundle: Bundle, folder: Path, example: pd.DataFrame) -> tuple[Path, str]:
    """Return the folder of a bundle's MLflow model, and the bundle's digest."""
    from mlflow.models import Model

    digest = bundle.save(folder / "bundle")
    save_model(folder / "bundle", folder / "model", example=example, model=Model())
    return folder / "model", digest


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    bundle = make_bundle(COLUMNS, target="churned", task=Task.BINARY, family="lightgbm")
    return saved(bundle, tmp_path_factory.mktemp("trees"), customers(3)[COLUMNS])


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model of texts, which ONNX does not have."""
    texts = [f"good number {i % 7} and long enough word{i}" for i in range(60)]
    frame = pd.DataFrame({"review": texts, "y": [0.0, 1.0] * 30})
    dataset = from_frame(frame, FileDataset(path="r.parquet", target="y", task=Task.REGRESSION))
    bundle = fitted(dataset, task=Task.REGRESSION, family="constant", ignored=("y",))
    return saved(bundle, tmp_path_factory.mktemp("reviews"), frame[["review"]])


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    yield
    exporting._looked_at.cache_clear()


def stored(world: World, made: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Let the registry have a model for every version, and the ledger one."""
    model, digest = made
    world.made(**more)
    monkeypatch.setattr(exporting.Registry, "is_made", True)
    monkeypatch.setattr(exporting.Registry, "local_model", lambda *_: model)
    real = world.ledger.variant("growth.churn", 1).model_copy(update={"bundle_digest": digest})
    monkeypatch.setattr(type(world.ledger), "variant", lambda *_, **__: real)


@pytest.mark.parametrize(
    ("query", "holds", "name"),
    [
        ({}, {"predict.py", "README.md", "requirements.txt"}, "growth.churn-1.zip"),
        ({"format": "docker"}, {"Dockerfile", "predict.py"}, "growth.churn-1-docker.zip"),
        ({"format": "onnx"}, {"model.onnx", "README.md"}, "growth.churn-1-onnx.zip"),
    ],
)
def test_a_version_is_sent_as_an_archive(
    query: dict[str, str],
    holds: set[str],
    name: str,
    world: World,
    trees: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(world, trees, monkeypatch)
    response = world("growth/deploy").get(PLACE, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert int(response.headers["content-length"]) == len(response.content)
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert {f"growth.churn-1/{one}" for one in holds} <= set(archive.namelist())
        assert archive.testzip() is None
    (row,) = [one for one in world.ledger.audit_page(limit=200).items if one.action == "variant.export"]
    assert (row.subject, row.detail) == ("growth.churn", {"version": 1, "format": query.get("format", "folder")})


def test_what_onnx_does_not_have_is_told_in_words(
    world: World, reviews: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(world, reviews, monkeypatch)
    told = world("growth/deploy").get(f"{PLACE}/onnx").json()
    assert told["possible"] is False
    assert told["message"] == "ONNX does not have the text column 'review'."
    assert "as a folder" in told["hint"]
    error = error_of(world("growth/deploy").get(PLACE, params={"format": "onnx"}), 409)
    assert error["message"] == told["message"]


def test_what_onnx_has_is_told_too(world: World, trees: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    stored(world, trees, monkeypatch)
    told = world("growth/deploy").get(f"{PLACE}/onnx").json()
    assert told == {"possible": True, "message": "", "hint": ""}


def test_a_large_version_is_not_sent(world: World) -> None:
    world.made(size_mb=exporting.MOST_MB + 1)
    for path in (PLACE, f"{PLACE}/onnx"):
        assert "at most 2,000 MB are sent" in error_of(world("growth/deploy").get(path), 409)["message"]


def test_files_that_are_not_there_are_told(world: World) -> None:
    world.made()
    for path in (PLACE, f"{PLACE}/onnx"):
        assert "are not kept here" in error_of(world("growth/deploy").get(path), 404)["message"]


def test_only_ones_own_is_sent(world: World) -> None:
    world.made()
    error_of(world("growth/read").get(PLACE), 403)
    error_of(world("risk/admin").get(PLACE), 404)
    world.ledger.share("variant", "growth.churn", team="growth", with_team="risk", by=SETUP)
    error_of(world("risk/admin").get(PLACE), 403)
    error_of(world("growth/deploy").get(PLACE, params={"format": "pickle"}), 400)
