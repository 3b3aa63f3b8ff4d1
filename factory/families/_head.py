"""How a model's raw output becomes a prediction, and what is kept of it on disk.

Every classical family ends in the same three lines (two-column probabilities,
rows summing to one, targets scaled back); they are written once here.  So is
the scale on which a target is learned: squared error on the square root or the
logarithm of a skewed target weighs its large values less.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from factory.data.graph import Graph
from factory.families._terms import Link
from factory.families.base import FitContext
from factory.spec import Task

FILE = "head.json"
_BEYOND = 1.0
"""Standard deviations that an answer on a bent scale may exceed the training targets by: exponentials run off."""

TargetScale = Literal["raw", "sqrt", "log"]


@dataclass(frozen=True)
class Head:
    """The end of a model.

    Attributes:
        task: What is predicted.
        n_classes: Columns of the probabilities; 0 for regression.
        shift: Mean of the training targets on their scale; 0 for classification.
        scale: Standard deviation of the training targets on their scale; 1 for classification.
        rounds: Rounds of the best iteration.
        target_scale: Scale on which the target is learned: as it is, its square root, or log(1 + y).
        top: Largest answer on a scale that is not ``raw``; None there.
    """

    task: Task
    n_classes: int
    shift: float = 0.0
    scale: float = 1.0
    rounds: int = 0
    target_scale: TargetScale = "raw"
    top: float | None = None

    @classmethod
    def of(cls, y: np.ndarray, context: FitContext) -> Head:
        """Return the head for training targets (n_rows,)."""
        if context.task is not Task.REGRESSION:
            return cls(context.task, context.n_classes)
        target_scale: TargetScale = context.target_scale if len(y) and np.min(y) >= 0 else "raw"
        z = _onto(y, target_scale)
        spread = float(np.std(z))
        scale = spread if spread > 0 else 1.0
        top = None if target_scale == "raw" else float(np.max(z)) + _BEYOND * scale
        return cls(context.task, 0, float(np.mean(z)), scale, target_scale=target_scale, top=top)

    @classmethod
    def mean(cls, heads: Sequence[Head]) -> Head:
        """Return the head of a model whose raw output is the mean of others' outputs, weighted by ``scale``.

        Sum over models of (raw * scale + shift) / n is (sum of raw * scale / (n * mean scale)) * mean scale + mean
        shift; so the n models' raw outputs have to be added with weights scale / (n * mean scale).
        """
        tops = [head.top for head in heads if head.top is not None]
        return replace(
            heads[0],
            shift=float(np.mean([head.shift for head in heads])),
            scale=float(np.mean([head.scale for head in heads])),
            rounds=sum(head.rounds for head in heads),
            top=float(np.mean(tops)) if tops else None,
        )

    @property
    def link(self) -> Link:
        """What makes an answer of a sum: of log-odds, of scores of the classes, or of a number on its scale."""
        if self.task is not Task.REGRESSION:
            return "logistic" if self.task is Task.BINARY else "softmax"
        links: dict[TargetScale, Link] = {"raw": "identity", "sqrt": "square", "log": "exponential"}
        return links[self.target_scale]

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Return what the model is trained on: class indices as they are, targets (n_rows,) scaled, standardised."""
        return (_onto(y, self.target_scale) - self.shift) / self.scale if self.task is Task.REGRESSION else y

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Return predictions from raw output.

        Args:
            raw: Standardised predictions (n_rows,); the second class's probabilities (n_rows,); or a probability
                or non-negative weight for each class (n_rows, n_classes).
        """
        raw = np.asarray(raw, dtype=np.float64)
        if self.task is Task.REGRESSION:
            return _back(raw * self.scale + self.shift, self.target_scale, top=self.top)
        if raw.ndim == 1:
            return np.stack([1 - raw, raw], axis=1)
        shares: np.ndarray = raw / raw.sum(axis=1, keepdims=True)
        return shares

    def draw(self, graph: Graph, raw: str) -> str:
        """Draw :meth:`decode`: of raw output float64 (n_rows, 1) or (n_rows, n_classes)."""
        if self.task is Task.REGRESSION:
            scaled = graph.add("Add", graph.add("Mul", raw, np.array(self.scale)), np.array(self.shift))
            return _draw_back(graph, scaled, self.target_scale, top=self.top)
        return graph.add("Div", raw, graph.total(raw))

    def save(self, folder: Path) -> None:
        """Write it as JSON."""
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Head:
        """Read what :meth:`save` wrote."""
        stored = json.loads((folder / FILE).read_text())
        return cls(**{**stored, "task": Task(stored["task"])})


def _onto(y: np.ndarray, target_scale: TargetScale) -> np.ndarray:
    """Return targets (n_rows,) on a scale; a negative one, which training did not have, counts as 0 there."""
    if target_scale == "raw":
        return y
    known: np.ndarray = np.maximum(y, 0)
    return np.asarray(np.sqrt(known) if target_scale == "sqrt" else np.log1p(known))


def _back(z: np.ndarray, target_scale: TargetScale, *, top: float | None) -> np.ndarray:
    """Return targets (n_rows,) from a scale, from 0 up to ``top`` on that scale."""
    if target_scale == "raw":
        return z
    bounded = np.clip(z, 0, top)
    return np.asarray(np.square(bounded) if target_scale == "sqrt" else np.expm1(bounded))


def _draw_back(graph: Graph, z: str, target_scale: TargetScale, *, top: float | None) -> str:
    """Draw :func:`_back`."""
    if target_scale == "raw":
        return z
    bounded = graph.add("Max", z, np.array(0.0))
    if top is not None:
        bounded = graph.add("Min", bounded, np.array(top))
    if target_scale == "sqrt":
        return graph.add("Mul", bounded, bounded)
    return graph.add("Sub", graph.add("Exp", bounded), np.array(1.0))
