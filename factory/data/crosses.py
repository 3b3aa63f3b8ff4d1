"""Products and ratios of numeric columns: what trees can only approach by many splits.

Which ones help is a property of the data, so a search probes it once
(:mod:`factory.search.probe`) and hands the chosen ones to
:meth:`~factory.data.preparation.Preparation.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

LARGEST = 1e30
"""A larger magnitude counts as missing, as infinity does: squares of it must stay finite in float64 sums."""


class Cross(BaseModel):
    """One product or ratio of two prepared numeric columns, named by the columns' names.

    >>> Cross(kind="ratio", left="rooms", right="population").name
    'rooms/population'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["product", "ratio"]
    left: str
    right: str

    @property
    def name(self) -> str:
        """Name of the column that it makes."""
        return f"{self.left}{'*' if self.kind == 'product' else '/'}{self.right}"


class CrossedColumns:
    """Crosses over the columns of one preparation, ready to evaluate.

    Attributes:
        crosses: Those of the given crosses whose columns exist and whose names are free, in the given order.
        names: Their names, (n_crosses,).
    """

    def __init__(self, crosses: Sequence[Cross], numeric_names: Sequence[str]) -> None:
        position = {name: i for i, name in enumerate(numeric_names)}
        unique = {c.name: c for c in crosses if c.left in position and c.right in position and c.name not in position}
        self.crosses = tuple(unique.values())
        self.names = tuple(unique)
        self._left = np.array([position[c.left] for c in self.crosses], dtype=np.intp)
        self._right = np.array([position[c.right] for c in self.crosses], dtype=np.intp)
        ratio = np.array([c.kind == "ratio" for c in self.crosses], dtype=bool)
        self._products, self._ratios = np.flatnonzero(~ratio), np.flatnonzero(ratio)

    def __len__(self) -> int:
        return len(self.crosses)

    def evaluate(self, numeric: np.ndarray) -> np.ndarray:
        """Return float32 (n_rows, n_crosses) of numeric columns float32 (n_rows, n_numeric).

        NaN where an operand is missing, where the denominator is zero, and beyond 1e30.
        """
        out = np.empty((len(numeric), len(self)), dtype=np.float32)
        p, r = self._products, self._ratios
        with np.errstate(all="ignore"):
            out[:, p] = numeric[:, self._left[p]] * numeric[:, self._right[p]]
            out[:, r] = numeric[:, self._left[r]] / numeric[:, self._right[r]]
        out[~(np.abs(out) <= LARGEST)] = np.nan
        return out
