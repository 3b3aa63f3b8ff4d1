"""What the network families share: search space, portfolio, preparation of a job, single-process fit.

A framework's own file adds a learner and nothing else.  The job is what the
workers of a distributed fit receive, so both ways of training start from the
same arrays, weights and batches.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from factory.data.dense import DenseEncoder
from factory.families._dense_inputs import DenseInputs, dense_part, embedded_columns
from factory.families._encoding import TargetEncoding
from factory.families._epochs import Group, Learner, run
from factory.families._head import Head
from factory.families._job import Examples, Job, Plan, Progress
from factory.families._mlp import ACTIVATIONS, Architecture, NetworkModel, encode
from factory.families.base import Bet, Family, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)

DEFAULTS: Parameters = {
    "layers": 3,
    "width": 128,
    "number_size": 4,
    "embedding_size": 8,
    "activation": "silu",
    "dropout": 0.2,
    "optimizer": "adamw",
    "lr": 0.003,
    "weight_decay": 0.02,
}

BINS = 24
"""Bins of an embedded number, half of the authors' default."""
MOST_NUMBER_INPUTS = 1024
"""Inputs that embedded numbers take at most; of more columns each gets fewer, and beyond that none."""
TIME_USED = 0.93
"""Share of the time left over which a schedule runs; the rest is for the last validation and for writing."""
FINE_TUNING_RATE = 0.05
FINE_TUNING_EPOCHS = 0.25
"""Going on from a trained network: shares of the usual learning rate and epochs, so that it forgets little."""
FIRST_RANK = 500
"""Networks come after the classical portfolio: they need longer, and their frameworks seconds to start."""

MANY_LEVELS = 64
"""Levels above which a column may become target means instead of having an embedding."""
FEW_ROWS_A_LEVEL = 10
"""Rows to a level below which that is a bet: too few for an embedding (superstore, 4 rows: RMSE -16 %)."""

BY_ROWS = ((1_000, 32, 64), (5_000, 64, 48), (20_000, 128, 40), (100_000, 256, 24), (500_000, 512, 12))
"""(rows up to, batch size, epochs): some thousand steps whatever the size, and small sets in well under 10 s."""
BY_ROWS_MOST = (1024, 6)


