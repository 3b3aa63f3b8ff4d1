"""What is answered: calls by version and time, and what counts against a canary, summed over all replicas.

Replicas add what they have counted every few seconds, so that the sums tell of
the whole fleet, whoever asks, and outlive a replica.  A minute is kept for
three hours, an hour for 35 days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import datetime, timedelta
from operator import add, attrgetter, sub
from typing import Literal, Self

from sqlalchemy import Connection, delete, select

from factory.ledger import schema
from factory.ledger.database import Database
from factory.ledger.engines import exclusive, insert_into
from factory.ledger.moments import now
from factory.spec import Document

Span = Literal["minute", "hour"]
SPANS: Mapping[Span, tuple[timedelta, timedelta]] = {
    "minute": (timedelta(minutes=1), timedelta(hours=3)),
    "hour": (timedelta(hours=1), timedelta(days=35)),
}
"""How long each is, and for how long it is kept."""
LATENCY_MS = schema.LATENCY_MS
"""Upper bounds of the groups of calls by the time that they took, from arrival to answer; the last has none."""
_SUMS = ("calls", "failed", *schema.LATENCY_COLUMNS)
_SHADOW_SUMS = ("calls", "labelled", "agreed", "measured", "difference")
_CANARY_SUMS = ("calls", "failed", "compared", "slower")


class Served(Document):
    """Calls of one version within a minute or an hour.

    Attributes:
        name: Of the variant.
        version: Who has answered.
        began: When the minute or hour did.
        calls: That it has answered, or was to.
        failed: Of them those that ended in a fault of the factory, or that the champion answered for a canary.
        latency: Calls by what they took, as :data:`LATENCY_MS` and above.
    """

    name: str
    version: int
    began: datetime
    calls: int = 0
    failed: int = 0
    latency: tuple[int, ...] = (0,) * len(schema.LATENCY_COLUMNS)

    def __add__(self, other: Self) -> Self:
        """Return both together, as if they were of one time."""
        latency = tuple(a + b for a, b in zip(self.latency, other.latency, strict=True))
        sums = {"calls": self.calls + other.calls, "failed": self.failed + other.failed, "latency": latency}
        return self.model_copy(update=sums)

    def quantile_ms(self, q: float) -> float | None:
        """Return what a part of the calls took at most, in ms; None where there was none.

        Within a group of calls times are taken as spread evenly.
        """
        wanted, below, low = q * sum(self.latency), 0, 0.0
        if not wanted:
            return None
        for high, n in zip(LATENCY_MS, self.latency, strict=False):
            if below + n >= wanted:
                return low + (high - low) * (wanted - below) / n
            below, low = below + n, high
        return low


@dataclass(frozen=True, slots=True)
class CanaryCounts:
    """What a canary has done beside its champion, since it was given its share.

    Attributes:
        calls: That it was to answer.
        failed: Of them those that the champion answered for it.
        compared: Answers that were set beside one of the champion's.
        slower: Of them those that took much longer.
    """

    calls: int = 0
    failed: int = 0
    compared: int = 0
    slower: int = 0

    def __add__(self, other: Self) -> Self:
        """Return the sums of both."""
        return type(self)(
            self.calls + other.calls,
            self.failed + other.failed,
            self.compared + other.compared,
            self.slower + other.slower,
        )


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """What the ledger knows of a canary.

    Attributes:
        counts: What it has done in all replicas.
        bets: What each of the bets against it is worth, in the order of whoever makes them; empty where none was made.
    """

    counts: CanaryCounts = CanaryCounts()
    bets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """How a shadow's answers compare with those of a version that callers got.

    Attributes:
        calls: That both have answered.
        labelled: Rows of them for which both gave a label.
        agreed: Of those the rows with the same label.
        measured: Rows for which both gave a number.
        difference: How far these numbers lie apart, added up.
    """

    calls: int = 0
    labelled: int = 0
    agreed: int = 0
    measured: int = 0
    difference: float = 0.0

    def __add__(self, other: Self) -> Self:
        """Return the sums of both."""
        return type(self)(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: Self) -> Self:
        """Return what is left without the other."""
        return type(self)(*map(sub, astuple(self), astuple(other)))


class ServedCalls(Database):
    """The part of the ledger that knows what was answered."""

    def add_served(self, counted: Sequence[Served]) -> None:
        """Add calls to the sums of their minutes and hours, and forget what is too old.

        Args:
            counted: Of one minute each; ``began`` may be any moment within it.
        """
        moment = now()
        with self._write() as connection:
            for span, (length, _) in SPANS.items():
                sums: dict[tuple[str, int, datetime], Served] = {}
                for one in counted:
                    began = _floor(one.began, length)
                    key = (one.name, one.version, began)
                    sums[key] = sums[key] + one if key in sums else one.model_copy(update={"began": began})
                # In one order, so that two replicas do not wait for each other.
                _add(connection, span, [total for _, total in sorted(sums.items())])
            for span, (_, kept) in SPANS.items():
                at = schema.served.c
                connection.execute(delete(schema.served).where(at.span == span, at.began < moment - kept))

    def served(self, span: Span, *, since: datetime, names: Sequence[str] | None = None) -> list[Served]:
        """Return calls since a moment by name, version and time.

        Args:
            span: By minutes or by hours.
            since: Those that began then or later.
            names: Of these variants; None of all.
        """
        at = schema.served.c
        query = select(schema.served).where(at.span == span, at.began >= since)
        if names is not None:
            query = query.where(at.name.in_(names))
        with self._read() as connection:
            rows = connection.execute(query.order_by(at.name, at.version, at.began)).all()
        return [
            Served(
                name=row.name,
                version=row.version,
                began=row.began,
                calls=row.calls,
                failed=row.failed,
                latency=tuple(getattr(row, column) for column in schema.LATENCY_COLUMNS),
            )
            for row in rows
        ]

    def add_canary(
        self,
        name: str,
        version: int,
        since: datetime,
        counted: CanaryCounts,
        *,
        bet: Callable[[CanaryRecord], tuple[float, ...]] = attrgetter("bets"),
    ) -> CanaryRecord:
        """Add to what a canary has done, and return what is known of it in the whole fleet.

        What replicas tell at once is added one after the other.

        Args:
            name: Of the variant.
            version: The canary.
            since: When it was given its share: what it did before, in another one, is no part of it.
            counted: What is added.
            bet: Returns what the bets are worth after it, from what was known before.
        """
        at = schema.canaries.c
        with self._write() as connection:
            exclusive(connection, f"canary of {name}")
            known = _canary(connection, name, version, since)
            record = CanaryRecord(known.counts + counted, bet(known))
            changed = asdict(record.counts) | {"bets": list(record.bets)}
            row = {"name": name, "version": version, "since": since} | changed
            insertion = insert_into(connection, schema.canaries).values(row)
            keys = ["name", "version", "since"]
            connection.execute(insertion.on_conflict_do_update(index_elements=keys, set_=changed))
            connection.execute(delete(schema.canaries).where(at.name == name, at.since < since))
        return record

    def add_shadow(self, name: str, version: int, since: datetime, against: int, counted: ShadowCounts) -> None:
        """Add to how a shadow's answers compare with a version's.

        Args:
            name: Of the variant.
            version: The shadow.
            since: When it became that: what it did before is no part of it, and forgotten.
            against: Version whose answers callers got.
            counted: What is added.
        """
        row = {"name": name, "version": version, "since": since, "against": against} | asdict(counted)
        at = schema.shadows.c
        with self._write() as connection:
            insertion = insert_into(connection, schema.shadows).values(row)
            added = {each: at[each] + insertion.excluded[each] for each in _SHADOW_SUMS}
            keys = ["name", "version", "since", "against"]
            connection.execute(insertion.on_conflict_do_update(index_elements=keys, set_=added))
            connection.execute(delete(schema.shadows).where(at.name == name, at.since < since))

    def shadow_counts(self, name: str, version: int, since: datetime) -> dict[int, ShadowCounts]:
        """Return how a shadow's answers compare, by the version whose answers callers got."""
        at = schema.shadows.c
        query = select(schema.shadows).where(at.name == name, at.version == version, at.since == since)
        with self._read() as connection:
            rows = connection.execute(query.order_by(at.against)).all()
        return {row.against: ShadowCounts(**{each: getattr(row, each) for each in _SHADOW_SUMS}) for row in rows}

    def canary_counts(self, name: str, version: int, since: datetime) -> CanaryCounts:
        """Return what a canary has done since it was given its share."""
        return self.canary_record(name, version, since).counts

    def canary_record(self, name: str, version: int, since: datetime) -> CanaryRecord:
        """Return what is known of a canary since it was given its share."""
        with self._read() as connection:
            return _canary(connection, name, version, since)


