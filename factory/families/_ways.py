"""The division of leaves' values: which input columns lead to a leaf, as bits, for many leaves and rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from factory.families._terms import in_time

MOST_PLAYERS = 64
"""Input columns that one leaf may ask about: bits of a number."""
MOST_SHARED = 6
"""Input columns behind a leaf's questions to columns of several inputs; such a leaf becomes 2 to that power."""
MOST_WAYS = 300_000
"""Leaves after that: their steps, and a bit mask of each for every background row, take 150 MB for a moment."""
BATCH_CELLS = 4_000_000
"""Steps, or leaves, times rows looked at together."""


@dataclass(frozen=True, eq=False)
class Ways:
    """Leaves as masks over the input columns that they ask about; one that asks shared columns is there repeatedly.

    Attributes:
        leaf: Leaf behind each, int64 (n_ways,).
        first: Place in ``player`` of its first input column, int64 (n_ways,).
        player: Input columns of all, (n_bits,).
        width: Most input columns of one.
        full: Mask of all its input columns, (n_ways,).
        of_row: Mask of those that may have the row's value, (n_ways,).
        of_background: Mask of those that may have the background's, (n_ways,).
        starts: First step of each, int64 (n_ways,); the first one always holds.
        question: int64 (n_steps,); one more than there are always says yes.
        wanted: bool (n_steps,).
        kept: Mask of what is still right where a step does not hold, (n_steps,).
        shared: Owners of several, with the questions to their columns.
        shared_way: Of each step with such a question, int64 (n_shared_steps,).
        shared_place: Its place among the answers of mixed rows, int64 (n_shared_steps,).
        shared_wanted: bool (n_shared_steps,).
    """

    leaf: np.ndarray
    first: np.ndarray
    player: np.ndarray
    width: int
    full: np.ndarray
    of_row: np.ndarray
    of_background: np.ndarray
    starts: np.ndarray
    question: np.ndarray
    wanted: np.ndarray
    kept: np.ndarray
    shared: dict[frozenset[int], np.ndarray] = field(default_factory=dict)
    shared_way: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shared_place: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shared_wanted: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @classmethod
    def of(
        cls,
        leaf: np.ndarray,
        question: np.ndarray,
        wanted: np.ndarray,
        players: list[frozenset[int]],
        *,
        n_inputs: int,
        most: float,
    ) -> Ways | None:
        """Take leaves; None where that makes more than ``most`` ways, or a leaf asks about too many columns.

        Args:
            leaf: Leaf of each step, rising from 0 without a gap, int32 (n_steps,).
            question: Asked there, int32 (n_steps,).
            wanted: Answer that leads on to the leaf, bool (n_steps,).
            players: Input columns behind each question, (n_questions,).
            n_inputs: Number of input columns.
            most: Ways that there may be.
        """
        leaf, n_leaves = leaf.astype(np.int64), int(leaf[-1]) + 1
        kinds = list(dict.fromkeys(players))
        number = {owners: k for k, owners in enumerate(kinds)}
        kind = np.array([number[owners] for owners in players], dtype=np.int64)
        lone = np.array([min(owners) if len(owners) == 1 else -1 for owners in kinds], dtype=np.int64)[kind][question]
        # Input columns of each leaf, and which of them stand behind shared columns.
        keys, shared_keys, steps_of = [leaf[lone >= 0] * n_inputs + lone[lone >= 0]], [], {}
        for k, owners in enumerate(kinds):
            if len(owners) > 1:
                steps_of[owners] = np.flatnonzero(kind[question] == k)
                shared_keys += [leaf[steps_of[owners]] * n_inputs + player for player in sorted(owners)]
        common = np.unique(np.concatenate(shared_keys)) if shared_keys else np.zeros(0, dtype=np.int64)
        bits = np.unique(np.concatenate([*keys, common]))
        bit_leaf, n_bits = bits // n_inputs, np.bincount(bits // n_inputs, minlength=n_leaves)
        n_common = np.bincount(common // n_inputs, minlength=n_leaves)
        if n_bits.max() > MOST_PLAYERS or n_common.max() > MOST_SHARED:
            return None
        copies = 1 << n_common
        if (n_ways := int(copies.sum())) > min(most, MOST_WAYS):
            return None
        rank = np.arange(len(bits)) - (np.cumsum(n_bits) - n_bits)[bit_leaf]
        common_rank = np.arange(len(common)) - (np.cumsum(n_common) - n_common)[common // n_inputs]
        first_way = np.cumsum(copies) - copies
        of_leaf = np.repeat(np.arange(n_leaves), copies)
        choice = np.arange(n_ways) - first_way[of_leaf]
        width = int(n_bits.max())
        mask = np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if width <= 8 * size))
        one = mask.type(1)

        def repeated(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Return positions of things that stand once for each way of their leaves, and these ways."""
            times = copies[of]
            position = np.repeat(np.arange(len(of)), times)
            way = np.arange(len(position)) - np.repeat(np.cumsum(times) - times, times) + first_way[of[position]]
            return position, way

        at, way = repeated(bit_leaf)
        order = np.argsort(way, kind="stable")
        at, way = at[order], way[order]
        bit = one << rank[at].astype(mask)
        is_common = np.isin(bits, common)
        place = np.searchsorted(common, bits) if len(common) else np.zeros(len(bits), dtype=np.int64)
        inside = np.ones(len(at), dtype=bool)
        outside = np.ones(len(at), dtype=bool)
        chosen = is_common[at]
        inside[chosen] = (choice[way[chosen]] >> common_rank[place[at[chosen]]] & 1).astype(bool)
        outside[chosen] = ~inside[chosen]
        first = np.flatnonzero(np.diff(way, prepend=-1))

        def together(these: np.ndarray) -> np.ndarray:
            return np.asarray(np.bitwise_or.reduceat(np.where(these, bit, mask.type(0)), first))

        alone = np.flatnonzero(lone >= 0)
        step, step_way = repeated(leaf[alone])
        step = alone[step]
        step_rank = rank[np.searchsorted(bits, leaf[step] * n_inputs + lone[step])].astype(mask)
        everything = mask.type(np.iinfo(mask).max)
        way_of_step = np.concatenate([np.arange(n_ways), step_way])
        order = np.argsort(way_of_step, kind="stable")
        asked = np.concatenate([np.full(n_ways, len(players)), question[step]])[order]
        kept = np.concatenate([np.full(n_ways, everything), everything ^ (one << step_rank)])[order]
        found = cls(
            leaf=of_leaf,
            first=first,
            player=(bits % n_inputs)[at],
            width=width,
            full=together(np.ones(len(at), dtype=bool)),
            of_row=together(inside),
            of_background=together(outside),
            starts=np.flatnonzero(np.diff(way_of_step[order], prepend=-1)),
            question=asked,
            wanted=np.concatenate([np.ones(n_ways, dtype=bool), wanted[step]])[order],
            kept=kept,
        )
        if not steps_of:
            return found
        offset, ways, places, wants, shared = 0, [], [], [], {}
        for owners, steps in steps_of.items():
            asked_of, local = np.unique(question[steps], return_inverse=True)
            position, way = repeated(leaf[steps])
            which = np.zeros(len(position), dtype=np.int64)
            for j, player in enumerate(sorted(owners)):
                rank_of = common_rank[np.searchsorted(common, leaf[steps] * n_inputs + player)]
                which |= (choice[way] >> rank_of[position] & 1) << j
            ways.append(way)
            places.append(offset + which * len(asked_of) + local[position])
            wants.append(wanted[steps][position])
            shared[owners] = asked_of
            offset += len(asked_of) << len(owners)
        return replace(
            found,
            shared=shared,
            shared_way=np.concatenate(ways),
            shared_place=np.concatenate(places),
            shared_wanted=np.concatenate(wants),
        )


@dataclass(frozen=True, eq=False)
class Division:
    """Divides leaves' values among input columns.

    Attributes:
        ways: To the leaves.
        values: Of the leaves, float64 (n_leaves, width).
        targets: Output that the first of a leaf's values adds to, int64 (n_leaves,).
        n_outputs: Number of outputs.
        n_inputs: Number of input columns.
        answers: Returns the answers to all questions, bool (n_rows, n_questions), of rows as the trees see them.
        mixed: Returns, for a row's position, the answers of mixed rows, bool (n_places, n_background).
        until: Moment of the monotonic clock after which it is given up.
    """

    ways: Ways
    values: np.ndarray
    targets: np.ndarray
    n_outputs: int
    n_inputs: int
    answers: Callable[[np.ndarray], np.ndarray]
    mixed: Callable[[int], np.ndarray]
    until: float = float("inf")

    def of(self, rows: np.ndarray, background: np.ndarray) -> np.ndarray:
        """Return what each input column added, the mean over the background, float64 (n_rows * n_inputs * n_outputs,).

        Args:
            rows: float32 (n_rows, n_columns).
            background: float32 (n_background, n_columns).

        Raises:
            TimeoutError: it was given up.
        """
        ways = self.ways
        size = max(1, BATCH_CELLS // len(ways.question))
        known = [self._right(background[at : at + size]) for at in range(0, len(background), size)]
        of_background = np.concatenate(known) & ways.of_background
        added = np.zeros(len(rows) * self.n_inputs * self.n_outputs)
        size = 1 if ways.shared else size
        for at in range(0, len(rows), size):
            of_rows = self._right(rows[at : at + size]) & ways.of_row
            wrong = self.mixed(at)[ways.shared_place] != ways.shared_wanted[:, np.newaxis] if ways.shared else None
            for z, right in enumerate(of_background):
                in_time(self.until)
                reached = (of_rows | right) == ways.full
                if wrong is not None:
                    reached[:, ways.shared_way[wrong[:, z]]] = False
                row, way = np.nonzero(reached)
                theirs, others = of_rows[row, way], right[way]
                self._add(added, row + at, way, theirs & ~others, others & ~theirs)
        return added / len(background)

    def _right(self, matrix: np.ndarray) -> np.ndarray:
        """Return the masks of input columns that have what each way asks for, (n_rows, n_ways)."""
        ways = self.ways
        answers = np.pad(self.answers(matrix), ((0, 0), (0, 1)), constant_values=True)
        everything = ways.kept.dtype.type(np.iinfo(ways.kept.dtype).max)
        kept = np.where(answers[:, ways.question] == ways.wanted, everything, ways.kept)
        return np.asarray(np.bitwise_and.reduceat(kept, ways.starts, axis=1))

    def _add(
        self, added: np.ndarray, row: np.ndarray, way: np.ndarray, inside: np.ndarray, outside: np.ndarray
    ) -> None:
        """Add the values of leaves that are reached if the columns ``inside`` are the row's, those ``outside`` not."""
        ways, n_inside, n_outside = self.ways, np.bitwise_count(inside), np.bitwise_count(outside)
        for_inside, for_outside = _weights()[:, n_inside, n_outside]
        one = inside.dtype.type(1)
        for k in range(ways.width):
            bit = one << inside.dtype.type(k)
            share = np.where(inside & bit, for_inside, 0.0) - np.where(outside & bit, for_outside, 0.0)
            there = np.flatnonzero(share)
            leaf = ways.leaf[way[there]]
            place = (row[there] * self.n_inputs + ways.player[ways.first[way[there]] + k]) * self.n_outputs
            for w in range(self.values.shape[1]):
                np.add.at(added, place + self.targets[leaf] + w, share[there] * self.values[leaf, w])


@cache
def _weights() -> np.ndarray:
    """Return what of a leaf's value goes to each column of a that must, and of b that must not be in the set.

    Float64 (2, 65, 65): (a - 1)! b! / (a + b)! and a! (b - 1)! / (a + b)!; 0 where there is none of that kind.
    """
    n = MOST_PLAYERS + 1
    weights = np.zeros((2, n, n))
    for a in range(n):
        for b in range(n):
            whole = math.factorial(a + b)
            weights[0, a, b] = math.factorial(a - 1) * math.factorial(b) / whole if a else 0.0
            weights[1, a, b] = math.factorial(a) * math.factorial(b - 1) / whole if b else 0.0
    return weights
