"""Kernel machines: ridge and logistic regression on Gaussian similarities to some training rows.

The Nyström method (Williams and Seeger 2001) keeps a random part of the rows as
landmarks; in its features a linear model is the kernel machine on all rows.
On small tables of numbers it answers smoothly where trees answer in steps
(digits: log-loss .046 against .057 of LightGBM, in a second), so that a blend
gains from it.  What is stored are the landmarks and one coefficient of each;
prediction is numpy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from factory.data.graph import DOUBLE, DrawnTable
from factory.data.preparation import Table
from factory.families._dense_inputs import DenseInputs
from factory.families._head import Head
from factory.families._penalty import Rows, draw_response, respond, walk
from factory.families.base import Bet, Family, FitContext, Model, Sample, Shape
from factory.space import FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "kernel.npz"
MOST_ONE_HOT = 32
"""Levels of a one-hot column at most."""
MOST_CELLS = 15_000_000
"""Cells of the float64 features (120 MB); of a larger table a random part of the rows is used, and of the rows to stop
by a quarter as many."""
BATCH_CELLS = 2_000_000
"""Similarities that are looked at together when predicting: 16 MB of float64, and a few copies."""
FEW_ROWS = 10_000
"""Training rows up to which it is bet on early: with more, trees leave it behind (own measurement on five tables)."""
STRETCH = 16.0
"""Factor on the features, whose rows have length 1 otherwise: the path of penalties then reaches weak enough ones."""
ALIKE = 1e-4
"""Squared distance, in standard deviations, of rows that are taken for equal."""
SMALLEST = 1e-9
"""Eigenvalues of the landmarks' similarities, relative to the largest, below which a direction is left out."""


