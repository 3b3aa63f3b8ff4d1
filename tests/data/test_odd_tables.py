"""Tables at the edges: a sensible dataset, or one clear error before any model is tried."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import Dataset, from_frame
from factory.data.findings import Finding
from factory.data.profile import profile
from factory.data.screening import screen
from factory.errors import InvalidData
from factory.search.splits import Split, folds, set_aside
from factory.spec import AutoValidation, ColumnType, FileDataset, Task

RNG = np.random.default_rng(0)
AUTO = AutoValidation()


def read(frame: pd.DataFrame) -> tuple[Dataset, tuple[Finding, ...], tuple[Split, ...]]:
    """Take a table all the way to the folds of a search: typed, set aside, screened, profiled, split."""
    dataset = from_frame(frame, FileDataset(path="in memory", target="target"))
    rows = set_aside(dataset, AUTO)
    assert len(rows.train) + len(rows.validation) == len(dataset)
    seen = dataset.take(rows.train)
    findings = screen(seen)
    dropped = [f.column for f in findings if f.action == "drop"]
    assert len(profile(dataset).columns) == frame.shape[1] - 1
    splits = folds(seen.without(dropped), AUTO, seed=0)
    for split in splits:
        assert len(split.train)
        assert len(split.validation)
        assert not set(split.train) & set(split.validation)
    return seen.without(dropped), findings, splits


def labels(n: int, n_classes: int = 2) -> np.ndarray:
    return RNG.permutation(np.arange(n) % n_classes)


def test_ten_rows_are_too_few() -> None:
    frame = pd.DataFrame({"x": RNG.normal(size=10), "target": labels(10)})
    with pytest.raises(InvalidData, match="10 usable rows; at least 20") as caught:
        read(frame)
    assert caught.value.hint


@pytest.mark.parametrize("target", ["binary", "regression"])
def test_the_fewest_rows_can_be_split(target: str) -> None:
    y = labels(25) if target == "binary" else RNG.normal(size=25)
    seen, findings, splits = read(pd.DataFrame({"x": RNG.normal(size=25), "c": list("pqpqp") * 5, "target": y}))
    assert findings == ()
    assert len(seen) >= 12
    assert len(splits) >= 2


def test_one_feature_is_enough() -> None:
    seen, findings, _ = read(pd.DataFrame({"x": RNG.normal(size=300), "target": labels(300)}))
    assert list(seen.frame.columns) == ["x"]
    assert findings == ()


def test_no_feature_at_all_is_an_error() -> None:
    with pytest.raises(InvalidData, match="No column says anything"):
        read(pd.DataFrame({"target": labels(300)}))


@pytest.mark.parametrize("n_rows", [400, 3000])
def test_two_thousand_columns_are_screened(n_rows: int) -> None:
    frame = pd.DataFrame(RNG.normal(size=(n_rows, 2000)), columns=[f"c{i}" for i in range(2000)])
    frame["target"] = (frame["c0"] + frame["c1"] > 0).astype(int)
    frame["leak"] = frame["target"] + RNG.normal(0, 1e-3, n_rows)
    frame["copy"] = frame["c7"]
    seen, findings, _ = read(frame)
    assert {f.column: f.kind for f in findings} == {"leak": "leakage", "copy": "duplicate"}
    assert len(seen.frame.columns) == 2000


@pytest.mark.parametrize("per_class", [2, 3, 15])
def test_two_hundred_classes_are_all_learned(per_class: int) -> None:
    n = 200 * per_class
    y = np.array([f"k{i:03d}" for i in labels(n, 200)])
    seen, _, splits = read(pd.DataFrame({"x": RNG.normal(size=n), "z": RNG.normal(size=n), "target": y}))
    assert (seen.task, len(seen.classes)) == (Task.MULTICLASS, 200)
    assert set(seen.y) == set(range(200))
    assert len(splits) >= 1


def test_two_hundred_classes_of_one_row_each_are_an_error() -> None:
    y = [f"k{i:03d}" for i in range(200)]
    with pytest.raises(InvalidData, match="200 of 200 classes have one row only"):
        read(pd.DataFrame({"x": RNG.normal(size=200), "target": y}))


def test_two_hundred_whole_numbers_are_a_quantity() -> None:
    seen, _, _ = read(pd.DataFrame({"x": RNG.normal(size=3000), "target": labels(3000, 200)}))
    assert seen.task is Task.REGRESSION


def test_prose_alone_is_kept_as_text() -> None:
    words = np.array([f"w{i}" for i in range(300)])
    prose = [[" ".join(RNG.choice(words, 12)) for _ in range(400)] for _ in range(2)]
    seen, findings, _ = read(pd.DataFrame({"title": prose[0], "body": prose[1], "target": labels(400)}))
    assert set(seen.types.values()) == {ColumnType.TEXT}
    assert findings == ()


def test_one_column_with_values_among_empty_ones_is_used() -> None:
    frame = pd.DataFrame({f"c{i}": np.full(300, np.nan) for i in range(10)})
    frame["c3"] = RNG.normal(size=300)
    frame["target"] = labels(300)
    seen, findings, _ = read(frame)
    assert list(seen.frame.columns) == ["c3"]
    assert {f.kind for f in findings} == {"all_missing"}


@pytest.mark.parametrize("row", range(0, 300, 60))
def test_one_value_among_empty_ones_is_used_or_one_error(row: int) -> None:
    """Where the value's row is set aside for the gate, the search has nothing at all."""
    frame = pd.DataFrame({f"c{i}": np.full(300, np.nan) for i in range(10)})
    frame.loc[row, "c0"] = 1.0
    frame["target"] = labels(300)
    searched = set_aside(from_frame(frame, FileDataset(path="in memory", target="target")), AUTO).train
    if row not in searched:
        with pytest.raises(InvalidData, match="No column is left"):
            read(frame)
        return
    seen, findings, _ = read(frame)
    assert list(seen.frame.columns) == ["c0"]
    assert {f.column: f.kind for f in findings}["c0"] == "high_missing"
