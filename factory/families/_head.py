"""How a model's raw output becomes a prediction, and what is kept of it on disk.

Every classical family ends in the same three lines (two-column probabilities,
rows summing to one, targets scaled back); they are written once here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from factory.families.base import FitContext
from factory.spec import Task

FILE = "head.json"


@dataclass(frozen=True)
class Head:
    """The end of a model.

    Attributes:
        task: What is predicted.
        n_classes: Columns of the probabilities; 0 for regression.
        shift: Mean of the training targets; 0 for classification.
        scale: Standard deviation of the training targets; 1 for classification.
        rounds: Rounds of the best iteration.
    """

    task: Task
    n_classes: int
    shift: float = 0.0
    scale: float = 1.0
    rounds: int = 0

    @classmethod
    def of(cls, y: np.ndarray, context: FitContext) -> Head:
        """Return the head for training targets (n_rows,)."""
        if context.task is not Task.REGRESSION:
            return cls(context.task, context.n_classes)
        scale = float(np.std(y))
        return cls(context.task, 0, float(np.mean(y)), scale if scale > 0 else 1.0)

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Return what the model is trained on: class indices as they are, targets (n_rows,) standardised."""
        return (y - self.shift) / self.scale if self.task is Task.REGRESSION else y

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Return predictions from raw output.

        Args:
            raw: Standardised predictions (n_rows,); the second class's probabilities (n_rows,); or a probability
                or non-negative weight for each class (n_rows, n_classes).
        """
        raw = np.asarray(raw, dtype=np.float64)
        if self.task is Task.REGRESSION:
            return raw * self.scale + self.shift
        if raw.ndim == 1:
            return np.stack([1 - raw, raw], axis=1)
        shares: np.ndarray = raw / raw.sum(axis=1, keepdims=True)
        return shares

    def save(self, folder: Path) -> None:
        """Write it as JSON."""
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Head:
        """Read what :meth:`save` wrote."""
        stored = json.loads((folder / FILE).read_text())
        return cls(**{**stored, "task": Task(stored["task"])})
