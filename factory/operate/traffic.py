"""How variants are called: rates, faults and latencies of what the predictor's replicas have counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import reduce
from itertools import groupby
from operator import add
from typing import Literal

from pydantic import Field

from factory.ledger import Deployment, Ledger, Served, Span
from factory.ledger.moments import now
from factory.spec import Document

LATELY = timedelta(minutes=5)
"""Over which a rate is told; replicas tell what they counted every ten seconds."""

Window = Literal["hour", "day", "month"]
_WINDOWS: dict[Window, tuple[Span, timedelta]] = {
    "hour": ("minute", timedelta(hours=1)),
    "day": ("hour", timedelta(days=1)),
    "month": ("hour", timedelta(days=30)),
}


class Lately(Document):
    """How a variant was called over the last five minutes."""

    calls_a_minute: float = Field(ge=0)
    failed: float = Field(ge=0, le=1, description="Part of the calls that ended in a fault of the factory.")
    p50_ms: float | None = Field(description="What half of the calls took at most, from arrival to answer.")
    p95_ms: float | None = Field(description="What 95 % of the calls took at most.")


class TrafficPoint(Document):
    """Calls that one version answered within a minute or an hour."""

    began: datetime
    version: int
    calls: int
    failed: int = Field(description="In a fault of the factory; of a canary also those that the champion answered.")
    p50_ms: float | None
    p95_ms: float | None


class CanaryEvidence(Document):
    """What a canary has done beside its champion since it was given its share, in all replicas."""

    version: int
    since: datetime
    calls: int = Field(description="That it was to answer.")
    failed: int = Field(description="Of them those that the champion answered for it.")
    compared: int = Field(description="Answers that were set beside one of the champion's.")
    slower: int = Field(description="Of them those that took one and a half times as long, or more.")


class Agreement(Document):
    """How a shadow's answers compare with those of one version."""

    version: int = Field(description="Whose answers the callers got.")
    calls: int = Field(description="That both have answered.")
    rows: int = Field(description="Of these calls that were compared.")
    agreed: float | None = Field(description="Part of the rows with the same label; null of numbers.")
    difference: float | None = Field(description="How far two numbers lie apart in the mean; null of labels.")


class ShadowEvidence(Document):
    """How a shadow's answers compare with what callers got since it became that, in all replicas."""

    version: int
    since: datetime
    against: tuple[Agreement, ...]


class Traffic(Document):
    """How a variant was called."""

    name: str
    window: Window
    since: datetime = Field(description="When the window begins.")
    until: datetime = Field(description="When it ends: now.")
    span_s: int = Field(description="Seconds of each point.")
    points: tuple[TrafficPoint, ...] = Field(description="By version and time; a time without calls has none.")
    canary: CanaryEvidence | None = None
    shadow: ShadowEvidence | None = None


def lately(ledger: Ledger, names: Sequence[str]) -> dict[str, Lately]:
    """Return how variants were called over the last minutes; those that were not called are left out."""
    moment = now()
    since = (moment - LATELY).replace(second=0, microsecond=0)
    minutes = (moment - since).total_seconds() / 60
    rows = ledger.served("minute", since=since, names=names)
    by_name = {name: _together(those) for name, those in groupby(rows, key=lambda row: row.name)}
    return {
        name: Lately(
            calls_a_minute=total.calls / minutes,
            failed=total.failed / total.calls if total.calls else 0.0,
            p50_ms=total.quantile_ms(0.5),
            p95_ms=total.quantile_ms(0.95),
        )
        for name, total in by_name.items()
    }


def traffic(ledger: Ledger, name: str, window: Window) -> Traffic:
    """Return how a variant was called over a window, what its canary has done, and how its shadow's answers compare."""
    span, length = _WINDOWS[window]
    until = now()
    rows = ledger.served(span, since=until - length, names=[name])
    beside = {row.as_: row for row in ledger.deployment(name)}
    canary, shadow = beside.get("canary"), beside.get("shadow")
    evidence = None
    if canary is not None:
        counts = ledger.canary_counts(name, canary.version, canary.updated)
        evidence = CanaryEvidence(
            version=canary.version,
            since=canary.updated,
            calls=counts.calls,
            failed=counts.failed,
            compared=counts.compared,
            slower=counts.slower,
        )
    points = [
        TrafficPoint(
            began=row.began,
            version=row.version,
            calls=row.calls,
            failed=row.failed,
            p50_ms=row.quantile_ms(0.5),
            p95_ms=row.quantile_ms(0.95),
        )
        for row in rows
    ]
    return Traffic(
        name=name,
        window=window,
        since=until - length,
        until=until,
        span_s=60 if span == "minute" else 3600,
        points=tuple(points),
        canary=evidence,
        shadow=None if shadow is None else _shadow(ledger, shadow),
    )


def _shadow(ledger: Ledger, shadow: Deployment) -> ShadowEvidence:
    counts = ledger.shadow_counts(shadow.name, shadow.version, shadow.updated)
    against = [
        Agreement(
            version=version,
            calls=one.calls,
            rows=one.labelled + one.measured,
            agreed=one.agreed / one.labelled if one.labelled else None,
            difference=one.difference / one.measured if one.measured else None,
        )
        for version, one in counts.items()
    ]
    return ShadowEvidence(version=shadow.version, since=shadow.updated, against=tuple(against))


def _together(rows: Iterable[Served]) -> Served:
    return reduce(add, rows)
