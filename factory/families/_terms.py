"""What a model's answer is the link of: a sum of terms whose Shapley values are known exactly.

The values are those of the interventional game over **input** columns, the one that sampled explanations approach too:
a set of columns is worth the mean answer over background rows that have the explained row's values in these columns
(Lundberg and Lee 2017; Janzing, Minorics and Blöbaum 2020).  A prepared column may come from several input columns (a
product, days between two dates): its owners.  Who mixes a row with a background row does so before preparation, so that
such columns are never torn apart.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from factory.data.preparation import Table

Owners = tuple[frozenset[int], ...]
"""Input columns that each prepared column comes from: of the numeric ones, then of the categorical ones."""
Link = Literal["identity", "logistic", "softmax", "square", "exponential"]
"""From the sum to the answer: as it is; of the second class's log-odds; of scores of the classes; the square, or exp
- 1, of a number kept between 0 and the largest one learned."""
Method = Literal["tree_shap", "linear", "constant"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows to explain and the rows they are compared with, prepared.

    Attributes:
        rows: Of (n_rows,) rows.
        background: Of (n_background,) rows.
        owners: Of each prepared column.
        n_inputs: Number of input columns.
        mixed: Returns, for a row's position and k sets of input columns, a table (k * n_background,): the background
            once for each set, with the row's values in the set's columns.
    """

    rows: Table
    background: Table
    owners: Owners
    n_inputs: int
    mixed: Callable[[int, Sequence[frozenset[int]]], Table]


class Terms(ABC):
    """The sum behind a model's answers."""

    method: ClassVar[Method]
    link: Link
    top: float | None = None
    """Largest sum of a number that is bent; None where there is none."""

    @abstractmethod
    def margins(self, table: Table) -> np.ndarray:
        """Return the sums, float64 (n_rows, n_outputs)."""

    def answers(self, margins: np.ndarray) -> np.ndarray:
        """Return the model's answers of sums: float64 (n_rows, n_classes), or (n_rows, 1) numbers."""
        return linked(margins, self.link, top=self.top)

    @abstractmethod
    def cells(self, comparison: Comparison) -> float:
        """Return about how many leaves, or columns, times rows times background rows :meth:`shapley` looks at."""

    @abstractmethod
    def shapley(self, comparison: Comparison, *, most_cells: float, until: float = float("inf")) -> np.ndarray | None:
        """Return what each input column added to the sums, float64 (n_rows, n_inputs, n_outputs).

        Args:
            comparison: Rows and background.
            most_cells: Leaves, or columns, times rows times background rows that may be looked at.
            until: Moment of the monotonic clock after which it is given up.

        Returns:
            None where the cells do not suffice.

        Raises:
            TimeoutError: it was given up.
        """


def linked(margins: np.ndarray, link: Link, *, top: float | None = None) -> np.ndarray:
    """Return answers, float64 (n_rows, n_classes) or (n_rows, 1), of sums (n_rows, n_outputs).

    Args:
        margins: The sums.
        link: What is made of them.
        top: Largest sum of a number that is bent; None where there is none.
    """
    if link == "logistic":
        raised = np.exp(-np.abs(margins))
        second = np.where(margins >= 0, 1.0, raised) / (1 + raised)
        return np.concatenate([1 - second, second], axis=1)
    if link == "softmax":
        shares = np.exp(margins - margins.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))
    if link == "identity":
        return margins
    bounded = np.clip(margins, 0, top)
    return np.asarray(np.square(bounded) if link == "square" else np.expm1(bounded))


def subsets(players: frozenset[int]) -> list[frozenset[int]]:
    """Return all subsets; that at place k has the players, in rising order, whose bit of k is set."""
    ordered = sorted(players)
    return [frozenset(p for j, p in enumerate(ordered) if k >> j & 1) for k in range(1 << len(ordered))]


