"""The tabular perceptron as plain arrays: what it is, how it predicts, how it lies on disk.

Both network families train the same architecture and leave only arrays behind.
Prediction is a forward pass in numpy, so a variant that holds a network serves
without importing PyTorch or TensorFlow: hundreds of MB and seconds less in
each replica, and one row costs tens of microseconds instead of milliseconds.

Layout of the weights, all float32 (shape suffixes: L levels, E embedding
size, I inputs, W width, O outputs)::

    embedding{j}      (L_j, E_j)      one for each embedded column; row 0 is missing or unseen
    layer{i}_kernel   (I, W)          layer{i}_bias, layer{i}_scale, layer{i}_shift   (W,)
    output_kernel     (W, O)          output_bias   (O,)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from factory.data.dense import DenseEncoder
from factory.data.preparation import Table
from factory.errors import UntrustedBundle
from factory.families.base import Model
from factory.spec import CurvePoint, Document, Task

Arrays = dict[str, np.ndarray]
Activation = Literal["relu", "silu", "elu"]

ACTIVATIONS: tuple[Activation, ...] = ("silu", "relu", "elu")
EPSILON = 1e-5
"""Added to the variance in layer normalisation; the same in all three implementations."""

FORMAT = 1
_CHUNK_ROWS = 8192
_ONE_HOT_MAX_LEVELS = 9
"""Columns with more codes than this are embedded, the others one-hot: 8 categories as in RealMLP
(Holzmüller, Grinsztajn, Steinwart 2024), and the code for missing."""


class Architecture(Document):
    """Everything about a network that is not a weight."""

    task: Task
    n_outputs: int
    n_dense: int
    embedded: tuple[int, ...]
    """Indices of the categorical columns that have an embedding; the rest goes through the dense encoder."""
    levels: tuple[int, ...]
    """Number of codes of each embedded column."""
    embedding_size: int
    layers: int
    width: int
    activation: Activation
    target_mean: float = 0.0
    target_scale: float = 1.0
    target_low: float = 0.0
    target_high: float = 0.0

    @property
    def embedding_sizes(self) -> tuple[int, ...]:
        """Size of each embedding; a column of few levels needs less than the full size."""
        return tuple(min(self.embedding_size, (n + 1) // 2) for n in self.levels)

    @property
    def n_inputs(self) -> int:
        """Width of the first layer's input."""
        return self.n_dense + sum(self.embedding_sizes)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of every array, in the order of the forward pass."""
        shapes: dict[str, tuple[int, ...]] = {
            f"embedding{j}": size for j, size in enumerate(zip(self.levels, self.embedding_sizes, strict=True))
        }
        fan_in = self.n_inputs
        for i in range(self.layers):
            shapes[f"layer{i}_kernel"] = (fan_in, self.width)
            shapes |= {f"layer{i}_{name}": (self.width,) for name in ("bias", "scale", "shift")}
            fan_in = self.width
        return shapes | {"output_kernel": (fan_in, self.n_outputs), "output_bias": (self.n_outputs,)}


def initial_weights(architecture: Architecture, *, output_bias: np.ndarray, seed: int) -> Arrays:
    """Return the weights that training starts from, equal in every framework and every worker.

    The output layer starts at zero, so the untrained network predicts ``output_bias`` (the class prior or the mean).
    Kernels are drawn with variance 1 / inputs (LeCun, Bottou, Orr, Müller 1998).
    """
    rng = np.random.default_rng(seed)
    weights: Arrays = {}
    for name, shape in architecture.shapes().items():
        if name.startswith("embedding"):
            weights[name] = rng.normal(0.0, 0.1, shape).astype(np.float32)
            weights[name][0] = 0.0
        elif name.endswith("_kernel") and name != "output_kernel":
            weights[name] = rng.normal(0.0, shape[0] ** -0.5, shape).astype(np.float32)
        else:
            weights[name] = np.full(shape, 1.0 if name.endswith("_scale") else 0.0, np.float32)
    weights["output_bias"] = output_bias.astype(np.float32)
    return weights


def decays(name: str) -> bool:
    """Whether weight decay applies to an array: to kernels and embeddings, not to biases and normalisation."""
    return name.endswith("_kernel") or name.startswith("embedding")


@dataclass(frozen=True)
class Inputs:
    """What the first layer sees.

    Attributes:
        dense: float32 (n_rows, n_dense), without NaN.
        codes: int32 (n_rows, n_embedded).
    """

    dense: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.dense)

    def rows(self, index: np.ndarray | slice) -> Inputs:
        """Return some of the rows."""
        return Inputs(self.dense[index], self.codes[index])


def embedded_columns(levels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the indices of the categorical columns that get an embedding."""
    return tuple(j for j, n in enumerate(levels) if n > _ONE_HOT_MAX_LEVELS)


def dense_part(table: Table, embedded: tuple[int, ...]) -> Table:
    """Return the table without the embedded columns."""
    if not embedded:
        return table
    kept = [j for j in range(len(table.levels)) if j not in embedded]
    return Table(
        numeric=table.numeric,
        codes=table.codes[:, kept],
        levels=tuple(table.levels[j] for j in kept),
        numeric_names=table.numeric_names,
        categorical_names=tuple(table.categorical_names[j] for j in kept),
    )


