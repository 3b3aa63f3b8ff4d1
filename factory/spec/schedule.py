"""When something is due again and again: cron's five fields in a time zone, or every so many minutes, hours or days.

Whatever happens by the clock has its moments from here, batches as well as
triggers, so that the same words mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Self
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from factory.spec.document import Document

SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOOKED_AT = 366 * 8 + 10
"""Days in which a time is looked for: 29 February may be eight years away."""
_MONTHS = {"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6} | {
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12
}  # fmt: skip
_WEEKDAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_EVERY = re.compile(r"([1-9][0-9]{0,5})\s*(m|h|d)")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_PART = re.compile(r"(?:(\*)|([0-9a-z]{1,3})(?:-([0-9a-z]{1,3}))?)(?:/([0-9]{1,2}))?")


class Schedule(Document):
    """When something is due; ``cron`` or ``every``."""

    cron: str | None = Field(
        None,
        max_length=200,
        title="Times",
        description="Minute, hour, day, month and weekday as cron writes them: '30 4 * * mon-fri' is half past four.",
    )
    time_zone: str = Field("UTC", max_length=64, title="Time zone", description="That cron's times are of.")
    every: str | None = Field(
        None, max_length=16, title="Every", description="Instead of times: as '15m', '6h' or '1d', counted from 1970."
    )

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either cron, as '30 4 * * *', or every, as '6h'")
        if self.every is not None and not SHORTEST <= _span(self.every) <= LONGEST:
            raise ValueError(f"every: {self.every!r} is not from 1m to 366d")
        if self.cron is not None and _fields(self.cron).after(_EPOCH, UTC) is None:
            raise ValueError(f"cron: there is no such day as in {self.cron!r}")
        return self

    def require_zone(self) -> None:
        """Refuse a time zone that this machine does not know: what is stored stays readable where one is gone.

        Raises:
            ValueError: it does not.
        """
        _zone(self.time_zone)

    def after(self, moment: datetime) -> datetime | None:
        """Return when it is due next, later than a moment; None where it never is.

        A time that a change of the clock leaves out counts as the moment that comes instead of it; one that comes
        twice counts once, unless it is of every hour.

        Raises:
            ValueError: the time zone is not known.
        """
        if self.every is not None:
            span = _span(self.every)
            return _EPOCH + ((moment - _EPOCH) // span + 1) * span
        assert self.cron is not None
        return _fields(self.cron).after(moment, _zone(self.time_zone))

    def times(self, moment: datetime) -> Iterator[datetime]:
        """Yield when it is due, from the first time after a moment on."""
        due = self.after(moment)
        while due is not None:
            yield due
            due = self.after(due)

    @property
    def sentence(self) -> str:
        """It, as a person reads it."""
        return f"every {self.every}" if self.cron is None else f"{self.cron} ({self.time_zone})"


@dataclass(frozen=True)
class _Fields:
    """Cron's five fields, each as the values that it allows.

    Attributes:
        either: Whether days of the month and weekdays are both named: then one of them is enough.
        all_hours: Whether every hour is allowed.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    all_hours: bool

    def after(self, moment: datetime, zone: tzinfo) -> datetime | None:
        first = moment.astimezone(zone).date()
        for n in range(_LOOKED_AT):
            day = first + timedelta(days=n)
            if self._is_due(day):
                later = [one for one in self._of(day, zone) if one > moment]
                if later:
                    return min(later)
        return None

    def _is_due(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (by_day or by_weekday) if self.either else (by_day and by_weekday)

    def _of(self, day: date, zone: tzinfo) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                local = datetime.combine(day, time(hour, minute), zone)
                yield local.astimezone(UTC)
                if self.all_hours:
                    yield local.replace(fold=1).astimezone(UTC)


@lru_cache(1_000)  # of texts that callers send
def _fields(cron: str) -> _Fields:
    words = cron.lower().split()
    if len(words) != 5:
        raise ValueError(f"cron: {cron!r} has {len(words)} fields; it takes 5: minute hour day month weekday")
    minute, hour, day, month, weekday = words
    hours = _values("hour", hour, 0, 23)
    return _Fields(
        minutes=tuple(sorted(_values("minute", minute, 0, 59))),
        hours=tuple(sorted(hours)),
        days=_values("day", day, 1, 31),
        months=_values("month", month, 1, 12, _MONTHS),
        weekdays=frozenset(value % 7 for value in _values("weekday", weekday, 0, 7, _WEEKDAYS)),
        either=not day.startswith("*") and not weekday.startswith("*"),
        all_hours=len(hours) == 24,
    )


def _values(field: str, text: str, low: int, high: int, names: Mapping[str, int] | None = None) -> frozenset[int]:
    """Return the values that a field allows."""
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"cron: {field} {part!r} is not as '*', '5', '1-5', '*/10' or several with commas")
        star, first, last, step = match.groups()
        if star:
            begin, end = low, high
        else:
            begin = _value(field, first, low, high, names or {})
            end = _value(field, last, low, high, names or {}) if last else (high if step else begin)
        every = int(step or 1)
        if field == "weekday" and last and begin > end:
            instead = f"{begin}-7" if end == 0 else f"0-{end}" if begin == 7 else f"{begin}-6,0-{end}"
            raise ValueError(f"cron: weekday {part!r} is empty: 0 to 6 begin with Sunday; write {instead!r}")
        if every < 1 or begin > end:
            raise ValueError(f"cron: {field} {part!r} is empty")
        found.update(range(begin, end + 1, every))
    return frozenset(found)


def _value(field: str, text: str, low: int, high: int, names: Mapping[str, int]) -> int:
    value = names.get(text, int(text) if text.isdecimal() else -1)
    if not low <= value <= high:
        raise ValueError(f"cron: {field} {text!r} is not from {low} to {high}")
    return value


def _span(every: str) -> timedelta:
    match = _EVERY.fullmatch(every.strip())
    if match is None:
        raise ValueError(f"every: {every!r} is not as '15m', '6h' or '1d'")
    return int(match[1]) * _UNITS[match[2]]


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # unknown, no name of a zone, or a folder of them
        raise ValueError(f"time_zone: {name!r} is not known; write one as 'Europe/Berlin', or 'UTC'") from error
