"""Figures for monitoring that no other question needs: how attempts ended, and how long requests waited for theirs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select

from factory.ledger import Ledger, schema


class Ends(NamedTuple):
    """How many attempts of a team ended with an outcome."""

    team: str
    outcome: str
    n: int


class Admission(NamedTuple):
    """A request's first admission."""

    team: str
    at: datetime
    waited_s: float


def ends(ledger: Ledger) -> list[Ends]:
    """Return how attempts ended, by team and outcome; these numbers only grow."""
    at = schema.attempts.c
    query = select(at.team, at.outcome, func.count()).where(at.outcome.is_not(None)).group_by(at.team, at.outcome)
    with ledger._read() as connection:
        return [Ends(*row) for row in connection.execute(query.order_by(at.team, at.outcome))]


def admissions(ledger: Ledger, *, after: datetime) -> Iterator[Admission]:
    """Yield the requests that were admitted for the first time after a moment, in order, and how long they waited."""
    at, of = schema.attempts.c, schema.requests.c
    query = (
        select(at.team, at.admitted_at, of.created)
        .join_from(schema.attempts, schema.requests, at.request_id == of.id)
        .where(at.number == 1, at.admitted_at > after)
        .order_by(at.admitted_at)
    )
    with ledger._read() as connection:
        rows = connection.execute(query).all()
    for team, admitted, created in rows:
        yield Admission(team, admitted, max((admitted - created).total_seconds(), 0.0))
