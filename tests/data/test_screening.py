from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

from factory.data.dataset import Dataset, from_frame
from factory.data.screening import Finding, screen
from factory.errors import InvalidData
from factory.spec import FileDataset

Real = Callable[[str], tuple[pd.DataFrame, dict[str, Any]]]


def dataset_of(frame: pd.DataFrame, target: str = "target", **fields: Any) -> Dataset:
    return from_frame(frame, FileDataset(path="in memory", target=target, **fields))


def found(dataset: Dataset, **options: Any) -> dict[str, Finding]:
    findings = screen(dataset, **options)
    assert len({f.column for f in findings}) == len(findings)
    assert all(f.column in f.message and f.message.endswith(".") for f in findings)
    return {f.column: f for f in findings}


def test_what_cannot_help_is_left_out() -> None:
    frame = load_breast_cancer(as_frame=True).frame
    n = len(frame)
    frame["same"] = "x"
    frame["nothing"] = np.nan
    frame["copy"] = frame["mean radius"]
    frame["patient_id"] = np.random.default_rng(0).permutation(n) + 10_000
    frame["line"] = np.arange(n)
    frame["code"] = [f"P{i:06d}" for i in range(n)]
    frame["rare"] = [1.0, 2.0] * 10 + [np.nan] * (n - 20)
    frame["mark"] = ["yes"] * (n // 2) + [None] * (n - n // 2)
    findings = found(dataset_of(frame))
    assert {c: (f.kind, f.action) for c, f in findings.items()} == {
        "same": ("constant", "drop"),
        "nothing": ("all_missing", "drop"),
        "copy": ("duplicate", "drop"),
        "patient_id": ("identifier", "drop"),
        "line": ("identifier", "drop"),
        "code": ("identifier", "drop"),
        "rare": ("high_missing", "warn"),
    }
    assert "'mean radius'" in findings["copy"].message


@pytest.mark.parametrize("load", [load_breast_cancer, load_iris, load_wine, load_diabetes])
def test_bundled_sets_are_clean_and_planted_leaks_are_found(load: Callable[..., Any]) -> None:
    frame = load(as_frame=True).frame
    assert found(dataset_of(frame)) == {}
    y = frame["target"].to_numpy()
    rng = np.random.default_rng(0)
    frame["exact"] = np.exp(3.0 * y / y.max())
    frame["nearly"] = y + rng.normal(0, 1e-3, len(y))
    frame["honest"] = y + rng.normal(0, 0.5 * y.std(), len(y))
    findings = found(dataset_of(frame))
    assert {c: (f.kind, f.action) for c, f in findings.items()} == {
        "exact": ("leakage", "drop"),
        "nearly": ("leakage", "drop"),
    }
    assert (findings["exact"].value or 0) >= 0.999


def test_leaks_in_labels_dates_and_absence() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    y = rng.random(n) < 0.1
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "status": np.where(y, rng.choice(["closed", "gone"], n), rng.choice(["open", "new", "held"], n)),
            "closed_on": pd.Series(
                pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, n), unit="D")
            ).where(y),
            "refund": np.where(y, rng.normal(size=n), np.nan),
            "target": np.where(y, "left", "stayed"),
        }
    )
    assert {c for c, f in found(dataset_of(frame)).items() if f.kind == "leakage"} == {"status", "closed_on", "refund"}


def test_a_rare_class_that_one_column_splits_by_luck_is_no_leak() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=400), "z": rng.normal(size=400), "target": 0})
    frame.loc[frame["x"].nlargest(3).index, "target"] = 1
    assert found(dataset_of(frame)) == {}


def test_a_slow_series_is_not_given_away_by_its_date() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2015-01-01", periods=n, freq="D"),
            "x": rng.normal(size=n),
            "target": 100 + 50 * np.sin(np.arange(n) / 200),
        }
    )
    assert found(dataset_of(frame)) == {}


@pytest.mark.parametrize(
    "name", ["adult", "avocado", "bike_hourly", "california_housing", "diamonds", "mammography", "wine_quality"]
)
def test_real_sets_are_clean_and_screened_quickly(real: Real, name: str) -> None:
    frame, entry = real(name)
    dataset = dataset_of(frame, entry["target"])
    found(dataset)
    start = time.perf_counter()
    assert found(dataset) == {}
    assert time.perf_counter() - start < 1.5


def test_the_customer_number_of_telco_is_an_identifier(real: Real) -> None:
    frame, entry = real("telco_churn")
    findings = found(dataset_of(frame, entry["target"]))
    assert {c: f.kind for c, f in findings.items()} == {"customerID": "identifier"}


def test_kept_columns_stay_and_are_told() -> None:
    frame = load_breast_cancer(as_frame=True).frame
    frame["leak"] = frame["target"] * 2.0
    frame["same"] = 1
    findings = found(dataset_of(frame), keep=("leak",))
    assert (findings["leak"].kind, findings["leak"].action) == ("leakage", "keep")
    assert findings["same"].action == "drop"


def test_nothing_left_is_an_error() -> None:
    frame = pd.DataFrame({"leak": [0.0, 1.0] * 50, "same": 1, "target": ["a", "b"] * 50})
    with pytest.raises(InvalidData) as caught:
        screen(dataset_of(frame))
    assert [d.field for d in caught.value.details] == ["leak", "same"]
    assert "keep" in caught.value.hint
    assert screen(dataset_of(frame), keep=("leak",))


def test_same_seed_same_findings() -> None:
    frame = load_wine(as_frame=True).frame
    frame["leak"] = frame["target"] + np.random.default_rng(1).normal(0, 1e-3, len(frame))
    dataset = dataset_of(frame)
    assert screen(dataset, seed=5) == screen(dataset, seed=5)
