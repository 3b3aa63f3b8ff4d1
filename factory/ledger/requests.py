"""Requests and their events: created, looked up, moved forward, ended.

A change locks the request's row first, so that of two processes that want the
same transition one makes it and the other is told where the request stands.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from sqlalchemy import Connection, Row, desc, insert, select, update

from factory.errors import Conflict, Detail, FactoryError, InvalidRequest, NotFound, listing
from factory.ledger import schema
from factory.ledger.database import Database
from factory.ledger.records import BROKEN_OFF, Driver, ErrorRecord, Event, RequestRecord, fault_of, steps_between
from factory.ledger.schema import now
from factory.spec import NEXT_STATES, RequestState, VariantRequest

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

Payload = Mapping[str, object] | None


class Requests(Database):
    """The part of the ledger that knows requests and events."""

    def create_request(
        self, request: VariantRequest, *, request_id: str | None = None, retry_of: str | None = None
    ) -> RequestRecord:
        """Store a request as RECEIVED, with its first event.

        Args:
            request: What is asked for.
            request_id: Id to use instead of a new one; lower-case letters, digits, ``.``, ``_`` and ``-``.
            retry_of: Id of the request that this one tries again; states never go backwards.

        Raises:
            InvalidRequest: the id cannot be used.
            Conflict: there is a request of that id, or the one that is tried again has not ended.
            NotFound: there is no request ``retry_of``.
        """
        moment = now()
        request_id = _checked_id(request_id) if request_id is not None else new_request_id(moment)
        with self._write() as connection:
            if retry_of is not None:
                _refuse_retry_of_running(self._locked(connection, retry_of))
            if connection.scalar(select(schema.requests.c.id).where(schema.requests.c.id == request_id)):
                raise Conflict(
                    f"There is a request {request_id!r} already.",
                    hint="Leave the id out, or use `factory run ID` to go on with that request.",
                    details=[Detail("id", f"{request_id!r} is taken")],
                )
            connection.execute(
                insert(schema.requests).values(
                    id=request_id,
                    document=document_json(request),
                    team=request.team,
                    variant=request.variant,
                    recipe=request.recipe.partition("@")[0],
                    state=RequestState.RECEIVED.value,
                    created=moment,
                    updated=moment,
                    retry_of=retry_of,
                    attempt=0,
                    events=0,
                )
            )
            row = self._locked(connection, request_id)
            message = f"Request for {request.variant} received" + (f", a retry of {retry_of}." if retry_of else ".")
            payload = {"retry_of": retry_of} if retry_of else None
            _append(connection, row, RequestState.RECEIVED, kind="state", message=message, payload=payload)
        return self.request(request_id)

    def request(self, request_id: str) -> RequestRecord:
        """Return one request by its id or by the beginning of it.

        Raises:
            NotFound: there is none, or several begin so; the nearest are named.
        """
        ids = schema.requests.c.id
        with self._read() as connection:
            row = connection.execute(select(schema.requests).where(ids == request_id)).one_or_none()
            if row is None and request_id:
                begin = ids.startswith(request_id, autoescape=True)
                candidates = connection.execute(select(schema.requests).where(begin).order_by(ids).limit(13)).all()
                if len(candidates) > 1:
                    raise NotFound(
                        f"Several requests begin with {request_id!r}: {listing(r.id for r in candidates)}.",
                        hint="Write more of the id.",
                        details=[Detail("id", f"{request_id!r} is not unique")],
                    )
                row = candidates[0] if candidates else None
            if row is None:
                raise _no_request(connection, request_id)
        return _record(row)

    def requests(
        self, *, team: str | None = None, state: RequestState | None = None, limit: int = 100
    ) -> list[RequestRecord]:
        """Return requests, the newest first."""
        query = select(schema.requests).order_by(desc("created"), desc("id")).limit(limit)
        if team is not None:
            query = query.where(schema.requests.c.team == team)
        if state is not None:
            query = query.where(schema.requests.c.state == state.value)
        with self._read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def advance(self, request_id: str, state: RequestState, message: str, *, payload: Payload = None) -> Event:
        """Move a request to a state that may follow its present one.

        Raises:
            Conflict: it may not; a repeated step is a conflict too (see :meth:`reach`).
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            _refuse_illegal(row, state)
            return _append(connection, row, state, kind="state", message=message, payload=payload)

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
                _append(connection, row, passed, kind="state", message=f"On the way to {state.value}.")
                row = self._locked(connection, request_id)
            return _append(connection, row, state, kind="state", message=message, payload=payload)

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
            return _append(connection, row, RequestState.FAILED, kind="state", message=error.message, payload=kept)

    def note(self, request_id: str, kind: str, message: str, *, payload: Payload = None) -> Event:
        """Write an event that leaves the request in its state; allowed after its end too.

        Raises:
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            return _append(connection, row, RequestState(row.state), kind=kind, message=message, payload=payload)

    def events(self, request_id: str, *, after: int = 0) -> list[Event]:
        """Return the events of a request with a sequence number above ``after``, in order.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.events.c
        query = select(schema.events).where(at.request_id == request_id, at.sequence > after).order_by(at.sequence)
        with self._read() as connection:
            rows = connection.execute(query).all()
            if not rows:
                self._require(connection, request_id)
        return [Event.model_validate(row._asdict()) for row in rows]

    def _require(self, connection: Connection, request_id: str) -> None:
        if not connection.scalar(select(schema.requests.c.id).where(schema.requests.c.id == request_id)):
            raise _no_request(connection, request_id)

    def _locked(self, connection: Connection, request_id: str) -> Row[Any]:
        """Return a request's row, which no other process changes until this transaction ends."""
        query = select(schema.requests).where(schema.requests.c.id == request_id).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise _no_request(connection, request_id)
        return row


