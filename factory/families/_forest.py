"""Forests of scikit-learn, grown in blocks and kept as ONNX.

scikit-learn's forests have no storage format but pickle, and answer one row in
10 ms.  Their trees are plain arrays, so we write them as one ONNX operator
(TreeEnsembleRegressor with an output per class): exact for float32 columns,
missing values included, and answered by onnxruntime in about .02 ms.  Writing the arrays
ourselves takes 1 s for half a million nodes, where skl2onnx takes 8 s and
twice the file.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.preparation import Table
from factory.families._boosting import matrix
from factory.families._head import Head
from factory.families.base import Family, FitContext, Model, Sample
from factory.space import FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "model.onnx"
MOST_NODES = 2_000_000
"""A forest stops growing at that many nodes: about 70 MB of ONNX."""
MOST_LEAVES = 50_000
"""Leaves of one tree at most, so that MOST_NODES still holds 20 trees; larger tables get larger leaves."""
MOST_ROWS = 100_000
"""Rows of one tree at most; a single tree cannot be interrupted, and more rows add little to a forest."""
BLOCK_S = 0.25
"""Trees are grown in blocks of about that long, so that the deadline is looked at often enough."""
NODE_S = 4e-6
"""Time to write and load one node as ONNX, measured on one core, doubled for safety."""


class ForestModel(Model):
    """An ONNX graph and its session."""

    def __init__(self, graph: bytes, head: Head) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._graph = graph
        self._head = head

    def predict(self, table: Table) -> np.ndarray:
        (raw,) = self._session.run(None, {"columns": matrix(table)})
        return self._head.decode(raw[:, 0] if self._head.task is Task.REGRESSION else raw)

    def save(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self._graph)
        self._head.save(folder)


class ForestFamily(Family):
    """A family of averaged trees."""

    framework: ClassVar[str] = "scikit-learn"

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            "trees": IntDimension(low=50, high=500, log=True),
            "max_features": FloatDimension(low=0.1, high=1.0),
            "min_samples_leaf": IntDimension(low=1, high=50, log=True),
        }

    def fit(
        self,
        train: Sample,
        *,
        validation: Sample | None,  # noqa: ARG002 - more trees never hurt, so nothing is stopped early
        parameters: Parameters,
        context: FitContext,
    ) -> Model:
        """Grow trees until there are enough, the deadline is near or the model gets too large."""
        head = Head.of(train.y, context)
        forest = self._estimator(parameters, n_rows=len(train), context=context)
        # scikit-learn's trees refuse read-only memory, which is what Ray hands over.
        X, y = (np.require(a, requirements=["C", "W"]) for a in (matrix(train.table), head.encode(train.y)))
        wanted = int(parameters["trees"] or 100)
        block, grown = context.threads, 0
        while True:
            began = time.perf_counter()
            # Growing in blocks gives the same forest as growing at once: warm_start goes on in the same random stream.
            forest.set_params(n_estimators=min(grown + block, wanted)).fit(X, y)
            tree_s = (time.perf_counter() - began) / (forest.n_estimators - grown)
            grown = forest.n_estimators
            nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
            block = context.threads * max(1, int(BLOCK_S / tree_s / context.threads))
            block = min(block, int((MOST_NODES - nodes) / (nodes / grown)))
            rest_s = context.deadline.left_s - NODE_S * nodes
            if grown == wanted or block < 1 or context.stopped or rest_s < block * tree_s:
                break
        return ForestModel(_onnx(forest, head=head, n_columns=X.shape[1]), head)

    @abstractmethod
    def _estimator(self, parameters: Parameters, *, n_rows: int, context: FitContext) -> Any:
        """Return scikit-learn's estimator, with ``warm_start``."""

    def load(self, folder: Path) -> Model:
        return ForestModel((folder / FILE).read_bytes(), Head.load(folder))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = n_classes if n_classes > 2 else 2
        leaves = min(n_rows, MOST_ROWS) / max(int(parameters.get("min_samples_leaf") or 1), 1)
        nodes = min(2 * min(leaves, MOST_LEAVES) * int(parameters.get("trees") or 100), MOST_NODES)
        # The float32 table twice; scikit-learn's nodes and their values; the graph as lists, as bytes and as a session.
        return (n_rows * (n_columns * 8 + 16) + nodes * (64 + 8 * outputs + 250)) / 1e6 + 80


