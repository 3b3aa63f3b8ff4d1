"""What is wished of requests: that they end, make room for another one, or come sooner or later to their turn.

A wish is a mark on the request.  Whoever works on it looks now and then, and
stops where nothing is lost; a request that nobody works on ends at once.
"""

from __future__ import annotations

from sqlalchemy import select, update

from factory.errors import Conflict, Detail
from factory.ledger import schema
from factory.ledger.attempts import Attempts, Wish, has_open_attempt, wish_of
from factory.ledger.audit import append_audit
from factory.ledger.claims import is_alive
from factory.ledger.database import repeatable
from factory.ledger.events import append_event, no_request
from factory.ledger.moments import now
from factory.ledger.records import UNDER_WAY, Priority, RequestRecord
from factory.spec import Actor, RequestState


class Wishes(Attempts):
    """The part of the ledger that knows what requests are asked to do."""

    def request_cancel(self, request_id: str, *, by: Actor, message: str = "") -> RequestRecord:
        """Ask a request to end: at once where nobody works on it, else when its driver has stopped.

        Asking again changes nothing.

        Args:
            request_id: The request.
            by: Who asks; the audit log gets a row.
            message: Why, in a sentence.

        Raises:
            Conflict: its variants are made, or it has ended otherwise.
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            state = RequestState(row.state)
            if state not in UNDER_WAY and state is not RequestState.CANCELLED:
                raise Conflict(
                    f"Request {request_id} is {state}: it cannot be cancelled any more.",
                    hint=f"`factory requests show {request_id}` shows what it came to.",
                    details=[Detail("state", state.value)],
                )
            if state in UNDER_WAY and row.cancel_requested_at is None:
                wish = {"cancel_requested_at": now(), "cancelled_by": by.who}
                connection.execute(update(schema.requests).where(schema.requests.c.id == request_id).values(wish))
                idle = not has_open_attempt(connection, request_id) and not is_alive(row)
                append_event(
                    connection,
                    row,
                    RequestState.CANCELLED if idle else state,
                    kind="state" if idle else "cancel",
                    message=f"{'Cancelled' if idle else 'To be cancelled'} by {by.who}. {message}".strip(),
                )
                append_audit(connection, "request.cancel", request_id, by=by, team=row.team)
        return self.request(request_id)

    def set_priority(self, request_id: str, priority: Priority, *, by: Actor, message: str = "") -> RequestRecord:
        """Put a waiting request before, or behind, others that wait; one that has this priority stays as it is.

        Args:
            request_id: The request.
            priority: The new one.
            by: Who decides; the audit log gets a row.
            message: Why, in a sentence.

        Raises:
            Conflict: it does not wait any more.
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            state = RequestState(row.state)
            if state not in (RequestState.RECEIVED, RequestState.QUEUED):
                raise Conflict(
                    f"Request {request_id} is {state}: only one that waits has a place that could be changed.",
                    hint=f"`factory requests show {request_id}` shows where it stands.",
                    details=[Detail("state", state.value)],
                )
            if row.priority != priority:
                changed = {"priority": priority}
                connection.execute(update(schema.requests).where(schema.requests.c.id == request_id).values(changed))
                told = f"Its priority is {priority} instead of {row.priority}, set by {by.who}. {message}".strip()
                append_event(connection, row, state, kind="priority", message=told)
                append_audit(connection, "request.priority", request_id, by=by, team=row.team)
        return self.request(request_id)

    def request_preemption(self, request_id: str, *, for_id: str) -> bool:
        """Ask a request to make room for another one; return whether there is an open attempt that can.

        Raises:
            NotFound: there is no such request.
        """
        with self._write() as connection:
            row = self._locked(connection, request_id)
            if not has_open_attempt(connection, request_id):
                return False
            if row.preempt_requested_at is None:
                wish = {"preempt_requested_at": now()}
                connection.execute(update(schema.requests).where(schema.requests.c.id == request_id).values(wish))
                append_event(
                    connection,
                    row,
                    RequestState(row.state),
                    kind="preempt",
                    message=f"Asked to make room for {for_id}.",
                    payload={"for": for_id},
                )
        return True

    @repeatable
    def wish(self, request_id: str) -> Wish | None:
        """Return what a request is asked to do, if anything.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.requests.c
        query = select(at.cancel_requested_at, at.preempt_requested_at).where(at.id == request_id)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise no_request(connection, request_id)
        return wish_of(row.cancel_requested_at, row.preempt_requested_at)

    def cancels_due(self) -> list[str]:
        """Return the requests that are to be cancelled and that nobody works on any more."""
        at, of = schema.requests.c, schema.attempts.c
        still_open = select(of.number).where(of.request_id == at.id, of.ended_at.is_(None)).exists()
        query = (
            select(schema.requests)
            .where(at.cancel_requested_at.is_not(None), at.state.in_([s.value for s in UNDER_WAY]), ~still_open)
            .order_by(at.cancel_requested_at, at.id)
        )
        with self._read() as connection:
            return [row.id for row in connection.execute(query) if not is_alive(row)]


def cancelled(record: RequestRecord) -> Conflict:
    """Return the error of a request that ended because somebody cancelled it."""
    by = f" by {record.cancelled_by}" if record.cancelled_by else ""
    return Conflict(
        f"Request {record.id} was cancelled{by}.", hint=f"`factory requests retry {record.id}` orders it again."
    )
