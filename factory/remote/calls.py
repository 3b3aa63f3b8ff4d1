"""Calls of the JSON API: authenticated, with timeouts, repeated where that is safe, and their errors as ours.

What is safe: a call that changes nothing or carries an idempotency key may be
repeated whatever became of it; any other one only where the server did not
get it, or said itself to come again (429 or 503 with ``Retry-After``).  A
redirect is never followed, since it would take the token along.

The token is in the header of each call and nowhere else.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from factory.errors import Detail, InvalidRequest, ServiceFault
from factory.remote.credentials import API, LOOPBACK, find_login
from factory.remote.refusals import refusal, strange, unreachable

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""For an answer, or between two parts of one; the portal answers within a second unless its database is busy."""
CONNECT_S = 5.0
RETRIES = 4
FIRST_PAUSE_S, MOST_PAUSE_S = 0.25, 30.0
"""Back-off doubles from the first, with jitter; a server that asks for a longer pause than the last is believed now."""
PAGE = 200
"""Rows of a page: the most that the API gives."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_REPEATABLE = frozenset({"GET", "HEAD"})

M = TypeVar("M", bound=BaseModel)
Query = Mapping[str, str | int | float | bool | Sequence[str] | None]


class Calls:
    """A connection to a factory; closed by :meth:`close` or the end of its ``with`` block.

    Args:
        url: Address of the portal; that of ``FACTORY_URL`` or of ``factory login`` where not given.
        token: Likewise, of ``FACTORY_TOKEN``.
        timeout_s: Seconds for an answer.
        retries: How often a call is repeated where that is safe.
        transport: What speaks HTTP, for tests and unusual networks.

    Raises:
        InvalidRequest: nothing names a factory, or what does is no address.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        login = find_login(url, token)
        if login is None:
            raise InvalidRequest(
                "FACTORY_URL: nothing says where the factory is.",
                hint="Set FACTORY_URL and FACTORY_TOKEN, or log in: factory login https://factory.example.com.",
                details=[Detail("FACTORY_URL", "is not set")],
            )
        self.url = login.url
        self._retries = retries
        self._sleep: Callable[[float], None] = time.sleep
        headers = {"user-agent": f"model-variant-factory/{_release()}", "accept": "application/json"}
        if login.token is not None:
            headers["authorization"] = f"Bearer {_printable(login.token)}"
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=f"{login.url}{API}/",
            headers=headers,
            timeout=self._timeout(),
            transport=transport,
            # A proxy of the environment is for other machines.
            trust_env=urlsplit(login.url).hostname not in LOOPBACK,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _timeout(self, read_s: float | None = None) -> httpx.Timeout:
        """Return how long is waited, for parts of an answer as long as is said."""
        read_s = self._timeout_s if read_s is None else read_s
        return httpx.Timeout(self._timeout_s, connect=CONNECT_S, read=read_s, pool=CONNECT_S)

    # --- calls -----------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> httpx.Response:
        """Return the answer of a call.

        Args:
            method: Of HTTP.
            path: Below ``/api/v1/``, each part quoted by :func:`part`.
            query: Parameters; those that are None are left out.
            body: Plain values, sent as JSON where given.
            headers: Beside those of every call.
            repeatable: Whether a call that changes something may be made twice.

        Raises:
            UserFault, SystemFault: what the server answered, as the same class that a call in-process raises.
            ServiceFault: it does not answer.
        """

        def build() -> httpx.Request:
            return self._http.build_request(method, path, params=_query(query), json=body, headers=headers)

        return self._sent(build, repeatable=repeatable)

    def _sent(self, build: Callable[[], httpx.Request], *, repeatable: bool, stream: bool = False) -> httpx.Response:
        """Send a request, which is built anew for each try, and return an answer that is no error."""
        for attempt in count():
            request = build()
            safe = repeatable or request.method in _REPEATABLE
            try:
                response = self._http.send(request, stream=stream)
            except httpx.TransportError as error:
                if attempt >= self._retries or not (safe or isinstance(error, _NOT_SENT)):
                    raise self._unreachable(error) from error
                said, pause_s = type(error).__name__, back_off_s(attempt)
            else:
                asked = _asked_to_come_again(response, attempt, safe=safe)
                if asked is None or attempt >= self._retries:
                    return self._checked(response)
                response.close()
                said, pause_s = str(response.status_code), asked
            log.info("%s %s: %s; again in %.1f s", request.method, request.url.path, said, pause_s)
            self._sleep(pause_s)
        raise AssertionError("unreachable")

    def _checked(self, response: httpx.Response) -> httpx.Response:
        """Return an answer that is no error, and raise one that is."""
        if response.is_success:
            return response
        try:
            response.read()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            response.close()
        raise refusal(self.url, response)

    @contextmanager
    def _stream(
        self,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Open an answer that is read as it comes; what breaks it off while it is read is httpx's own error.

        Args:
            path: Below ``/api/v1/``.
            query: Parameters; those that are None are left out.
            headers: Beside those of every call.
            silence_s: Seconds between two parts of it at most; as for any answer where not given.
        """
        timeout = self._timeout(silence_s)

        def build() -> httpx.Request:
            return self._http.build_request("GET", path, params=_query(query), headers=headers, timeout=timeout)

        response = self._sent(build, repeatable=True, stream=True)
        try:
            yield response
        finally:
            response.close()

    def _unreachable(self, error: Exception) -> ServiceFault:
        return unreachable(self.url, error, sent=not isinstance(error, _NOT_SENT))

    # --- answers ---------------------------------------------------------------

    def _read(self, model: type[M], document: object) -> M:
        """Return part of an answer as a document; fields that a newer server has added are passed over.

        Raises:
            ServiceFault: it is none.
        """
        try:
            return model.model_validate(document, extra="ignore")
        except ValidationError as error:
            raise self._strange(f"no {model.__name__}: {_first(error)}") from error

    def _read_text(self, model: type[M], text: str) -> M:
        """Return a JSON text as a document, as :meth:`_read`."""
        try:
            return model.model_validate_json(text, extra="ignore")
        except ValidationError as error:
            raise self._strange(f"no {model.__name__}: {_first(error)}") from error

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "nothing")
            raise self._strange(f"{kind} instead of JSON") from error

    def _get(self, path: str, *, query: Query | None = None) -> Any:
        return self._json(self._call("GET", path, query=query))

    def _pages(self, model: type[M], path: str, *, query: Query | None = None, most: int | None = None) -> Iterator[M]:
        """Yield the items of a list, a page at a time as they are asked for.

        Args:
            model: Of an item.
            path: Of the list.
            query: Its filters and order.
            most: Items at most.
        """
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            limit = PAGE if left is None else min(PAGE, left)
            items, cursor = self._page(path, {**(query or {}), "limit": limit, "cursor": cursor})
            for item in items[:left]:
                yield self._read(model, item)
            left = None if left is None else left - len(items)
            if cursor is None:
                return

    def _items(self, model: type[M], path: str, *, query: Query | None = None) -> list[M]:
        """Return the items of a list that has no pages."""
        return [self._read(model, item) for item in self._page(path, query or {})[0]]

    def _page(self, path: str, query: Query) -> tuple[list[Any], str | None]:
        page = self._get(path, query=query)
        if not isinstance(page, dict) or not isinstance(page.get("items"), list):
            raise self._strange("no page of a list")
        return page["items"], page.get("next")

    def _strange(self, what: str) -> ServiceFault:
        return strange(self.url, what)


def part(text: str) -> str:
    """Return a name as one part of a path.

    >>> part("growth.churn/3?")
    'growth.churn%2F3%3F'
    >>> part("..")
    '%2E%2E'
    """
    quoted = quote(text, safe="")
    return quoted.replace(".", "%2E") if set(text) <= {"."} else quoted


def _query(query: Query | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None and value != ()}


def back_off_s(attempt: int) -> float:
    """Return a pause of full jitter (Brooker, Exponential backoff and jitter, 2015)."""
    longest = min(FIRST_PAUSE_S * 2 ** (attempt + 1), MOST_PAUSE_S)
    return random.uniform(longest / 4, longest)  # noqa: S311 - nobody gains by guessing it


def _asked_to_come_again(response: httpx.Response, attempt: int, *, safe: bool) -> float | None:
    """Return after how many seconds a call may be made again; None where its answer stands."""
    status, header = response.status_code, response.headers.get("retry-after", "")
    if status not in (429, 502, 503, 504) or (not safe and (status not in (429, 503) or not header)):
        return None
    if (asked_s := _retry_after_s(header)) is None:
        return back_off_s(attempt)
    return None if asked_s > MOST_PAUSE_S else max(asked_s, back_off_s(attempt))


def _retry_after_s(header: str) -> float | None:
    """Return the seconds of a ``Retry-After``, which may be a date.

    >>> _retry_after_s("3"), _retry_after_s(""), _retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT")
    (3.0, None, 0.0)
    """
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or '(document)'}: {problem['msg']}"


def _printable(token: str) -> str:
    if token.isascii() and token.isprintable() and " " not in token:
        return token
    raise InvalidRequest(
        "FACTORY_TOKEN: it has characters that no token has.",
        hint="Was it copied whole, and without quotes or a line break?",
        details=[Detail("FACTORY_TOKEN", "is no token")],
    )


def _release() -> str:
    try:
        return version("model-variant-factory")
    except PackageNotFoundError:
        return "source"
