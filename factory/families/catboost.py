"""CatBoost: boosted symmetric trees with target statistics of categoricals, saved as cbm.

Prokhorenkova, Gusev, Vorobev, Dorogush and Gulin 2018.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from factory.data.graph import DrawnTable
from factory.data.preparation import Table
from factory.families._boosting import FEW_ROWS, INPUT_SPACE, INPUTS, BoosterModel, BoostingFamily, Progress, link
from factory.families._catboost_walk import Walk, document_of, hashes, symmetric, texts_of
from factory.families._encoding import FEW_LEVELS, Inputs
from factory.families._head import Head
from factory.families._leaves import LeafTerms, of_symmetric
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE, WALK = "model.cbm", "walk.npz"
LOSSES = {Task.BINARY: "Logloss", Task.MULTICLASS: "MultiClass", Task.REGRESSION: "RMSE"}
ABSOLUTE = "MAE"

DEFAULTS: Parameters = {
    **INPUTS,
    "learning_rate": 0.08,
    "depth": 6,
    "l2_leaf_reg": 3.0,
    "rsm": 0.5,
    "subsample": 0.8,
    "border_count": 128,
    "random_strength": 1.0,
    "one_hot_max_size": 2,
    "max_ctr_complexity": 4,
}
"""What a portfolio entry leaves out: CatBoost's own values, but half the columns per split and half the borders, which
cost a third of the time and lost nothing on twelve tables (own portfolio study at 60 s)."""
ONE_HOT: Parameters = {**DEFAULTS, "one_hot_max_size": 64}
"""Levels as one-hot columns: on low cardinalities better than target statistics, at a fifth of their time."""
DEEP: Parameters = {**DEFAULTS, "depth": 8, "l2_leaf_reg": 5.0, "max_ctr_complexity": 2}
"""Deeper trees, with target statistics of at most two columns together."""
ENCODED: Parameters = {**ONE_HOT, "categoricals": "target"}
ALL_ROWS: Parameters = {**ONE_HOT, "subsample": 1.0}
"""For many rows of two classes, each tree sees them all (docs/decisions/portfolio.md)."""
MEASURED_EVERY = 0.2
"""Losses are measured after as many rounds as shrink what is left by a fifth, roughly: this over the learning rate."""
MOST_UNMEASURED = 25

_FEATURES: WeakKeyDictionary[Table, Any] = WeakKeyDictionary()
"""CatBoost's view of tables that are in use: the members of a blend all ask for that of the same rows."""


class CatBoostModel(BoosterModel):
    """A model shrunk to its best round; a few rows walk its trees here where that can be."""

    def __init__(self, booster: Any, head: Head, inputs: Inputs, *, walk: Walk | None = None) -> None:
        super().__init__(booster, head, inputs)
        self._walk = walk

    def _answer(self, table: Table) -> np.ndarray:
        if self._walk is not None and len(table) <= FEW_ROWS:
            return link(self._walk.margin(table.matrix), self.head.task)
        margin = self.booster.predict(_features(table), prediction_type="RawFormulaVal", thread_count=1)
        return link(np.asarray(margin).reshape(len(table), -1), self.head.task)

    def _draw_margin(self, table: DrawnTable) -> str:
        document = document_of(self.booster)
        trees = symmetric(document, hashes(max(table.levels)) if table.levels else {})
        scale, bias = document["scale_and_bias"]
        total = table.graph.add("Mul", trees.draw(table.graph, table.matrix), np.array(float(scale)))
        return table.graph.add("Add", total, np.asarray(bias, dtype=np.float64))

    def _leaves(self) -> LeafTerms | None:
        walk = self._walk or Walk.of(self.booster)
        if walk is None:
            return None
        return of_symmetric(
            walk.trees,
            view=lambda table: walk.seen(self._view(table)),
            behind=walk.behind,
            owners_seen=self.inputs.owners,
            scale=walk.scale,
            intercept=walk.bias,
        )

    def _write(self, folder: Path) -> None:
        self.booster.save_model(str(folder / FILE), format="cbm")
        # Taken here (.04 s), so that nobody who predicts waits for it.
        if (walk := self._walk or Walk.of(self.booster)) is not None:
            walk.save(folder / WALK)


