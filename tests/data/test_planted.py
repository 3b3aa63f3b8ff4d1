"""Bad columns planted in real tables: found, named, left out or kept as asked, and the score with and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from factory.data.dataset import Dataset, from_frame
from factory.data.drift import Later
from factory.data.findings import Finding
from factory.data.screening import screen
from factory.search.splits import set_aside
from factory.spec import AutoValidation, FileDataset

PLANTED = {
    "leak": ("leakage", "drop"),
    "copy": ("target_copy", "drop"),
    "row_key": ("identifier", "drop"),
    "sensor": ("drift", "warn"),
}


@pytest.fixture(params=["telco_churn", "breast_cancer"])
def planted(request: pytest.FixtureRequest) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Return a table with four bad columns, and the positions of the search's and of the gate's rows."""
    if request.param == "breast_cancer":
        frame, target = load_breast_cancer(as_frame=True).frame, "target"
    else:
        real: Callable[[str], tuple[pd.DataFrame, dict[str, Any]]] = request.getfixturevalue("real")
        frame, entry = real(request.param)
        target = entry["target"]
        frame = frame.drop(columns="customerID")
    rng = np.random.default_rng(0)
    reference = FileDataset(path="in memory", target=target)
    rows = set_aside(from_frame(frame, reference), AutoValidation())
    y = pd.factorize(frame[target])[0]
    frame["leak"] = y + rng.normal(0, 0.05, len(y))
    frame["copy"] = np.where(y == 1, "lost", "held")
    frame["row_key"] = rng.permutation(len(y)) + 1_000
    frame["sensor"] = rng.normal(0, 1, len(y))
    frame.loc[rows.validation, "sensor"] += 50  # recalibrated after the rows to learn from
    return from_frame(frame, reference), rows.train, rows.validation


def screened(planted: tuple[Dataset, np.ndarray, np.ndarray], **wishes: Any) -> dict[str, Finding]:
    dataset, train, held = planted
    later = Later("the rows set aside for the gate", dataset.take(held).frame)
    findings = screen(dataset.take(train), later=(later,), **wishes)
    assert all(f.column in f.message for f in findings)
    return {f.column: f for f in findings if f.kind != "twins"}


def test_each_is_found_and_named(planted: tuple[Dataset, np.ndarray, np.ndarray]) -> None:
    findings = screened(planted)
    assert {c: (f.kind, f.action) for c, f in findings.items()} == PLANTED
    leak = findings["leak"]
    assert (leak.value or 0) > 0.999
    assert 0.6 < (leak.others or 0) < 0.99
    assert f"{leak.others:.4f}" in leak.message


def test_each_is_left_out_or_kept_as_asked(planted: tuple[Dataset, np.ndarray, np.ndarray]) -> None:
    kept = screened(planted, keep=tuple(PLANTED))
    assert {c: (f.kind, f.action) for c, f in kept.items()} == {c: (k, "keep") for c, (k, _) in PLANTED.items()}
    dropped = screened(planted, drift="drop")
    assert {c: f.action for c, f in dropped.items()} == dict.fromkeys(PLANTED, "drop")
    dataset, train, held = planted
    asked = (dataset.without(["sensor", "leak"]), train, held)
    told = screened(asked, drop=("sensor", "leak"))
    assert {c: (f.kind, f.action) for c, f in told.items()} == {
        **PLANTED,
        "sensor": ("requested", "drop"),
        "leak": ("requested", "drop"),
    }


def test_the_score_without_them_is_the_honest_one(planted: tuple[Dataset, np.ndarray, np.ndarray]) -> None:
    """With the leak a model is perfect; without what the screening drops it is as good as before the planting."""
    dataset, train, held = planted
    dropped = [c for c, f in screened(planted, drift="drop").items() if f.action == "drop"]
    spoiled = fitted_auc(dataset.without(["copy"]), train, held)
    clean = fitted_auc(dataset.without(dropped), train, held)
    before = fitted_auc(dataset.without(list(PLANTED)), train, held)
    assert spoiled > 0.999
    assert clean == pytest.approx(before)
    assert clean < 0.9995


def fitted_auc(dataset: Dataset, train: np.ndarray, held: np.ndarray) -> float:
    """AUC on the gate's rows of one LightGBM with its defaults."""
    from lightgbm import LGBMClassifier

    frame = dataset.frame.copy()
    for column in frame.select_dtypes("object"):
        frame[column] = frame[column].astype("category")
    frame.columns = [f"c{i}" for i in range(frame.shape[1])]
    model = LGBMClassifier(n_estimators=60, random_state=0, n_jobs=1, verbose=-1)
    model.fit(frame.iloc[train], dataset.y[train])
    return float(roc_auc_score(dataset.y[held], model.predict_proba(frame.iloc[held])[:, 1]))