def new_request_id(moment: datetime) -> str:
    """Return a short id that sorts by its moment (to the millisecond) and that nobody else has.

    >>> from datetime import UTC
    >>> new_request_id(datetime(2026, 11, 24, 15, 4, 5, 71_000, UTC))[:20]
    'r-20261124-150405-1z'
    """
    high, low = divmod(moment.microsecond // 1000, 36)
    chance = "".join(secrets.choice(_DIGITS) for _ in range(4))
    return f"r-{moment:%Y%m%d-%H%M%S}-{_DIGITS[high]}{_DIGITS[low]}{chance}"


def document_json(document: BaseModel) -> Any:
    """Return a document as it is stored: plain JSON in which NaN and infinity are strings."""
    return json.loads(document.model_dump_json(by_alias=True))


def payload_json(payload: Payload) -> dict[str, Any]:
    """Return an event's payload as it is stored."""
    plain: dict[str, Any] = json.loads(to_json(dict(payload or {}), inf_nan_mode="strings", by_alias=True))
    return plain


def _append(
    connection: Connection,
    row: Row[Any],
    state: RequestState,
    *,
    kind: str,
    message: str,
    payload: Payload = None,
) -> Event:
    """Write the next event of a locked request, and the state that it leads to."""
    event = Event(
        request_id=row.id,
        sequence=row.events + 1,
        time=now(),
        state=state,
        kind=kind,
        message=message,
        payload=payload_json(payload),
    )
    connection.execute(insert(schema.events).values(event.model_dump()))
    moved = {"state": state.value, "updated": event.time, "events": event.sequence}
    connection.execute(update(schema.requests).where(schema.requests.c.id == row.id).values(moved))
    return event


def _record(row: Row[Any]) -> RequestRecord:
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
    )


def _checked_id(request_id: str) -> str:
    if _ID.fullmatch(request_id):
        return request_id
    raise InvalidRequest(
        f"{request_id!r} cannot be the id of a request.",
        hint="Use at most 63 lower-case letters, digits, '.', '_' and '-', a letter or digit first.",
        details=[Detail("id", f"{request_id!r} does not match {_ID.pattern}")],
    )


def _refuse_illegal(row: Row[Any], state: RequestState) -> None:
    present = RequestState(row.state)
    if state in NEXT_STATES[present]:
        return
    allowed = listing(s.value for s in NEXT_STATES[present])
    message = f"Request {row.id} is {present.value}, so it cannot become {state.value}; allowed: {allowed}."
    hint = "States never go backwards; make a new request that retries this one."
    raise Conflict(message, hint=hint, details=[Detail("state", f"{present.value} -> {state.value}")])


def _refuse_retry_of_running(row: Row[Any]) -> None:
    if RequestState(row.state) not in BROKEN_OFF:
        raise Conflict(
            f"Request {row.id} is {row.state}; only a rejected, failed or cancelled one can be retried.",
            hint="Use `factory run ID` to go on with an interrupted request.",
            details=[Detail("retry_of", f"{row.id} is {row.state}")],
        )


def _no_request(connection: Connection, request_id: str) -> NotFound:
    ids = schema.requests.c
    known = connection.scalars(select(ids.id).order_by(desc(ids.created)).limit(1000)).all()
    near = get_close_matches(request_id, known, n=3)
    return NotFound(
        f"There is no request {request_id!r}." + (f" The nearest are: {listing(near)}." if near else ""),
        hint="`factory requests list` shows them all.",
        details=[Detail("id", f"{request_id!r} is not known")],
    )
