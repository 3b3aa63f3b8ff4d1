"""What the ledger returns of requests and variants: frozen documents, and the order of a request's states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field
from pydantic_core import to_json

from factory.errors import Detail, FactoryError, UserFault
from factory.ledger.bounds import bounded
from factory.spec import ALIAS, NEXT_STATES, Document, RequestState, Traits, Trial, VariantRequest

BROKEN_OFF = frozenset({RequestState.REJECTED, RequestState.FAILED, RequestState.CANCELLED})
"""Ends at which no variant was made."""

UNDER_WAY = tuple(state for state in RequestState if RequestState.CANCELLED in NEXT_STATES[state])
"""States of which work is left: neither made nor ended."""

ADOPTED = "adopted"
"""Kind of the event, and of the attempt, of a job that was submitted past the controller and has told its name."""

Door = Literal["api", "cli", "job", "library", "trigger"]
Priority = Literal["low", "normal", "high"]
Payload = Mapping[str, object] | None


def document_json(document: BaseModel) -> Any:
    """Return a document as it is stored: plain JSON in which NaN and infinity are strings."""
    return json.loads(document.model_dump_json(by_alias=True))


def payload_json(payload: Payload) -> dict[str, Any]:
    """Return what goes with an event or a change as it is stored."""
    plain: dict[str, Any] = json.loads(to_json(dict(payload or {}), inf_nan_mode="strings", by_alias=True))
    return plain


class ErrorRecord(Document):
    """A :class:`~factory.errors.FactoryError` as it is stored."""

    code: str
    message: str
    hint: str = ""
    details: tuple[Detail, ...] = ()

    @classmethod
    def of(cls, error: FactoryError) -> Self:
        """Return the record of an error."""
        return cls(code=error.code, message=error.message, hint=error.hint, details=error.details)


def fault_of(error: FactoryError) -> Literal["user", "system"]:
    """Return whose fault an error is."""
    return "user" if isinstance(error, UserFault) else "system"


class Driver(Document):
    """The process that works on a request."""

    host: str
    pid: int
    lease_until: datetime


class Held(Document):
    """Why a request was not admitted yet."""

    rule: str
    sentence: str
    eta_s: float | None = Field(None, description="Seconds until it is expected to be admitted, where that is known.")
    checked_at: datetime


@dataclass(frozen=True)
class Idempotency:
    """A key under which a request is made once, however often it is sent.

    Attributes:
        scope: Whose key it is: id of the token, or name of the principal.
        key: As the client chose it.
        digest: Of what was sent; another one under the same key is a conflict.

    Raises:
        InvalidRequest: one of them is empty or too long.
    """

    scope: str
    key: str
    digest: str

    def __post_init__(self) -> None:
        bounded("scope", self.scope, 255)
        bounded("Idempotency-Key", self.key, 128)
        bounded("digest", self.digest, 64)


class RequestRecord(Document):
    """A request and where it stands."""

    id: str
    request: VariantRequest
    state: RequestState
    created: datetime
    updated: datetime
    attempt: int = Field(description="How many drivers have worked on it so far.")
    retry_of: str | None = None
    fault: Literal["user", "system"] | None = None
    error: ErrorRecord | None = None
    driver: Driver | None = None
    priority: Priority = "normal"
    door: Door | None = Field(None, description="By which it came; not known of requests of older releases.")
    submitted_by: str | None = None
    quote: dict[str, Any] | None = None
    expected_s: float | None = Field(None, description="Wall seconds that it is expected to take.")
    cpus: float = Field(1.0, description="CPUs that it asks for.")
    gpus: float = Field(0.0, description="GPUs that it asks for, of all workers.")
    memory_gb: float | None = Field(None, description="GB that it asks for; the recipe's default where empty.")
    held: Held | None = None
    not_before: datetime | None = Field(None, description="Moment before which it is not tried again.")
    preemptions: int = Field(0, description="How often it made room for another one.")
    preempt_requested_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    cancelled_by: str | None = None
    n_events: int = Field(0, description="Sequence number of its last event.")

    @property
    def ended(self) -> bool:
        """Whether no state can follow."""
        return not NEXT_STATES[self.state]


class RequestSummary(Document):
    """A request as a line of a list: what it is and where it stands, without its document."""

    id: str
    team: str
    variant: str
    recipe: str
    state: RequestState
    created: datetime
    updated: datetime
    attempt: int
    retry_of: str | None
    fault: Literal["user", "system"] | None
    priority: Priority
    door: Door | None
    submitted_by: str | None
    expected_s: float | None
    held: Held | None
    cancel_requested_at: datetime | None


class StateCount(Document):
    """How many requests of a team are in a state, and since when the oldest of them exists."""

    team: str
    state: RequestState
    n: int
    oldest: datetime


class Event(Document):
    """One line of a request's history; ``state`` is the state that it left the request in.

    ``hash`` chains it to the event before; None in events of releases that did not hash them.
    """

    request_id: str
    sequence: int
    time: datetime
    state: RequestState
    kind: str
    message: str
    payload: dict[str, Any] = Field(default_factory=dict)
    hash: str | None = None


class PastSearch(Document):
    """A search that another may learn from: its trials, and what became of them.

    Attributes:
        request_id: Its request.
        variant: Name of the variant that it was for.
        recorded: When its data were profiled, or the request was received where they were not.
        traits: Of its data; None where an older factory ran it.
        trials: The finished ones, by number.
        blend: Share of each trial in the variant, by number; empty where none was made.
        kind: How its variant was made.
    """

    request_id: str
    variant: str
    recorded: datetime
    traits: Traits | None
    trials: tuple[Trial, ...]
    blend: dict[int, float] = Field(default_factory=dict)
    kind: str = "cold"


class AliasChange(Document):
    """A row of the alias ledger; ``version`` None means that the alias was removed."""

    name: str
    alias: ALIAS
    version: int | None
    who: str
    why: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    time: datetime


class Deployment(Document):
    """One version of a variant name that is to be served, and how."""

    name: str
    as_: Literal["champion", "challenger", "canary", "shadow"]
    percent: float | None = None
    version: int
    updated: datetime


class ServingChange(Document):
    """A row of the history of how a name is served; ``none`` takes the version out of traffic."""

    name: str
    version: int
    as_: Literal["champion", "challenger", "canary", "shadow", "none"]
    percent: float | None = None
    who: str
    why: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    time: datetime


def steps_between(present: RequestState, wanted: RequestState) -> tuple[RequestState, ...] | None:
    """Return the shortest legal way from one state to another, or None where there is none.

    >>> [s.value for s in steps_between(RequestState.RECEIVED, RequestState.PREPARING)]
    ['queued', 'preparing']
    >>> steps_between(RequestState.QUEUED, RequestState.RECEIVED) is None
    True
    """
    ways: dict[RequestState, tuple[RequestState, ...]] = {present: ()}
    frontier = [present]
    while frontier:
        state = frontier.pop(0)
        for following in NEXT_STATES[state]:
            if following not in ways:
                ways[following] = (*ways[state], following)
                frontier.append(following)
    return ways.get(wanted)
