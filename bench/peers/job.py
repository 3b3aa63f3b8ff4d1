"""What a child process that runs a peer is told, and what it leaves.

The child reads a job from the file that it is given, learns from
``train.parquet``, and leaves in its working directory ``predictions.parquet``
(a column for each class, or ``prediction``) and ``meta.json`` (:class:`Meta`).
One-row predictions are timed after that; the time they take is told, so that
it is not counted as making.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

PREDICTIONS, META = Path("predictions.parquet"), Path("meta.json")
TIMED_ROWS, WARM_UP_ROWS = 30, 3

Row = TypeVar("Row")
Predict = Callable[[pd.DataFrame], pd.DataFrame]
"""Rows without the target → a column for each class, or ``prediction``."""


@dataclass(frozen=True)
class Job:
    """One fit: files, target, task (binary, multiclass, regression), score, seconds, seed, cores, preset."""

    train: str
    test: str
    target: str
    task: str
    metric: str
    budget_s: int
    seed: int
    cores: int
    option: str

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job that :meth:`write` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Meta:
    """What a peer took: seconds of its fit, median ms of one row, seconds of timing rows, versions of its packages."""

    fit_s: float
    latency_ms: float
    timing_s: float
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Meta:
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text()))


def run(fit: Callable[[pd.DataFrame, Job], Predict], *, packages: Sequence[str]) -> None:
    """Do the job that the command line names: fit, predict, time one row.

    Args:
        fit: Learns from the rows of a job, whose text columns are ``object`` and whose classes are strings.
        packages: Whose versions are told.
    """
    job = Job.read(Path(sys.argv[1]))
    # Some peers draw from the global generators.
    random.seed(job.seed)
    np.random.seed(job.seed)
    train, test = pd.read_parquet(job.train), pd.read_parquet(job.test)
    if job.task != "regression":
        train[job.target] = train[job.target].astype(str)
    started = time.perf_counter()
    predict = fit(train, job)
    fit_s = time.perf_counter() - started
    predict(test).reset_index(drop=True).to_parquet(PREDICTIONS, index=False)
    started = time.perf_counter()
    latency_ms = median_ms(predict, [test.iloc[[i]] for i in range(WARM_UP_ROWS + TIMED_ROWS)])
    timing_s = time.perf_counter() - started
    Meta(fit_s, latency_ms, timing_s, {name: version(name) for name in packages}).write(META)


def median_ms(predict: Callable[[Row], object], rows: Sequence[Row]) -> float:
    """Return the median milliseconds of predicting each row, the first WARM_UP_ROWS left out."""
    taken = []
    for row in rows:
        started = time.perf_counter()
        predict(row)
        taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken[WARM_UP_ROWS:])


def classes(train: pd.DataFrame, job: Job) -> list[str]:
    """Return the labels of the training rows in the order of the predictions' columns; none for a regression."""
    return [] if job.task == "regression" else sorted(train[job.target].unique())
