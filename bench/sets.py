"""The tables that claims about quality are made on: what is predicted, how rows are split, what is scored.

A table with a time column is split at random like the others, so that scores
stay comparable with what was measured before; how a forecast of later rows
does is another claim.  Identifiers stay in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split

SOURCE_VARIABLE = "FACTORY_TEST_DATA"
TEST_SHARE = 0.25
DIGITS = 6
"""Significant ones of a stored score: more than any table shows."""

Score = Literal["AUC", "log-loss", "RMSE"]
Task = Literal["binary", "multiclass", "regression"]

_TASKS: dict[Score, Task] = {"AUC": "binary", "log-loss": "multiclass", "RMSE": "regression"}


@dataclass(frozen=True)
class BenchSet:
    """A table, what is predicted, and by which score."""

    data: str
    target: str
    metric: Score

    @property
    def task(self) -> Task:
        """What kind of target it is."""
        return _TASKS[self.metric]

    @property
    def lower_is_better(self) -> bool:
        """Whether the score is a loss."""
        return self.metric != "AUC"

    def loss(self, score: float) -> float:
        """Return what is to be small: the loss, or 1 - AUC."""
        return score if self.lower_is_better else 1 - score


SETS: dict[str, BenchSet] = {
    known.data: known
    for known in (
        BenchSet("telco_churn", "Churn", "AUC"),
        BenchSet("adult", "income", "AUC"),
        BenchSet("mammography", "label", "AUC"),
        BenchSet("wine_quality", "quality", "log-loss"),
        BenchSet("digits", "digit", "log-loss"),
        BenchSet("california_housing", "median_house_value", "RMSE"),
        BenchSet("diamonds", "price", "RMSE"),
        BenchSet("bike_hourly", "cnt", "RMSE"),
        BenchSet("superstore", "profit", "RMSE"),
        BenchSet("avocado", "average_price", "RMSE"),
        BenchSet("sms_spam", "label", "AUC"),
    )
}


def source() -> Path | None:
    """Return the folder with the tables, ``NAME.parquet``; None where FACTORY_TEST_DATA names none."""
    named = os.environ.get(SOURCE_VARIABLE)
    return Path(named) if named else None


def split(bench_set: BenchSet, folder: Path, *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to learn from and those to be scored on, 75/25, stratified by class."""
    frame = pd.read_parquet(folder / f"{bench_set.data}.parquet")
    classes = None if bench_set.task == "regression" else frame[bench_set.target]
    train, test = train_test_split(frame, test_size=TEST_SHARE, random_state=seed, stratify=classes)
    return train, test


def write_split(bench_set: BenchSet, folder: Path, into: Path, *, seed: int) -> pd.Series:
    """Write ``train.parquet``, and ``test.parquet`` without the target; return the target of the test rows."""
    train, test = split(bench_set, folder, seed=seed)
    into.mkdir(parents=True, exist_ok=True)
    train.to_parquet(into / "train.parquet", index=False)
    test.drop(columns=bench_set.target).to_parquet(into / "test.parquet", index=False)
    return test[bench_set.target]


def score(bench_set: BenchSet, truth: pd.Series, predictions: pd.DataFrame) -> float:
    """Score predictions in the form of ``factory fit --out``: a column for each class, or ``prediction``.

    Raises:
        ValueError: the predictions are not one finite row for each row of the truth.
    """
    if len(predictions) != len(truth):
        raise ValueError(f"{bench_set.data}: {len(predictions)} predictions of {len(truth)} rows")
    if bench_set.task == "regression":
        return _significant(root_mean_squared_error(truth, _finite(bench_set, predictions[["prediction"]])[:, 0]))
    labels = sorted(truth.astype(str).unique())
    probabilities = _finite(bench_set, predictions[labels])
    if bench_set.task == "binary":
        return _significant(roc_auc_score(truth.astype(str) == labels[1], probabilities[:, 1]))
    # Some peers answer in float32, whose rows sum to 1 within 1e-7 only.
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return _significant(log_loss(truth.astype(str), probabilities, labels=labels))


def _finite(bench_set: BenchSet, predictions: pd.DataFrame) -> np.ndarray:
    values = predictions.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{bench_set.data}: predictions that are not finite")
    return values


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
