"""Grown tables are no copies."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.scaling import more_columns, more_rows


def test_a_grown_table_repeats_nothing_and_keeps_its_target() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 4.0], "kind": ["a", "b", "a"], "y": [1, 2, 3]})
    rows = more_rows(frame, target="y", n_rows=30, rng=np.random.default_rng(0))
    assert rows.iloc[:3].equals(frame)
    assert rows["x"].nunique() == 30
    assert rows["y"].tolist() == [1, 2, 3] * 10
    columns = more_columns(frame, target="y", factor=10, rng=np.random.default_rng(0))
    assert columns.shape == (3, 21)
    assert set(columns["kind_9"]) == {"a", "b"}
