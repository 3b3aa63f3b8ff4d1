"""Attempts: a request is made in one or several, each of them one job of the cluster.

The row of an attempt is written before its job is submitted, under the job's
submission id.  So a controller that is killed in between finds the row, asks
the cluster for a job of that id, and submits it again where there is none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Row, delete, desc, func, insert, select, union, update

from factory.errors import Conflict, Detail, InvalidRequest, NotFound
from factory.ledger import moments, schema
from factory.ledger.bounds import cleaned
from factory.ledger.claims import NOBODY, is_alive
from factory.ledger.events import append_event
from factory.ledger.moments import now
from factory.ledger.records import UNDER_WAY, Priority
from factory.ledger.requests import Requests
from factory.ledger.usage import add_usage, held_for, seconds_by_month
from factory.spec import Document, RequestState

MOST_BACK_OFF_S = 600.0
"""Longest time after a fault until a request is tried again."""

Outcome = Literal["done", "user_fault", "system_fault", "preempted", "cancelled", "timed_out", "lost"]
AttemptState = Literal["admitted", "submitted", "running", "ended"]
Wish = Literal["cancel", "preempt"]

_ORDER: tuple[AttemptState, ...] = ("admitted", "submitted", "running", "ended")
_FAULTS = {"system_fault", "lost"}


class Attempt(Document):
    """One job for a request; what it holds counts for its team until it has ended.

    Attributes:
        number: From 1.
        submission_id: Of the cluster's job: request id and number.
        kind: ``controller`` for a job that the controller submits, ``adopted`` for one that asked to be admitted.
        memory_gb: None where it was not known.
        outcome: Once it has ended. ``lost``: nobody knows what became of the job.
    """

    request_id: str
    number: int
    submission_id: str
    team: str
    kind: Literal["controller", "adopted"]
    cpus: float
    gpus: float
    memory_gb: float | None
    state: AttemptState
    admitted_at: datetime
    submitted_at: datetime | None = None
    running_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    message: str = ""


class OpenAttempt(Attempt):
    """An attempt that has not ended, and of its request what a controller decides by.

    Attributes:
        time_s: Wall seconds of the request's own budget; None where the recipe's default holds.
        expected_s: Wall seconds that the request was expected to take.
        preemptions: How often the request made room before.
        wish: What the attempt is asked to do.
    """

    request_state: RequestState
    priority: Priority
    time_s: float | None
    expected_s: float | None
    preemptions: int
    wish: Wish | None = Field(None)


class Attempts(Requests):
    """The part of the ledger that knows the attempts of requests."""

    def admit(
        self,
        request_id: str,
        *,
        kind: Literal["controller", "adopted"] = "controller",
        cpus: float | None = None,
        gpus: float | None = None,
        memory_gb: float | None = None,
    ) -> Attempt:
        """Open an attempt, which holds its resources from now on; of several that want to, one can.

        Args:
            request_id: A request of which work is left.
            kind: Who submits the job.
            cpus: That it gets; what the request asks for where not given. ``gpus`` and ``memory_gb`` likewise.

        Raises:
            Conflict: the request is made, has ended or is to be cancelled, or has an open attempt or a live driver.
            NotFound: there is no such request.
        """
        at = schema.attempts.c
        with self._write() as connection:
            row = self._locked(connection, request_id)
            mine = select(at.number, at.ended_at).where(at.request_id == request_id).order_by(desc(at.number)).limit(1)
            last = connection.execute(mine).one_or_none()
            _refuse_admission(row, last)
            number = 1 if last is None else last.number + 1
            attempt = Attempt(
                request_id=request_id,
                number=number,
                submission_id=f"{request_id}-{number}",
                team=row.team,
                kind=kind,
                cpus=row.cpus if cpus is None else cpus,
                gpus=row.gpus if gpus is None else gpus,
                memory_gb=row.memory_gb if memory_gb is None else memory_gb,
                state="admitted",
                admitted_at=now(),
            )
            connection.execute(insert(schema.attempts).values(attempt.model_dump()))
            _change_request(connection, request_id, not_before=None, preempt_requested_at=None)
            connection.execute(delete(schema.holds).where(schema.holds.c.request_id == request_id))
            append_event(
                connection,
                row,
                RequestState(row.state),
                kind="attempt",
                message=f"Admitted as attempt {number} with {_told(attempt)}.",
                payload=attempt.model_dump(include={"number", "submission_id", "kind", "cpus", "gpus", "memory_gb"}),
            )
        return attempt

    def mark_submitted(self, submission_id: str) -> Attempt:
        """Note that the cluster has the job; does nothing where that is known, or the attempt has ended.

        Raises:
            NotFound: there is no such attempt.
        """
        return self._move(submission_id, "submitted")

    def mark_running(self, submission_id: str) -> Attempt:
        """Note that the job runs; does nothing where that is known, or the attempt has ended.

        Raises:
            NotFound: there is no such attempt.
        """
        return self._move(submission_id, "running")

    def end_attempt(
        self, submission_id: str, outcome: Outcome, message: str = "", *, retry_after_s: float = 0.0
    ) -> Attempt:
        """End an attempt: its resources are free, its job's tokens are void, what it used is counted.

        The request stays in its state. Of several ends the first is kept and returned.

        Args:
            submission_id: The attempt.
            outcome: How it ended.
            message: In a sentence.
            retry_after_s: Seconds for which the request is not tried again, 600 at most.

        Raises:
            InvalidRequest: ``retry_after_s`` is out of bounds.
            NotFound: there is no such attempt.
        """
        if not 0 <= retry_after_s <= MOST_BACK_OFF_S:
            raise InvalidRequest(
                f"retry_after_s: {retry_after_s:g} is not between 0 and {MOST_BACK_OFF_S:g} seconds.",
                hint="A longer wait helps no more.",
                details=[Detail("retry_after_s", f"{retry_after_s:g}")],
            )
        with self._write() as connection:
            row, attempt = self._attempt_locked(connection, submission_id)
            if attempt.state == "ended":
                return attempt
            moment = now()
            end = {"state": "ended", "outcome": outcome, "message": cleaned(message), "ended_at": moment}
            attempt = _change_attempt(connection, attempt, end)
            _change_request(
                connection,
                row.id,
                preempt_requested_at=None,
                preemptions=row.preemptions + (outcome == "preempted"),
                not_before=moment + timedelta(seconds=retry_after_s) if retry_after_s else None,
                **({} if is_alive(row) else NOBODY),
            )
            tokens = schema.tokens.c
            job_tokens = (tokens.request_id == row.id) & tokens.revoked_at.is_(None)
            connection.execute(update(schema.tokens).where(job_tokens).values(revoked_at=moment))
            told = f"Attempt {attempt.number} ended: {outcome.replace('_', ' ')}."
            append_event(
                connection,
                row,
                RequestState(row.state),
                kind="attempt",
                message=f"{told} {message}".strip(),
                payload={"number": attempt.number, "outcome": outcome, "retry_after_s": retry_after_s},
            )
            for month, seconds in seconds_by_month(attempt.admitted_at, moment):
                used = held_for(seconds, attempt.cpus, attempt.gpus, attempt.memory_gb)
                add_usage(connection, attempt.team, month, **used)
        return attempt

    def attempt(self, submission_id: str) -> Attempt:
        """Return an attempt by its job's submission id.

        Raises:
            NotFound: there is none.
        """
        with self._read() as connection:
            return _attempt(connection, submission_id)

    def attempts(self, request_id: str) -> list[Attempt]:
        """Return the attempts of a request, the first one first.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.attempts.c
        query = select(schema.attempts).where(at.request_id == request_id).order_by(at.number)
        with self._read() as connection:
            rows = connection.execute(query).all()
            if not rows:
                self._require(connection, request_id)
        return [Attempt.model_validate(row._asdict()) for row in rows]

    def faults_in_a_row(self, request_id: str) -> int:
        """Return how many of a request's last attempts ended by a fault that is not the user's.

        Preempted and cancelled attempts say nothing about it: they neither count nor end the row.

        Raises:
            NotFound: there is no such request.
        """
        count = 0
        for attempt in reversed(self.attempts(request_id)):
            if attempt.outcome in _FAULTS:
                count += 1
            elif attempt.outcome not in ("preempted", "cancelled", None):
                break
        return count

    def open_attempts(self) -> list[OpenAttempt]:
        """Return all attempts that have not ended, the longest admitted first."""
        at, of = schema.attempts.c, schema.requests.c
        wanted = (of.document, of.priority, of.expected_s, of.preemptions, of.cancel_requested_at)
        query = (
            select(schema.attempts, of.state.label("request_state"), of.preempt_requested_at, *wanted)
            .join_from(schema.attempts, schema.requests, at.request_id == of.id)
            .where(at.ended_at.is_(None))
            .order_by(at.admitted_at, at.request_id)
        )
        with self._read() as connection:
            return [_open_attempt(row._asdict()) for row in connection.execute(query)]

    def last_ends(self) -> dict[str, tuple[float | None, float | None]]:
        """Return for each team when its last attempt without GPUs ended, and its last one with GPUs.

        In seconds since the epoch; None where there was none. Whatever the outcome was.
        """
        at = schema.attempts.c
        teams = union(select(schema.teams.c.name.label("team")), select(schema.usage.c.team)).subquery()
        mine = select(func.max(at.ended_at, type_=moments.UtcDateTime())).where(at.team == teams.c.team)
        without, with_gpus = mine.where(at.gpus == 0), mine.where(at.gpus > 0)
        query = select(teams.c.team, without.scalar_subquery(), with_gpus.scalar_subquery())
        with self._read() as connection:
            rows = connection.execute(query).all()
        ends = {team: (_since_epoch(end), _since_epoch(gpu_end)) for team, end, gpu_end in rows}
        return {team: both for team, both in ends.items() if both != (None, None)}

    def _move(self, submission_id: str, state: AttemptState) -> Attempt:
        with self._write() as connection:
            _, attempt = self._attempt_locked(connection, submission_id)
            if _ORDER.index(attempt.state) >= _ORDER.index(state):
                return attempt
            moment = now()
            passed = {"submitted_at": attempt.submitted_at or moment}
            reached = {"running_at": moment} if state == "running" else {}
            return _change_attempt(connection, attempt, {"state": state} | passed | reached)

    def _attempt_locked(self, connection: Connection, submission_id: str) -> tuple[Row[Any], Attempt]:
        """Return the request's row and the attempt; nobody else changes either until this transaction ends."""
        row = self._locked(connection, _attempt(connection, submission_id).request_id)
        return row, _attempt(connection, submission_id)


