"""The tabular perceptron as plain arrays: what it is, how it predicts, how it lies on disk.

All network families train the same architecture and leave only arrays behind.
Prediction is a forward pass in numpy, so a variant that holds a network serves
without importing PyTorch or TensorFlow: hundreds of MB and seconds less in
each replica, and one row costs tens of microseconds instead of milliseconds.

A network is one perceptron with layer normalisation, or, with ``members`` above
one, TabM (Gorishniy, Kotelnikov, Babenko 2024): that many perceptrons that
share their kernels, each with scales of its own before and after a kernel.

Layout of the weights, all float32 (shape suffixes: F numbers, B bins, D size
of a number's embedding, L levels, E embedding size, I inputs, W width, O
outputs, M members)::

    bins_start, bins_slope   (F, B)      piecewise-linear code of a number; fixed, not trained
    numbers_kernel    (F, B, D)          numbers_slope, numbers_bias   (F, D)
    embedding{j}      (L_j, E_j)         one for each embedded column; row 0 is missing or unseen
    layer{i}_kernel   (I, W)             layer{i}_bias   (W,)
    output_kernel     (W, O)             output_bias     (O,)

    one member:       layer{i}_scale, layer{i}_shift   (W,)
    TabM:             layer{i}_in   (M, I),   layer{i}_out, layer{i}_bias   (M, W)
                      output_kernel (M, W, O), output_bias   (M, O)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from factory.data.dense import DenseEncoder
from factory.data.graph import DrawnTable
from factory.data.preparation import Table
from factory.errors import UntrustedBundle
from factory.families._dense_inputs import DenseInputs, dense_part
from factory.families._head import Head, TargetScale
from factory.families.base import Loss, Model
from factory.spec import CurvePoint, Document, Task

Arrays = dict[str, np.ndarray]
Activation = Literal["relu", "silu", "elu"]

ACTIVATIONS: tuple[Activation, ...] = ("silu", "relu", "elu")
EPSILON = 1e-5
"""Added to the variance in layer normalisation; the same in all three implementations."""

FORMAT = 1
_CHUNK_ROWS = 8192
_LEAST_BIN = 1e-3
"""Standard deviations that a bin is wide at least: a narrower one is a tie, and its slope would blow up."""


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
    target_learned_on: TargetScale = "raw"
    target_top: float | None = None
    """Largest answer on that scale."""
    members: int = 1
    n_numbers: int = 0
    """The first so many dense columns are numbers that are embedded."""
    number_size: int = 0
    bins: int = 0

    @property
    def head(self) -> Head:
        """How an output becomes a prediction."""
        n_classes = 0 if self.task is Task.REGRESSION else self.n_outputs
        return Head(
            self.task,
            n_classes,
            self.target_mean,
            self.target_scale,
            target_scale=self.target_learned_on,
            top=self.target_top,
        )

    @property
    def embedding_sizes(self) -> tuple[int, ...]:
        """Size of each embedding; a column of few levels needs less than the full size."""
        return tuple(min(self.embedding_size, (n + 1) // 2) for n in self.levels)

    @property
    def n_inputs(self) -> int:
        """Width of the first layer's input."""
        return self.n_dense + self.n_numbers * (self.number_size - 1) + sum(self.embedding_sizes)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of every array, in the order of the forward pass."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.n_numbers:
            shapes |= {f"bins_{name}": (self.n_numbers, self.bins) for name in ("start", "slope")}
            shapes["numbers_kernel"] = (self.n_numbers, self.bins, self.number_size)
            shapes |= {f"numbers_{name}": (self.n_numbers, self.number_size) for name in ("slope", "bias")}
        shapes |= {f"embedding{j}": size for j, size in enumerate(zip(self.levels, self.embedding_sizes, strict=True))}
        fan_in, each = self.n_inputs, () if self.members == 1 else (self.members,)
        for i in range(self.layers):
            shapes[f"layer{i}_kernel"] = (fan_in, self.width)
            shapes[f"layer{i}_bias"] = (*each, self.width)
            if self.members == 1:
                shapes |= {f"layer{i}_{name}": (self.width,) for name in ("scale", "shift")}
            else:
                shapes |= {f"layer{i}_in": (*each, fan_in), f"layer{i}_out": (*each, self.width)}
            fan_in = self.width
        return shapes | {"output_kernel": (*each, fan_in, self.n_outputs), "output_bias": (*each, self.n_outputs)}


