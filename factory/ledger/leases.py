"""Who leads: one of several controllers, until its lease runs out.

A lease alone is not enough.  A leader that was held up (a paused process, a
clock that was set) may still believe to lead when another one does.  So each
new lead has a higher epoch, and every change of the leader is made only while
its epoch is the present one: a fencing token.

Sources: Gray and Cheriton, Leases, 1989; Burrows, The Chubby lock service,
2006, for the sequencer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, select, update

from factory.errors import Conflict, Detail, InvalidRequest
from factory.ledger import schema
from factory.ledger.bounds import bounded
from factory.ledger.database import Database
from factory.ledger.engines import insert_new
from factory.ledger.moments import now

LEAD_S = 15.0
MOST_LEAD_S = 60.0
"""Longest lease: one that ends later was given before the clock was set back, and is void."""

_fence: ContextVar[tuple[str, int] | None] = ContextVar("fence", default=None)


class Leases(Database):
    """The part of the ledger that knows who leads."""

    def lead(self, name: str, holder: str, lease_s: float = LEAD_S) -> int | None:
        """Take a lead, or renew it.

        Args:
            name: Of what is led, for example ``controller``.
            holder: Who wants to lead; no two processes may call themselves alike, one after another included.
            lease_s: Seconds until another may take the lead unless it is renewed; at most 60.

        Returns:
            The epoch of the lead, higher than that of every leader before; None while another one leads.
        """
        bounded("name", name, 64)
        bounded("holder", holder, 255)
        if not 0 < lease_s <= MOST_LEAD_S:
            raise InvalidRequest(
                f"lease_s: {lease_s:g} is not between 0 and {MOST_LEAD_S:g} seconds.",
                hint="A leader renews its lease three times within it.",
                details=[Detail("lease_s", f"{lease_s:g}")],
            )
        at = schema.leases.c
        # Not fenced: a lead that was lost may be taken again.
        lease = timedelta(seconds=lease_s)
        with Database._write(self) as connection:
            first = {"name": name, "holder": holder, "epoch": 1, "until": now() + lease}
            if insert_new(connection, schema.leases, first):
                return 1
            row = connection.execute(select(schema.leases).where(at.name == name).with_for_update()).one()
            moment = now()
            if row.holder != holder and not _is_vacant(row, moment):
                return None
            epoch: int = row.epoch if row.holder == holder else row.epoch + 1
            change = update(schema.leases).where(at.name == name)
            connection.execute(change.values(holder=holder, epoch=epoch, until=moment + lease))
        return epoch

    def leader(self, name: str) -> str | None:
        """Return who leads now; None where nobody does."""
        at = schema.leases.c
        with self._read() as connection:
            row = connection.execute(select(schema.leases).where(at.name == name)).one_or_none()
        return None if row is None or _is_vacant(row, now()) else str(row.holder)

    def resign(self, name: str, epoch: int) -> None:
        """Give a lead back, so that another need not wait; does nothing where it was lost."""
        at = schema.leases.c
        with Database._write(self) as connection:
            mine = (at.name == name) & (at.epoch == epoch)
            connection.execute(update(schema.leases).where(mine).values(holder="", until=now()))

    @contextmanager
    def fenced(self, name: str, epoch: int) -> Iterator[None]:
        """Let this thread change the ledger only while a lead is of this epoch.

        Every change inside raises Conflict, and changes nothing, once another one has taken the lead.
        """
        token = _fence.set((name, epoch))
        try:
            yield
        finally:
            _fence.reset(token)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with super()._write() as connection:
            if (fence := _fence.get()) is not None:
                _refuse_deposed(connection, *fence)
            yield connection


def _is_vacant(row: Row[Any], moment: datetime) -> bool:
    return not moment < row.until <= moment + timedelta(seconds=MOST_LEAD_S)


def _refuse_deposed(connection: Connection, name: str, epoch: int) -> None:
    at = schema.leases.c
    # The row stays locked against a new leader until this change is made.
    query = select(at.epoch, at.holder).where(at.name == name).with_for_update(read=True)
    row = connection.execute(query).one_or_none()
    if row is None or row.epoch != epoch or not row.holder:
        raise Conflict(
            f"The lead {name!r} of epoch {epoch} is over.",
            hint="Another process leads now; this one starts over as one that waits.",
            details=[Detail("epoch", f"{epoch} is not {None if row is None else row.epoch}")],
        )
