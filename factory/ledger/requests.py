"""Requests: looked up, moved forward, ended.

States never go backwards.  Each step leaves an event (:mod:`factory.ledger.events`).
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Row, Select, String, bindparam, desc, select, update

from factory.errors import Conflict, Detail, FactoryError, NotFound, listing
from factory.ledger import schema
from factory.ledger.database import repeatable
from factory.ledger.events import Events, append_event, no_request
from factory.ledger.records import (
    BROKEN_OFF,
    UNDER_WAY,
    Driver,
    ErrorRecord,
    Event,
    Held,
    Payload,
    RequestRecord,
    document_json,
    fault_of,
    steps_between,
)
from factory.ledger.visibility import visible
from factory.spec import NEXT_STATES, RequestState, VariantRequest

HELD = (schema.holds.c.rule, schema.holds.c.sentence, schema.holds.c.eta_s, schema.holds.c.checked_at)
"""Columns that :func:`held_of` reads."""


class Requests(Events):
    """The part of the ledger that knows requests."""

    @repeatable
    def request(self, request_id: str, *, seen_by: str | None = None) -> RequestRecord:
        """Return one request by its id or by the beginning of it.

        Args:
            request_id: The id, or its first characters.
            seen_by: Team that asks; requests of others that were not shared with it do not exist for it.

        Raises:
            NotFound: there is none, or several begin so; the nearest are named.
        """
        ids = schema.requests.c.id
        with self._read() as connection:
            given = {"request_id": request_id} | ({} if seen_by is None else {"seen_by": seen_by})
            row = connection.execute(_by_id(seen_by is not None), given).one_or_none()
            if row is None and request_id:
                seen = records().where(visible("request", ids, schema.requests.c.team, seen_by))
                begin = ids.startswith(request_id, autoescape=True)
                candidates = connection.execute(seen.where(begin).order_by(ids).limit(13)).all()
                if len(candidates) > 1:
                    raise NotFound(
                        f"Several requests begin with {request_id!r}: {listing(r.id for r in candidates)}.",
                        hint="Write more of the id.",
                        details=[Detail("id", f"{request_id!r} is not unique")],
                    )
                row = candidates[0] if candidates else None
            if row is None:
                raise no_request(connection, request_id, seen_by=seen_by)
        return request_record(row)

    def requests(
        self, *, team: str | None = None, state: RequestState | None = None, limit: int = 100
    ) -> list[RequestRecord]:
        """Return requests, the newest first."""
        query = records().order_by(desc("created"), desc("id")).limit(limit)
        if team is not None:
            query = query.where(schema.requests.c.team == team)
        if state is not None:
            query = query.where(schema.requests.c.state == state.value)
        with self._read() as connection:
            return [request_record(row) for row in connection.execute(query)]

    def advance(self, request_id: str, state: RequestState, message: str, *, payload: Payload = None) -> Event:
        """Move a request to a state that may follow its present one.

        Raises:
            Conflict: it may not; a repeated step is a conflict too (see :meth:`reach`).
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            _refuse_illegal(row, state)
            return append_event(connection, row, state, kind="state", message=message, payload=payload)

    @repeatable
    def reach(self, request_id: str, state: RequestState, message: str, *, payload: Payload = None) -> Event | None:
        """Move a request forward through to a state; do nothing where it is there or beyond.

        A stage that is run again after a crash calls this, so that it need not know how far it came.

        Returns:
            The event of the state that was reached, or None where nothing was to be done.

        Raises:
            Conflict: the request was rejected, cancelled or failed, or the state does not lie before it.
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            present = RequestState(row.state)
            if present is state or (present not in BROKEN_OFF and steps_between(state, present) is not None):
                return None
            steps = steps_between(present, state)
            if not steps:
                _refuse_illegal(row, state)
                return None
            for passed in steps[:-1]:
                append_event(connection, row, passed, kind="state", message=f"On the way to {state.value}.")
                row = self._locked(connection, request_id)
            return append_event(connection, row, state, kind="state", message=message, payload=payload)

    def fail(self, request_id: str, error: FactoryError) -> Event:
        """End a request as FAILED, and keep the error and whose fault it is.

        Raises:
            Conflict: the request has ended or its variant is registered already.
            NotFound: there is no such request.
        """
        record = ErrorRecord.of(error)
        with self._write() as connection:
            row = self._locked(connection, request_id)
            _refuse_illegal(row, RequestState.FAILED)
            kept = {"error": document_json(record), "fault": fault_of(error)}
            connection.execute(update(schema.requests).where(schema.requests.c.id == request_id).values(kept))
            return append_event(connection, row, RequestState.FAILED, kind="state", message=error.message, payload=kept)

    @repeatable
    def note(self, request_id: str, kind: str, message: str, *, payload: Payload = None) -> Event:
        """Write an event that leaves the request in its state; allowed after its end too.

        Raises:
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            return append_event(connection, row, RequestState(row.state), kind=kind, message=message, payload=payload)


def records() -> Select[Any]:
    """Return the query of requests with why they wait; :func:`request_record` makes documents of its rows."""
    return select(schema.requests, *HELD).join_from(schema.requests, schema.holds, isouter=True)


@cache
def _by_id(of_team: bool) -> Select[Any]:
    """Return the query of the request ``request_id``, as far as the team ``seen_by`` sees it where it is of one."""
    at = schema.requests.c
    team = bindparam("seen_by", type_=String) if of_team else None
    return records().where(at.id == bindparam("request_id"), visible("request", at.id, at.team, team))


def held_of(state: str, row: Row[Any] | SimpleNamespace | None) -> Held | None:
    """Return why a request of a state waits; what has ended waits no more, whatever was noted last."""
    if row is None or row.rule is None or RequestState(state) not in UNDER_WAY:
        return None
    return Held(rule=row.rule, sentence=row.sentence, eta_s=row.eta_s, checked_at=row.checked_at)


def request_record(row: Row[Any] | SimpleNamespace) -> RequestRecord:
    """Return a row of the requests as a document."""
    driver = None
    if row.driver_token is not None:
        driver = Driver(host=row.driver_host, pid=row.driver_pid, lease_until=row.driver_lease_until)
    return RequestRecord(
        id=row.id,
        request=VariantRequest.model_validate(row.document),
        state=RequestState(row.state),
        created=row.created,
        updated=row.updated,
        attempt=row.attempt,
        retry_of=row.retry_of,
        fault=row.fault,
        error=None if row.error is None else ErrorRecord.model_validate(row.error),
        driver=driver,
        priority=row.priority,
        door=row.door,
        submitted_by=row.submitted_by,
        quote=row.quote,
        expected_s=row.expected_s,
        cpus=row.cpus,
        gpus=row.gpus,
        memory_gb=row.memory_gb,
        held=held_of(row.state, row),
        not_before=row.not_before,
        preemptions=row.preemptions,
        preempt_requested_at=row.preempt_requested_at,
        cancel_requested_at=row.cancel_requested_at,
        cancelled_by=row.cancelled_by,
        n_events=row.events,
    )


def _refuse_illegal(row: Row[Any], state: RequestState) -> None:
    present = RequestState(row.state)
    if state in NEXT_STATES[present]:
        return
    allowed = listing(s.value for s in NEXT_STATES[present])
    message = f"Request {row.id} is {present.value}, so it cannot become {state.value}; allowed: {allowed}."
    hint = "States never go backwards; make a new request that retries this one."
    raise Conflict(message, hint=hint, details=[Detail("state", f"{present.value} -> {state.value}")])
