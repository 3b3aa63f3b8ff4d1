"""From what a protocol carries to the arrays that a bundle predicts.

Every protocol ends in one of three payloads; what is checked and how values
become arrays is the same for all of them, and needs no data frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from factory.errors import Detail, InvalidData, InvalidRequest, first_of, listing
from factory.spec import NUMBERS, ColumnType
from factory.variants.bundle import Bundle
from factory.variants.inputs import check_columns
from serve.errors import BodyTooLarge

Values = Sequence[object] | np.ndarray

MOST_COLUMNS = 10_000
"""Columns, or tensors, of one request: far above what variants have."""
MOST_EMPTY, EMPTY_FOR_ONE = 100_000, 16
"""Cells of a table that is made of row objects: so many, or so many for each value that was sent.

Rows that have no key in common make a table of the square of their number, nearly all of it empty."""


@dataclass(frozen=True)
class NamedColumns:
    """Columns by name, each (n_rows,)."""

    columns: Mapping[str, Values]

    @property
    def n_rows(self) -> int:
        """Rows of the longest column."""
        return max((len(values) for values in self.columns.values()), default=0)


@dataclass(frozen=True)
class NamelessColumns:
    """Columns in the order of the variant's signature, each (n_rows,)."""

    columns: Sequence[Values]

    @property
    def n_rows(self) -> int:
        """Rows of the first column."""
        return len(self.columns[0]) if self.columns else 0


@dataclass(frozen=True)
class EntityRows:
    """Rows of entity keys (and of columns that are not features), whose features are read online."""

    rows: Sequence[Mapping[str, object]]

    @property
    def n_rows(self) -> int:
        """Number of entities."""
        return len(self.rows)


Payload = NamedColumns | NamelessColumns | EntityRows


def columns_of_records(records: Sequence[object], *, where: str, max_rows: int) -> NamedColumns:
    """Turn row objects into columns; a key that a row lacks is a missing value of that row.

    Raises:
        InvalidRequest: a row is not an object.
        BodyTooLarge: there are too many rows, columns or cells.
    """
    require_size(len(records), max_rows=max_rows)
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise shape_error(f"{where}[{i}]", "an object with a value for each column", record)
    rows: Sequence[dict[str, object]] = records  # type: ignore[assignment]
    if len(rows) == 1:
        require_size(1, len(rows[0]), max_rows=max_rows)
        return NamedColumns({name: (value,) for name, value in rows[0].items()})
    names = dict.fromkeys(name for row in rows for name in row)
    require_size(len(rows), len(names), max_rows=max_rows)
    cells, most = len(rows) * len(names), max(MOST_EMPTY, EMPTY_FOR_ONE * sum(map(len, rows)))
    if cells > most:
        raise too_large(where, cells, "cells, nearly all of them empty", most=most)
    return NamedColumns({name: [row.get(name) for row in rows] for name in names})


def columns_of_rows(rows: Sequence[object], *, where: str, max_rows: int) -> list[tuple[object, ...]]:
    """Turn rows of equal length into columns.

    Raises:
        InvalidRequest: a row is not a list, or has another length than the first.
        BodyTooLarge: there are too many rows or columns.
    """
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    require_size(len(rows), width, max_rows=max_rows)
    for i, row in enumerate(rows):
        if not isinstance(row, list):
            raise shape_error(f"{where}[{i}]", "a list with a value for each column", row)
        if len(row) != width:
            raise InvalidRequest(
                f"{where}[{i}] has {len(row)} values; the first row has {width}.",
                hint="Give every row the same number of values; null is a missing one.",
                details=[Detail(f"{where}[{i}]", f"{len(row)} values instead of {width}")],
            )
    return list(zip(*rows, strict=True))