def smallest_leaf(parameters: Parameters, *, n_rows: int) -> int:
    """Return ``min_samples_leaf``, raised where a tree would get more than MOST_LEAVES leaves."""
    return max(int(parameters["min_samples_leaf"] or 1), math.ceil(min(n_rows, MOST_ROWS) / MOST_LEAVES))


def _onnx(forest: Any, *, head: Head, n_columns: int) -> bytes:
    """Return a fitted forest as a serialized ONNX model: float32 (n_rows, n_columns) → float32 (n_rows, n_outputs)."""
    import onnx
    from onnx import TensorProto, helper

    n_outputs = max(head.n_classes, 1)
    # A class that the training rows lack has no column in scikit-learn's leaves.
    outputs = np.asarray(forest.classes_) if head.n_classes else np.zeros(1, dtype=np.int64)
    trees = [_tree(e.tree_, number, outputs=outputs) for number, e in enumerate(forest.estimators_)]
    columns = {name: np.concatenate([tree[name] for tree in trees]) for name in trees[0]}
    columns["target_weights"] = columns["target_weights"] / len(trees)
    modes = np.array([b"BRANCH_LEQ", b"LEAF"], dtype=object)[columns.pop("leaf").astype(int)]
    node = helper.make_node("TreeEnsembleRegressor", ["columns"], ["output"], domain="ai.onnx.ml", n_targets=n_outputs)
    node.attribute.append(onnx.AttributeProto(name="nodes_modes", type="STRINGS", strings=modes.tolist()))
    for name, values in columns.items():
        attribute = onnx.AttributeProto(name=name)
        if values.dtype.kind == "f":
            attribute.type = onnx.AttributeProto.FLOATS
            attribute.floats.extend(values.tolist())
        else:
            attribute.type = onnx.AttributeProto.INTS
            attribute.ints.extend(values.tolist())
        node.attribute.append(attribute)
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("columns", TensorProto.FLOAT, [None, n_columns])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, n_outputs])],
    )
    # The oldest versions that hold the operator, so that old runtimes read it as well.
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def _tree(tree: Any, number: int, *, outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return one tree's part of the operator's attributes; ``leaf`` stands for ``nodes_modes``."""
    leaf = tree.children_left < 0
    # Columns are float32: x <= t for a float64 t is x <= (the largest float32 not above t).
    thresholds = tree.threshold.astype(np.float32)
    above = thresholds > tree.threshold
    thresholds[above] = np.nextafter(thresholds[above], np.float32(-np.inf))
    values = tree.value[:, 0, :]
    at, output = np.nonzero((values != 0) & leaf[:, np.newaxis])
    none = np.setdiff1d(np.flatnonzero(leaf), at)
    at, output = np.concatenate([at, none]), np.concatenate([output, np.zeros(len(none), dtype=output.dtype)])
    return {
        "leaf": leaf,
        "nodes_treeids": np.full(len(leaf), number),
        "nodes_nodeids": np.arange(len(leaf)),
        "nodes_featureids": np.where(leaf, 0, tree.feature),
        "nodes_values": np.where(leaf, np.float32(0), thresholds),
        "nodes_truenodeids": np.where(leaf, 0, tree.children_left),
        "nodes_falsenodeids": np.where(leaf, 0, tree.children_right),
        "nodes_missing_value_tracks_true": np.where(leaf, 0, tree.missing_go_to_left),
        "target_treeids": np.full(len(at), number),
        "target_nodeids": at,
        "target_ids": outputs[output],
        "target_weights": values[at, output],
    }
