"""One driver at a time works on a request.

A claim is a lease that its process renews.  It may be taken over when the
lease has run out, or at once when the holder was a process of this host that
is no more.  The lease (Gray and Cheriton, 1989) is long against clock skew
and short against the patience of whoever waits for a lost node.  A clock that
is set, by hand or after a suspend, neither frees nor blocks a request.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from datetime import timedelta
from typing import Any, Self

import psutil
from sqlalchemy import Row, delete, update

from factory.errors import Conflict, Detail, StorageFault
from factory.ledger import schema
from factory.ledger.database import repeatable
from factory.ledger.moments import now
from factory.ledger.records import RequestRecord
from factory.ledger.requests import Requests
from factory.spec import NEXT_STATES, RequestState

LEASE_S = 60.0
"""Four renewals fit in, so that one that waited for a lock does not lose the claim."""

VOID_S = 2 * LEASE_S
"""A lease that ends later than this was given before the clock was set back, and counts no more."""

_SAME_START_S = 1.5
"""The kernel tells the host's start in whole seconds, so two readings of one start may differ by one."""

_logger = logging.getLogger(__name__)


class Claim:
    """The right to work on one request; a context manager that gives it back.

    Attributes:
        record: The request as it was when it was claimed; ``record.attempt`` counts this driver.
    """

    def __init__(self, claims: Claims, record: RequestRecord, token: str, *, lease_s: float) -> None:
        self.record = record
        self._claims = claims
        self._token = token
        self._lease_s = lease_s
        self._over = threading.Event()
        self._lost = False
        self._renewer = threading.Thread(target=self._keep_renewing, name=f"claim-{record.id}", daemon=True)
        self._renewer.start()

    @property
    def held(self) -> bool:
        """Whether this process may still work on the request; False after another one took it over."""
        return not (self._lost or self._over.is_set())

    def renew(self) -> bool:
        """Extend the lease from now on; return whether the claim was still held."""
        until = now() + timedelta(seconds=self._lease_s)
        self._lost = not self._claims._change_claim(self.record.id, self._token, {"driver_lease_until": until})
        return self.held

    def release(self) -> None:
        """Give the request back; does nothing when it was given back or lost before."""
        if self._over.is_set():
            return
        self._over.set()
        self._renewer.join()
        self._claims._change_claim(self.record.id, self._token, NOBODY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _keep_renewing(self) -> None:
        while not self._over.wait(self._lease_s / 4):
            try:
                if not self.renew():
                    _logger.error("request %s: another driver has taken it over", self.record.id)
                    return
            except StorageFault:
                _logger.exception("request %s: the claim could not be renewed, will try again", self.record.id)


class Claims(Requests):
    """The part of the ledger that knows who works on what."""

    def claim(self, request_id: str, *, lease_s: float = LEASE_S) -> Claim:
        """Take the right to work on a request, and count one attempt more.

        Args:
            request_id: The request.
            lease_s: Seconds after which a driver that no longer renews counts as dead; 60 at most.

        Raises:
            Conflict: a live driver has it, or the request has ended.
            NotFound: there is no such request.
        """
        token = secrets.token_hex(16)
        lease_s = min(lease_s, LEASE_S)
        with self._write() as connection:
            row = self._locked(connection, request_id)
            if not NEXT_STATES[RequestState(row.state)]:
                raise Conflict(
                    f"Request {request_id} is {row.state}: there is nothing left to do.",
                    hint="Use `factory requests retry ID` to make a new request of it.",
                    details=[Detail("state", row.state)],
                )
            if is_alive(row):
                raise Conflict(
                    f"Request {request_id} is worked on by process {row.driver_pid} on {row.driver_host}.",
                    hint="Wait for it, or end that process and try again.",
                    details=[Detail("driver", f"lease until {row.driver_lease_until.isoformat(timespec='seconds')}")],
                )
            mine = {
                "driver_token": token,
                "driver_host": socket.gethostname(),
                "driver_pid": os.getpid(),
                "driver_started": _started_s(os.getpid()),
                "driver_lease_until": now() + timedelta(seconds=lease_s),
                "attempt": row.attempt + 1,
            }
            connection.execute(update(schema.requests).where(schema.requests.c.id == request_id).values(mine))
            connection.execute(delete(schema.holds).where(schema.holds.c.request_id == request_id))
        return Claim(self, self.request(request_id), token, lease_s=lease_s)

    @repeatable
    def _change_claim(self, request_id: str, token: str, values: dict[str, Any]) -> bool:
        """Change a claim while it is that token's; return whether it was."""
        at = schema.requests.c
        with self._write() as connection:
            change = update(schema.requests).where(at.id == request_id, at.driver_token == token).values(values)
            return connection.execute(change).rowcount == 1


NOBODY: dict[str, Any] = dict.fromkeys(
    ("driver_token", "driver_host", "driver_pid", "driver_started", "driver_lease_until")
)
"""What a request that no driver works on has of one."""


def is_alive(row: Row[Any]) -> bool:
    """Return whether a request's driver, as far as can be known, works on it."""
    moment = now()
    if row.driver_token is None or not moment <= row.driver_lease_until <= moment + timedelta(seconds=VOID_S):
        return False
    if row.driver_host != socket.gethostname():
        return True
    try:
        # A process id is given out again: the start time tells one process from another.
        started_s = _started_s(row.driver_pid)
        status = psutil.Process(row.driver_pid).status()
    except psutil.NoSuchProcess:
        return False
    return abs(started_s - row.driver_started) < _SAME_START_S and status != psutil.STATUS_ZOMBIE


def _started_s(pid: int) -> float:
    """Return how long after the host's start a process started: both move alike when the clock is set."""
    return psutil.Process(pid).create_time() - psutil.boot_time()