def _add(connection: Connection, span: Span, totals: Sequence[Served]) -> None:
    rows: list[dict[str, object]] = []
    for total in totals:
        latency = dict(zip(schema.LATENCY_COLUMNS, total.latency, strict=True))
        of: dict[str, object] = {"name": total.name, "version": total.version, "span": span, "began": total.began}
        rows.append({**of, "calls": total.calls, "failed": total.failed, **latency})
    if not rows:
        return
    insertion = insert_into(connection, schema.served)
    added = {each: schema.served.c[each] + insertion.excluded[each] for each in _SUMS}
    keys = ["span", "name", "version", "began"]
    connection.execute(insertion.on_conflict_do_update(index_elements=keys, set_=added), rows)


def _canary(connection: Connection, name: str, version: int, since: datetime) -> CanaryRecord:
    at = schema.canaries.c
    this = (at.name == name, at.version == version, at.since == since)
    row = connection.execute(select(schema.canaries).where(*this)).one_or_none()
    if row is None:
        return CanaryRecord()
    return CanaryRecord(CanaryCounts(**{each: getattr(row, each) for each in _CANARY_SUMS}), tuple(row.bets))


def _floor(moment: datetime, length: timedelta) -> datetime:
    """Return the beginning of a minute or hour, in UTC."""
    seconds = int(length.total_seconds())
    return datetime.fromtimestamp(int(moment.timestamp()) // seconds * seconds, tz=moment.tzinfo)
