"""How a network is trained: one epoch loop for both frameworks, for one worker and for many.

The loop knows three small things and nothing of PyTorch, TensorFlow or Ray:

* a :class:`~factory.families._job.Job`: the prepared arrays and the plan, the same in every worker;
* a :class:`Learner`: one copy of the network in its framework (one optimiser step, a sum over the workers, its state
  as arrays);
* a :class:`Group`: this worker's rank, and what becomes of a checkpoint.

Batches are global: every worker draws the same shuffle from the seed and takes its share of each batch, and each
step divides by the size of the whole batch.  Two workers therefore compute what one would, up to rounding.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from factory.errors import TrainingFault
from factory.families._job import Examples, Job, Progress
from factory.families._mlp import Arrays, forward, losses
from factory.spec import CurvePoint

logger = logging.getLogger(__name__)

BATCHES_BETWEEN_CHECKS = 32
"""Deadline and ``keep_going`` are looked at this often within an epoch; with several workers each look is a sum."""


class Learner(ABC):
    """One copy of the network in its framework."""

    @abstractmethod
    def begin_epoch(self, *, seed: int) -> None:
        """Set the seed of the dropout for the steps that follow."""

    @abstractmethod
    def step(self, rows: np.ndarray, *, n_batch: int, lr: float) -> float:
        """Take one optimiser step together with the other workers.

        Args:
            rows: This worker's share of the batch, indices into the training rows; may be empty.
            n_batch: Rows of the batch over all workers.
            lr: Learning rate of this step.

        Returns:
            The weighted sum of the losses of ``rows`` before the step.
        """

    @abstractmethod
    def total(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over all workers, float64 of the same shape; each worker has to call it."""

    @abstractmethod
    def weights(self) -> Arrays:
        """Return a copy of the weights."""

    @abstractmethod
    def state(self) -> Arrays:
        """Return a copy of the weights and the optimiser's slots."""

    @abstractmethod
    def restore(self, state: Arrays) -> None:
        """Go back to what :meth:`state` returned."""


@dataclass(frozen=True)
class Group:
    """One worker's place among the workers, and where its checkpoints go. By default it is alone and keeps none."""

    rank: int = 0
    world: int = 1
    resume: Callable[[], Progress | None] = field(default=lambda: None)
    report: Callable[[Progress], None] = field(default=lambda _: None)

    @property
    def alone(self) -> bool:
        """Whether there is one worker only."""
        return self.world == 1


class Schedule:
    """How much of the training is done: by the epochs, or by the time where that runs out before the epochs do.

    With ample time it depends on the step alone, so that a fit can be repeated; with little, the learning rate still
    comes down to zero by the end of it.
    """

    def __init__(self, epochs: int, time_s: float) -> None:
        self._epochs = epochs
        self._time_s = max(time_s, 1e-9)
        self._began = time.perf_counter()

    def done(self, epochs: float) -> float:
        """Return the share that is done after so many epochs, whole ones and parts."""
        return max(epochs / self._epochs, (time.perf_counter() - self._began) / self._time_s)


def run(job: Job, learner: Learner, *, group: Group, stopped: Callable[[], bool], time_s: float = math.inf) -> Progress:
    """Train until the epochs or the time are over, the validation loss stops falling, or ``stopped`` says so.

    Args:
        job: What is trained; the same in every worker.
        learner: This worker's copy of the network, freshly built.
        group: This worker's place; its last checkpoint is where training goes on.
        stopped: Whether to end now with the best so far; it is enough that one worker's says so.
        time_s: Seconds over which the learning rate comes down to zero, if the epochs take longer; for one worker
            only, since the clocks of several differ.

    Raises:
        TrainingFault: the loss is not finite before any usable epoch.
    """
    progress = group.resume()
    if progress is None:
        progress = _untrained(job, learner, group)
    else:
        learner.restore(progress.state)
        logger.info("training goes on after epoch %d on %d worker(s)", progress.epochs, group.world)
    schedule = Schedule(job.plan.epochs, time_s if group.alone else math.inf)
    while schedule.done(progress.epochs) < 1 and not _out_of_patience(job, progress):
        train_loss = _epoch(job, learner, progress.epochs, schedule=schedule, group=group, stopped=stopped)
        if train_loss is None:
            progress = _interrupted(progress, learner)
            group.report(progress)
            break
        following = _after_epoch(job, learner, progress, train_loss, group=group)
        if following is None:
            break
        progress = following
        group.report(progress)
    return progress


