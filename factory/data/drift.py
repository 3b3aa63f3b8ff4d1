"""Columns whose later rows differ from those to learn from: those of the gate, and those to be predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from factory.data import sanity
from factory.data.dataset import Dataset
from factory.data.findings import Suspicion

DRIFT_FILL, DRIFT_RATIO, DRIFT = 0.9, 20.0, 0.9
"""Difference and ratio of fill rates, and divergence in bits, from which on nothing learned from a column holds for
later rows; as in TransmogrifAI. Such columns are left out where the request says so."""
DRIFT_WARNING, FILL_WARNING = 0.2, 0.3
"""Divergence and difference of fill rates that are worth a warning: normal distributions one deviation apart have a
divergence of .15, the columns of a random split less than .05."""
_DRIFT_ROWS = 30
"""Rows on either side below which a difference of distributions is noise."""
_LEAST_FILLED = 10
"""Values that the emptier side would have at the rate of the other one, below which it may lack them by chance."""


@dataclass(frozen=True)
class Later:
    """Rows that come after those to learn from, to compare distributions with.

    Attributes:
        name: What they are, as in "differs in the rows of the gate".
        frame: Canonical columns, as far as there are some (n_rows, n_columns).
        whole: Whether a column that is not there is missing; else it is not compared.
    """

    name: str
    frame: pd.DataFrame
    whole: bool = False


def drifts(dataset: Dataset, columns: list[str], later: Sequence[Later], *, drift: str) -> Iterator[Suspicion]:
    """Columns whose distribution differs in later rows; the rows where it differs most speak."""
    for column in columns:
        found = [one for rows in later if (one := _drift(dataset, column, rows, asked=drift)) is not None]
        if found:
            yield max(found, key=lambda one: (one.drops, one.value or 0.0))


def _drift(dataset: Dataset, column: str, later: Later, *, asked: str) -> Suspicion | None:
    before, there = dataset.frame[column], column in later.frame.columns
    if min(len(before), len(later.frame)) < _DRIFT_ROWS or not (there or later.whole):
        return None
    after = later.frame[column] if there else pd.Series(np.full(len(later.frame), np.nan))
    shift = sanity.shift(before, after, dataset.types[column])
    beyond_noise = shift.divergence - shift.noise
    emptied = shift.fill_before > shift.fill_after
    expected = shift.fill_before * len(after) if emptied else shift.fill_after * len(before)
    rarely = shift.fill_ratio >= DRIFT_RATIO and expected >= _LEAST_FILLED
    altogether = beyond_noise >= DRIFT or shift.fill_difference >= DRIFT_FILL or rarely
    if not altogether and beyond_noise < DRIFT_WARNING and shift.fill_difference < FILL_WARNING:
        return None
    told = []
    if shift.fill_difference >= FILL_WARNING or rarely:
        told.append(f"filled in {shift.fill_before:.1%} of the rows to learn from, in {shift.fill_after:.1%} of those")
    if beyond_noise >= DRIFT_WARNING:
        told.append(f"divergence {shift.divergence:.2f} of at most 1")
    drops = altogether and asked == "drop"
    follows = "it is left out, as the request asks" if drops else "it is used, but what it teaches may not hold there"
    return Suspicion(
        "drift",
        column,
        f"differs in {later.name} ({', '.join(told)})",
        follows,
        drops=drops,
        value=max(shift.divergence, shift.fill_difference),
    )
