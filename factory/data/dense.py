"""From a :class:`~factory.data.preparation.Table` to one float32 matrix without NaN.

For models that need plain numbers: linear models, networks, and forests that
cannot take missing values.  It is part of a family's model, so it is fitted on
the same rows and saved beside it, as arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from factory.data.graph import FLOAT, DrawnTable, Graph
from factory.data.preparation import Table

_CLIP = 8.0
"""Standard deviations beyond which a value is cut: keeps one wild value from steering a linear model or a network."""
_HEAVY_TAILED = 20.0
"""Kurtosis above which a column is bent before it is standardized; a normal distribution has 3, an exponential 9."""

_STRAIGHT = 3.0
"""Interquartile ranges around the median within which a bent column stays nearly straight; half of one bends the bulk
and costs splines 2 % where a few wild values make the tail (diamonds)."""


class DenseEncoder:
    """Imputes, scales and encodes; fitted on training rows.

    Numeric columns: median imputation, an inverse hyperbolic sine around the median where the tails are heavy
    (Burbidge, Magee and Robb 1988), standardization, clipping at 8 standard deviations, and a column that says
    "was missing" for each that had missing values in training. Categorical columns: one-hot (an unseen level is all
    zeros); columns of many levels are made numbers before, or embedded.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)
        self._median = arrays["median"]
        self._mean, self._scale, self._clip = arrays["mean"], arrays["scale"], float(arrays["clip"])
        # Encoders stored before heavy tails were bent have neither array.
        self._bent = arrays.get("bent", np.zeros(0, dtype=np.int64))
        self._width = arrays.get("width", np.zeros(0, dtype=np.float32))
        self._indicated = arrays["indicated"]
        self._one_hot, self._offsets, self._first = arrays["one_hot"], arrays["offsets"], arrays["first"]
        # Encoders stored before target means encode columns of many levels by log frequency and rank; others have none.
        self._many = arrays.get("many", np.zeros(0, dtype=np.int64))
        self._starts = arrays.get("starts", np.zeros(0, dtype=np.int64))
        self._values = arrays.get("values", np.zeros((0, 2), dtype=np.float32))
        self._n_one_hot = int(arrays["n_one_hot"])
        self._n_numeric = len(self._median) + len(self._indicated)

    @property
    def n_columns(self) -> int:
        """Number of columns that :meth:`transform` returns."""
        return self._n_numeric + self._n_one_hot + 2 * len(self._many)

    @property
    def n_numbers(self) -> int:
        """Number of numeric columns that :meth:`transform` takes."""
        return len(self._median)

    @property
    def n_inputs(self) -> int:
        """Number of columns that :meth:`transform` takes, of both kinds."""
        return len(self._median) + len(self._one_hot) + len(self._many)

    @property
    def sources(self) -> np.ndarray:
        """Column of :attr:`Table.matrix` that each column of :meth:`transform` comes from, int64 (n_columns,)."""
        n_numeric = len(self._median)
        begins = self._offsets + self._first
        widths = np.diff(np.append(begins, self._n_one_hot))
        parts = (
            np.arange(n_numeric),
            self._indicated,
            n_numeric + np.repeat(self._one_hot, widths),
            n_numeric + np.repeat(self._many, 2),
        )
        return np.concatenate(parts).astype(np.int64)

    @classmethod
    def fit(cls, table: Table) -> DenseEncoder:
        """Learn medians, scales and which levels there are, of training rows."""
        missing = np.isnan(table.numeric)
        median = _median(table.numeric, missing)
        filled = np.where(missing, median, table.numeric).astype(np.float64)
        n_numeric = filled.shape[1]
        bent = _heavy_tailed(filled) if len(filled) else np.zeros(0, dtype=np.int64)
        width = _widths(filled[:, bent], median[bent])
        filled[:, bent] = np.arcsinh((filled[:, bent] - median[bent]) / width)
        mean = filled.mean(axis=0) if len(filled) else np.zeros(n_numeric)
        spread = filled.std(axis=0) if len(filled) else np.ones(n_numeric)
        spread[spread <= 1e-9 * np.maximum(1.0, np.abs(mean))] = 1.0
        levels = np.array(table.levels, dtype=np.int64)
        first = np.where((table.codes == 0).any(axis=0), 0, 1) if len(table) else np.ones(len(levels))
        first = first.astype(np.int64)
        widths = levels - first
        return cls(
            {
                "median": median,
                "bent": bent,
                "width": width,
                "mean": mean.astype(np.float32),
                "scale": spread.astype(np.float32),
                "clip": np.array(_CLIP, dtype=np.float32),
                "indicated": np.flatnonzero(missing.any(axis=0)),
                "one_hot": np.arange(len(levels)),
                "offsets": np.cumsum(widths) - widths - first,
                "first": first,
                "n_one_hot": np.array(widths.sum(), dtype=np.int64),
            }
        )

    def transform(self, table: Table) -> np.ndarray:
        """Return float32 (n_rows, n_columns) without NaN."""
        n_rows, n_numeric = table.numeric.shape
        out = np.zeros((n_rows, self.n_columns), dtype=np.float32)
        missing = np.isnan(table.numeric)
        block = np.where(missing, self._median, table.numeric)
        if len(self._bent):
            block[:, self._bent] = np.arcsinh((block[:, self._bent] - self._median[self._bent]) / self._width)
        block -= self._mean
        block /= self._scale
        if np.isfinite(self._clip):  # not so of encoders stored when forests had them
            np.clip(block, -self._clip, self._clip, out=block)
        out[:, :n_numeric] = block
        out[:, n_numeric : self._n_numeric] = missing[:, self._indicated]
        if len(self._one_hot):
            codes = table.codes[:, self._one_hot]
            rows, columns = np.nonzero(codes >= self._first)
            out[rows, self._n_numeric + self._offsets[columns] + codes[rows, columns]] = 1.0
        if len(self._many):
            encoded = self._values[self._starts + table.codes[:, self._many]]
            out[:, self._n_numeric + self._n_one_hot :] = encoded.reshape(n_rows, 2 * len(self._many))
        return out

    def draw(self, table: DrawnTable) -> str:
        """Draw :meth:`transform`: float32 (n_rows, n_columns)."""
        graph, parts = table.graph, []
        if table.numeric is not None:
            parts += self._draw_numbers(graph, table.numeric)
        if table.codes is not None:
            for at, first in zip(self._one_hot.tolist(), self._first.tolist(), strict=True):
                codes = np.arange(first, table.levels[at], dtype=np.int64)
                if len(codes):
                    parts.append(graph.cast(graph.add("Equal", graph.columns(table.codes, [at]), codes), FLOAT))
            if len(self._many):
                rows = graph.add("Add", graph.columns(table.codes, self._many), self._starts.astype(np.int64))
                parts.append(graph.flat(graph.add("Gather", self._values.astype(np.float32), rows, axis=0)))
        return graph.beside(parts)

    def _draw_numbers(self, graph: Graph, numeric: str) -> list[str]:
        missing = graph.add("IsNaN", numeric)
        block = graph.add("Where", missing, self._median.astype(np.float32), numeric)
        if len(self._bent):
            bent, width = np.zeros(len(self._median), dtype=bool), np.ones(len(self._median), dtype=np.float32)
            bent[self._bent], width[self._bent] = True, self._width
            far = graph.add("Div", graph.add("Sub", block, self._median.astype(np.float32)), width)
            block = graph.add("Where", bent, graph.add("Asinh", far), block)
        block = graph.add("Div", graph.add("Sub", block, self._mean), self._scale)
        if np.isfinite(self._clip):
            block = graph.add("Clip", block, np.array(-self._clip, np.float32), np.array(self._clip, np.float32))
        if not len(self._indicated):
            return [block]
        return [block, graph.cast(graph.columns(missing, self._indicated), FLOAT)]

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return everything it learned, as arrays for npz or safetensors; their names begin with ``prefix``."""
        return {prefix + name: values for name, values in self._arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "") -> DenseEncoder:
        """Rebuild from what :meth:`arrays` returned, which may stand among others."""
        own = {name: a for name, a in arrays.items() if name.startswith(prefix)}
        return cls({name.removeprefix(prefix): np.asarray(a) for name, a in own.items()})


def _median(numeric: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Median of the known values of each column, 0 where none is known, float32 (n_numeric,)."""
    known = [numeric[~missing[:, j], j] for j in range(numeric.shape[1])]
    return np.array([np.median(values) if len(values) else 0.0 for values in known], dtype=np.float32)


def _heavy_tailed(filled: np.ndarray) -> np.ndarray:
    """Return the positions of columns of large kurtosis, int64 (n_bent,), of float64 (n_rows, n_numeric)."""
    centred = filled - filled.mean(axis=0)
    variance = np.square(centred).mean(axis=0)
    fourth = np.square(np.square(centred)).mean(axis=0)
    return np.flatnonzero(fourth > _HEAVY_TAILED * np.maximum(np.square(variance), 1e-300))


def _widths(heavy: np.ndarray, median: np.ndarray) -> np.ndarray:
    """Return the distance from the median, float32 (n_bent,), up to which each column stays nearly straight."""
    widths = []
    for values, centre in zip(heavy.T, median, strict=True):
        low, high = np.quantile(values, [0.25, 0.75])
        # Where most values are equal, those that differ say what is far.
        widths.append(_STRAIGHT * float(high - low) or float(np.median(np.abs(values[values != centre] - centre))))
    return np.array(widths, dtype=np.float32)
