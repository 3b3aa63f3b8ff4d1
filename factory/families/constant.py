"""The constant: what a model has to beat before it is worth anything.

Class frequencies or the mean of the target, whatever the columns say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from factory.data.graph import DOUBLE, DrawnTable
from factory.data.preparation import Table
from factory.families._terms import Constant as ConstantTerms
from factory.families._terms import Link, Terms
from factory.families.base import Bet, Family, FitContext, Model, Sample, Shape
from factory.space import Parameters, Space
from factory.spec import Task

FILE = "constant.json"


class ConstantModel(Model):
    """The same prediction for every row.

    Args:
        value: Probabilities (n_classes,) or one number ().
    """

    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def predict(self, table: Table) -> np.ndarray:
        return np.repeat(self._value[np.newaxis], len(table), axis=0)

    @property
    def link(self) -> Link:
        return "identity"

    def terms(self) -> Terms:
        return ConstantTerms(np.atleast_1d(self._value))

    def draw(self, table: DrawnTable) -> str:
        graph = table.graph
        unknown = graph.cast(graph.add("IsNaN", graph.columns(table.matrix, [0])), DOUBLE)
        # A zero for each row, so that the value is said as often.
        return graph.add("Add", graph.add("Mul", unknown, np.array(0.0)), self._value.astype(np.float64))

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self._value.tolist()))


class Constant(Family):
    """Class frequencies, smoothed by one row so that no class is impossible (Laplace 1814), or the mean target."""

    rowwise: ClassVar[bool] = True
    name: ClassVar[str] = "constant"
    framework: ClassVar[str] = "numpy"
    quick: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    def space(self, task: Task) -> Space:  # noqa: ARG002 - nothing to choose for any task
        return {}

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:  # noqa: ARG002
        return [Bet({}, 0)]

    def fit(
        self,
        train: Sample,
        *,
        validation: Sample | None,  # noqa: ARG002 - learns from the training rows alone
        parameters: Parameters,  # noqa: ARG002
        context: FitContext,
    ) -> Model:
        if context.task is Task.REGRESSION:
            return ConstantModel(np.asarray(np.average(train.y, weights=train.weight), dtype=np.float64))
        counts = np.bincount(train.y, weights=train.weight, minlength=context.n_classes) + 1 / context.n_classes
        return ConstantModel(counts / counts.sum())

    def load(self, folder: Path) -> Model:
        return ConstantModel(np.asarray(json.loads((folder / FILE).read_text()), dtype=np.float64))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:  # noqa: ARG002
        return 1.0


PLUGIN = Constant()
