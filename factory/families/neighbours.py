"""k nearest neighbours, weighted by distance (Cover and Hart 1967, Dudani 1976), kept as arrays.

Nothing is trained: the encoded rows are the model, so their number is bounded.
The search is one matrix product over all of them, which for a single row takes
a third of a millisecond at the bound; trees of cells are no faster from some ten
columns on, and are stored as pickles.  scikit-learn's estimator would spend more
on checking the row than on answering it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from factory.data.graph import DOUBLE, DrawnTable
from factory.data.preparation import Table
from factory.families._dense_inputs import DenseInputs
from factory.families._head import Head
from factory.families.base import Bet, Family, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "neighbours.npz"
MOST_ROWS = 20_000
"""Rows kept, a random part of more; one row among so many of 20 columns takes .5 ms."""
MOST_CELLS = 2_000_000
"""Cells kept (8 MB); wide tables keep fewer rows."""
BATCH_CELLS = 4_000_000
"""Distances computed at once: 16 MB."""
MOST_ONE_HOT = 10
"""Levels of a one-hot column at most, in which two levels are as far apart as 1.4 standard deviations; of a column with
more, levels of like targets are near each other."""
PRIOR_VOTES = 1.0
"""Votes that the classes' shares in training have beside the k neighbours, so that no probability is 0."""
CLOSEST = 1e-6
"""Distances below count as this one: an equal row takes nearly all of the vote."""


@dataclass(frozen=True)
class Votes:
    """How neighbours are asked.

    Attributes:
        k: Number of neighbours.
        by_distance: Whether a neighbour's vote is one over its distance; all are equal otherwise.
    """

    k: int
    by_distance: bool


