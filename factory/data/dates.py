"""Datetimes as numbers: calendar parts, places on the circle of a day or a year, days between two dates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_YEAR_DAYS = 365.25
_WRAPS_DAYS = 300
"""Dates that span less than this hardly meet the turn of the year; the circle says no more than the day number."""


def _days(moments: np.ndarray) -> np.ndarray:
    return moments.astype("M8[D]").astype(np.int64)


def _hour(moments: np.ndarray) -> np.ndarray:
    return moments.astype("M8[h]").astype(np.int64) % 24


def _year_angle(moments: np.ndarray) -> np.ndarray:
    days = (moments.astype("M8[D]") - moments.astype("M8[Y]").astype("M8[D]")).astype(np.int64)
    return np.asarray(2 * np.pi * days / _YEAR_DAYS)


_PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "year": lambda m: m.astype("M8[Y]").astype(np.int64) + 1970,
    "month": lambda m: m.astype("M8[M]").astype(np.int64) % 12 + 1,
    "day": lambda m: (m.astype("M8[D]") - m.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1,
    "weekday": lambda m: (_days(m) + 3) % 7,
    "hour": _hour,
    "days": _days,
    "hour_sin": lambda m: np.sin(2 * np.pi * _hour(m) / 24),
    "hour_cos": lambda m: np.cos(2 * np.pi * _hour(m) / 24),
    "season_sin": lambda m: np.sin(_year_angle(m)),
    "season_cos": lambda m: np.cos(_year_angle(m)),
}
"""Parts of datetimes; weekday 0 is Monday, since day 0 (1970-01-01) was a Thursday.

A night or a winter is one interval on the circle, and two on the line.
"""


def varying_parts(moments: np.ndarray) -> tuple[str, ...]:
    """Return the names of the parts that vary over moments datetime64[us] (n_rows,), NaT left out."""
    known = moments[~np.isnat(moments)]
    if not len(known):
        return ()
    parts = [name for name, of in _PARTS.items() if np.ptp(of(known)) > 0]
    if np.ptp(_days(known)) < _WRAPS_DAYS:
        parts = [name for name in parts if not name.startswith("season_")]
    return tuple(parts)


def first_day(moments: np.ndarray) -> int:
    """Return the day number since 1970 of the earliest moment; 0 where there is none."""
    known = moments[~np.isnat(moments)]
    return int(_days(known).min()) if len(known) else 0


def calendar(moments: np.ndarray, parts: tuple[str, ...], *, reference: int) -> np.ndarray:
    """Return the parts, float32 (n_rows, n_parts), NaN where the moment is missing.

    Args:
        moments: datetime64[us] (n_rows,).
        parts: Names as :func:`varying_parts` gives them.
        reference: Day number from which ``days`` is counted.
    """
    missing = np.isnat(moments)
    known = np.where(missing, np.datetime64(0, "us"), moments)
    block = np.empty((len(moments), len(parts)), dtype=np.float32)
    for j, part in enumerate(parts):
        block[:, j] = _PARTS[part](known) - (reference if part == "days" else 0)
    block[missing] = np.nan
    return block


def on_circle(part: str) -> np.ndarray:
    """Return what a part on a circle is for each hour of a day, or each day of a leap year: float64 (n,)."""
    hours = np.datetime64("2000-01-01T00", "us") + np.arange(24) * np.timedelta64(1, "h")
    days = np.datetime64("2000-01-01", "us") + np.arange(366) * np.timedelta64(1, "D")
    return np.asarray(_PARTS[part](days if part.startswith("season_") else hours), dtype=np.float64)


def days_between(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Return days and fractions of days, float64 (n_rows,), NaN where either moment is missing."""
    gap = later - earlier
    days = gap.astype(np.int64) / 86_400e6
    return np.where(np.isnat(gap), np.nan, days)
