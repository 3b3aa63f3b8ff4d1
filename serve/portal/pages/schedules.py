"""Schedules in words: a form's choices made into one, and one told as a person says it."""

from __future__ import annotations

import re
from datetime import time

from babel.dates import format_time, get_day_names
from babel.lists import format_list

from factory.errors import Detail, InvalidRequest
from factory.spec.schedule import Schedule
from serve.portal.pages.forms import Form, one
from serve.portal.pages.words import Words

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FIELDS = ("when", "minute", "time", "weekday", "n", "unit", "cron", "time_zone")
"""Of a form that says a schedule."""
USUAL = {"when": ["daily"], "minute": ["0"], "time": ["04:30"], "weekday": ["mon"], "n": ["6"], "unit": ["h"]}
"""What stands in them first."""
_TIME = re.compile(r"([0-2]?[0-9]):([0-5][0-9])(:00)?")
_HOURLY = re.compile(r"(\d{1,2}) \* \* \* \*")
_DAILY = re.compile(r"(\d{1,2}) (\d{1,2}) \* \* (\*|[a-z,-]+)")
_EVERY = re.compile(r"(\d+)\s*([mhd])")


def schedule_of(form: Form, words: Words) -> dict[str, str] | None:
    """Return the schedule that a form says, for the API to check; None where it is to run when asked to only.

    Raises:
        InvalidRequest: something of it is left open.
    """
    when, zone = one(form, "when"), one(form, "time_zone") or "UTC"
    if when == "asked":
        return None
    if when == "every":
        return {"every": f"{one(form, 'n')}{one(form, 'unit')}"}
    if when == "hourly":
        return {"cron": f"{one(form, 'minute') or 0} * * * *", "time_zone": zone}
    if when == "cron":
        if not one(form, "cron"):
            raise left_open("cron", words("Write the five fields, as 30 4 * * mon-fri."))
        return {"cron": one(form, "cron"), "time_zone": zone}
    match = _TIME.fullmatch(one(form, "time"))
    if match is None:
        raise left_open("time", words("Write a time of the day, as 04:30."))
    days = [day for day in WEEKDAYS if day in form.get("weekday", ())]
    if when == "weekly" and not days:
        raise left_open("weekday", words("Choose a day at least."))
    weekday = ",".join(days) if when == "weekly" and len(days) < len(WEEKDAYS) else "*"
    return {"cron": f"{int(match[2])} {int(match[1])} * * {weekday}", "time_zone": zone}


def left_open(field: str, problem: str) -> InvalidRequest:
    """Return the error of a field that has to be filled before the API can be asked."""
    return InvalidRequest(problem, hint="", details=[Detail(field, problem)])


def field_of(form: Form, part: str) -> str:
    """Return the field of a form that says a part of its schedule: of cron the one that the choice has shown."""
    shown = {"hourly": "minute", "daily": "time", "weekly": "time"}
    return {"cron": shown.get(one(form, "when"), "cron"), "every": "n"}.get(part, part)


def in_words(schedule: Schedule | None, words: Words) -> str:
    """Return when a schedule is due as a person says it; cron's own fields where they say more than that.

    >>> in_words(Schedule(cron="30 4 * * mon,fri"), Words.of("en"))
    'weekly on Mon and Fri at 4:30\\u202fAM'
    >>> in_words(Schedule(cron="30 4 * * mon-fri"), Words.of("de"))
    'wöchentlich am Mo. bis Fr. um 04:30'
    >>> in_words(Schedule(every="6h"), Words.of("en")), in_words(Schedule(cron="0 4 1 * *"), Words.of("en"))
    ('every 6 hours', '0 4 1 * *')
    """
    if schedule is None:
        return words("when asked to")
    if schedule.cron is None:
        return _span(schedule.every or "", words)
    cron = " ".join(schedule.cron.lower().split())
    if match := _HOURLY.fullmatch(cron):
        return words("hourly at minute {minute}", minute=int(match[1]))
    match = _DAILY.fullmatch(cron)
    if match is None:
        return schedule.cron
    at = format_time(time(int(match[2]), int(match[1])), "short", locale=words.locale)
    if match[3] == "*":
        return words("daily at {time}", time=at)
    named = get_day_names("abbreviated", locale=words.locale)
    spans = [[named[WEEKDAYS.index(day)] for day in span.split("-")] for span in match[3].split(",")]
    told = [span[0] if len(span) == 1 else words("{low} to {high}", low=span[0], high=span[1]) for span in spans]
    days = format_list(told, locale=words.locale)
    return words("weekly on {days} at {time}", days=days, time=at)


def _span(every: str, words: Words) -> str:
    match = _EVERY.fullmatch(every)
    assert match is not None
    n = int(match[1])
    if match[2] == "m":
        return words.many("every minute", "every {n} minutes", n)
    if match[2] == "h":
        return words.many("every hour", "every {n} hours", n)
    return words.many("every day", "every {n} days", n)


def weekdays(words: Words) -> list[tuple[str, str]]:
    """Return the days of a week, as cron and as people call them."""
    named = get_day_names("wide", locale=words.locale)
    return [(day, named[n]) for n, day in enumerate(WEEKDAYS)]
