"""The contract of a model family: space, portfolio, fit, predict, save, load.

A family is one file in this folder (or an entry point in ``factory.families``)
with a module-level ``PLUGIN`` that is a :class:`Family`.  It sees prepared
:class:`~factory.data.preparation.Table` arrays, never a data frame, and
imports its framework inside its methods only, so that naming a family costs
nothing.  ``factory/testing/families.py`` holds the suite that each passes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from factory.data.graph import CannotDraw, DrawnTable
from factory.data.preparation import Table
from factory.families._terms import Link, Terms
from factory.space import Parameters, Space
from factory.spec import CurvePoint, Task

Loss = Literal["squared", "absolute"]
"""Error that a regression learns by: the least squared one is the mean's, the least absolute one the median's."""


@dataclass(frozen=True)
class Deadline:
    """A moment on the wall clock, so that it means the same in every process."""

    at: float = float("inf")

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that many seconds from now."""
        return cls(time.time() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at - time.time()

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self.left_s <= 0


@dataclass(frozen=True)
class Shape:
    """What a portfolio may look at: size, task and types, never a dataset's name. 0 where something is not known.

    Attributes:
        n_rows: Training rows of one fold.
        n_columns: Feature columns.
        n_categorical: Categorical ones among them.
        most_levels: Levels of the categorical column that has the most.
        n_classes: Number of classes; 0 for regression.
        n_crosses: Products and ratios among the prepared columns.
        loss: Error by which quick fits of a regression did better.
    """

    n_rows: int
    n_columns: int = 0
    n_categorical: int = 0
    most_levels: int = 0
    n_classes: int = 0
    n_crosses: int = 0
    loss: Loss = "squared"


@dataclass(frozen=True)
class Bet:
    """A configuration to try first.

    Attributes:
        parameters: A point of the family's space.
        rank: Place among the bets of all families: 10 is tried before 20; ties go in the recipe's order of families.
    """

    parameters: Parameters
    rank: int


@dataclass(frozen=True)
class Sample:
    """Rows to train on or to validate with.

    Attributes:
        table: Prepared columns, (n_rows, ...).
        y: Class indices 0..n_classes-1 as int64 (n_rows,), or float64 targets (n_rows,).
        weight: Weight of each row, float64 (n_rows,) with mean 1; None where all count the same.
        group: Number of each row's group, int64 (n_rows,), where whole groups validate; else None.
    """

    table: Table
    y: np.ndarray
    weight: np.ndarray | None = None
    group: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, chosen: np.ndarray) -> Sample:
        """Return some of the rows, by position."""
        weight, group = (None if part is None else part[chosen] for part in (self.weight, self.group))
        return Sample(self.table.rows(chosen), self.y[chosen], weight, group)


@dataclass(frozen=True)
class FitContext:
    """What one fit may use.

    Attributes:
        task: What is predicted.
        n_classes: Number of classes over the whole dataset; 0 for regression. A class may be absent in ``train``.
        seed: The only source of randomness.
        threads: Threads that Ray granted.
        deadline: Stop training at this moment and keep the best so far.
        rounds: Fixed number of rounds or epochs (a refit: no early stopping, no validation), or None.
        keep_going: Called after each round or epoch; False stops the fit at once (memory, cancellation).
        target_scale: Regression: the scale on which the target is learned; ``sqrt`` and ``log`` (of 1 + y) take
            targets from 0 up only.
        loss: Regression: error on that scale that is learned by; ``absolute`` for families that learn medians.
        raises_rate: Whether a near deadline may raise a booster's learning rate; later folds keep that of the first.
    """

    task: Task
    n_classes: int
    seed: int
    threads: int = 1
    deadline: Deadline = field(default_factory=Deadline)
    rounds: int | None = None
    keep_going: Callable[[], bool] = lambda: True
    target_scale: Literal["raw", "sqrt", "log"] = "raw"
    loss: Loss = "squared"
    raises_rate: bool = True

    @property
    def stopped(self) -> bool:
        """Whether training has to end now."""
        return self.deadline.passed or not self.keep_going()


