"""Small data, plans without files, and a family that does what a test asks it to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest

from factory import plugins
from factory.data.dataset import Dataset, from_frame
from factory.search.jobs import FitJob, FitResult, FoldScore, TrialData
from factory.search.metric import Metric
from factory.search.plan import Plan, make_plan
from factory.search.probe import Representation
from factory.search.samples import into_folder, write_array
from factory.search.splits import folds, grouping, independent
from factory.spec import FileDataset, Recipe, Task, TrialState, VariantRequest

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
    """Return what the trials of a search share, without a probe of columns and target.

    ``validation`` names another kind than the plan's.
    """
    dataset = make_dataset() if dataset is None else dataset
    kind = make_request(validation=validation).validation if validation else (plan or make_test_plan()).validation
    assert kind is not None
    metric = plan.metric if plan else Metric.of(METRICS[dataset.task], dataset.task)
    if not (folder / "representation").is_dir():
        into_folder(folder / "representation", Representation().save)
    splits = folds(dataset, kind, seed=seed, metric=metric)
    return TrialData(dataset, splits, metric, folder, seed, independent=independent(kind), group=grouping(kind))


@dataclass
class Clock:
    """The time of day, which passes only when a test says so."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock of the test's own in the place of the machine's."""
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    return made


def outcome(
    data: TrialData, job: FitJob, score: float | None, *, noise: int = 0, fold_s: float = 0.1, **fields: Any
) -> FitResult:
    """Return what a worker would bring back, and write the predictions that it would write.

    Args:
        data: The search's data.
        job: What the worker was asked for.
        score: Of each fold, between 0 and 1; None where the fit fails. Predictions are the better the higher it is.
        noise: With the same noise, predictions differ in how good they are only; with another one, a blend helps.
        fold_s: What a fold takes.
        fields: Others of the result.
    """
    number, cost_s = job.trial.number, fold_s * len(job.folds)
    if score is None:
        failed = {"state": TrialState.FAILED, "reason": "It failed.", "cost_s": cost_s} | fields
        return FitResult(number=number).model_copy(update=failed)
    for fold in job.folds:
        y = data.dataset.y[data.splits[fold].validation]
        write_array(data.out_of_fold(number, fold), _guessed(y, data.n_classes, score, seed=[noise, fold]))
    scored = tuple(FoldScore(fold=k, score=score, train_score=1.0, rounds=10, cost_s=fold_s) for k in job.folds)
    return FitResult(number=number, folds=scored, cost_s=cost_s).model_copy(update=fields)


def _guessed(y: np.ndarray, n_classes: int, score: float, *, seed: list[int]) -> np.ndarray:
    """Return predictions whose area under the ROC curve is about that score, float32 (n_rows[, n_classes])."""
    skill = NormalDist().inv_cdf(score)
    noise = np.random.default_rng(seed).normal(size=(len(y), max(n_classes, 1)))
    if not n_classes:
        return (skill * y + y.std() * noise[:, 0]).astype(np.float32)
    noise[np.arange(len(y)), y] += skill
    shares = np.exp(noise)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
