"""The split is the same for everybody, and scores are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from bench.sets import BenchSet, score, split

TRUTH = pd.Series(["a", "b", "c", "a"])


def test_the_split_is_stratified_and_the_same_again(tmp_path: Path) -> None:
    pd.DataFrame({"x": range(80), "y": ["a"] * 60 + ["b"] * 20}).to_parquet(tmp_path / "table.parquet")
    table = BenchSet("table", "y", "AUC")
    train, test = split(table, tmp_path, seed=3)
    assert test["y"].value_counts().to_dict() == {"a": 15, "b": 5}
    assert len(train) == 60
    assert split(table, tmp_path, seed=3)[1].equals(test)
    assert not split(table, tmp_path, seed=4)[1].equals(test)


def test_log_loss_takes_columns_in_any_order_and_of_other_classes() -> None:
    table = BenchSet("table", "y", "log-loss")
    right = pd.DataFrame({"a": [0.6, 0.2, 0.2, 0.5], "b": [0.2, 0.6, 0.2, 0.3], "c": [0.2, 0.2, 0.6, 0.2]})
    assert score(table, TRUTH, right[["c", "a", "b"]].assign(prediction="a")) == pytest.approx(log_loss(TRUTH, right))


def test_auc_is_of_the_class_that_sorts_last() -> None:
    truth = pd.Series(["no", "yes", "no", "yes"])
    likely = pd.DataFrame({"yes": [0.1, 0.9, 0.2, 0.8]}).assign(no=lambda frame: 1 - frame["yes"])
    assert score(BenchSet("table", "y", "AUC"), truth, likely) == 1.0


def test_predictions_that_are_missing_or_not_finite_have_no_score() -> None:
    table = BenchSet("table", "y", "RMSE")
    with pytest.raises(ValueError, match="1 predictions of 2 rows"):
        score(table, pd.Series([1.0, 2.0]), pd.DataFrame({"prediction": [1.0]}))
    with pytest.raises(ValueError, match="not finite"):
        score(table, pd.Series([1.0, 2.0]), pd.DataFrame({"prediction": [1.0, np.nan]}))
