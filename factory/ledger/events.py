"""The events of requests: appended under the request's lock, read in order, proved to be as they were written.

A change locks the request's row first, so that of two processes that want the
same transition one makes it and the other is told where the request stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection, Row, desc, insert, select, update

from factory.errors import Detail, NotFound, listing
from factory.ledger import schema
from factory.ledger.audit import Audit
from factory.ledger.bounds import cleaned
from factory.ledger.chain import link
from factory.ledger.moments import now
from factory.ledger.records import Event, Payload, payload_json
from factory.ledger.visibility import visible
from factory.spec import RequestState

_AT_ONCE = 500
"""Ids in one query; SQLite takes some thousand values."""


class Events(Audit):
    """The part of the ledger that knows what happened to requests."""

    def events(self, request_id: str, *, after: int = 0, limit: int | None = None) -> list[Event]:
        """Return the events of a request with a sequence number above ``after``, in order, ``limit`` at most.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.events.c
        query = select(schema.events).where(at.request_id == request_id, at.sequence > after).order_by(at.sequence)
        with self._read() as connection:
            rows = connection.execute(query.limit(limit)).all()
            if not rows:
                self._require(connection, request_id)
        return [Event.model_validate(row._asdict()) for row in rows]

    def last_events(self, request_ids: Iterable[str], kind: str) -> dict[str, Event]:
        """Return the last event of a kind of each request; those that have none are left out."""
        ids = sorted(set(request_ids))
        at = schema.events.c
        last: dict[str, Event] = {}
        with self._read() as connection:
            for first in range(0, len(ids), _AT_ONCE):
                some = select(schema.events).where(at.request_id.in_(ids[first : first + _AT_ONCE]), at.kind == kind)
                rows = connection.execute(some.order_by(at.sequence))
                last.update((row.request_id, Event.model_validate(row._asdict())) for row in rows)
        return last

    def last_event_of(self, request_id: str, kind: str, *, beginning: str) -> Event | None:
        """Return a request's last event of a kind whose message begins so; None where there is none."""
        at = schema.events.c
        these = at.request_id == request_id, at.kind == kind, at.message.startswith(beginning, autoescape=True)
        query = select(schema.events).where(*these).order_by(desc(at.sequence)).limit(1)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Event.model_validate(row._asdict())

    def events_of(self, request_id: str, kind: str, *, limit: int) -> list[Event]:
        """Return a request's events of a kind, in order, ``limit`` at most."""
        at = schema.events.c
        query = select(schema.events).where(at.request_id == request_id, at.kind == kind).order_by(at.sequence)
        with self._read() as connection:
            return [Event.model_validate(row._asdict()) for row in connection.execute(query.limit(limit))]

    def event_counts(self, request_ids: Iterable[str]) -> dict[str, int]:
        """Return the sequence number of each request's last event; unknown requests are left out.

        One query answers for all that is listened to, so that only those with news need be read.
        """
        ids = sorted(set(request_ids))
        at = schema.requests.c
        counts: dict[str, int] = {}
        with self._read() as connection:
            for first in range(0, len(ids), _AT_ONCE):
                some = select(at.id, at.events).where(at.id.in_(ids[first : first + _AT_ONCE]))
                counts.update((row.id, row.events) for row in connection.execute(some))
        return counts

    def verify_events(self, request_id: str) -> int | None:
        """Return the sequence number of the first event that was changed, put in or is missing.

        None where all are as they were written. Events of releases that did not hash them are only counted.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.events.c
        rows = select(schema.events).where(at.request_id == request_id).order_by(at.sequence)
        expected, previous, state = 1, None, None
        with self._read() as connection:
            request = self._require(connection, request_id)
            try:
                for row in connection.execute(rows):
                    sound = row.hash is None if expected <= request.unchained else row.hash == _link(previous, row)
                    if row.sequence != expected or not sound:
                        return expected
                    expected, previous, state = expected + 1, row.hash, row.state
            except ValueError:  # what was stored is no moment or no JSON any more
                return expected
        whole = (request.events, request.chain, request.state) == (expected - 1, previous, state)
        return None if whole else min(expected, request.events)

    def _require(self, connection: Connection, request_id: str) -> Row[Any]:
        row = connection.execute(select(schema.requests).where(schema.requests.c.id == request_id)).one_or_none()
        if row is None:
            raise no_request(connection, request_id)
        return row

    def _locked(self, connection: Connection, request_id: str) -> Row[Any]:
        """Return a request's row, which no other process changes until this transaction ends."""
        query = select(schema.requests).where(schema.requests.c.id == request_id).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise no_request(connection, request_id)
        return row


def next_event(
    request_id: str,
    state: RequestState,
    *,
    after: tuple[int, str | None],
    kind: str,
    message: str,
    payload: Payload = None,
) -> Event:
    """Return the event that follows the one of this sequence number and hash; nothing is stored."""
    sequence, previous = after
    event = Event(
        request_id=request_id,
        sequence=sequence + 1,
        time=now(),
        state=state,
        kind=cleaned(kind, 64),
        message=cleaned(message),
        payload=payload_json(payload),
    )
    return event.model_copy(update={"hash": link(previous, _content(event))})


def append_event(
    connection: Connection,
    row: Row[Any],
    state: RequestState,
    *,
    kind: str,
    message: str,
    payload: Payload = None,
) -> Event:
    """Write the next event of a locked request, and the state that it leads to."""
    after = (row.events, row.chain)
    event = next_event(row.id, state, after=after, kind=kind, message=message, payload=payload)
    connection.execute(insert(schema.events).values(event.model_dump()))
    moved = {"state": state.value, "updated": event.time, "events": event.sequence, "chain": event.hash}
    connection.execute(update(schema.requests).where(schema.requests.c.id == row.id).values(moved))
    return event


def no_request(connection: Connection, request_id: str, *, seen_by: str | None = None) -> NotFound:
    """Return the error that names the nearest ids among those that a team sees."""
    at = schema.requests.c
    seen = select(at.id).where(visible("request", at.id, at.team, seen_by))
    known = connection.scalars(seen.order_by(desc(at.created)).limit(1000)).all()
    near = get_close_matches(request_id, known, n=3)
    return NotFound(
        f"There is no request {request_id!r}." + (f" The nearest are: {listing(near)}." if near else ""),
        hint="`factory requests list` shows them all.",
        details=[Detail("id", f"{request_id!r} is not known")],
    )


def _link(previous: str | None, row: Row[Any]) -> str:
    return link(previous, _content(row))


def _content(event: Event | Row[Any]) -> list[object]:
    return [
        event.request_id,
        event.sequence,
        event.time,
        str(event.state),
        event.kind,
        event.message,
        event.payload,
    ]