class NeighboursModel(Model):
    """Encoded training rows and what they say.

    Args:
        inputs: What is seen of a row.
        X: Encoded rows, float32 (n_rows, n_columns).
        y: What each row says, float32 (n_rows, n_outputs): a standardised target, or 1 for its class.
        weight: Weight of each row, float32 (n_rows,).
        votes: How neighbours are asked.
        head: The end of the model.
    """

    def __init__(
        self, inputs: DenseInputs, X: np.ndarray, y: np.ndarray, weight: np.ndarray, *, votes: Votes, head: Head
    ) -> None:
        self._inputs, self._X, self._y, self._weight, self._votes = inputs, X, y, weight, votes
        self._head = head
        self._squares = np.einsum("ij,ij->i", X, X)
        self._prior = np.average(y, axis=0, weights=weight).astype(np.float64)

    def predict(self, table: Table) -> np.ndarray:
        """Return probabilities or predictions; see :class:`~factory.families.base.Model`."""
        sought = self._inputs.transform(table.plain)
        batch = max(1, BATCH_CELLS // len(self._X))
        parts = [self._answer(sought[i : i + batch]) for i in range(0, len(sought), batch)]
        answer = np.concatenate([np.zeros((0, self._y.shape[1])), *parts])
        return self._head.decode(answer[:, 0] if self._head.task is Task.REGRESSION else answer)

    def _answer(self, sought: np.ndarray) -> np.ndarray:
        """Return the neighbours' mean, float64 (n_sought, n_outputs), of rows float32 (n_sought, n_columns)."""
        k = min(self._votes.k, len(self._X))
        # Up to the sought row's own square, which does not change the order.
        apart = self._squares - 2 * (sought @ self._X.T)
        nearest = np.argpartition(apart, k - 1, axis=1)[:, :k]
        # Again for the k found, without the cancellation of the product: equal rows are at distance 0.
        steps = self._X[nearest] - sought[:, np.newaxis]
        distance = np.sqrt(np.einsum("ijk,ijk->ij", steps, steps, dtype=np.float64))
        vote = self._weight[nearest].astype(np.float64)
        if self._votes.by_distance:
            vote /= np.maximum(distance, CLOSEST)
        vote /= vote.sum(axis=1, keepdims=True)
        said: np.ndarray = np.einsum("ij,ijk->ik", vote, self._y[nearest])
        if self._head.task is Task.REGRESSION:
            return said
        return (k * said + PRIOR_VOTES * self._prior) / (k + PRIOR_VOTES)

    def draw(self, table: DrawnTable) -> str:
        graph, k = table.graph, min(self._votes.k, len(self._X))
        rows = self._X.astype(np.float64)
        sought = graph.cast(self._inputs.draw(table.plain), DOUBLE)
        products = graph.add("MatMul", sought, np.ascontiguousarray(2 * rows.T))
        apart = graph.add("Sub", np.square(rows).sum(axis=1), products)
        nearest = graph.smallest(apart, k)
        steps = graph.add("Sub", graph.add("Gather", rows, nearest, axis=0), graph.unsqueeze(sought, 1))
        vote: str = graph.add("Gather", self._weight.astype(np.float64), nearest, axis=0)
        if self._votes.by_distance:
            distance = graph.add("Sqrt", graph.total(graph.add("Mul", steps, steps), axis=2, keep=False))
            vote = graph.add("Div", vote, graph.add("Max", distance, np.array(float(CLOSEST))))
        vote = graph.unsqueeze(graph.add("Div", vote, graph.total(vote)), 1)
        said = graph.add("MatMul", vote, graph.add("Gather", self._y.astype(np.float64), nearest, axis=0))
        said = graph.flat(said)
        if self._head.task is not Task.REGRESSION:
            total = graph.add("Add", graph.add("Mul", said, np.array(float(k))), PRIOR_VOTES * self._prior)
            said = graph.add("Div", total, np.array(float(k + PRIOR_VOTES)))
        return self._head.draw(graph, said)

    def save(self, folder: Path) -> None:
        """Write arrays as npz and the head as JSON."""
        arrays = self._inputs.arrays()
        arrays |= {"X": self._X, "y": self._y, "weight": self._weight}
        arrays |= {"k": np.array(self._votes.k), "by_distance": np.array(self._votes.by_distance)}
        np.savez(folder / FILE, allow_pickle=False, **arrays)
        self._head.save(folder)


class Neighbours(Family):
    """k nearest neighbours."""

    name: ClassVar[str] = "neighbours"
    framework: ClassVar[str] = "numpy"
    quick: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            "k": IntDimension(low=1, high=100, log=True),
            "votes": ChoiceDimension(choices=("distance", "equal")),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:  # noqa: ARG002 - of any size
        # Matters where classes are many and fuzzy (wine), seldom elsewhere (own measurement on twelve tables).
        rank = {Task.MULTICLASS: 50, Task.BINARY: 140}.get(task, 190)
        return [Bet({"k": 15, "votes": "distance"}, rank)]

    def fit(
        self,
        train: Sample,
        *,
        validation: Sample | None,  # noqa: ARG002 - nothing is trained that could stop early
        parameters: Parameters,
        context: FitContext,
    ) -> Model:
        """Encode the rows and keep them, or a random part where they are too many."""
        head = Head.of(train.y, context)
        inputs, table = DenseInputs.fit(
            replace(train, table=train.table.plain, y=head.encode(train.y)),
            one_hot_max_levels=MOST_ONE_HOT,
            n_classes=context.n_classes,
            seed=context.seed,
        )
        most = min(MOST_ROWS, max(MOST_CELLS // max(inputs.encoder.n_columns, 1), 1_000))
        kept = np.arange(len(train))
        if len(train) > most:
            kept = np.sort(np.random.default_rng(context.seed).choice(len(train), most, replace=False))
        y = head.encode(train.y)[kept]
        said = y[:, np.newaxis] if context.task is Task.REGRESSION else np.eye(context.n_classes)[y]
        weight = np.ones(len(kept)) if train.weight is None else np.maximum(train.weight[kept], 1e-9)
        return NeighboursModel(
            inputs,
            inputs.encoder.transform(table.rows(kept)),
            said.astype(np.float32),
            weight.astype(np.float32),
            votes=Votes(int(parameters["k"] or 1), parameters["votes"] == "distance"),
            head=head,
        )

    def load(self, folder: Path) -> Model:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        inputs, votes = DenseInputs.from_arrays(arrays), Votes(int(arrays["k"]), bool(arrays["by_distance"]))
        return NeighboursModel(inputs, arrays["X"], arrays["y"], arrays["weight"], votes=votes, head=Head.load(folder))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:  # noqa: ARG002
        # The encoded rows of the table and of those kept; a batch of distances and their order.
        kept = min(n_rows, MOST_ROWS)
        return float((n_rows * n_columns * 12 + kept * max(n_classes, 1) * 12 + BATCH_CELLS * 16) / 1e6 + 40)


PLUGIN = Neighbours()
