"""What is wrong with an input, and what only looks so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from factory.data.columns import FORMATS
from factory.spec import ColumnType
from factory.variants.inputs import BundleColumn, check_columns, input_columns

EXPECTED = (
    BundleColumn(name="age", type=ColumnType.NUMERIC),
    BundleColumn(name="member", type=ColumnType.BOOLEAN),
    BundleColumn(name="city", type=ColumnType.CATEGORICAL),
    BundleColumn(name="since", type=ColumnType.DATETIME),
    BundleColumn(name="note", type=ColumnType.TEXT),
    BundleColumn(name="customer", type=ColumnType.IDENTIFIER),
)
GOOD = {
    "age": np.array([31, 45]),
    "member": np.array([True, False]),
    "city": np.array(["Bern", "Atlantis"], dtype=object),
    "since": np.array(["2024-01-31", "2024-02-01T10:30:00"], dtype=object),
    "note": np.array(["all fine", None], dtype=object),
}


def problems(**changes: object) -> list[tuple[str, str]]:
    columns = {name: np.asarray(values) for name, values in {**GOOD, **changes}.items() if values is not None}
    return [(p.field, p.message) for p in check_columns(columns, EXPECTED, ignored=("churned",))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"age": [np.nan, 3.5]},
        {"age": np.array([None, 3], dtype=object)},
        {"age": ["12", "NA"]},
        {"age": [np.inf, 1]},
        {"age": pd.array([1, None], dtype="Int64")},
        {"member": np.array([1, None], dtype=object)},
        {"member": ["true", "FALSE"]},
        {"city": [8001, 8002]},
        {"city": pd.Categorical(["Bern", None])},
        {"since": pd.to_datetime(["2024-01-01", None])},
        {"since": np.array([pd.Timestamp("2024-01-01", tz="UTC"), None], dtype=object)},
        {"since": [np.nan, np.nan]},
        {"customer": ["c1", "c2"]},
        {"churned": ["yes", "no"]},
    ],
)
def test_what_training_would_read_is_fine(changes):
    assert problems(**changes) == []


def test_text_in_a_numeric_column():
    assert problems(age=np.array([3, "young"], dtype=object)) == [
        ("age", "Row 1 (counted from 0) holds 'young'; expected a number.")
    ]
    ((_, message),) = problems(age=["old", "young"])
    assert message.endswith("2 values of this column do not fit.")


def test_moment_that_is_none():
    assert problems(since=[20240131, 20240201])[0][0] == "since"
    assert "expected a date" in problems(since=["soon", "2024-01-01"])[0][1]
    assert problems(age=pd.to_datetime(["2024-01-01", "2024-01-02"]))[0][0] == "age"


def test_date_format_of_the_training_data_is_the_one_that_is_read():
    frame = pd.DataFrame({"since": pd.to_datetime(["2024-02-01"]), "left_out": [1]})
    frame.attrs[FORMATS] = {"since": "%d.%m.%Y"}
    (column,) = input_columns(frame, {"since": ColumnType.DATETIME})
    assert check_columns({"since": np.array(["31.01.2024"], dtype=object)}, [column]) == []
    (problem,) = check_columns({"since": np.array(["01/31/2024"], dtype=object)}, [column])
    assert "%d.%m.%Y" in problem.message


def test_names():
    assert problems(agee=[1, 2], age=None) == [
        ("agee", "There is no such column. Did you mean 'age'? Expected: age, city, customer, member, note, since."),
        ("age", "This column is missing; it holds numeric values."),
    ]


def test_shapes():
    assert problems(city=np.array([["a"], ["b"]]))[0] == (
        "city",
        "This column needs one value a row; received an array of shape (2, 1).",
    )
    nested = np.empty(2, dtype=object)
    nested[:] = [["a"], "b"]
    assert problems(city=nested) == [("city", "Row 0 (counted from 0) holds ['a']; expected a single value.")]
    assert problems(age=[1, 2, 3]) == [
        (name, "This column has 2 values; another one has 3.") for name in ("member", "city", "since", "note")
    ]


def test_column_twice():
    frame = pd.DataFrame(GOOD)
    frame = pd.concat([frame, frame[["age"]]], axis=1)
    assert [p.message for p in check_columns(frame, EXPECTED)] == ["The input has more than one column of this name."]
