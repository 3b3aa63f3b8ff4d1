"""Rows of several callers below each other, and each caller's share of what is predicted of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from serve.inputs import EntityRows, NamedColumns, NamelessColumns, Payload, Values
from serve.predictions import Prediction


def shape_of(payload: Payload) -> tuple[object, ...]:
    """Return what payloads have in common that can stand below each other, and are read as each would be alone."""
    if isinstance(payload, EntityRows):
        return ("entities", *sorted({key for row in payload.rows for key in row}))
    columns = payload.columns
    lengths = {len(values) for values in (columns.values() if isinstance(columns, Mapping) else columns)}
    if len(lengths) != 1:
        return (id(payload),)  # is wrong, and stays alone
    if isinstance(columns, Mapping):
        return ("named", *sorted((name, _kind(values)) for name, values in columns.items()))
    return ("nameless", *map(_kind, columns))


@overload
def joined(payloads: Sequence[NamedColumns | NamelessColumns]) -> NamedColumns | NamelessColumns: ...
@overload
def joined(payloads: Sequence[Payload]) -> Payload: ...
def joined(payloads: Sequence[Payload]) -> Payload:
    """Return payloads of one shape as one, their rows below each other."""
    first = payloads[0]
    if isinstance(first, EntityRows):
        return EntityRows([row for one in payloads if isinstance(one, EntityRows) for row in one.rows])
    if isinstance(first, NamelessColumns):
        lists = [one.columns for one in payloads if isinstance(one, NamelessColumns)]
        return NamelessColumns([_below(parts) for parts in zip(*lists, strict=True)])
    named = [one.columns for one in payloads if isinstance(one, NamedColumns)]
    return NamedColumns({name: _below([one[name] for one in named]) for name in first.columns})


def shares(whole: Prediction, payloads: Sequence[Payload]) -> Iterator[Prediction]:
    """Yield each payload's part of the prediction of all of them, in their order; the first one tells what all took."""
    first = 0
    ms = whole.ms / len(payloads)
    for payload in payloads:
        rows = slice(first, first + payload.n_rows)
        inputs = {name: values[rows] for name, values in whole.inputs.items()}
        yield replace(whole, inputs=inputs, raw=whole.raw[rows], ms=ms, took=None if first else whole.took)
        first += payload.n_rows


def _kind(values: Values) -> str:
    """Return what an array is of, since one of two types is of a third one; all else keeps its values as they are."""
    return values.dtype.str if isinstance(values, np.ndarray) else ""


def _below(parts: Sequence[Values]) -> Values:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return [value for part in parts for value in part]
