"""Durable state: requests and how they are made, trial history, variants; teams, tokens and the audit log.

:class:`Ledger` is the whole interface.  SQLite (WAL) is the embedded default,
PostgreSQL what several machines share.
"""

from factory.ledger.attempts import MOST_BACK_OFF_S, Attempt, AttemptState, OpenAttempt, Outcome, Wish
from factory.ledger.audit import AuditRecord
from factory.ledger.batch_records import Batch, BatchQuery, BatchRun, BatchState
from factory.ledger.claims import Claim
from factory.ledger.datasets import Share, Upload, UploadQuery
from factory.ledger.leases import LEAD_S
from factory.ledger.pages import AuditQuery, Page, ProposalQuery, RequestQuery, VariantQuery
from factory.ledger.proposals import Proposal, ProposalState
from factory.ledger.queue import Queued
from factory.ledger.records import (
    AliasChange,
    Deployment,
    Door,
    Driver,
    ErrorRecord,
    Event,
    Held,
    Idempotency,
    PastSearch,
    RequestRecord,
    RequestSummary,
    ServingChange,
    StateCount,
)
from factory.ledger.served import LATENCY_MS, CanaryCounts, CanaryRecord, Served, ShadowCounts, Span
from factory.ledger.sessions import PERSON, SignedIn, StartedSession
from factory.ledger.store import Ledger, TrialMark
from factory.ledger.tokens import IssuedToken, Refusal
from factory.ledger.usage import Usage, VariantUsage
from factory.ledger.visibility import EVERYONE, ShareKind

__all__ = [
    "EVERYONE",
    "LATENCY_MS",
    "LEAD_S",
    "MOST_BACK_OFF_S",
    "PERSON",
    "AliasChange",
    "Attempt",
    "AttemptState",
    "AuditQuery",
    "AuditRecord",
    "Batch",
    "BatchQuery",
    "BatchRun",
    "BatchState",
    "CanaryCounts",
    "CanaryRecord",
    "Claim",
    "Deployment",
    "Door",
    "Driver",
    "ErrorRecord",
    "Event",
    "Held",
    "Idempotency",
    "IssuedToken",
    "Ledger",
    "OpenAttempt",
    "Outcome",
    "Page",
    "PastSearch",
    "Proposal",
    "ProposalQuery",
    "ProposalState",
    "Queued",
    "Refusal",
    "RequestQuery",
    "RequestRecord",
    "RequestSummary",
    "Served",
    "ServingChange",
    "ShadowCounts",
    "Share",
    "ShareKind",
    "SignedIn",
    "Span",
    "StartedSession",
    "StateCount",
    "TrialMark",
    "Upload",
    "UploadQuery",
    "Usage",
    "VariantQuery",
    "VariantUsage",
    "Wish",
]
