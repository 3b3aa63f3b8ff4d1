"""Statistics of single columns: how they hang together with the target, with each other, and with later rows.

The measures, and most thresholds that :mod:`factory.data.screening` puts on
them, are those of the SanityChecker and the RawFeatureFilter of Salesforce's
TransmogrifAI (2018).  Nothing here decides what happens to a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from factory.data.columns import factorize
from factory.spec import ColumnType

_MOST_EDGES, _ROWS_PER_EDGE = 19, 20
"""Inner edges of the bins of a number, from each of the two samples: few where rows are few. TransmogrifAI's 100 bins
are noise below some thousands of rows."""
_LEAST_SHARE = 0.01
"""A level with a smaller share of both samples together counts with the other rare ones: rare levels come and go."""
_BLOCK = 512
"""Columns that are correlated with all others at once: bounds the memory of wide tables."""


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation over the rows where both are finite; 0 where it is not defined.

    Args:
        x: Numbers (n_rows,).
        y: Numbers (n_rows,).
    """
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        return 0.0
    a, b = x[both] - x[both].mean(), y[both] - y[both].mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def label_correlation(x: np.ndarray, y: np.ndarray, *, n_classes: int) -> float:
    """Return the correlation with the target whose absolute value is greatest; of each class, where there are classes.

    Args:
        x: Numbers (n_rows,).
        y: Class indices or targets (n_rows,).
        n_classes: 0 for regression.
    """
    if not n_classes:
        return correlation(x, y.astype(np.float64))
    found = [correlation(x, (y == k).astype(np.float64)) for k in (range(n_classes) if n_classes > 2 else (1,))]
    return max(found, key=abs)


@dataclass(frozen=True, eq=False)
class Contingency:
    """How often each level meets each class: the pairs that occur only, since of 100,000 levels most meet few classes.

    Attributes:
        levels: Level of each pair, int64 (n_pairs,), rising; at most as many pairs as there are rows.
        labels: Its class, int64 (n_pairs,).
        counts: Rows that have both, int64 (n_pairs,), above 0.
    """

    levels: np.ndarray
    labels: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, labels: np.ndarray) -> Contingency:
        """Count the rows (n_rows,) that have a level; those with a negative code have none."""
        known = codes >= 0
        n_classes = int(labels.max(initial=-1)) + 1
        pairs, counts = np.unique(codes[known] * n_classes + labels[known], return_counts=True)
        return cls(*np.divmod(pairs, max(n_classes, 1)), counts)

    @property
    def of_levels(self) -> np.ndarray:
        """Rows of each level, float64 (n_levels,)."""
        return np.bincount(self.levels, weights=self.counts)

    @property
    def of_classes(self) -> np.ndarray:
        """Rows of each class, float64 (n_classes,)."""
        return np.bincount(self.labels, weights=self.counts)


def cramers_v(table: Contingency) -> float:
    """Return Cramér's V, corrected for its bias (Bergsma, 2013).

    TransmogrifAI does not correct: there a column of many levels is close to 1 by chance.
    """
    of_levels, of_classes = table.of_levels, table.of_classes
    n, rows, columns = float(table.counts.sum()), int((of_levels > 0).sum()), int((of_classes > 0).sum())
    if n < 2 or min(rows, columns) < 2:
        return 0.0
    # The sum over all cells of (count - expected)^2 / expected, of which the pairs that do not occur are part.
    chi2 = n * (float((np.square(table.counts) / (of_levels[table.levels] * of_classes[table.labels])).sum()) - 1)
    phi2 = max(0.0, chi2 / n - (rows - 1) * (columns - 1) / (n - 1))
    least = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return min(1.0, float(np.sqrt(phi2 / least))) if least > 0 else 0.0


@dataclass(frozen=True)
class Rule:
    """ "Rows of this level are of this class" (Agrawal, Imielinski and Swami, 1993).

    Attributes:
        level: Code of the level.
        label: Index of the class.
        confidence: Share of the level's rows that are of the class.
        at_least: Lower end of its 95 % interval (Wilson, 1927).
        n_rows: Rows of the level.
        prior: Share of the class among all rows.
    """

    level: int
    label: int
    confidence: float
    at_least: float
    n_rows: int
    prior: float


def rules(table: Contingency, *, least_rows: int) -> tuple[Rule, ...]:
    """Return the best rule of each level that has so many rows."""
    of_levels, of_classes = table.of_levels, table.of_classes
    total = of_classes.sum()
    # Level by level, the most frequent class first; of equal ones the first class.
    order = np.lexsort((table.labels, -table.counts, table.levels))
    firsts = order[np.flatnonzero(np.diff(table.levels[order], prepend=-1))]
    found = []
    for level, label, count in zip(table.levels[firsts], table.labels[firsts], table.counts[firsts], strict=True):
        n = int(of_levels[level])
        if n >= least_rows:
            share = float(count) / n
            found.append(
                Rule(int(level), int(label), share, _wilson_low(share, n), n, float(of_classes[label] / total))
            )
    return tuple(found)


def _wilson_low(share: float, n: int, *, z: float = 1.96) -> float:
    middle = share + z * z / (2 * n)
    spread = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return (middle - spread) / (1 + z * z / n)


def renames(codes: np.ndarray, labels: np.ndarray, *, least_rows: int, least_per_class: int) -> bool:
    """Whether levels and classes go one to one over all rows that have a level (negative codes have none).

    Args:
        codes: Level of each row (n_rows,).
        labels: Class index of each row (n_rows,).
        least_rows: Fewer rows with a level may do so by luck.
        least_per_class: So may classes with fewer rows; two classes must have that many.
    """
    table = Contingency.of(codes, labels)
    one_to_one = len(np.unique(table.levels)) == len(np.unique(table.labels)) == len(table.counts)
    return one_to_one and int(table.counts.sum()) >= least_rows and int((table.counts >= least_per_class).sum()) >= 2


