"""What the two network families share: search space, portfolio, preparation of a job, single-process fit.

A framework's own file adds a learner and nothing else.  The job is what the
workers of a distributed fit receive, so both ways of training start from the
same arrays, weights and batches.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np

from factory.data.dense import DenseEncoder
from factory.families._epochs import Examples, Group, Job, Learner, Plan, Progress, run
from factory.families._mlp import ACTIVATIONS, Architecture, NetworkModel, dense_part, embedded_columns, encode
from factory.families.base import Bet, Family, FitContext, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)

DEFAULTS: Parameters = {
    "layers": 3,
    "width": 128,
    "embedding_size": 8,
    "activation": "silu",
    "dropout": 0.1,
    "optimizer": "adamw",
    "lr": 0.002,
    "weight_decay": 0.02,
}

_BY_ROWS = ((1_000, 32, 64), (5_000, 64, 48), (20_000, 128, 40), (100_000, 256, 24), (500_000, 512, 12))
"""(rows up to, batch size, epochs): some thousand steps whatever the size, and small sets in well under 10 s."""
_BY_ROWS_MOST = (1024, 6)


class NetworkFamily(Family):
    """A tabular perceptron: dense columns and embeddings, layer normalisation, dropout, decoupled weight decay."""

    distributed = True
    iterative = True
    base_memory_mb: float
    """What importing and running the framework adds to a process."""

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for all tasks
        """Return the full search space."""
        return {
            "layers": IntDimension(low=1, high=5),
            "width": IntDimension(low=16, high=512, log=True),
            "embedding_size": IntDimension(low=2, high=32, log=True),
            "activation": ChoiceDimension(choices=ACTIVATIONS),
            "dropout": FloatDimension(low=0.0, high=0.5),
            "optimizer": ChoiceDimension(choices=("adamw", "sgd")),
            "lr": FloatDimension(low=1e-4, high=0.1, log=True),
            "weight_decay": FloatDimension(low=1e-6, high=0.5, log=True),
            "batch_size": ChoiceDimension(choices=BATCH_SIZES),
            "epochs": IntDimension(low=4, high=256, log=True),
        }

    @property
    @abstractmethod
    def bets(self) -> tuple[Parameters, ...]:
        """What the portfolio's entries have that does not depend on the number of rows, the best bet first."""

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:  # noqa: ARG002 - the same for all tasks
        """Return configurations to try first; batches grow and epochs fall with the rows."""
        sizes = next(((batch, epochs) for most, batch, epochs in _BY_ROWS if shape.n_rows <= most), _BY_ROWS_MOST)
        return [
            Bet({**bet, "batch_size": sizes[0], "epochs": sizes[1]}, rank=10 * (k + 1))
            for k, bet in enumerate(self.bets)
        ]

    def job(
        self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext
    ) -> tuple[Job, DenseEncoder]:
        """Return what is to be trained, and the encoder that was fitted on ``train``."""
        table = train.table
        embedded = embedded_columns(table.levels)
        encoder = DenseEncoder.fit(dense_part(table, embedded))
        inputs = encode(table, encoder, embedded)
        regression = context.task is Task.REGRESSION
        mean, scale = (float(train.y.mean()), float(train.y.std()) or 1.0) if regression else (0.0, 1.0)
        architecture = Architecture(
            task=context.task,
            n_outputs=1 if regression else context.n_classes,
            n_dense=inputs.dense.shape[1],
            embedded=embedded,
            levels=tuple(table.levels[j] for j in embedded),
            embedding_size=int(parameters["embedding_size"] or 0),
            layers=int(parameters["layers"] or 0),
            width=int(parameters["width"] or 0),
            activation=parameters["activation"],
            target_mean=mean,
            target_scale=scale,
            target_low=float(train.y.min()) if regression else 0.0,
            target_high=float(train.y.max()) if regression else 0.0,
        )

        def target(y: np.ndarray) -> np.ndarray:
            return ((y - mean) / scale).astype(np.float32) if regression else y.astype(np.int64)

        watched = None
        if validation is not None and len(validation) and context.rounds is None:
            watched = Examples(encode(validation.table, encoder, embedded), target(validation.y))
        job = Job(architecture, _plan(parameters, context), Examples(inputs, target(train.y)), watched)
        return job, encoder

    def fit(
        self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext
    ) -> NetworkModel:
        """Fit one network in this process."""
        job, encoder = self.job(train, validation=validation, parameters=parameters, context=context)
        alone = Group()
        learner = self.learner(job, group=alone)
        progress = run(job, learner, group=alone, stopped=lambda: context.stopped)
        return self.model(job, encoder, progress)

    @abstractmethod
    def learner(self, job: Job, *, group: Group) -> Learner:
        """Return a fresh copy of the network, joined with the other workers where the group is not alone."""

    def model(self, job: Job, encoder: DenseEncoder, progress: Progress) -> NetworkModel:
        """Return the model with the best epoch's weights."""
        return NetworkModel(
            job.architecture,
            progress.best,
            encoder,
            rounds=progress.best_epoch,
            curve=progress.thinned_curve(),
        )

    def load(self, folder: Path) -> NetworkModel:
        """Load a network; its framework is not imported."""
        return NetworkModel.load(folder)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        """Estimate the additional memory of a fit: framework, encoded rows (twice), weights with their slots."""
        width, layers = int(parameters.get("width") or 128), int(parameters.get("layers") or 2)
        n_dense = 2 * n_columns + 16
        n_weights = width * (n_dense + width * (layers - 1) + n_classes)
        return self.base_memory_mb + (3 * n_rows * n_dense * 4 + 8 * n_weights * 4) / 1e6


def _plan(parameters: Parameters, context: FitContext) -> Plan:
    epochs = int(parameters["epochs"] or 0)
    return Plan(
        optimizer=parameters["optimizer"],
        lr=float(parameters["lr"] or 0),
        weight_decay=float(parameters["weight_decay"] or 0),
        dropout=float(parameters["dropout"] or 0),
        batch_size=int(parameters["batch_size"] or 0),
        epochs=context.rounds or epochs,
        schedule_epochs=max(epochs, context.rounds or 0),
        patience=max(8, epochs // 4),
        seed=context.seed,
        threads=context.threads,
    )
