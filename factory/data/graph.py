"""An ONNX graph as it is drawn: operators and constants as plain values, so that whoever draws needs no ONNX.

A preparation and each model of a blend draw themselves
(``factory/data/drawing.py``, :meth:`factory.families.base.Model.draw`);
``factory/variants/onnx_file.py`` writes what they have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

FLOAT, INT64, STRING, DOUBLE = 1, 7, 8, 11
"""Element types, by ONNX's numbers."""
ML = "ai.onnx.ml"
"""Domain of the operators for trees and labels."""
COLUMNS = 1
"""Axis of the columns."""


class CannotDraw(Exception):
    """Says what cannot be drawn, as a part of a sentence: "the text column 'review'"."""


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        operator: Its name.
        inputs: Names of tensors.
        output: Name of the tensor that it makes.
        domain: Empty for ONNX's own.
        attributes: Numbers, texts, lists of them, and arrays for tensors.
    """

    operator: str
    inputs: tuple[str, ...]
    output: str
    domain: str
    attributes: Mapping[str, Any]
    ignored: int = 0
    """Outputs before it that nobody wants."""


@dataclass
class Graph:
    """What was drawn so far.

    Attributes:
        inputs: Element type of each input, (n_rows, 1), by name.
        nodes: Operators in the order in which they run.
        constants: Arrays, and texts as arrays of objects, by name.
    """

    inputs: dict[str, int] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, name: str, element: int) -> str:
        """Return an input of that name, one value a row: (n_rows, 1)."""
        self.inputs[name] = element
        return name

    def add(self, operator: str, *inputs: str | np.ndarray, domain: str = "", **attributes: Any) -> str:
        """Add an operator and return the name of its output; arrays among the inputs become constants."""
        names = tuple(each if isinstance(each, str) else self.constant(each) for each in inputs)
        # A colon keeps them apart from columns, which are inputs by their own names: "column:part" is no column.
        output = f":{len(self.nodes)}:{operator}"
        self.nodes.append(Node(operator, names, output, domain, attributes))
        return output

    def constant(self, values: np.ndarray) -> str:
        """Return the name of a constant."""
        name = f":constant:{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def cast(self, tensor: str, element: int) -> str:
        """Return a tensor with other elements."""
        return self.add("Cast", tensor, to=element)

    def columns(self, matrix: str, positions: Sequence[int] | np.ndarray) -> str:
        """Return some columns of a matrix, in the given order."""
        return self.add("Gather", matrix, np.asarray(positions, dtype=np.int64), axis=COLUMNS)

    def beside(self, parts: Sequence[str]) -> str:
        """Return matrices beside each other."""
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=COLUMNS)

    def flat(self, tensor: str) -> str:
        """Return (n_rows, a, b) as (n_rows, a * b)."""
        return self.add("Reshape", tensor, np.array([0, -1], dtype=np.int64))

    def total(self, tensor: str, *, axis: int = COLUMNS, keep: bool = True) -> str:
        """Return the sum over an axis."""
        return self.add("ReduceSum", tensor, np.array([axis], dtype=np.int64), keepdims=int(keep))

    def smallest(self, matrix: str, k: int) -> str:
        """Return the places of the k smallest values of each row, int64 (n_rows, k)."""
        output = f":{len(self.nodes)}:TopK"
        how_many = self.constant(np.array([k], dtype=np.int64))
        self.nodes.append(Node("TopK", (matrix, how_many), output, "", {"axis": COLUMNS, "largest": 0}, ignored=1))
        return output

    def unsqueeze(self, tensor: str, axis: int) -> str:
        """Return a tensor with one axis more, of length 1."""
        return self.add("Unsqueeze", tensor, np.array([axis], dtype=np.int64))

    def both(self, second: str) -> str:
        """Return the probabilities of two classes, (n_rows, 2), of the second one's, float64 (n_rows, 1)."""
        return self.beside([self.add("Sub", np.array(1.0), second), second])

    def sum_of(self, parts: Sequence[str]) -> str:
        """Return the sum of tensors of one shape."""
        total, *others = parts
        for other in others:
            total = self.add("Add", total, other)
        return total


@dataclass(frozen=True)
class DrawnTable:
    """A :class:`~factory.data.preparation.Table` in a graph: names of tensors where that has arrays.

    Attributes:
        graph: That they are of.
        numeric: float32 (n_rows, n_numeric); None where there is none.
        codes: int64 (n_rows, n_categorical); None where there is none.
        n_numeric: Numeric columns.
        levels: As the table's.
        n_crosses: As the table's.
    """

    graph: Graph
    numeric: str | None
    codes: str | None
    n_numeric: int
    levels: tuple[int, ...]
    n_crosses: int = 0

    @property
    def plain(self) -> DrawnTable:
        """The table without products and ratios."""
        n = self.n_numeric - self.n_crosses
        if not self.n_crosses or self.numeric is None:
            return self
        numeric = self.graph.columns(self.numeric, range(n)) if n else None
        return replace(self, numeric=numeric, n_numeric=n, n_crosses=0)

    @property
    def matrix(self) -> str:
        """Numeric columns, then codes, float64 (n_rows, n_columns): of float32 values, which trees compare exactly."""
        parts = [self.graph.cast(part, DOUBLE) for part in (self.numeric, self.codes) if part is not None]
        return self.graph.beside(parts)