def affine(x: np.ndarray, y: np.ndarray, *, least_rows: int) -> bool:
    """Whether numbers are ``a * y + b`` over all rows that have one, up to rounding of six digits (n_rows,)."""
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < least_rows:
        return False
    a, b = x[both], y[both]
    spread = float(b.std())
    if spread == 0 or a.std() == 0:
        return False
    slope = float(((a - a.mean()) * (b - b.mean())).mean()) / spread**2
    rest = a - a.mean() - slope * (b - b.mean())
    return float(np.abs(rest).max()) <= 1e-6 * float(np.abs(a - a.mean()).max())


def twins(matrix: np.ndarray, *, least: float) -> list[tuple[int, int, float]]:
    """Return the pairs of columns (left, right, correlation), left < right, that correlate that much or more.

    Missing values count as the column's mean.

    Args:
        matrix: Numbers with NaN where missing (n_rows, n_columns).
        least: Absolute correlation.
    """
    known = np.isfinite(matrix)
    counts = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, matrix, 0.0)
    centred = np.where(known, centred - centred.sum(axis=0) / counts, 0.0)
    length = np.sqrt(np.square(centred).sum(axis=0))
    unit = (centred / np.where(length > 0, length, 1.0)).astype(np.float32)
    found = []
    for start in range(0, unit.shape[1], _BLOCK):
        block = unit[:, start : start + _BLOCK].T @ unit
        left, right = np.nonzero(np.abs(block) >= least)
        found += [
            (int(i) + start, int(j), float(np.clip(block[i, j], -1, 1)))
            for i, j in zip(left, right, strict=True)
            if i + start < j
        ]
    return found


# --- earlier and later rows -------------------------------------------------------------


@dataclass(frozen=True)
class Shift:
    """How a column differs between two sets of rows.

    Attributes:
        fill_before: Share of the rows that have a value, among the rows to learn from.
        fill_after: The same among the later rows.
        divergence: Jensen-Shannon divergence of the values that are there, in bits: 0 is equal, 1 is disjoint.
        noise: Divergence that two samples of these sizes from one distribution are expected to have.
    """

    fill_before: float
    fill_after: float
    divergence: float
    noise: float

    @property
    def fill_difference(self) -> float:
        """Absolute difference of the fill rates."""
        return abs(self.fill_before - self.fill_after)

    @property
    def fill_ratio(self) -> float:
        """Greater fill rate over the smaller one; infinite where one side has no value."""
        low, high = sorted((self.fill_before, self.fill_after))
        return high / low if low else float("inf") if high else 1.0


def shift(before: pd.Series, after: pd.Series, kind: ColumnType) -> Shift:
    """Compare a column between two sets of rows.

    Of dates, prose and identifiers only the fill rates are compared: time goes on, and no text comes twice.

    Args:
        before: Canonical values among the rows to learn from (n_before,).
        after: Canonical values among the later rows (n_after,).
        kind: The column's type.
    """
    here, there = before.notna().to_numpy(), after.notna().to_numpy()
    fills = (float(here.mean()) if len(here) else 0.0, float(there.mean()) if len(there) else 0.0)
    a, b = before.to_numpy()[here], after.to_numpy()[there]
    if not len(a) or not len(b) or kind in (ColumnType.DATETIME, ColumnType.TEXT, ColumnType.IDENTIFIER):
        return Shift(*fills, divergence=0.0, noise=0.0)
    p, q = _binned(a, b) if kind is ColumnType.NUMERIC else _levelled(a, b)
    # Expectation of the chi-square form that the divergence has for close distributions (Lin, 1991).
    noise = (int(((p + q) > 0).sum()) - 1) * (1 / len(a) + 1 / len(b)) / (8 * np.log(2))
    return Shift(*fills, divergence=divergence(p, q), noise=min(1.0, float(noise)))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two distributions (n_bins,) in bits (Lin, 1991)."""
    middle = (p + q) / 2

    def against(one: np.ndarray) -> float:
        there = one > 0
        return float((one[there] * np.log2(one[there] / middle[there])).sum())

    return min(1.0, max(0.0, (against(p) + against(q)) / 2))


def _binned(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares in bins whose edges are quantiles of either sample, so that disjoint samples fall into disjoint bins."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    n_edges = int(np.clip(min(len(a), len(b)) // _ROWS_PER_EDGE, 1, _MOST_EDGES))
    edges = np.unique(np.concatenate([_edges(a, n_edges), _edges(b, n_edges)]))
    return _shares(np.searchsorted(edges, a, side="right"), np.searchsorted(edges, b, side="right"), len(edges) + 1)


def _edges(values: np.ndarray, n: int) -> np.ndarray:
    """Return the least value, and ``n`` quantiles between it and the greatest."""
    return np.asarray(np.quantile(values, np.linspace(0, 1, n + 2)[:-1], method="lower"))


def _levelled(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, texts = factorize(np.concatenate([a.astype(object), b.astype(object)]))
    p, q = _shares(codes[: len(a)], codes[len(a) :], len(texts))
    frequent = (p + q) / 2 >= _LEAST_SHARE
    return np.append(p[frequent], p[~frequent].sum()), np.append(q[frequent], q[~frequent].sum())


def _shares(a: np.ndarray, b: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(a, minlength=n) / len(a), np.bincount(b, minlength=n) / len(b)


def numbers(columns: Sequence[pd.Series]) -> np.ndarray:
    """Return numeric columns side by side, float64 (n_rows, n_columns), NaN where missing."""
    return np.column_stack([c.to_numpy().astype(np.float64) for c in columns])
