"""Forests of scikit-learn, grown in blocks and kept as plain arrays.

scikit-learn's forests have no storage format but pickle, and answer one row in
10 ms.  Their trees are arrays, so we keep those as npz and walk all trees at
once (:mod:`factory.families._walk`).  ONNX was measured and left: for the 2.4
million nodes of a forest that grows in 2 s, writing and opening the graph took
8 s and 2 GB.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.graph import INT64, DrawnTable, Graph
from factory.data.preparation import Table
from factory.families._drawing import AT_MOST, GrownTrees
from factory.families._encoding import FEW_LEVELS, MEANS, MOST_MEANS, Inputs, TargetEncoding
from factory.families._head import Head
from factory.families._leaves import LeafTerms
from factory.families._terms import Link
from factory.families._walk import Trees
from factory.families._ways import MOST_WAYS
from factory.families.base import Bet, Family, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "forest.npz"
MOST_MB = 50
"""A forest stops growing at that size, so that a variant of several folds stays below a few hundred."""
MOST_LEAVES = 50_000
"""Leaves of one tree at most, so that MOST_MB still holds tens of trees; larger tables get larger leaves."""
MOST_ROWS = 100_000
"""Rows of one tree at most; a single tree cannot be interrupted, and more rows add little to a forest."""
BLOCK_S = 0.25
"""Trees are grown in blocks of about that long, so that the deadline is looked at often enough."""
LATER = 45
"""By how much the bet on codes alone comes after that on target means, or the other way round."""
FEW_ROWS_A_LEVEL = 5
"""Rows to a level of the largest column below which codes alone come first."""
BATCH_CELLS = 2_000_000
"""Leaf values gathered at once while predicting (rows * trees * outputs): 16 MB."""


@dataclass(frozen=True)
class Nodes:
    """The trees of a forest, and what their leaves answer.

    Attributes:
        trees: Each leaf's place is its row in ``values``.
        values: What the leaves answer, float32 (n_leaves, n_outputs).
    """

    trees: Trees
    values: np.ndarray

    @classmethod
    def of(cls, estimators: list[Any], *, outputs: slice) -> Nodes:
        """Take the fitted trees of scikit-learn; ``outputs`` says which of a leaf's values are kept."""
        trees = [e.tree_ for e in estimators]
        counts = np.array([tree.node_count for tree in trees])
        feature = np.concatenate([tree.feature for tree in trees]).astype(np.int32)
        leaf = feature < 0
        feature[leaf] = -1
        exact = np.concatenate([tree.threshold for tree in trees])
        threshold = exact.astype(np.float32)
        # Columns are float32: x <= t for a float64 t is x <= (the largest float32 not above t).
        above = threshold > exact
        threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
        roots = np.cumsum(counts) - counts
        right = np.concatenate([tree.children_right for tree in trees]) + np.repeat(roots, counts)
        right[leaf] = np.arange(leaf.sum())
        found = Trees.from_arrays(
            roots=roots,
            feature=feature,
            threshold=threshold,
            right=right,
            missing_left=np.concatenate([tree.missing_go_to_left for tree in trees]).astype(bool),
        )
        values = np.concatenate([tree.value[tree.feature < 0, 0, outputs] for tree in trees])
        return cls(found, values.astype(np.float32))

    @classmethod
    def joined(cls, forests: Sequence[Nodes], weights: Sequence[float]) -> Nodes:
        """Return one forest whose answer is the weighted sum of the forests' answers."""
        n_trees = sum(len(forest.trees.roots) for forest in forests)
        values = [
            forest.values * (weight * n_trees / len(forest.trees.roots))
            for forest, weight in zip(forests, weights, strict=True)
        ]
        trees = Trees.joined([forest.trees for forest in forests], [len(forest.values) for forest in forests])
        return cls(trees, np.concatenate(values).astype(np.float32))

    def answer(self, X: np.ndarray) -> np.ndarray:
        """Return the mean of the trees' answers to float32 rows (n_rows, n_columns): float64 (n_rows, n_outputs)."""
        n_trees, n_outputs = len(self.trees.roots), self.values.shape[1]
        batch = max(1, BATCH_CELLS // (n_trees * n_outputs))
        parts = [self.values[self.trees.answers(X[i : i + batch])] for i in range(0, len(X), batch)]
        return np.concatenate(
            [
                np.zeros((0, n_outputs)),
                *(p.reshape(-1, n_trees, n_outputs).mean(axis=1, dtype=np.float64) for p in parts),
            ]
        )

    def grown(self, *, targets: np.ndarray) -> GrownTrees:
        """Return the trees; what their leaves answer is a place in ``values``."""
        arrays = self.trees.arrays()
        feature, right = arrays["feature"].astype(np.int64), arrays["right"].astype(np.int64)
        leaf = feature < 0
        return GrownTrees(
            roots=arrays["roots"].astype(np.int64),
            targets=targets,
            feature=np.maximum(feature, 0),
            kind=np.full(len(feature), AT_MOST),
            threshold=arrays["threshold"].astype(np.float64),
            true=np.where(leaf, -1, np.arange(1, len(feature) + 1)),
            false=np.where(leaf, -1, right),
            missing_true=arrays["missing_left"],
            value=np.where(leaf, right, 0).astype(np.float64),
            members={},
        )

    def draw(self, graph: Graph, matrix: str) -> str:
        """Draw :meth:`answer`, of a matrix float64 (n_rows, n_columns)."""
        n_trees, several = len(self.trees.roots), self.values.shape[1] > 1
        # One output is added up; of several the trees tell their leaves' places, whose values are looked up.
        grown = self.grown(targets=np.arange(n_trees) if several else np.zeros(n_trees, dtype=np.int64))
        if not several:
            grown = replace(grown, value=self.values[grown.value.astype(np.int64), 0].astype(np.float64))
        drawn = grown.draw(graph, matrix, n_targets=n_trees if several else 1)
        if several:
            places = graph.cast(drawn, INT64)
            drawn = graph.total(graph.add("Gather", self.values.astype(np.float64), places, axis=0), keep=False)
        return graph.add("Div", drawn, np.array(float(n_trees)))


class ForestModel(Model):
    """Trees and the classes that they tell apart.

    Args:
        nodes: The trees.
        seen: Classes in training, (n_seen,); empty for regression. Of two, only the second one's share is kept.
        head: The end of the model.
        unsure: Trees' worth of an even guess that is mixed in (the m-estimate of Cestnik 1990): no class that was seen
            is impossible because no leaf happened to hold it. 0 in models that were stored without.
        encoding: The means that the trees see beside codes; None where they see a table as it is.
    """

    def __init__(
        self, nodes: Nodes, seen: np.ndarray, head: Head, *, encoding: TargetEncoding | None = None, unsure: float = 1.0
    ) -> None:
        self.nodes, self.seen, self.head, self.encoding, self.unsure = nodes, seen, head, encoding, unsure

    def predict(self, table: Table) -> np.ndarray:
        seen = table if self.encoding is None else self.encoding.transform(table)
        answer = self.nodes.answer(seen.matrix)
        if self.head.task is Task.REGRESSION:
            return self.head.decode(answer[:, 0])
        if len(self.seen) == 2:
            answer = np.concatenate([1 - answer, answer], axis=1)
        n_trees = len(self.nodes.trees.roots)
        answer = (n_trees * answer + self.unsure / len(self.seen)) / (n_trees + self.unsure)
        shares = np.zeros((len(table), self.head.n_classes))
        shares[:, self.seen] = answer
        return self.head.decode(shares)

    @property
    def link(self) -> Link:
        return self.head.link if self.head.task is Task.REGRESSION else "identity"

    def terms(self) -> LeafTerms | None:
        n_trees, head = len(self.nodes.trees.roots), self.head
        if len(self.nodes.values) > MOST_WAYS:
            return None
        values = self.nodes.values.astype(np.float64) / n_trees
        intercept = np.zeros(max(head.n_classes, 1))
        if head.task is not Task.REGRESSION:
            if len(self.seen) == 2:
                values = np.concatenate([1 / n_trees - values, values], axis=1)
            shares = np.zeros((len(values), head.n_classes))
            shares[:, self.seen] = values * n_trees / (n_trees + self.unsure)
            values = shares
            intercept[self.seen] = self.unsure / len(self.seen) / (n_trees + self.unsure)
        grown = self.nodes.grown(targets=np.zeros(n_trees, dtype=np.int64))
        seen = Inputs(encoding=self.encoding)
        leaves = LeafTerms.of_trees(
            grown,
            view=lambda table: seen.of(table).matrix,
            owners_seen=seen.owners,
            intercept=intercept,
            values=values,
        )
        return leaves.of_head(head, link=self.link)

    def draw(self, table: DrawnTable) -> str:
        graph, n_trees = table.graph, len(self.nodes.trees.roots)
        seen = table if self.encoding is None else self.encoding.draw(table)
        answer = self.nodes.draw(graph, seen.matrix)
        if self.head.task is Task.REGRESSION:
            return self.head.draw(graph, answer)
        if len(self.seen) == 2:
            answer = graph.both(answer)
        weight, unsure = np.array(n_trees / (n_trees + self.unsure)), self.unsure / len(self.seen)
        answer = graph.add("Add", graph.add("Mul", answer, weight), np.array(unsure / (n_trees + self.unsure)))
        places = np.zeros((len(self.seen), self.head.n_classes))
        places[np.arange(len(self.seen)), self.seen] = 1.0
        return self.head.draw(graph, graph.add("MatMul", answer, places))

    def save(self, folder: Path) -> None:
        arrays = self.nodes.trees.arrays() | {"values": self.nodes.values}
        if self.encoding is not None:
            arrays |= self.encoding.arrays(MEANS)
        np.savez(folder / FILE, seen=self.seen, unsure=np.array(self.unsure), allow_pickle=False, **arrays)
        self.head.save(folder)


class ForestFamily(Family):
    """A family of averaged trees."""

    rowwise: ClassVar[bool] = True
    framework: ClassVar[str] = "scikit-learn"
    modules: ClassVar[tuple[str, ...]] = ("sklearn.ensemble",)
    weighted: ClassVar[bool] = True

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            "categoricals": ChoiceDimension(choices=("native", "target")),
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
        seen = replace(train, y=head.encode(train.y))
        encoding: TargetEncoding | None = None
        if parameters.get("categoricals") == "target":
            found = TargetEncoding.fit(seen, n_classes=context.n_classes, seed=context.seed, keeps=True)
            if found is not None:
                encoding, seen = found[0], replace(seen, table=found[1])
        # scikit-learn's trees refuse read-only memory, which is what Ray hands over.
        X, y = (np.require(a, requirements=["C", "W"]) for a in (seen.table.matrix, seen.y))
        wanted = int(parameters["trees"] or 100)
        most_nodes = 1e6 * MOST_MB / _node_bytes(head.n_classes)
        block, grown, first = context.threads, 0, True
        while True:
            began = time.perf_counter()
            # Growing in blocks gives the same forest as growing at once: warm_start goes on in the same random stream.
            forest.set_params(n_estimators=min(grown + block, wanted)).fit(X, y, sample_weight=train.weight)
            tree_s = (time.perf_counter() - began) / (forest.n_estimators - grown)
            grown = forest.n_estimators
            nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
            block = context.threads * max(1, int(BLOCK_S / tree_s / context.threads))
            block = min(block, int((most_nodes - nodes) / (nodes / grown)))
            # What the first block took is more than trees where the process had just begun: one tree is no forest.
            late = not first and context.deadline.left_s < block * tree_s
            if grown == wanted or block < 1 or context.stopped or late:
                break
            first = False
        classes = np.zeros(0, dtype=np.int64) if context.task is Task.REGRESSION else np.asarray(forest.classes_)
        nodes = Nodes.of(forest.estimators_, outputs=slice(len(classes) == 2, None))
        return ForestModel(nodes, classes, head, encoding=encoding)

    def merge(self, models: Sequence[Model]) -> Model | None:
        """Put all trees into one forest, so that a row walks them at once; each keeps the means that it grew on."""
        forests = [m for m in models if isinstance(m, ForestModel)]
        if len(forests) < len(models) or not forests:
            return None
        heads, first = [m.head for m in forests], forests[0]
        alike = len({(h.task, h.n_classes, h.target_scale) for h in heads}) == 1
        if not alike or any(not np.array_equal(m.seen, first.seen) for m in forests):
            return None
        encodings = [m.encoding for m in forests if m.encoding is not None]
        encoding = TargetEncoding.joined(encodings) if encodings else None
        if encodings and encoding is None:
            return None
        head = Head.mean(heads)
        weights = [h.scale / (head.scale * len(heads)) for h in heads]
        nodes = Nodes.joined(_on_common_columns(forests), weights)
        unsure = sum(m.unsure for m in forests)
        return ForestModel(nodes, first.seen, head, encoding=encoding, unsure=unsure)

    @abstractmethod
    def _estimator(self, parameters: Parameters, *, n_rows: int, context: FitContext) -> Any:
        """Return scikit-learn's estimator, with ``warm_start``."""

    def load(self, folder: Path) -> Model:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        seen, unsure = arrays.pop("seen"), float(arrays.pop("unsure", 0.0))
        values, encoding = arrays.pop("values"), TargetEncoding.from_arrays(arrays, MEANS)
        arrays = {name: array for name, array in arrays.items() if not name.startswith(MEANS)}
        nodes = Nodes(Trees.from_arrays(**arrays), values)
        return ForestModel(nodes, seen, Head.load(folder), encoding=encoding, unsure=unsure)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        stored = _node_bytes(n_classes)
        leaves = min(n_rows, MOST_ROWS) / max(int(parameters.get("min_samples_leaf") or 1), 1)
        nodes = min(2 * min(leaves, MOST_LEAVES) * int(parameters.get("trees") or 100), 1e6 * MOST_MB / stored)
        if parameters.get("categoricals") == "target":
            n_columns += MOST_MEANS
        # The float32 table twice; scikit-learn's nodes with their values; ours, and their parts while they are joined.
        return float((n_rows * (n_columns * 8 + 16) + nodes * (64 + 8 * max(n_classes, 1) + 4 * stored)) / 1e6 + 80)


def _on_common_columns(forests: Sequence[ForestModel]) -> list[Nodes]:
    """Return the trees as they split one table that has the means of all forests, in their order, before the rest."""
    own = [0 if m.encoding is None else m.encoding.n_means for m in forests]
    moved, before, total = [], 0, sum(own)
    for forest, n in zip(forests, own, strict=True):
        trees = forest.nodes.trees
        columns = np.arange(int(trees.steps[:, 0].max()) // 2 + 1)
        trees = trees.on_columns(np.where(columns < n, columns + before, columns - n + total))
        moved.append(replace(forest.nodes, trees=trees))
        before += n
    return moved


def bets(first: Bet, *, last: Bet, shape: Shape) -> list[Bet]:
    """Return a forest's bets: where a column has many levels, one more, so that one sees target means and one does not.

    Means come first, but where a level has few rows: their means tell a deep tree too much of each row's own target.
    """
    if shape.most_levels <= FEW_LEVELS:
        return [_seeing(first, "native"), _seeing(last, "native")]
    early, late = "target", "native"
    if shape.n_rows < FEW_ROWS_A_LEVEL * shape.most_levels:
        early, late = late, early
    other = _seeing(replace(first, rank=first.rank + LATER), late)
    return sorted([_seeing(first, early), other, _seeing(last, early)], key=lambda bet: bet.rank)


def _seeing(bet: Bet, categoricals: str) -> Bet:
    return replace(bet, parameters={"categoricals": categoricals, **bet.parameters})


def smallest_leaf(parameters: Parameters, *, n_rows: int) -> int:
    """Return ``min_samples_leaf``, raised where a tree would get more than MOST_LEAVES leaves."""
    return max(int(parameters["min_samples_leaf"] or 1), math.ceil(min(n_rows, MOST_ROWS) / MOST_LEAVES))


def _node_bytes(n_classes: int) -> float:
    """Return the stored size of a node: split, child and flag, and for every second one a leaf's values."""
    return 13 + 2 * (n_classes if n_classes > 2 else 1)
