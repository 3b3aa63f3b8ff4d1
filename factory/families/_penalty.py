"""Ridge and logistic regression along a path of penalties, for whatever columns a family makes.

The penalty is not searched but walked: each round relaxes it by half a decade,
starting from the last round's coefficients (Friedman, Hastie and Tibshirani
2010), so that validation, early stopping and ``rounds`` mean what they mean for
a booster.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from factory.data.graph import COLUMNS, Graph
from factory.families.base import FitContext
from factory.spec import CurvePoint, Task

PATH = tuple(10 ** (-3 + step / 2) for step in range(11))
"""Inverse penalties C, .001 to 100, from strong to weak."""
WITHOUT_VALIDATION = 6
"""Rounds where neither validation rows nor a number of rounds are given: C = .3."""
PATIENCE = 2
"""Rounds without gain; validation loss along the path has one valley."""
BLOCK = 25
"""Iterations of the solver between two looks at the deadline."""
MOST_BLOCKS = 12
"""Blocks for one penalty; what has not converged then goes on with the next."""
CERTAIN = 20.0
"""Logit of the only class seen in training."""


@dataclass(frozen=True)
class Rows:
    """Design float64 (n_rows, n_features + 1), the last column ones; encoded targets; weights with mean 1 or None."""

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None


def respond(X: np.ndarray, weights: np.ndarray, task: Task) -> np.ndarray:
    """Return predictions (n_rows,) or probabilities (n_rows, n_classes) of weights (n_features + 1, n_outputs)."""
    raw: np.ndarray = X @ weights
    if task is Task.REGRESSION:
        return raw[:, 0]
    raw -= raw.max(axis=1, keepdims=True)
    np.exp(raw, out=raw)
    raw /= raw.sum(axis=1, keepdims=True)
    return raw


def draw_response(graph: Graph, X: str, weights: np.ndarray, task: Task) -> str:
    """Draw :func:`respond` for rows float64 (n_rows, n_features) without the ones of the intercept."""
    exact = weights.astype(np.float64)
    raw = graph.add("Add", graph.add("MatMul", X, exact[:-1]), exact[-1])
    return raw if task is Task.REGRESSION else graph.add("Softmax", raw, axis=COLUMNS)


def _loss(rows: Rows, weights: np.ndarray, task: Task) -> float:
    """Return the mean log-loss, or the root mean squared error of standardised targets."""
    response = respond(rows.X, weights, task)
    if task is Task.REGRESSION:
        return float(np.sqrt(np.average((response - rows.y) ** 2, weights=rows.weight)))
    of_class = np.maximum(response[np.arange(len(rows.y)), rows.y], 1e-15)
    return float(-np.average(np.log(of_class), weights=rows.weight))


class _Ridge:
    """Ridge regression; one eigendecomposition answers every penalty (Hoerl and Kennard 1970)."""

    def __init__(self, rows: Rows) -> None:
        X, y = rows.X[:, :-1], rows.y
        self._mean = np.average(X, axis=0, weights=rows.weight)
        self._shift = float(np.average(y, weights=rows.weight))
        centred, deviation = X - self._mean, y - self._shift
        if rows.weight is not None:
            root = np.sqrt(rows.weight)
            centred, deviation = centred * root[:, np.newaxis], deviation * root
        values, self._vectors = np.linalg.eigh(centred.T @ centred)
        self._values = np.maximum(values, 0)
        self._moments = self._vectors.T @ (centred.T @ deviation)

    def solve(self, C: float) -> np.ndarray:
        """Return weights (n_features + 1, 1)."""
        slopes = self._vectors @ (self._moments / (self._values + 1 / C))
        return np.append(slopes, self._shift - self._mean @ slopes)[:, np.newaxis]


class _Logistic:
    """Logistic regression of scikit-learn in interruptible blocks, each starting where the last one ended."""

    def __init__(self, rows: Rows, context: FitContext) -> None:
        from sklearn.linear_model import LogisticRegression

        X, self._rows, self._context = rows.X, rows, context
        self._seen = np.unique(rows.y)
        outputs = len(self._seen) if len(self._seen) > 2 else 1
        # Newton's steps are few, but each solves a system of all weights at once.
        solver = "newton-cholesky" if X.shape[1] * outputs <= 400 else "lbfgs"
        self._model = LogisticRegression(solver=solver, max_iter=BLOCK, warm_start=True, tol=1e-4)

    def solve(self, C: float) -> np.ndarray:
        """Return weights (n_features + 1, n_classes); a class that training lacks gets next to no probability."""
        weights = np.zeros((self._rows.X.shape[1], self._context.n_classes))
        weights[-1, np.setdiff1d(np.arange(self._context.n_classes), self._seen)] = -CERTAIN
        if len(self._seen) == 1:
            return weights
        self._model.set_params(C=C)
        for _ in range(MOST_BLOCKS):
            with warnings.catch_warnings():
                # A block may end before convergence, and a near-singular Newton step falls back by itself.
                warnings.simplefilter("ignore")
                self._model.fit(self._rows.X[:, :-1], self._rows.y, sample_weight=self._rows.weight)
            if self._model.n_iter_.max() < BLOCK or self._context.stopped:
                break
        chosen = self._seen if len(self._seen) > 2 else self._seen[1:]
        weights[:-1, chosen] = self._model.coef_.T
        weights[-1, chosen] = self._model.intercept_
        return weights


def walk(
    rows: Rows, *, held_out: Rows | None, task: Task, context: FitContext
) -> tuple[np.ndarray, tuple[CurvePoint, ...], int]:
    """Relax the penalty step by step; return the best weights (n_features + 1, n_outputs), the curve, the best round.

    Args:
        rows: To learn from.
        held_out: To stop by; None walks a fixed number of rounds.
        task: Ridge regression for numbers, logistic regression for classes.
        context: Deadline, classes, and the number of rounds where that is known.
    """
    solver = _Ridge(rows) if task is Task.REGRESSION else _Logistic(rows, context)
    rounds = min(max(context.rounds or 0, 1), len(PATH)) if context.rounds is not None else None
    stops_early = held_out is not None and rounds is None
    limit = rounds or (len(PATH) if stops_early else WITHOUT_VALIDATION)
    best, least, weights, curve = 0, float("inf"), np.zeros(0), []
    for step, C in enumerate(PATH[:limit], start=1):
        found = solver.solve(C)
        loss = _loss(held_out, found, task) if held_out is not None else None
        curve.append(CurvePoint(step=step, train=_loss(rows, found, task), validation=loss))
        if not stops_early or loss is None or loss < least or step == 1:
            best, weights, least = step, found, loss if loss is not None else least
        if context.stopped or step - best >= PATIENCE:
            break
    return weights, tuple(curve), best
