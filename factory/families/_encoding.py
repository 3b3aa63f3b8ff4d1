"""What a model makes of a table before it sees it: crosses or not, levels as codes or as target means.

For boosters target means are better than their own handling of categories where
levels are many, and much worse where they are few (own measurement: superstore 112
against 119, diamonds 785 against 550).  So a column is encoded only above
:data:`FEW_LEVELS`; the others stay native codes.  Forests, which have no handling
of their own, see means beside codes, models of plain numbers instead of them
(docs/decisions/many-levels.md).  Training rows get the means of folds that they
are not in; otherwise each would see its own target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from factory.data.graph import DrawnTable
from factory.data.preparation import Table
from factory.families._terms import Owners
from factory.families.base import Sample

FILE = "inputs.npz"
MEANS = "means."
"""Begins the names of its arrays where they stand among others."""
FEW_LEVELS = 10
"""Columns up to so many known levels keep their codes."""
INNER_FOLDS = 5
SMOOTHING = 10.0
"""Rows that the overall mean counts for in a level's mean; with five folds as in AutoGluon 1.6."""
MOST_TARGETS = 10
"""Classes that get a column of means, the most frequent ones."""
MOST_MEANS = 50
"""Columns of means of all encoded columns together, where that leaves each of them one."""


@dataclass(frozen=True)
class TargetEncoding:
    """Smoothed means of the target by level (Micci-Barreca 2001), learned out of fold (AutoGluon 1.6).

    Where whole groups validate, folds are whole groups too.

    Attributes:
        columns: Positions of the encoded categorical columns, int64 (n_encoded,).
        starts: Row in ``values`` of each one's code 0, int64 (n_encoded,).
        values: Mean of each level, and of the whole for levels that training lacks, float32 (n_levels, n_targets).
        keeps: Whether the encoded codes stay in the table, beside their means.
    """

    columns: np.ndarray
    starts: np.ndarray
    values: np.ndarray
    keeps: bool = False

    @classmethod
    def fit(
        cls, train: Sample, *, n_classes: int, seed: int, few: int = FEW_LEVELS, keeps: bool = False
    ) -> tuple[TargetEncoding, Table] | None:
        """Learn from training rows; None where no column has many levels.

        Args:
            train: The rows, with targets as the model is trained on them: class indices, or scaled numbers.
            n_classes: Number of classes, 0 for regression.
            seed: Seed of the inner folds.
            few: Columns up to so many known levels are left as they are.
            keeps: Whether codes stay beside their means.

        Returns:
            The encoding for other rows, and the training rows encoded out of fold.
        """
        table = train.table
        columns = np.flatnonzero(np.array(table.levels) - 1 > few)
        if not len(columns):
            return None
        weight = np.ones(len(train)) if train.weight is None else train.weight
        targets = _targets(train.y, n_classes, most=MOST_MEANS // len(columns)) * weight[:, np.newaxis]
        fold, whole_groups = _inner_folds(train, seed)
        n_targets, means = targets.shape[1], []
        encoded = np.empty((len(train), len(columns) * n_targets), dtype=np.float32)
        for at, j in enumerate(columns):
            codes, n_levels = table.codes[:, j], table.levels[j]
            cell = fold * n_levels + codes
            sums = np.stack(
                [np.bincount(cell, weights=of, minlength=INNER_FOLDS * n_levels) for of in (weight, *targets.T)]
            ).reshape(-1, INNER_FOLDS, n_levels)
            whole = sums.sum(axis=1)
            means.append(_smoothed(whole))
            # The levels of a column may lie within groups, so that the others have none of their rows: of all rows the
            # same mean makes such a column constant, where each fold's own would tell the rows of a fold apart.
            around = whole if whole_groups else None
            others = np.stack([_smoothed(whole - sums[:, k], around) for k in range(INNER_FOLDS)])
            encoded[:, at * n_targets : (at + 1) * n_targets] = others[fold, codes]
        sizes = np.array(table.levels)[columns]
        encoding = cls(columns, np.cumsum(sizes) - sizes, np.concatenate(means), keeps)
        return encoding, encoding._with(table, encoded)

    @classmethod
    def joined(cls, encodings: Sequence[TargetEncoding]) -> TargetEncoding | None:
        """Return the means of several encodings of one preparation's tables, the first one's before the next one's.

        None where they have different numbers of means for a column.
        """
        if len({(each.values.shape[1], each.keeps) for each in encodings}) != 1 or not encodings[0].keeps:
            return None
        sizes = [len(each.values) for each in encodings]
        starts = [each.starts + first for each, first in zip(encodings, np.cumsum(sizes) - sizes, strict=True)]
        columns = np.concatenate([each.columns for each in encodings])
        return cls(columns, np.concatenate(starts), np.concatenate([each.values for each in encodings]), keeps=True)

    @property
    def n_means(self) -> int:
        """Number of columns of means."""
        return len(self.columns) * int(self.values.shape[1])

    def transform(self, table: Table) -> Table:
        """Return rows with means, as the first numeric columns, in place of the encoded codes or beside them."""
        means = self.values[self.starts + table.codes[:, self.columns]]
        return self._with(table, means.reshape(len(table), -1))

    def owners(self, owners: Owners, *, n_numeric: int) -> Owners:
        """Return the owners of the columns that :meth:`transform` returns, of those of a table's."""
        return tuple(owners[j] for j in self.origins(n_numeric, len(owners) - n_numeric))

    def origins(self, n_numeric: int, n_categorical: int) -> list[int]:
        """Return the column of a table, numeric ones first, that each column of :meth:`transform` is made of."""
        means = [n_numeric + j for j in self.columns.tolist() for _ in range(self.values.shape[1])]
        return [*means, *range(n_numeric), *(n_numeric + j for j in self._kept(n_categorical))]

    def draw(self, table: DrawnTable) -> DrawnTable:
        """Draw :meth:`transform`."""
        assert table.codes is not None
        graph, kept = table.graph, self._kept(len(table.levels))
        rows = graph.add("Add", graph.columns(table.codes, self.columns), self.starts.astype(np.int64))
        means = graph.flat(graph.add("Gather", self.values, rows, axis=0))
        return replace(
            table,
            numeric=means if table.numeric is None else graph.beside([means, table.numeric]),
            codes=graph.columns(table.codes, kept) if kept else None,
            n_numeric=table.n_numeric + self.n_means,
            levels=tuple(table.levels[j] for j in kept),
        )

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return everything it learned, as arrays for npz; their names begin with ``prefix``."""
        stored = {"columns": self.columns, "starts": self.starts, "values": self.values, "keeps": np.array(self.keeps)}
        return {prefix + name: values for name, values in stored.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "") -> TargetEncoding | None:
        """Rebuild from what :meth:`arrays` returned, which may stand among others; None where it does not."""
        if f"{prefix}columns" not in arrays:
            return None
        columns, starts, values = (arrays[prefix + name] for name in ("columns", "starts", "values"))
        # Encodings stored before codes could stay have no such array.
        return cls(columns, starts, values, bool(arrays.get(f"{prefix}keeps", False)))

    def _kept(self, n_columns: int) -> list[int]:
        """Return the positions of the codes that stay."""
        return [j for j in range(n_columns) if self.keeps or j not in self.columns]

    def _with(self, table: Table, means: np.ndarray) -> Table:
        # In front: the last numeric columns are the crosses.
        numeric = np.concatenate([means, table.numeric], axis=1, dtype=np.float32)
        names = _names(table.categorical_names, tuple(self.columns.tolist()), self.values.shape[1])
        numeric_names = (*names, *table.numeric_names)
        if self.keeps:
            return replace(table, numeric=numeric, numeric_names=numeric_names)
        kept = self._kept(len(table.levels))
        return Table(
            numeric,
            table.codes[:, kept],
            tuple(table.levels[j] for j in kept),
            numeric_names,
            tuple(table.categorical_names[j] for j in kept),
            n_crosses=table.n_crosses,
        )


@dataclass(frozen=True)
class Inputs:
    """How a booster sees a table.

    Attributes:
        crosses: Whether it sees products and ratios of columns.
        encoding: What replaces the codes of columns with many levels; None where all codes stay.
    """

    crosses: bool = True
    encoding: TargetEncoding | None = None

    @classmethod
    def fit(cls, train: Sample, *, crosses: bool, encodes: bool, n_classes: int, seed: int) -> tuple[Inputs, Sample]:
        """Return the inputs, and the training rows as the trees see them; see :meth:`TargetEncoding.fit`."""
        seen = train if crosses else replace(train, table=train.table.plain)
        found = TargetEncoding.fit(seen, n_classes=n_classes, seed=seed) if encodes else None
        if found is None:
            return cls(crosses), seen
        encoding, table = found
        return cls(crosses, encoding), replace(seen, table=table)

    @property
    def unchanged(self) -> bool:
        """Whether the trees see the table as it is."""
        return self.crosses and self.encoding is None

    def of(self, table: Table) -> Table:
        """Return the table that the trees see."""
        seen = table if self.crosses else table.plain
        return seen if self.encoding is None else self.encoding.transform(seen)

    def owners(self, owners: Owners, table: Table) -> Owners:
        """Return the owners of the columns that the trees see, of those of a table's."""
        n_numeric = len(table.numeric_names)
        if not self.crosses:
            plain = n_numeric - table.n_crosses
            owners, n_numeric = (*owners[:plain], *owners[n_numeric:]), plain
        return owners if self.encoding is None else self.encoding.owners(owners, n_numeric=n_numeric)

    def draw(self, table: DrawnTable) -> DrawnTable:
        """Draw :meth:`of`."""
        seen = table if self.crosses else table.plain
        return seen if self.encoding is None else self.encoding.draw(seen)

    def save(self, folder: Path) -> None:
        """Write arrays into an existing folder; nothing where the table is seen as it is."""
        if self.unchanged:
            return
        arrays = {"crosses": np.array(self.crosses)}
        if self.encoding is not None:
            arrays |= self.encoding.arrays()
        np.savez(folder / FILE, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> Inputs:
        """Read what :meth:`save` wrote."""
        if not (folder / FILE).exists():
            return cls()
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        return cls(bool(arrays["crosses"]), TargetEncoding.from_arrays(arrays))


def _targets(y: np.ndarray, n_classes: int, *, most: int) -> np.ndarray:
    """Return what is averaged, float64 (n_rows, n_targets): the number, the second class, or each frequent class."""
    if n_classes <= 2:
        return y.astype(np.float64)[:, np.newaxis]
    frequent = np.argsort(-np.bincount(y, minlength=n_classes), kind="stable")[: max(1, min(most, MOST_TARGETS))]
    return np.asarray(y[:, np.newaxis] == np.sort(frequent), dtype=np.float64)


@lru_cache(256)
def _names(categorical: tuple[str, ...], columns: tuple[int, ...], n_targets: int) -> tuple[str, ...]:
    """Return what the columns of means are called; kept, since every row of a variant asks for them."""
    return tuple(f"{categorical[j]}:mean{k}" for j in columns for k in range(n_targets))


def _inner_folds(train: Sample, seed: int) -> tuple[np.ndarray, bool]:
    """Return the inner fold of each row, int64 (n_rows,), and whether these are whole groups.

    Where whole groups validate, no row learns of its own group: rows to predict are of others. Groups of about the same
    size are dealt there and back.
    """
    generator = np.random.default_rng(seed)
    if train.group is not None:
        names, group = np.unique(train.group, return_inverse=True)
        if len(names) > 1:
            sizes, shuffled = np.bincount(group), generator.permutation(len(names))
            place = np.arange(len(names)) % (2 * INNER_FOLDS)
            fold = np.empty(len(names), dtype=np.int64)
            largest_first = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
            fold[largest_first] = np.minimum(place, 2 * INNER_FOLDS - 1 - place)
            return fold[group], True
    return generator.permutation(len(train)) % INNER_FOLDS, False


def _smoothed(sums: np.ndarray, around: np.ndarray | None = None) -> np.ndarray:
    """Return means float32 (n_levels, n_targets) of weights and weighted targets (1 + n_targets, n_levels).

    Args:
        sums: Of some rows.
        around: Of the rows whose overall mean smooths; these if None.
    """
    weights, targets = sums[0], sums[1:]
    prior = sums if around is None else around
    overall = prior[1:].sum(axis=1, keepdims=True) / max(prior[0].sum(), 1e-12)
    means: np.ndarray = ((targets + SMOOTHING * overall) / (weights + SMOOTHING)).T.astype(np.float32)
    return means
