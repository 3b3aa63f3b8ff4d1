"""What the boosters share: one way to see a table, one way to stop, one frame of a fit, one model.

LightGBM, XGBoost and CatBoost have early stopping of their own, but each loses
something when a deadline cuts in (LightGBM then returns the last round, not the
best).  Here a :class:`Progress` watches every round of all three, so that
patience, deadline, cancellation and fixed rounds mean the same.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.graph import DrawnTable
from factory.data.preparation import Table
from factory.families._drawing import draw_link
from factory.families._encoding import Inputs
from factory.families._head import Head
from factory.families._leaves import LeafTerms
from factory.families._terms import Link, Terms
from factory.families.base import Family, FitContext, Model, Sample
from factory.space import ChoiceDimension, Parameters, Space
from factory.spec import CurvePoint, Task

FEW_ROWS = 4
"""Rows up to which walking the trees in numpy is quicker than the framework itself."""
PROBED_ROUNDS = 10
"""After that many rounds the speed is known well enough to say how many are affordable."""
LEAST_STEPS = 12
"""Rounds times learning rate that a fit should afford: 12/lr rounds (own measurement on twelve tables at 60 s)."""
HIGHEST_RATE = 0.3
"""A raised learning rate stays below this; beyond it boosting gets coarse (default of XGBoost)."""
LONGEST_PATIENCE = 300
"""Rounds without gain on tables up to 10,000 rows, fewer on larger ones (AutoGluon 1.6)."""
INPUTS: Parameters = {"crosses": True, "categoricals": "native"}
"""Parameters of every booster that say how it sees a table; the framework is not given them."""
INPUT_SPACE: Space = {
    "crosses": ChoiceDimension(choices=(True, False)),
    "categoricals": ChoiceDimension(choices=("native", "target")),
}


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
        self.learning_rate = learning_rate
        self._may_raise = may_raise and context.rounds is None
        self._stops_early = validated and context.rounds is None
        if context.rounds is not None:
            self.limit = context.rounds
        else:
            self.limit = min(max(round((600 if validated else LEAST_STEPS) / learning_rate), 100), 10_000)
        shrunk = min(1.0, 10_000 / n_rows)
        self._patience = max(20, round(min(10 / learning_rate, LONGEST_PATIENCE) * shrunk))
        self._least = float("inf")
        self._rounds_at: list[float] = []
        self.done = 0
        self.best = 0
        self.going = True
        self.points: list[CurvePoint] = []
        self.raised_rate: float | None = None
        self._due = False

    @property
    def on_curve(self) -> bool:
        """Whether the coming round is a point of the curve: each of the first 31, then 16 in every doubling."""
        step = self.done + 1
        return step % (1 << max(step.bit_length() - 5, 0)) == 0

    def record(self, *, train: float | None, validation: float | None, measured: bool = True) -> bool:
        """Take one round's losses (train only where :attr:`on_curve` asked for it); return whether to go on.

        Losses that were ``measured`` some rounds before say nothing new: a point of the curve waits for the next ones.
        """
        self._due = self._due or self.on_curve
        self.done += 1
        if self._due and measured:
            self.points.append(CurvePoint(step=self.done, train=train, validation=validation))
            self._due = False
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
        if not self._may_raise or self.done > PROBED_ROUNDS:
            return None
        self._rounds_at.append(time.perf_counter())
        if self.done != PROBED_ROUNDS:
            return None
        # The median: a machine that was held up for a moment is not slow.
        round_s = float(np.median(np.diff(self._rounds_at)))
        affordable = 0.9 * self._context.deadline.left_s / max(round_s, 1e-9)
        raised = min(LEAST_STEPS / max(affordable, 1), HIGHEST_RATE)
        return raised if raised > 1.1 * self.learning_rate else None


class BoosterModel(Model):
    """A booster cut at its best round, between the inputs that its trees see and the head that reads them.

    Args:
        booster: The framework's own booster.
        head: The end of the model, with the rounds.
        inputs: What the trees see of a table.
    """

    _kept: tuple[LeafTerms | None] | None = None
    _unshared: ClassVar[tuple[str, ...]] = ("_kept",)
    """Attributes that no copy and no other process gets."""

    def __init__(self, booster: Any, head: Head, inputs: Inputs) -> None:
        self.booster = booster
        self.head = head
        self.inputs = inputs
        self.rounds = head.rounds

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._unshared}

    def predict(self, table: Table) -> np.ndarray:
        """Return probabilities or predictions; see :class:`~factory.families.base.Model`."""
        return self.head.decode(self._answer(self.inputs.of(table)))

    @property
    def link(self) -> Link:
        """What the head makes of the trees' sum."""
        return self.head.link

    def terms(self) -> Terms | None:
        """Return the trees' sum, which is kept, also that there is none, since reading them takes a while."""
        if self._kept is None:
            leaves = self._leaves()
            self._kept = (None if leaves is None else leaves.of_head(self.head, link=self.link),)
        return self._kept[0]

    def draw(self, table: DrawnTable) -> str:
        """Draw :meth:`predict`; see :class:`~factory.families.base.Model`."""
        graph = table.graph
        answer = draw_link(graph, self._draw_margin(self.inputs.draw(table)), self.head.task)
        if self.head.task is Task.BINARY:
            return graph.both(answer)
        return self.head.draw(graph, answer)

    def save(self, folder: Path) -> None:
        """Write the booster in its own format, the head as JSON, and inputs, where there are any, as npz."""
        self._write(folder)
        self.head.save(folder)
        self.inputs.save(folder)

    @abstractmethod
    def _answer(self, table: Table) -> np.ndarray:
        """Return what :meth:`Head.decode` takes, of a table as the trees see it."""

    @abstractmethod
    def _draw_margin(self, table: DrawnTable) -> str:
        """Draw the sum of the trees, float64 (n_rows, n_outputs), of a table as the trees see it."""

    @abstractmethod
    def _leaves(self) -> LeafTerms | None:
        """Return the trees as sums of leaves; None where they are of a kind that is not known."""

    def _view(self, table: Table) -> np.ndarray:
        return self.inputs.of(table).matrix

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the booster."""


def link(margin: np.ndarray, task: Task) -> np.ndarray:
    """Return what :meth:`Head.decode` takes of margins.

    Args:
        margin: Predictions, log-odds of the second class, or logarithms of shares, float64 (n_rows, n_outputs).
        task: What is predicted.

    Returns:
        Predictions or probabilities of the second class (n_rows,), or of each class (n_rows, n_classes).
    """
    if task is Task.REGRESSION:
        return margin[:, 0]
    if task is Task.BINARY:
        raised = np.exp(-np.abs(margin[:, 0]))
        return np.asarray(np.where(margin[:, 0] >= 0, 1.0, raised) / (1 + raised))
    shares = np.exp(margin - margin.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


class BoostingFamily(Family):
    """A family trained in rounds, each shrunk by the parameter ``learning_rate``."""

    iterative: ClassVar[bool] = True
    weighted: ClassVar[bool] = True
    learns_medians: ClassVar[bool] = True
    model: ClassVar[type[BoosterModel]]
    """Its model, made of a booster, a head and inputs."""

    def fit(self, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext) -> Model:
        """Boost; where ten rounds show that the deadline is too near, start again once with a higher learning rate."""
        head = Head.of(train.y, context)
        inputs, seen = Inputs.fit(
            replace(train, y=head.encode(train.y)),
            crosses=parameters.get("crosses") is not False,
            encodes=parameters.get("categoricals") == "target",
            n_classes=context.n_classes,
            seed=context.seed,
        )
        return self._rounds(seen, validation, parameters=parameters, context=context, head=head, inputs=inputs)

    def resume(
        self, model: Model, train: Sample, *, validation: Sample | None, parameters: Parameters, context: FitContext
    ) -> Model | None:
        """Boost on from the model's answers to the new rows; its inputs and its head stay as they are."""
        if not isinstance(model, self.model) or not self._resumable(model.booster):
            return None
        seen = replace(train, table=model.inputs.of(train.table), y=model.head.encode(train.y))
        return self._rounds(
            seen,
            validation,
            parameters=parameters,
            context=context,
            head=model.head,
            inputs=model.inputs,
            before=model.booster,
        )

    def merge(self, models: Sequence[Model]) -> Model | None:
        """Add up the models' trees, each weighted by its share and, in regression, by its own scale of the target."""
        boosted = [m for m in models if isinstance(m, self.model)]
        if len(boosted) < len(models) or not boosted:
            return None
        heads = [m.head for m in boosted]
        alike = len({(h.task, h.n_classes, h.target_scale) for h in heads}) == 1
        # Encoded columns differ from model to model, so that their trees do not fit one table.
        if not alike or len({m.inputs.crosses for m in boosted}) > 1 or any(m.inputs.encoding for m in boosted):
            return None
        head = Head.mean(heads)
        booster = self._sum([m.booster for m in boosted], [h.scale / (head.scale * len(heads)) for h in heads])
        return None if booster is None else self.model(booster, head, boosted[0].inputs)

    def _rounds(
        self,
        train: Sample,
        validation: Sample | None,
        *,
        parameters: Parameters,
        context: FitContext,
        head: Head,
        inputs: Inputs,
        before: Any = None,
    ) -> BoosterModel:
        """Boost on rows as the trees see them; with a raised learning rate where the deadline is too near."""
        held_out = None
        if validation is not None:
            held_out = replace(validation, table=inputs.of(validation.table), y=head.encode(validation.y))
        asked = float(parameters["learning_rate"] or HIGHEST_RATE)
        own = {name: value for name, value in parameters.items() if name not in INPUTS}

        def start(rate: float, *, may_raise: bool) -> tuple[BoosterModel, Progress]:
            progress = Progress(
                context, learning_rate=rate, n_rows=len(train), validated=held_out is not None, may_raise=may_raise
            )
            booster = self._boost(
                train,
                held_out,
                parameters={**own, "learning_rate": rate},
                context=context,
                progress=progress,
                before=before,
            )
            earlier = head.rounds if before is not None else 0
            model = self.model(booster, replace(head, rounds=earlier + progress.best), inputs)
            model.curve = tuple(progress.points)
            return model, progress

        model, progress = start(asked, may_raise=context.raises_rate)
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
        progress: Progress,
        before: Any,
    ) -> Any:
        """Train until ``progress`` says no; return the booster, cut at the best round.

        Tables are as the trees see them, targets as the head encodes them. With a booster ``before``, its trees come
        first and the new ones learn what it leaves.
        """

    @abstractmethod
    def _sum(self, boosters: list[Any], weights: list[float]) -> Any | None:
        """Return one booster whose raw score is the weighted sum of these boosters' scores; None where it cannot."""

    def _resumable(self, booster: Any) -> bool:  # noqa: ARG002 - most boosters can
        """Whether new trees can be put behind those of a booster."""
        return True
