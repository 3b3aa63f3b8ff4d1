"""The audit log: who changed what, from where; rows are only ever added.

A change and its row are written in one transaction, so there is no change
without a row.  The rows are a chain of hashes (:mod:`factory.ledger.chain`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, insert, select, update

from factory.ledger import schema
from factory.ledger.bounds import bounded
from factory.ledger.chain import link
from factory.ledger.leases import Leases
from factory.ledger.moments import now
from factory.ledger.records import Payload, payload_json
from factory.spec import Actor, Document

_CHAIN = "audit"
_END = select(schema.chains).where(schema.chains.c.name == _CHAIN)
_LOCKED_END = _END.with_for_update()
_NEW_END = update(schema.chains).where(schema.chains.c.name == _CHAIN)


class AuditRecord(Document):
    """One change: who made it, from where, when, and of what.

    Attributes:
        id: Counts from 1 without a gap.
        action: For example ``token.revoke``.
        subject: Id or name of what was changed.
        team: Whose it is; None where it is no team's.
        hash: Chains it to the row before; note id and hash of a row elsewhere to prove the log up to it.
    """

    id: int
    time: datetime
    who: str
    origin: str
    action: str
    subject: str
    team: str | None
    detail: dict[str, Any] = Field(default_factory=dict)
    hash: str


class Audit(Leases):
    """The part of the ledger that knows who changed what."""

    def record_audit(
        self, action: str, subject: str, *, by: Actor, team: str | None = None, detail: Payload = None
    ) -> AuditRecord:
        """Add a row for a change that was made elsewhere; what changes the ledger adds its row itself.

        Raises:
            InvalidRequest: a name is too long.
        """
        with self._write() as connection:
            return append_audit(connection, action, subject, by=by, team=team, detail=detail)

    def verify_audit(self) -> int | None:
        """Return the id of the first row that was changed, put in, or is missing; None where all are as written."""
        expected, previous = 1, ""
        with self._read() as connection:
            end = connection.execute(_END).one_or_none()
            rows = select(schema.audit).order_by(schema.audit.c.id).execution_options(yield_per=1000)
            try:
                with connection.execute(rows) as found:
                    for row in found:
                        if row.id != expected or row.hash != link(previous, _content(row._asdict())):
                            return expected
                        expected, previous = expected + 1, row.hash
            except ValueError:  # what was stored is no moment or no JSON any more
                return expected
        whole = end is not None and (end.length, end.hash) == (expected - 1, previous)
        return None if whole else expected


def append_audit(
    connection: Connection,
    action: str,
    subject: str,
    *,
    by: Actor,
    team: str | None = None,
    detail: Payload = None,
) -> AuditRecord:
    """Add a row within a transaction that makes the change; best as its last step, since others wait for it."""
    end = connection.execute(_LOCKED_END).one()
    row = {
        "id": end.length + 1,
        "time": now(),
        "who": by.who,
        "origin": by.origin,
        "action": bounded("action", action, 64),
        "subject": bounded("subject", subject, 255),
        "team": team,
        "detail": payload_json(detail),
    }
    row["hash"] = link(end.hash, _content(row))
    connection.execute(insert(schema.audit), row)
    connection.execute(_NEW_END, {"length": row["id"], "hash": row["hash"]})
    return AuditRecord.model_validate(row)


def _content(row: dict[str, Any]) -> list[object]:
    return [row[name] for name in ("id", "time", "who", "origin", "action", "subject", "team", "detail")]
