"""Requests over HTTP: quoted, submitted, followed to their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Literal
from uuid import uuid4

import httpx
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from factory.errors import InvalidRequest, ServiceFault
from factory.ledger import Attempt, Door, Event, RequestRecord, RequestSummary
from factory.ledger.records import UNDER_WAY, Priority
from factory.operate.quotes import Quote
from factory.remote.calls import Calls, back_off_s, part
from factory.remote.refusals import dotted
from factory.remote.sent import messages
from factory.spec import RequestState, Trial

SILENCE_S = 60.0
"""Longest silence of a stream that lives: a portal gives a sign every few seconds."""

QUIET_S = 600.0
"""Longest silence of a log that is followed: between two prints of a job, nothing comes."""


class RequestCalls(Calls):
    """The part of the client that knows requests."""

    @property
    def is_led(self) -> bool:
        """Whether requests in the queue are taken up by themselves: always, behind a portal."""
        return True

    def submit(self, document: object, *, key: str | None = None) -> RequestRecord:
        """Check a request and put it into the queue.

        Args:
            document: The request, as a :class:`~factory.spec.VariantRequest` or as it stands in a file.
            key: Idempotency key, under which a request is made once, however often it is sent. A new one where not
                given, which is kept while the call is repeated.

        Raises:
            InvalidRequest: with one detail for each problem; nothing is stored.
            NotFound: the recipe, the parent or the upload does not exist.
            Conflict: the key was used for another request.
        """
        return self._made("requests", _sendable(document), key)

    def quote(self, document: object) -> Quote:
        """Return what a request would take, cost and come to; nothing is stored or started.

        What is wrong with it is in ``problems``, as far as it is a request at all.
        """
        answer = self._call("POST", "quotes", body=_sendable(document), repeatable=True)
        told = self._read(Quote, self._json(answer))
        problems = tuple(one.model_copy(update={"field": dotted(one.field)}) for one in told.problems)
        return told.model_copy(update={"problems": problems})

    def requests(
        self,
        *,
        team: str | None = None,
        states: Sequence[RequestState] = (),
        variant: str | None = None,
        recipe: str | None = None,
        door: Door | None = None,
        submitted_by: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        sort: Literal["created", "-created", "updated", "-updated"] = "-created",
        most: int | None = None,
    ) -> Iterator[RequestSummary]:
        """Yield requests, the newest first; pages are asked for as they are needed.

        Args:
            team: Of one team only; ``variant``, ``recipe``, ``door`` and ``submitted_by`` likewise.
            states: In one of these only.
            created_from: Since this moment; ``created_before`` likewise.
            sort: The order.
            most: So many at most.
        """
        query = {
            "team": team,
            "state": tuple(states),
            "variant": variant,
            "recipe": recipe,
            "door": door,
            "submitted_by": submitted_by,
            "created_from": None if created_from is None else created_from.isoformat(),
            "created_before": None if created_before is None else created_before.isoformat(),
            "sort": sort,
        }
        return self._pages(RequestSummary, "requests", query=query, most=most)

    def request(self, request_id: str) -> RequestRecord:
        """Return a request by its id, or the beginning of it.

        Raises:
            NotFound: there is none, or it is another team's.
        """
        return self._read(RequestRecord, self._get(f"requests/{part(request_id)}"))

    def trials(self, request_id: str) -> list[Trial]:
        """Return the trials of a request by segment and number."""
        return list(self._pages(Trial, f"requests/{part(request_id)}/trials"))

    def attempts(self, request_id: str) -> list[Attempt]:
        """Return the attempts of a request, the first one first."""
        return self._items(Attempt, f"requests/{part(request_id)}/attempts")

    def logs(self, request_id: str, *, attempt: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield what a request's job has printed, in pieces.

        Args:
            request_id: The request.
            attempt: Number of the attempt; the last one where not given.
            follow: Whether to go on until the job has ended.

        Raises:
            NotFound: the request has not been started, or has no such attempt.
            ServiceFault: the cluster does not answer, or the job was silent for ten minutes.
        """
        query = {"attempt": attempt, "follow": follow}
        path, headers = f"requests/{part(request_id)}/logs", {"accept": "text/plain"}
        with self._stream(path, query=query, headers=headers, silence_s=QUIET_S if follow else None) as response:
            try:
                yield from response.iter_text()
            except httpx.TransportError as error:
                raise self._unreachable(error) from error

    def cancel(self, request_id: str, *, why: str = "") -> RequestRecord:
        """Ask a request to end; it has ended when this returns where nobody works on it.

        Raises:
            Conflict: its variants are made, or it has ended otherwise.
        """
        answer = self._call("POST", f"requests/{part(request_id)}/cancel", body={"why": why}, repeatable=True)
        return self._read(RequestRecord, self._json(answer))

    def set_priority(self, request_id: str, priority: Priority, *, why: str = "") -> RequestRecord:
        """Put a waiting request before, or behind, others that wait; for a team's admin.

        Raises:
            Conflict: it does not wait any more.
        """
        body = {"priority": priority, "why": why}
        answer = self._call("PUT", f"requests/{part(request_id)}/priority", body=body, repeatable=True)
        return self._read(RequestRecord, self._json(answer))

    def retry(self, request_id: str, *, key: str | None = None) -> RequestRecord:
        """Order again what a request asked for that has failed, was rejected or cancelled: a new request.

        Raises:
            Conflict: it has not ended so.
        """
        return self._made(f"requests/{part(request_id)}/retry", None, key)

    def _made(self, path: str, body: object, key: str | None) -> RequestRecord:
        headers = {"idempotency-key": key or uuid4().hex}
        answer = self._call("POST", path, body=body, headers=headers, repeatable=True)
        return self._read(RequestRecord, self._json(answer))

    # --- following -----------------------------------------------------------------

    def events(self, request_id: str, *, after: int = 0, follow: bool = False) -> Iterator[Event]:
        """Yield what happened to a request, in order.

        Args:
            request_id: The request.
            after: Sequence number of the last event that is known already.
            follow: Whether to wait for what is to come, until nothing more is made. A stream that is broken off is
                taken up after the last event that was seen.

        Raises:
            ServiceFault: the portal does not answer any more.
        """
        if not follow:
            yield from self._pages(Event, f"requests/{part(request_id)}/events", query={"after": after})
            return
        for event in self._follow(request_id, after=after):
            if event is not None:
                yield event

    def wait(
        self,
        request_id: str,
        *,
        progress: Callable[[Event], None] = lambda _: None,
        timeout_s: float | None = None,
    ) -> RequestRecord:
        """Wait until a request has come to an end, and return it; whichever end that is.

        Args:
            request_id: The request.
            progress: Called with each event, those that were before as well.
            timeout_s: Seconds at most; for ever where not given.

        Raises:
            ServiceFault: the time is up, or the portal does not answer any more.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for event in self._follow(request_id, deadline=deadline):
            if event is not None:
                progress(event)
            if deadline is not None and time.monotonic() > deadline:
                raise _late(request_id, timeout_s)
        return self.request(request_id)

    def _follow(self, request_id: str, *, after: int = 0, deadline: float | None = None) -> Iterator[Event | None]:
        """Yield events as they come until nothing more is made, and None for each sign of life.

        Args:
            request_id: The request.
            after: Sequence number of the event before the first.
            deadline: By the monotonic clock; no silence is waited for longer.
        """
        n_failures = 0
        while True:
            try:
                for event in self._streamed(request_id, after, deadline):
                    if event is not None:
                        after, n_failures = event.sequence, 0
                    yield event
            except httpx.TransportError as error:
                if deadline is not None and time.monotonic() > deadline:
                    yield None
                n_failures += 1
                if n_failures > self._retries:
                    raise self._unreachable(error) from error
            record = self.request(request_id)
            if record.state not in UNDER_WAY and after >= record.n_events:
                return
            self._sleep(back_off_s(n_failures))

    def _streamed(self, request_id: str, after: int, deadline: float | None) -> Iterator[Event | None]:
        headers = {"accept": "text/event-stream", "last-event-id": str(after)}
        left_s = SILENCE_S if deadline is None else min(SILENCE_S, max(deadline - time.monotonic(), 0.1))
        path = f"requests/{part(request_id)}/events"
        with self._stream(path, headers=headers, silence_s=left_s) as response:
            for message in messages(response.iter_bytes()):
                if message is None:
                    yield None
                    continue
                event = self._read_text(Event, message.data)
                if event.sequence > after:
                    after = event.sequence
                    yield event


def _sendable(document: object) -> object:
    """Return a request as it is sent; what is no document at all is refused here, as in-process.

    Raises:
        InvalidRequest: it holds what JSON does not know.
    """
    if isinstance(document, BaseModel):
        return document.model_dump(mode="json", by_alias=True, exclude_unset=True)
    try:
        return to_jsonable_python(document)
    except PydanticSerializationError as error:
        raise InvalidRequest(f"(document): {error}", hint="Give what a YAML or JSON file can hold.") from error


def _late(request_id: str, timeout_s: float | None) -> ServiceFault:
    return ServiceFault(
        f"Request {request_id} has not ended within {timeout_s:g} s.",
        hint="It goes on; wait again, or look at it: factory requests show.",
    )
