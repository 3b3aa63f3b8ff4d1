"""What the API takes and returns beside the factory's own nouns; its OpenAPI document is made from these."""

from __future__ import annotations

import re
from datetime import datetime
from math import isfinite
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, JsonValue

from factory.data.inspection import Preview
from factory.errors import Detail
from factory.ledger import (
    AliasChange,
    Attempt,
    AuditRecord,
    Batch,
    BatchRun,
    Deployment,
    Event,
    RequestSummary,
    ServingChange,
    Share,
    Upload,
)
from factory.ledger.records import Priority
from factory.operate.answers import InputColumn, ListedVariant, MemberShare
from factory.operate.evidence import GateReport, PooledSegment
from factory.operate.quotes import Usual
from factory.operate.recipe_history import RecipeVersion
from factory.operate.traffic import Lately
from factory.spec import (
    ALIAS,
    Document,
    Member,
    Recipe,
    Team,
    TokenRecord,
    Trial,
    TrialState,
)

DIGEST = r"^[0-9a-f]{64}$"


def _no_number(value: object) -> object:
    """Refuse seconds since 1970, which pydantic would take for a moment."""
    if isinstance(value, str) and re.fullmatch(r"[-+ 0-9.eE_]*", value):
        raise ValueError("a moment is written as 2026-11-27T10:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_no_number)]
"""A moment with its time zone, as RFC 3339 has it."""

# --- errors ------------------------------------------------------------------


class ErrorContent(Document):
    """What went wrong, what to do about it, and each single problem with its place."""

    code: str
    message: str
    hint: str
    details: tuple[Detail, ...]


class ErrorBody(Document):
    """The one shape of all errors; a field that begins with a slash is a JSON pointer into the body."""

    error: ErrorContent


# --- lists -------------------------------------------------------------------


class Listing(Document):
    next: str | None = Field(None, description="Cursor of the page that follows; null at the end.")


class Requests(Listing):
    """A page of requests."""

    items: tuple[RequestSummary, ...]


class Events(Listing):
    """Events of a request, in order."""

    items: tuple[Event, ...]


class Trials(Listing):
    """Trials of a request, by segment and number."""

    items: tuple[Trial, ...]


class LiveTrial(Document):
    """What a stream tells of a trial that was recorded, or has gained folds."""

    segment: str
    number: int
    family: str
    state: TrialState
    score: float | None
    train_score: float | None
    n_folds: int
    cost_s: float
    origin: str
    reason: str
    recorded: datetime

    @classmethod
    def of(cls, trial: Trial, recorded: datetime) -> Self:
        """Return it of a trial; numbers that JSON does not have are left out."""
        told = trial.model_dump(include={"segment", "number", "family", "state", "cost_s", "origin", "reason"})
        scores = {
            name: value if (value := getattr(trial, name)) is not None and isfinite(value) else None
            for name in ("score", "train_score")
        }
        return cls(**told, **scores, n_folds=len(trial.folds), recorded=recorded)


class Attempts(Listing):
    """Attempts of a request, in order."""

    items: tuple[Attempt, ...]


class Datasets(Listing):
    """A page of uploaded datasets."""

    items: tuple[Upload, ...]


class Teams(Listing):
    """Teams, by name."""

    items: tuple[Team, ...]


class Members(Listing):
    """People of a team."""

    items: tuple[Member, ...]


class Tokens(Listing):
    """Tokens, the newest first."""

    items: tuple[TokenRecord, ...]


class Shares(Listing):
    """Whom something is shared with."""

    items: tuple[Share, ...]


class Batches(Listing):
    """Batches, each with its last run."""

    items: tuple[Batch, ...]


class BatchRuns(Listing):
    """Runs of a batch."""

    items: tuple[BatchRun, ...]


class DueTimes(Listing):
    """When a schedule is due, the next time first."""

    items: tuple[datetime, ...]


class AuditLog(Listing):
    """A page of the audit log."""

    items: tuple[AuditRecord, ...]


# --- recipes -----------------------------------------------------------------


class RecipeView(Recipe):
    """A recipe with the digest that pins it."""

    digest_: str = Field(alias="digest", description="Order it as name@digest to have this one and no later one.")


class BrokenRecipe(Document):
    """A recipe that its author has to mend."""

    name: str
    message: str


class Recipes(Listing):
    """The recipes that can be ordered, and those that cannot."""

    items: tuple[RecipeView, ...]
    broken: tuple[BrokenRecipe, ...] = ()
    usual: dict[str, Usual] = Field({}, description="By recipe: what a request usually takes, where that was asked.")


class RecipeVersions(Listing):
    """What a recipe was before, the newest first."""

    items: tuple[RecipeVersion, ...]


class RecipeForm(Document):
    """A recipe, and what a form to order it is made from."""

    recipe: RecipeView
    request_schema: dict[str, JsonValue] = Field(description="JSON schema of a request for this recipe.")
    family_spaces: dict[str, dict[str, JsonValue]] = Field(
        description="Task, then family: the search space that a request may narrow."
    )


# --- datasets ----------------------------------------------------------------


class DatasetView(Document):
    """A dataset that a team has uploaded, with its beginning."""

    dataset: Upload
    preview: Preview
    known: bool = Field(False, description="Whether the team had uploaded the same bytes before.")


# --- variants ----------------------------------------------------------------


class VersionDetail(ListedVariant):
    """A version with what is in it; empty where its files cannot be looked at now."""

    columns: tuple[InputColumn, ...] = Field((), description="That it needs to predict.")
    members: tuple[MemberShare, ...] = Field((), description="The models of its blend.")
    rows: int | None = Field(None, description="Of the data of its request; null of a segment's version.")
    gate: GateReport | None = Field(None, description="What its gate found; null where nothing of it is kept.")


class Variants(Listing):
    """A page of versions of variants."""

    items: tuple[ListedVariant, ...]


class VariantName(Document):
    """A variant with all its versions, and who was champion when."""

    name: str
    team: str
    aliases: dict[ALIAS, int]
    versions: tuple[ListedVariant, ...]
    deployments: tuple[Deployment, ...]
    alias_history: tuple[AliasChange, ...]
    pooled_segments: tuple[PooledSegment, ...] = Field(
        (), description="That its champion answers for, since they have no variant of their own, and why."
    )


_WHY = Field(min_length=1, max_length=1000, description="The reason; it is kept in the alias ledger.")
_INSTEAD_OF = Field(
    None,
    ge=0,
    lt=2**31,
    description="Version that is champion as the caller knows it, 0 for none; nothing is changed where another is it "
    "by now. Any where empty.",
)


class Promotion(Document):
    """Make a version the champion."""

    version: int = Field(ge=1, lt=2**31)
    why: str = _WHY
    override: bool = Field(
        False,
        description="Also where its gate turned it down, or (with the scope admin) where nobody has approved it; that "
        "is recorded.",
    )
    instead_of: int | None = _INSTEAD_OF


class Rollback(Document):
    """Make the version champion that was it before."""

    why: str = _WHY
    instead_of: int | None = _INSTEAD_OF


# --- deployments -------------------------------------------------------------


class DeploymentChange(Document):
    """How a version is to be served; ``none`` takes it out of traffic."""

    version: int = Field(ge=1, lt=2**31)
    as_: Literal["champion", "challenger", "canary", "shadow", "none"] = Field("champion", alias="as")
    percent: float | None = Field(None, gt=0, lt=100, description="Of the requests; a canary's.")
    why: str = Field(
        "Set by hand.", min_length=1, max_length=1000, description="The reason; the history of the deployment keeps it."
    )


class NameDeployment(Document):
    """How a variant name is served: each version with its part."""

    name: str
    served: tuple[Deployment, ...]
    lately: Lately | None = Field(None, description="How it is called; none where it was not within five minutes.")


class DeploymentHistory(Document):
    """How it was changed how a variant is served: by whom, when and why; the last change first."""

    name: str
    changes: tuple[ServingChange, ...]


class Deployments(Listing):
    """What is served, by name."""

    items: tuple[NameDeployment, ...]
    predictor: str | None = Field(None, description="Address of what answers with them; none where none runs here.")


# --- requests ----------------------------------------------------------------


class Cancellation(Document):
    """Why a request is cancelled."""

    why: str = Field("", max_length=1000)


class PriorityChange(Document):
    """Where a waiting request of a team is put among the others."""

    priority: Priority
    why: str = Field("", max_length=1000, description="The reason; it is kept.")


# --- health ------------------------------------------------------------------


class Alive(Document):
    """The process answers."""

    alive: Literal[True] = True


class Check(Document):
    """One thing that the factory needs."""

    name: str
    ok: bool
    message: str


class Readiness(Document):
    """Whether calls can be answered, and what is wrong."""

    ready: bool
    checks: tuple[Check, ...]