@dataclass(frozen=True, eq=False)
class Constant(Terms):
    """The same answer to every row.

    Attributes:
        value: float64 (n_outputs,).
    """

    method: ClassVar[Method] = "constant"
    value: np.ndarray
    link: Link = "identity"
    top: float | None = None

    def margins(self, table: Table) -> np.ndarray:
        return np.repeat(self.value[np.newaxis], len(table), axis=0)

    def cells(self, comparison: Comparison) -> float:  # noqa: ARG002
        return 0

    def shapley(
        self,
        comparison: Comparison,
        *,
        most_cells: float,  # noqa: ARG002
        until: float = float("inf"),  # noqa: ARG002
    ) -> np.ndarray | None:
        return np.zeros((len(comparison.rows), comparison.n_inputs, len(self.value)))


@dataclass(frozen=True, eq=False)
class ColumnTerms(Terms):
    """A term for each prepared column: a linear model, whatever it makes of a column.

    Attributes:
        terms: Returns the terms of some prepared columns, float64 (n_rows, n_of_these, n_outputs).
        n_columns: Number of prepared columns.
        intercept: float64 (n_outputs,).
        link: What is made of the sums.
        top: As of :class:`Terms`.
    """

    method: ClassVar[Method] = "linear"
    terms: Callable[[Table, Sequence[int]], np.ndarray]
    n_columns: int
    intercept: np.ndarray
    link: Link = "identity"
    top: float | None = None

    def margins(self, table: Table) -> np.ndarray:
        return np.asarray(self.terms(table, range(self.n_columns)).sum(axis=1) + self.intercept)

    def cells(self, comparison: Comparison) -> float:
        shared = {owners for owners in comparison.owners if len(owners) > 1}
        n_mixed = sum(len(comparison.background) << len(owners) for owners in shared)
        return float(len(comparison.rows) * (n_mixed + 1) * self.n_columns)

    def shapley(self, comparison: Comparison, *, most_cells: float, until: float = float("inf")) -> np.ndarray | None:
        """Return coefficient times (value - mean), summed over an input's columns; see :class:`Terms`.

        What comes from several input columns is divided among them by the definition, over all their subsets.
        """
        if self.cells(comparison) > most_cells:
            return None
        rows, n_background = comparison.rows, len(comparison.background)
        shared: dict[frozenset[int], list[int]] = {}
        for column, owners in enumerate(comparison.owners):
            if len(owners) > 1:
                shared.setdefault(owners, []).append(column)
        added = np.zeros((len(rows), comparison.n_inputs, len(self.intercept)))
        alone = [column for column, owners in enumerate(comparison.owners) if len(owners) == 1]
        changes = self.terms(rows, alone) - self.terms(comparison.background, alone).mean(axis=0)
        for at, column in enumerate(alone):
            (owner,) = comparison.owners[column]
            added[:, owner] += changes[:, at]
        for owners, columns in shared.items():
            sets = subsets(owners)
            for row in range(len(rows)):
                in_time(until)
                worth = self.terms(comparison.mixed(row, sets), columns).sum(axis=1)
                worth = worth.reshape(len(sets), n_background, -1).mean(axis=1)
                for j, owner in enumerate(sorted(owners)):
                    added[row, owner] += _value(worth, j, len(owners))
        return added


def in_time(until: float) -> None:
    """Raise TimeoutError where a moment of the monotonic clock has come."""
    if time.monotonic() >= until:
        raise TimeoutError


def _value(worth: np.ndarray, player: int, n_players: int) -> np.ndarray:
    """Return a player's Shapley value of what each subset is worth, (2 ** n_players, n_outputs)."""
    value = np.zeros(worth.shape[1])
    for k in range(len(worth)):
        if not k >> player & 1:
            size = k.bit_count()
            weight = math.factorial(size) * math.factorial(n_players - size - 1) / math.factorial(n_players)
            value += weight * (worth[k | 1 << player] - worth[k])
    return value