class KernelModel(Model):
    """Landmarks and their coefficients.

    Args:
        inputs: What is seen of a row.
        landmarks: Encoded rows, float32 (n_landmarks, n_columns).
        gamma: Of the similarity exp(-gamma * squared distance).
        weights: float64 (n_landmarks + 1, n_outputs), the last row the intercept.
        head: The end of the model.
    """

    def __init__(
        self, inputs: DenseInputs, landmarks: np.ndarray, gamma: float, weights: np.ndarray, *, head: Head
    ) -> None:
        self._inputs, self._landmarks, self._gamma, self._weights = inputs, landmarks, gamma, weights
        self._head = head
        self.rounds = head.rounds

    def predict(self, table: Table) -> np.ndarray:
        """Return probabilities or predictions; see :class:`~factory.families.base.Model`."""
        sought = self._inputs.transform(table.plain)
        batch = max(1, BATCH_CELLS // len(self._landmarks))
        starts = range(0, max(len(sought), 1), batch)
        return self._head.decode(np.concatenate([self._answer(sought[i : i + batch]) for i in starts]))

    def _answer(self, sought: np.ndarray) -> np.ndarray:
        near = similarities(sought, self._landmarks, gamma=self._gamma)
        return respond(_with_ones(near), self._weights, self._head.task)

    def draw(self, table: DrawnTable) -> str:
        """Draw :meth:`predict`; see :class:`~factory.families.base.Model`."""
        graph, marks = table.graph, self._landmarks.astype(np.float64)
        sought = graph.cast(self._inputs.draw(table.plain), DOUBLE)
        squares = graph.add("Add", graph.total(graph.add("Mul", sought, sought)), np.square(marks).sum(axis=1))
        products = graph.add("MatMul", sought, np.ascontiguousarray(2 * marks.T))
        apart = graph.add("Max", graph.add("Sub", squares, products), np.array(0.0))
        near = graph.add("Exp", graph.add("Mul", apart, np.array(-float(self._gamma))))
        return self._head.draw(graph, draw_response(graph, near, self._weights, self._head.task))

    def save(self, folder: Path) -> None:
        """Write arrays as npz and the head as JSON."""
        arrays = self._inputs.arrays()
        arrays |= {"landmarks": self._landmarks, "gamma": np.array(self._gamma), "weights": self._weights}
        np.savez(folder / FILE, allow_pickle=False, **arrays)
        self._head.save(folder)


class Kernel(Family):
    """Logistic regression for classes, ridge regression for numbers, on similarities."""

    name: ClassVar[str] = "kernel"
    framework: ClassVar[str] = "scikit-learn"
    quick: ClassVar[bool] = True
    modules: ClassVar[tuple[str, ...]] = ("sklearn.linear_model",)
    weighted: ClassVar[bool] = True
    iterative: ClassVar[bool] = True
    rounds_grow: ClassVar[bool] = False

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        """Return the full search space."""
        return {
            "landmarks": IntDimension(low=100, high=1500, log=True),
            "width": FloatDimension(low=0.1, high=10.0, log=True),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        """Return configurations to try first, early on small tables."""
        early = {Task.BINARY: 35, Task.MULTICLASS: 55, Task.REGRESSION: 75}[task]
        first = early if shape.n_rows <= FEW_ROWS else early + 120
        return [Bet({"landmarks": 600, "width": 1.0}, first), Bet({"landmarks": 600, "width": 3.0}, first + 50)]

    def fit(self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext) -> Model:
        """Fit on features of the Nyström method; see :meth:`Family.fit`."""
        from threadpoolctl import threadpool_limits

        random = np.random.default_rng(context.seed)
        head = Head.of(train.y, context)
        inputs, table = DenseInputs.fit(
            replace(train, table=train.table.plain, y=head.encode(train.y)),
            one_hot_max_levels=MOST_ONE_HOT,
            n_classes=context.n_classes,
            seed=context.seed,
        )
        n_landmarks = min(int(parameters["landmarks"] or 600), len(train))
        chosen = np.sort(random.choice(len(train), n_landmarks, replace=False))
        landmarks = inputs.encoder.transform(table.rows(chosen))
        with threadpool_limits(limits=context.threads):
            gamma = float(parameters["width"] or 1.0) / _usual_square(landmarks)
            basis = _basis(similarities(landmarks, landmarks, gamma=gamma))

            def rows(sample: Sample, dense: np.ndarray) -> Rows:
                near = similarities(dense, landmarks, gamma=gamma)
                return Rows(_with_ones(near @ basis), head.encode(sample.y), sample.weight)

            most = max(MOST_CELLS // n_landmarks, 1_000)
            seen = _sampled(replace(train, table=table), most, random)
            learned, held_out = rows(seen, inputs.encoder.transform(seen.table)), None
            if validation is not None:
                seen = _sampled(validation, most // 4, random)
                held_out = rows(seen, inputs.transform(seen.table.plain))
            weights, curve, rounds = walk(learned, held_out=held_out, task=head.task, context=context)
        answers = np.concatenate([basis @ weights[:-1], weights[-1:]])
        model = KernelModel(inputs, landmarks, gamma, answers, head=replace(head, rounds=rounds))
        model.curve = curve
        return model

    def load(self, folder: Path) -> Model:
        """Read what the model's ``save`` wrote."""
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        inputs, head = DenseInputs.from_arrays(arrays), Head.load(folder)
        return KernelModel(inputs, arrays["landmarks"], float(arrays["gamma"]), arrays["weights"], head=head)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        """Return what a fit takes: features and copies of them in the solver, and its matrix of second derivatives."""
        width, outputs = int(parameters.get("landmarks") or 600), max(n_classes, 1)
        cells = min(n_rows * width, MOST_CELLS)
        return (n_rows * n_columns * 8 + cells * 28 + n_rows * outputs * 32 + width**2 * 32) / 1e6 + 60


def _sampled(rows: Sample, most: int, random: np.random.Generator) -> Sample:
    return rows if len(rows) <= most else rows.rows(np.sort(random.choice(len(rows), most, replace=False)))


def similarities(X: np.ndarray, landmarks: np.ndarray, *, gamma: float) -> np.ndarray:
    """Return exp(-gamma * squared distance), float64 (n_rows, n_landmarks), of float32 rows (n_rows, n_columns)."""
    near: np.ndarray = np.exp(-gamma * _squared_distances(X, landmarks))
    return near


def _squared_distances(X: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    squares = np.einsum("ij,ij->i", X, X)[:, np.newaxis] + np.einsum("ij,ij->i", landmarks, landmarks)
    apart: np.ndarray = np.maximum(squares - 2 * (X @ landmarks.T), 0).astype(np.float64)
    return apart


def _usual_square(landmarks: np.ndarray) -> float:
    """Return the median squared distance between landmarks that differ, 1 where all are alike (Garreau et al. 2017)."""
    apart = _squared_distances(landmarks[:300], landmarks[:300])
    return float(np.median(apart[apart > ALIKE])) if (apart > ALIKE).any() else 1.0


def _basis(near: np.ndarray) -> np.ndarray:
    """Return the matrix (n_landmarks, n_features) that makes features of similarities: its square is their inverse."""
    values, vectors = np.linalg.eigh(near)
    kept = values > SMALLEST * values[-1]
    basis: np.ndarray = STRETCH * vectors[:, kept] / np.sqrt(values[kept])
    return basis


def _with_ones(X: np.ndarray) -> np.ndarray:
    return np.concatenate([X, np.ones((len(X), 1))], axis=1)


PLUGIN = Kernel()
