"""A tabular network of Keras layers on TensorFlow; several workers train under MultiWorkerMirroredStrategy.

``keras.Model.fit`` fails under that strategy in Keras 3, so the step is our own.  ``optimizer.apply`` sums the
gradients over the workers itself: dividing each worker's loss by the whole batch is all that is left to do.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.families._epochs import Group, Learner
from factory.families._job import Job, Plan
from factory.families._mlp import EPSILON, Architecture, Arrays, decays, trains
from factory.families._network import DEFAULTS, FIRST_RANK, NetworkFamily
from factory.families.base import Loss
from factory.space import Parameters
from factory.spec import Task

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

_PARTS = {"kernel": "kernel", "bias": "bias", "scale": "gamma", "shift": "beta", "embedding": "embeddings"}
"""Name of an array's last part → attribute of the Keras layer that holds it."""


class KerasLearner(Learner):
    """The network as Keras layers, mirrored over the workers where there is more than one."""

    def __init__(self, job: Job, *, group: Group) -> None:
        tf = _tensorflow(job.plan.threads)
        alone = group.alone
        self._strategy = tf.distribute.get_strategy() if alone else tf.distribute.MultiWorkerMirroredStrategy()
        with self._strategy.scope():
            self._layers = _layers(job.architecture)
            self._variables = _variables(job.architecture, self._layers)
            self._trained = {name: v for name, v in self._variables.items() if trains(name)}
            self._optimizer = _optimizer(self._trained, job.plan)
        self._assign(job.initial_weights())
        self._seed = 0
        self._number = 0
        self._step = self._traced_step(job)
        self._total = tf.function(lambda values: self._strategy.run(_sum_of_replicas, args=(values,)))

    def _traced_step(self, job: Job) -> Any:
        import tensorflow as tf

        architecture, dropout = job.architecture, job.plan.dropout
        dense = tf.constant(job.train.inputs.dense)
        codes = tf.constant(job.train.inputs.codes)
        y, weight = tf.constant(job.train.y), tf.constant(job.train.weight)
        loss_of, variables = _loss(architecture.task, job.plan.loss), list(self._trained.values())

        def in_replica(rows: tf.Tensor, n_batch: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                outputs = _forward(
                    architecture, self._layers, tf.gather(dense, rows), tf.gather(codes, rows), dropout, seed
                )
                total = tf.reduce_sum(tf.gather(weight, rows) * loss_of(tf.gather(y, rows), outputs))
                loss = total / n_batch
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in variables])]
            self._optimizer.apply(gradients, variables)
            return total

        signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.float32), tf.TensorSpec([2], tf.int32)]
        return tf.function(
            lambda rows, n_batch, seed: self._strategy.run(in_replica, args=(rows, n_batch, seed)),
            input_signature=signature,
        )

    def begin_epoch(self, *, seed: int) -> None:
        self._seed, self._number = seed, 0

    def step(self, rows: np.ndarray, *, n_batch: int, lr: float) -> float:
        self._number += 1
        self._optimizer.learning_rate.assign(lr)
        return float(self._step(rows, np.float32(n_batch), np.array([self._seed, self._number], np.int32)))

    def total(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._total(values.astype(np.float64)))

    def weights(self) -> Arrays:
        return {name: np.array(variable.numpy()) for name, variable in self._variables.items()}

    def state(self) -> Arrays:
        slots = {f"slot{i}": np.array(v.numpy()) for i, v in enumerate(self._optimizer.variables)}
        return self.weights() | slots

    def restore(self, state: Arrays) -> None:
        self._assign(state)
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"slot{i}"])

    def _assign(self, weights: Arrays) -> None:
        for name, variable in self._variables.items():
            variable.assign(weights[name])


