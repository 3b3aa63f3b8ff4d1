"""A network as a part of an ONNX graph: the forward pass of :mod:`factory.families._mlp`, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from factory.data.graph import DOUBLE, DrawnTable, Graph
from factory.families._dense_inputs import DenseInputs
from factory.families._mlp import EPSILON, Activation, Architecture
from factory.spec import Task


def draw(architecture: Architecture, weights: Mapping[str, np.ndarray], inputs: DenseInputs, table: DrawnTable) -> str:
    """Draw a network's answer; see :meth:`factory.families.base.Model.draw`."""
    a, graph, table = architecture, table.graph, inputs.draw_seen(table.plain)
    kept = [j for j in range(len(table.levels)) if j not in a.embedded]
    codes = None if table.codes is None or not kept else graph.columns(table.codes, kept)
    dense = inputs.encoder.draw(replace(table, codes=codes, levels=tuple(table.levels[j] for j in kept)))
    x = _features(a, weights, dense, table)
    answer = graph.cast((_one if a.members == 1 else _several)(a, weights, graph, x), DOUBLE)
    if a.task is not Task.REGRESSION:
        return answer
    inside = graph.add("Max", a.head.draw(graph, answer), np.array(a.target_low))
    return graph.add("Min", inside, np.array(a.target_high))


def _features(a: Architecture, weights: Mapping[str, np.ndarray], dense: str, table: DrawnTable) -> str:
    graph, parts = table.graph, [dense]
    if n := a.n_numbers:
        x = graph.unsqueeze(graph.columns(dense, range(n)), 2)
        codes = graph.add("Mul", graph.add("Sub", x, weights["bins_start"]), weights["bins_slope"])
        codes = graph.add("Clip", codes, _float(0), _float(1))
        of_number = graph.add("MatMul", graph.add("Transpose", codes, perm=[1, 0, 2]), weights["numbers_kernel"])
        bent = graph.add("Transpose", of_number, perm=[1, 0, 2])
        straight = graph.add("Add", graph.add("Mul", x, weights["numbers_slope"]), weights["numbers_bias"])
        parts = [graph.flat(graph.add("Add", bent, straight))]
        if a.n_dense > n:
            parts.append(graph.columns(dense, range(n, a.n_dense)))
    for j, column in enumerate(a.embedded):
        assert table.codes is not None
        code = graph.columns(table.codes, [column])
        parts.append(graph.flat(graph.add("Gather", weights[f"embedding{j}"], code, axis=0)))
    return graph.beside(parts)


def _one(a: Architecture, weights: Mapping[str, np.ndarray], graph: Graph, x: str) -> str:
    for i in range(a.layers):
        x = graph.add("Add", graph.add("MatMul", x, weights[f"layer{i}_kernel"]), weights[f"layer{i}_bias"])
        x = graph.add("Sub", x, graph.add("ReduceMean", x, _axes(1), keepdims=1))
        variance = graph.add("ReduceMean", graph.add("Mul", x, x), _axes(1), keepdims=1)
        x = graph.add("Div", x, graph.add("Sqrt", graph.add("Add", variance, _float(EPSILON))))
        x = graph.add("Add", graph.add("Mul", x, weights[f"layer{i}_scale"]), weights[f"layer{i}_shift"])
        x = _activate(graph, x, a.activation)
    z = graph.add("Add", graph.add("MatMul", x, weights["output_kernel"]), weights["output_bias"])
    return z if a.task is Task.REGRESSION else graph.add("Softmax", z, axis=1)


def _several(a: Architecture, weights: Mapping[str, np.ndarray], graph: Graph, x: str) -> str:
    x = graph.unsqueeze(x, 0)
    for i in range(a.layers):
        x = graph.add("Mul", x, weights[f"layer{i}_in"][:, None])
        x = graph.add("MatMul", x, weights[f"layer{i}_kernel"])
        x = graph.add("Mul", x, weights[f"layer{i}_out"][:, None])
        x = _activate(graph, graph.add("Add", x, weights[f"layer{i}_bias"][:, None]), a.activation)
    z = graph.add("Add", graph.add("MatMul", x, weights["output_kernel"]), weights["output_bias"][:, None])
    if a.task is not Task.REGRESSION:
        z = graph.add("Softmax", z, axis=2)
    return graph.add("ReduceMean", z, _axes(0), keepdims=0)


def _activate(graph: Graph, x: str, activation: Activation) -> str:
    if activation == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    return graph.add("Relu" if activation == "relu" else "Elu", x)


def _axes(axis: int) -> np.ndarray:
    return np.array([axis], dtype=np.int64)


def _float(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)
