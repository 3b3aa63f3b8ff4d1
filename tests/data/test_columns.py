from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from factory.data.columns import as_datetime, as_numeric, as_text, clean, column_digest, infer_type, text_of
from factory.spec import ColumnType


def words(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(["red", "green", "blue", "grey", "pink"], 8)) for _ in range(n)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3] * 20, ColumnType.NUMERIC),
        ([1.5, None, 2.0] * 20, ColumnType.NUMERIC),
        (["1.5", "2", " ", "7"] * 3 + ["4"] * 60, ColumnType.NUMERIC),
        (["12", "x"] * 30, ColumnType.CATEGORICAL),
        ([True, False] * 30, ColumnType.BOOLEAN),
        (["true", "False", None] * 20, ColumnType.BOOLEAN),
        (["yes", "no"] * 30, ColumnType.CATEGORICAL),
        (["2021-01-02", "2021-03-04 10:00:00", None] * 20, ColumnType.DATETIME),
        (["13/02/2021", "01/03/2021"] * 30, ColumnType.DATETIME),
        ([f"AB-{i}" for i in range(60)], ColumnType.IDENTIFIER),
        ([f"level {i % 9}" for i in range(60)], ColumnType.CATEGORICAL),
        (words(60), ColumnType.TEXT),
        (["Bank transfer made (automatic) monthly", "Mailed check by post to us"] * 30, ColumnType.CATEGORICAL),
        ([None] * 60, ColumnType.NUMERIC),
        (["", "NA", "null"] * 20, ColumnType.NUMERIC),
        (["1_1", "1_2", "2_1"] * 20, ColumnType.CATEGORICAL),
        ([f"{i:040x}" for i in range(60)], ColumnType.IDENTIFIER),
        (["CC(=O)OC1=CC=CC=C1" * (1 + i % 4) + "N" * i for i in range(60)], ColumnType.TEXT),
        ([f"第{i}个包裹很慢而且坏了" for i in range(120)], ColumnType.TEXT),
        ([f"王小{i}" for i in range(60)], ColumnType.IDENTIFIER),
    ],
)
def test_types_are_inferred_from_values(values: list[object], expected: ColumnType) -> None:
    assert infer_type(pd.Series(values)) is expected
    assert clean(pd.Series(values))[1] is expected


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint64", "float32", "Int64", "Float64", "int64[pyarrow]"],
)
def test_every_numeric_dtype_cleans_to_the_same_numbers(dtype: str) -> None:
    cleaned, kind, _ = clean(pd.Series([3, 1, 2] * 40).astype(dtype))
    assert kind is ColumnType.NUMERIC
    assert cleaned.to_numpy().astype(float).tolist() == [3.0, 1.0, 2.0] * 40


def test_missing_in_nullable_dtypes_becomes_nan() -> None:
    for dtype in ("Int64", "boolean", "Float64"):
        cleaned = clean(pd.Series([1, None, 0] * 40, dtype=dtype))[0]
        assert cleaned.isna().sum() == 40
        assert cleaned.dtype == np.float64


def test_stray_marks_in_numeric_text_become_missing() -> None:
    cleaned = clean(pd.Series(["1.5"] * 99 + ["?"]))[0]
    assert cleaned.dtype == np.float64
    assert cleaned.isna().tolist() == [False] * 99 + [True]


def test_few_and_many_values_are_read_alike() -> None:
    few = np.array(["3", "x", None, True, "TRUE", 2, " 7 ", float("nan")], dtype=object)
    many = np.tile(few, 20)
    assert np.array_equal(as_numeric(many), np.tile(as_numeric(few), 20), equal_nan=True)
    dates = np.array(["2021-05-06", "2021-05-06T07:08:09+02:00", "no", None, pd.Timestamp("2020-01-01")], dtype=object)
    assert np.array_equal(as_datetime(np.tile(dates, 20)), np.tile(as_datetime(dates), 20), equal_nan=True)


@pytest.mark.parametrize(
    "text",
    ["2020/01/05", "2020.01.05", "2020-1-5", "2020-01-05 3:04", "9999-12-31", "20200105", " 2020-01-05 ", "2020", "x"],
)
def test_a_date_is_read_alike_in_one_row_and_in_many(text: str) -> None:
    few, many = (as_datetime(np.array([text] * n, dtype=object)) for n in (1, 200))
    assert few[0] == many[0] or np.isnat([few[0], many[0]]).all()
    assert np.isnat(few[0]) == (text == "x")
    kind = infer_type(pd.Series([text] * 200))
    if kind is ColumnType.DATETIME:
        assert infer_type(pd.Series([text] * 20)) is kind


@pytest.mark.parametrize("dtype", ["int64", "float64", "str"])
def test_numbers_that_are_categories_are_no_quantity(dtype: str) -> None:
    codes = pd.Series([3, 1, 2] * 20).astype(dtype).astype("category")
    cleaned, kind, _ = clean(codes)
    assert kind is ColumnType.CATEGORICAL
    assert as_text(cleaned.to_numpy())[:2].tolist() in (["3", "1"], ["3.0", "1.0"])
    assert clean(codes, ColumnType.NUMERIC)[0][:2].tolist() == [3.0, 1.0]
    assert infer_type(codes.cat.as_ordered()) is ColumnType.NUMERIC
    assert infer_type(pd.Series(words(60), dtype="category")) is ColumnType.TEXT


