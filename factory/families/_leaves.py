"""Exact Shapley values of trees over input columns: interventional TreeSHAP, in numpy.

A leaf is a conjunction of answers to questions.  Between a row x and a background row z, a set S of input columns
reaches a leaf if every column in S has what the leaf asks for in x, and every other one in z.  Columns that only x has
right must be in S, those that only z has right must not be, and the leaf's value is divided among them by a closed
formula (Lundberg et al., "From local explanations to global understanding with explainable AI for trees", 2020,
appendix; Laberge and Pequignot 2022).  Here the players are input columns, however many prepared columns each has, as
Laberge and Pequignot group them: a player is right where all the leaf's questions to its columns are.

A question to a column that comes from several input columns (a product, days between two dates, a statistic of two
categories) has an answer for each choice of who is in S.  A leaf that asks such questions stands for as many leaves as
there are choices, each with the choice as a further condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from factory.data.preparation import Table
from factory.families._drawing import AT_MOST, MEMBER, GrownTrees, Questions, SymmetricTrees
from factory.families._head import Head
from factory.families._terms import Comparison, Link, Method, Owners, Terms, subsets
from factory.families._ways import BATCH_CELLS, Division, Ways

STEP_CELLS = 30
"""What sorting the steps costs beside each look at them (measured: 3.1 million steps of a forest take 6.4 s)."""
SHARED_WAYS = 4
"""Times that a way costs where rows have to be mixed, one after the other (measured with CatBoost's statistics)."""
MIXED_CELLS = 600
"""Leaves that could be looked at in the time in which a mixed row is prepared and asked."""


class Asked(Protocol):
    """Questions to rows, which are numbered."""

    @property
    def columns(self) -> tuple[frozenset[int], ...]:
        """Columns of the matrix that each of them looks at."""

    def answers(self, matrix: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return the answers to some of them, bool (n_rows, n_of_these), of rows float32 (n_rows, n_columns)."""


@dataclass(frozen=True, eq=False)
class NodeQuestions:
    """The questions of binary trees' inner nodes.

    Attributes:
        trees: The trees.
        nodes: Node of each question, int64 (n_questions,).
    """

    trees: GrownTrees
    nodes: np.ndarray

    @cached_property
    def columns(self) -> tuple[frozenset[int], ...]:
        """Columns that each question looks at: one."""
        asked = self.trees.feature[self.nodes].tolist()
        known = {column: frozenset((column,)) for column in set(asked)}
        return tuple(known[column] for column in asked)

    @cached_property
    def _sets(self) -> tuple[np.ndarray, np.ndarray]:
        """The place of each node among those that ask for membership, and their levels, bool (n_such, n_levels + 1)."""
        members = self.trees.members
        place = np.full(len(self.trees.feature), -1, dtype=np.int64)
        place[list(members)] = np.arange(len(members))
        most = max((int(levels.max(initial=0)) for levels in members.values()), default=0)
        levels = np.zeros((len(members), most + 2), dtype=bool)
        for at, known in enumerate(members.values()):
            levels[at, known.astype(np.int64)] = True
        return place, levels

    def answers(self, matrix: np.ndarray, of: np.ndarray) -> np.ndarray:
        trees, nodes = self.trees, self.nodes[of]
        value, threshold = matrix[:, trees.feature[nodes]], trees.threshold[nodes]
        kind = trees.kind[nodes]
        yes = np.where(kind == AT_MOST, value <= threshold, value < threshold)
        missing = np.isnan(value)
        asked = np.flatnonzero(kind == MEMBER)
        if len(asked):
            place, levels = self._sets
            level = np.where(missing[:, asked], -1, value[:, asked]).astype(np.int64)
            level = np.where((level >= 0) & (level < levels.shape[1] - 1), level, levels.shape[1] - 1)
            yes[:, asked] = levels[place[nodes[asked]], level]
        return np.asarray(np.where(missing, trees.missing_true[nodes], yes))


@dataclass(frozen=True, eq=False)
class LeafTerms(Terms):
    """A sum of leaves.

    Attributes:
        view: Returns what the trees see of a table, float32 (n_rows, n_columns).
        owners_seen: Returns the owners of these columns, of those of a table's and such a table.
        questions: That are asked.
        leaf: Leaf of each step on the ways to them, rising, int32 (n_steps,).
        question: Asked there, int32 (n_steps,).
        wanted: Answer that leads on to the leaf, bool (n_steps,).
        values: Of the leaves, float64 (n_leaves, width).
        targets: Output that the first of a leaf's values adds to, int64 (n_leaves,).
        intercept: float64 (n_outputs,).
        link: What is made of the sums.
        top: As of :class:`Terms`.
    """

    method: ClassVar[Method] = "tree_shap"
    view: Callable[[Table], np.ndarray]
    owners_seen: Callable[[Owners, Table], Owners]
    questions: Asked
    leaf: np.ndarray
    question: np.ndarray
    wanted: np.ndarray
    values: np.ndarray
    targets: np.ndarray
    intercept: np.ndarray
    link: Link = "identity"
    top: float | None = None

    @classmethod
    def of_trees(
        cls,
        trees: GrownTrees,
        *,
        view: Callable[[Table], np.ndarray],
        owners_seen: Callable[[Owners, Table], Owners] = lambda owners, _: owners,
        intercept: np.ndarray,
        values: np.ndarray | None = None,
    ) -> LeafTerms:
        """Take binary trees.

        Args:
            trees: The trees; where ``values`` are given their leaves' values are places in these.
            view: As the attribute.
            owners_seen: As the attribute.
            intercept: As the attribute.
            values: What the leaves answer, (n_answers, n_outputs).
        """
        inner = trees.true >= 0
        nodes = np.flatnonzero(inner)
        parent, side = np.full(len(inner), -1, dtype=np.int64), np.zeros(len(inner), dtype=bool)
        parent[trees.true[nodes]], side[trees.true[nodes]] = nodes, True
        parent[trees.false[nodes]] = nodes
        tree = np.repeat(np.arange(len(trees.roots)), np.diff(np.append(trees.roots, len(inner))))
        leaves = np.flatnonzero(~inner & (parent >= 0))
        lone = trees.roots[~inner[trees.roots]]  # the same for every row
        number = np.cumsum(inner) - 1
        none = np.zeros(0, dtype=np.int64)
        steps = [(none, none, none.astype(bool))]
        leaf, at = np.arange(len(leaves)), leaves
        while len(at):
            above = parent[at]
            on = above >= 0
            leaf, at, above = leaf[on], at[on], above[on]
            steps.append((leaf, number[above], side[at]))
            at = above
        way, asked, wanted = (np.concatenate([step[k] for step in steps]) for k in range(3))
        order = np.argsort(way, kind="stable")
        intercept = np.array(intercept, dtype=np.float64)
        for node in lone.tolist():
            if values is None:
                intercept[trees.targets[tree[node]]] += trees.value[node]
            else:
                intercept += values[int(trees.value[node])]
        if values is None:
            found, targets = trees.value[leaves][:, np.newaxis].astype(np.float64), trees.targets[tree[leaves]]
        else:
            found = values[trees.value[leaves].astype(np.int64)].astype(np.float64)
            targets = np.zeros(len(leaves), dtype=np.int64)
        return cls(
            view=view,
            owners_seen=owners_seen,
            questions=NodeQuestions(trees, nodes),
            leaf=way[order].astype(np.int32),
            question=asked[order].astype(np.int32),
            wanted=wanted[order].astype(bool),
            values=found,
            targets=targets,
            intercept=intercept,
        )

    def of_head(self, head: Head, *, link: Link) -> LeafTerms:
        """Return the sum on the scale on which the target is learned, with a link."""
        intercept = self.intercept * head.scale + head.shift
        return replace(self, values=self.values * head.scale, intercept=intercept, link=link, top=head.top)

    def margins(self, table: Table) -> np.ndarray:
        matrix, n_outputs = self.view(table), len(self.intercept)
        sums = np.repeat(self.intercept[np.newaxis], len(matrix), axis=0)
        if not len(self.leaf):
            return sums
        starts = np.flatnonzero(np.diff(self.leaf, prepend=-1))
        size = max(1, BATCH_CELLS // len(self.leaf))
        every = np.arange(len(self.questions.columns))
        for at in range(0, len(matrix), size):
            answers = self.questions.answers(matrix[at : at + size], every)
            reached = np.logical_and.reduceat(answers[:, self.question] == self.wanted, starts, axis=1)
            row, leaf = np.nonzero(reached)
            for k in range(self.values.shape[1]):
                place = (row + at) * n_outputs + self.targets[leaf] + k
                added = np.bincount(place, weights=self.values[leaf, k], minlength=sums.size)
                sums += added.reshape(sums.shape)
        return sums

    def cells(self, comparison: Comparison) -> float:
        n_rows, n_background = len(comparison.rows), len(comparison.background)
        steps = len(self.leaf) * (n_rows + n_background + STEP_CELLS)
        return float(steps + len(self.values) * n_rows * n_background)

    def shapley(self, comparison: Comparison, *, most_cells: float, until: float = float("inf")) -> np.ndarray | None:
        """Divide each leaf's value among those that lead a row, or a background row, to it; see :class:`Terms`."""
        n_rows, n_outputs = len(comparison.rows), len(self.intercept)
        shape = (n_rows, comparison.n_inputs, n_outputs)
        if not len(self.leaf):
            return np.zeros(shape)
        if (spare := most_cells - self.cells(comparison)) < 0:
            return None
        seen = self.owners_seen(comparison.owners, comparison.rows)
        of_column = {columns: frozenset().union(*(seen[c] for c in columns)) for columns in set(self.questions.columns)}
        players = [of_column[columns] for columns in self.questions.columns]
        n_mixed = sum(1 << len(owners) for owners in set(players) if len(owners) > 1)
        spare /= n_rows * len(comparison.background)
        most = len(self.values) + spare - MIXED_CELLS * n_mixed
        most = most / SHARED_WAYS if n_mixed else most
        ways = Ways.of(self.leaf, self.question, self.wanted, players, n_inputs=comparison.n_inputs, most=most)
        if ways is None:
            return None

        def mixed(row: int) -> np.ndarray:
            """Return the answers of mixed rows as the ways look for them, bool (n_places, n_background)."""
            n_background, found = len(comparison.background), []
            for owners, asked in ways.shared.items():
                rows = self.view(comparison.mixed(row, subsets(owners)))
                answers = self.questions.answers(rows, asked).reshape(-1, n_background, len(asked))
                found.append(answers.transpose(0, 2, 1).reshape(-1, n_background))
            return np.concatenate(found)

        every = np.arange(len(players))
        division = Division(
            ways,
            values=self.values,
            targets=self.targets,
            n_outputs=n_outputs,
            n_inputs=comparison.n_inputs,
            answers=lambda table: self.questions.answers(table, every),
            mixed=mixed,
            until=until,
        )
        return division.of(self.view(comparison.rows), self.view(comparison.background)).reshape(shape)


@dataclass(frozen=True, eq=False)
class SymmetricQuestions:
    """The questions of symmetric trees.

    Attributes:
        questions: Of all trees, flat, (n_questions,).
        columns: As of :class:`Asked`.
    """

    questions: Questions
    columns: tuple[frozenset[int], ...]

    def answers(self, matrix: np.ndarray, of: np.ndarray) -> np.ndarray:
        asked = {part.name: getattr(self.questions, part.name)[of] for part in fields(self.questions)}
        return Questions(**asked).answers(matrix)


def of_symmetric(
    trees: SymmetricTrees,
    *,
    view: Callable[[Table], np.ndarray],
    behind: Callable[[int], frozenset[int]],
    owners_seen: Callable[[Owners, Table], Owners],
    scale: float,
    intercept: np.ndarray,
) -> LeafTerms:
    """Take symmetric trees.

    Args:
        trees: The trees; their last columns may be statistics of others.
        view: As of :class:`LeafTerms`, with the statistics.
        behind: Returns the columns of a table's matrix that a column depends on.
        owners_seen: As of :class:`LeafTerms`.
        scale: Of the sum.
        intercept: float64 (n_outputs,).
    """
    asked = trees.questions
    depth = asked.feature.shape[1]
    flat = Questions(*(getattr(asked, part.name).ravel() for part in fields(asked)))
    n_asked = np.isfinite(asked.border).sum(axis=1)  # a tree that is less deep than others asks nothing more
    steps = []
    for n in np.unique(n_asked[n_asked > 0]).tolist():
        tree, number, at = np.indices((int((n_asked == n).sum()), 1 << n, n)).reshape(3, -1)
        tree = np.flatnonzero(n_asked == n)[tree]
        steps.append((trees.starts[tree] + number, tree * depth + at, (number >> at & 1).astype(bool)))
    none = np.zeros(0, dtype=np.int64)
    leaf, question, wanted = (
        np.concatenate([step[k] for step in [(none, none, none.astype(bool)), *steps]]) for k in range(3)
    )
    order = np.argsort(leaf, kind="stable")
    there, leaf = np.unique(leaf[order], return_inverse=True)
    lone = trees.values[trees.starts[n_asked == 0]].sum(axis=0)
    asked_of = flat.feature.tolist()
    known = {column: behind(column) for column in set(asked_of)}
    return LeafTerms(
        view=view,
        owners_seen=owners_seen,
        questions=SymmetricQuestions(flat, tuple(known[column] for column in asked_of)),
        leaf=leaf.astype(np.int32),
        question=question[order].astype(np.int32),
        wanted=wanted[order],
        values=scale * trees.values[there],
        targets=np.zeros(len(there), dtype=np.int64),
        intercept=intercept + scale * lone,
    )