def encode(table: Table, encoder: DenseEncoder, embedded: tuple[int, ...]) -> Inputs:
    """Return the network's inputs for a table."""
    return Inputs(encoder.transform(dense_part(table, embedded)), table.codes[:, list(embedded)])


def forward(architecture: Architecture, weights: Mapping[str, np.ndarray], inputs: Inputs) -> np.ndarray:
    """Return the raw outputs, float32 (n_rows, n_outputs): logits, or the standardised target."""
    chunks = [
        _forward(architecture, weights, inputs.rows(slice(start, start + _CHUNK_ROWS)))
        for start in range(0, len(inputs), _CHUNK_ROWS)
    ]
    return np.concatenate(chunks) if chunks else np.zeros((0, architecture.n_outputs), np.float32)


def _forward(architecture: Architecture, weights: Mapping[str, np.ndarray], inputs: Inputs) -> np.ndarray:
    embeddings = [weights[f"embedding{j}"][inputs.codes[:, j]] for j in range(len(architecture.embedded))]
    x = np.concatenate([inputs.dense, *embeddings], axis=1) if embeddings else inputs.dense
    for i in range(architecture.layers):
        x = x @ weights[f"layer{i}_kernel"]
        x += weights[f"layer{i}_bias"]
        x -= x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.einsum("nw,nw->n", x, x)[:, None] / x.shape[1] + EPSILON)
        x *= weights[f"layer{i}_scale"]
        x += weights[f"layer{i}_shift"]
        x = _activate(x, architecture.activation)
    return np.asarray(x @ weights["output_kernel"] + weights["output_bias"], np.float32)


def _activate(x: np.ndarray, activation: Activation) -> np.ndarray:
    if activation == "relu":
        return np.asarray(np.maximum(x, 0))
    if activation == "silu":
        return np.asarray(x * (0.5 + 0.5 * np.tanh(0.5 * x)))
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def losses(task: Task, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return each row's loss, float64 (n_rows,): cross-entropy in nats, or the squared standardised error."""
    z = outputs.astype(np.float64)
    if task is Task.REGRESSION:
        return np.asarray((z[:, 0] - y) ** 2)
    top = z.max(axis=1)
    return np.asarray(np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(y)), y])


class NetworkModel(Model):
    """A trained network, whichever framework trained it."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Arrays,
        encoder: DenseEncoder,
        *,
        rounds: int = 0,
        curve: tuple[CurvePoint, ...] = (),
    ) -> None:
        self.architecture = architecture
        self.weights = weights
        self.encoder = encoder
        self.rounds = rounds
        self.curve = curve

    def predict(self, table: Table) -> np.ndarray:
        """Return probabilities float64 (n_rows, n_classes), or predictions float64 (n_rows,).

        A regression never leaves the range of the targets seen in training, as a tree ensemble would not.
        """
        a = self.architecture
        z = forward(a, self.weights, encode(table, self.encoder, a.embedded)).astype(np.float64)
        if a.task is Task.REGRESSION:
            return np.clip(z[:, 0] * a.target_scale + a.target_mean, a.target_low, a.target_high)
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(z / z.sum(axis=1, keepdims=True))

    def save(self, folder: Path) -> None:
        """Write ``network.json``, ``network.safetensors`` and ``encoder.npz``."""
        from safetensors.numpy import save_file

        save_file({name: np.asarray(w, order="C") for name, w in self.weights.items()}, folder / "network.safetensors")
        np.savez(folder / "encoder.npz", allow_pickle=False, **self.encoder.arrays())
        document = {
            "format": FORMAT,
            "architecture": self.architecture.model_dump(mode="json"),
            "rounds": self.rounds,
            "curve": [point.model_dump(mode="json") for point in self.curve],
        }
        (folder / "network.json").write_text(json.dumps(document, indent=1))

    @classmethod
    def load(cls, folder: Path) -> NetworkModel:
        """Load what :meth:`save` wrote; no framework is imported.

        Raises:
            UntrustedBundle: the folder holds another format, or arrays that do not fit the architecture.
        """
        from safetensors.numpy import load_file

        document = json.loads((folder / "network.json").read_text())
        if document["format"] != FORMAT:
            raise UntrustedBundle(
                f"Network format {document['format']!r} is not known; this version reads format {FORMAT}.",
                hint="Load it with the version of the factory that wrote it.",
            )
        architecture = Architecture.model_validate(document["architecture"])
        weights = load_file(folder / "network.safetensors")
        if {name: w.shape for name, w in weights.items()} != architecture.shapes():
            raise UntrustedBundle(
                f"The weights in {str(folder)!r} do not fit their architecture.",
                hint="The files were changed after they were written; make the variant again.",
            )
        with np.load(folder / "encoder.npz", allow_pickle=False) as arrays:
            encoder = DenseEncoder.from_arrays(dict(arrays))
        curve = tuple(CurvePoint.model_validate(point) for point in document["curve"])
        return cls(architecture, weights, encoder, rounds=document["rounds"], curve=curve)
