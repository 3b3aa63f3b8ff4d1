"""Requests as they come in: stored once, with their first events, under an id that sorts by time.

A client that did not get the answer sends the same request again.  Under the
same idempotency key it gets the request that was made the first time.

Source: Fielding and others, The Idempotency-Key HTTP header field, an
Internet draft of the HTTPAPI working group.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from factory.errors import Conflict, Detail, InvalidRequest
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.engines import insert_new
from factory.ledger.events import next_event
from factory.ledger.moments import now
from factory.ledger.records import (
    ADOPTED,
    BROKEN_OFF,
    Door,
    Event,
    Idempotency,
    RequestRecord,
    document_json,
    payload_json,
)
from factory.ledger.requests import HELD, Requests, request_record
from factory.spec import Actor, RequestState, VariantRequest

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Intake(Requests):
    """The part of the ledger that takes requests in."""

    def create_request(
        self,
        request: VariantRequest,
        *,
        request_id: str | None = None,
        retry_of: str | None = None,
        by: Actor | None = None,
        door: Door | None = None,
        idempotency: Idempotency | None = None,
        quote: Mapping[str, object] | None = None,
        expected_s: float | None = None,
        cpus: float = 1.0,
        memory_gb: float | None = None,
        queued: str | None = None,
        trace: str | None = None,
        job: str | None = None,
    ) -> RequestRecord:
        """Store a request as RECEIVED, with its first event; all of it or, after a crash, nothing.

        Args:
            request: What is asked for.
            request_id: Id to use instead of a new one; lower-case letters, digits, ``.``, ``_`` and ``-``.
            retry_of: Id of the request that this one tries again; states never go backwards.
            by: Who asks; the audit log gets a row.
            door: By which it comes.
            idempotency: Where its key was used before, nothing is stored and the request of then is returned.
            quote: What the requester was told that it would take.
            expected_s: Wall seconds that it is expected to take, for the order of the queue.
            cpus: That it asks for; GPUs follow from its workers.
            memory_gb: That it asks for; its budget's where not given.
            queued: Message with which it goes on to QUEUED at once.
            trace: Id of the trace that it came in, for the logs of its jobs; its first event keeps it.
            job: Ray job that waits to make it. Told in the same transaction: a controller that saw the request before
                would submit a job of its own.

        Raises:
            InvalidRequest: the id cannot be used.
            Conflict: there is a request of that id, the one that is tried again has not ended, or the idempotency key
                was used for something else.
            NotFound: there is no request ``retry_of``.
        """
        moment = now()
        request_id = _checked_id(request_id) if request_id is not None else new_request_id(moment)
        events = _first_events(request_id, request, retry_of, queued, trace, job)
        row = {
            "id": request_id,
            "document": document_json(request),
            "team": request.team,
            "variant": request.variant,
            "recipe": request.recipe.partition("@")[0],
            "state": events[-1].state.value,
            "created": moment,
            "updated": events[-1].time,
            "retry_of": retry_of,
            "attempt": 0,
            "events": len(events),
            "chain": events[-1].hash,
            "unchained": 0,
            "priority": request.priority,
            "door": door,
            "submitted_by": None if by is None else by.who,
            "quote": None if quote is None else payload_json(quote),
            "expected_s": expected_s,
            "cpus": cpus,
            "gpus": request.resources.workers * request.resources.gpus_per_worker,
            "memory_gb": request.budget.memory_gb if memory_gb is None and request.budget else memory_gb,
            "preemptions": 0,
        }
        made = None
        with self._write() as connection:
            if idempotency is not None:
                made = _reserve(connection, idempotency, row)
            if made is None:
                if retry_of is not None:
                    _refuse_retry_of_running(self._locked(connection, retry_of))
                if not insert_new(connection, schema.requests, row):
                    raise _taken(request_id)
                connection.execute(insert(schema.events), [event.model_dump() for event in events])
                if by is not None:
                    detail = {"variant": request.variant, "door": door, "retry_of": retry_of}
                    append_audit(connection, "request.submit", request_id, by=by, team=request.team, detail=detail)
        return _as_stored(row) if made is None else self.request(made)

    def replayed(self, idempotency: Idempotency) -> str | None:
        """Return the id of the request that was made under a key, or None where it was not used.

        Raises:
            Conflict: it was used for something else.
        """
        with self._read() as connection:
            return _made_under(connection, idempotency)

    def forget_keys(self, before: datetime) -> int:
        """Forget the idempotency keys of requests from before a moment; return how many."""
        with self._write() as connection:
            return connection.execute(delete(schema.idempotency).where(schema.idempotency.c.created < before)).rowcount


def new_request_id(moment: datetime) -> str:
    """Return a short id that sorts by its moment (to the millisecond) and that nobody else has.

    >>> from datetime import UTC
    >>> new_request_id(datetime(2026, 11, 24, 15, 4, 5, 71_000, UTC))[:20]
    'r-20261124-150405-1z'
    """
    high, low = divmod(moment.microsecond // 1000, 36)
    chance = "".join(secrets.choice(_DIGITS) for _ in range(6))
    return f"r-{moment:%Y%m%d-%H%M%S}-{_DIGITS[high]}{_DIGITS[low]}{chance}"


def _first_events(
    request_id: str,
    request: VariantRequest,
    retry_of: str | None,
    queued: str | None,
    trace: str | None,
    job: str | None,
) -> list[Event]:
    message = f"Request for {request.variant} received" + (f", a retry of {retry_of}." if retry_of else ".")
    payload = {name: value for name, value in (("retry_of", retry_of), ("trace", trace)) if value} or None
    told = [(RequestState.RECEIVED, "state", message, payload)]
    if queued is not None:
        told.append((RequestState.QUEUED, "state", queued, None))
    if job is not None:
        told.append((told[-1][0], ADOPTED, f"Job {job} waits to be admitted.", {"job": job}))
    events: list[Event] = []
    after: tuple[int, str | None] = (0, None)
    for state, kind, sentence, detail in told:
        events.append(next_event(request_id, state, after=after, kind=kind, message=sentence, payload=detail))
        after = (events[-1].sequence, events[-1].hash)
    return events


def _reserve(connection: Connection, idempotency: Idempotency, request: dict[str, Any]) -> str | None:
    """Keep a key for a request; return the one that it is kept for already. Of two that come together, one waits."""
    key = asdict(idempotency) | {"request_id": request["id"], "created": request["created"]}
    return None if insert_new(connection, schema.idempotency, key) else _made_under(connection, idempotency)


def _made_under(connection: Connection, idempotency: Idempotency) -> str | None:
    at = schema.idempotency.c
    query = select(schema.idempotency).where(at.scope == idempotency.scope, at.key == idempotency.key)
    row = connection.execute(query).one_or_none()
    if row is not None and row.digest != idempotency.digest:
        raise Conflict(
            f"The idempotency key {idempotency.key!r} was used for another request, {row.request_id}.",
            hint="Use a new key for each request; the same key repeats the same request.",
            details=[Detail("Idempotency-Key", "was used with another body")],
        )
    return None if row is None else row.request_id


def _checked_id(request_id: str) -> str:
    if _ID.fullmatch(request_id):
        return request_id
    raise InvalidRequest(
        f"{request_id!r} cannot be the id of a request.",
        hint="Use at most 63 lower-case letters, digits, '.', '_' and '-', a letter or digit first.",
        details=[Detail("id", f"{request_id!r} does not match {_ID.pattern}")],
    )


def _as_stored(row: Mapping[str, Any]) -> RequestRecord:
    """Return a request as it would be read again; what its row does not name is empty."""
    empty = dict.fromkeys(column.key for column in (*schema.requests.c, *HELD))
    return request_record(SimpleNamespace(**(empty | dict(row))))


def _taken(request_id: str) -> Conflict:
    return Conflict(
        f"There is a request {request_id!r} already.",
        hint="Leave the id out, or use `factory run ID` to go on with that request.",
        details=[Detail("id", f"{request_id!r} is taken")],
    )


def _refuse_retry_of_running(row: Row[Any]) -> None:
    if RequestState(row.state) not in BROKEN_OFF:
        raise Conflict(
            f"Request {row.id} is {row.state}; only a rejected, failed or cancelled one can be retried.",
            hint="Use `factory run ID` to go on with an interrupted request.",
            details=[Detail("retry_of", f"{row.id} is {row.state}")],
        )
