"""What the boosters share: one feature matrix, one way to stop, one frame of a fit.

LightGBM, XGBoost and CatBoost have early stopping of their own, but each loses
something when a deadline cuts in (LightGBM then returns the last round, not the
best).  Here a :class:`Progress` watches every round of all three, so that
patience, deadline, cancellation and fixed rounds mean the same.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import ClassVar

import numpy as np

from factory.data.preparation import Table
from factory.families._head import Head
from factory.families.base import Family, FitContext, Model, Sample
from factory.space import Parameters
from factory.spec import CurvePoint

PROBED_ROUNDS = 10
"""After that many rounds the speed is known well enough to say how many are affordable."""
LEAST_STEPS = 12
"""Rounds times learning rate that a fit should afford: 12/lr rounds (own measurement on twelve tables at 60 s)."""
HIGHEST_RATE = 0.3
"""A raised learning rate stays below this; beyond it boosting gets coarse (default of XGBoost)."""
LONGEST_PATIENCE = 300
"""Rounds without gain on tables up to 10,000 rows, fewer on larger ones (AutoGluon 1.6)."""


def matrix(table: Table) -> np.ndarray:
    """Return numeric columns, then codes, as one float32 array (n_rows, n_columns); NaN is missing, code 0 stays 0."""
    if not table.categorical_names:
        return np.ascontiguousarray(table.numeric)
    return np.concatenate([table.numeric, table.codes], axis=1, dtype=np.float32, casting="same_kind")


class Progress:
    """Decides after every round whether to go on; remembers the best round and the learning curve.

    Args:
        context: Deadline, cancellation and fixed rounds.
        learning_rate: Shrinkage of a round.
        n_rows: Training rows.
        validated: Whether validation losses will be recorded and may stop the training.
        may_raise: Whether to stop after ten rounds for a higher learning rate, if too few rounds are affordable.
    """

    def __init__(
        self, context: FitContext, *, learning_rate: float, n_rows: int, validated: bool, may_raise: bool
    ) -> None:
        self._context = context
        self._learning_rate = learning_rate
        self._may_raise = may_raise and context.rounds is None
        self._stops_early = validated and context.rounds is None
        if context.rounds is not None:
            self.limit = context.rounds
        else:
            self.limit = min(max(round((300 if validated else LEAST_STEPS) / learning_rate), 100), 10_000)
        shrunk = min(1.0, 10_000 / n_rows)
        self._patience = max(20, round(min(10 / learning_rate, LONGEST_PATIENCE) * shrunk))
        self._least = float("inf")
        self._first_round_at = 0.0
        self.done = 0
        self.best = 0
        self.going = True
        self.points: list[CurvePoint] = []
        self.raised_rate: float | None = None

    @property
    def on_curve(self) -> bool:
        """Whether the coming round is a point of the curve: each of the first 31, then 16 in every doubling."""
        step = self.done + 1
        return step % (1 << max(step.bit_length() - 5, 0)) == 0

    def record(self, *, train: float | None, validation: float | None) -> bool:
        """Take one round's losses (train only where :attr:`on_curve` asked for it); return whether to go on."""
        shown = self.on_curve
        self.done += 1
        if shown:
            self.points.append(CurvePoint(step=self.done, train=train, validation=validation))
        if self._stops_early and validation is not None:
            if validation < self._least:
                self._least, self.best = validation, self.done
        else:
            self.best = self.done
        self.best = max(self.best, 1)
        self.raised_rate = self._raise_rate()
        ended = self.done >= self.limit or self.done - self.best >= self._patience
        self.going = not (ended or self.raised_rate is not None or self._context.stopped)
        return self.going

    def _raise_rate(self) -> float | None:
        """Return a higher learning rate where the rounds left are too few for this one; None while time is ample."""
        if self.done == 1:
            self._first_round_at = time.perf_counter()
        if self.done != PROBED_ROUNDS or not self._may_raise:
            return None
        round_s = (time.perf_counter() - self._first_round_at) / (PROBED_ROUNDS - 1)
        affordable = 0.9 * self._context.deadline.left_s / max(round_s, 1e-9)
        raised = min(LEAST_STEPS / max(affordable, 1), HIGHEST_RATE)
        return raised if raised > 1.1 * self._learning_rate else None


class BoostingFamily(Family):
    """A family trained in rounds, each shrunk by the parameter ``learning_rate``."""

    iterative: ClassVar[bool] = True

    def fit(self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext) -> Model:
        """Boost; where ten rounds show that the deadline is too near, start again once with a higher learning rate."""
        asked = float(parameters["learning_rate"] or HIGHEST_RATE)

        def start(rate: float, *, may_raise: bool) -> tuple[Model, Progress]:
            validated = validation is not None
            progress = Progress(
                context, learning_rate=rate, n_rows=len(train), validated=validated, may_raise=may_raise
            )
            model = self._boost(
                train,
                validation,
                parameters={**parameters, "learning_rate": rate},
                context=context,
                head=Head.of(train.y, context),
                progress=progress,
            )
            model.curve = tuple(progress.points)
            return model, progress

        model, progress = start(asked, may_raise=True)
        if progress.raised_rate is not None:
            raised = progress.raised_rate
            model, _ = start(raised, may_raise=False)
            model.learning_rate = raised
        return model

    @abstractmethod
    def _boost(
        self,
        train: Sample,
        validation: Sample | None,
        *,
        parameters: Parameters,
        context: FitContext,
        head: Head,
        progress: Progress,
    ) -> Model:
        """Train until ``progress`` says no; return the model of its best round, with ``rounds`` set."""
