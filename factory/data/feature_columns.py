"""Keys and features of a store as columns, and the one form in which their values are handed on.

Numbers and flags are float64 with NaN, text is an object with None, moments are
``datetime`` in UTC or None.  A value from the offline join, from the online
store or from a caller ends in the same form, so that what is computed from it
is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

NUMBERS = frozenset({"Float32", "Float64", "Int32", "Int64", "Bool"})
WHOLE = frozenset({"Int32", "Int64"})
COMPUTED_FROM = NUMBERS | {"String", "UnixTimestamp"}
"""Types that an on-demand view may be computed from; it may give all of them but moments."""


@dataclass(frozen=True)
class KeyColumn:
    """A join key: its name in the store, its name in entity tables and rows, and its Feast type."""

    name: str
    column: str
    dtype: str


@dataclass(frozen=True)
class FeatureColumn:
    """A feature: its name in the view, the column it becomes, and its Feast type."""

    name: str
    column: str
    dtype: str


def canonical(values: Any, dtype: str) -> np.ndarray:
    """Return values of a Feast type in their one form, (n_values,).

    Args:
        values: A sequence, an array or a series.
        dtype: Their type, as Feast calls it; one of :data:`COMPUTED_FROM`.

    Raises:
        ValueError: with the first value that is not of the type.
    """
    if isinstance(values, pd.Series):
        values = _of_series(values, dtype)
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub" and dtype in NUMBERS:
        numbers = _checked(values, dtype)
    elif dtype in NUMBERS:
        numbers = np.fromiter((_number(value, dtype) for value in values), np.float64, len(values))
    else:
        return _objects(values, dtype)
    # As the online store keeps it, so that a training row has no more digits than it.
    return numbers.astype(np.float32).astype(np.float64) if dtype == "Float32" else numbers


def is_missing(value: Any) -> bool:
    """Whether a value stands for none."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def missing(values: np.ndarray) -> np.ndarray:
    """Return which values in their one form are missing, bool (n_values,)."""
    return np.isnan(values) if values.dtype.kind == "f" else np.array([v is None for v in values], dtype=bool)


def _of_series(values: pd.Series, dtype: str) -> np.ndarray | list[Any]:
    kind = values.dtype
    if dtype == "UnixTimestamp" and isinstance(kind, (pd.DatetimeTZDtype, np.dtype)) and kind.kind == "M":
        return [None if moment is pd.NaT else moment for moment in values]
    if dtype in NUMBERS and pd.api.types.is_bool_dtype(kind) and not pd.api.types.is_object_dtype(kind):
        if dtype != "Bool":
            raise ValueError(repr(values.tolist()[0]))
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    if dtype in NUMBERS and pd.api.types.is_numeric_dtype(kind):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    return list(values)


def _checked(values: np.ndarray, dtype: str) -> np.ndarray:
    numbers = values.astype(np.float64)
    wrong = np.zeros(len(numbers), dtype=bool)
    if dtype in WHOLE:
        wrong = ~np.isnan(numbers) & ~(np.isfinite(numbers) & (numbers == np.floor(numbers)))
    elif dtype == "Bool":
        wrong = ~np.isnan(numbers) & (numbers != 0) & (numbers != 1)
    if wrong.any():
        raise ValueError(repr(values[int(wrong.argmax())].item()))
    return numbers


def _number(value: Any, dtype: str) -> float:
    if is_missing(value):
        return math.nan
    flag = isinstance(value, (bool, np.bool_))
    if dtype == "Bool":
        fits = flag or (isinstance(value, (float, np.floating)) and value in (0.0, 1.0))
    else:
        fits = not flag and isinstance(value, (int, float, np.number))
    if not fits or isinstance(value, complex):
        raise ValueError(repr(value))
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(repr(value)) from None
    if dtype in WHOLE and not number.is_integer() and not math.isnan(number):
        raise ValueError(repr(value))
    return number


def _objects(values: Sequence[Any], dtype: str) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        if not is_missing(value):
            column[i] = _text(value) if dtype == "String" else _moment(value)
    return column


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(repr(value))
    return str(value)


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(repr(value)) from None
    if isinstance(value, pd.Timestamp):
        value = value.floor("s").to_pydatetime()
    if not isinstance(value, datetime):
        raise ValueError(repr(value))
    # As the online store keeps it.
    moment: datetime = value.replace(microsecond=0)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
