"""Walking many trees at once in numpy: for one row, quicker than the frameworks' own ways in and out.

Median of one row on one core (2.5 GHz): a forest of 100 trees .6 ms, of 800 trees 1.4 ms (scikit-learn: 10 ms and
more).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVELS = 31
"""Levels of a category that a split on a set of them can tell apart: bits of a number, one more for a missing value."""
_MISSING = np.int32(-(2**31))
_INNER, _SET = -1, -2
STRIDE = 4
"""Steps down all trees between two looks at which of them have come to a leaf."""


@dataclass(frozen=True)
class Trees:
    """Binary trees, one after the other, each depth-first: the left child of a node is the node after it.

    What a walk needs of a node lies together, so that a visit touches one line of the cache. A leaf leads to itself:
    walks of different lengths go on in step, and nobody has to ask at each node whether it is one.

    Attributes:
        roots: First node of each tree, int32 (n_trees,).
        steps: Of each node, int32 (n_nodes, 4): 2 * column, and 1 more where a missing value goes left; the bits of the
            float32 up to which a value goes left, NaN for a leaf; the right child, or the leaf itself; the leaf's
            place among what the leaves answer, -1 for others. A node that splits on a set of levels has -2 there, and
            in the second place a bit for each level that goes right, the highest one for a missing value.
        sets: Whether any node splits on a set.
    """

    roots: np.ndarray
    steps: np.ndarray
    sets: bool = False

    @classmethod
    def from_arrays(
        cls,
        *,
        roots: np.ndarray,
        feature: np.ndarray,
        threshold: np.ndarray,
        right: np.ndarray,
        missing_left: np.ndarray,
    ) -> Trees:
        """Return trees that stand depth-first, as :meth:`arrays` takes them apart.

        Args:
            roots: As the attribute.
            feature: Column that a node splits on, -1 for a leaf, int32 (n_nodes,).
            threshold: A value up to this goes left, float32 (n_nodes,).
            right: Right child, or of a leaf its place among the answers, int32 (n_nodes,).
            missing_left: Whether a missing value goes left, bool (n_nodes,).
        """
        leaf = feature < 0
        steps = np.empty((len(feature), 4), dtype=np.int32)
        steps[:, 0] = np.where(leaf, 0, 2 * feature + missing_left)
        steps[:, 1] = np.where(leaf, np.float32(np.nan), threshold).astype(np.float32).view(np.int32)
        steps[:, 2] = np.where(leaf, np.arange(len(feature)), right)
        steps[:, 3] = np.where(leaf, right, _INNER)
        return cls(roots.astype(np.int32), steps)

    @classmethod
    def from_children(
        cls,
        *,
        roots: np.ndarray,
        feature: np.ndarray,
        threshold: np.ndarray,
        left: np.ndarray,
        right: np.ndarray,
        missing_left: np.ndarray,
        sets: np.ndarray | None = None,
    ) -> Trees:
        """Return trees whose nodes stand in any order; a leaf has no left child (-1) and answers with its own number.

        Args:
            roots: First node of each tree, (n_trees,).
            feature: Column that a node splits on, (n_nodes,).
            threshold: A value up to this goes left, float32 (n_nodes,).
            left: Left child, (n_nodes,).
            right: Right child, (n_nodes,).
            missing_left: Whether a missing value goes left, bool (n_nodes,).
            sets: Bits of the levels that go right, int32 (n_nodes,); 0 of a node that splits on a threshold.
        """
        levels, at = [], roots
        while len(at):
            levels.append(at)
            inner = at[left[at] >= 0]
            at = np.concatenate([left[inner], right[inner]])
        size, place = np.ones(len(left), dtype=np.int64), np.zeros(len(left), dtype=np.int64)
        for at in reversed(levels):
            inner = at[left[at] >= 0]
            size[inner] += size[left[inner]] + size[right[inner]]
        place[roots] = np.cumsum(size[roots]) - size[roots]
        for at in levels:
            inner = at[left[at] >= 0]
            place[left[inner]] = place[inner] + 1
            place[right[inner]] = place[inner] + 1 + size[left[inner]]
        nodes = np.concatenate(levels)
        order = np.empty(len(nodes), dtype=np.int64)  # nodes that no root leads to are left out
        order[place[nodes]] = nodes
        leaf = left[order] < 0
        found = cls.from_arrays(
            roots=place[roots],
            feature=np.where(leaf, -1, feature[order]),
            threshold=threshold[order],
            right=np.where(leaf, order, place[right[order]]),
            missing_left=missing_left[order],
        )
        if sets is None or not sets.any():
            return found
        on_set = ~leaf & (sets[order] != 0)
        bits = sets[order] | np.where(missing_left[order], np.int32(0), _MISSING)
        found.steps[on_set, 1], found.steps[on_set, 3] = bits[on_set], _SET
        return cls(found.roots, found.steps, sets=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays as they are stored, see :meth:`from_arrays`."""
        place, right, row = self.steps[:, 0], self.steps[:, 2], self.steps[:, 3]
        leaf = row >= 0
        return {
            "roots": self.roots,
            "feature": np.where(leaf, -1, place // 2).astype(np.int32),
            "threshold": np.where(leaf, np.float32(-2), np.ascontiguousarray(self.steps[:, 1]).view(np.float32)),
            "right": np.where(leaf, row, right).astype(np.int32),
            "missing_left": (place % 2 == 1) & ~leaf,
        }

    @classmethod
    def joined(cls, parts: Sequence[Trees], n_answers: Sequence[int]) -> Trees:
        """Return all trees behind one another; the answers of each part follow those of the part before."""
        roots, steps, first_node, first_answer = [], [], 0, 0
        for part, n in zip(parts, n_answers, strict=True):
            roots.append(part.roots + first_node)
            moved = part.steps.copy()
            moved[:, 2] += first_node
            moved[moved[:, 3] >= 0, 3] += first_answer
            steps.append(moved)
            first_node += len(part.steps)
            first_answer += n
        return cls(np.concatenate(roots).astype(np.int32), np.concatenate(steps), sets=any(p.sets for p in parts))

    def on_columns(self, columns: np.ndarray) -> Trees:
        """Return the trees as they split another table, whose column ``columns[j]`` is what was column j."""
        steps = self.steps.copy()
        steps[:, 0] = 2 * columns[steps[:, 0] // 2] + steps[:, 0] % 2
        return Trees(self.roots, steps, sets=self.sets)

    def answers(self, X: np.ndarray) -> np.ndarray:
        """Return the place of the answer that each tree has for each float32 row of X, int32 (n_rows * n_trees,)."""
        # Each column twice, as it is and with missing values below all others: NaN compares as not below, so to the
        # right, and whoever sends it left looks at the second one.
        places = np.stack([X, np.where(np.isnan(X), np.float32(-np.inf), X)], axis=2).ravel()
        at = np.tile(self.roots, len(X))
        first = np.repeat(np.arange(len(X), dtype=np.int32) * np.int32(2 * X.shape[1]), len(self.roots))
        bits = _bits(X) if self.sets else None
        ends, open_ = np.empty(len(at), dtype=at.dtype), np.arange(len(at))
        while len(open_):
            for _ in range(STRIDE):
                step, before = self.steps.take(at, axis=0), at
                place = step[:, 0] + first
                left = places.take(place) <= step[:, 1].view(np.float32)
                if bits is not None:
                    left = np.where(step[:, 3] == _SET, (bits.take(place >> 1) & step[:, 1]) == 0, left)
                at = np.where(left, at + 1, step[:, 2])
            ends[open_] = at
            moved = at != before
            at, first, open_ = at[moved], first[moved], open_[moved]
        found: np.ndarray = self.steps[ends, 3]
        return found


def _bits(X: np.ndarray) -> np.ndarray:
    """Return the bit of each value's level, int32 (n_rows * n_columns,); 0 of what can be in no set."""
    missing = np.isnan(X)
    level = np.where(missing, -1, X).astype(np.int64)
    known = (level >= 0) & (level < LEVELS)
    found = np.where(known, np.int64(1) << np.where(known, level, 0), 0).astype(np.int32)
    return np.asarray(np.where(missing, _MISSING, found)).ravel()
