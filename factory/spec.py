"""The nouns of the factory as frozen models, as every door accepts and returns them.

The JSON schemas of these models are good enough to draw a form from;
``factory/parsing.py`` checks a document against one of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from factory.errors import listing
from factory.space import Narrowing, Parameters

NAME = r"^[a-z][a-z0-9_-]{0,62}$"
ALIAS = Literal["champion", "challenger"]
Making = Literal["auto", "cold", "warm_start", "refit", "incremental"]
REMADE = frozenset({"refit", "incremental"})
"""Kinds of making without a search: the parent's configurations are taken as they are."""


class Task(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class ColumnType(StrEnum):
    """What a column holds; decides how it is prepared."""

    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    CATEGORICAL = "categorical"
    DATETIME = "datetime"
    TEXT = "text"
    IDENTIFIER = "identifier"


class RequestState(StrEnum):
    """Where a request stands; see :data:`NEXT_STATES` for what may follow what."""

    RECEIVED = "received"
    QUEUED = "queued"
    PREPARING = "preparing"
    SEARCHING = "searching"
    EVALUATING = "evaluating"
    REGISTERED = "registered"
    SERVING = "serving"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = {RequestState.REJECTED, RequestState.FAILED, RequestState.CANCELLED}
_LINE = (
    RequestState.RECEIVED,
    RequestState.QUEUED,
    RequestState.PREPARING,
    RequestState.SEARCHING,
    RequestState.EVALUATING,
    RequestState.REGISTERED,
    RequestState.SERVING,
)
NEXT_STATES: dict[RequestState, frozenset[RequestState]] = {
    **{state: frozenset({after} | _ENDS) for state, after in pairwise(_LINE[:6])},
    RequestState.REGISTERED: frozenset({RequestState.SERVING}),
    RequestState.SERVING: frozenset(),
    **dict.fromkeys(_ENDS, frozenset()),
}
"""Legal transitions: one step forward along the line, or to an end. Never backwards."""


class TrialState(StrEnum):
    """Katib's trial states."""

    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PRUNED = "pruned"
    FAILED = "failed"
    KILLED = "killed"
    OUT_OF_MEMORY = "out_of_memory"


class Document(BaseModel):
    """Base of all nouns: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this document."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _seconds(value: object) -> object:
    """Accept ``60``, ``"60s"``, ``"5m"`` or ``"1h"`` as seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|m|h)?\s*", value)
        if match is None:
            raise ValueError("Write a time above zero as 60, '60s', '5m' or '1h'")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]


# --- dataset -----------------------------------------------------------------


class _DatasetBase(Document):
    target: str = Field(min_length=1, title="Target", description="Column that is to be predicted.")
    task: Task | None = Field(None, title="Task", description="Kind of prediction; inferred from the target if empty.")
    types: dict[str, ColumnType] = Field(
        default_factory=dict, title="Column types", description="Corrections of the inferred column types."
    )
    weights: str | None = Field(
        None,
        min_length=1,
        title="Weights",
        description=(
            "Column that says how much each row counts, in training and in every score; numbers from 0 up. It is no "
            "feature, and rows of weight 0 are left out."
        ),
    )
    drop: tuple[str, ...] = Field((), title="Columns left out", description="Columns that are not used as features.")
    keep: tuple[str, ...] = Field(
        (), title="Columns kept", description="Columns that stay although the screening would drop them."
    )
    drift: Literal["warn", "drop"] = Field(
        "warn",
        title="Drifted columns",
        description="What is done about columns that differ altogether in later rows: named, or left out as well.",
    )

    @model_validator(mode="after")
    def _dropped_or_kept(self) -> Self:
        if both := set(self.drop) & set(self.keep):
            raise ValueError(f"drop and keep both name {listing(both)}; leave it out of one of them")
        return self

    @model_validator(mode="after")
    def _weights_are_no_feature(self) -> Self:
        if self.weights is not None and self.weights in (self.target, *self.keep, *self.types):
            raise ValueError(f"{self.weights!r} holds the weights of the rows: it is no target, and no feature")
        return self


class _TableDataset(_DatasetBase):
    scoring: str | None = Field(
        None,
        min_length=1,
        title="Rows to be predicted",
        description="Table, path or fsspec URL; its columns are compared with those to learn from.",
    )


class FileDataset(_TableDataset):
    """A table in a file or object store."""

    path: str = Field(min_length=1, title="Path", description="Parquet, CSV or Arrow/Feather file, path or fsspec URL.")


class UploadDataset(_TableDataset):
    """A table that was uploaded before."""

    upload: str = Field(pattern=r"^[0-9a-f]{64}$", title="Upload", description="Content digest of the uploaded table.")


