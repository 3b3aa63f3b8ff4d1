"""One trial: one configuration of one family, fitted on every fold and scored.

Nothing here knows of Ray.  The inline executor and the Tune worker both call
:meth:`TrialRunner.run`; a runner keeps the prepared folds, so that the second
trial of a process starts at once.  A trial never raises: what goes wrong is
its state and its reason.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from factory.data.dataset import Dataset
from factory.data.preparation import Preparation
from factory.errors import FactoryError
from factory.families.base import Deadline, Family, FitContext, Model, Sample
from factory.search.distributed import fit_distributed
from factory.search.metric import Metric
from factory.search.plan import family as family_named
from factory.search.splits import Split
from factory.spec import Document, Trial, TrialState

log = logging.getLogger(__name__)

TRAIN_SCORE_ROWS = 2_000
"""Rows that the training score is taken on: enough to show a gap, cheap for a forest."""


@dataclass(frozen=True)
class TrialData:
    """What all trials of one search share.

    Attributes:
        dataset: The rows of the search, (n_rows, n_columns); the gate's rows are not among them.
        splits: Which of these rows train and validate, fold by fold.
        workspace: Folder that preparations and trials are written to; shared by all workers.
    """

    dataset: Dataset
    splits: tuple[Split, ...]
    metric: Metric
    workspace: Path
    seed: int

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return len(self.dataset.classes)

    def fold_of(self, index: int | None) -> Split:
        """Return a fold's split; None is the refit on all rows."""
        everything = np.arange(len(self.dataset.y))
        return self.splits[index] if index is not None else Split(everything, everything[:0])


class TrialJob(Document):
    """A trial to run and what it may take.

    ``limit_s`` counts from the trial's own start, since a worker may need seconds until it is up; ``deadline_at`` is
    the moment at which it has to end in any case. ``refit_rounds`` makes it a refit: one fit on all rows with that
    many rounds (0 where the family has none).
    """

    trial: Trial
    limit_s: float = float("inf")
    deadline_at: float = float("inf")
    prune_below: float | None = None
    refit_rounds: int | None = None
    workers: int = 1
    gpus_per_worker: float = 0


class Jobs(Protocol):
    """A source of jobs that an executor works through; safe to call from several threads."""

    parallel: int
    deadline: Deadline

    @property
    def exhausted(self) -> bool:
        """Whether no further job will come."""

    @property
    def running(self) -> list[Trial]:
        """Trials that were handed out and have not come back."""

    def next(self) -> TrialJob | None:
        """Return the next job, or None when there is none now."""

    def done(self, trial: Trial) -> None:
        """Take a finished trial back."""

    def lost(self, number: int, reason: str) -> None:
        """Give up a trial whose worker died."""


@dataclass
class MemoryWatch:
    """Tells a running fit to stop when this process takes more than it may."""

    limit_mb: float
    exceeded: bool = False
    peak_mb: float = 0.0
    _checked: float = field(default=0.0, repr=False)

    def keep_going(self) -> bool:
        """Look at the process's memory, at most every 0.2 s."""
        now = time.monotonic()
        if now - self._checked > 0.2:
            self._checked = now
            resident_mb = psutil.Process().memory_info().rss / 1e6
            self.peak_mb = max(self.peak_mb, resident_mb)
            self.exceeded = self.exceeded or resident_mb > self.limit_mb
        return not self.exceeded