class CatBoost(BoostingFamily):
    """Boosted symmetric trees; the strongest single family on tables with categoricals."""

    rowwise: ClassVar[bool] = True
    name: ClassVar[str] = "catboost"
    framework: ClassVar[str] = "catboost"
    modules: ClassVar[tuple[str, ...]] = ("catboost",)
    model: ClassVar[type[BoosterModel]] = CatBoostModel

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            **INPUT_SPACE,
            "learning_rate": FloatDimension(low=0.01, high=0.3, log=True),
            "depth": IntDimension(low=3, high=10),
            "l2_leaf_reg": FloatDimension(low=0.01, high=30.0, log=True),
            "rsm": FloatDimension(low=0.3, high=1.0),
            "subsample": FloatDimension(low=0.5, high=1.0),
            "border_count": ChoiceDimension(choices=(128, 64, 254)),
            "random_strength": FloatDimension(low=0.1, high=10.0, log=True),
            "one_hot_max_size": ChoiceDimension(choices=(2, 16, 64, 255)),
            "max_ctr_complexity": IntDimension(low=1, high=4),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        many_levels = shape.most_levels > FEW_LEVELS
        if task is Task.REGRESSION:
            # From 12,000 rows a round is too dear for the slower rate within a minute.
            rate = 0.1 if shape.n_rows < 12_000 else 0.14
            first, deep, encoded = ({**bet, "learning_rate": rate} for bet in (DEFAULTS, DEEP, ENCODED))
            return [Bet(first, 10), *([Bet(encoded, 95)] if many_levels else []), Bet(deep, 130)]
        if task is Task.MULTICLASS:
            return [Bet(DEFAULTS, 10), *([Bet(ONE_HOT, 98)] if shape.n_categorical else []), Bet(DEEP, 130)]
        if shape.n_rows <= 20_000:
            # Without categories the default is the same as one-hot.
            default = [Bet(DEFAULTS, 90)] if shape.n_categorical else []
            return [Bet(ONE_HOT, 10), *default, Bet(DEEP, 130)]
        return [Bet(ALL_ROWS, 10), *([Bet(ENCODED, 70)] if many_levels else []), Bet(DEEP, 140)]

    def load(self, folder: Path) -> Model:
        import catboost

        booster = catboost.CatBoost().load_model(str(folder / FILE), format="cbm")
        walk = Walk.load(folder / WALK) if (folder / WALK).is_file() else None
        return CatBoostModel(booster, Head.load(folder), Inputs.load(folder), walk=walk)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = n_classes if n_classes > 2 else 1
        # The table as float32 and, for codes, as text objects; its bins; approximations over permutations; leaf sums.
        table = n_rows * n_columns * (4 + 8 + 2)
        rows = n_rows * outputs * 4 * 48
        leaves = 2 ** int(parameters.get("depth") or 6) * outputs * n_columns * 256 * 16
        return float((table + rows + leaves) / 1e6 + 120)

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
        import catboost

        loss = ABSOLUTE if context.loss == "absolute" else LOSSES[context.task]
        options: dict[str, Any] = {
            **parameters,
            "loss_function": loss,
            "iterations": progress.limit,
            "bootstrap_type": "Bernoulli",
            "allow_const_label": True,
            "use_best_model": False,
            "random_seed": context.seed,
            "thread_count": context.threads,
            "allow_writing_files": False,
            "verbose": False,
            # CatBoost hands all losses so far to its callback after each round, so that their number squared is what
            # they cost: 54 s of 8,000 rounds on 400 rows, which take 3 s without them.
            "metric_period": max(1, min(round(MEASURED_EVERY / progress.learning_rate), MOST_UNMEASURED)),
        }
        if context.task is Task.MULTICLASS:
            options["classes_count"] = context.n_classes
        if context.task is Task.BINARY:
            options["class_names"] = [0, 1]

        def pool(rows: Sample) -> Any:
            features = _features(rows.table)
            earlier = None if before is None else before.predict(features, prediction_type="RawFormulaVal")
            return catboost.Pool(features, label=rows.y, weight=rows.weight, baseline=earlier)

        booster = catboost.CatBoost(options)
        booster.fit(
            pool(train),
            eval_set=pool(validation) if validation is not None else None,
            callbacks=[_Watch(progress, loss, period=options["metric_period"])],
        )
        # CatBoost does not count the trees after the last split, and refuses to cut among them.
        countable = np.flatnonzero(booster.get_tree_leaf_counts() > 1).max(initial=-1) + 1
        if progress.best < progress.done and progress.best <= countable:
            try:
                booster.shrink(ntree_end=progress.best)
            except catboost.CatBoostError:
                # Of one column many trees have no split, and it may miscount them. The first trees are the same.
                booster = catboost.CatBoost({**options, "iterations": progress.best}).fit(pool(train))
        return booster if before is None else self._sum([before, booster], [1.0, 1.0])

    def _sum(self, boosters: list[Any], weights: list[float]) -> Any | None:
        import catboost

        try:
            return catboost.sum_models(boosters, weights=weights, ctr_merge_policy="FailIfCtrIntersects")
        except catboost.CatBoostError:
            # Each model has target statistics of its own, and CatBoost would mix them into wrong answers.
            return None

    def _resumable(self, booster: Any) -> bool:
        """Not so where it holds target statistics: those of the new rows could not stand beside them."""
        return self._sum([booster, booster], [0.5, 0.5]) is not None


class _Watch:
    """CatBoost's callback: passes each round's losses on and stops the training when told so."""

    def __init__(self, progress: Progress, loss: str, *, period: int) -> None:
        self._progress = progress
        self._loss = loss
        self._period = period

    def after_iteration(self, info: Any) -> bool:
        """Return whether to go on after one round."""
        held_out = info.metrics.get("validation")
        last = info.iteration == self._progress.limit
        return self._progress.record(
            train=info.metrics["learn"][self._loss][-1],
            validation=held_out[self._loss][-1] if held_out else None,
            measured=last or (info.iteration - 1) % self._period == 0,
        )


def _features(table: Table) -> Any:
    """Return a table as CatBoost's own columnar input, which takes categoricals as text only; kept with the table."""
    kept = _FEATURES.get(table)
    if kept is None:
        kept = _FEATURES[table] = _columnar(table)
    return kept


def _columnar(table: Table) -> Any:
    import catboost

    if not table.categorical_names:
        return catboost.FeaturesData(num_feature_data=np.ascontiguousarray(table.numeric))
    return catboost.FeaturesData(
        num_feature_data=np.ascontiguousarray(table.numeric) if table.numeric_names else None,
        cat_feature_data=texts_of(max(table.levels))[table.codes],
    )


PLUGIN = CatBoost()
