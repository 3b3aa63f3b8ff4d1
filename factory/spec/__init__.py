"""The nouns of the factory as frozen models, as every door accepts and returns them.

The JSON schemas of these models are good enough to draw a form from;
``factory/parsing.py`` checks a document against one of them.
"""

from factory.spec.batch import BatchWish
from factory.spec.dataset import DatasetRef, EntityDataset, FeatureJoin, FileDataset, UploadDataset
from factory.spec.document import NAME, NUMBERS, ColumnType, Document, Seconds, Task
from factory.spec.outcome import ALIAS, CurvePoint, Traits, Trial, Variant, duration
from factory.spec.request import (
    BESIDE,
    FOR_CALLERS,
    REMADE,
    AutoValidation,
    Budget,
    BudgetRange,
    Ceilings,
    CrossValidation,
    DeploymentWish,
    Gates,
    GroupSplit,
    Holdout,
    Making,
    Metrics,
    OnlinePolicy,
    Recipe,
    Resources,
    Segments,
    TimeSplit,
    Validation,
    VariantRequest,
)
from factory.spec.schedule import Schedule
from factory.spec.states import NEXT_STATES, RequestState, TrialState
from factory.spec.team import SCOPES, Actor, Grant, Member, Principal, Quota, Scope, Session, Team, TokenRecord

__all__ = [
    "ALIAS",
    "BESIDE",
    "FOR_CALLERS",
    "NAME",
    "NEXT_STATES",
    "NUMBERS",
    "REMADE",
    "SCOPES",
    "Actor",
    "AutoValidation",
    "BatchWish",
    "Budget",
    "BudgetRange",
    "Ceilings",
    "ColumnType",
    "CrossValidation",
    "CurvePoint",
    "DatasetRef",
    "DeploymentWish",
    "Document",
    "EntityDataset",
    "FeatureJoin",
    "FileDataset",
    "Gates",
    "Grant",
    "GroupSplit",
    "Holdout",
    "Making",
    "Member",
    "Metrics",
    "OnlinePolicy",
    "Principal",
    "Quota",
    "Recipe",
    "RequestState",
    "Resources",
    "Schedule",
    "Scope",
    "Seconds",
    "Segments",
    "Session",
    "Task",
    "Team",
    "TimeSplit",
    "TokenRecord",
    "Traits",
    "Trial",
    "TrialState",
    "UploadDataset",
    "Validation",
    "Variant",
    "VariantRequest",
    "duration",
]
