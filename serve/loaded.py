"""A variant in memory, warmed up and timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from factory.spec import NUMBERS, Variant
from factory.variants.bundle import Bundle
from factory.variants.shared import SharedParts

LEAST_MB = 0.1
"""Of a variant in memory beside its parts, and of each part, however small its files: they are Python objects."""
FRAMEWORK_MODULES = 40
"""More modules than a bundle brings by itself were a framework's."""
TOGETHER = 8
"""Rows with which is measured what it saves to predict several at once."""
MOST_TIMED = 2_000
"""Blends whose times are remembered, the oldest of which go first."""


@dataclass(frozen=True)
class Times:
    """What a prediction takes once it is warm.

    Attributes:
        row_ms: Processor time of one row, in ms.
        gain_ms: By how much less a row takes where :data:`TOGETHER` are predicted at once, in ms; 0 where answers would
            not be the same to the last bit.
    """

    row_ms: float
    gain_ms: float = 0.0

    @classmethod
    def of(cls, bundle: Bundle) -> Times:
        """Predict rows of missing values: frameworks do their last preparations at the first call."""
        row = {
            column.name: np.array([np.nan]) if column.type in NUMBERS else np.array([None], dtype=object)
            for column in bundle.columns
        }
        row_ms = min(_call_ms(bundle, row) for _ in range(3))
        if not bundle.rowwise:
            return cls(row_ms)
        rows = {name: np.repeat(values, TOGETHER) for name, values in row.items()}
        return cls(row_ms, max(0.0, row_ms - _call_ms(bundle, rows) / TOGETHER))


class Stock:
    """What is in memory of variants, beside themselves: the parts that they share, and what blends of them take.

    Attributes:
        parts: Models and preparations, each once.
    """

    def __init__(self) -> None:
        self.parts = SharedParts()
        self._times: dict[frozenset[str], Times] = {}

    def times(self, bundle: Bundle, *, is_warm: bool) -> Times:
        """Return what a bundle's predictions take; the same parts are not timed again.

        A thousand segments that take the pooled blend differ by weights and calibration, which take no time.

        Args:
            bundle: As it was loaded.
            is_warm: Whether all of its parts have predicted before.
        """
        blend = frozenset(bundle.parts)
        known = self._times.get(blend) if is_warm else None
        if known is None:
            known = self._times[blend] = Times.of(bundle)
            if len(self._times) > MOST_TIMED:
                self._times.pop(next(iter(self._times)), None)
        return known


@dataclass(frozen=True)
class Loaded:
    """A variant in memory.

    Attributes:
        variant: What the ledger says of it.
        bundle: What predicts.
        sizes: Memory that its parts are counted with, in MB, by what tells them from those of others; a part that
            others hold too has the same name there.
        times: What its predictions take.
    """

    variant: Variant
    bundle: Bundle
    sizes: Mapping[str, float]
    times: Times

    @classmethod
    def read(cls, variant: Variant, folder: Path, stock: Stock) -> Loaded:
        """Load a variant's bundle from its folder, warm it up, and measure what memory that took.

        Counted is by how much this process has grown, at least the size of the files: memory that was freed before is
        taken again without growing. Where a framework was imported meanwhile, which stays, or another variant was
        loaded, only the files count. What other variants hold already is not loaded again, and counted once.

        Raises:
            OSError: files cannot be read.
            UntrustedBundle: it is not what the ledger says.
        """
        with _measured() as grown:
            before = stock.parts.n_loaded
            bundle = Bundle.load(folder, digest=variant.bundle_digest, shared=stock.parts)
            times = stock.times(bundle, is_warm=stock.parts.n_loaded == before)
        files_mb = {part: max(LEAST_MB, size_mb) for part, size_mb in bundle.parts.items()}
        factor = max(1.0, grown() / sum(files_mb.values()))
        sizes = {part: factor * size_mb for part, size_mb in files_mb.items()}
        return cls(variant, bundle, {**sizes, f"{variant.name}/{variant.version}": LEAST_MB}, times)


_loading: set[object] = set()


@contextmanager
def _measured() -> Iterator[Callable[[], float]]:
    """Yield what says afterwards by how many MB the process has grown; 0 where something else has made it grow."""
    mine, grown = object(), 0.0
    alone = not _loading
    _loading.add(mine)
    modules, before = len(sys.modules), _resident_mb()
    try:
        yield lambda: grown
        alone = alone and _loading == {mine} and len(sys.modules) - modules < FRAMEWORK_MODULES
        grown = _resident_mb() - before if alone else 0.0
    finally:
        _loading.discard(mine)


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


def _call_ms(bundle: Bundle, rows: Mapping[str, np.ndarray]) -> float:
    """Return what a prediction takes of this thread's processor time: others may hold it up while it is measured."""
    started = time.thread_time()
    bundle.predict_raw(rows)
    return (time.thread_time() - started) * 1e3
