"""The input columns of a variant, and what is wrong with an input that somebody sent.

An input is read exactly as the training data was (``factory/data/columns.py``):
a value is wrong if it is there but would be read as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from factory.data.columns import FORMATS, as_datetime, as_numeric, text_of
from factory.errors import MOST_DETAILS, Detail, listing, suggest
from factory.spec import NUMBERS, ColumnType, Document

Columns = pd.DataFrame | Mapping[str, np.ndarray]
"""A data frame, or arrays (n_rows,) by column name: the hot path needs no pandas."""


class BundleColumn(Document):
    """An input column: its name, what it holds, and how its dates are written where that is not ISO 8601."""

    name: str
    type: ColumnType
    text_format: str | None = None


def input_columns(frame: pd.DataFrame, types: Mapping[str, ColumnType]) -> tuple[BundleColumn, ...]:
    """Return the input columns of a variant that was trained on a frame, in the frame's order.

    Args:
        frame: Training rows, with the date formats that reading them found in ``attrs``.
        types: Type of each feature column; columns that it lacks are left out.
    """
    formats = frame.attrs.get(FORMATS, {})
    return tuple(
        BundleColumn(name=name, type=types[name], text_format=formats.get(name))
        for name in frame.columns
        if name in types
    )


def check_columns(columns: Columns, expected: Sequence[BundleColumn], *, ignored: Sequence[str] = ()) -> list[Detail]:
    """Return every problem of an input, none if it can be predicted; of many unknown columns the first ones are named.

    Args:
        columns: What was sent.
        expected: What the variant needs; an identifier is accepted and never needed.
        ignored: Further names that are accepted without being looked at.
    """
    given = list(columns.columns) if isinstance(columns, pd.DataFrame) else list(columns)
    known = {column.name: column for column in expected}
    times = Counter(given)
    repeated = {str(name) for name, n in times.items() if n > 1}
    problems = [Detail(name, "The input has more than one column of this name.") for name in sorted(repeated)]
    accepted = known.keys() | set(ignored)
    unknown = [name for name in times if name not in accepted]
    if unknown:
        expects = listing(known)
        # A search for the nearest name takes long: for thousands of names it would hold up others.
        for name in unknown[:MOST_DETAILS]:
            message = f"There is no such column.{suggest(str(name), known)} Expected: {expects}."
            problems.append(Detail(str(name), message))
        if (more := len(unknown) - MOST_DETAILS) > 0:
            problems.append(Detail("columns", f"{more:,} more columns are not known."))
    for column in expected:
        if column.name in times and column.name not in repeated:
            problems.extend(_check_values(column, np.asarray(columns[column.name])))
        elif column.name not in times and column.type is not ColumnType.IDENTIFIER:
            problems.append(Detail(column.name, f"This column is missing; it holds {column.type} values."))
    return problems + _check_lengths(columns)


def _check_lengths(columns: Columns) -> list[Detail]:
    if isinstance(columns, pd.DataFrame):
        return []
    lengths = {name: len(values) for name, values in columns.items()}
    most = max(lengths.values(), default=0)
    return [
        Detail(str(name), f"This column has {length} values; another one has {most}.")
        for name, length in lengths.items()
        if length != most
    ]


_EXPECTED = {
    ColumnType.NUMERIC: "a number",
    ColumnType.BOOLEAN: "true, false, 1 or 0",
    ColumnType.DATETIME: "a date or a date-time (ISO 8601)",
}


def _check_values(column: BundleColumn, values: np.ndarray) -> list[Detail]:
    """Return a problem for the first value that does not fit, with the number of those that do not."""
    if values.ndim != 1:
        return [Detail(column.name, f"This column needs one value a row; received an array of shape {values.shape}.")]
    wrong = _misfits(column, values)
    if not len(wrong):
        return []
    row = int(wrong[0])
    shown = repr(values[row])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    expected = column.text_format and f"a date like {column.text_format}"
    expected = expected or _EXPECTED.get(column.type, "a single value")
    more = f" {len(wrong)} values of this column do not fit." if len(wrong) > 1 else ""
    return [Detail(column.name, f"Row {row} (counted from 0) holds {shown}; expected {expected}.{more}")]


def _misfits(column: BundleColumn, values: np.ndarray) -> np.ndarray:
    """Return the positions of values that are there but would be read as missing."""
    if values.dtype.kind in "biuf" and column.type is not ColumnType.DATETIME:
        return np.empty(0, dtype=np.int64)
    if values.dtype.kind == "O":
        nested = [i for i, v in enumerate(values) if isinstance(v, list | tuple | dict | set | np.ndarray)]
        if nested:
            return np.asarray(nested, dtype=np.int64)
    if column.type in NUMBERS:
        unread = np.isnan(as_numeric(values)) if values.dtype.kind != "M" else ~np.isnat(values)
    elif column.type is ColumnType.DATETIME:
        unread = np.isnat(as_datetime(values, text_format=column.text_format))
    else:
        return np.empty(0, dtype=np.int64)
    return np.asarray([i for i in np.flatnonzero(unread) if text_of(values[i]) is not None], dtype=np.int64)