@pytest.mark.parametrize(("number", "moment"), [(20240115, "2024-01-15"), (202401151230, "2024-01-15T12:30")])
def test_digits_are_dates_where_it_is_said(number: int, moment: str) -> None:
    numbers = pd.Series([number, number + 1] * 40)
    assert clean(numbers)[1] is ColumnType.NUMERIC
    cleaned, _, text_format = clean(numbers, ColumnType.DATETIME)
    assert cleaned[0] == pd.Timestamp(moment)
    for sent in (np.array([number]), np.array([float(number)]), np.array([str(number)], dtype=object)):
        assert as_datetime(sent, text_format=text_format)[0] == cleaned[0], "as in prediction"


def test_offsets_are_turned_into_utc() -> None:
    moment = as_datetime(np.array(["2021-05-06T07:00:00+02:00"], dtype=object))[0]
    assert moment == np.datetime64("2021-05-06T05:00:00", "us")
    zoned = pd.Series(pd.to_datetime(["2021-05-06T07:00:00+02:00"] * 3).tz_convert("Europe/Oslo"))
    assert clean(zoned)[0].iloc[0] == pd.Timestamp("2021-05-06 05:00:00")


def test_day_first_dates_are_recognised_and_the_format_is_kept() -> None:
    cleaned, kind, text_format = clean(pd.Series(["03/04/2021", "25/12/2021"] * 30))
    assert (kind, text_format) == (ColumnType.DATETIME, "%d/%m/%Y")
    assert cleaned.iloc[0] == pd.Timestamp("2021-04-03")


def test_text_of_numbers_does_not_depend_on_their_dtype() -> None:
    assert {text_of(v) for v in (7, 7.0, np.float32(7), np.int8(7), "7")} == {"7"}
    assert as_text(np.array([1.0, np.nan, 2.5])).tolist() == ["1", None, "2.5"]


def test_digest_depends_on_values_and_their_order_only() -> None:
    floats = clean(pd.Series([1.0, 2.0, 3.0]))[0]
    ints = clean(pd.Series([1, 2, 3]))[0]
    assert column_digest(floats) == column_digest(ints)
    assert column_digest(floats) != column_digest(floats[::-1])
    single = clean(pd.Series(np.linspace(0, 1, 101), dtype="float32"))[0]
    double = clean(pd.Series([float(str(v)) for v in np.linspace(0, 1, 101, dtype="float32")]))[0]
    assert column_digest(single) == column_digest(double)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert column_digest(pd.Series(["a", None, "b"])) != column_digest(pd.Series(["a", "b", None]))


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1,234.5", "-12", "1,000,000"], [1234.5, -12, 1e6]),
        (["12 %", "7.5%", "-3 %"], [12, 7.5, -3]),
        (["$5", "-$1,200.50", "$.5"], [5, -1200.5, 0.5]),
        (["5 €", "10€", "+3 €"], [5, 10, 3]),
    ],
)
def test_numbers_as_people_write_them(texts: list[str], numbers: list[float]) -> None:
    cleaned, kind, _ = clean(pd.Series(texts * 10))
    assert kind is ColumnType.NUMERIC
    assert cleaned[:3].tolist() == numbers
    assert as_numeric(np.array(texts, dtype=object)).tolist() == numbers


@pytest.mark.parametrize(
    ("first", "text_format"),
    [
        ("Feb 2020", "%b %Y"),
        ("February 2020", "%B %Y"),
        ("1 Feb 2020", "%d %b %Y"),
        ("February 1, 2020", "%B %d, %Y"),
        ("01-Feb-20", "%d-%b-%y"),
        ("Feb-20", "%b-%y"),
        ("2020-02", "%Y-%m"),
        ("02/2020", "%m/%Y"),
        ("1 Feb 2020 12:30", "%d %b %Y %H:%M"),
    ],
)
def test_months_are_read_where_it_is_said_that_they_are_dates(first: str, text_format: str) -> None:
    texts = pd.Series([first, first.replace("20", "19"), None] * 30)
    assert clean(texts)[1] is ColumnType.CATEGORICAL
    moments, kind, kept = clean(texts, ColumnType.DATETIME)
    assert (kind, kept) == (ColumnType.DATETIME, text_format)
    assert moments[0] == pd.Timestamp("2020-02-01 12:30" if "12:30" in first else "2020-02-01")
    assert moments[2] is pd.NaT
    assert as_datetime(np.array([first], dtype=object), text_format=kept)[0] == moments[0], "as in prediction"


def test_what_is_no_date_stays_missing_whatever_is_said_of_it() -> None:
    moments, kind, kept = clean(pd.Series(["red", "green"] * 40), ColumnType.DATETIME)
    assert (kind, kept, int(moments.isna().sum())) == (ColumnType.DATETIME, None, 80)


@pytest.mark.parametrize(
    "texts", [["$5", "€6", "$7"], ["1,5", "2,25", "3,1"], ["$", "%", "-"], ["1,2345", "1,23", ","]]
)
def test_what_is_no_number_for_certain_stays_text(texts: list[str]) -> None:
    assert clean(pd.Series(texts * 10))[1] is ColumnType.CATEGORICAL
