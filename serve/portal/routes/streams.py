"""What goes on: the events of a request as they happen, and the log of its job as it is written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from factory.errors import Detail, FactoryError, NotFound, StorageFault
from factory.ledger import Attempt, Event, Ledger, RequestRecord
from factory.operate.attending import job_of, log_path
from factory.settings import Settings
from factory.spec import Document, RequestState
from serve.errors import Overloaded
from serve.portal.context import Here, Portal
from serve.portal.documents import Events, LiveTrial, Moment
from serve.portal.feed import MOST_LISTENERS, Listener
from serve.portal.identity import Caller, JobReader, is_still_good
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import page
from serve.portal.routes import API
from serve.portal.routes.requests import Id

log = logging.getLogger(__name__)

router = APIRouter(prefix=f"{API}/requests", tags=["requests"], responses=refusals(*ALWAYS))

SSE = "text/event-stream"
HEARTBEAT_S = 10.0
"""Between two signs of life of a stream that has no news; proxies close what is silent for a minute."""
LOOK_AGAIN_S = 5.0
"""After which a stream looks whether its token is still good, and its request still seen."""
PAUSE_S = 1.0
"""Between two looks of a stream at whether the ledger is back."""
_MADE = frozenset({RequestState.REGISTERED, RequestState.SERVING})

_EVENTS: dict[str, Any] = {
    "description": "Events as they happen, until the request has ended; or those of now as a list, where JSON is "
    "accepted and server-sent events are not.",
    "content": {
        SSE: {
            "schema": {
                "type": "object",
                "description": "One of the events: its sequence number, its kind, and itself as JSON.",
                "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
            },
        },
    },
}
_NOTHING_MORE: dict[str, Any] = {"description": "It has ended, and there is nothing after that event."}
_LOG: dict[str, Any] = {
    "description": "What the job printed.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


class EventFilters(Document):
    """Which events."""

    after: int = Field(0, ge=0, lt=2**31, description="Those with a higher sequence number.")
    limit: int = Field(200, ge=1, le=200, description="Of a list.")
    cursor: int | None = Field(None, ge=0, lt=2**31, description="`next` of the page before.")
    trials: bool = Field(False, description="Of a stream: also tell of trials (`event: trial`, without an id).")
    trials_since: Moment | None = Field(None, description="Those that were recorded, or changed, after this moment.")


class LogFilters(Document):
    """Which log."""

    attempt: int | None = Field(None, ge=1, lt=2**31, description="Number of the attempt; the last one where empty.")
    follow: bool = Field(False, description="Go on until the job has ended.")


@router.get(
    "/{request_id}/events",
    response_model=Events,
    responses=refusals(
        404, also={200: _EVENTS, 204: {"description": "It has ended, and there is nothing after that event."}}
    ),
)
def follow_events(
    portal: Here,
    caller: JobReader,
    request: Request,
    request_id: Id,
    filters: Annotated[EventFilters, Query()],
    last_event_id: Annotated[
        str | None, Header(pattern=r"^[0-9]{0,9}$", description="Id of the last event that was seen.")
    ] = None,
) -> Response:
    """Follow the events of a request (server-sent), from the beginning or after the one that was seen last.

    With `Accept: application/json` it is a list of those of now.
    """
    record = portal.ledger.request(request_id, seen_by=caller.team)
    after = filters.after if last_event_id is None else int(last_event_id or 0)
    if _wants_list(request):
        after = after if filters.cursor is None else filters.cursor
        found = portal.ledger.events(record.id, after=after, limit=filters.limit + 1)
        shown = tuple(found[: filters.limit])
        following = str(shown[-1].sequence) if len(found) > len(shown) else None
        return page(Events(items=shown, next=following), request, following)
    if _is_over(record.state) and after >= record.n_events:
        return Response(status_code=204)
    if portal.feed.n_listeners >= MOST_LISTENERS:
        raise Overloaded(
            f"{MOST_LISTENERS:,} listeners are being told already.", hint="Try again, or read the events as JSON."
        )
    stream = _events(portal, request, caller, record.id, after, filters)
    # Proxies that buffer answers are told not to (nginx).
    return StreamingResponse(stream, media_type=SSE, headers={"x-accel-buffering": "no"})


@router.get("/{request_id}/logs", response_class=PlainTextResponse, responses=refusals(404, also={200: _LOG}))
def read_log(
    portal: Here, caller: JobReader, request: Request, request_id: Id, filters: Annotated[LogFilters, Query()]
) -> Response:
    """Read what a request's job printed; follow it while it runs."""
    record = portal.ledger.request(request_id, seen_by=caller.team)
    attempt = _attempt(portal.ledger, record, filters.attempt)
    if attempt.ended_at is not None and (kept := _kept_log(portal.settings, attempt)) is not None:
        return PlainTextResponse(kept)
    job = job_of(attempt, ledger=portal.ledger)
    if not filters.follow or attempt.ended_at is not None:
        return PlainTextResponse(portal.jobs.logs(job))
    if portal.jobs.info(job) is None:
        raise NotFound(f"The cluster does not know job {job} any more.", hint="Its log is kept once it has ended.")
    lines = portal.tails.follow(portal.jobs.tail(job))
    shown = _while(_Permit(portal, request, caller, record.id), lines)
    return StreamingResponse(shown, media_type="text/plain; charset=utf-8", headers={"x-accel-buffering": "no"})


# --- events ------------------------------------------------------------------


