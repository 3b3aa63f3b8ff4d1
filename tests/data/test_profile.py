from __future__ import annotations

import pandas as pd
import pytest
from sklearn.datasets import load_diabetes

from factory.data.dataset import from_frame
from factory.data.profile import DatasetProfile, profile
from factory.spec import ColumnType, FileDataset


def test_a_mixed_table_in_numbers(mixed: pd.DataFrame) -> None:
    mixed.loc[0, "bought"] = None
    dataset = from_frame(mixed, FileDataset(path="in memory", target="bought"))
    result = profile(dataset)
    assert (result.n_rows, result.n_columns, result.dropped_rows) == (199, 7, 1)
    assert result.columns_by_type[ColumnType.NUMERIC] == 2
    assert sum(result.columns_by_type.values()) == 7
    assert sum(result.class_balance.values()) == pytest.approx(1)
    assert result.class_balance["no"] == pytest.approx((dataset.y == 0).mean())
    assert result.missing_share == pytest.approx(float(dataset.frame.isna().to_numpy().mean()))
    columns = {c.name: c for c in result.columns}
    assert columns["amount"].missing == dataset.frame["amount"].isna().sum()
    assert columns["amount"].numbers is not None
    assert columns["amount"].numbers.median == pytest.approx(dataset.frame["amount"].median())
    assert columns["city"].top[0].count == dataset.frame["city"].value_counts().iloc[0]
    assert columns["joined"].first == str(dataset.frame["joined"].min())
    assert columns["customer"].distinct == 199
    assert result.head_columns == (*dataset.frame.columns, "bought")
    assert len(result.head) == 5
    assert result.head[0][-1] == mixed["bought"].iloc[1]


def test_a_regression_target_has_moments() -> None:
    frame = load_diabetes(as_frame=True).frame
    result = profile(from_frame(frame, FileDataset(path="in memory", target="target")))
    assert result.class_balance == {}
    assert result.target_numbers is not None
    assert result.target_numbers.mean == pytest.approx(frame["target"].mean())
    assert result.target_numbers.maximum == frame["target"].max()
    assert result.missing_share == 0


def test_it_survives_json(mixed: pd.DataFrame) -> None:
    mixed["nothing"] = None
    result = profile(from_frame(mixed, FileDataset(path="in memory", target="bought")))
    assert DatasetProfile.model_validate_json(result.model_dump_json()) == result