def _untrained(job: Job, learner: Learner, group: Group) -> Progress:
    """Return the progress before the first epoch; weights that were trained before have to be beaten."""
    weights = learner.weights()
    start = Progress(0, learner.state(), weights)
    if job.start is None or job.validation is None:
        return start
    return replace(start, best_loss=_validation_loss(job, weights, job.validation, learner, group))


def _out_of_patience(job: Job, progress: Progress) -> bool:
    return job.validation is not None and progress.epochs - progress.best_epoch >= job.plan.patience


def _epoch(
    job: Job, learner: Learner, epoch: int, *, schedule: Schedule, group: Group, stopped: Callable[[], bool]
) -> float | None:
    """Run one epoch, or what of it the schedule leaves; return its mean loss, or None when it was stopped."""
    learner.begin_epoch(seed=job.plan.noise_seed(epoch, group.rank))
    total, seen = 0.0, 0
    batches = job.plan.batches(len(job.train), epoch)
    for number, batch in enumerate(batches):
        if number % BATCHES_BETWEEN_CHECKS == 0 and _any(learner, stopped(), group):
            return None
        done = schedule.done(epoch + number / len(batches))
        if done >= 1:
            break
        total += learner.step(batch[group.rank :: group.world], n_batch=len(batch), lr=job.plan.lr_at(done))
        seen += len(batch)
    return _sum(learner, total, group) / seen if seen else None


def _any(learner: Learner, flag: bool, group: Group) -> bool:
    return _sum(learner, float(flag), group) > 0


def _sum(learner: Learner, value: float, group: Group) -> float:
    return value if group.alone else float(learner.total(np.array([value]))[0])


def _interrupted(progress: Progress, learner: Learner) -> Progress:
    """Keep a part of the first epoch rather than nothing; after it, only whole epochs count."""
    weights = learner.weights()
    if progress.best_epoch or math.isfinite(progress.best_loss) or not _finite(weights):
        return progress
    return replace(progress, state=learner.state(), best=weights)


def _after_epoch(job: Job, learner: Learner, progress: Progress, train_loss: float, *, group: Group) -> Progress | None:
    """Return the progress with this epoch in it, or None when training has diverged and an earlier epoch is kept."""
    weights, epoch = learner.weights(), progress.epochs + 1
    validation_loss = None
    if job.validation is not None:
        validation_loss = _validation_loss(job, weights, job.validation, learner, group)
    watched = train_loss if validation_loss is None else validation_loss
    if not (math.isfinite(watched) and _finite(weights)):
        if progress.best_epoch or math.isfinite(progress.best_loss):
            return None
        raise TrainingFault(
            f"The loss is not finite after epoch {epoch} (training {train_loss}, validation {validation_loss}).",
            hint=f"Lower the learning rate (lr is {job.plan.lr}) or change the optimizer.",
        )
    point = CurvePoint(step=epoch, train=train_loss, validation=validation_loss)
    better = validation_loss is None or validation_loss < progress.best_loss
    return Progress(
        epochs=epoch,
        state=learner.state(),
        best=weights if better else progress.best,
        best_epoch=epoch if better else progress.best_epoch,
        best_loss=validation_loss if better and validation_loss is not None else progress.best_loss,
        curve=(*progress.curve, point),
    )


def _finite(weights: Arrays) -> bool:
    return all(bool(np.isfinite(w).all()) for w in weights.values())


def _validation_loss(job: Job, weights: Arrays, validation: Examples, learner: Learner, group: Group) -> float:
    """Return the mean loss over the validation rows, each worker taking its share.

    The numpy forward pass is what will predict, so it is what is validated, in every framework.
    """
    mine = validation.share(group.rank, group.world)
    outputs = forward(job.architecture, weights, mine.inputs)
    loss = float(mine.weight @ losses(job.architecture.task, outputs, mine.y, loss=job.plan.loss))
    return _sum(learner, loss, group) / len(validation)
