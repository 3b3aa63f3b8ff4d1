"""What teams have used, by calendar month in UTC: trials, and resources held.

The sums are kept as trials and attempts end, within the same transaction, so
that admission reads a row for each team instead of a month of trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection, func, or_, select

from factory.errors import Detail, InvalidRequest
from factory.ledger import schema
from factory.ledger.database import Database
from factory.ledger.engines import insert_into
from factory.ledger.moments import now
from factory.spec import Document

_SUMS = ("trials", "trial_s", "cpu_s", "gpu_s", "gb_s")


class Usage(Document):
    """What a team used in a month.

    Attributes:
        month: For example ``2026-11``, in UTC.
        trials: That finished.
        trial_s: Seconds that they took.
        cpu_s: CPUs held by attempts, times seconds; ``gpu_s`` and ``gb_s`` likewise.
    """

    month: str
    team: str
    trials: int = 0
    trial_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    gb_s: float = 0.0


class VariantUsage(Usage):
    """What the requests for one variant used in a month; its trials are those that finished in it."""

    variant: str
    requests: int = 0


class Usages(Database):
    """The part of the ledger that knows what was used."""

    def usage(self, month: str | None = None) -> list[Usage]:
        """Return what each team used in a month, the present one if not given; ordered by team.

        What runs now counts up to now.

        Raises:
            InvalidRequest: the month is not written as ``2026-11``.
        """
        moment = now()
        month = f"{moment:%Y-%m}" if month is None else _checked_month(month)
        used, held = schema.usage.c, schema.attempts.c
        with self._read() as connection:
            rows = connection.execute(select(schema.usage).where(used.month == month)).all()
            running = connection.execute(select(schema.attempts).where(held.ended_at.is_(None))).all()
        sums = {row.team: {name: getattr(row, name) for name in _SUMS} for row in rows}
        for attempt in running:
            for during, seconds in seconds_by_month(attempt.admitted_at, moment):
                if during == month:
                    mine = sums.setdefault(attempt.team, dict.fromkeys(_SUMS, 0))
                    for name, amount in held_for(seconds, attempt.cpus, attempt.gpus, attempt.memory_gb).items():
                        mine[name] += amount
        return [Usage(month=month, team=team, **mine) for team, mine in sorted(sums.items())]

    def trials_ever(self) -> dict[str, tuple[int, float]]:
        """Return how many trials of each team have finished since the ledger was made, and their seconds."""
        at = schema.usage.c
        query = select(at.team, func.sum(at.trials), func.sum(at.trial_s)).group_by(at.team).order_by(at.team)
        with self._read() as connection:
            return {team: (int(n), float(seconds)) for team, n, seconds in connection.execute(query)}

    def usage_by_variant(self, team: str, month: str | None = None) -> list[VariantUsage]:
        """Return what each variant of a team used in a month, the present one if not given; ordered by name.

        Segments count to the variant that their request is for. What runs now counts up to now.

        Raises:
            InvalidRequest: the month is not written as ``2026-11``.
        """
        moment = now()
        month = f"{moment:%Y-%m}" if month is None else _checked_month(month)
        began, ended = month_bounds(month)
        held, of, tried = schema.attempts.c, schema.requests.c, schema.trials.c
        attempts = (
            select(of.variant, schema.attempts)
            .join_from(schema.attempts, schema.requests, held.request_id == of.id)
            .where(held.team == team, held.admitted_at < ended, or_(held.ended_at.is_(None), held.ended_at >= began))
        )
        trials = (
            select(of.variant, func.count(), func.sum(tried.cost_s))
            .join_from(schema.requests, schema.trials, tried.request_id == of.id)
            .where(of.team == team, of.updated >= began)
            .where(tried.finished, tried.recorded >= began, tried.recorded < ended)
            .group_by(of.variant)
        )
        with self._read() as connection:
            worked = connection.execute(attempts).all()
            counted = {name: (n, cost_s) for name, n, cost_s in connection.execute(trials)}
        sums = {name: dict.fromkeys(_SUMS, 0.0) for name in {row.variant for row in worked} | counted.keys()}
        requests: dict[str, set[str]] = {name: set() for name in sums}
        for attempt in worked:
            requests[attempt.variant].add(attempt.request_id)
            for during, seconds in seconds_by_month(attempt.admitted_at, attempt.ended_at or moment):
                if during == month:
                    amounts = held_for(seconds, attempt.cpus, attempt.gpus, attempt.memory_gb)
                    for name, amount in amounts.items():
                        sums[attempt.variant][name] += amount
        for variant, (n, cost_s) in counted.items():
            sums[variant] |= {"trials": n, "trial_s": cost_s}
        return [
            VariantUsage(month=month, team=team, variant=name, requests=len(requests[name]), **sums[name])
            for name in sorted(sums)
        ]


def add_usage(connection: Connection, team: str, month: str, **amounts: float) -> None:
    """Add to the sums of a team and month, within the transaction of what ended."""
    row = {"month": month, "team": team} | dict.fromkeys(_SUMS, 0) | amounts
    insertion = insert_into(connection, schema.usage).values(row)
    added = {name: schema.usage.c[name] + insertion.excluded[name] for name in amounts}
    connection.execute(insertion.on_conflict_do_update(index_elements=["month", "team"], set_=added))


def held_for(seconds: float, cpus: float, gpus: float, memory_gb: float | None) -> dict[str, float]:
    """Return resources times seconds, by the names of the sums."""
    return {"cpu_s": cpus * seconds, "gpu_s": gpus * seconds, "gb_s": (memory_gb or 0.0) * seconds}


def seconds_by_month(begin: datetime, end: datetime) -> Iterator[tuple[str, float]]:
    """Yield the months between two moments with the seconds in each; none where the clock was set back in between.

    >>> list(seconds_by_month(datetime(2026, 12, 31, 23, 59, tzinfo=UTC), datetime(2027, 1, 1, 0, 2, tzinfo=UTC)))
    [('2026-12', 60.0), ('2027-01', 120.0)]
    """
    begin, end = begin.astimezone(UTC), end.astimezone(UTC)
    while begin < end:
        month = f"{begin:%Y-%m}"
        _, following = month_bounds(month)
        yield month, (min(end, following) - begin).total_seconds()
        begin = following


def month_bounds(month: str) -> tuple[datetime, datetime]:
    """Return the first moment of a month in UTC, and that of the next one.

    >>> [one.date().isoformat() for one in month_bounds("2026-12")]
    ['2026-12-01', '2027-01-01']
    """
    began = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    years, following = divmod(began.month, 12)
    return began, began.replace(year=began.year + years, month=following + 1)


def _checked_month(month: str) -> str:
    try:
        datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidRequest(
            f"month: {month[:20]!r} is no month.",
            hint="Write it as 2026-11.",
            details=[Detail("month", "is not written as YYYY-MM")],
        ) from None
    return month