class Model(ABC):
    """A fitted model.

    Attributes:
        rounds: Rounds or epochs of the best iteration; 0 where the family has none.
        curve: Learning curve, thinned to at most 200 points; empty where there is none.
        learning_rate: The rate that was used where a near deadline made the fit raise it, else None; a refit with
            fixed ``rounds`` has to be given it as its parameter.
    """

    rounds: int = 0
    curve: tuple[CurvePoint, ...] = ()
    learning_rate: float | None = None

    @abstractmethod
    def predict(self, table: Table) -> np.ndarray:
        """Return probabilities float64 (n_rows, n_classes), rows summing to 1, or predictions float64 (n_rows,)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model into an existing empty folder, in the framework's own safe format; never pickle."""

    def draw(self, table: DrawnTable) -> str:  # noqa: ARG002
        """Draw :meth:`predict` as a part of the table's ONNX graph.

        Returns:
            Name of the tensor with the probabilities, float64 (n_rows, n_classes), or predictions, (n_rows, 1).

        Raises:
            CannotDraw: ONNX has nothing that would say the same.
        """
        raise CannotDraw("models of this family")

    @property
    def link(self) -> Link | None:
        """What :meth:`predict` makes of a sum; None where the family has no sums, or does not tell them."""
        return None

    def terms(self) -> Terms | None:
        """Return that sum, for exact explanations; None where it cannot be told."""
        return None

    def gains(self) -> np.ndarray | None:
        """Return the total gain of each prepared column, float64 (n_columns,); None where the family has none."""
        return None


class Family(ABC):
    """A kind of model. Instances hold no state."""

    name: ClassVar[str]
    framework: ClassVar[str]
    """Distribution it is made with, as shown on the leaderboard: scikit-learn, lightgbm, torch, ..."""
    pool: ClassVar[str] = "trees"
    """Workers are kept by pool, so that one process holds one heavy framework: trees, torch or tensorflow."""
    modules: ClassVar[tuple[str, ...]] = ()
    """What a fit imports: brought in before its time begins to count, since all later fits of the process use it."""
    distributed: ClassVar[bool] = False
    """Whether it can train on several workers through Ray Train."""
    iterative: ClassVar[bool] = False
    """Whether it trains in rounds or epochs (has learning curves and honours ``rounds``)."""
    quick: ClassVar[bool] = False
    """Whether a fit takes no more than a second or two on tens of thousands of rows."""
    rounds_grow: ClassVar[bool] = True
    """Whether more rows want more rounds; not so where rounds are steps of a penalty path."""
    learns_medians: ClassVar[bool] = False
    """Whether a regression can learn by the absolute error (:attr:`FitContext.loss`)."""
    weighted: ClassVar[bool] = False
    """Whether it honours :attr:`Sample.weight`."""
    rowwise: ClassVar[bool] = False
    """Whether a row is answered to the last bit as it is alone, whatever rows stand beside it.

    Not so where rows are multiplied with matrices: how those sums are taken depends on how many there are."""
    tasks: ClassVar[frozenset[Task]] = frozenset(Task)

    @abstractmethod
    def space(self, task: Task) -> Space:
        """Return the full search space."""

    @abstractmethod
    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        """Return configurations to try first, the best bet first (lowest rank); every value lies within the space."""

    @abstractmethod
    def fit(self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext) -> Model:
        """Fit one model.

        With ``validation`` and no ``context.rounds``, early stopping uses the validation rows. The deadline and
        ``keep_going`` are honoured within a round or an epoch. Same inputs and seed give the same model.
        """

    @abstractmethod
    def load(self, folder: Path) -> Model:
        """Load what :meth:`Model.save` wrote, without unpickling anything."""

    def merge(self, models: Sequence[Model]) -> Model | None:  # noqa: ARG002
        """Return one model that answers as the mean of these, cheaper than calling each; None where it cannot.

        The models are of this family and saw tables of the same preparation. The mean is taken where the family adds
        up: boosters add numbers on the scale on which the target is learned, and log-odds (scores before the link) of
        classes; forests add numbers and probabilities.
        """
        return None

    def resume(
        self,
        model: Model,  # noqa: ARG002
        train: Sample,  # noqa: ARG002
        *,
        validation: Sample | None,  # noqa: ARG002
        parameters: Parameters,  # noqa: ARG002
        context: FitContext,  # noqa: ARG002
    ) -> Model | None:
        """Return a model that goes on from ``model`` with further rounds on new rows; None where it cannot.

        The new model keeps what ``model`` knows of its inputs and of the target's scale; ``context.rounds`` counts the
        further rounds only, the new model's ``rounds`` all of them.
        """
        return None

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:  # noqa: ARG002
        """Estimate the additional memory of a fit, before it is started."""
        return 3 * n_rows * n_columns * 8 / 1e6 + 50
