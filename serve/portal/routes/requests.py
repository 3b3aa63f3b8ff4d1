"""Requests: submit, list, show, cancel and retry them; their trials and attempts."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from factory.errors import InvalidRequest
from factory.ledger import Door, Idempotency, RequestQuery, RequestRecord
from factory.ledger.records import document_json
from factory.operate.intake import Intake, Taken
from factory.spec import Document, RequestState, VariantRequest
from serve.portal.bodies import Incoming, pointing, strict_problems
from serve.portal.context import Here, Portal
from serve.portal.documents import Attempts, Cancellation, Moment, PriorityChange, Requests, Trials
from serve.portal.identity import Admin, Caller, JobReader, Reader, Submitter
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.progress import Progress, progress, told
from serve.portal.replies import IdempotencyKey, page, reply
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/requests", tags=["requests"], responses=refusals(*ALWAYS))

Id = Annotated[str, Path(max_length=64, description="Id of a request, or the beginning of it.")]

EXAMPLE: dict[str, object] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-auto",
    "dataset": {"upload": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "target": "churned"},
    "budget": {"time_s": 60},
}
_TAKEN = {
    "description": "It waits in the queue, with its quote.",
    "headers": {
        "Location": {"description": "Where it is.", "schema": {"type": "string"}, "required": True},
        "Idempotency-Replayed": {
            "description": "It was made before, under the same idempotency key.",
            "schema": {"type": "string", "enum": ["true"]},
        },
    },
}


class RequestFilters(Document):
    """Which requests, and in which order."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")
    shared: bool = Field(True, description="Also those that others have shared with the team.")
    state: list[RequestState] = Field([], description="In one of these states; may be given several times.")
    variant: str | None = Field(None, max_length=200, description="For a variant, as team.name.")
    like: str | None = Field(None, max_length=100, description="For variants with this in their name.")
    recipe: str | None = Field(None, max_length=63, description="Of a recipe, without its digest.")
    door: Door | None = Field(None, description="That came by this door.")
    submitted_by: str | None = Field(None, max_length=255)
    created_from: Moment | None = None
    created_before: Moment | None = None
    sort: Literal["created", "-created", "updated", "-updated"] = Field("-created", description="- is the newest first")
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200)


class TrialFilters(Document):
    """Which trials, and in which order."""

    segment: str | None = Field(None, max_length=255, description="Of one segment; the pooled variant's is empty.")
    sort: Literal["number", "-number"] = Field("number", description="- is the last one first")
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(200, ge=1, le=200)


@router.post(
    "",
    status_code=202,
    response_model=RequestRecord,
    responses=refusals(404, 409, *BODY, also={202: _TAKEN}),
    openapi_extra=takes(VariantRequest, EXAMPLE),
)
def submit_request(portal: Here, caller: Submitter, body: Incoming, idempotency_key: IdempotencyKey = None) -> Response:
    """Check and quote a request, and put it into the queue.

    All problems of its document are told at once, those of its data too; then nothing is stored.
    """
    document = body.document()
    key = _key(caller, idempotency_key, "submit", document)
    with pointing(document), portal.turn():
        taken = intake_of(portal, caller).submit(
            document,
            door="api",
            by=caller.actor,
            problems=strict_problems(VariantRequest, document),
            idempotency=key,
        )
    return _taken(taken)


@router.get("", response_model=Requests, responses=refusals(404))
def list_requests(
    portal: Here, caller: Reader, request: Request, filters: Annotated[RequestFilters, Query()]
) -> Response:
    """List requests: a team's own, and those that were shared with it."""
    where = RequestQuery(
        **filters.model_dump(exclude={"team", "state", "sort", "cursor", "limit"}),
        team=caller.own_team(filters.team),
        states=tuple(filters.state),
    )
    found = portal.ledger.request_page(where, sort=filters.sort, cursor=filters.cursor, limit=filters.limit)
    return page(Requests(items=found.items, next=found.next), request, found.next)


@router.get("/{request_id}", response_model=RequestRecord, responses=refusals(404))
def show_request(portal: Here, caller: JobReader, request_id: Id) -> Response:
    """Show a request: its document, where it stands, why it waits, and what it was expected to take."""
    return reply(portal.ledger.request(request_id, seen_by=caller.team))


