"""The queue: what waits to be admitted, and why it still waits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import NamedTuple, Protocol

from sqlalchemy import bindparam, func, select, update

from factory.ledger import schema
from factory.ledger.attempts import MOST_BACK_OFF_S
from factory.ledger.bounds import cleaned
from factory.ledger.claims import is_alive
from factory.ledger.records import UNDER_WAY, Held, Priority, StateCount, document_json
from factory.ledger.requests import Requests
from factory.ledger.schema import now
from factory.spec import RequestState

_AT_ONCE = 500
"""Rows in one transaction, so that a submission need not wait long for the lock in between."""


class Queued(NamedTuple):
    """A request that waits, as admission needs it; a plain tuple, since there may be 100,000 of them.

    Attributes:
        memory_gb: None where the recipe's default holds.
        since: When it was received.
        expected_s: Wall seconds that it is expected to take; None where that is not known.
        n_preempted: How often it made room before.
    """

    id: str
    team: str
    cpus: float
    gpus: float
    memory_gb: float | None
    priority: Priority
    since: datetime
    expected_s: float | None
    n_preempted: int
    state: str


class Reason(Protocol):
    """Why a request is not admitted yet: the rule's name, one sentence, and seconds until it may be."""

    @property
    def rule(self) -> str: ...

    @property
    def sentence(self) -> str: ...

    @property
    def eta_s(self) -> float | None: ...


class Queue(Requests):
    """The part of the ledger that knows what waits."""

    def waiting(self) -> list[Queued]:
        """Return the requests that may be admitted, the oldest first.

        Those of which work is left, that have no open attempt and no live driver, that are not to be cancelled, and
        whose back-off after a fault is over.
        """
        at, of = schema.requests.c, schema.attempts.c
        moment = now()
        still_open = select(of.number).where(of.request_id == at.id, of.ended_at.is_(None)).exists()
        # A back-off that ends later than the longest one was noted before the clock was set back.
        backing_off = at.not_before.is_not(None) & at.not_before.between(
            moment, moment + timedelta(seconds=MOST_BACK_OFF_S)
        )
        query = select(
            at.id,
            at.team,
            at.cpus,
            at.gpus,
            at.memory_gb,
            at.priority,
            at.created,
            at.expected_s,
            at.preemptions,
            at.state,
            at.driver_token,
        ).where(at.state.in_([s.value for s in UNDER_WAY]), at.cancel_requested_at.is_(None), ~backing_off, ~still_open)
        with self._read() as connection:
            rows = connection.execute(query).all()
            claimed = select(schema.requests).where(at.id.in_([row[0] for row in rows if row[-1] is not None]))
            driven = {row.id for row in connection.execute(claimed) if is_alive(row)}
        queued = [Queued(*row[:-1]) for row in rows if row[0] not in driven]
        queued.sort(key=attrgetter("since", "id"))
        return queued

    def hold(self, reasons: Mapping[str, Reason]) -> None:
        """Keep for each request why it was not admitted; no event is written.

        Args:
            reasons: By request id; unknown ids are passed over.
        """
        moment = now()
        change = update(schema.requests).where(schema.requests.c.id == bindparam("this")).values(held=bindparam("why"))
        rows = [
            {"this": request_id, "why": document_json(_held(reason, moment))}
            for request_id, reason in sorted(reasons.items(), key=lambda item: item[0])
        ]
        for first in range(0, len(rows), _AT_ONCE):
            with self._write() as connection:
                connection.execute(change, rows[first : first + _AT_ONCE])

    def state_counts(self) -> list[StateCount]:
        """Return how many requests each team has in each state, and since when the oldest of them exists."""
        at = schema.requests.c
        query = (
            select(at.team, at.state, func.count(), func.min(at.created, type_=schema.UtcDateTime()))
            .group_by(at.team, at.state)
            .order_by(at.team, at.state)
        )
        with self._read() as connection:
            return [
                StateCount(team=team, state=RequestState(state), n=n, oldest=oldest)
                for team, state, n, oldest in connection.execute(query)
            ]


def _held(reason: Reason, moment: datetime) -> Held:
    return Held(
        rule=cleaned(reason.rule, 64), sentence=cleaned(reason.sentence, 500), eta_s=reason.eta_s, checked_at=moment
    )
