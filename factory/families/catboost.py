"""CatBoost: boosted symmetric trees with target statistics of categoricals, saved as cbm.

Prokhorenkova, Gusev, Vorobev, Dorogush and Gulin 2018.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.preparation import Table
from factory.families._boosting import BoostingFamily, Progress
from factory.families._head import Head
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "model.cbm"
LOSSES = {Task.BINARY: "Logloss", Task.MULTICLASS: "MultiClass", Task.REGRESSION: "RMSE"}

DEFAULTS: Parameters = {
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


class CatBoostModel(Model):
    """A model shrunk to its best round."""

    def __init__(self, booster: Any, head: Head) -> None:
        self._booster = booster
        self._head = head
        self._output = "RawFormulaVal" if head.task is Task.REGRESSION else "Probability"
        self.rounds = head.rounds

    def predict(self, table: Table) -> np.ndarray:
        raw = self._booster.predict(_features(table), prediction_type=self._output, thread_count=1)
        return self._head.decode(raw)

    def save(self, folder: Path) -> None:
        self._booster.save_model(str(folder / FILE), format="cbm")
        self._head.save(folder)


class CatBoost(BoostingFamily):
    """Boosted symmetric trees; the strongest single family on tables with categoricals."""

    name: ClassVar[str] = "catboost"
    framework: ClassVar[str] = "catboost"

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
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
        if task is Task.REGRESSION:
            # From 12,000 rows a round is too dear for the slower rate within a minute.
            rate = 0.1 if shape.n_rows < 12_000 else 0.14
            return [Bet({**DEFAULTS, "learning_rate": rate}, 10), Bet({**DEEP, "learning_rate": rate}, 20)]
        if task is Task.MULTICLASS:
            return [Bet(DEFAULTS, 10), Bet(DEEP, 20)]
        return [Bet(ONE_HOT, 10), Bet(DEEP, 20)]

    def load(self, folder: Path) -> Model:
        import catboost

        booster = catboost.CatBoost().load_model(str(folder / FILE), format="cbm")
        return CatBoostModel(booster, Head.load(folder))

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
        head: Head,
        progress: Progress,
    ) -> Model:
        import catboost

        options: dict[str, Any] = {
            **parameters,
            "loss_function": LOSSES[context.task],
            "iterations": progress.limit,
            "bootstrap_type": "Bernoulli",
            "allow_const_label": True,
            "use_best_model": False,
            "random_seed": context.seed,
            "thread_count": context.threads,
            "allow_writing_files": False,
            "verbose": False,
        }
        if context.task is Task.MULTICLASS:
            options["classes_count"] = context.n_classes
        if context.task is Task.BINARY:
            options["class_names"] = [0, 1]

        def pool(sample: Sample) -> Any:
            return catboost.Pool(_features(sample.table), label=head.encode(sample.y))

        booster = catboost.CatBoost(options)
        booster.fit(
            pool(train),
            eval_set=pool(validation) if validation is not None else None,
            callbacks=[_Watch(progress, LOSSES[context.task])],
        )
        # CatBoost does not count the trees after the last split, and refuses to cut among them.
        countable = np.flatnonzero(booster.get_tree_leaf_counts() > 1).max(initial=-1) + 1
        if progress.best < progress.done and progress.best <= countable:
            booster.shrink(ntree_end=progress.best)
        return CatBoostModel(booster, replace(head, rounds=progress.best))


class _Watch:
    """CatBoost's callback: passes each round's losses on and stops the training when told so."""

    def __init__(self, progress: Progress, loss: str) -> None:
        self._progress = progress
        self._loss = loss

    def after_iteration(self, info: Any) -> bool:
        """Return whether to go on after one round."""
        held_out = info.metrics.get("validation")
        return self._progress.record(
            train=info.metrics["learn"][self._loss][-1],
            validation=held_out[self._loss][-1] if held_out else None,
        )


def _features(table: Table) -> Any:
    """Return a table as CatBoost's own columnar input, which takes categoricals as text only."""
    import catboost

    if not table.categorical_names:
        return catboost.FeaturesData(num_feature_data=np.ascontiguousarray(table.numeric))
    return catboost.FeaturesData(
        num_feature_data=np.ascontiguousarray(table.numeric) if table.numeric_names else None,
        cat_feature_data=_texts(max(table.levels))[table.codes],
    )


@cache
def _texts(n_levels: int) -> np.ndarray:
    """Return the codes below ``n_levels`` as byte strings; cached, since a single row needs them too."""
    return np.array([b"%d" % code for code in range(n_levels)], dtype=object)


PLUGIN = CatBoost()
