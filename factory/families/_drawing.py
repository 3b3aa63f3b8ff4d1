"""Trees as a part of an ONNX graph: one operator for all trees of a booster, arrays for symmetric trees and forests.

Columns are float32 values in float64: each comparison is the one of the
framework, and sums are no less exact than its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from factory.data.graph import COLUMNS, INT64, ML, CannotDraw, Graph
from factory.spec import Task

AT_MOST, BELOW, MEMBER = 0, 1, 6
"""Kinds of splits, by ONNX's numbers: what is true goes to the first child."""
MOST_NODES = 3_000_000
"""Of all trees of a model. A million are written in 1.1 s and opened in 0.7 s, with 640 MB at most (measured)."""
_SUM = 1


@dataclass(frozen=True)
class GrownTrees:
    """Binary trees whose answers are added up.

    Attributes:
        roots: First node of each tree, int64 (n_trees,).
        targets: Output that each tree adds to, int64 (n_trees,).
        feature: Column that a node splits on, int64 (n_nodes,).
        kind: AT_MOST, BELOW or MEMBER, (n_nodes,).
        threshold: float64 (n_nodes,); of no meaning for MEMBER.
        true: Child of what is true, -1 for a leaf, int64 (n_nodes,).
        false: The other child, int64 (n_nodes,).
        missing_true: Whether a missing value counts as true, bool (n_nodes,).
        value: Answer of a leaf, float64 (n_nodes,).
        members: Levels that are true, by node.
    """

    roots: np.ndarray
    targets: np.ndarray
    feature: np.ndarray
    kind: np.ndarray
    threshold: np.ndarray
    true: np.ndarray
    false: np.ndarray
    missing_true: np.ndarray
    value: np.ndarray
    members: Mapping[int, np.ndarray]

    def draw(self, graph: Graph, matrix: str, *, n_targets: int) -> str:
        """Draw the sums, float64 (n_rows, n_targets), of a matrix float64 (n_rows, n_columns)."""
        if len(self.true) > MOST_NODES:
            raise CannotDraw(f"a model of {len(self.true):,} nodes ({MOST_NODES:,} at most)")
        inner = self.true >= 0
        # An operator wants a split at each root: a lone leaf gets one that both ways lead to it.
        lone = self.roots[~inner[self.roots]]
        nodes, leaf = np.flatnonzero(inner), np.cumsum(~inner) - 1
        place = np.cumsum(inner) - 1
        place[lone] = len(nodes) + np.arange(len(lone))

        def children(of: np.ndarray) -> tuple[list[int], list[int]]:
            child, ends = of[nodes], ~inner[of[nodes]]
            ids = np.concatenate([np.where(ends, leaf[child], place[child]), leaf[lone]])
            return ids.tolist(), np.concatenate([ends, np.ones(len(lone), dtype=bool)]).astype(int).tolist()

        def padded(values: np.ndarray, kind: type) -> np.ndarray:
            return np.concatenate([values[nodes], np.zeros(len(lone))]).astype(kind)

        (true, true_leaf), (false, false_leaf) = children(self.true), children(self.false)
        tree = np.repeat(np.arange(len(self.roots)), np.diff(np.append(self.roots, len(self.true))))
        sets = [np.append(self.members[n].astype(np.float64), np.nan) for n in nodes.tolist() if n in self.members]
        attributes = {"membership_values": np.concatenate(sets)} if sets else {}
        return graph.add(
            "TreeEnsemble",
            matrix,
            domain=ML,
            aggregate_function=_SUM,
            n_targets=n_targets,
            tree_roots=place[self.roots].tolist(),
            nodes_featureids=padded(self.feature, int).tolist(),
            nodes_modes=padded(self.kind, np.uint8),
            nodes_splits=padded(self.threshold, np.float64),
            nodes_truenodeids=true,
            nodes_trueleafs=true_leaf,
            nodes_falsenodeids=false,
            nodes_falseleafs=false_leaf,
            nodes_missing_value_tracks_true=padded(self.missing_true, int).tolist(),
            leaf_targetids=self.targets[tree[~inner]].tolist(),
            leaf_weights=self.value[~inner].astype(np.float64),
            **attributes,
        )


@dataclass(frozen=True)
class Questions:
    """Questions to the columns of a row, in an array of any shape.

    Attributes:
        feature: Column that is asked about, int64.
        border: What a value has to exceed, float64; infinity where there is no question.
        equal: Whether it has to equal the border instead, bool.
        missing_true: Whether a missing value counts as yes, bool.
    """

    feature: np.ndarray
    border: np.ndarray
    equal: np.ndarray
    missing_true: np.ndarray

    @classmethod
    def taken(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Questions:
        """Take them from arrays by name."""
        return cls(*(arrays[prefix + field.name] for field in fields(cls)))

    def answers(self, matrix: np.ndarray) -> np.ndarray:
        """Return the answers, bool (n_rows, ...), to rows float32 (n_rows, n_columns)."""
        value = matrix[:, self.feature]
        yes = value > self.border
        if self.equal.any():
            yes = np.where(self.equal, value == self.border, yes)
        if self.missing_true.any():
            yes |= self.missing_true & np.isnan(value)
        return np.asarray(yes)


@dataclass(frozen=True)
class SymmetricTrees:
    """Trees whose nodes of one depth all ask the same; a leaf's number has a bit for each answer.

    Attributes:
        questions: Of each tree by depth, (n_trees, depth).
        values: Answers of the leaves of all trees, float64 (n_leaves, n_targets).
        starts: First leaf of each tree, int64 (n_trees,).
    """

    questions: Questions
    values: np.ndarray
    starts: np.ndarray

    def sums(self, matrix: np.ndarray) -> np.ndarray:
        """Return the sums, float64 (n_rows, n_targets), of rows float32 (n_rows, n_columns); added tree after tree."""
        leaves = self.questions.answers(matrix) @ (1 << np.arange(self.questions.feature.shape[1])) + self.starts
        return np.asarray(self.values[leaves].cumsum(axis=1)[:, -1])

    def draw(self, graph: Graph, matrix: str) -> str:
        """Draw the sums, float64 (n_rows, n_targets), of a matrix float64 (n_rows, n_columns)."""
        asked = self.questions
        n_trees, depth = asked.feature.shape
        value = graph.columns(matrix, asked.feature.ravel())
        yes = graph.add("Greater", value, asked.border.ravel())
        if asked.equal.any():
            same = graph.add("And", graph.add("Equal", value, asked.border.ravel()), asked.equal.ravel())
            yes = graph.add("Or", graph.add("And", yes, ~asked.equal.ravel()), same)
        if asked.missing_true.any():
            missing = graph.add("And", graph.add("IsNaN", value), asked.missing_true.ravel())
            yes = graph.add("Or", yes, missing)
        bits = graph.add("Mul", graph.cast(yes, INT64), np.tile(1 << np.arange(depth, dtype=np.int64), n_trees))
        answers = graph.add("Reshape", bits, np.array([0, n_trees, depth], dtype=np.int64))
        leaves = graph.add("Add", graph.total(answers, axis=2, keep=False), self.starts.astype(np.int64))
        return graph.total(graph.add("Gather", self.values, leaves, axis=0), keep=False)


def draw_link(graph: Graph, margin: str, task: Task) -> str:
    """Draw the second class's probability of its log-odds, (n_rows, 1), or shares of classes; numbers stay."""
    if task is Task.REGRESSION:
        return margin
    return graph.add("Sigmoid", margin) if task is Task.BINARY else graph.add("Softmax", margin, axis=COLUMNS)