def initial_weights(
    architecture: Architecture, *, output_bias: np.ndarray, edges: tuple[np.ndarray, ...], seed: int
) -> Arrays:
    """Return the weights that training starts from, equal in every framework and every worker.

    The output layer starts at zero, so the untrained network predicts ``output_bias`` (the class prior or the mean).
    Kernels are drawn with variance 1 / inputs (LeCun, Bottou, Orr, Müller 1998). Members differ by the scales before
    their first kernel alone, one normal draw for each feature; all other scales start at one (TabM's paper, where the
    piecewise-linear part of a number's embedding starts at zero as well).

    Args:
        output_bias: Float (n_outputs,).
        edges: Edges of the bins of each embedded number, ascending.
        seed: Seed of the draws.
    """
    a, rng, weights = architecture, np.random.default_rng(seed), {}
    for name, shape in a.shapes().items():
        if name.startswith("embedding"):
            weights[name] = rng.normal(0.0, 0.1 if a.members == 1 else 0.3, shape).astype(np.float32)
            weights[name][0] = 0.0
        elif name == "numbers_slope":
            weights[name] = rng.uniform(-1.0, 1.0, shape).astype(np.float32)
        elif name.endswith("_kernel") and not name.startswith(("output", "numbers")):
            weights[name] = rng.normal(0.0, shape[0] ** -0.5, shape).astype(np.float32)
        elif name == "layer0_in":
            sizes = [a.number_size] * a.n_numbers + [1] * (a.n_dense - a.n_numbers) + list(a.embedding_sizes)
            weights[name] = np.repeat(rng.normal(size=(a.members, len(sizes))), sizes, axis=1).astype(np.float32)
        else:
            weights[name] = np.full(shape, 1.0 if name.endswith(("_scale", "_in", "_out")) else 0.0, np.float32)
    for j, known in enumerate(edges):
        weights["bins_start"][j, : len(known) - 1] = known[:-1]
        weights["bins_slope"][j, : len(known) - 1] = 1 / np.diff(known)
    weights["output_bias"][:] = output_bias
    return weights


def bin_edges(numbers: np.ndarray, *, bins: int) -> tuple[np.ndarray, ...]:
    """Return the edges between which each number's code rises, ascending; one where a column is constant.

    Piecewise-linear encoding of Gorishniy, Rubachev and Babenko (2022). Edges are quantiles; those that coincide, since
    many rows have one value, become quantiles of the distinct values instead, so that the other rows are seen too.

    Args:
        numbers: Standardised columns, float32 (n_rows, n_numbers).
        bins: Most bins of a column.
    """
    edges = []
    for column in numbers.T:
        distinct = np.unique(column)
        if len(distinct) > bins + 1:
            quantiles = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)))
            others = np.quantile(distinct, np.linspace(0, 1, bins + 3 - len(quantiles)))
            distinct = np.unique(np.concatenate([quantiles, others]))
        kept = [distinct[0]]
        for edge in distinct[1:]:
            if edge - kept[-1] >= _LEAST_BIN:
                kept.append(edge)
        edges.append(np.array(kept, dtype=np.float32))
    return tuple(edges)


def decays(name: str) -> bool:
    """Whether weight decay applies to an array: to kernels and embeddings, not to biases, scales and normalisation."""
    return name.endswith("_kernel") or name.startswith("embedding")


def trains(name: str) -> bool:
    """Whether an array is moved by training; the bins of the numbers are not."""
    return not name.startswith("bins_")


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


def encode(table: Table, encoder: DenseEncoder, embedded: tuple[int, ...]) -> Inputs:
    """Return the network's inputs for a table that has target means already, where the network sees them."""
    return Inputs(encoder.transform(dense_part(table, embedded)), table.codes[:, list(embedded)])


