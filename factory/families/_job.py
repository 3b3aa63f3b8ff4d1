"""What a network is trained on and where its training stands: documents that travel between processes.

A :class:`Job` is the same in every worker; a :class:`Progress` is a checkpoint, and in the end the result.  Both are
written as JSON and safetensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from factory.families._mlp import Architecture, Arrays, Inputs, bin_edges, initial_weights
from factory.families.base import Loss
from factory.spec import CurvePoint, Document, Task

CURVE_POINTS = 200


class Plan(Document):
    """How the weights are moved."""

    optimizer: Literal["adamw", "sgd"]
    lr: float
    weight_decay: float
    dropout: float
    batch_size: int
    """Rows of a batch over all workers."""
    epochs: int
    patience: int
    """Epochs without a better validation loss after which training ends."""
    loss: Loss = "squared"
    """Of a regression."""
    seed: int
    threads: int

    def lr_at(self, done: float) -> float:
        """Return the learning rate: a cosine down to zero (Loshchilov and Hutter 2017), without restarts.

        Args:
            done: Share of the training that is done, from 0 to 1.
        """
        return 0.5 * self.lr * (1 + math.cos(math.pi * min(done, 1.0)))

    def noise_seed(self, epoch: int, rank: int) -> int:
        """Return the seed of one epoch's dropout; a resumed epoch draws what it would have drawn."""
        return int(np.random.SeedSequence([self.seed, epoch, rank]).generate_state(1)[0] >> 2)

    def batches(self, n_rows: int, epoch: int) -> list[np.ndarray]:
        """Return the row indices of each batch of an epoch; sizes differ by one row at most."""
        order = np.random.default_rng([self.seed, epoch]).permutation(n_rows)
        return np.array_split(order, max(1, n_rows // self.batch_size))


@dataclass(frozen=True)
class Examples:
    """Encoded rows and what is to be learned from them.

    Attributes:
        inputs: What the first layer sees, n_rows rows.
        y: Class indices int64 (n_rows,), or standardised targets float32 (n_rows,).
        weight: Weight of each row in the loss, float32 (n_rows,) with mean 1.
    """

    inputs: Inputs
    y: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def share(self, rank: int, world: int) -> Examples:
        """Return every ``world``-th row."""
        mine = slice(rank, None, world)
        return Examples(self.inputs.rows(mine), self.y[mine], self.weight[mine])


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train.

    Attributes:
        start: Weights that training goes on from; None starts anew.
    """

    architecture: Architecture
    plan: Plan
    train: Examples
    validation: Examples | None
    start: Arrays | None = None

    def initial_weights(self) -> Arrays:
        """Return the starting weights: the output bias is the log of the smoothed class shares, or zero."""
        if self.start is not None:
            return {name: array.copy() for name, array in self.start.items()}
        a, y = self.architecture, self.train.y
        if a.task is Task.REGRESSION:
            bias = np.zeros(1)
        else:
            shares = np.bincount(y, weights=self.train.weight, minlength=a.n_outputs)
            bias = np.log((shares + 1) / (len(y) + a.n_outputs))
        edges = bin_edges(self.train.inputs.dense[:, : a.n_numbers], bins=a.bins)
        return initial_weights(a, output_bias=bias, edges=edges, seed=self.plan.seed)

    def save(self, folder: Path) -> None:
        """Write ``job.json`` and ``job.safetensors``."""
        from safetensors.numpy import save_file

        parts = {"train": self.train, "validation": self.validation}
        arrays = {
            f"{part}.{name}": np.asarray(array, order="C")
            for part, examples in parts.items()
            if examples is not None
            for name, array in (
                ("dense", examples.inputs.dense),
                ("codes", examples.inputs.codes),
                ("y", examples.y),
                ("weight", examples.weight),
            )
        }
        arrays |= {f"start.{name}": np.asarray(array, order="C") for name, array in (self.start or {}).items()}
        save_file(arrays, folder / "job.safetensors")
        document = {
            "architecture": self.architecture.model_dump(mode="json"),
            "plan": self.plan.model_dump(mode="json"),
        }
        (folder / "job.json").write_text(json.dumps(document))

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Load what :meth:`save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(folder / "job.safetensors")
        document = json.loads((folder / "job.json").read_text())

        def examples(part: str) -> Examples:
            inputs = Inputs(arrays[f"{part}.dense"], arrays[f"{part}.codes"])
            return Examples(inputs, arrays[f"{part}.y"], arrays[f"{part}.weight"])

        start = {n.removeprefix("start."): a for n, a in arrays.items() if n.startswith("start.")}
        return cls(
            Architecture.model_validate(document["architecture"]),
            Plan.model_validate(document["plan"]),
            examples("train"),
            examples("validation") if "validation.y" in arrays else None,
            start or None,
        )


@dataclass(frozen=True)
class Progress:
    """Where training stands after an epoch: a checkpoint, and in the end the result.

    Attributes:
        epochs: Epochs that are complete.
        state: The learner's current weights and optimiser slots.
        best: The weights to keep.
        best_epoch: The epoch (from 1) that they are from; 0 for what training started from.
        best_loss: Their validation loss; infinite where nothing is validated.
        curve: One point for each epoch.
    """

    epochs: int
    state: Arrays
    best: Arrays
    best_epoch: int = 0
    best_loss: float = math.inf
    curve: tuple[CurvePoint, ...] = ()

    def thinned_curve(self) -> tuple[CurvePoint, ...]:
        """Return at most 200 points of the learning curve."""
        return self.curve[:: max(1, math.ceil(len(self.curve) / CURVE_POINTS))]

    def save(self, folder: Path) -> None:
        """Write ``progress.safetensors``, then ``progress.json``."""
        from safetensors.numpy import save_file

        parts = {"state": self.state, "best": self.best}
        arrays = {f"{part}.{name}": np.asarray(a, order="C") for part, of in parts.items() for name, a in of.items()}
        save_file(arrays, folder / "progress.safetensors")
        document = {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "curve": [point.model_dump(mode="json") for point in self.curve],
        }
        (folder / "progress.json").write_text(json.dumps(document))

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Load what :meth:`save` wrote."""
        from safetensors.numpy import load_file

        document = json.loads((folder / "progress.json").read_text())
        arrays = load_file(folder / "progress.safetensors")
        best_loss = document["best_loss"]
        return cls(
            epochs=document["epochs"],
            state={n.removeprefix("state."): a for n, a in arrays.items() if n.startswith("state.")},
            best={n.removeprefix("best."): a for n, a in arrays.items() if n.startswith("best.")},
            best_epoch=document["best_epoch"],
            best_loss=math.inf if best_loss is None else best_loss,
            curve=tuple(CurvePoint.model_validate(point) for point in document["curve"]),
        )
