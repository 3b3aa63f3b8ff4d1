"""Words and numbers in the reader's language: gettext's catalogues, and Babel's formats.

Catalogues are read from their ``.po`` files when a language is first used, so
there is nothing to build.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo, available_timezones

from babel import Locale
from babel.dates import format_date, format_skeleton, format_time, format_timedelta
from babel.lists import format_list
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import (
    UnknownCurrencyError,
    format_currency,
    format_decimal,
    format_percent,
    get_decimal_symbol,
    get_group_symbol,
    validate_currency,
)
from babel.support import NullTranslations, Translations
from babel.units import format_unit

LANGUAGES = ("en", "de")
"""The first one is that of the messages themselves."""
UNKNOWN = "\N{EN DASH}"
"""Stands where there is no number."""
MINUTES_FROM_S, RECENT_S = 50, 3000
"""Younger moments are told by how many seconds, or minutes, ago they were, as the page's script does."""
SIGNIFICANT = 4
"""Digits of a score: its interval is seldom narrower."""


@dataclass(frozen=True)
class Words:
    """A language: its words, and how it writes numbers and times.

    Args:
        language: One of :data:`LANGUAGES`.
        catalogue: Its translations.
    """

    language: str
    catalogue: NullTranslations = field(repr=False)
    locale: Locale = field(repr=False)

    @classmethod
    def of(cls, accepted: str) -> Words:
        """Return those of the best language of an ``Accept-Language`` header.

        >>> Words.of("fr-CH, de-AT;q=0.9, en;q=0.8").language
        'de'
        >>> Words.of("").language
        'en'
        """
        return _words(best_language(accepted))

    def __call__(self, message: str, /, **values: object) -> str:
        """Return a message with its values put in, as ``Wait for {n}``."""
        translated = self.catalogue.gettext(message)
        return translated.format(**values) if values else translated

    def many(self, one: str, several: str, n: float, /) -> str:
        """Return the message for a number of things; ``{n}`` in it is the number."""
        return self.catalogue.ngettext(one, several, 1 if n == 1 else 2).format(n=self.number(n))

    def number(self, value: float, digits: int | None = None) -> str:
        """Return a number with the language's separators, with as many digits after the point at most.

        >>> Words.of("de").number(1234567.891, 2)
        '1.234.567,89'
        """
        if not math.isfinite(value):
            return UNKNOWN
        pattern = "#,##0" if digits == 0 else "#,##0." + "#" * (3 if digits is None else digits)
        return str(format_decimal(value, format=pattern, locale=self.locale))

    def typed(self, value: float) -> str:
        """Return a number as one types it, with all its digits; :meth:`read` reads it.

        >>> Words.of("de").typed(14400), Words.of("de").typed(1.125)
        ('14400', '1,125')
        """
        text = str(value) if isinstance(value, int) else f"{value:.15g}"
        return text.replace(".", get_decimal_symbol(self.locale))

    def read(self, text: str) -> int | float | None:
        """Return the number that was typed as the language writes it; None where it is none, or may be another one.

        Thousands may be grouped. The other language's decimal sign is taken where it can group nothing.

        >>> [Words.of("en").read(text) for text in ("14,400", "14.4", "12,5", "1,4,400", "1.400,5")]
        [14400, 14.4, 12.5, None, None]
        >>> [Words.of("de").read(text) for text in ("14.400", "14,4", "12.5", "0.125", "1.400,5")]
        [14400, 14.4, 12.5, 0.125, 1400.5]
        """
        sign, mark = get_decimal_symbol(self.locale), get_group_symbol(self.locale)
        if re.fullmatch(rf"[-+]?[1-9]\d{{0,2}}(\{mark}\d{{3}})+(\{sign}\d+)?|[-+]?[1-9]\d{{0,2}}([\s']\d{{3}})+", text):
            text = re.sub(rf"[\{mark}\s']", "", text)
        elif re.fullmatch(rf"[-+]?(0?\{mark}\d+|\d+\{mark}\d{{1,2}})", text):
            sign = mark
        if re.fullmatch(r"[-+]?\d{1,18}", text):
            return int(text)
        if not re.fullmatch(rf"[-+]?(\d+\{sign}?\d*|\{sign}\d+)([eE][-+]?\d+)?", text):
            return None
        found = float(text.replace(sign, "."))
        return found if math.isfinite(found) else None

    def score(self, value: float | None) -> str:
        """Return a score with the digits that mean something.

        >>> Words.of("en").score(-0.034567), Words.of("en").score(-43123.456)
        ('-0.03457', '-43,123')
        """
        if value is None or not math.isfinite(value):
            return UNKNOWN
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else -_zeros(value)
        digits = max(SIGNIFICANT - whole, 0)
        shown = round(value, digits) + 0.0
        pattern = "#,##0" + ("." + "0" * digits if digits else "")
        return str(format_decimal(shown, format=pattern, locale=self.locale))

    def percent(self, share: float, digits: int = 0) -> str:
        """Return a share in percent."""
        unit = "\N{NO-BREAK SPACE}%" if self.language == "de" else "%"
        pattern = "#,##0" + ("." + "#" * digits if digits else "") + unit
        return str(format_percent(share, format=pattern, locale=self.locale))

    def money(self, amount: float, currency: str) -> str:
        """Return an amount of money; small ones with more digits than coins have."""
        if amount and abs(amount) < 1:
            return f"{self.number(amount, 4)} {currency}"
        try:
            validate_currency(currency)
            return str(format_currency(amount, currency, locale=self.locale))
        except UnknownCurrencyError:
            return f"{self.number(amount, 2)} {currency}"

    def seconds(self, seconds: float | None) -> str:
        """Return a duration in the one or two largest units that it has.

        >>> [Words.of("en").seconds(s) for s in (0.26, 42, 75, 3600, 90061)]
        ['0.3 sec', '42 sec', '1 min, 15 sec', '1 hr', '1 day, 1 hr']
        """
        if seconds is None or not math.isfinite(seconds):
            return UNKNOWN
        if seconds < 10:
            return str(format_unit(round(seconds, 1), "duration-second", length="short", locale=self.locale))
        left = round(seconds)
        parts: list[tuple[str, int]] = []
        for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
            n, left = divmod(left, size)
            if n or parts:
                parts.append((unit, n))
        shown = [format_unit(n, f"duration-{unit}", length="short", locale=self.locale) for unit, n in parts[:2] if n]
        return str(format_list(shown, style="unit", locale=self.locale))

    def milliseconds(self, ms: float | None) -> str:
        """Return a short duration.

        >>> [Words.of("en").milliseconds(ms) for ms in (0.347, 42.1, 1520)]
        ['0.3 ms', '42 ms', '1,520 ms']
        """
        return UNKNOWN if ms is None else f"{self.number(ms, 1 if ms < 10 else 0)} ms"

    def size(self, n_bytes: float) -> str:
        """Return a size in bytes, kB, MB or GB.

        >>> Words.of("en").size(1_234_567)
        '1.2 MB'
        """
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if n_bytes >= size:
                return f"{self.number(n_bytes / size, 1)} {unit}"
        return f"{self.number(n_bytes)} B"

    def moment(self, moment: datetime, zone: ZoneInfo | None = None) -> str:
        """Return a moment as the page's script tells it: how long ago, at what time of the day, or of which day.

        Args:
            moment: With its time zone.
            zone: Of the reader; without it the text is in UTC, and says so.
        """
        now, there = datetime.now(UTC), moment.astimezone(zone or UTC)
        past = now - moment
        age_s = abs(past.total_seconds())
        if age_s < MINUTES_FROM_S:
            return format_timedelta(-past, add_direction=True, threshold=1, locale=self.locale)
        if age_s < RECENT_S:
            minutes = timedelta(minutes=round(past / timedelta(minutes=1)))
            return format_timedelta(-minutes, add_direction=True, threshold=1, locale=self.locale)
        time = format_time(there, "short", locale=self.locale)
        today = there.date() == now.astimezone(zone or UTC).date()
        shown = time if today else f"{format_date(there, 'medium', locale=self.locale)}, {time}"
        return shown if zone else f"{shown} UTC"

    def at(self, moment: datetime, zone: ZoneInfo | None = None) -> str:
        """Return a moment to come with its day of the week; in UTC, and saying so, without the reader's zone.

        >>> Words.of("de").at(datetime(2026, 12, 1, 3, 30, tzinfo=UTC), ZoneInfo("Europe/Berlin"))
        'Di., 1. Dez. 2026, 04:30'
        """
        there = moment.astimezone(zone or UTC)
        day, time = (
            format_skeleton("yMMMEd", there, locale=self.locale),
            format_time(there, "short", locale=self.locale),
        )
        return f"{day}, {time}" if zone else f"{day}, {time} UTC"


