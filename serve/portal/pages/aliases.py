"""The alias ledger as a drawing: which version was champion, or challenger, and when; a lane for each alias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from factory.ledger import AliasChange

LANES = ("champion", "challenger")
MOST = 60
"""Spans that are drawn of a lane, the latest; the list beneath has all."""
NARROWEST = 0.8
"""Width that can still be seen and met with a pointer, in percent of the drawing."""
LETTER = 2.6
"""Width of a digit on a phone, in percent of the drawing."""


@dataclass(frozen=True)
class Span:
    """A version while an alias pointed at it.

    Attributes:
        version: Which one.
        since: From when.
        until: Until when; None where it still is.
        who: Made it so.
        why: The reason.
        x: Of the left edge, in percent of the drawing.
        width: In percent of the drawing.
    """

    version: int
    since: datetime
    until: datetime | None
    who: str
    why: str
    x: float = 0.0
    width: float = 0.0

    @property
    def named(self) -> bool:
        """Whether the version's number has room in it."""
        return self.width >= LETTER * (len(str(self.version)) + 1)


@dataclass(frozen=True)
class Lanes:
    """The drawing: its lanes by alias, and the moments of its left and right edges."""

    spans: dict[str, tuple[Span, ...]]
    since: datetime
    until: datetime


def spans_of(history: Sequence[AliasChange], alias: str = "champion") -> list[Span]:
    """Return when which version had an alias, the latest first."""
    spans: list[Span] = []
    open_since: AliasChange | None = None
    for change in (*(one for one in history if one.alias == alias), None):
        if open_since is not None and open_since.version is not None:
            until = None if change is None else change.time
            spans.append(Span(open_since.version, open_since.time, until, open_since.who, open_since.why))
        open_since = change
    return spans[::-1]


def before(line: Sequence[Span]) -> Span | None:
    """Return the champion that a rollback brings back, as the API finds it; None where there was no other."""
    return next((one for one in line if one.version != line[0].version), None)


def lanes(history: Sequence[AliasChange], *, now: datetime) -> Lanes | None:
    """Return the drawing of a name's aliases from the first change until now; None where there was none."""
    found = {alias: spans_of(history, alias)[:MOST] for alias in LANES}
    begin = min((one.since for spans in found.values() for one in spans), default=None)
    if begin is None:
        return None
    whole_s = max((now - begin).total_seconds(), 1e-3)

    def placed(span: Span) -> Span:
        x = 100 * (span.since - begin).total_seconds() / whole_s
        width = 100 * ((span.until or now) - span.since).total_seconds() / whole_s
        wide = max(width, NARROWEST)
        at = round(min(x, 100 - wide), 2)
        return Span(span.version, span.since, span.until, span.who, span.why, at, round(wide, 2))

    drawn = {alias: tuple(map(placed, spans)) for alias, spans in found.items() if spans}
    return Lanes(drawn, begin, now)
