"""HTTP's view of the one error tree: which status and which body an error becomes.

Adds to the tree what only HTTP can do wrong.  Everything that answers over
HTTP goes through :func:`answer`, so that all errors have one shape.
"""

from __future__ import annotations

from copy import copy
from math import ceil
from typing import Self

from pydantic_core import to_json

from factory.errors import (
    Conflict,
    Detail,
    FactoryError,
    InvalidData,
    InvalidRequest,
    NotFound,
    Preempted,
    ServiceFault,
    StorageFault,
    SystemFault,
    TrainingFault,
    UntrustedBundle,
    UserFault,
    first_of,
)


class Unauthorized(UserFault):
    """Nobody known is asking: no token was sent, or one that opens nothing."""

    code = "unauthorized"


class Forbidden(UserFault):
    """Whoever asks is known, and may not do this."""

    code = "forbidden"


class MethodNotAllowed(UserFault):
    """The route exists, but not for this HTTP method."""

    code = "method_not_allowed"


class PreconditionFailed(UserFault):
    """What is to be changed is not as the caller knows it (``If-Match``)."""

    code = "precondition_failed"


class SlowRequest(UserFault):
    """The body did not arrive within the deadline."""

    code = "slow_request"


class BodyTooLarge(UserFault):
    """The body has more bytes, or more rows, than one request may have."""

    code = "body_too_large"


class UnsupportedMedia(UserFault):
    """The body is of a content type that this route does not read."""

    code = "unsupported_media_type"


class TooManyRequests(UserFault):
    """A caller makes more calls than it may."""

    code = "too_many_requests"
    retry_after_s: int = 1

    @classmethod
    def wait(cls, wait_s: float, message: str, *, hint: str) -> Self:
        """Return the error that says after how many seconds the next call is answered."""
        error = cls(message, hint=hint)
        error.retry_after_s = max(1, ceil(wait_s))
        return error


class Overloaded(SystemFault):
    """More requests are being answered than may be at one time."""

    code = "overloaded"


class DeadlineExceeded(SystemFault):
    """The answer was not ready within the deadline."""

    code = "deadline_exceeded"


STATUS: dict[type[FactoryError], int] = {
    FactoryError: 500,
    UserFault: 400,
    InvalidRequest: 400,
    InvalidData: 422,
    NotFound: 404,
    Conflict: 409,
    Unauthorized: 401,
    Forbidden: 403,
    MethodNotAllowed: 405,
    SlowRequest: 408,
    PreconditionFailed: 412,
    BodyTooLarge: 413,
    UnsupportedMedia: 415,
    TooManyRequests: 429,
    SystemFault: 500,
    StorageFault: 503,
    ServiceFault: 503,
    TrainingFault: 500,
    Preempted: 503,
    UntrustedBundle: 500,
    Overloaded: 503,
    DeadlineExceeded: 504,
}
"""HTTP status of each class; a class that is not named has its base's."""

RETRY_AFTER_S = 1
"""A loaded predictor is free again within a request's time, so the shortest wait that the header can name."""


MOST_TEXT, MOST_DETAIL = 4_000, 1_000
"""Characters of a sentence of an error, and of one of its details: names and values in them are what somebody sent."""


def bounded(error: FactoryError) -> FactoryError:
    """Return an error within the size that an answer may have, whatever was sent: with the first of its problems."""
    details = tuple(Detail(_cut(d.field, MOST_DETAIL), _cut(d.message, MOST_DETAIL)) for d in first_of(error.details))
    message, hint = _cut(error.message, MOST_TEXT), _cut(error.hint, MOST_TEXT)
    if (message, hint, details) == (error.message, error.hint, error.details):
        return error
    shorter = copy(error)
    shorter.message, shorter.hint, shorter.details = message, hint, details
    return shorter


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def unexpected(error: Exception) -> SystemFault:
    """Return what a caller of the predictor is told of an error that nobody foresaw; no more of it than its kind."""
    return SystemFault(
        f"The predictor failed on this request: {type(error).__name__}.",
        hint="This is ours to mend; the predictor's log has the traceback.",
    )


def status_of(error: FactoryError) -> int:
    """Return the HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(error: FactoryError, *, as_text: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and JSON body of an error.

    Args:
        error: What went wrong.
        as_text: ``error`` is the sentence itself, as the Open Inference Protocol has it, and the fields of the one
            shape stand beside it. For clients that can show nothing else.
    """
    status = status_of(error)
    headers = {"content-type": "application/json"}
    if status == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, TooManyRequests):
        headers["retry-after"] = str(error.retry_after_s)
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="factory"'
    body = error.as_dict()
    if as_text:
        fields = body["error"]
        assert isinstance(fields, dict)
        body = {"error": f"{error.message} {error.hint}".strip(), **fields}
    return status, headers, to_json(body)