class TrialRunner:
    """Runs trials one after the other in this process.

    Args:
        data: The search's data.
        threads: Threads that a fit may use.
        memory_limit_mb: Resident memory that this process may reach.
    """

    def __init__(self, data: TrialData, *, threads: int = 1, memory_limit_mb: float = float("inf")) -> None:
        self.data = data
        self.threads = threads
        self.memory_limit_mb = memory_limit_mb
        self._prepared: dict[int | None, tuple[Sample, Sample]] = {}

    def run(self, job: TrialJob) -> Trial:
        """Run one trial to its end and return it with its end state."""
        trial, started = job.trial, time.monotonic()
        job = job.model_copy(update={"deadline_at": min(job.deadline_at, time.time() + job.limit_s)})
        watch = MemoryWatch(self.memory_limit_mb)
        watch.keep_going()
        try:
            ended = self._run(job, watch)
        except MemoryError as error:
            ended = trial.model_copy(update={"state": TrialState.OUT_OF_MEMORY, "reason": f"Out of memory: {error}"})
        except FactoryError as error:
            ended = trial.model_copy(update={"state": TrialState.FAILED, "reason": error.message})
        except Exception as error:  # noqa: BLE001 - the edge of a trial: whatever a framework raises is its result
            log.warning("trial %d (%s) failed:\n%s", trial.number, trial.family, traceback.format_exc())
            reason = f"{type(error).__name__}: {str(error).strip()[:400]}"
            ended = trial.model_copy(update={"state": TrialState.FAILED, "reason": reason})
        watch.keep_going()
        cost = {"cost_s": round(time.monotonic() - started, 3), "memory_mb": round(watch.peak_mb, 1)}
        return ended.model_copy(update=cost)

    def _run(self, job: TrialJob, watch: MemoryWatch) -> Trial:
        trial, family = job.trial, family_named(job.trial.family)
        needed_mb = self._memory_needed(family, trial)
        if watch.peak_mb + needed_mb > self.memory_limit_mb:
            reason = (
                f"Not started: it would need about {needed_mb:,.0f} MB more, and this worker may take "
                f"{self.memory_limit_mb:,.0f} MB of which {watch.peak_mb:,.0f} are taken."
            )
            return trial.model_copy(update={"state": TrialState.OUT_OF_MEMORY, "reason": reason})
        folder = self.data.workspace / "trials" / f"{trial.number:04d}"
        if job.refit_rounds is not None:
            return self._refit(job, family, folder, watch)
        return self._score_folds(job, family, folder, watch)

    def _memory_needed(self, family: Family, trial: Trial) -> float:
        train, _ = self._samples(0)
        return family.memory_mb(
            n_rows=len(train),
            n_columns=train.table.n_columns,
            n_classes=self.data.n_classes,
            parameters=trial.parameters,
        )

    def _score_folds(self, job: TrialJob, family: Family, folder: Path, watch: MemoryWatch) -> Trial:
        data, trial = self.data, job.trial
        fold_scores: list[float] = []
        parts: list[np.ndarray] = []
        train_scores: list[float] = []
        curve = trial.curve
        rounds: list[int] = []
        for k in range(len(data.splits)):
            now = time.time()
            if now >= job.deadline_at:
                return self._ended(trial, TrialState.PRUNED, f"Time was up after {k} of {len(data.splits)} folds.")
            until = now + (job.deadline_at - now) / (len(data.splits) - k)
            model = self._fit(job, family, k, Deadline(until), watch)
            # A rate that the deadline raised stays the same for the other folds and the refit.
            if model.learning_rate is not None:
                job = job.model_copy(
                    update={"trial": job.trial.model_copy(update={"raised_rate": model.learning_rate})}
                )
                trial = job.trial
            if watch.exceeded:
                reason = f"Stopped: the worker passed its {self.memory_limit_mb:,.0f} MB."
                return self._ended(trial, TrialState.OUT_OF_MEMORY, reason)
            train, validation = self._samples(k)
            prediction = model.predict(validation.table)
            if not np.isfinite(prediction).all():
                return self._ended(trial, TrialState.FAILED, "The model predicts values that are not numbers.")
            parts.append(prediction.astype(np.float32))
            score = data.metric.score(validation.y, prediction)
            if not np.isfinite(score):
                reason = f"Fold {k} has no {data.metric.label}: does it lack a class among its validation rows?"
                return self._ended(trial, TrialState.FAILED, reason)
            fold_scores.append(score)
            train_scores.append(self._train_score(model, train))
            curve = curve or model.curve
            rounds.append(model.rounds)
            _save(model, folder / f"fold-{k}")
            if k == 0 and len(data.splits) > 1 and job.prune_below is not None and fold_scores[0] < job.prune_below:
                reason = f"First fold scored {fold_scores[0]:.5g}, below the {job.prune_below:.5g} of better trials."
                return self._ended(trial, TrialState.PRUNED, reason, fold_scores=tuple(fold_scores))
        _write_atomically(folder / "out_of_fold.npy", np.concatenate(parts))
        return trial.model_copy(
            update={
                "state": TrialState.SUCCEEDED,
                "score": float(np.mean(fold_scores)),
                "fold_scores": tuple(fold_scores),
                "train_score": float(np.mean(train_scores)),
                "rounds": round(float(np.mean(rounds))),
                "curve": curve,
                "artifacts": str(folder),
            }
        )

    def _refit(self, job: TrialJob, family: Family, folder: Path, watch: MemoryWatch) -> Trial:
        model = self._fit(job, family, None, Deadline(job.deadline_at), watch)
        if watch.exceeded or time.time() >= job.deadline_at:
            return self._ended(
                job.trial, TrialState.PRUNED, "The refit on all rows did not fit; the fold's model stays."
            )
        _save(model, folder / "refit")
        return job.trial

    def _fit(self, job: TrialJob, family: Family, fold: int | None, deadline: Deadline, watch: MemoryWatch) -> Model:
        train, validation = self._samples(fold)
        context = FitContext(
            task=self.data.dataset.task,
            n_classes=self.data.n_classes,
            seed=job.trial.seed,
            threads=self.threads,
            deadline=deadline,
            rounds=job.refit_rounds or None,
            keep_going=watch.keep_going,
        )
        held_out = validation if fold is not None else None
        parameters = dict(job.trial.parameters)
        if job.trial.raised_rate is not None:
            parameters["learning_rate"] = job.trial.raised_rate
        if job.workers > 1 and family.distributed:
            return fit_distributed(
                family,
                train,
                validation=held_out,
                parameters=parameters,
                context=context,
                workers=(1, job.workers),
                gpus_per_worker=job.gpus_per_worker,
                storage=self.data.workspace / "train",
            )
        return family.fit(train, validation=held_out, parameters=parameters, context=context)

    def _samples(self, fold: int | None) -> tuple[Sample, Sample]:
        """Return a fold's prepared training and validation rows; the preparation sees the training rows only."""
        if fold not in self._prepared:
            data, split = self.data, self.data.fold_of(fold)
            preparation = fit_preparation(data, fold)
            self._prepared[fold] = (
                Sample(preparation.transform(data.dataset.frame.iloc[split.train]), data.dataset.y[split.train]),
                Sample(
                    preparation.transform(data.dataset.frame.iloc[split.validation]), data.dataset.y[split.validation]
                ),
            )
        return self._prepared[fold]

    def _train_score(self, model: Model, train: Sample) -> float:
        step = max(1, len(train) // TRAIN_SCORE_ROWS)
        rows = np.arange(0, len(train), step)
        return self.data.metric.score(train.y[rows], model.predict(train.table.rows(rows)))

    @staticmethod
    def _ended(trial: Trial, state: TrialState, reason: str, *, fold_scores: tuple[float, ...] = ()) -> Trial:
        return trial.model_copy(update={"state": state, "reason": reason, "fold_scores": fold_scores})


def preparation_folder(data: TrialData, fold: int | None) -> Path:
    """Return where a fold's preparation lies; None is the refit's."""
    return data.workspace / "preparations" / ("all" if fold is None else f"fold-{fold}")


def fit_preparation(data: TrialData, fold: int | None) -> Preparation:
    """Return a fold's preparation: loaded where a process already made it, else fitted and saved."""
    folder = preparation_folder(data, fold)
    if folder.is_dir():
        return Preparation.load(folder)
    frame = data.dataset.frame.iloc[data.fold_of(fold).train]
    preparation = Preparation.fit(frame, data.dataset.types, seed=data.seed)
    _into_folder(folder, preparation.save)
    return preparation


def _save(model: Model, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    _into_folder(folder, model.save)


def _into_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` fill a new folder that appears whole or not at all."""
    draft = folder.with_name(f".{folder.name}-{os.getpid()}-{threading.get_ident()}")
    draft.mkdir(parents=True)
    save(draft)
    try:
        draft.rename(folder)
    except OSError:  # another process was first; its content is the same
        shutil.rmtree(draft)


def _write_atomically(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}.npy")
    np.save(draft, array, allow_pickle=False)
    draft.rename(path)