async def _events(
    portal: Portal, request: Request, caller: Caller, request_id: str, after: int, filters: EventFilters
) -> AsyncIterator[str]:
    """Yield a request's events as server-sent ones, with comments in between, until it has ended.

    While the ledger is away the stream stays open: there is nothing to tell that anybody might not hear, and whoever
    listens need not find his way back.
    """
    listener = portal.feed.listen(request_id, trials=filters.trials)
    trials = _Trials(portal, listener, filters.trials_since)
    permit = _Permit(portal, request, caller, request_id)
    news: list[Event] = []
    missed = True
    try:
        yield "retry: 2000\n\n"
        while True:
            try:
                if not await permit.holds():
                    return
                news = await _read(portal, request_id, after) if missed else news
                fresh = await trials.fresh()
            except StorageFault as fault:
                log.warning("events of %s have to wait: %s", request_id, fault.message)
                async for sign in _until_it_is_back(portal):
                    yield sign
                continue
            for text in (*map(_told, fresh), *map(_sent, news)):
                yield text
            after = news[-1].sequence if news else after
            if news and _is_over(news[-1].state):
                return
            count, news = await listener.wait(HEARTBEAT_S)
            news = [event for event in news if event.sequence > after]
            # Of something it was not told.
            missed = count > after and (not news or (news[0].sequence, news[-1].sequence) != (after + 1, count))
            if not news and not missed and not listener.told_trials:
                yield ": nothing new\n\n"
    except FactoryError as fault:
        # The answer has begun, so it can only end; whoever listens comes again after the last event.
        log.warning("events of %s: %s", request_id, fault.message)
        yield ": broken off\n\n"
    finally:
        portal.feed.leave(listener)


class _Trials:
    """The trials of a stream: those that its listener was told of, and what it has missed."""

    def __init__(self, portal: Portal, listener: Listener, since: datetime | None) -> None:
        self._portal, self._listener, self._since = portal, listener, since

    async def fresh(self) -> list[LiveTrial]:
        """Return what was not sent yet, the oldest first; a trial may come again.

        Raises:
            StorageFault: the ledger is away.
        """
        if not self._listener.wants_trials:
            return []
        found, missed = self._listener.trials()
        if missed:
            found = await to_thread.run_sync(self._read)
        if found:
            self._since = found[-1].recorded
        return found

    def _read(self) -> list[LiveTrial]:
        found = self._portal.ledger.trials_since(self._listener.request_id, self._since)
        return [LiveTrial.of(trial, recorded) for recorded, trial in found]


class _Permit:
    """What lets a call in that goes on for long: its token and its request, both looked at now and then."""

    def __init__(self, portal: Portal, request: Request, caller: Caller, request_id: str) -> None:
        self._portal, self._request, self._caller, self._request_id = portal, request, caller, request_id
        self._looked = time.monotonic()

    async def holds(self) -> bool:
        """Whether the call would be let in again.

        Raises:
            StorageFault: the ledger is away.
        """
        if time.monotonic() - self._looked > LOOK_AGAIN_S:
            if not await to_thread.run_sync(self._would_be_let_in):
                return False
            self._looked = time.monotonic()
        return True

    def _would_be_let_in(self) -> bool:
        if not is_still_good(self._portal, self._request, self._caller):
            return False
        try:
            self._portal.ledger.request(self._request_id, seen_by=self._caller.team)
        except NotFound:  # it is shared no more
            return False
        return True


async def _until_it_is_back(portal: Portal) -> AsyncIterator[str]:
    """Yield signs of life until the ledger is seen again, for a pause at least."""
    yield ": the ledger does not answer\n\n"
    told = time.monotonic()
    await asyncio.sleep(PAUSE_S)
    while not portal.feed.sees:
        if time.monotonic() - told > HEARTBEAT_S:
            yield ": the ledger does not answer\n\n"
            told = time.monotonic()
        await asyncio.sleep(PAUSE_S)


async def _read(portal: Portal, request_id: str, after: int) -> list[Event]:
    return await to_thread.run_sync(lambda: portal.ledger.events(request_id, after=after))


def _told(trial: LiveTrial) -> str:
    return f"event: trial\ndata: {trial.model_dump_json()}\n\n"


def _sent(event: Event) -> str:
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"


def _is_over(state: RequestState) -> bool:
    """Whether nothing more is going to happen: it has ended, or its variants are made."""
    return state in _MADE or state in (RequestState.REJECTED, RequestState.FAILED, RequestState.CANCELLED)


def _wants_list(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and SSE not in accepted


# --- logs --------------------------------------------------------------------


async def _while(permit: _Permit, lines: AsyncGenerator[str]) -> AsyncIterator[str]:
    """Yield a log as it is written, as long as the call would be let in again."""
    async with aclosing(lines):
        async for line in lines:
            try:
                if not await permit.holds():
                    yield "\n[the log ends here: this token may not read it any more]\n"
                    return
            except StorageFault as fault:
                log.warning("a log breaks off: %s", fault.message)
                yield "\n[the log breaks off: the ledger does not answer]\n"
                return
            if line:
                yield line


def _attempt(ledger: Ledger, record: RequestRecord, number: int | None) -> Attempt:
    found = [a for a in ledger.attempts(record.id) if number in (None, a.number)]
    if found:
        return found[-1]
    raise NotFound(
        f"Request {record.id} has no attempt {number}." if number else f"Request {record.id} has not been started yet.",
        hint=record.held.sentence if record.held else f"GET /api/v1/requests/{record.id}/attempts lists them.",
        details=[Detail("attempt", "there is none")],
    )


def _kept_log(settings: Settings, attempt: Attempt) -> str | None:
    try:
        return log_path(settings, attempt.request_id, attempt.number).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
