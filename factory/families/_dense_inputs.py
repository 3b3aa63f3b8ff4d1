"""What models of plain numbers see of a table: target means in place of many levels, then one matrix without NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from factory.data.dense import DenseEncoder
from factory.data.graph import DrawnTable
from factory.data.preparation import Table
from factory.families._encoding import MEANS, TargetEncoding
from factory.families.base import Sample

_ONE_HOT_MAX_LEVELS = 9
"""Columns with more codes than this are embedded, the others one-hot: 8 categories as in RealMLP
(Holzmüller, Grinsztajn, Steinwart 2024), and the code for missing."""


@dataclass(frozen=True)
class DenseInputs:
    """Target means of the columns whose levels are too many for columns of their own, then a dense encoder.

    Attributes:
        encoder: Fitted on the training rows with the means of folds that they are not in.
        encoding: What replaces codes; None where no column has too many levels, and in models that were stored when
            such columns were encoded by frequency.
    """

    encoder: DenseEncoder
    encoding: TargetEncoding | None = None

    @classmethod
    def fit(cls, train: Sample, *, one_hot_max_levels: int, n_classes: int, seed: int) -> tuple[DenseInputs, Table]:
        """Learn from training rows.

        Args:
            train: The rows, with targets as the model is trained on them: class indices, or scaled numbers.
            one_hot_max_levels: Most levels of a column that is one-hot encoded.
            n_classes: Number of classes, 0 for regression.
            seed: Seed of the inner folds.

        Returns:
            The inputs, and the training rows as :attr:`encoder` takes them: no row's means know its own target.
        """
        found = TargetEncoding.fit(train, n_classes=n_classes, seed=seed, few=one_hot_max_levels)
        if found is None:
            return cls(DenseEncoder.fit(train.table)), train.table
        encoding, table = found
        return cls(DenseEncoder.fit(table), encoding), table

    @property
    def sources(self) -> np.ndarray:
        """Column of :attr:`Table.matrix` that each column of :meth:`transform` comes from, int64 (n_columns,)."""
        sources, encoding = self.encoder.sources, self.encoding
        if encoding is None:
            return sources
        n_numeric = self.encoder.n_numbers - encoding.n_means
        origins = np.array(encoding.origins(n_numeric, self.n_inputs - n_numeric), dtype=np.int64)
        return np.asarray(origins[sources])

    @property
    def n_inputs(self) -> int:
        """Number of columns that :meth:`transform` takes, of both kinds."""
        if self.encoding is None:
            return self.encoder.n_inputs
        return self.encoder.n_inputs - self.encoding.n_means + len(self.encoding.columns)

    def seen(self, table: Table) -> Table:
        """Return rows that nothing was learned from as :attr:`encoder` takes them."""
        return table if self.encoding is None else self.encoding.transform(table)

    def transform(self, table: Table) -> np.ndarray:
        """Return rows that nothing was learned from, float32 (n_rows, n_columns) without NaN."""
        return self.encoder.transform(self.seen(table))

    def draw_seen(self, table: DrawnTable) -> DrawnTable:
        """Draw :meth:`seen`."""
        return table if self.encoding is None else self.encoding.draw(table)

    def draw(self, table: DrawnTable) -> str:
        """Draw :meth:`transform`."""
        return self.encoder.draw(self.draw_seen(table))

    def arrays(self, prefix: str = "encoder.") -> dict[str, np.ndarray]:
        """Return everything they learned, as arrays for npz; those of the encoder begin with ``prefix``."""
        return self.encoder.arrays(prefix) | ({} if self.encoding is None else self.encoding.arrays(MEANS))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "encoder.") -> DenseInputs:
        """Rebuild from what :meth:`arrays` returned, which may stand among others."""
        encoder = {name: values for name, values in arrays.items() if not name.startswith(MEANS)}
        return cls(DenseEncoder.from_arrays(encoder, prefix), TargetEncoding.from_arrays(arrays, MEANS))


def embedded_columns(levels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the indices of the categorical columns that get an embedding."""
    return tuple(j for j, n in enumerate(levels) if n > _ONE_HOT_MAX_LEVELS)


def dense_part(table: Table, embedded: tuple[int, ...]) -> Table:
    """Return the table without the embedded columns, and without products and ratios: layers make their own."""
    table = table.plain
    if not embedded:
        return table
    kept = [j for j in range(len(table.levels)) if j not in embedded]
    return Table(
        numeric=table.numeric,
        codes=table.codes[:, kept],
        levels=tuple(table.levels[j] for j in kept),
        numeric_names=table.numeric_names,
        categorical_names=tuple(table.categorical_names[j] for j in kept),
    )
