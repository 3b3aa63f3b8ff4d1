"""Small data, plans without files, and a family that does what a test asks it to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from factory import plugins
from factory.data.dataset import Dataset, from_frame
from factory.search.metric import Metric
from factory.search.plan import Plan, make_plan
from factory.search.splits import folds
from factory.search.trial import TrialData
from factory.spec import FileDataset, Recipe, Task, Trial, TrialState, VariantRequest

PROBE = Path(__file__).parent / "probe"
METRICS = {Task.BINARY: "roc_auc", Task.MULTICLASS: "neg_log_loss", Task.REGRESSION: "r2"}
TARGETS = {Task.BINARY: "flag", Task.MULTICLASS: "grade", Task.REGRESSION: "amount"}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the family of ``tests/search/probe``, here and in the processes that are started from here."""
    monkeypatch.syspath_prepend(str(PROBE))
    monkeypatch.setenv("PYTHONPATH", str(PROBE))
    plugins._registry.cache_clear()
    yield
    plugins._registry.cache_clear()


def make_frame(n_rows: int = 240, *, seed: int = 0) -> pd.DataFrame:
    """Numbers, a category, a time and groups, and targets of each task that they explain partly."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=n_rows), generator.normal(size=n_rows)
    city = generator.choice(["Bern", "Genf", "Basel"], n_rows)
    signal = a + 0.5 * b + 0.7 * (city == "Bern") + 0.5 * generator.normal(size=n_rows)
    return pd.DataFrame(
        {
            "a": a,
            "b": b,
            "city": city,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.permutation(n_rows), unit="D"),
            "shop": [f"shop {i}" for i in generator.integers(0, 17, n_rows)],
            "flag": np.where(signal > 0.3, "yes", "no"),
            "grade": np.digitize(signal, [-0.5, 0.8]),
            "amount": 10 * signal + 100,
        }
    )


def make_dataset(task: Task = Task.BINARY, *, n_rows: int = 240, frame: pd.DataFrame | None = None) -> Dataset:
    """Return a dataset whose ``day`` and ``shop`` are no features."""
    target = TARGETS[task]
    frame = make_frame(n_rows) if frame is None else frame
    frame = frame.drop(columns=[c for c in TARGETS.values() if c != target])
    return from_frame(frame, FileDataset(path="made.parquet", target=target, task=task, drop=("day", "shop")))


def make_request(**fields: Any) -> VariantRequest:
    """Return a request; ``fields`` as they are written in YAML."""
    document = {"team": "t", "name": "n", "recipe": "test", "dataset": {"path": "made.parquet", "target": "flag"}}
    return VariantRequest.model_validate(document | fields)


def make_test_plan(
    *families: str, task: Task = Task.BINARY, recipe: dict[str, Any] | None = None, **request: Any
) -> Plan:
    """Return a plan of a recipe with these families."""
    names = families or ("constant", "linear", "lightgbm")
    made = Recipe.model_validate({"name": "test", "title": "Test", "families": names} | (recipe or {}))
    return make_plan(make_request(**request), made, task)


def make_data(
    folder: Path, *, dataset: Dataset | None = None, plan: Plan | None = None, seed: int = 0, **validation: Any
) -> TrialData:
    """Return what the trials of a search share; ``validation`` names another kind than the plan's."""
    dataset = make_dataset() if dataset is None else dataset
    kind = make_request(validation=validation).validation if validation else (plan or make_test_plan()).validation
    assert kind is not None
    metric = plan.metric if plan else Metric.of(METRICS[dataset.task], dataset.task)
    return TrialData(dataset, folds(dataset, kind, seed=seed), metric, folder, seed)


def ended(trial: Trial, score: float | None, **fields: Any) -> Trial:
    """Return a trial as it ends: with a score, or failed."""
    state = TrialState.FAILED if score is None else TrialState.SUCCEEDED
    scores = () if score is None else (score,)
    return trial.model_copy(update={"state": state, "score": score, "fold_scores": scores, "cost_s": 0.1} | fields)
