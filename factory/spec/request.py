"""What is asked for: recipes, and the request that narrows one."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from factory.space import Narrowing
from factory.spec.dataset import DatasetRef
from factory.spec.document import NAME, Document, Seconds, Task

D = TypeVar("D", bound=Document)
Making = Literal["auto", "cold", "warm_start", "refit", "incremental"]
REMADE = frozenset({"refit", "incremental"})
"""Kinds of making without a search: the parent's configurations are taken as they are."""


class AutoValidation(Document):
    """Eight folds, stratified by class; a configuration gets as many of them as it earns in the time."""

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
    gap: int = Field(
        0,
        ge=0,
        title="Gap",
        description="Rows at least that are left out in between; rows of one moment stay together.",
    )


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


FOR_CALLERS = frozenset({"champion", "canary"})
"""Kinds of deployment by which callers get a version who do not ask for it by its alias."""

BESIDE = frozenset({"canary", "shadow"})
"""Kinds of deployment that are there beside a champion only."""


class BudgetRange(Document):
    """A recipe's budget: what is given by default and what may be asked for at most."""

    default: Budget = Field(default_factory=Budget)
    ceiling: Budget = Field(default_factory=lambda: Budget(time_s=3600, trials=10_000, memory_gb=64))


class Metrics(Document):
    """The metric that is optimized by default, for each task; names of scikit-learn scorers."""

    binary: str = "roc_auc"
    multiclass: str = "neg_log_loss"
    regression: str = "neg_root_mean_squared_error"


class OnlinePolicy(Document):
    """What is done about features that the online store does not have as they should be."""

    missing: Literal["impute", "refuse"] = Field(
        "impute", title="Missing features", description="Predict as in training, or refuse the call."
    )
    stale: Literal["impute", "refuse"] = Field(
        "impute",
        title="Stale features",
        description="Older than their view's TTL: count as missing and predict, or refuse the call.",
    )
    store_down: Literal["refuse", "last"] = Field(
        "refuse",
        title="Store is away",
        description="Refuse the call, or answer with the entity's features as they were last read.",
    )


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
    approval: bool = Field(
        False,
        title="Approval",
        description="A version becomes champion or canary only once a second member of the team has approved it.",
        # Recipes that do not ask for it keep the digests that requests have pinned.
        exclude_if=lambda asked: not asked,
    )
    online: OnlinePolicy = Field(
        default_factory=OnlinePolicy,
        title="Online features",
        description="Of variants on a feature service: what is done where features are not as they should be.",
        exclude_if=lambda policy: policy == OnlinePolicy(),
    )


class Terms(NamedTuple):
    """What holds for a request: what it asks for, else what its recipe says."""

    validation: Validation
    budget: Budget
    gates: Gates
    ceilings: Ceilings


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
            "configurations on these rows; incremental trains the parent's models on; auto is warm_start where a "
            "parent is named, else cold."
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

    def filled(self, recipe: Recipe) -> VariantRequest:
        """Return it with the recipe's values for what its budget, gates, ceilings and gap in time leave open."""
        given: dict[str, Document | None] = {
            "budget": _filled(self.budget, recipe.budget.default),
            "gates": _filled(self.gates, recipe.gates),
            "ceilings": _filled(self.ceilings, recipe.ceilings),
        }
        if isinstance(self.validation, TimeSplit) and isinstance(recipe.validation, TimeSplit):
            given["validation"] = _filled(self.validation, recipe.validation)
        return self.model_copy(update={name: part for name, part in given.items() if part is not None})

    def terms(self, recipe: Recipe) -> Terms:
        """Return what holds for it, once it is filled."""
        return Terms(
            validation=self.validation or recipe.validation,
            budget=self.budget or recipe.budget.default,
            gates=self.gates or recipe.gates,
            ceilings=self.ceilings or recipe.ceilings,
        )


def _filled(asked: D | None, default: D) -> D | None:
    if asked is None:
        return None
    named = {name: value for name in asked.model_fields_set if (value := getattr(asked, name)) is not None}
    return default.model_copy(update=named)
