"""What comes out of a request: trials, the traits of its data, and variants."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field

from factory.space import Parameters
from factory.spec.document import Document, Task
from factory.spec.request import OnlinePolicy
from factory.spec.states import TrialState

ALIAS = Literal["champion", "challenger"]


class CurvePoint(Document):
    """One step of a learning curve: losses after that many epochs or rounds."""

    step: int
    train: float | None = None
    validation: float | None = None


class Trial(Document):
    """One configuration of one family, fitted and scored. Scores: greater is better."""

    number: int
    family: str
    parameters: Parameters
    state: TrialState = TrialState.CREATED
    score: float | None = Field(None, description="Mean over its folds.")
    folds: tuple[int, ...] = Field((), description="Folds that it was fitted on, as positions.")
    fold_scores: tuple[float, ...] = Field((), description="Of these folds.")
    train_score: float | None = None
    rounds: int = Field(0, description="Rounds or epochs of the best iteration, mean over the folds.")
    n_rows: int = Field(0, description="Training rows that these rounds were found on; 0 where it is not known.")
    raised_rate: float | None = Field(None, description="Learning rate, where a near deadline made the fit raise it.")
    cost_s: float = 0.0
    memory_mb: float = 0.0
    reason: str = ""
    origin: Literal["portfolio", "search", "history"] = "search"
    seed: int = 0
    segment: str = ""
    curve: tuple[CurvePoint, ...] = ()
    artifacts: str | None = Field(None, description="Folder with the out-of-fold predictions and the fitted folds.")

    @property
    def finished(self) -> bool:
        """Whether the trial has an end state."""
        return self.state not in (TrialState.CREATED, TrialState.RUNNING)


class Traits(Document):
    """A dataset in a few numbers, by which siblings are known: size, types, target, and names of columns as hashes."""

    task: Task
    n_rows: int
    n_columns: int
    type_shares: dict[str, float] = Field(default_factory=dict, description="Share of the columns of each type.")
    missing_share: float = 0.0
    n_classes: int = Field(0, description="0 for regression.")
    balance: float = Field(1.0, description="Entropy of the classes, 1 where all are equally frequent.")
    skewness: float = Field(0.0, description="Of a regression target.")
    kurtosis: float = Field(0.0, description="Of a regression target, 0 for a normal distribution.")
    columns: tuple[str, ...] = Field((), description="Hashes of the columns' names, sorted; the smallest where many.")
    metric: str = ""
    constant_score: float | None = Field(None, description="Of a constant, on the first fold by that metric.")


class Variant(Document):
    """A version of the registered model ``team.name``, with its lineage."""

    name: str
    version: int
    request_id: str
    segment: str = ""
    state: Literal["registered", "rejected"] = "registered"
    kind: Literal["cold", "warm_start", "refit", "incremental"] = "cold"
    task: Task
    metric: str
    score: float
    score_low: float
    score_high: float
    recipe: str
    recipe_digest: str
    dataset_digest: str
    bundle_digest: str
    judge_digest: str = Field(
        "", description="Of what its gate judged in its place; empty where that was the bundle itself."
    )
    feature_service: str | None = None
    feature_service_digest: str | None = None
    parent: str | None = None
    blend: dict[int, float] = Field(default_factory=dict, description="Share of each trial of its search, by number.")
    seeded_by: tuple[str, ...] = Field((), description="Requests whose trials seeded its search.")
    trials_to_parity: int | None = Field(
        None, description="Trials until it was as good as the search that seeded it; None where it never was."
    )
    seed: int = 0
    cost_s: float = 0.0
    size_mb: float = 0.0
    latency_ms: float = 0.0
    model_uri: str = ""
    artifacts: str = Field(
        "",
        exclude=True,
        description="Where MLflow has put its files, which the ledger keeps and no document tells; empty: ask MLflow.",
    )
    approval: bool = Field(False, description="Whether its recipe asks for a second person to approve it.")
    online: OnlinePolicy = Field(
        default_factory=OnlinePolicy, description="What is done about features that are not as they should be."
    )
    created: datetime | None = None


def duration(seconds: float) -> str:
    """Return a duration for people.

    >>> duration(75.2)
    '1:15'
    """
    return (
        str(timedelta(seconds=round(seconds)))[2:].lstrip("0").rjust(4, "0")
        if seconds < 3600
        else str(timedelta(seconds=round(seconds)))
    )