class EntityDataset(_DatasetBase):
    """Entity keys, event timestamp and target, joined to a Feast feature service point-in-time."""

    entities: str = Field(min_length=1, title="Entity table", description="File with entity keys, timestamp, target.")
    timestamp: str = Field("event_timestamp", title="Timestamp", description="Column with the moment of each row.")
    feature_service: str = Field(min_length=1, title="Feature service", description="Name of a Feast feature service.")


def _dataset_kind(value: object) -> str:
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((kind for kind in ("entities", "upload") if kind in fields), "path")


DatasetRef = Annotated[
    Annotated[FileDataset, Tag("path")]
    | Annotated[EntityDataset, Tag("entities")]
    | Annotated[UploadDataset, Tag("upload")],
    Discriminator(_dataset_kind),
]


# --- how to search and what to promise -----------------------------------------


class AutoValidation(Document):
    """Cross-validation where rows are few, holdout where they are many."""

    kind: Literal["auto"] = "auto"


class CrossValidation(Document):
    """K folds, stratified by class."""

    kind: Literal["cross_validation"] = "cross_validation"
    folds: int = Field(5, ge=2, le=20, title="Folds")


class Holdout(Document):
    """One random split, stratified by class."""

    kind: Literal["holdout"] = "holdout"
    share: float = Field(0.2, gt=0, lt=0.9, title="Validation share", description="Share of rows held out, 0 to 0.9.")


class TimeSplit(Document):
    """Validate on the latest rows only."""

    kind: Literal["time"] = "time"
    column: str = Field(title="Time column")
    gap: int = Field(0, ge=0, title="Gap", description="Rows left out between training and validation.")


class GroupSplit(Document):
    """Rows of one group never stand on both sides of a split."""

    kind: Literal["group"] = "group"
    column: str = Field(title="Group column")


Validation = Annotated[AutoValidation | CrossValidation | Holdout | TimeSplit | GroupSplit, Field(discriminator="kind")]


class Budget(Document):
    """What a request may spend. The wall time includes everything up to the registered variant."""

    time_s: Seconds = Field(60, gt=0, title="Wall time", description="Seconds; '60s', '5m' and '1h' are understood.")
    trials: int | None = Field(
        None,
        ge=1,
        title="Trials",
        description="Trials at most. When given, trials are asked for in batches, so a run can be repeated exactly.",
    )
    memory_gb: float = Field(4, gt=0, title="Memory", description="GB that all processes of the request may take.")


class Resources(Document):
    """What one training may take from the cluster."""

    workers: int = Field(1, ge=1, le=64, title="Workers", description="Training processes of a network (Ray Train).")
    gpus_per_worker: float = Field(0, ge=0, title="GPUs per worker")


class Gates(Document):
    """What a variant must prove before it may become champion."""

    baseline: Literal["auto", "constant", "champion"] = Field(
        "auto", title="Baseline", description="Compared with; auto takes the champion, or the constant where none is."
    )
    min_improvement: float = Field(0.0, title="Least improvement", description="Margin in units of the metric.")
    confidence: float = Field(0.95, gt=0.5, lt=1, title="Confidence", description="Of the paired bootstrap, one-sided.")
    allow_leakage: bool = Field(False, title="Allow leakage", description="Promote despite a leakage finding.")
    slices: tuple[str, ...] = Field(
        (), title="Slices", description="Columns by whose values the score is told; the main categorical ones if empty."
    )
    slice_max_loss: float | None = Field(
        None,
        ge=0,
        title="Most loss of a slice",
        description="No slice may be worse than the baseline by more, in units of the metric; not judged if empty.",
    )


class Ceilings(Document):
    """Limits on the variant itself; none if empty."""

    latency_ms: float | None = Field(None, gt=0, title="One-row latency", description="Median, in milliseconds.")
    size_mb: float | None = Field(None, gt=0, title="Size", description="Folder size in MB.")


class Segments(Document):
    """One variant for each value of a column."""

    by: str = Field(title="Column", description="A variant is made for each value of this column.")
    min_rows: int = Field(200, ge=20, title="Least rows", description="Smaller segments use the pooled variant.")


