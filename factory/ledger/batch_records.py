"""What is known of a batch, and of each of its runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import Row

from factory.errors import Conflict, Detail
from factory.spec import BatchWish, Document

BatchState = Literal["waiting", "running", "done", "failed"]


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


class BatchQuery(Document):
    """Which batches."""

    team: str | None = None


class Batch(Document):
    """A batch, and the run that it had last.

    Attributes:
        name: ``team.name``.
        wish: As it was declared; None where what is stored is none any more, by which :attr:`problem` is known.
        problem: Why it cannot run, as after an upgrade; empty where it can. It can be deleted all the same.
        anywhere: Whether it may read files that its team may not name over the network.
        enabled: Whether its schedule counts.
        next_due: When it runs next by its schedule; None where it has none, or is paused.
        created: When it was declared.
        created_by: Who has declared it.
        last: The newest run.
    """

    name: str
    team: str
    wish: BatchWish | None
    problem: str = ""
    anywhere: bool
    enabled: bool
    next_due: datetime | None
    created: datetime
    created_by: str
    last: BatchRun | None = None

    @property
    def hours(self) -> float:
        """That a run may take."""
        return float(BatchWish.model_fields["hours"].default) if self.wish is None else self.wish.hours

    @property
    def keep_runs(self) -> int:
        """Ended runs that are kept."""
        return int(BatchWish.model_fields["keep_runs"].default) if self.wish is None else self.wish.keep_runs

    def required(self) -> BatchWish:
        """Return what was declared.

        Raises:
            Conflict: it cannot run.
        """
        if self.wish is None or self.problem:
            raise Conflict(
                f"{self.name} cannot run: {self.problem}",
                hint="Delete it, and declare it again.",
                details=[Detail("name", self.problem)],
            )
        return self.wish


def batch_of(row: Row[Any], last: BatchRun | None) -> Batch:
    """Return a batch, whatever its document is: one that is none any more keeps nobody else's from being seen."""
    fields = row._asdict()
    document, wish, problem = fields.pop("document"), None, ""
    try:
        wish = BatchWish.model_validate(document)
        if wish.schedule is not None:
            wish.schedule.require_zone()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg'].removeprefix('Value error, ')}."
    except ValueError as error:
        problem = f"schedule.{error}."
    return Batch(wish=wish, problem=problem, last=last, **fields)


def run_of(row: Row[Any]) -> BatchRun:
    """Return the run of a row."""
    return BatchRun.model_validate(row._asdict())
