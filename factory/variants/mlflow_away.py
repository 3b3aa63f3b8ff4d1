"""MLflow's server that is away, and comes back: what is asked of it is asked again until patience is over.

MLflow's own client sends a call again by itself, for four minutes, also where an answer was lost: a variant would get
two versions. A driver therefore turns that off (:data:`ONCE`) and repeats whole steps here, each of which looks first
whether it was done.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import urlparse

from factory.errors import FactoryError, ServiceFault, StorageFault

log = logging.getLogger(__name__)

ONCE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
"""Variable that says how often MLflow's client sends a call again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Between two tries; each pause is twice the one before. A server that is started needs 10 s and more."""
_OVERLOADED = 429
_FAILED = 500


class _Asker(Protocol):
    """What asks MLflow."""

    uri: str
    patience_s: float


_A = TypeVar("_A", bound=_Asker)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def insisting(call: Callable[Concatenate[_A, _P], _T]) -> Callable[Concatenate[_A, _P], _T]:
    """Let a call be made again while MLflow's server is away; for calls that do no harm the second time."""

    @wraps(call)
    def made(self: _A, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        until, pause_s = time.monotonic() + self.patience_s, FIRST_PAUSE_S
        while True:
            try:
                return call(self, *arguments, **named)
            except (ServiceFault, StorageFault) as fault:
                if time.monotonic() + pause_s > until or not _is_away(fault, self.uri):
                    raise
                log.warning("%s; asking again in %.1f s", fault.message, pause_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    return made


def send_once() -> None:
    """Keep MLflow's client in this process from sending a call again by itself, unless the operator wants it so."""
    os.environ.setdefault(ONCE, "0")


def _is_away(fault: FactoryError, uri: str) -> bool:
    """Whether a server did not answer, or answered that it cannot now; a database of ours is not a server."""
    if urlparse(uri).scheme not in ("http", "https"):
        return False
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    cause = fault.__cause__
    if isinstance(cause, MlflowException):
        status: int = cause.get_http_status_code()
        return status >= _FAILED or status == _OVERLOADED
    return isinstance(cause, RequestException)
