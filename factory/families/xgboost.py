"""XGBoost: gradient-boosted trees grown level by level (Chen and Guestrin 2016), saved as UBJSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.preparation import Table
from factory.families._boosting import BoostingFamily, Progress, matrix
from factory.families._head import Head
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "model.ubj"
OBJECTIVES = {
    Task.BINARY: ("binary:logistic", "logloss"),
    Task.MULTICLASS: ("multi:softprob", "mlogloss"),
    Task.REGRESSION: ("reg:squarederror", "rmse"),
}

DEFAULTS: Parameters = {
    "learning_rate": 0.08,
    "max_depth": 6,
    "min_child_weight": 1.0,
    "subsample": 1.0,
    "colsample_bylevel": 1.0,
    "colsample_bynode": 1.0,
    "reg_lambda": 1.0,
    "reg_alpha": 0.0,
}
"""What a portfolio entry leaves out; XGBoost's own values but for the learning rate."""
PYTABKIT: Parameters = {**DEFAULTS, "subsample": 0.65, "colsample_bylevel": 0.9}
"""Tuned defaults for classification (Holzmüller et al. 2024, pytabkit)."""
# The two below won in our own portfolio study over twelve tables (60 s, two cores).
DEPTH_8: Parameters = {
    **DEFAULTS, "learning_rate": 0.07, "max_depth": 8, "subsample": 0.8, "colsample_bynode": 0.5,
    "min_child_weight": 3.0,
}  # fmt: skip
SHALLOW: Parameters = {**PYTABKIT, "max_depth": 3, "colsample_bynode": 0.5}


class XGBoostModel(Model):
    """A booster cut at its best round."""

    def __init__(self, booster: Any, head: Head) -> None:
        booster.set_param({"nthread": 1})
        self._booster = booster
        self._head = head
        self.rounds = head.rounds

    def predict(self, table: Table) -> np.ndarray:
        return self._head.decode(self._booster.inplace_predict(matrix(table), validate_features=False))

    def save(self, folder: Path) -> None:
        self._booster.save_model(str(folder / FILE))
        self._head.save(folder)


class XGBoost(BoostingFamily):
    """Boosted trees on histograms, with native categoricals."""

    name: ClassVar[str] = "xgboost"
    framework: ClassVar[str] = "xgboost"

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            "learning_rate": FloatDimension(low=0.005, high=0.3, log=True),
            "max_depth": IntDimension(low=2, high=10),
            "min_child_weight": FloatDimension(low=0.1, high=50.0, log=True),
            "subsample": FloatDimension(low=0.5, high=1.0),
            "colsample_bylevel": FloatDimension(low=0.3, high=1.0),
            "colsample_bynode": FloatDimension(low=0.3, high=1.0),
            "reg_lambda": FloatDimension(low=0.01, high=50.0, log=True),
            "reg_alpha": FloatDimension(low=0.0, high=10.0),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        first, second = (DEPTH_8, PYTABKIT) if task is Task.REGRESSION else (PYTABKIT, DEPTH_8)
        shallow = [Bet(SHALLOW, 20)] if shape.n_rows <= 8_000 else []
        return [Bet(first, 10), *shallow, Bet(second, 30)]

    def load(self, folder: Path) -> Model:
        import xgboost

        return XGBoostModel(xgboost.Booster(model_file=str(folder / FILE)), Head.load(folder))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = n_classes if n_classes > 2 else 1
        # Two float32 copies of the table and its bins; margins and gradients; histograms of a level.
        table = n_rows * n_columns * (2 * 4 + 2)
        rows = n_rows * outputs * 32
        histograms = 2 ** int(parameters.get("max_depth") or 6) * n_columns * 256 * 16
        return float((table + rows + histograms) / 1e6 + 80)

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
        import xgboost

        objective, metric = OBJECTIVES[context.task]
        options: dict[str, Any] = {
            **parameters,
            "objective": objective,
            "eval_metric": metric,
            "tree_method": "hist",
            "seed": context.seed,
            "nthread": context.threads,
            "verbosity": 0,
        }
        if context.task is Task.MULTICLASS:
            options["num_class"] = context.n_classes
        if context.task is Task.BINARY and len(np.unique(train.y)) == 1:
            # The fitted intercept would be a log-odds of infinity.
            options["base_score"] = 0.5
        kinds = ["q"] * len(train.table.numeric_names) + ["c"] * len(train.table.categorical_names)
        frame: dict[str, Any] = {"feature_types": kinds, "enable_categorical": True, "nthread": context.threads}
        data = xgboost.QuantileDMatrix(matrix(train.table), head.encode(train.y), **frame)
        watched = [data]
        if validation is not None:
            watched.append(xgboost.DMatrix(matrix(validation.table), head.encode(validation.y), **frame))
        booster = xgboost.Booster(options, watched)
        while progress.going:
            on_curve = progress.on_curve
            booster.update(data, progress.done)
            progress.record(
                train=_loss(booster, data) if on_curve else None,
                validation=_loss(booster, watched[1]) if validation is not None else None,
            )
        return XGBoostModel(booster[: progress.best], replace(head, rounds=progress.best))


def _loss(booster: Any, data: Any) -> float:
    """Return the evaluation metric on cached data; XGBoost hands it out as text, ``[0]<tab>eval-rmse:0.5``."""
    return float(booster.eval(data).rpartition(":")[2])


PLUGIN = XGBoost()
