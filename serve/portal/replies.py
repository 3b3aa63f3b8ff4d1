"""Answers: documents as JSON, pages of lists with a link to the next one, entity tags, and errors of one shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from factory.errors import Conflict, Detail, FactoryError, InvalidRequest, NotFound, StorageFault, SystemFault
from factory.settings import Settings
from serve.errors import MethodNotAllowed, Overloaded, PreconditionFailed, UnsupportedMedia, answer
from serve.portal.openapi import methods_at

log = logging.getLogger(__name__)

JSON = "application/json"
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+]*://[^\s'\",;]*[^\s'\",;.:]")
IfMatch = Annotated[
    str | None,
    Header(
        max_length=1000,
        description="Entity tag of what is changed, as GET gave it; nothing is changed where it is another one by now.",
    ),
]
"""Header of a change that is made only to what the caller has seen."""
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[!-~]{1,128}$",
        description="Sent again with the same body, the answer is the request that was made the first time.",
    ),
]
"""Header by which a request is made once however often it is sent."""


def reply(document: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a document as an answer; made here, in the handler's thread, rather than in the event loop."""
    content = document.model_dump_json(by_alias=True)
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=JSON)


def page(document: BaseModel, request: Request, following: str | None) -> Response:
    """Return a page of a list, with a link to the one that follows (RFC 8288)."""
    headers = {}
    if following is not None:
        url = request.url.include_query_params(cursor=following)
        headers["link"] = f'<{url.path}?{url.query}>; rel="next"'
    return reply(document, headers=headers)


def tag(digest: str) -> str:
    """Return the entity tag of something whose content has this digest."""
    return f'"{digest}"'


@contextmanager
def matching(if_match: str | None, digest: str, what: str) -> Iterator[str | None]:
    """Make a change within, to what the caller has seen only.

    Args:
        if_match: Header of the call; without one the change is made to whatever there is.
        digest: Of what is there.
        what: How the message calls it.

    Yields:
        The digest that the ledger has to find when it makes the change; None where any will do.

    Raises:
        PreconditionFailed: none of the tags is that of what is there, or it was changed at this very moment.
    """
    if if_match is None or if_match == "*":
        yield None
        return
    if tag(digest) not in [one.strip() for one in if_match.split(",")]:
        raise PreconditionFailed(
            f"{what} was changed since it was read.",
            hint="Read it again, and make the change to what it is now.",
            details=[Detail("If-Match", "is not the entity tag of what is there")],
        )
    try:
        yield digest
    except Conflict as conflict:
        if any(detail.field == "if_digest" for detail in conflict.details):
            raise PreconditionFailed(conflict.message, hint=conflict.hint) from conflict
        raise


def problem(error: FactoryError) -> Response:
    """Return an error as an answer."""
    status, headers, body = answer(error)
    return Response(body, status_code=status, headers=headers)


async def on_fault(request: Request, error: Exception) -> Response:
    """Answer an error of the factory."""
    assert isinstance(error, FactoryError)
    if isinstance(error, SystemFault) and not isinstance(error, Overloaded):
        log.warning("%s %s: %s", request.method, request.url.path, error.message, exc_info=error)
    _hide_places(error, request.app.state.portal.settings)
    return problem(error)


async def on_disk(request: Request, error: Exception) -> Response:
    """Answer what the disk, or the system, refused, and nobody has told in better words."""
    assert isinstance(error, OSError)
    log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    return problem(
        StorageFault(
            f"A file of the factory cannot be read or written: {error.strerror or type(error).__name__}.",
            hint="An operator has to look at the disk of FACTORY_HOME and the rights there; the portal's log has more.",
        )
    )


async def on_invalid(_: Request, error: Exception) -> Response:
    """Answer a parameter that is not as the route declares it."""
    assert isinstance(error, RequestValidationError)
    details = [_parameter(found) for found in error.errors()]
    told = " ".join(f"{detail.field}: {detail.message}" for detail in details)
    return problem(
        InvalidRequest(f"The call is not valid: {told}", hint="GET /openapi.json says what it takes.", details=details)
    )


async def on_http(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses by itself: a route or a method that does not exist."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path[:200], dict(error.headers or {})
    found: FactoryError
    if error.status_code == 404:
        details = [Detail("path", path)]
        found = NotFound(f"There is no route {path!r}.", hint="GET /openapi.json lists them all.", details=details)
    elif error.status_code == 405:
        # The framework tells the methods of the first route of a path only.
        allowed = ", ".join(methods_at(request.app, request.url.path))
        headers |= {"Allow": allowed} if allowed else {}
        # What a page's form is sent to is no route that the API tells of.
        hint = f"Use {allowed}." if allowed else "It is where a form is sent to: go to the page with the form."
        found = MethodNotAllowed(f"{request.method} is not allowed on {path!r}.", hint=hint)
    elif error.status_code == 415:
        found = UnsupportedMedia(str(error.detail), hint="Send application/json.")
    else:
        found = InvalidRequest(str(error.detail), hint="GET /openapi.json says what a call takes.")
    response = problem(found)
    response.headers.update(headers)
    return response


def _hide_places(error: FactoryError, settings: Settings) -> None:
    """Take out of an error where our folders, databases and services are; the log has it all."""
    folders = {str(settings.root): "FACTORY_HOME", str(settings.recipes_folder): "FACTORY_RECIPES"}

    def hidden(text: str) -> str:
        for folder, name in folders.items():
            text = text.replace(folder, name)
        return _ADDRESS.sub("(its address)", text) if isinstance(error, SystemFault) else text

    error.message, error.hint = hidden(error.message), hidden(error.hint)
    error.details = tuple(Detail(detail.field, hidden(detail.message)) for detail in error.details)


def _parameter(found: Mapping[str, Any]) -> Detail:
    where, *names = [str(step) for step in found["loc"]]
    name = ".".join(names) or where
    if where == "header":
        name = "-".join(part.capitalize() for part in name.replace("_", "-").split("-"))
    if found["type"] == "missing":
        return Detail(name, "This is required.")
    if found["type"] == "extra_forbidden":
        return Detail(name, "There is no such parameter.")
    shown = repr(found.get("input"))
    return Detail(name, f"{found['msg']}; received {shown if len(shown) <= 80 else shown[:77] + '...'}.")
