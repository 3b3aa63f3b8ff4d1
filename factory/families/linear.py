"""Linear models on a spline basis: logistic and ridge regression along a path of penalties.

Plain linear models lose against trees wherever an effect bends; with a spline for
each number they win on some tables (telco churn: AUC .852, above every tree).
The penalty is not searched but walked.  Only coefficients and knots are stored;
prediction is numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from factory.data.graph import DOUBLE, DrawnTable, Graph
from factory.data.preparation import Table
from factory.families._dense_inputs import DenseInputs
from factory.families._head import Head
from factory.families._penalty import Rows, draw_response, respond, walk
from factory.families._terms import ColumnTerms, Link
from factory.families.base import Bet, Family, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "linear.npz"
MOST_ONE_HOT = 1_500
"""One-hot columns at most; a column with more levels than fit becomes target means."""
MOST_CELLS = 15_000_000
"""Cells of the float64 design matrix (120 MB); of a larger table a random part of the rows is used."""


@dataclass(frozen=True)
class Splines:
    """B-spline basis of some columns.

    Attributes:
        columns: Positions of the expanded columns, (n_expanded,).
        knots: Non-decreasing knots with repeated ends, (n_expanded, n_knots + 2 * degree).
        degree: Polynomial degree of the pieces.
    """

    columns: np.ndarray
    knots: np.ndarray
    degree: int

    @classmethod
    def fit(cls, dense: np.ndarray, *, candidates: int, n_knots: int, degree: int) -> Splines:
        """Place knots at quantiles of those among the first ``candidates`` columns that take many values."""
        shares = np.linspace(0, 1, n_knots)
        inner = [np.quantile(dense[:, j], shares) for j in range(candidates)]
        columns = [j for j in range(candidates) if len(np.unique(inner[j])) > 3]
        knots = np.array([inner[j] for j in columns], dtype=np.float64).reshape(len(columns), n_knots)
        return cls(np.array(columns, dtype=np.int64), np.pad(knots, ((0, 0), (degree, degree)), mode="edge"), degree)

    def transform(self, dense: np.ndarray) -> np.ndarray:
        """Return float64 (n_rows, n_expanded * (n_knots + degree - 1)), constant beyond the outer knots."""
        t = self.knots
        x = np.clip(dense[:, self.columns].astype(np.float64), t[:, 0], t[:, -1])[:, :, np.newaxis]
        # The last piece that is not empty includes its right end, so that the largest value is inside.
        last = (t[:, :-1] < t[:, 1:]) & (t[:, 1:] == t[:, -1:])
        basis = ((t[:, :-1] <= x) & ((x < t[:, 1:]) | (last & (x == t[:, 1:])))).astype(np.float64)
        for k in range(1, self.degree + 1):  # Cox and de Boor 1972; 0/0 counts as 0
            left, right = t[:, k:-1] - t[:, : -k - 1], t[:, k + 1 :] - t[:, 1:-k]
            rising = np.divide(x - t[:, : -k - 1], left, out=np.zeros(basis[:, :, :-1].shape), where=left > 0)
            falling = np.divide(t[:, k + 1 :] - x, right, out=np.zeros(basis[:, :, :-1].shape), where=right > 0)
            basis = rising * basis[:, :, :-1] + falling * basis[:, :, 1:]
        flat: np.ndarray = basis.reshape(len(dense), -1)
        return flat

    def draw(self, graph: Graph, dense: str) -> str:
        """Draw :meth:`transform` of float64 (n_rows, n_columns)."""
        t = self.knots
        inside = graph.add("Min", graph.add("Max", graph.columns(dense, self.columns), t[:, 0]), t[:, -1])
        x = graph.unsqueeze(inside, 2)
        last = (t[:, :-1] < t[:, 1:]) & (t[:, 1:] == t[:, -1:])
        ends = graph.add("And", last, graph.add("Equal", x, t[:, 1:]))
        begun = graph.add("LessOrEqual", t[:, :-1], x)
        basis = graph.cast(graph.add("And", begun, graph.add("Or", graph.add("Less", x, t[:, 1:]), ends)), DOUBLE)
        for k in range(1, self.degree + 1):
            left, right = t[:, k:-1] - t[:, : -k - 1], t[:, k + 1 :] - t[:, 1:-k]
            slopes = [np.divide(1.0, gap, out=np.zeros(gap.shape), where=gap > 0) for gap in (left, right)]
            rising = graph.add("Mul", graph.add("Sub", x, t[:, : -k - 1]), slopes[0])
            falling = graph.add("Mul", graph.add("Sub", t[:, k + 1 :], x), slopes[1])
            n = t.shape[1] - 1 - k
            before, after = (
                graph.add("Gather", basis, np.arange(n, dtype=np.int64) + shift, axis=2) for shift in (0, 1)
            )
            basis = graph.add("Add", graph.add("Mul", rising, before), graph.add("Mul", falling, after))
        return graph.flat(basis)


class LinearModel(Model):
    """Coefficients over encoded columns and their splines."""

    def __init__(self, inputs: DenseInputs, splines: Splines | None, weights: np.ndarray, head: Head) -> None:
        self._inputs = inputs
        self._splines = splines
        self._weights = weights
        self._head = head
        self.rounds = head.rounds

    def predict(self, table: Table) -> np.ndarray:
        return self._head.decode(
            respond(_design(self._inputs.transform(table), self._splines), self._weights, self._head.task)
        )

    @property
    def link(self) -> Link:
        return self._head.link

    def terms(self) -> ColumnTerms:
        head, sources = self._head, self._inputs.sources
        if self._splines is not None:
            n_basis = self._splines.knots.shape[1] - 1 - self._splines.degree
            sources = np.concatenate([sources, np.repeat(sources[self._splines.columns], n_basis)])
        weights = self._weights.astype(np.float64)
        if head.task is Task.BINARY:  # the log-odds of the second class
            weights = weights[:, 1:] - weights[:, :1]

        def terms(table: Table, columns: Sequence[int]) -> np.ndarray:
            design = _design(self._inputs.transform(table), self._splines)[:, :-1]
            of = [np.flatnonzero(sources == column) for column in columns]
            found = [design[:, which] @ weights[:-1][which] for which in of]
            return head.scale * np.stack([np.zeros((len(table), weights.shape[1])), *found], axis=1)[:, 1:]

        return ColumnTerms(
            terms, self._inputs.n_inputs, head.scale * weights[-1] + head.shift, link=self.link, top=head.top
        )

    def draw(self, table: DrawnTable) -> str:
        graph = table.graph
        dense = graph.cast(self._inputs.draw(table), DOUBLE)
        design = dense
        if self._splines is not None and len(self._splines.columns):
            design = graph.beside([dense, self._splines.draw(graph, dense)])
        return self._head.draw(graph, draw_response(graph, design, self._weights, self._head.task))

    def save(self, folder: Path) -> None:
        arrays = self._inputs.arrays()
        if self._splines is not None:
            arrays["splines.columns"], arrays["splines.knots"] = self._splines.columns, self._splines.knots
            arrays["splines.degree"] = np.array(self._splines.degree)
        np.savez(folder / FILE, weights=self._weights, allow_pickle=False, **arrays)
        self._head.save(folder)


class Linear(Family):
    """Logistic regression for classes, ridge regression for numbers."""

    name: ClassVar[str] = "linear"
    framework: ClassVar[str] = "scikit-learn"
    quick: ClassVar[bool] = True
    modules: ClassVar[tuple[str, ...]] = ("sklearn.linear_model",)
    weighted: ClassVar[bool] = True
    iterative: ClassVar[bool] = True
    rounds_grow: ClassVar[bool] = False

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            "splines": ChoiceDimension(choices=(True, False)),
            "knots": IntDimension(low=4, high=12),
            "degree": IntDimension(low=1, high=3),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        bent: Parameters = {"splines": True, "knots": 6, "degree": 2}
        straight: Parameters = {**bent, "splines": False}
        if task is Task.MULTICLASS:
            # Splines cost degrees of freedom that many classes multiply.
            return [Bet(straight, 60), Bet(bent, 110)]
        if task is Task.BINARY:
            return [Bet(bent, 40), Bet(straight, 100 if shape.n_rows <= 20_000 else 120)]
        return [Bet(bent, 70 if shape.n_rows < 8_000 else 170), Bet(straight, 180)]

    def fit(self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext) -> Model:
        from threadpoolctl import threadpool_limits

        head = Head.of(train.y, context)
        inputs, table = DenseInputs.fit(
            replace(train, y=head.encode(train.y)),
            one_hot_max_levels=_one_hot_levels(train.table.levels),
            n_classes=context.n_classes,
            seed=context.seed,
        )
        dense = inputs.encoder.transform(table)
        splines = None
        if parameters["splines"]:
            n_knots, degree = int(parameters["knots"] or 6), int(parameters["degree"] or 2)
            candidates = len(table.numeric_names)
            splines = Splines.fit(dense, candidates=candidates, n_knots=n_knots, degree=degree)
        with threadpool_limits(limits=context.threads):
            rows = _sampled(train, dense, splines, head=head, seed=context.seed)
            held_out = None
            if validation is not None:
                held_out = _rows(validation, inputs.transform(validation.table), splines, head=head)
            weights, curve, rounds = walk(rows, held_out=held_out, task=head.task, context=context)
        model = LinearModel(inputs, splines, weights, replace(head, rounds=rounds))
        model.curve = curve
        return model

    def load(self, folder: Path) -> Model:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        splines = None
        if "splines.degree" in arrays:
            splines = Splines(arrays["splines.columns"], arrays["splines.knots"], int(arrays["splines.degree"]))
        return LinearModel(DenseInputs.from_arrays(arrays), splines, arrays["weights"], Head.load(folder))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        width = n_columns * (10 if parameters.get("splines") else 3)
        outputs = max(n_classes, 1)
        # The design and copies of it in the solver; logits and their gradients; the Hessian or Gram matrix.
        cells = min(n_rows * width, MOST_CELLS)
        return (n_rows * n_columns * 8 + cells * 28 + n_rows * outputs * 32 + (width * outputs) ** 2 * 16) / 1e6 + 60


def _one_hot_levels(levels: tuple[int, ...]) -> int:
    """Return the most levels a one-hot column may have so that all of them together stay below MOST_ONE_HOT."""
    return next((most for most in (64, 32, 16, 8, 4) if sum(n for n in levels if n <= most + 1) <= MOST_ONE_HOT), 2)


def _design(dense: np.ndarray, splines: Splines | None) -> np.ndarray:
    """Return float64 (n_rows, n_features + 1): encoded columns, splines, and ones for the intercept."""
    parts = [dense] if splines is None else [dense, splines.transform(dense)]
    return np.concatenate([*parts, np.ones((len(dense), 1))], axis=1, dtype=np.float64)


def _rows(sample: Sample, dense: np.ndarray, splines: Splines | None, *, head: Head) -> Rows:
    return Rows(_design(dense, splines), head.encode(sample.y), sample.weight)


def _sampled(train: Sample, dense: np.ndarray, splines: Splines | None, *, head: Head, seed: int) -> Rows:
    """Return the training rows, a random part of them where all would not fit."""
    width = _design(dense[:1], splines).shape[1]
    most = max(MOST_CELLS // width, 1_000)
    if len(train) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(train), most, replace=False))
        train, dense = train.rows(chosen), dense[chosen]
    return _rows(train, dense, splines, head=head)


PLUGIN = Linear()
