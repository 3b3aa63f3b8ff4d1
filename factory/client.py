"""The factory from Python: ``factory.fit(frame, target="churned")`` in a notebook or a script.

The same pipeline as every other door, in this process: no server, no
controller.  The data are stored as an upload, so that the variant's lineage
leads back to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from factory.data.loading import store_table, store_upload
from factory.errors import InvalidRequest
from factory.ledger import Ledger
from factory.pipeline import Outcome, Progress, produce, submit
from factory.settings import Settings, load_settings
from factory.spec import Task, Variant
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry
from factory.variants.report import leaderboard


@dataclass(frozen=True)
class Fitted:
    """A variant that was made, ready to predict.

    Attributes:
        variant: With score, interval, lineage and MLflow URI.
        outcome: The whole request: trials, verdicts, further variants of segments.
        bundle: The models in memory.
        card: The model card, one HTML file.
    """

    variant: Variant
    outcome: Outcome
    bundle: Bundle
    card: Path

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The trials, the best first: family, framework, score, training score, cost, weight in the blend."""
        result = self.outcome.results[0]
        rows = leaderboard(result.trials, weights=result.blend.weights)
        return pd.DataFrame([row.model_dump() for row in rows])

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """Return class labels, object (n_rows,), or predictions, float64 (n_rows,)."""
        return self._checked(frame)["prediction"].to_numpy()

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        """Return probabilities, float64 (n_rows, n_classes), in the order of ``bundle.classes``.

        Raises:
            InvalidRequest: the variant is a regression.
        """
        if self.variant.task is Task.REGRESSION:
            raise InvalidRequest("A regression has no probabilities.", hint="Call predict.")
        return self._checked(frame).iloc[:, 1:].to_numpy()

    def _checked(self, frame: pd.DataFrame) -> pd.DataFrame:
        known = [c.name for c in self.bundle.columns if c.name in frame]
        problems = self.bundle.check_input(frame[known])
        if problems:
            raise InvalidRequest(
                "These rows cannot be predicted: " + " ".join(f"{d.field}: {d.message}" for d in problems),
                hint="Bring the columns that the variant was trained on.",
                details=problems,
            )
        return self.bundle.predict(frame)


def fit(
    data: pd.DataFrame | str | Path,
    target: str,
    *,
    name: str = "local.variant",
    task: str | None = None,
    recipe: str = "tabular-auto",
    budget_s: float | None = None,
    trials: int | None = None,
    metric: str | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    listen: Callable[[Progress], None] = lambda _: None,
) -> Fitted:
    """Make a variant from a table, in this process.

    Args:
        data: Rows with the target, (n_rows, n_columns), or a Parquet, CSV or Arrow file.
        target: Column that is to be predicted.
        name: ``team.name`` of the variant.
        task: ``binary``, ``multiclass`` or ``regression``; inferred from the target where not given.
        recipe: How it is made.
        budget_s: Wall seconds; the recipe's default where not given.
        trials: Trials at most; with it the same seed gives the same trials.
        metric: Name of a scikit-learn scorer; the recipe's where not given.
        seed: The only source of randomness.
        settings: Where state is kept; from the environment where not given.
        listen: Told every state and every trial.

    Raises:
        UserFault: the data or an argument cannot be used.
        SystemFault: no model could be made.
    """
    settings = settings or load_settings()
    settings.prepare_home()
    stored = store_table(data, settings) if isinstance(data, pd.DataFrame) else store_upload(data, settings)
    team, _, short = name.partition(".")
    budget = {k: v for k, v in (("time_s", budget_s), ("trials", trials)) if v is not None}
    document: dict[str, object] = {
        "team": team,
        "name": short,
        "recipe": recipe,
        "dataset": {"upload": stored, "target": target, **({"task": task} if task else {})},
        "seed": seed,
        **({"budget": budget} if budget else {}),
        **({"metric": metric} if metric else {}),
    }
    with Ledger.open(settings.ledger) as ledger:
        record = submit(document, ledger=ledger, settings=settings)
        outcome = produce(record.id, ledger=ledger, settings=settings, listen=listen)
    variant = outcome.variants[0]
    folder = Registry(settings).local_bundle(variant.name, variant.version)
    bundle = Bundle.load(folder, digest=variant.bundle_digest)
    return Fitted(variant, outcome, bundle, settings.workspace(record.id) / "pooled" / "card.html")
