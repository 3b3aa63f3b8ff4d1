"""Batches: declared, listed with their runs, paused, run at once, and deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from factory.ledger import Batch, BatchQuery, BatchRun
from factory.operate.batches import declare, log_of
from factory.spec import NAME, BatchWish, Document
from serve.portal.bodies import Incoming, about
from serve.portal.context import Here
from serve.portal.documents import Batches, BatchRuns
from serve.portal.identity import Caller, Reader, Submitter
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import page, reply
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/batches", tags=["batches"], responses=refusals(*ALWAYS))

Name = Annotated[str, Path(max_length=130, description="team.name of the batch.")]
Number = Annotated[int, Path(ge=1, lt=2**31, description="Of the run.")]
_LOG: dict[str, Any] = {
    "description": "What its job printed.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}
_EXAMPLE = {
    "team": "growth",
    "name": "nightly",
    "variant": "growth.churn",
    "path": "/data/customers/*.parquet",
    "keep": ["customer_id"],
    "schedule": {"cron": "30 4 * * *", "time_zone": "Europe/Berlin"},
}


class BatchFilters(Document):
    """Which batches."""

    team: str | None = Field(None, pattern=NAME, description="Of one team; the token's own where empty.")
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200)


class RunFilters(Document):
    """How many runs."""

    limit: int = Field(50, ge=1, le=200, description="The newest.")


@router.get("", response_model=Batches, responses=refusals(404))
def list_batches(portal: Here, caller: Reader, request: Request, filters: Annotated[BatchFilters, Query()]) -> Response:
    """List the batches of a team by name, each with its last run."""
    where = BatchQuery(team=caller.own_team(filters.team))
    found = portal.ledger.batch_page(where, cursor=filters.cursor, limit=filters.limit)
    return page(Batches(items=found.items, next=found.next), request, found.next)


@router.post(
    "",
    status_code=201,
    response_model=Batch,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(BatchWish, _EXAMPLE),
)
def create_batch(portal: Here, caller: Submitter, body: Incoming) -> Response:
    """Declare rows that a variant predicts by a schedule, or when asked to; the controller starts its runs."""
    wish = body.read(BatchWish, what="batch")
    with about(wish):
        batch = declare(wish, ledger=portal.ledger, settings=portal.settings, by=caller.actor, asker=caller.principal)
    return reply(batch, 201)


@router.get("/{name}", response_model=Batch, responses=refusals(404))
def show_batch(portal: Here, caller: Reader, name: Name) -> Response:
    """Show a batch with its last run."""
    return reply(portal.ledger.batch(name, team=caller.team))


@router.delete("/{name}", status_code=204, responses=refusals(404, 409))
def delete_batch(portal: Here, caller: Submitter, name: Name) -> Response:
    """Forget a batch and its runs; what they have written stays where it is."""
    portal.ledger.delete_batch(_own(portal, caller, name), by=caller.actor)
    return Response(status_code=204)


@router.post("/{name}/pause", response_model=Batch, responses=refusals(404))
def pause_batch(portal: Here, caller: Submitter, name: Name) -> Response:
    """Let the schedule rest; a run that is under way goes on."""
    return reply(portal.ledger.enable_batch(_own(portal, caller, name), False, by=caller.actor))


@router.post("/{name}/resume", response_model=Batch, responses=refusals(404))
def resume_batch(portal: Here, caller: Submitter, name: Name) -> Response:
    """Let the schedule count again, from now on."""
    return reply(portal.ledger.enable_batch(_own(portal, caller, name), True, by=caller.actor))


@router.get("/{name}/runs", response_model=BatchRuns, responses=refusals(404))
def list_batch_runs(portal: Here, caller: Reader, name: Name, filters: Annotated[RunFilters, Query()]) -> Response:
    """List the runs of a batch that are kept, the newest first."""
    own = _own(portal, caller, name)
    return reply(BatchRuns(items=tuple(portal.ledger.batch_runs(own, most=filters.limit))))


@router.post("/{name}/runs", status_code=202, response_model=BatchRun, responses=refusals(404, 409))
def run_batch(portal: Here, caller: Submitter, name: Name) -> Response:
    """Start a run now; one runs at a time."""
    return reply(portal.ledger.start_batch_run(_own(portal, caller, name), by=caller.actor), 202)


@router.get("/{name}/runs/{number}/log", responses=refusals(404, also={200: _LOG}))
def show_batch_log(portal: Here, caller: Reader, name: Name, number: Number) -> Response:
    """Show what the job of a run has printed so far."""
    run = portal.ledger.numbered_batch_run(_own(portal, caller, name), number)
    return PlainTextResponse(log_of(run, jobs=portal.jobs, settings=portal.settings))


def _own(portal: Here, caller: Caller, name: str) -> str:
    """Return the name of a batch that is the caller's team's.

    Raises:
        NotFound: there is none.
    """
    return portal.ledger.batch(name, team=caller.team).name