@router.get("/{request_id}/trials", response_model=Trials, responses=refusals(404))
def list_trials(
    portal: Here,
    caller: JobReader,
    request: Request,
    request_id: Id,
    filters: Annotated[TrialFilters, Query()],
) -> Response:
    """List what was fitted for a request so far, by segment and number, or the last ones first."""
    record = portal.ledger.request(request_id, seen_by=caller.team)
    left = portal.ledger.trials(
        record.id,
        segment=filters.segment,
        after=_place(filters.cursor),
        newest=filters.sort == "-number",
        limit=filters.limit + 1,
    )
    shown = tuple(map(told, left[: filters.limit]))
    more = len(left) > len(shown)
    following = json.dumps([shown[-1].segment, shown[-1].number]) if more else None
    return page(Trials(items=shown, next=following), request, following)


@router.get("/{request_id}/progress", response_model=Progress, responses=refusals(404))
def show_progress(portal: Here, caller: JobReader, request_id: Id) -> Response:
    """Show how far a request is: its trials as marks of a chart, the best of them, and what it took and costs so far.

    The answer is bounded, however many trials there are.
    """
    record = portal.ledger.request(request_id, seen_by=caller.team)
    return reply(progress(record, ledger=portal.ledger, settings=portal.settings))


@router.get("/{request_id}/attempts", response_model=Attempts, responses=refusals(404))
def list_attempts(portal: Here, caller: JobReader, request_id: Id) -> Response:
    """List the jobs that worked on a request: when, with what, and how each ended."""
    record = portal.ledger.request(request_id, seen_by=caller.team)
    return reply(Attempts(items=tuple(portal.ledger.attempts(record.id))))


@router.post(
    "/{request_id}/cancel",
    response_model=RequestRecord,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(Cancellation, {"why": "The data were wrong."}, optional=True),
)
def cancel_request(portal: Here, caller: Submitter, request_id: Id, body: Incoming) -> Response:
    """Ask a request to end: at once where nobody works on it, else when its job has stopped. Repeated: nothing."""
    wish = body.read(Cancellation, what="cancellation", optional=True)
    record = caller.require_owner(portal.ledger.request(request_id, seen_by=caller.team))
    return reply(portal.ledger.request_cancel(record.id, by=caller.actor, message=wish.why))


@router.put(
    "/{request_id}/priority",
    response_model=RequestRecord,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(PriorityChange, {"priority": "high", "why": "The board meets tomorrow."}),
)
def set_priority(portal: Here, caller: Admin, request_id: Id, body: Incoming) -> Response:
    """Put a waiting request before, or behind, others that wait: a level weighs as much as a day of waiting."""
    wish = body.read(PriorityChange, what="priority")
    record = caller.require_owner(portal.ledger.request(request_id, seen_by=caller.team))
    return reply(portal.ledger.set_priority(record.id, wish.priority, by=caller.actor, message=wish.why))


@router.post(
    "/{request_id}/retry",
    status_code=202,
    response_model=RequestRecord,
    responses=refusals(404, 409, also={202: _TAKEN}),
)
def retry_request(portal: Here, caller: Submitter, request_id: Id, idempotency_key: IdempotencyKey = None) -> Response:
    """Order again what a failed, rejected or cancelled request asked for, as a new request that names it."""
    record = caller.require_owner(portal.ledger.request(request_id, seen_by=caller.team))
    key = _key(caller, idempotency_key, f"retry {record.id}", None)
    with pointing(document_json(record.request)), portal.turn():
        taken = intake_of(portal, caller).retry(record, door="api", by=caller.actor, idempotency=key)
    return _taken(taken)


def intake_of(portal: Portal, caller: Caller) -> Intake:
    """Return what takes in requests of a caller."""
    capacity = portal.outlook.capacity()
    cpus = None if capacity is None else capacity.cpus
    return Intake(portal.ledger, portal.settings, principal=caller.principal, cpus=cpus)


def _taken(taken: Taken) -> Response:
    headers = {"location": f"{API}/requests/{taken.record.id}"}
    if taken.replayed:
        headers["idempotency-replayed"] = "true"
    return reply(taken.record, 202, headers)


def _key(caller: Caller, key: str | None, what: str, document: object) -> Idempotency | None:
    """Return the key of a call; the same document counts as the same however it is written."""
    if key is None:
        return None
    text = f"{what}\n{json.dumps(document, sort_keys=True, separators=(',', ':'))}"
    return Idempotency(caller.key, key, hashlib.sha256(text.encode("utf-8")).hexdigest())


def _place(cursor: str | None) -> tuple[str, int] | None:
    if cursor is None:
        return None
    try:
        segment, number = json.loads(cursor)
        return str(segment), int(number)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            "cursor: it is none that this list has given.", hint="Begin with the first page, without a cursor."
        ) from error
