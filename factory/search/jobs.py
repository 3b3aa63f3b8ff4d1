"""What a search hands out and gets back: one configuration, some folds, and how they went.

The unit of work is a fit on one fold, since that is what racing needs: every
configuration sees the first fold, only those that earn it see the others.
Nothing here knows of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from factory.data.dataset import Dataset
from factory.families.base import Deadline
from factory.search.metric import Metric
from factory.search.splits import Split
from factory.spec import CurvePoint, Document, Task, Trial, TrialState


@dataclass(frozen=True)
class TrialData:
    """What all trials of one search share.

    Attributes:
        dataset: The rows of the search, (n_rows, n_columns), and behind them those of the gate.
        splits: Which of these rows train and validate, fold by fold. The gate's rows validate nothing, and train all
            folds but the first: its models can be judged by them (docs/decisions/unseen-rows.md).
        workspace: Folder that preparations and trials are written to; shared by all workers.
        shared: Workspace of a search over more rows with the same folds, whose preparations and representation are
            taken; None where this search makes its own.
        n_gate: How many of the last rows are the gate's; 0 where they are not among these rows.
        independent: Whether the folds are random rows; False where they are whole groups, or rows in order of time.
        group: Column whose groups never stand on both sides of a fold; None where there is none.
    """

    dataset: Dataset
    splits: tuple[Split, ...]
    metric: Metric
    workspace: Path
    seed: int
    shared: Path | None = None
    n_gate: int = 0
    independent: bool = True
    group: str | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return len(self.dataset.classes)

    @property
    def searched(self) -> Dataset:
        """The rows that the search chooses by, those of the gate left out."""
        return self.dataset.take(np.arange(len(self.dataset) - self.n_gate)) if self.n_gate else self.dataset

    def fold_of(self, index: int | None) -> Split:
        """Return a fold's split; None is the refit on all rows."""
        everything = np.arange(len(self.dataset.y))
        return self.splits[index] if index is not None else Split(everything, everything[:0])

    def judging(self) -> np.ndarray | None:
        """Return training rows of the first fold to judge by that are as new to the others as its validation rows are.

        Whole groups, those of the second fold, where enough are left to learn from; none in order of time. None where
        folds are random: any rows are as new as others.
        """
        if self.independent:
            return None
        return self.splits[1].validation if len(self.splits) > 2 else np.array([], dtype=np.int64)

    def weights_of(self, folds: Sequence[int]) -> tuple[np.ndarray, ...] | None:
        """Return the weights of some folds' validation rows, each with a mean of 1; None where all count the same."""
        found = [self.dataset.weight(self.splits[k].validation) for k in folds]
        return tuple(one for one in found if one is not None) if self.dataset.weights is not None else None

    def part(self, rows: np.ndarray, *, workspace: Path) -> TrialData | None:
        """Return the data of some rows with their part of each fold; None where a fold would be useless.

        Args:
            rows: Positions, ascending, (n_rows,).
            workspace: Of the search over them.
        """
        place = np.full(len(self.dataset.y), -1)
        place[rows] = np.arange(len(rows))
        dataset = self.dataset.take(rows)
        splits = []
        for split in self.splits:
            train, validation = (part[part >= 0] for part in (place[split.train], place[split.validation]))
            n_classes = len(np.unique(dataset.y[validation]))
            if len(validation) < 2 or (dataset.task is Task.BINARY and n_classes < 2):
                return None
            splits.append(Split(train, validation))
        n_gate = int((rows >= len(place) - self.n_gate).sum())
        return replace(
            self, dataset=dataset, splits=tuple(splits), workspace=workspace, shared=self.workspace, n_gate=n_gate
        )

    def folder_of(self, trial: int) -> Path:
        """Return where a trial's models and out-of-fold predictions lie."""
        return self.workspace / "trials" / f"{trial:04d}"

    def model_folder(self, trial: int, fold: int | None) -> Path:
        """Return where the model of one fold lies; None is the refit's."""
        return self.folder_of(trial) / ("refit" if fold is None else f"fold-{fold}")

    def out_of_fold(self, trial: int, fold: int) -> Path:
        """Return the file of a trial's predictions of a fold's validation rows."""
        return self.folder_of(trial) / f"fold-{fold}.npy"


class FitJob(Document):
    """A configuration, the folds to fit it on, and what that may take.

    ``limit_s`` is for each fold and counts from its own start, since a worker may need seconds until it is up;
    ``deadline_at`` is the moment at which all has to end. ``refit_rounds`` makes it a refit: one fit on all rows with
    that many rounds (0 where the family has none), and no folds.
    """

    trial: Trial
    folds: tuple[int, ...] = ()
    limit_s: float = float("inf")
    deadline_at: float = float("inf")
    refit_rounds: int | None = None
    workers: int = 1
    gpus_per_worker: float = 0


class FoldScore(Document):
    """How a fit went on one fold. Scores: greater is better."""

    fold: int
    score: float
    train_score: float
    rounds: int
    cost_s: float


class FitResult(Document):
    """How a job ended: the folds that were fitted, and why no more were."""

    number: int
    folds: tuple[FoldScore, ...] = ()
    state: TrialState = TrialState.SUCCEEDED
    reason: str = ""
    raised_rate: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    cost_s: float = 0.0
    memory_mb: float = 0.0


class Jobs(Protocol):
    """A source of jobs that an executor works through; safe to call from several threads."""

    parallel: int
    deadline: Deadline

    @property
    def exhausted(self) -> bool:
        """Whether no further job will come."""

    def next(self, *, quick: bool = False) -> FitJob | None:
        """Return the next job, or None when there is none now.

        Args:
            quick: Whether it is for a process that has other things to do: then none that takes long.
        """

    def done(self, job: FitJob, result: FitResult) -> None:
        """Take a job's result."""

    def lost(self, job: FitJob, reason: str) -> None:
        """Give up a job whose worker died."""


def first_fold_score(trial: Trial) -> float | None:
    """Return a trial's score on the first fold, which all trials of a search share; None where it has none."""
    return trial.fold_scores[trial.folds.index(0)] if 0 in trial.folds else None


def merged(trial: Trial, result: FitResult) -> Trial:
    """Return a trial with a job's folds added; one that has a fold has succeeded, whatever further folds came to.

    A job that brings it no fold leaves such a trial as it is: the ledger takes a finished one again for new folds only.
    """
    folds = dict(zip(trial.folds, trial.fold_scores, strict=True))
    new = [f for f in result.folds if f.fold not in folds]
    if folds and not new:
        return trial
    folds |= {f.fold: f.score for f in new}
    cost = {
        "cost_s": round(trial.cost_s + result.cost_s, 3),
        "memory_mb": max(trial.memory_mb, result.memory_mb),
    }
    if not folds:
        return trial.model_copy(update={**cost, "state": result.state, "reason": result.reason})
    n_before, n_new = len(trial.folds), len(new)

    def mean(before: float, values: list[float]) -> float:
        return (before * n_before + sum(values)) / (n_before + n_new)

    order = sorted(folds)
    return trial.model_copy(
        update={
            **cost,
            "state": TrialState.SUCCEEDED,
            "folds": tuple(order),
            "fold_scores": tuple(folds[k] for k in order),
            "score": float(np.mean([folds[k] for k in order])),
            "train_score": mean(trial.train_score or 0.0, [f.train_score for f in new]),
            "rounds": round(mean(trial.rounds, [float(f.rounds) for f in new])),
            "raised_rate": trial.raised_rate if trial.raised_rate is not None else result.raised_rate,
            "curve": trial.curve or result.curve,
        }
    )
