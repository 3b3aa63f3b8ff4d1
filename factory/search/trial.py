"""One job: a configuration of one family, fitted and scored on some folds.

The inline executor and the Tune worker both call :meth:`TrialRunner.run`; a
runner keeps the folds it has open, so that the second job of a process starts
at once.  A job never raises: what goes wrong is its state and its reason.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import time
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil

from factory.errors import FactoryError
from factory.families.base import Deadline, Family, FitContext, Model
from factory.search.distributed import fit_distributed
from factory.search.jobs import FitJob, FitResult, FoldScore, TrialData
from factory.search.plan import family as family_named
from factory.search.plan import with_loss
from factory.search.probe import TargetScale
from factory.search.samples import Samples, into_folder, representation, write_array
from factory.spec import TrialState

log = logging.getLogger(__name__)

WRAP_UP = 0.15
"""Part of what a fit takes that scores, and model and predictions on disk, take beside its rounds: up to a fifth where
models are large (measured)."""
TRAIN_SCORE_ROWS = 2_000
"""Rows that the training score is taken on: enough to show a gap, cheap for a forest."""


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


class _Ended(Exception):
    """A job ends here, in this state and for this reason."""

    def __init__(self, state: TrialState, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


class TrialRunner:
    """Runs jobs one after the other in this process.

    Args:
        data: The search's data.
        threads: Threads that a fit may use.
        memory_limit_mb: Resident memory that this process may reach.
    """

    def __init__(self, data: TrialData, *, threads: int = 1, memory_limit_mb: float = float("inf")) -> None:
        self.data = data
        self.threads = threads
        self.memory_limit_mb = memory_limit_mb
        self._samples = Samples(data)

    @cached_property
    def _target_scale(self) -> TargetScale:
        """Read once: it is decided before the first fit and never changes."""
        return representation(self.data).target_scale

    def prepare(self, fold: int) -> None:
        """Prepare a fold's rows, so that other processes find them there."""
        self._samples.of(fold)

    def run(self, job: FitJob) -> FitResult:
        """Run one job to its end; what it fitted before it ended early counts."""
        started = time.monotonic()
        watch = MemoryWatch(self.memory_limit_mb)
        watch.keep_going()
        result = FitResult(number=job.trial.number)
        state, reason = TrialState.SUCCEEDED, ""
        try:
            family = family_named(job.trial.family)
            self._warm_up(job, family)
            started = time.monotonic()
            if job.refit_rounds is not None:
                self._refit(job, family, watch)
            job = job.model_copy(update={"deadline_at": _last_round_at(job)})
            for fold in job.folds:
                result, job = self._fit_fold(job, family, fold, watch, result)
        except _Ended as end:
            state, reason = end.state, end.reason
        except MemoryError as error:
            state, reason = TrialState.OUT_OF_MEMORY, f"Out of memory: {error}"
        except FactoryError as error:
            state, reason = TrialState.FAILED, error.message
        except Exception as error:  # noqa: BLE001 - the edge of a trial: whatever a framework raises is its result
            log.warning("trial %d (%s) failed:\n%s", job.trial.number, job.trial.family, traceback.format_exc())
            state, reason = TrialState.FAILED, f"{type(error).__name__}: {str(error).strip()[:400]}"
        watch.keep_going()
        cost = {"cost_s": round(time.monotonic() - started, 3), "memory_mb": round(watch.peak_mb, 1)}
        return result.model_copy(update={"state": state, "reason": reason, **cost})

    def _warm_up(self, job: FitJob, family: Family) -> None:
        """Import and prepare what all later trials of this process use as well: it is not this one's cost."""
        if job.workers == 1 or not family.distributed:
            for module in family.modules:
                importlib.import_module(module)
        if job.folds:
            self._samples.of(job.folds[0])

    def _fit_fold(
        self, job: FitJob, family: Family, fold: int, watch: MemoryWatch, so_far: FitResult
    ) -> tuple[FitResult, FitJob]:
        """Fit, score and keep one fold; return the longer result, and the job with the rate that it came to."""
        data, number, began = self.data, job.trial.number, time.monotonic()
        if time.time() >= job.deadline_at:
            raise _Ended(TrialState.PRUNED, f"Time was up before fold {fold}.")
        train, validation = self._samples.of(fold)
        self._make_room(job, family, watch)
        model = self._fit(job, family, fold, watch)
        if watch.exceeded:
            raise _Ended(TrialState.OUT_OF_MEMORY, f"Stopped: the worker passed its {self.memory_limit_mb:,.0f} MB.")
        prediction = model.predict(validation.table)
        if not np.isfinite(prediction).all():
            raise _Ended(TrialState.FAILED, "The model predicts values that are not numbers.")
        score = data.metric.score(validation.y, prediction, weight=validation.weight)
        if not np.isfinite(score):
            lacking = "does it lack a class among its validation rows?"
            raise _Ended(TrialState.FAILED, f"Fold {fold} has no {data.metric.label}: {lacking}")
        rows = np.arange(0, len(train), max(1, len(train) // TRAIN_SCORE_ROWS))
        weight = None if train.weight is None else train.weight[rows]
        train_score = data.metric.score(train.y[rows], model.predict(train.table.rows(rows)), weight=weight)
        _save(model, data.model_folder(number, fold))
        write_array(data.out_of_fold(number, fold), prediction.astype(np.float32))
        fitted = FoldScore(
            fold=fold,
            score=score,
            train_score=train_score,
            rounds=model.rounds,
            cost_s=round(time.monotonic() - began, 3),
        )
        update: dict[str, object] = {"folds": (*so_far.folds, fitted), "curve": so_far.curve or model.curve}
        if model.learning_rate is not None:
            # A rate that the deadline raised stays the same for the other folds and the refit.
            update["raised_rate"] = model.learning_rate
            job = job.model_copy(update={"trial": job.trial.model_copy(update={"raised_rate": model.learning_rate})})
        return so_far.model_copy(update=update), job

    def _make_room(self, job: FitJob, family: Family, watch: MemoryWatch) -> None:
        """Refuse a fit that would not find the memory it needs."""
        train, _ = self._samples.of(job.folds[0] if job.folds else None)
        needed_mb = family.memory_mb(
            n_rows=len(train),
            n_columns=train.table.n_columns,
            n_classes=self.data.n_classes,
            parameters=job.trial.parameters,
        )
        if watch.peak_mb + needed_mb > self.memory_limit_mb:
            reason = (
                f"Not started: it would need about {needed_mb:,.0f} MB more, and this worker may take "
                f"{self.memory_limit_mb:,.0f} MB of which {watch.peak_mb:,.0f} are taken."
            )
            raise _Ended(TrialState.OUT_OF_MEMORY, reason)

    def _refit(self, job: FitJob, family: Family, watch: MemoryWatch) -> None:
        self._make_room(job, family, watch)
        model = self._fit(job, family, None, watch)
        if watch.exceeded or time.time() >= job.deadline_at:
            raise _Ended(TrialState.PRUNED, "The refit on all rows did not fit; the fold's model stays.")
        _save(model, self.data.model_folder(job.trial.number, None))

    def _fit(self, job: FitJob, family: Family, fold: int | None, watch: MemoryWatch) -> Model:
        train, validation = self._samples.of(fold)
        parameters, loss = with_loss(job.trial.parameters)
        context = FitContext(
            task=self.data.dataset.task,
            n_classes=self.data.n_classes,
            seed=job.trial.seed,
            threads=self.threads,
            deadline=Deadline(min(job.deadline_at, time.time() + job.limit_s)),
            rounds=job.refit_rounds or None,
            keep_going=watch.keep_going,
            target_scale=self._target_scale,
            loss=loss,
            raises_rate=fold == 0,
        )
        held_out = validation if fold is not None else None
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


def _last_round_at(job: FitJob) -> float:
    """Return the moment at which the rounds of a job's folds have to end, so that what follows them is in time too."""
    left_s = job.deadline_at - time.time()
    return job.deadline_at - WRAP_UP * left_s if 0 < left_s < float("inf") else job.deadline_at


def _save(model: Model, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    into_folder(folder, model.save)