class DeploymentWish(Document):
    """How the variant is to be served when its gate says yes."""

    as_: Literal["champion", "challenger", "canary", "shadow", "none"] = Field("champion", alias="as", title="As")
    percent: float | None = Field(None, gt=0, lt=100, title="Canary traffic", description="Percent of the requests.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _canary_has_percent(self) -> Self:
        if (self.as_ == "canary") != (self.percent is not None):
            raise ValueError("percent goes with 'as: canary', and a canary needs one")
        return self


class BudgetRange(Document):
    """A recipe's budget: what is given by default and what may be asked for at most."""

    default: Budget = Field(default_factory=Budget)
    ceiling: Budget = Field(default_factory=lambda: Budget(time_s=3600, trials=10_000, memory_gb=64))


class Metrics(Document):
    """The metric that is optimized by default, for each task; names of scikit-learn scorers."""

    binary: str = "roc_auc"
    multiclass: str = "neg_log_loss"
    regression: str = "neg_root_mean_squared_error"


class Recipe(Document):
    """How a model is made. Published by a recipe author; identified by name and digest."""

    name: str = Field(pattern=NAME, title="Name")
    title: str = Field(title="Title")
    description: str = Field("", title="What it is for")
    owner: str = Field("", title="Owner")
    tasks: tuple[Task, ...] = Field(tuple(Task), title="Tasks")
    families: tuple[str, ...] = Field(min_length=1, title="Model families", description="In order of priority.")
    spaces: dict[str, dict[str, Narrowing]] = Field(
        default_factory=dict, title="Search spaces", description="Narrowings of the families' own spaces."
    )
    metric: Metrics = Field(default_factory=Metrics, title="Metrics")
    validation: Validation = Field(default_factory=AutoValidation, title="Validation")
    budget: BudgetRange = Field(default_factory=BudgetRange, title="Budget")
    gates: Gates = Field(default_factory=Gates, title="Gates")
    ceilings: Ceilings = Field(default_factory=Ceilings, title="Ceilings")
    max_workers: int = Field(1, ge=1, le=64, title="Most workers", description="Ray Train workers at most.")
    max_gpus_per_worker: float = Field(0, ge=0, title="Most GPUs per worker")


class VariantRequest(Document):
    """The one document that all doors accept."""

    team: str = Field(pattern=NAME, title="Team")
    name: str = Field(pattern=NAME, title="Variant name")
    recipe: str = Field(
        pattern=r"^[a-z][a-z0-9_-]*(@[0-9a-f]{8,64})?$", title="Recipe", description="name or name@digest"
    )
    dataset: DatasetRef = Field(title="Dataset")
    metric: str | None = Field(
        None, title="Metric", description="Name of a scikit-learn scorer; default: the recipe's."
    )
    validation: Validation | None = Field(None, title="Validation")
    budget: Budget | None = Field(None, title="Budget")
    families: tuple[str, ...] | None = Field(
        None, min_length=1, title="Model families", description="Some of the recipe's."
    )
    spaces: dict[str, dict[str, Narrowing]] = Field(
        default_factory=dict, title="Search spaces", description="Narrowings of the recipe's spaces."
    )
    ceilings: Ceilings | None = Field(None, title="Ceilings")
    making: Making = Field(
        "auto",
        title="Making",
        description=(
            "cold searches from nothing; warm_start with what the parent or siblings found; refit fits the parent's "
            "configurations on these rows; incremental trains the parent's models on; auto is warm_start where there "
            "is something to start from, else cold."
        ),
    )
    parent: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_-]*(\.[a-z0-9_-]+){1,2}(@[a-z]+|/\d+)?$",
        title="Parent variant",
        description="A variant that this one comes from: team.name, team.name@alias or team.name/version.",
        validate_default=True,
    )
    segments: Segments | None = Field(None, title="Segments")
    gates: Gates | None = Field(None, title="Gates")
    resources: Resources = Field(default_factory=Resources, title="Resources")
    deployment: DeploymentWish = Field(default_factory=DeploymentWish, title="Deployment")
    priority: Literal["low", "normal", "high"] = Field("normal", title="Priority")
    seed: int = Field(0, ge=0, lt=2**31, title="Seed")

    @field_validator("parent")
    @classmethod
    def _remade_from_a_parent(cls, parent: str | None, info: ValidationInfo) -> str | None:
        if parent is None and info.data.get("making") in REMADE:
            raise ValueError(f"making {info.data['making']!r} needs the variant that is made again, as team.name")
        return parent

    @field_validator("segments")
    @classmethod
    def _segments_are_searched(cls, segments: Segments | None, info: ValidationInfo) -> Segments | None:
        if segments is not None and info.data.get("making") in REMADE:
            raise ValueError(f"making {info.data['making']!r} makes one variant; order each segment's by its parent")
        return segments

    @property
    def variant(self) -> str:
        """Name of the registered model, ``team.name``."""
        return f"{self.team}.{self.name}"


# --- what comes out ----------------------------------------------------------


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
