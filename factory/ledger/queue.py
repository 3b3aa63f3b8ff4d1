"""The queue: what waits to be admitted, and why it still waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Select, func, select

from factory.ledger import moments, schema
from factory.ledger.attempts import MOST_BACK_OFF_S
from factory.ledger.bounds import cleaned
from factory.ledger.claims import is_alive
from factory.ledger.engines import insert_into
from factory.ledger.events import no_request
from factory.ledger.moments import now
from factory.ledger.records import UNDER_WAY, Priority, StateCount
from factory.ledger.requests import HELD, Requests
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


_at = schema.requests.c
_QUEUED = (
    _at.id,
    _at.team,
    _at.cpus,
    _at.gpus,
    _at.memory_gb,
    _at.priority,
    _at.created,
    _at.expected_s,
    _at.preemptions,
    _at.state,
    _at.driver_token,
)


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
        # A back-off that ends later than the longest one was noted before the clock was set back.
        backing_off = at.not_before.is_not(None) & at.not_before.between(
            moment, moment + timedelta(seconds=MOST_BACK_OFF_S)
        )
        waits = at.state.in_([s.value for s in UNDER_WAY]) & at.cancel_requested_at.is_(None) & ~backing_off
        with self._read() as connection:
            queued, claimed = _rows(connection, select(*_QUEUED).where(waits))
            # The few that are worked on are taken out here: asked of each row, it would cost a third more.
            busy = set(connection.scalars(select(of.request_id).where(of.ended_at.is_(None))))
            drivers = connection.execute(select(schema.requests).where(at.id.in_(claimed)))
            busy.update(row.id for row in drivers if is_alive(row))
        waiting = [one for one in queued if one.id not in busy]
        waiting.sort(key=attrgetter("since", "id"))
        return waiting

    def hold(self, reasons: Mapping[str, Reason]) -> None:
        """Keep for each request why it was not admitted, until it is; no event is written.

        Args:
            reasons: By request id.

        Raises:
            NotFound: there is no such request; nothing of its batch is kept.
        """
        moment = now()
        rows = [_hold(request_id, reasons[request_id], moment) for request_id in sorted(reasons)]
        for first in range(0, len(rows), _AT_ONCE):
            batch = rows[first : first + _AT_ONCE]
            with self._write() as connection:
                ids = [row["request_id"] for row in batch]
                known = set(connection.scalars(select(_at.id).where(_at.id.in_(ids))))
                if unknown := [request_id for request_id in ids if request_id not in known]:
                    raise no_request(connection, unknown[0])
                insertion = insert_into(connection, schema.holds)
                anew = {column.key: insertion.excluded[column.key] for column in HELD}
                connection.execute(insertion.on_conflict_do_update(index_elements=["request_id"], set_=anew), batch)

    def state_counts(self) -> list[StateCount]:
        """Return how many requests each team has in each state, and since when the oldest of them exists."""
        at = schema.requests.c
        query = (
            select(at.team, at.state, func.count(), func.min(at.created, type_=moments.UtcDateTime()))
            .group_by(at.team, at.state)
            .order_by(at.team, at.state)
        )
        with self._read() as connection:
            return [
                StateCount(team=team, state=RequestState(state), n=n, oldest=oldest)
                for team, state, n, oldest in connection.execute(query)
            ]


def _rows(connection: Connection, query: Select[Any]) -> tuple[list[Queued], list[str]]:
    """Return what a query finds, and the ids of those that a driver has or had.

    The rows are taken as the database driver gives them; made by SQLAlchemy they take a third longer.
    """
    found = connection.execute(query)
    rows = [] if found.cursor is None else found.cursor.fetchall()
    found.close()
    moment: Callable[[Any], Any] | None = moments.UtcDateTime().result_processor(connection.dialect, None)
    assert moment is not None
    queued = [
        Queued(id_, team, cpus, gpus, memory_gb, priority, moment(created), expected_s, preemptions, state)
        for id_, team, cpus, gpus, memory_gb, priority, created, expected_s, preemptions, state, _ in rows
    ]
    return queued, [row[0] for row in rows if row[-1] is not None]


def _hold(request_id: str, reason: Reason, moment: datetime) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "rule": cleaned(reason.rule, 64),
        "sentence": cleaned(reason.sentence, 500),
        "eta_s": reason.eta_s,
        "checked_at": moment,
    }
