"""The JSON API, called within this process as whoever looks at a page.

A page can do nothing that a script cannot: what it shows and what it changes
goes through the same routes, with the browser's own cookie, its origin and its
CSRF token, so that they decide what is allowed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from fastapi import Request
from pydantic import BaseModel, ValidationError

from serve.portal.browser import CSRF_HEADER
from serve.portal.documents import ErrorBody, ErrorContent

_PASSED_ON = ("cookie", "origin", "sec-fetch-site", "x-forwarded-for", "user-agent")
"""Headers of the browser by which the API knows who it is, and where it comes from."""
_JSON = {"accept": "application/json"}
M = TypeVar("M", bound=BaseModel)
Query = Mapping[str, str | int | float | bool | list[str] | None]


class Refused(Exception):
    """The API has refused a call of a page.

    Attributes:
        status: Of its answer.
        error: What it says.
        retry_after: Seconds to wait, as it says; empty where it does not.
    """

    def __init__(self, status: int, error: ErrorContent, retry_after: str = "") -> None:
        super().__init__(error.message)
        self.status, self.error, self.retry_after = status, error, retry_after


@dataclass(frozen=True)
class Answer:
    """What the API has answered.

    Attributes:
        status: HTTP status, below 400.
        headers: In lower case.
        content: The body.
    """

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def cookies(self) -> list[tuple[bytes, bytes]]:
        """Headers by which the browser is to keep, or to forget, its cookies."""
        return [(b"set-cookie", value.encode("latin-1")) for value in self.headers.get_list("set-cookie")]

    def read(self, model: type[M]) -> M:
        """Return the body as a document."""
        return model.model_validate_json(self.content)


class Api:
    """Calls the API for one page.

    Args:
        request: The browser's call.
        client: Reaches the API.
    """

    def __init__(self, request: Request, client: httpx.AsyncClient) -> None:
        self._client = client
        self._headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        self._call_id = request.headers.get("x-request-id")

    async def get(self, path: str, model: type[M], query: Query | None = None) -> M:
        """Return what there is at a path.

        Raises:
            Refused: the API does not give it.
        """
        return (await self.answer(path, query)).read(model)

    async def find(self, path: str, model: type[M], *, absent: Collection[int] = (404,)) -> M | None:
        """Return what there is at a path; None where the answer is one of some statuses, as of what one may not see.

        Raises:
            Refused: the API does not give it for another reason.
        """
        try:
            return await self.get(path, model)
        except Refused as refused:
            if refused.status not in absent:
                raise
            return None

    async def text(self, path: str, query: Query | None = None) -> str:
        """Return the text that there is at a path.

        Raises:
            Refused: the API does not give it.
        """
        answer = await self._call("GET", path, params=filled_in(query) or None)
        return answer.content.decode("utf-8", "replace")

    async def answer(self, path: str, query: Query | None = None) -> Answer:
        """Return what there is at a path, with its headers.

        Raises:
            Refused: the API does not give it.
        """
        return await self._call("GET", path, params=filled_in(query) or None, headers=_JSON)

    async def send(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        csrf: str,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a change.

        Args:
            method: ``POST``, ``PUT`` or ``DELETE``.
            path: Of the API.
            document: Its body, sent as JSON; none if None.
            csrf: Token that the page's form has sent.
            headers: Further ones, as ``If-Match``.

        Raises:
            Refused: the API does not make it.
        """
        body = {} if document is None else {"json": document}
        return await self._call(method, path, headers={CSRF_HEADER: csrf, **(headers or {})}, **body)

    async def pass_on(self, path: str, request: Request, *, csrf: str) -> Answer:
        """Send the body of the browser's own call, as it comes, to a path of the API."""
        kept = {name: request.headers[name] for name in ("content-type", "content-length") if name in request.headers}
        return await self._call("POST", path, headers={CSRF_HEADER: csrf, **kept}, content=request.stream())

    async def _call(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **how: Any) -> Answer:
        response = await self._client.request(method, path, headers={**self._headers, **(headers or {})}, **how)
        if response.status_code >= 400:
            raise _refusal(response)
        return Answer(response.status_code, response.headers, response.content)


@asynccontextmanager
async def api_of(request: Request) -> AsyncIterator[Api]:
    """Open the API for one page; its calls come from the browser's address."""
    client = (request.client.host, request.client.port) if request.client else ("local", 0)
    transport = httpx.ASGITransport(app=request.app, client=client, raise_app_exceptions=False)
    base = f"{request.url.scheme}://{request.url.netloc or 'localhost'}"
    # The API bounds its own times; a call within this process has no others.
    limits = httpx.Timeout(None)
    async with httpx.AsyncClient(transport=transport, base_url=base, trust_env=False, timeout=limits) as inner:
        yield Api(request, inner)


def dotted(field: str) -> str:
    """Return a field's path with dots, whether it came so or as a JSON pointer.

    >>> dotted("/dataset/target"), dotted("budget.time_s")
    ('dataset.target', 'budget.time_s')
    """
    if not field.startswith("/"):
        return field
    steps = [step.replace("~1", "/").replace("~0", "~") for step in field[1:].split("/")]
    return ".".join(steps)


def filled_in(query: Query | None) -> dict[str, Any]:
    """Return the parts of a query that say something."""
    return {name: value for name, value in (query or {}).items() if value not in (None, "", [])}


def _refusal(response: httpx.Response) -> Refused:
    wait = response.headers.get("retry-after", "")
    try:
        return Refused(response.status_code, ErrorBody.model_validate_json(response.content).error, wait)
    except ValidationError:
        told = f"The API has answered {response.status_code}, and not as it should."
        content = ErrorContent(code="system_fault", message=told, hint="Try again.", details=())
        return Refused(response.status_code, content, wait)
