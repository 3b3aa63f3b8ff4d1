"""LightGBM: gradient-boosted trees grown leaf by leaf (Ke et al. 2017), saved as LightGBM's own text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.preparation import Table
from factory.families._boosting import BoostingFamily, Progress, matrix
from factory.families._head import Head
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "model.txt"
OBJECTIVES = {
    Task.BINARY: ("binary", "binary_logloss"),
    Task.MULTICLASS: ("multiclass", "multi_logloss"),
    Task.REGRESSION: ("regression", "l2"),
}

DEFAULTS: Parameters = {
    "learning_rate": 0.04,
    "num_leaves": 64,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 1.0,
    "lambda_l1": 0.0,
    "lambda_l2": 0.0,
    "cat_smooth": 10.0,
    "extra_trees": False,
}
"""What a portfolio entry leaves out; LightGBM's own values but for learning_rate, num_leaves and feature_fraction."""

# The entries won in our own portfolio study over twelve tables (60 s, two cores), but for PYTABKIT and AUTOGLUON.
LEAVES_64: Parameters = {**DEFAULTS, "min_data_in_leaf": 5, "bagging_fraction": 0.9}
LEAVES_128: Parameters = {**DEFAULTS, "learning_rate": 0.03, "num_leaves": 128}
LEAVES_31: Parameters = {
    **DEFAULTS, "learning_rate": 0.03, "num_leaves": 31, "bagging_fraction": 0.8, "lambda_l2": 5.0
}  # fmt: skip
LEAVES_8: Parameters = {**DEFAULTS, "learning_rate": 0.06, "num_leaves": 8, "lambda_l2": 3.0}
PYTABKIT: Parameters = {
    **DEFAULTS, "num_leaves": 50, "bagging_fraction": 0.75, "min_data_in_leaf": 40, "feature_fraction": 1.0
}  # fmt: skip
"""Tuned defaults for classification (Holzmüller et al. 2024, pytabkit)."""
AUTOGLUON: Parameters = {
    **DEFAULTS, "extra_trees": True, "learning_rate": 0.1, "min_data_in_leaf": 28, "feature_fraction": 0.553,
    "lambda_l1": 0.914, "lambda_l2": 1.904,
}  # fmt: skip
"""Second entry of AutoGluon 1.6's CPU portfolio (Erickson et al. 2025), with a rate that suits short budgets."""


class LightGBMModel(Model):
    """A booster cut at its best round."""

    def __init__(self, booster: Any, head: Head) -> None:
        self._booster = booster
        self._head = head
        self.rounds = head.rounds

    def predict(self, table: Table) -> np.ndarray:
        return self._head.decode(self._booster.predict(matrix(table), num_threads=1))

    def gains(self) -> np.ndarray:
        return np.asarray(self._booster.feature_importance("gain"), dtype=np.float64)

    def save(self, folder: Path) -> None:
        self._booster.save_model(str(folder / FILE))
        self._head.save(folder)


class LightGBM(BoostingFamily):
    """Boosted trees with native categoricals."""

    name: ClassVar[str] = "lightgbm"
    framework: ClassVar[str] = "lightgbm"

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            "learning_rate": FloatDimension(low=0.005, high=0.3, log=True),
            "num_leaves": IntDimension(low=4, high=255, log=True),
            "min_data_in_leaf": IntDimension(low=1, high=200, log=True),
            "feature_fraction": FloatDimension(low=0.2, high=1.0),
            "bagging_fraction": FloatDimension(low=0.5, high=1.0),
            "lambda_l1": FloatDimension(low=0.0, high=10.0),
            "lambda_l2": FloatDimension(low=0.0, high=20.0),
            "cat_smooth": FloatDimension(low=1.0, high=100.0, log=True),
            "extra_trees": ChoiceDimension(choices=(False, True)),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        if task is Task.REGRESSION:
            entries = [LEAVES_64, LEAVES_128] + ([LEAVES_8] if shape.n_rows < 8_000 else [])
        elif task is Task.MULTICLASS:
            entries = [LEAVES_128, LEAVES_8, PYTABKIT]
        elif shape.n_rows <= 20_000:
            entries = [LEAVES_8, AUTOGLUON, PYTABKIT, LEAVES_128]
        else:
            entries = [LEAVES_31, LEAVES_128, PYTABKIT]
        return [Bet(entry, 10 * (k + 1)) for k, entry in enumerate(entries)]

    def load(self, folder: Path) -> Model:
        import lightgbm

        return LightGBMModel(lightgbm.Booster(model_file=str(folder / FILE)), Head.load(folder))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = max(n_classes, 1) if n_classes > 2 else 1
        # Two float32 copies of the table and its bins; scores, gradients and Hessians; histograms of every leaf.
        table = n_rows * n_columns * (2 * 4 + 2)
        rows = n_rows * outputs * 40
        histograms = int(parameters.get("num_leaves") or 31) * n_columns * 256 * 16
        return (table + rows + histograms) / 1e6 + 60

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
        import lightgbm

        objective, metric = OBJECTIVES[context.task]
        options = {
            **parameters,
            "objective": objective,
            "metric": metric,
            "num_class": context.n_classes if context.task is Task.MULTICLASS else 1,
            # A leaf has to be possible at all in a very small table.
            "min_data_in_leaf": min(int(parameters["min_data_in_leaf"] or 1), max(1, len(train) // 10)),
            "bagging_freq": 1 if parameters["bagging_fraction"] != 1 else 0,
            "seed": context.seed,
            "num_threads": context.threads,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }
        n_numeric = len(train.table.numeric_names)
        categorical = list(range(n_numeric, n_numeric + len(train.table.categorical_names)))
        data = lightgbm.Dataset(
            matrix(train.table), head.encode(train.y), categorical_feature=categorical, params=options
        )
        booster = lightgbm.Booster(options, data)
        if validation is not None:
            held_out = data.create_valid(matrix(validation.table), head.encode(validation.y))
            booster.add_valid(held_out, "validation")
        while progress.going:
            on_curve = progress.on_curve
            booster.update()
            progress.record(
                train=booster.eval_train()[0][2] if on_curve else None,
                validation=booster.eval_valid()[0][2] if validation is not None else None,
            )
        # From text, so that the fitted and the loaded model are one thing and the training data are let go.
        text = booster.model_to_string(num_iteration=progress.best)
        return LightGBMModel(lightgbm.Booster(model_str=text), replace(head, rounds=progress.best))


PLUGIN = LightGBM()