def has_open_attempt(connection: Connection, request_id: str) -> bool:
    """Return whether an attempt of a request has not ended."""
    at = schema.attempts.c
    query = select(at.number).where(at.request_id == request_id, at.ended_at.is_(None))
    return connection.scalar(query) is not None


def wish_of(cancel_requested_at: datetime | None, preempt_requested_at: datetime | None) -> Wish | None:
    """Return what a request's attempt is asked to do; cancelling comes before making room."""
    if cancel_requested_at is not None:
        return "cancel"
    return None if preempt_requested_at is None else "preempt"


def _attempt(connection: Connection, submission_id: str) -> Attempt:
    query = select(schema.attempts).where(schema.attempts.c.submission_id == submission_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(
            f"There is no attempt {submission_id!r}.",
            hint="An attempt is called by its request's id and its number, like r-20261124-150405-1zaaaa-1.",
            details=[Detail("submission_id", f"{submission_id!r} is not known")],
        )
    return Attempt.model_validate(row._asdict())


def _open_attempt(row: dict[str, Any]) -> OpenAttempt:
    budget = row.pop("document").get("budget") or {}
    wish = wish_of(row.pop("cancel_requested_at"), row.pop("preempt_requested_at"))
    return OpenAttempt.model_validate(row | {"time_s": budget.get("time_s"), "wish": wish})


def _change_attempt(connection: Connection, attempt: Attempt, values: dict[str, Any]) -> Attempt:
    at = schema.attempts.c
    this = (at.request_id == attempt.request_id) & (at.number == attempt.number)
    connection.execute(update(schema.attempts).where(this).values(values))
    return attempt.model_copy(update=values)


def _change_request(connection: Connection, request_id: str, **values: object) -> None:
    connection.execute(update(schema.requests).where(schema.requests.c.id == request_id).values(values))


def _since_epoch(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _told(attempt: Attempt) -> str:
    parts = [f"{attempt.cpus:g} CPU{'' if attempt.cpus == 1 else 's'}"]
    if attempt.gpus:
        parts.append(f"{attempt.gpus:g} GPU{'' if attempt.gpus == 1 else 's'}")
    if attempt.memory_gb is not None:
        parts.append(f"{attempt.memory_gb:g} GB")
    return ", ".join(parts)


def _refuse_admission(row: Row[Any], last: Row[Any, Any] | None) -> None:
    if RequestState(row.state) not in UNDER_WAY:
        reason, detail = f"is {row.state}: there is nothing left to do", Detail("state", row.state)
    elif row.cancel_requested_at is not None:
        reason, detail = "is to be cancelled", Detail("cancel_requested_at", row.cancel_requested_at.isoformat())
    elif last is not None and last.ended_at is None:
        reason, detail = f"has the open attempt {last.number}", Detail("attempt", f"{last.number} is open")
    elif is_alive(row):
        driver = f"process {row.driver_pid} on {row.driver_host}"
        reason, detail = f"is worked on by {driver}", Detail("driver", driver)
    else:
        return
    raise Conflict(
        f"Request {row.id} {reason}; it cannot be admitted.",
        hint=f"`factory requests show {row.id}` shows where it stands.",
        details=[detail],
    )
