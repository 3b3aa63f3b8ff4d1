"""Where requests and trials stand, and what may follow what."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise


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
