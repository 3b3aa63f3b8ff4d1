"""How columns and target are best shown to the families: a second of quick fits before the search.

Three questions are worth asking before anything else is tried, since the answers
hold for every family and every fold: on which scale a skewed target is learned,
which calendar parts of dates are but noise, and which products and ratios of
numeric columns help.  They are answered by small LightGBM fits on a part of the
rows; the page ``docs/decisions/representation.md`` holds what they cost and what
they bring.
"""

from __future__ import annotations

import importlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from factory.data.crosses import Cross, CrossedColumns
from factory.data.dataset import Dataset
from factory.data.preparation import Preparation, Table
from factory.families.base import Deadline, FitContext, Loss, Model, Sample, Shape
from factory.search.metric import Metric
from factory.search.plan import family
from factory.search.splits import Split
from factory.space import Parameters
from factory.spec import ColumnType, Task

FILE = "representation.json"
TargetScale = Literal["raw", "sqrt", "log"]

LEAST_ROWS = 50
"""Training rows below which a quick fit says nothing."""
MOST_ROWS = 8_000
"""Training rows of a quick fit."""
MOST_CELLS = 400_000
"""Rows times columns of a quick fit; wider tables are probed on fewer rows."""
FEWEST_ROWS = 500
"""Training rows of a quick fit on a table however wide, if it has so many."""
MOST_COLUMNS = 50
"""Columns of a quick fit, those of the largest gain in a first, coarse one."""
WIDEST = 5_000
"""Columns beyond which not even a coarse fit is quick."""
MOST_CROSSED = 10
"""Numeric columns whose pairs are tried, those of the largest gain (45 pairs, 90 candidates)."""
KEPT_CROSSES = 14
"""Crosses that are kept (own measurement: 14 of 90 were best on twelve tables)."""
ACCEPTED = 0.997
"""Share of the loss that has to be undercut; quick fits are not exact to less."""
SKEWED = 1.0
"""Skewness above which another target scale is tried."""
HEAVY_TAILED = 30.0
"""Kurtosis of the target above which a quick fit is too noisy to refuse crosses, which help there as a rule."""
ROUNDS = 120
"""Rounds of a quick fit that is scored; with 60, crosses and bent targets looked worse than they are on long fits.
A round of K classes is K trees: 240/K rounds from three classes on, but no fewer than what ranks columns.
"""
SELECTION_ROUNDS = 40
"""Rounds of a quick fit that only ranks columns by gain."""
MOST_CLASSES = 20
"""Classes beyond which there are too few rows of each for a quick fit."""

DOUBTED = ("day", "weekday")
"""Calendar parts that are left out where that lowers the loss: few things turn on them, and each of their values is a
set of few days, which a tree learns by heart. The others are places on a line or a circle of the date itself."""
_BENT: tuple[TargetScale, ...] = ("sqrt", "log")
_QUICK: Parameters = {
    "learning_rate": 0.12,
    "num_leaves": 31,
    "min_data_in_leaf": 10,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.9,
    "lambda_l1": 0.0,
    "lambda_l2": 1.0,
    "cat_smooth": 10.0,
    "extra_trees": False,
}
_COARSE: Parameters = {**_QUICK, "learning_rate": 0.3, "num_leaves": 4, "feature_fraction": 1.0}
_COARSE_ROUNDS = 20