def _tensorflow(threads: int) -> Any:
    """Import TensorFlow, held to some threads; they can be set once in a process, before the first operation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(max(1, threads))
        tf.config.threading.set_inter_op_parallelism_threads(max(1, threads))
        # One replica a worker: the share of a batch is counted in workers.
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
    except RuntimeError as error:
        logger.debug("TensorFlow was running before, its threads stay as they are: %s", error)
    return tf


def _sum_of_replicas(values: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    # The copy lies on the replica's device; the argument itself lies on none, and the sum is refused.
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))


def _layers(architecture: Architecture) -> dict[str, Any]:
    """Return name → built Keras layer, ``layer0`` and ``layer0_norm`` for each hidden one, or variable of numbers."""
    import keras

    layers: dict[str, Any] = {
        name: keras.Variable(np.zeros(shape, np.float32), trainable=trains(name), name=name)
        for name, shape in architecture.shapes().items()
        if name.startswith(("bins_", "numbers_"))
    }
    for j, (n, size) in enumerate(zip(architecture.levels, architecture.embedding_sizes, strict=True)):
        layers[f"embedding{j}"] = keras.layers.Embedding(n, size)
        layers[f"embedding{j}"].build((None,))
    fan_in = architecture.n_inputs
    for i in range(architecture.layers):
        layers[f"layer{i}"] = keras.layers.Dense(architecture.width)
        layers[f"layer{i}"].build((None, fan_in))
        fan_in = architecture.width
        layers[f"layer{i}_norm"] = keras.layers.LayerNormalization(epsilon=EPSILON)
        layers[f"layer{i}_norm"].build((None, fan_in))
    layers["output"] = keras.layers.Dense(architecture.n_outputs)
    layers["output"].build((None, fan_in))
    return layers


def _variables(architecture: Architecture, layers: dict[str, Any]) -> dict[str, Any]:
    """Return array name → Keras variable."""
    variables = {}
    for name in architecture.shapes():
        if name.startswith(("bins_", "numbers_")):
            variables[name] = layers[name]
            continue
        layer, _, part = name.rpartition("_")
        if name.startswith("embedding"):
            layer, part = name, "embedding"
        elif part in ("scale", "shift"):
            layer = f"{layer}_norm"
        variables[name] = getattr(layers[layer], _PARTS[part])
    return variables


def _forward(
    architecture: Architecture,
    layers: dict[str, Any],
    dense: tf.Tensor,
    codes: tf.Tensor,
    dropout: float,
    seed: tf.Tensor,
) -> tf.Tensor:
    import keras
    import tensorflow as tf

    activate = keras.activations.get(architecture.activation)
    parts = [dense]
    if n := architecture.n_numbers:
        numbers = dense[:, :n, None]
        code = tf.clip_by_value((numbers - layers["bins_start"].value) * layers["bins_slope"].value, 0, 1)
        embedded = tf.einsum("nfb,fbd->nfd", code, layers["numbers_kernel"].value)
        embedded += numbers * layers["numbers_slope"].value + layers["numbers_bias"].value
        parts = [tf.reshape(embedded, [-1, n * architecture.number_size]), dense[:, n:]]
    parts += [layers[f"embedding{j}"](codes[:, j]) for j in range(len(architecture.embedded))]
    x = tf.concat(parts, axis=1)
    for i in range(architecture.layers):
        x = activate(layers[f"layer{i}_norm"](layers[f"layer{i}"](x)))
        if dropout > 0:
            # Stateless: a seed variable of Keras' own cannot be written from within a replica, nor be resumed.
            x = tf.nn.experimental.stateless_dropout(x, dropout, seed=seed + tf.constant([0, 1_000_003 * (i + 1)]))
    return layers["output"](x)


def _optimizer(variables: dict[str, Any], plan: Plan) -> Any:
    """Return AdamW (Loshchilov and Hutter 2019), or SGD without momentum; weight decay is decoupled in both."""
    import keras

    common = {"learning_rate": plan.lr, "weight_decay": plan.weight_decay}
    if plan.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**common, epsilon=1e-8)
    else:
        optimizer = keras.optimizers.SGD(**common)
    optimizer.exclude_from_weight_decay(var_list=[v for name, v in variables.items() if not decays(name)])
    optimizer.build(list(variables.values()))
    return optimizer


def _loss(task: Task, of_numbers: Loss) -> Any:
    """Return the function (y, outputs) → each row's loss."""
    import tensorflow as tf

    if task is Task.REGRESSION:
        error = tf.abs if of_numbers == "absolute" else tf.square
        return lambda y, outputs: error(outputs[:, 0] - y)
    return lambda y, outputs: tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=outputs)


class KerasNetwork(NetworkFamily):
    """A tabular network trained with Keras on TensorFlow."""

    name = "keras_network"
    framework = "tensorflow"
    pool = "tensorflow"
    base_memory_mb = 500.0

    first_rank = FIRST_RANK + 100

    def bets(self, task: Task) -> tuple[Parameters, ...]:  # noqa: ARG002 - the same for all tasks
        """Return one network, unlike those of PyTorch."""
        return ({**DEFAULTS, "activation": "relu", "layers": 2, "lr": 0.002},)

    def learner(self, job: Job, *, group: Group) -> KerasLearner:
        """Return a fresh copy of the network."""
        return KerasLearner(job, group=group)


PLUGIN = KerasNetwork()