def shape_error(field: str, expected: str, received: object) -> InvalidRequest:
    """Return the error for a part of a document that is of another JSON type than it should be."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    message = f"Expected {expected}; received {kinds.get(type(received), 'a number')}."
    hint = "docs/serving.md shows each kind of body."
    return InvalidRequest(f"{field}: {message}", hint=hint, details=[Detail(field, message)])


def repeated_in(names: Iterable[str]) -> list[str]:
    """Return the names that stand more than once, sorted."""
    return sorted(name for name, n in Counter(names).items() if n > 1)


def require_size(n_rows: int, n_columns: int = 0, *, max_rows: int) -> None:
    """Refuse more rows or columns than one request may have; asked before they are made.

    Raises:
        BodyTooLarge: with both numbers.
    """
    if n_rows > max_rows:
        raise BodyTooLarge(
            f"The request has {n_rows} rows; {max_rows} are allowed.",
            hint="Send several smaller requests, or predict a file with `factory predict NAME --data FILE`.",
            details=[Detail("rows", f"{n_rows} is more than FACTORY_MAX_REQUEST_ROWS={max_rows}")],
        )
    if n_columns > MOST_COLUMNS:
        raise too_large("columns", n_columns, "columns", most=MOST_COLUMNS)


def too_large(field: str, n: int, what: str, *, most: int) -> BodyTooLarge:
    """Return the error of a request that has too many of something."""
    return BodyTooLarge(
        f"The request has {n:,} {what}; {most:,} are allowed.",
        hint="Send the variant's columns only, and fewer rows at a time.",
        details=[Detail(field, f"{n:,} is more than {most:,}")],
    )


def check_rows(payload: Payload, *, max_rows: int) -> None:
    """Refuse more rows than one request may have; raises as :func:`require_size`."""
    require_size(payload.n_rows, max_rows=max_rows)


def column_types(bundle: Bundle) -> dict[str, ColumnType]:
    """Return the type of each input column by name, in the order of the signature."""
    return {column.name: column.type for column in bundle.columns}


def arrays(payload: NamedColumns | NamelessColumns, bundle: Bundle) -> dict[str, np.ndarray]:
    """Return checked arrays (n_rows,) by column name.

    A missing value (null, NaN, an empty CSV cell) and an unknown category are fine: they are predicted as in training.

    Raises:
        InvalidData: with a detail for each column that is unknown, missing, of another length or of another type, or
            that holds an infinite number; of many the first ones.
    """
    if (columns := _plain_numbers(payload, bundle)) is not None:
        return columns
    types = column_types(bundle)
    if isinstance(payload, NamelessColumns):
        if len(payload.columns) != len(types):
            message = f"The input has {len(payload.columns)} columns without names; the variant has {len(types)}."
            raise InvalidData(
                message,
                hint=f"Send {len(types)} values a row in this order, or name the columns: "
                f"{', '.join(list(types)[:40])}{' and so on' if len(types) > 40 else ''}.",
                details=[Detail("columns", message)],
            )
        named: Mapping[str, Values] = dict(zip(types, payload.columns, strict=True))
    else:
        named = payload.columns
    columns = {name: _array(values, types.get(name)) for name, values in named.items()}
    problems = bundle.check_input(columns)
    problems += [
        Detail(name, "This column holds an infinite number; send null where a value is missing.")
        for name, values in columns.items()
        if values.dtype.kind == "f" and np.isinf(values).any()
    ]
    if problems:
        problems = list(first_of(problems))
        raise InvalidData(
            "The input cannot be predicted: " + " ".join(f"{p.field}: {p.message}" for p in problems),
            hint=f"The variant's columns are: {listing(types, most=40)}. GET /v2/models/NAME tells their types.",
            details=problems,
        )
    return columns


_PLAIN = {int, float, bool, type(None)}


def are_plain(values: Iterable[object]) -> bool:
    """Return whether values are numbers, booleans or missing, and nothing that has to be read."""
    return _PLAIN.issuperset(map(type, values))


def _plain_numbers(payload: NamedColumns | NamelessColumns, bundle: Bundle) -> dict[str, np.ndarray] | None:
    """Return the columns where they are what most calls send: each by its name, plain numbers where numbers are wanted.

    All numbers become one block at once, which is checked at once. None where anything is otherwise: it is looked at
    column by column then.
    """
    if not isinstance(payload, NamedColumns):
        return None
    given, names, others = payload.columns, bundle.numeric_names, bundle.other_columns
    if len(given) != len(names) + len(others):
        return None
    try:
        values = [given[name] for name in names]
        columns = {column.name: _array(given[column.name], column.type) for column in others}
    except KeyError:
        return None
    if any(isinstance(column, np.ndarray) for column in values):
        return None
    if not are_plain(chain.from_iterable(values)):
        return None
    try:
        block = np.array(values, dtype=np.float64)
    except (OverflowError, ValueError):
        return None
    if names and (block.ndim != 2 or np.isinf(block).any()):
        return None
    if others and check_columns(columns, others):
        return None
    if names and others and block.shape[1] != len(next(iter(columns.values()))):
        return None
    return dict(zip(names, block, strict=True)) | columns


def _array(values: Values, kind: ColumnType | None) -> np.ndarray:
    """Return values as numbers where they are, or as objects, which the bundle reads one by one as in training."""
    if isinstance(values, np.ndarray):
        return values
    if kind in NUMBERS and are_plain(values):
        try:
            return np.array(values, dtype=np.float64)
        except OverflowError:
            # An integer beyond what a double holds is as infinite as 1e999.
            return np.full(len(values), np.inf)
    return np.fromiter(values, dtype=object, count=len(values))
