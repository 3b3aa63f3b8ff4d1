"""Random forest: trees on bootstrap samples with random columns at each split (Breiman 2001)."""

from __future__ import annotations

from typing import Any, ClassVar

from factory.families._forest import MOST_ROWS, ForestFamily, bets, smallest_leaf
from factory.families.base import Bet, FitContext, Shape
from factory.space import Parameters
from factory.spec import Task


class RandomForest(ForestFamily):
    """Bagged trees; on numeric regression the other families do better."""

    name: ClassVar[str] = "random_forest"

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        share = 0.5 if task is Task.REGRESSION else 0.3
        fine: Parameters = {"trees": 100, "max_features": share, "min_samples_leaf": 1}
        rank = {Task.REGRESSION: 200, Task.MULTICLASS: 80}.get(task, 80 if shape.n_rows <= 20_000 else 110)
        return bets(Bet(fine, rank), last=Bet({**fine, "min_samples_leaf": 5}, 210), shape=shape)

    def _estimator(self, parameters: Parameters, *, n_rows: int, context: FitContext) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        kind = RandomForestRegressor if context.task is Task.REGRESSION else RandomForestClassifier
        return kind(
            max_features=parameters["max_features"],
            min_samples_leaf=smallest_leaf(parameters, n_rows=n_rows),
            max_samples=MOST_ROWS if n_rows > MOST_ROWS else None,
            n_jobs=context.threads,
            random_state=context.seed,
            warm_start=True,
        )


PLUGIN = RandomForest()
