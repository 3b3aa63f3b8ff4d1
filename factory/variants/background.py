"""A few training rows that travel with a variant, for its explanations.

An explanation compares a row with rows as the variant knows them; these are
kept when it is made, in canonical form (``factory/data/columns.py``), as plain
JSON in the bundle's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from factory.data.columns import as_datetime, as_numeric, as_text
from factory.errors import UntrustedBundle
from factory.spec import NUMBERS, ColumnType
from factory.variants.inputs import BundleColumn, Columns

BACKGROUND = "background.json"
ROWS = 32
"""Rows that are kept: the base of an explanation is the mean prediction of these."""
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Background:
    """Rows to compare with.

    Attributes:
        columns: Canonical arrays (n_rows,) by column name, of the columns that the variant uses.
    """

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @classmethod
    def of(cls, frame: pd.DataFrame, columns: Sequence[BundleColumn], *, seed: int) -> Background:
        """Return a random sample of training rows, (n_rows, n_columns)."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(frame))[:ROWS])
        return cls(canonical(frame.iloc[rows], columns))

    def save(self, folder: Path) -> None:
        """Write ``background.json`` into an existing folder."""
        document = {"format": _FORMAT, "columns": {name: _listed(values) for name, values in self.columns.items()}}
        (folder / BACKGROUND).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, columns: Sequence[BundleColumn]) -> Background | None:
        """Read what :meth:`save` wrote; None where a bundle has no such file.

        Raises:
            UntrustedBundle: the file is damaged or of an unknown format.
        """
        path = folder / BACKGROUND
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r}, known is {_FORMAT}")
            stored = document["columns"]
            return cls({column.name: _restored(stored[column.name], column) for column in _used(columns)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UntrustedBundle(
                f"{BACKGROUND} of the bundle cannot be read: {error}.", hint="Make the variant again."
            ) from error


def canonical(columns: Columns, used: Sequence[BundleColumn]) -> dict[str, np.ndarray]:
    """Return the columns that a variant uses as float64, datetime64[us] or text, (n_rows,) each.

    Args:
        columns: Rows as a caller sends them, checked.
        used: Input columns of the variant; identifiers are left out.
    """
    return {column.name: _canonical(np.asarray(columns[column.name]), column) for column in _used(used)}


def _used(columns: Sequence[BundleColumn]) -> list[BundleColumn]:
    return [column for column in columns if column.type is not ColumnType.IDENTIFIER]


def _canonical(values: np.ndarray, column: BundleColumn) -> np.ndarray:
    if column.type in NUMBERS:
        return as_numeric(values)
    if column.type is ColumnType.DATETIME:
        return as_datetime(values, text_format=column.text_format)
    return as_text(values)


def _restored(values: list[Any], column: BundleColumn) -> np.ndarray:
    if column.type in NUMBERS:
        return np.array(values, dtype=np.float64)
    if column.type is ColumnType.DATETIME:
        return np.array(values, dtype="M8[us]")
    return as_text(np.array(values, dtype=object))


def _listed(values: np.ndarray) -> list[Any]:
    """Return values as JSON holds them: numbers, texts, ISO 8601 moments, null where missing."""
    if values.dtype.kind == "M":
        return [None if np.isnat(v) else str(v) for v in values]
    if values.dtype.kind == "f":
        return [None if np.isnan(v) else float(v) for v in values]
    return list(values)
