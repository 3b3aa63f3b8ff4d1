"""What the ledger returns: frozen documents, and the order of a request's states."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field

from factory.errors import Detail, FactoryError, UserFault
from factory.spec import ALIAS, NEXT_STATES, Document, RequestState, Traits, Trial, VariantRequest

BROKEN_OFF = frozenset({RequestState.REJECTED, RequestState.FAILED, RequestState.CANCELLED})
"""Ends at which no variant was made."""


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

    @property
    def ended(self) -> bool:
        """Whether no state can follow."""
        return not NEXT_STATES[self.state]


class Event(Document):
    """One line of a request's history; ``state`` is the state that it left the request in."""

    request_id: str
    sequence: int
    time: datetime
    state: RequestState
    kind: str
    message: str
    payload: dict[str, Any] = Field(default_factory=dict)


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