class NetworkFamily(Family):
    """A tabular perceptron: dense columns and embeddings, layer normalisation, dropout, decoupled weight decay."""

    distributed = True
    iterative = True
    weighted: ClassVar[bool] = True
    learns_medians: ClassVar[bool] = True
    members: ClassVar[int] = 1
    """Perceptrons of a network, where it is not a parameter."""
    first_rank: ClassVar[int] = FIRST_RANK
    base_memory_mb: float
    """What importing and running the framework adds to a process."""

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for all tasks
        """Return the full search space."""
        return {
            "categoricals": ChoiceDimension(choices=("native", "target")),
            "layers": IntDimension(low=1, high=5),
            "width": IntDimension(low=16, high=512, log=True),
            "number_size": IntDimension(low=0, high=16),
            "embedding_size": IntDimension(low=2, high=32, log=True),
            "activation": ChoiceDimension(choices=ACTIVATIONS),
            "dropout": FloatDimension(low=0.0, high=0.5),
            "optimizer": ChoiceDimension(choices=("adamw", "sgd")),
            "lr": FloatDimension(low=1e-4, high=0.1, log=True),
            "weight_decay": FloatDimension(low=1e-6, high=0.5, log=True),
            "batch_size": ChoiceDimension(choices=BATCH_SIZES),
            "epochs": IntDimension(low=4, high=256, log=True),
        }

    @abstractmethod
    def bets(self, task: Task) -> tuple[Parameters, ...]:
        """Return what the portfolio's entries have that does not depend on the number of rows, the best bet first."""

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        """Return configurations to try first; batches grow and epochs fall with the rows."""
        sizes = next(((batch, epochs) for most, batch, epochs in BY_ROWS if shape.n_rows <= most), BY_ROWS_MOST)
        first, *others = (
            Bet({"categoricals": "native", **bet, "batch_size": sizes[0], "epochs": sizes[1]}, self.first_rank + 10 * k)
            for k, bet in enumerate(self.bets(task))
        )
        if shape.most_levels <= MANY_LEVELS or shape.n_rows >= FEW_ROWS_A_LEVEL * shape.most_levels:
            return [first, *others]
        return [first, Bet({**first.parameters, "categoricals": "target"}, first.rank + 5), *others]

    def job(
        self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext
    ) -> tuple[Job, DenseInputs]:
        """Return what is to be trained, and what a network sees of a row, which was fitted on ``train``."""
        table, head = train.table.plain, Head.of(train.y, context)
        encoding: TargetEncoding | None = None
        if parameters.get("categoricals") == "target":
            learned = replace(train, table=table, y=head.encode(train.y))
            found = TargetEncoding.fit(learned, n_classes=context.n_classes, seed=context.seed, few=MANY_LEVELS)
            if found is not None:
                encoding, table = found
        embedded = embedded_columns(table.levels)
        inputs = DenseInputs(DenseEncoder.fit(dense_part(table, embedded)), encoding)
        regression = context.task is Task.REGRESSION
        n_numbers = table.numeric.shape[1]
        number_size = min(int(parameters.get("number_size") or 0), MOST_NUMBER_INPUTS // max(n_numbers, 1))
        architecture = Architecture(
            task=context.task,
            n_outputs=1 if regression else context.n_classes,
            n_dense=inputs.encoder.n_columns,
            embedded=embedded,
            levels=tuple(table.levels[j] for j in embedded),
            embedding_size=int(parameters["embedding_size"] or 0),
            layers=int(parameters["layers"] or 0),
            width=int(parameters["width"] or 0),
            activation=parameters["activation"],
            target_mean=head.shift,
            target_scale=head.scale,
            target_low=float(train.y.min()) if regression else 0.0,
            target_high=float(train.y.max()) if regression else 0.0,
            target_learned_on=head.target_scale,
            target_top=head.top,
            members=int(parameters.get("members") or self.members),
            n_numbers=n_numbers if number_size else 0,
            number_size=number_size,
            bins=BINS if number_size and n_numbers else 0,
        )
        job = Job(
            architecture,
            _plan(parameters, context),
            _examples(replace(train, table=table), architecture, inputs.encoder),
            _watched(validation, architecture, inputs, context),
        )
        return job, inputs

    def fit(
        self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext
    ) -> NetworkModel:
        """Fit one network in this process."""
        job, inputs = self.job(train, validation=validation, parameters=parameters, context=context)
        return self.model(job, inputs, self._run(job, context))

    def resume(
        self,
        model: Model,
        train: Sample,
        *,
        validation: Sample | None,
        parameters: Parameters,
        context: FitContext,
    ) -> NetworkModel | None:
        """Fine-tune a network on new rows with a lower learning rate.

        What it sees of a row, target means too, and the scale of the target stay. With validation rows, the weights
        stay too if no epoch makes them better.
        """
        if not isinstance(model, NetworkModel):
            return None
        plan = _plan(parameters, context)
        epochs = context.rounds or max(1, round(plan.epochs * FINE_TUNING_EPOCHS))
        architecture, inputs = model.architecture, model.inputs
        if architecture.task is Task.REGRESSION and len(train):
            low, high = float(train.y.min()), float(train.y.max())
            architecture = architecture.model_copy(
                update={
                    "target_low": min(low, architecture.target_low),
                    "target_high": max(high, architecture.target_high),
                }
            )
        job = Job(
            architecture,
            plan.model_copy(update={"lr": plan.lr * FINE_TUNING_RATE, "epochs": epochs}),
            _examples(replace(train, table=inputs.seen(train.table)), architecture, inputs.encoder),
            _watched(validation, architecture, inputs, context),
            start=model.weights,
        )
        tuned = self.model(job, inputs, self._run(job, context))
        tuned.rounds += model.rounds
        return tuned

    def _run(self, job: Job, context: FitContext) -> Progress:
        alone = Group()
        learner = self.learner(job, group=alone)
        left_s = context.deadline.left_s
        time_s = left_s * TIME_USED if math.isfinite(left_s) else math.inf
        return run(job, learner, group=alone, stopped=lambda: context.stopped, time_s=time_s)

    @abstractmethod
    def learner(self, job: Job, *, group: Group) -> Learner:
        """Return a fresh copy of the network, joined with the other workers where the group is not alone."""

    def model(self, job: Job, inputs: DenseInputs, progress: Progress) -> NetworkModel:
        """Return the model with the best epoch's weights."""
        return NetworkModel(
            job.architecture,
            progress.best,
            inputs,
            rounds=progress.best_epoch,
            curve=progress.thinned_curve(),
        )

    def load(self, folder: Path) -> NetworkModel:
        """Load a network; its framework is not imported."""
        return NetworkModel.load(folder)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        """Estimate the additional memory of a fit: framework, encoded rows (twice), weights with their slots."""
        width, layers = int(parameters.get("width") or 128), int(parameters.get("layers") or 2)
        members, n_batch = int(parameters.get("members") or self.members), int(parameters.get("batch_size") or 128)
        n_dense = 2 * n_columns + 16
        n_inputs = n_dense + min(n_columns * int(parameters.get("number_size") or 0), MOST_NUMBER_INPUTS)
        n_weights = width * (n_inputs + width * (layers - 1) + n_classes)
        # A step keeps each layer's input, output and their gradients; so does a validation, for 8,192 rows in all.
        activations = 6 * max(members * n_batch, 8192) * (n_inputs + width * layers)
        return self.base_memory_mb + (3 * n_rows * n_dense + 8 * n_weights + activations) * 4 / 1e6


def _examples(rows: Sample, architecture: Architecture, encoder: DenseEncoder) -> Examples:
    """Return rows that have target means already, where the network sees them, as it takes them."""
    a, y = architecture, rows.y
    target = a.head.encode(y).astype(np.float32) if a.task is Task.REGRESSION else y.astype(np.int64)
    weight = np.ones(len(y)) if rows.weight is None else rows.weight
    return Examples(encode(rows.table, encoder, a.embedded), target, weight.astype(np.float32))


def _watched(
    validation: Sample | None, architecture: Architecture, inputs: DenseInputs, context: FitContext
) -> Examples | None:
    """Return the rows that decide which epoch is kept; a refit has none."""
    if validation is None or not len(validation) or context.rounds is not None:
        return None
    return _examples(replace(validation, table=inputs.seen(validation.table)), architecture, inputs.encoder)


def _plan(parameters: Parameters, context: FitContext) -> Plan:
    epochs = context.rounds or int(parameters["epochs"] or 0)
    return Plan(
        optimizer=parameters.get("optimizer", "adamw"),
        lr=float(parameters["lr"] or 0),
        weight_decay=float(parameters["weight_decay"] or 0),
        dropout=float(parameters["dropout"] or 0),
        batch_size=int(parameters["batch_size"] or 0),
        epochs=epochs,
        patience=max(8, epochs // 3),
        seed=context.seed,
        threads=context.threads,
        loss=context.loss,
    )