@dataclass(frozen=True)
class Representation:
    """What a search found out about its data before the first trial.

    Attributes:
        target_scale: Scale on which a regression target is learned.
        loss: Error on that scale by which quick fits of a regression did better.
        crosses: Products and ratios to add to the prepared columns.
        omitted: Calendar parts that no date column is prepared with.
    """

    target_scale: TargetScale = "raw"
    loss: Loss = "squared"
    crosses: tuple[Cross, ...] = ()
    omitted: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write it as JSON into an existing folder."""
        document = {
            "target_scale": self.target_scale,
            "loss": self.loss,
            "crosses": [c.model_dump() for c in self.crosses],
            "omitted": self.omitted,
        }
        (folder / FILE).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Representation:
        """Read what :meth:`save` wrote."""
        document = json.loads((folder / FILE).read_text(encoding="utf-8"))
        crosses = tuple(Cross.model_validate(c) for c in document["crosses"])
        loss = document.get("loss", "squared")
        return cls(document["target_scale"], loss, crosses, tuple(document.get("omitted", ())))


def represent(
    dataset: Dataset,
    split: Split,
    metric: Metric,
    *,
    seed: int,
    deadline: Deadline,
    judging: np.ndarray | None = None,
) -> Representation:
    """Return the representation that quick fits prefer.

    A decision that the deadline cuts off stays neutral: the target as it is, all calendar parts, no crosses.

    Args:
        dataset: The rows of the search.
        split: Fold 0; quick fits learn from a part of its training rows, and are scored on its validation rows and
            on training rows that they have not seen.
        judging: These training rows, int64 (n_judging,), where random ones are known by their neighbours in time or
            their group; a random quarter if None.
        metric: What the search optimizes, always on the target as it is.
        seed: Chooses the rows, and seeds the fits.
        deadline: No fit is started that may end later.
    """
    probe = _Probe.of(dataset, split, metric, seed=seed, deadline=deadline, judging=judging)
    if probe is None:
        return Representation(loss=metric.loss)
    target_scale = probe.target_scale()
    probe.choose_loss(target_scale)
    omitted = probe.omit(target_scale)
    return Representation(target_scale, probe.loss, probe.crosses(target_scale), omitted)


@dataclass
class _Probe:
    """One table, two draws of training rows, and the rows that score both.

    Attributes:
        draws: Rows to learn from; the second differs from the first where there are enough.
        judged: Rows that score.
        circular: Calendar parts, whose values are places on a circle and not amounts; products of them say nothing.
        loss: Error that fits learn by.
        longest_s: Seconds of the longest fit so far.
        known: Losses that were already found.
    """

    metric: Metric
    n_classes: int
    seed: int
    deadline: Deadline
    draws: tuple[Sample, ...]
    judged: Sample
    circular: frozenset[str]
    loss: Loss = "squared"
    longest_s: float = 0.0
    known: dict[tuple[tuple[Cross, ...], TargetScale, Loss], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        split: Split,
        metric: Metric,
        *,
        seed: int,
        deadline: Deadline,
        judging: np.ndarray | None = None,
    ) -> _Probe | None:
        """Return a probe, or None where quick fits cannot say anything."""
        types = {c: t for c, t in dataset.types.items() if t not in (ColumnType.TEXT, ColumnType.IDENTIFIER)}
        n_classes = len(dataset.classes)
        learning = split.train if judging is None else np.setdiff1d(split.train, judging)
        if len(learning) < LEAST_ROWS or not 0 < len(types) <= WIDEST or n_classes > MOST_CLASSES:
            return None
        width = len(types) * max(n_classes if n_classes > 2 else 1, 1)
        most = min(max(MOST_CELLS // width, FEWEST_ROWS), MOST_ROWS)
        pool = np.random.default_rng(seed).permutation(learning)
        if judging is None:
            n_judged = min(len(pool) // 4, most // 2)
            judging, pool = pool[:n_judged], pool[n_judged:]
        drawn = [pool[:most], pool[-most:]]
        judged = np.concatenate([split.validation[:most], judging[: most // 2]])
        y = dataset.y
        if any(len(np.unique(y[rows])) < 2 for rows in (*drawn, judged)):
            return None
        frame = dataset.frame[list(types)]
        preparation = Preparation.fit(frame.iloc[drawn[0]], types, seed=seed)
        if not preparation.columns:
            return None
        draws = tuple(Sample(preparation.transform(frame.iloc[rows]), y[rows], dataset.weight(rows)) for rows in drawn)
        held_out = Sample(preparation.transform(frame.iloc[judged]), y[judged], dataset.weight(judged))
        dates = tuple(f"{c}:" for c, t in types.items() if t is ColumnType.DATETIME)
        names = draws[0].table.numeric_names
        circular = frozenset(n for n in names if dates and n.startswith(dates) and not n.endswith(":days"))
        probe = cls(metric, n_classes, seed, deadline, draws, held_out, circular)
        if draws[0].table.n_columns > MOST_COLUMNS and probe._in_time(1):
            probe._narrow()
        return probe

    def _narrow(self) -> None:
        """Keep the columns that a coarse fit gains most from."""
        gains = self._fit(self.draws[0], "raw", rounds=_COARSE_ROUNDS, parameters=_COARSE).gains()
        if gains is None:
            return
        kept = np.sort(np.argsort(-gains, kind="stable")[:MOST_COLUMNS])
        self.draws = tuple(_with_columns(draw, kept) for draw in self.draws)
        self.judged = _with_columns(self.judged, kept)

    def target_scale(self) -> TargetScale:
        """Return the scale of the least loss; ``raw`` where the target is not skewed, or may be negative."""
        y = np.concatenate([s.y for s in (*self.draws, self.judged)])
        if self.metric.task is not Task.REGRESSION or y.min() < 0 or _standard_moment(y, 3) <= SKEWED:
            return "raw"
        best: TargetScale = "raw"
        least = self._loss((), "raw")
        for scale in _BENT:
            loss = self._loss((), scale)
            if loss[0] < ACCEPTED * least[0]:
                best, least = scale, loss
        return best

    def choose_loss(self, target_scale: TargetScale) -> None:
        """Let further fits learn by the absolute error where the metric is of medians, and less by that."""
        if self.metric.loss == "absolute":
            by_squares = self._loss((), target_scale)
            self.loss = "absolute"
            if not self._loss((), target_scale)[0] < by_squares[0]:
                self.loss = "squared"

    def omit(self, target_scale: TargetScale) -> tuple[str, ...]:
        """Leave out the doubted calendar parts without which the loss is lower, of all dates alike; return which."""
        omitted: list[str] = []
        for part in () if self._noisy else DOUBTED:
            names = self.draws[0].table.numeric_names
            kept = [j for j, name in enumerate(names) if not (name in self.circular and name.endswith(f":{part}"))]
            if len(kept) == len(names):
                continue
            places = np.array([*kept, *range(len(names), self.draws[0].table.n_columns)])
            narrow = replace(
                self,
                draws=tuple(_with_columns(draw, places) for draw in self.draws),
                judged=_with_columns(self.judged, places),
                known={},
            )
            loss, reference = narrow._loss((), target_scale), self._loss((), target_scale)
            self.longest_s = max(self.longest_s, narrow.longest_s)
            if loss[0] < ACCEPTED * reference[0]:
                self.draws, self.judged, self.known = narrow.draws, narrow.judged, narrow.known
                omitted.append(part)
        return tuple(omitted)

    def crosses(self, target_scale: TargetScale) -> tuple[Cross, ...]:
        """Return the crosses of the largest gain, none where they do not lower the loss."""
        candidates = self._candidates(target_scale)
        if not candidates or not self._in_time(len(self.draws)):
            return ()
        first = self.draws[0]
        n_plain = len(first.table.numeric_names)
        gains = self._gains(_crossed(first, candidates), target_scale)
        gains = gains[n_plain : n_plain + len(candidates)]
        order = np.argsort(-gains, kind="stable")[:KEPT_CROSSES]
        chosen = tuple(candidates[i] for i in order if gains[i] > 0)
        if self._noisy:
            return chosen
        # An AUC of few positives is noisy; where crosses truly help, the log-loss falls, too.
        loss, reference = self._loss(chosen, target_scale), self._loss((), target_scale)
        return chosen if loss[0] < ACCEPTED * reference[0] and loss[1] < reference[1] else ()

    @property
    def _noisy(self) -> bool:
        """Whether the target's tails are too heavy for a quick fit to tell small differences."""
        return self.metric.task is Task.REGRESSION and _standard_moment(self.draws[0].y, 4) > HEAVY_TAILED

    def _candidates(self, target_scale: TargetScale) -> tuple[Cross, ...]:
        """Return product and ratio of every pair of numeric columns, of those of the largest gain where many."""
        table = self.draws[0].table
        usable = [j for j, name in enumerate(table.numeric_names) if name not in self.circular]
        usable = [j for j in usable if len(np.unique(table.numeric[~np.isnan(table.numeric[:, j]), j])) > 2]
        if len(usable) > MOST_CROSSED:
            gains = self._gains(self.draws[0], target_scale)
            usable = sorted(sorted(usable, key=lambda j: -gains[j])[:MOST_CROSSED])
        zeros = (table.numeric == 0).mean(axis=0)
        crosses = []
        for a, b in itertools.combinations(usable, 2):
            crosses.append(Cross(kind="product", left=table.numeric_names[a], right=table.numeric_names[b]))
            over, under = (a, b) if zeros[b] <= zeros[a] else (b, a)
            crosses.append(Cross(kind="ratio", left=table.numeric_names[over], right=table.numeric_names[under]))
        return tuple(crosses)

    def _loss(self, crosses: tuple[Cross, ...], target_scale: TargetScale) -> np.ndarray:
        """Return the mean losses over the draws, float64 (2,); NaN where time does not suffice.

        NaN is never less than another loss, so that what is not known is not chosen.
        """
        key = (crosses, target_scale, self.loss)
        if key not in self.known:
            if not self._in_time(len(self.draws)):
                return np.full(2, np.nan)
            judged = _crossed(self.judged, crosses)
            models = [self._fit(_crossed(draw, crosses), target_scale) for draw in self.draws]
            answers = [model.predict(judged.table) for model in models]
            losses = [self._losses(answer) for answer in answers]
            self.known[key] = np.mean(losses, axis=0)
        return self.known[key]

    def _losses(self, answer: np.ndarray) -> tuple[float, float]:
        """Return the metric of predictions of the judged rows as a loss, and the log-loss of classes beside it."""
        y, weight = self.judged.y, self.judged.weight
        best = 0.0 if self.metric.name.startswith("neg_") else 1.0
        loss = best - self.metric.score(y, answer, weight=weight)
        if self.metric.task is Task.REGRESSION:
            return loss, loss
        return loss, -Metric("neg_log_loss", self.metric.task).score(y, answer, weight=weight)

    def _gains(self, train: Sample, target_scale: TargetScale) -> np.ndarray:
        gains = self._fit(train, target_scale, rounds=SELECTION_ROUNDS).gains()
        return gains if gains is not None else np.zeros(train.table.n_columns)

    def _fit(
        self,
        train: Sample,
        target_scale: TargetScale,
        *,
        rounds: int | None = None,
        parameters: Parameters = _QUICK,
    ) -> Model:
        lightgbm, task = family("lightgbm"), self.metric.task
        for module in lightgbm.modules:
            importlib.import_module(module)  # which takes seconds on a busy machine, and no fit will take again
        start = time.perf_counter()
        if rounds is None:
            rounds = max(2 * ROUNDS // self.n_classes, SELECTION_ROUNDS) if self.n_classes > 2 else ROUNDS
        context = FitContext(
            task,
            self.n_classes,
            seed=self.seed,
            rounds=rounds,
            target_scale=target_scale,
            loss=self.loss,
        )
        first_bet = lightgbm.portfolio(task, shape=Shape(n_rows=len(train), n_classes=self.n_classes))[0]
        parameters = {**first_bet.parameters, **parameters}
        model = lightgbm.fit(train, validation=None, parameters=parameters, context=context)
        self.longest_s = max(self.longest_s, time.perf_counter() - start)
        return model

    def _in_time(self, n_fits: int) -> bool:
        """Whether so many fits can be afforded; before the first one is known, whether there is any time."""
        return self.deadline.left_s > n_fits * self.longest_s


def _with_columns(sample: Sample, kept: np.ndarray) -> Sample:
    """Return the rows with some of the columns; positions count numeric columns, then categorical ones."""
    table = sample.table
    n_numeric = len(table.numeric_names)
    numbers, levels = kept[kept < n_numeric], kept[kept >= n_numeric] - n_numeric
    narrow = Table(
        table.numeric[:, numbers],
        table.codes[:, levels],
        tuple(table.levels[j] for j in levels),
        tuple(table.numeric_names[j] for j in numbers),
        tuple(table.categorical_names[j] for j in levels),
    )
    return replace(sample, table=narrow)


def _crossed(sample: Sample, crosses: Sequence[Cross]) -> Sample:
    """Return the rows with crosses added, as a preparation would add them."""
    if not crosses:
        return sample
    table = sample.table
    columns = CrossedColumns(crosses, table.numeric_names)
    crossed = replace(
        table,
        numeric=np.concatenate([table.numeric, columns.evaluate(table.numeric)], axis=1),
        numeric_names=(*table.numeric_names, *columns.names),
        n_crosses=len(columns),
    )
    return replace(sample, table=crossed)


def _standard_moment(y: np.ndarray, order: int) -> float:
    """Return the third (skewness) or fourth (kurtosis, 3 for a normal distribution) standardised moment."""
    spread = float(y.std())
    return float(np.mean(((y - y.mean()) / spread) ** order)) if spread else 0.0