def forward(architecture: Architecture, weights: Mapping[str, np.ndarray], inputs: Inputs) -> np.ndarray:
    """Return the raw outputs, float32 (n_rows, n_outputs): logits, or the standardised target.

    Of several members it is their mean: of targets, or of probabilities, whose logarithms are returned.
    """
    one = _perceptron if architecture.members == 1 else _members
    size = max(1, _CHUNK_ROWS // architecture.members)
    chunks = [
        one(architecture, weights, _features(architecture, weights, inputs.rows(slice(start, start + size))))
        for start in range(0, len(inputs), size)
    ]
    return np.concatenate(chunks) if chunks else np.zeros((0, architecture.n_outputs), np.float32)


def _features(architecture: Architecture, weights: Mapping[str, np.ndarray], inputs: Inputs) -> np.ndarray:
    """Return what the first kernel sees, float32 (n_rows, n_inputs): numbers, other dense columns, categories."""
    parts = [inputs.dense]
    if n := architecture.n_numbers:
        x = inputs.dense[:, :n, None]
        codes = x - weights["bins_start"]
        codes *= weights["bins_slope"]
        np.clip(codes, 0, 1, out=codes)
        embedded = np.matmul(codes.transpose(1, 0, 2), weights["numbers_kernel"]).transpose(1, 0, 2)
        embedded = embedded + x * weights["numbers_slope"] + weights["numbers_bias"]
        parts = [embedded.reshape(len(x), -1), inputs.dense[:, n:]]
    parts += [weights[f"embedding{j}"][inputs.codes[:, j]] for j in range(len(architecture.embedded))]
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _perceptron(architecture: Architecture, weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for i in range(architecture.layers):
        x = x @ weights[f"layer{i}_kernel"]
        x += weights[f"layer{i}_bias"]
        x -= x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.einsum("nw,nw->n", x, x)[:, None] / x.shape[1] + EPSILON)
        x *= weights[f"layer{i}_scale"]
        x += weights[f"layer{i}_shift"]
        x = _activate(x, architecture.activation)
    return np.asarray(x @ weights["output_kernel"] + weights["output_bias"], np.float32)


def _members(architecture: Architecture, weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    shape_MN = architecture.members, len(x)
    x = np.broadcast_to(x, (architecture.members, *x.shape))
    for i in range(architecture.layers):
        x = x * weights[f"layer{i}_in"][:, None]
        # One product of many rows is several times as fast as one for each member, for a single row above all.
        x = (x.reshape(-1, x.shape[2]) @ weights[f"layer{i}_kernel"]).reshape(*shape_MN, -1)
        x *= weights[f"layer{i}_out"][:, None]
        x += weights[f"layer{i}_bias"][:, None]
        x = _activate(x, architecture.activation)
    z_MNO = np.matmul(x, weights["output_kernel"]) + weights["output_bias"][:, None]
    if architecture.task is Task.REGRESSION:
        return np.asarray(z_MNO.mean(axis=0), np.float32)
    z_MNO -= z_MNO.max(axis=2, keepdims=True)
    shares = np.exp(z_MNO)
    shares /= shares.sum(axis=2, keepdims=True)
    return np.asarray(np.log(np.maximum(shares.mean(axis=0), np.finfo(np.float32).tiny)), np.float32)


def _activate(x: np.ndarray, activation: Activation) -> np.ndarray:
    if activation == "relu":
        return np.asarray(np.maximum(x, 0))
    if activation == "silu":
        return np.asarray(x * (0.5 + 0.5 * np.tanh(0.5 * x)))
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def losses(task: Task, outputs: np.ndarray, y: np.ndarray, *, loss: Loss = "squared") -> np.ndarray:
    """Return each row's loss, float64 (n_rows,): cross-entropy in nats, or that error of the standardised target."""
    z = outputs.astype(np.float64)
    if task is Task.REGRESSION:
        errors = z[:, 0] - y
        return np.asarray(np.abs(errors) if loss == "absolute" else errors**2)
    top = z.max(axis=1)
    return np.asarray(np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(y)), y])


class NetworkModel(Model):
    """A trained network, whichever framework trained it."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Arrays,
        inputs: DenseInputs,
        *,
        rounds: int = 0,
        curve: tuple[CurvePoint, ...] = (),
    ) -> None:
        self.architecture = architecture
        self.weights = weights
        self.inputs = inputs
        self.rounds = rounds
        self.curve = curve

    def predict(self, table: Table) -> np.ndarray:
        """Return probabilities float64 (n_rows, n_classes), or predictions float64 (n_rows,).

        A regression never leaves the range of the targets seen in training, as a tree ensemble would not.
        """
        a = self.architecture
        z = forward(a, self.weights, encode(self.inputs.seen(table), self.inputs.encoder, a.embedded)).astype(
            np.float64
        )
        if a.task is Task.REGRESSION:
            return np.asarray(np.clip(a.head.decode(z[:, 0]), a.target_low, a.target_high))
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(z / z.sum(axis=1, keepdims=True))

    def draw(self, table: DrawnTable) -> str:
        from factory.families._drawn_network import draw

        return draw(self.architecture, self.weights, self.inputs, table)

    def save(self, folder: Path) -> None:
        """Write ``network.json``, ``network.safetensors`` and ``encoder.npz``."""
        from safetensors.numpy import save_file

        save_file({name: np.asarray(w, order="C") for name, w in self.weights.items()}, folder / "network.safetensors")
        np.savez(folder / "encoder.npz", allow_pickle=False, **self.inputs.arrays(prefix=""))
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
            inputs = DenseInputs.from_arrays(dict(arrays), prefix="")
        curve = tuple(CurvePoint.model_validate(point) for point in document["curve"])
        return cls(architecture, weights, inputs, rounds=document["rounds"], curve=curve)
