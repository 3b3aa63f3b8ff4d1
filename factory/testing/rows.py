"""Small tables that depend on what a family can learn, and the losses that judge it; of the conformance suite."""

from __future__ import annotations

import numpy as np

from factory.data.preparation import Table
from factory.families.base import Sample
from factory.spec import Task

N_CLASSES = {Task.BINARY: 2, Task.MULTICLASS: 3, Task.REGRESSION: 0}
ROWS = 240


def sample(task: Task, *, n_rows: int = ROWS, seed: int = 0) -> Sample:
    """Return rows whose target depends on numbers and categories: float32 (n_rows, 4), int32 (n_rows, 2), read-only."""
    random = np.random.default_rng(seed)
    numeric = random.normal(size=(n_rows, 4)).astype(np.float32)
    codes = np.column_stack([random.integers(0, 4, n_rows), random.integers(0, 8, n_rows)]).astype(np.int32)
    effect = np.array([0.0, -2.0, 0.0, 2.0])[codes[:, 0]]
    signal = 1.5 * numeric[:, 0] + effect + 0.3 * random.normal(size=n_rows)
    numeric[random.random(n_rows) < 0.1, 1] = np.nan
    numeric[:, 3] = 1.0
    y = {
        Task.REGRESSION: signal.astype(np.float64),
        Task.BINARY: (signal > 0).astype(np.int64),
        Task.MULTICLASS: np.digitize(signal, [-1.0, 1.0]).astype(np.int64),
    }[task]
    return frozen(Sample(Table(numeric, codes, (4, 8), ("a", "b", "c", "d"), ("e", "f")), y))


def loss(task: Task, y: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean log-loss, or the mean squared error, of what :meth:`Model.predict` returned."""
    if task is Task.REGRESSION:
        return float(np.mean((y - prediction) ** 2))
    return float(-np.mean(np.log(np.clip(prediction[np.arange(len(y)), y], 1e-9, 1))))


def frozen(rows: Sample) -> Sample:
    """Return the rows read-only, as they are when Ray hands them over."""
    for values in (rows.table.numeric, rows.table.codes, rows.y):
        values.setflags(write=False)
    return rows


def half(task: Task, k: int) -> Sample:
    """Return one of several halves of the usual rows; each has targets of its own mean and spread."""
    whole = sample(task)
    chosen = np.flatnonzero(np.random.default_rng(k).random(ROWS) < 0.5)
    return frozen(Sample(whole.table.rows(chosen), whole.y[chosen]))


def moved(rows: Sample) -> Sample:
    """Return the rows with targets that are far from 0 and 1."""
    return Sample(rows.table, rows.y * 1e5 + 1e6)


def constant_loss(task: Task, rows: Sample) -> float:
    """Return the loss of the mean, or of the class frequencies, of these very rows."""
    if task is Task.REGRESSION:
        return float(np.var(rows.y))
    shares = np.bincount(rows.y, minlength=N_CLASSES[task]) / len(rows)
    return loss(task, rows.y, np.repeat(shares[np.newaxis], len(rows), axis=0))
