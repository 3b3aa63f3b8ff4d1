"""A variant in memory, warmed up and timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from factory.spec import ColumnType, Variant
from factory.variants.bundle import Bundle


@dataclass(frozen=True)
class Loaded:
    """A variant in memory.

    Attributes:
        variant: What the ledger says of it.
        bundle: What predicts.
        size_mb: Size of its folder in MB, which stands for its memory.
        row_ms: Median time of a prediction of one row, in ms.
    """

    variant: Variant
    bundle: Bundle
    size_mb: float
    row_ms: float

    @classmethod
    def warm(cls, variant: Variant, bundle: Bundle, *, size_mb: float) -> Loaded:
        """Predict one row of missing values a few times: frameworks do their last preparations at the first call."""
        numbers = (ColumnType.NUMERIC, ColumnType.BOOLEAN)
        row = {
            column.name: np.array([np.nan]) if column.type in numbers else np.array([None], dtype=object)
            for column in bundle.columns
        }
        _row_ms(bundle, row)
        return cls(variant, bundle, size_mb, statistics.median(_row_ms(bundle, row) for _ in range(5)))


def _row_ms(bundle: Bundle, row: Mapping[str, np.ndarray]) -> float:
    started = time.perf_counter()
    bundle.predict_raw(row)
    return (time.perf_counter() - started) * 1e3
