"""How the making of a request ends that does not come through, told for people and for the controller."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from factory.errors import FactoryError, Preempted, SystemFault
from factory.ledger import Ledger
from factory.ledger.wishes import cancelled
from factory.settings import Settings
from factory.spec import RequestState

log = logging.getLogger(__name__)


@contextmanager
def ending_as_failed(request_id: str, *, ledger: Ledger, settings: Settings) -> Iterator[None]:
    """Record an error as the request's end; an interruption leaves the request as it is, to be gone on with.

    So does a fault of the system in a job of the controller, which knows how often it was tried.
    """
    try:
        yield
    except Preempted as stopped:
        record = ledger.request(request_id)
        if record.cancel_requested_at is not None:
            ledger.advance(request_id, RequestState.CANCELLED, "Cancelled; finished trials are kept.")
            raise cancelled(record) from stopped
        ledger.note(request_id, "preempted", "Stopped to make room; it goes on with all finished trials.")
        raise
    except FactoryError as error:
        _record_end(request_id, error, ledger=ledger, settings=settings)
        raise
    except Exception as error:
        log.exception("request %s failed", request_id)
        fault = SystemFault(
            f"Unexpected {type(error).__name__}: {error}.", hint="Please report it with the log of the request."
        )
        _record_end(request_id, fault, ledger=ledger, settings=settings)
        raise fault from error


def _record_end(request_id: str, error: FactoryError, *, ledger: Ledger, settings: Settings) -> None:
    if settings.attempt is not None and isinstance(error, SystemFault):
        ledger.note(request_id, "fault", error.message, payload={"code": error.code, "hint": error.hint})
    else:
        ledger.fail(request_id, error)
