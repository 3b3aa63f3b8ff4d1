"""What a call over HTTP can come to instead of its answer, as the errors that a call in-process raises."""

from __future__ import annotations

import httpx

from factory.errors import (
    Conflict,
    Detail,
    FactoryError,
    InvalidData,
    InvalidRequest,
    NotFound,
    ServiceFault,
    SystemFault,
    UserFault,
    error_of,
)

_BY_STATUS: dict[int, type[FactoryError]] = {
    400: InvalidRequest,
    404: NotFound,
    405: InvalidRequest,
    409: Conflict,
    412: Conflict,
    413: InvalidData,
    415: InvalidRequest,
    422: InvalidData,
    500: SystemFault,
}
"""Class of an error whose code is not known here; of others of the 400s and 500s see :func:`_class_of`."""


def refusal(url: str, response: httpx.Response) -> FactoryError:
    """Return what an answer tells, or which it is where a stranger (a proxy, another server) has answered."""
    otherwise = _class_of(response.status_code)
    try:
        told = response.json()["error"]
        details = [Detail(dotted(str(d["field"])), str(d["message"])) for d in told.get("details") or ()]
        code, message, hint = str(told["code"]), str(told["message"]), str(told.get("hint") or "")
        return error_of(code, message, hint=hint, details=details, otherwise=otherwise)
    except (ValueError, LookupError, TypeError, AttributeError):
        said = f"{response.status_code} {response.reason_phrase}".strip()
        return otherwise(
            f"{url} answered {said}, and not as a factory does.",
            hint="Is FACTORY_URL the address of a portal, and does a proxy stand before it?",
            details=[Detail("FACTORY_URL", f"answered {said}")],
        )


def unreachable(url: str, error: Exception, *, sent: bool) -> ServiceFault:
    """Return the error of a call that got no answer.

    Args:
        url: Of the factory.
        error: As httpx tells it.
        sent: Whether the call may have reached it.
    """
    slow = isinstance(error, httpx.TimeoutException) and sent
    return ServiceFault(
        f"{url} {'did not answer in time' if slow else 'cannot be reached'}: {error or type(error).__name__}.",
        hint="Is the portal running (factory status), and is FACTORY_URL its address?",
        details=[Detail("FACTORY_URL", type(error).__name__)],
    )


def strange(url: str, what: str) -> ServiceFault:
    """Return the error of an answer that is not what was asked for."""
    return ServiceFault(
        f"The answer of {url} is not understood: {what}.",
        hint="Is it a factory, and of a release near this one's?",
        details=[Detail("FACTORY_URL", what)],
    )


def dotted(pointer: str) -> str:
    """Return a JSON pointer as the path by which an error in-process names the same place.

    >>> dotted("/dataset/types/a~1b"), dotted(""), dotted("FACTORY_URL")
    ('dataset.types.a/b', '(document)', 'FACTORY_URL')
    """
    if not pointer.startswith("/"):
        return pointer or "(document)"
    return ".".join(step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/"))


def _class_of(status: int) -> type[FactoryError]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return UserFault if 400 <= status < 500 else ServiceFault
