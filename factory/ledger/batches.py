"""Batches that are predicted again and again: what is declared, when it is due, and what its runs came to."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from factory.errors import Conflict, Detail, NotFound, suggest
from factory.ledger import moments, schema
from factory.ledger.audit import Audit, append_audit
from factory.ledger.bounds import cleaned
from factory.ledger.database import repeatable
from factory.ledger.moments import now
from factory.ledger.records import document_json
from factory.spec import Actor, BatchWish, Document

BatchState = Literal["waiting", "running", "done", "failed"]
SCHEDULE = "schedule"
"""Who starts the runs that are due."""

_at = schema.batches.c
_run = schema.batch_runs.c


class BatchRun(Document):
    """One run of a batch.

    Attributes:
        id: Of it, and of its job.
        batch: ``team.name`` of the batch.
        number: From 1 on.
        due: When it was due, or asked for.
        started_by: ``schedule``, or who asked for it.
        state: ``waiting`` until its job has begun.
        folder: Of its predictions, below FACTORY_HOME.
        created: When it was started.
        submitted_at: When the cluster had its job.
        began: When its job began.
        ended_at: When it was done, or had failed.
        variant: ``name/version`` that has predicted.
        rows: That were predicted.
        manifest: File below FACTORY_HOME that lists the others, once it is done.
        message: What it came to.
    """

    id: str
    batch: str
    number: int
    due: datetime
    started_by: str
    state: BatchState
    folder: str
    created: datetime
    submitted_at: datetime | None = None
    began: datetime | None = None
    ended_at: datetime | None = None
    variant: str | None = None
    rows: int | None = None
    manifest: str | None = None
    message: str = ""


class Batch(Document):
    """A batch, and the run that it had last.

    Attributes:
        name: ``team.name``.
        wish: As it was declared.
        anywhere: Whether it may read files that its team may not name over the network.
        enabled: Whether its schedule counts.
        next_due: When it runs next by its schedule; None where it has none, or is paused.
        created: When it was declared.
        created_by: Who has declared it.
        last: The newest run.
    """

    name: str
    team: str
    wish: BatchWish
    anywhere: bool
    enabled: bool
    next_due: datetime | None
    created: datetime
    created_by: str
    last: BatchRun | None = None


class Batches(Audit):
    """The part of the ledger that knows batches."""

    def create_batch(self, wish: BatchWish, *, anywhere: bool, by: Actor) -> Batch:
        """Store a batch; its schedule counts from now on.

        Args:
            wish: The batch.
            anywhere: Whether it may read every file.
            by: Who declares it.

        Raises:
            Conflict: there is one of this name.
        """
        moment, name = now(), wish.full_name
        batch = Batch(
            name=name,
            team=wish.team,
            wish=wish,
            anywhere=anywhere,
            enabled=True,
            next_due=None if wish.schedule is None else wish.schedule.after(moment),
            created=moment,
            created_by=by.who,
        )
        row = batch.model_dump(exclude={"wish", "last"}) | {"document": document_json(wish)}
        with self._write() as connection:
            if connection.scalar(select(_at.name).where(_at.name == name)) is not None:
                raise Conflict(
                    f"There is a batch {name!r} already.",
                    hint="Delete that one first, or choose another name.",
                    details=[Detail("name", "is taken")],
                )
            connection.execute(insert(schema.batches), row)
            append_audit(connection, "batch.create", name, by=by, team=wish.team, detail={"variant": wish.variant})
        return batch

    @repeatable
    def batch(self, name: str, *, team: str | None = None) -> Batch:
        """Return a batch, where given only if it is of that team.

        Raises:
            NotFound: there is none; the nearest name is told.
        """
        with self._read() as connection:
            return _required(connection, name, team=team)

    @repeatable
    def batches(self, team: str | None = None) -> list[Batch]:
        """Return the batches of a team, or all of them, by name, each with its newest run."""
        query = select(schema.batches).order_by(_at.team, _at.name)
        newest = select(_run.batch, func.max(_run.number).label("number")).group_by(_run.batch).subquery()
        runs = select(schema.batch_runs).join(newest, (newest.c.batch == _run.batch) & (newest.c.number == _run.number))
        if team is not None:
            query = query.where(_at.team == team)
        with self._read() as connection:
            last = {row.batch: _run_of(row) for row in connection.execute(runs)}
            return [_batch_of(row, last.get(row.name)) for row in connection.execute(query)]

    def enable_batch(self, name: str, enabled: bool, *, by: Actor) -> Batch:
        """Let a schedule count, from now on, or pause it; a run that is under way goes on.

        Raises:
            NotFound: there is no such batch.
        """
        with self._write() as connection:
            batch = _required(connection, name, lock=True)
            if batch.enabled != enabled:
                schedule = batch.wish.schedule
                due = schedule.after(now()) if enabled and schedule is not None else None
                connection.execute(update(schema.batches).where(_at.name == name).values(enabled=enabled, next_due=due))
                action = "batch.resume" if enabled else "batch.pause"
                append_audit(connection, action, name, by=by, team=batch.team)
            return _required(connection, name)

    def delete_batch(self, name: str, *, by: Actor) -> None:
        """Forget a batch and its runs; what they have written stays where it is.

        Raises:
            NotFound: there is no such batch.
            Conflict: a run is under way.
        """
        with self._write() as connection:
            batch = _required(connection, name, lock=True)
            if batch.last is not None and batch.last.ended_at is None:
                raise Conflict(
                    f"Run {batch.last.number} of {name} is under way.",
                    hint="Pause the batch, and delete it when the run has ended.",
                    details=[Detail("name", "has a run that is under way")],
                )
            connection.execute(delete(schema.batch_runs).where(_run.batch == name))
            connection.execute(delete(schema.batches).where(_at.name == name))
            append_audit(connection, "batch.delete", name, by=by, team=batch.team)

    def start_batch_run(self, name: str, *, by: Actor | None = None) -> BatchRun:
        """Add a run, whose job the controller starts.

        Args:
            name: Of the batch.
            by: Who asks for it; None where it is due, which moves the batch on to the next time, however many were
                missed.

        Raises:
            NotFound: there is no such batch.
            Conflict: a run is under way, or it is not due.
        """
        moment = now()
        with self._write() as connection:
            batch = _required(connection, name, lock=True)
            if batch.last is not None and batch.last.ended_at is None:
                raise Conflict(
                    f"Run {batch.last.number} of {name} is under way; one runs at a time.",
                    hint="`factory batches show` tells how far it is.",
                    details=[Detail("name", "has a run that is under way")],
                )
            due = moment
            if by is None:
                if batch.next_due is None or batch.next_due > moment or batch.wish.schedule is None:
                    raise Conflict(f"{name} is not due.", hint="Another controller has started it meanwhile.")
                due = batch.next_due
                following = batch.wish.schedule.after(moment)
                connection.execute(update(schema.batches).where(_at.name == name).values(next_due=following))
            number, key = 1 if batch.last is None else batch.last.number + 1, secrets.token_hex(8)
            run = BatchRun(
                id=f"batch-{key}",
                batch=name,
                number=number,
                # Not by the number alone: a batch that is deleted and declared again counts from 1.
                folder=f"batches/{name}/{due:%Y%m%dT%H%M%SZ}-{number}-{key[:6]}",
                due=due,
                started_by=SCHEDULE if by is None else by.who,
                state="waiting",
                created=moment,
            )
            connection.execute(insert(schema.batch_runs), run.model_dump())
            if by is not None:
                append_audit(connection, "batch.run", name, by=by, team=batch.team, detail={"number": run.number})
        return run

    @repeatable
    def due_batches(self, moment: datetime) -> list[str]:
        """Return the names of batches that are due, without an open run; who has waited longest first.

        Those of an archived team are not.
        """
        busy = select(_run.batch).where(_run.ended_at.is_(None))
        archived = select(schema.teams.c.name).where(schema.teams.c.archived_at.is_not(None))
        query = select(_at.name).where(
            _at.enabled, _at.next_due <= moment, _at.name.not_in(busy), _at.team.not_in(archived)
        )
        with self._read() as connection:
            return list(connection.scalars(query.order_by(_at.next_due, _at.name)))

    @repeatable
    def open_batch_runs(self) -> list[BatchRun]:
        """Return the runs that have not ended, the oldest first."""
        query = select(schema.batch_runs).where(_run.ended_at.is_(None)).order_by(_run.created, _run.id)
        with self._read() as connection:
            return [_run_of(row) for row in connection.execute(query)]

    @repeatable
    def batch_run(self, run_id: str) -> BatchRun:
        """Return a run.

        Raises:
            NotFound: there is none.
        """
        with self._read() as connection:
            row = connection.execute(select(schema.batch_runs).where(_run.id == run_id)).one_or_none()
        if row is None:
            raise NotFound(f"There is no run {run_id[:80]!r}.", hint="`factory batches show` lists those of a batch.")
        return _run_of(row)

    @repeatable
    def numbered_batch_run(self, name: str, number: int) -> BatchRun:
        """Return a run of a batch by its number.

        Raises:
            NotFound: there is none.
        """
        query = select(schema.batch_runs).where(_run.batch == name, _run.number == number)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(
                f"There is no run {number} of {name[:130]}.",
                hint="`factory batches show` lists those that are kept.",
                details=[Detail("number", f"{number} is not known")],
            )
        return _run_of(row)

    @repeatable
    def batch_runs(self, name: str, *, most: int = 50) -> list[BatchRun]:
        """Return the newest runs of a batch, the newest first."""
        query = select(schema.batch_runs).where(_run.batch == name).order_by(_run.number.desc()).limit(most)
        with self._read() as connection:
            return [_run_of(row) for row in connection.execute(query)]

    @repeatable
    def mark_batch_run(self, run_id: str, *, variant: str | None = None) -> None:
        """Note that the cluster has a run's job, or, with the variant that predicts, that the job has begun."""
        moment = literal(now(), moments.UtcDateTime())
        values: dict[str, Any] = {"submitted_at": func.coalesce(_run.submitted_at, moment)}
        if variant is not None:
            values |= {"variant": variant, "state": "running", "began": func.coalesce(_run.began, moment)}
        with self._write() as connection:
            this = (_run.id == run_id) & _run.ended_at.is_(None)
            connection.execute(update(schema.batch_runs).where(this).values(values))

    @repeatable
    def end_batch_run(
        self,
        run_id: str,
        state: Literal["done", "failed"],
        message: str,
        *,
        rows: int | None = None,
        manifest: str | None = None,
    ) -> None:
        """End a run; of two ends the first is kept."""
        values = {"state": state, "message": cleaned(message), "rows": rows, "manifest": manifest, "ended_at": now()}
        with self._write() as connection:
            this = (_run.id == run_id) & _run.ended_at.is_(None)
            connection.execute(update(schema.batch_runs).where(this).values(values))

    def old_batch_runs(self, batch: Batch) -> list[BatchRun]:
        """Return ended runs beyond those that a batch keeps."""
        ended = select(schema.batch_runs).where(_run.batch == batch.name, _run.ended_at.is_not(None))
        query = ended.order_by(_run.number.desc()).offset(batch.wish.keep_runs).limit(100)
        with self._read() as connection:
            return [_run_of(row) for row in connection.execute(query)]

    def forget_batch_run(self, run_id: str) -> None:
        """Forget a run that has ended."""
        with self._write() as connection:
            connection.execute(delete(schema.batch_runs).where(_run.id == run_id, _run.ended_at.is_not(None)))


def _required(connection: Connection, name: str, *, team: str | None = None, lock: bool = False) -> Batch:
    query = select(schema.batches).where(_at.name == name)
    if team is not None:
        query = query.where(_at.team == team)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        names = select(_at.name) if team is None else select(_at.name).where(_at.team == team)
        raise NotFound(
            f"There is no batch {name[:130]!r}.{suggest(name[:130], list(connection.scalars(names)))}",
            hint="`factory batches list` shows them all.",
            details=[Detail("name", f"{name[:130]!r} is not known")],
        )
    newest = select(schema.batch_runs).where(_run.batch == name).order_by(_run.number.desc()).limit(1)
    last = connection.execute(newest).one_or_none()
    return _batch_of(row, None if last is None else _run_of(last))


def _batch_of(row: Row[Any], last: BatchRun | None) -> Batch:
    fields = row._asdict()
    return Batch(wish=BatchWish.model_validate(fields.pop("document")), last=last, **fields)


def _run_of(row: Row[Any]) -> BatchRun:
    return BatchRun.model_validate(row._asdict())