def _zeros(value: float) -> int:
    """Return how many zeros follow the point before the first other digit, so that these do not count."""
    return 0 if value == 0 else min(max(-math.floor(math.log10(abs(value))) - 1, 0), 8)


def best_language(accepted: str) -> str:
    """Return the one of :data:`LANGUAGES` that an ``Accept-Language`` header likes best (RFC 9110, 12.5.4)."""
    liked = []
    for place, part in enumerate(accepted[:500].split(",")):
        tag, _, parameter = part.strip().lower().partition(";")
        try:
            weight = float(parameter.strip().removeprefix("q=")) if parameter else 1.0
        except ValueError:
            continue
        liked.append((-weight, place, tag.strip().partition("-")[0]))
    for weight, _, language in sorted(liked):
        if language in LANGUAGES and weight < 0:
            return language
    return LANGUAGES[0]


def zone_of(name: str) -> ZoneInfo | None:
    """Return the time zone that a browser names, as ``Europe/Berlin``; None where there is none of that name."""
    return ZoneInfo(name) if name in _zones() else None


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


@cache
def _words(language: str) -> Words:
    return Words(language, _catalogue(language), Locale.parse(language))


def _catalogue(language: str) -> NullTranslations:
    file = resources.files("serve.portal") / "locale" / language / "LC_MESSAGES" / "portal.po"
    if not file.is_file():
        return NullTranslations()
    with file.open("rb") as source:
        catalogue = read_po(source, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return Translations(compiled)
