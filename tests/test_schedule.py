"""When something is due: cron's fields in a time zone, changes of the clock, and every so often."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from factory.spec import Schedule

START = "2026-11-30T12:00"  # a Monday


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(n: int, start: str = START, **fields: Any) -> list[str]:
    """Return the next times, in UTC."""
    schedule, at, found = Schedule.model_validate(fields), moment(start), []
    for _ in range(n):
        following = schedule.after(at)
        assert following is not None
        assert following > at
        at = following
        found.append(f"{at:%Y-%m-%dT%H:%M}")
    return found


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("* * * * *", ["2026-11-30T12:01", "2026-11-30T12:02"]),
        ("*/20 * * * *", ["2026-11-30T12:20", "2026-11-30T12:40", "2026-11-30T13:00"]),
        ("30 4 * * *", ["2026-12-01T04:30", "2026-12-02T04:30"]),
        ("0 12 * * *", ["2026-12-01T12:00"]),
        ("5,10 9-10 * * *", ["2026-12-01T09:05", "2026-12-01T09:10", "2026-12-01T10:05"]),
        ("0 8-18/5 * * mon-fri", ["2026-11-30T13:00", "2026-11-30T18:00", "2026-12-01T08:00"]),
        ("0 0 * * 7", ["2026-12-06T00:00"]),
        ("0 0 * * SUN", ["2026-12-06T00:00"]),
        ("0 0 1 jan,jul *", ["2027-01-01T00:00", "2027-07-01T00:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00"]),
        ("0 0 31 * *", ["2026-12-31T00:00", "2027-01-31T00:00", "2027-03-31T00:00"]),
        # Named both, the day of the month or the weekday is enough, as everywhere.
        ("0 0 13 * fri", ["2026-12-04T00:00", "2026-12-11T00:00", "2026-12-13T00:00"]),
        ("0 0 */2 * mon", ["2026-12-07T00:00", "2026-12-21T00:00"]),
    ],
)
def test_cron(cron: str, due: list[str]) -> None:
    assert times(len(due), cron=cron) == due


def test_times_are_of_their_zone_whatever_the_clock_is_set_to() -> None:
    berlin = {"cron": "30 4 * * *", "time_zone": "Europe/Berlin"}
    assert times(3, "2026-03-27T12:00", **berlin) == ["2026-03-28T03:30", "2026-03-29T02:30", "2026-03-30T02:30"]
    # Half past two does not come on 29 March, and comes twice on 25 October.
    left_out = {"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}
    assert times(2, "2026-03-28T12:00", **left_out) == ["2026-03-29T01:30", "2026-03-30T00:30"]
    assert times(2, "2026-10-24T12:00", **left_out) == ["2026-10-25T00:30", "2026-10-26T01:30"]
    for hours in ("*", "0-23", "*/1"):
        hourly = {"cron": f"30 {hours} * * *", "time_zone": "Europe/Berlin"}
        assert times(3, "2026-10-25T00:00", **hourly) == ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30"]
        assert times(3, "2026-03-29T00:00", **hourly) == ["2026-03-29T00:30", "2026-03-29T01:30", "2026-03-29T02:30"]


@pytest.mark.parametrize("zone", ["Europe/Bern", "../../etc/passwd"])
def test_a_time_zone_that_is_not_known_is_refused_where_it_is_declared_and_used_only(zone: str) -> None:
    """What was stored while it was known stays readable."""
    schedule = Schedule(cron="* * * * *", time_zone=zone)
    for use in (schedule.require_zone, lambda: schedule.after(moment(START))):
        with pytest.raises(ValueError, match="is not known; write one as 'Europe/Berlin'"):
            use()


def test_every_so_often() -> None:
    assert times(2, every="15m") == ["2026-11-30T12:15", "2026-11-30T12:30"]
    assert times(2, every="6h") == ["2026-11-30T18:00", "2026-12-01T00:00"]
    assert times(1, every="1d") == ["2026-12-01T00:00"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "give either cron"),
        ({"cron": "* * * * *", "every": "6h"}, "give either cron"),
        ({"cron": "* * * *"}, "has 4 fields; it takes 5"),
        ({"cron": "60 * * * *"}, "minute '60' is not from 0 to 59"),
        ({"cron": "* 24 * * *"}, "hour '24' is not from 0 to 23"),
        ({"cron": "* * 0 * *"}, "day '0' is not from 1 to 31"),
        ({"cron": "* * * foo *"}, "month 'foo' is not from 1 to 12"),
        ({"cron": "* * * * mon-sun"}, "weekday 'mon-sun' is empty: 0 to 6 begin with Sunday; write '1-7'"),
        ({"cron": "* * * * fri-sun"}, "write '5-7'"),
        ({"cron": "* * * * sat-mon"}, "write '6-6,0-1'"),
        ({"cron": "*/0 * * * *"}, "minute '*/0' is empty"),
        ({"cron": "1-2-3 * * * *"}, "is not as '*'"),
        ({"cron": "@daily"}, "has 1 fields"),
        ({"cron": "0 0 31 2 *"}, "there is no such day"),
        ({"every": "0m"}, "is not as '15m'"),
        ({"every": "1w"}, "is not as '15m'"),
        ({"every": "400d"}, "is not from 1m to 366d"),
    ],
)
def test_what_is_no_schedule_says_why(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("*", r"\*")):
        Schedule.model_validate(fields)
