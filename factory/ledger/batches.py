"""Batches that are predicted again and again: what is declared, when it is due, and what its runs came to."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, delete, func, insert, literal, select, tuple_, update

from factory.errors import Conflict, Detail, NotFound, suggest
from factory.ledger import moments, schema
from factory.ledger.audit import Audit, append_audit
from factory.ledger.batch_records import Batch, BatchQuery, BatchRun, batch_of, run_of
from factory.ledger.bounds import cleaned
from factory.ledger.database import repeatable
from factory.ledger.engines import exclusive
from factory.ledger.moments import now
from factory.ledger.pages import MOST, Order, Page
from factory.ledger.records import document_json
from factory.spec import Actor, BatchWish

MOST_BATCHES = 200
"""Of a team."""
SCHEDULE = "schedule"
"""Who starts the runs that are due."""

BatchSort = Literal["name", "-name"]
_at = schema.batches.c
_SORTS = {"name": (_at.name,)}
_run = schema.batch_runs.c


class Batches(Audit):
    """The part of the ledger that knows batches."""

    def create_batch(self, wish: BatchWish, *, anywhere: bool, by: Actor) -> Batch:
        """Store a batch; its schedule counts from now on.

        Args:
            wish: The batch.
            anywhere: Whether it may read every file.
            by: Who declares it.

        Raises:
            Conflict: there is one of this name, the team has too many, or is archived.
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
        row = batch.model_dump(exclude={"wish", "problem", "last"}) | {"document": document_json(wish)}
        with self._write() as connection:
            exclusive(connection, f"batches of {wish.team}")
            _require_active(connection, wish.team)
            if connection.scalar(select(_at.name).where(_at.name == name)) is not None:
                raise Conflict(
                    f"There is a batch {name!r} already.",
                    hint="Delete that one first, or choose another name.",
                    details=[Detail("name", "is taken")],
                )
            n_known = connection.scalar(select(func.count()).select_from(schema.batches).where(_at.team == wish.team))
            if (n_known or 0) >= MOST_BATCHES:
                raise Conflict(
                    f"Team {wish.team} has {n_known} batches; no more are taken.",
                    hint="Delete some, or let one batch read a folder or a pattern of files.",
                    details=[Detail("team", f"has {n_known} batches; {MOST_BATCHES} are allowed")],
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
    def batch_page(
        self,
        where: BatchQuery = BatchQuery(),  # noqa: B008 - frozen
        *,
        sort: BatchSort = "name",
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Batch]:
        """Return a page of batches, each with its newest run; as :meth:`~factory.ledger.pages.Pages.request_page`."""
        query = select(schema.batches)
        if where.team is not None:
            query = query.where(_at.team == where.team)
        order = Order.of(sort, _SORTS, where, limit=limit)
        with self._read() as connection:
            found = order.page(connection, [query], cursor, lambda row: row)
            names = [row.name for row in found.items]
            newest = select(_run.batch, func.max(_run.number)).where(_run.batch.in_(names)).group_by(_run.batch)
            runs = select(schema.batch_runs).where(tuple_(_run.batch, _run.number).in_(newest))
            last = {row.batch: run_of(row) for row in connection.execute(runs)}
        return Page(tuple(batch_of(row, last.get(row.name)) for row in found.items), found.next)

    def batches(self, team: str | None = None) -> list[Batch]:
        """Return the batches of a team, or all of them, by name, each with its newest run."""
        found, cursor = list[Batch](), None
        while True:
            page = self.batch_page(BatchQuery(team=team), cursor=cursor, limit=MOST)
            found += page.items
            if (cursor := page.next) is None:
                return found

    @repeatable
    def batch_names(self) -> list[str]:
        """Return the names of all batches."""
        with self._read() as connection:
            return list(connection.scalars(select(_at.name).order_by(_at.name)))

    def enable_batch(self, name: str, enabled: bool, *, by: Actor) -> Batch:
        """Let a schedule count, from now on, or pause it; a run that is under way goes on.

        Raises:
            NotFound: there is no such batch.
            Conflict: it is to count, and the batch cannot run.
        """
        with self._write() as connection:
            batch = _required(connection, name, lock=True)
            if batch.enabled != enabled:
                schedule = batch.required().schedule if enabled else None
                due = schedule.after(now()) if schedule is not None else None
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
            Conflict: a run is under way, it is not due, it cannot run, or its team is archived.
        """
        moment = now()
        with self._write() as connection:
            batch = _required(connection, name, lock=True)
            wish = batch.required()
            _require_active(connection, batch.team)
            if batch.last is not None and batch.last.ended_at is None:
                raise Conflict(
                    f"Run {batch.last.number} of {name} is under way; one runs at a time.",
                    hint="`factory batches show` tells how far it is.",
                    details=[Detail("name", "has a run that is under way")],
                )
            due = moment
            if by is None:
                if batch.next_due is None or batch.next_due > moment or wish.schedule is None:
                    raise Conflict(f"{name} is not due.", hint="Another controller has started it meanwhile.")
                due = batch.next_due
                following = wish.schedule.after(moment)
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
    def due_batches(self, moment: datetime) -> list[tuple[str, str]]:
        """Return teams and names of batches that are due, without an open run; who has waited longest first.

        Those of an archived team are not.
        """
        busy = select(_run.batch).where(_run.ended_at.is_(None))
        archived = select(schema.teams.c.name).where(schema.teams.c.archived_at.is_not(None))
        query = select(_at.team, _at.name).where(
            _at.enabled, _at.next_due <= moment, _at.name.not_in(busy), _at.team.not_in(archived)
        )
        with self._read() as connection:
            return [(row.team, row.name) for row in connection.execute(query.order_by(_at.next_due, _at.name))]

    @repeatable
    def open_batch_runs(self) -> list[BatchRun]:
        """Return the runs that have not ended, the oldest first."""
        query = select(schema.batch_runs).where(_run.ended_at.is_(None)).order_by(_run.created, _run.id)
        with self._read() as connection:
            return [run_of(row) for row in connection.execute(query)]

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
        return run_of(row)

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
        return run_of(row)

    @repeatable
    def batch_runs(self, name: str, *, most: int = 50) -> list[BatchRun]:
        """Return the newest runs of a batch, the newest first."""
        query = select(schema.batch_runs).where(_run.batch == name).order_by(_run.number.desc()).limit(most)
        with self._read() as connection:
            return [run_of(row) for row in connection.execute(query)]

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
        """Return ended runs beyond those that a batch keeps: the newest ones, and always the newest that is done."""
        of_it = (_run.batch == batch.name, _run.ended_at.is_not(None))
        kept = select(_run.id).where(*of_it).order_by(_run.number.desc()).limit(batch.keep_runs)
        done = select(_run.id).where(*of_it, _run.state == "done").order_by(_run.number.desc()).limit(1)
        query = (
            select(schema.batch_runs)
            .where(*of_it, _run.id.not_in(kept.subquery().select()), _run.id.not_in(done.subquery().select()))
            .order_by(_run.number.desc())
            .limit(100)
        )
        with self._read() as connection:
            return [run_of(row) for row in connection.execute(query)]

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
    return batch_of(row, None if last is None else run_of(last))


def _require_active(connection: Connection, team: str) -> None:
    archived = connection.scalar(select(schema.teams.c.archived_at).where(schema.teams.c.name == team))
    if archived is not None:
        raise Conflict(f"Team {team} is archived.", hint="An archived team orders nothing.")
