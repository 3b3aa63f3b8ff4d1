"""What a column holds, and its values in one canonical form.

A table means the same whether it came as CSV, Parquet or a frame in memory:
numeric text becomes numbers, the words true and false become booleans, date
text becomes datetimes in UTC, and the usual spellings of "missing" become
missing.  Training, digest and prediction all go through the conversions here,
so that a value can never be read in two ways.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from factory.spec import NUMBERS, ColumnType

MISSING_TEXT = frozenset({"", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "<NA>", "NaT"})
"""Text that means missing, in CSV and everywhere else. "None" is not among them: it is often a level of its own."""

FORMATS = "datetime_formats"
"""Key in ``frame.attrs``: the strptime format of each date column that was parsed from text, kept for prediction."""

_SYMBOLS = "%$€£¥"
_WRITTEN_NUMBER = re.compile(
    rf"[-+]? ?[{_SYMBOLS}]? ?[-+]?(\d{{1,3}}(,\d{{3}})+|\d+)?(\.\d+)? ?[{_SYMBOLS}]?", re.ASCII
)
"""A number as people write it: 1,234.5 or $5 or 12 %. A comma is read between thousands only."""
_UNWRITTEN = str.maketrans("", "", f", {_SYMBOLS}")
_BOOLEAN_WORDS = {"true": 1.0, "false": 0.0}
_PARSEABLE = 0.95
"""Share of the rows that must parse before text counts as numbers or dates; the rest are stray marks like '?'."""
_WITHOUT_SPACES = re.compile("[\u0e00-\u0e7f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
"""A character of Thai, Khmer, Japanese or Chinese."""
_LONG = 30
"""Characters on average from which a string without spaces may be more than a name; digests are all of one length."""
_SAMPLE = 500
"""Distinct values looked at before a whole column is parsed."""
DISTINCT = 0.98
"""Share of the rows with a value of their own from which on these name the rows."""
FEW = 64
"""Up to so many values are read one by one, which is faster than pandas' set-up; also levels are looked up so."""
_NOT_A_TIME = np.datetime64("NaT", "us")
_ISO = "ISO8601"
_DATE_LIKE = re.compile(r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\s*\d{1,2}:\d{2}.*)?\s*$")
_DATE_FORMATS = tuple(
    f"{day}{clock}"
    for day in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%m/%d/%y", "%d/%m/%y")
    for clock in ("", " %H:%M", " %H:%M:%S")
)
_DIGITS = ("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S")
_MONTHS = ("%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%Y %b", "%Y-%m", "%Y/%m", "%m/%Y")
_NAMED_MONTHS = ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y")
_STATED_FORMATS = (
    *_DIGITS,
    *_MONTHS,
    *(f"{day}{clock}" for day in _NAMED_MONTHS for clock in ("", " %H:%M", " %H:%M:%S")),
)
"""Formats that are read only where a request says that a column holds dates: 'May-20' or 20201131 may be anything."""


def text_of(value: Any) -> str | None:
    """Return the canonical text of one value, None where it is missing.

    >>> text_of(3.0), text_of("3"), text_of(True), text_of(float("nan"))
    ('3', '3', 'True', None)
    """
    if isinstance(value, str):
        return None if value in MISSING_TEXT else str(value)
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return None
        return str(int(number)) if number.is_integer() else repr(number)
    text = str(value)
    return None if text in MISSING_TEXT else text


def factorize(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return codes int64 (n_rows,), -1 for missing, and the distinct canonical texts in order of appearance."""
    raw_codes, uniques = pd.factorize(values, use_na_sentinel=True)
    texts = [text_of(v) for v in uniques.tolist()]
    position: dict[str, int] = {}
    recode = np.fromiter(
        (-1 if t is None else position.setdefault(t, len(position)) for t in texts), np.int64, len(texts)
    )
    return np.append(recode, -1)[raw_codes], list(position)


def as_text(values: np.ndarray) -> np.ndarray:
    """Return canonical texts, object (n_rows,), None where missing."""
    codes, uniques = factorize(values)
    return np.asarray(np.array([*uniques, None], dtype=object)[codes], dtype=object)


def as_numeric(values: np.ndarray) -> np.ndarray:
    """Return float64 (n_rows,); what is not a number, true or false becomes NaN."""
    if values.dtype.kind in "fiub":
        return _plain_floats(values)
    if values.dtype.kind == "m":
        return np.asarray(values / np.timedelta64(1, "s"))
    if len(values) <= FEW:
        return np.array([_number(v) for v in values.tolist()], dtype=np.float64)
    codes, uniques = pd.factorize(values, use_na_sentinel=True)
    return np.append(_numbers(uniques), np.nan)[codes]


def _plain_floats(values: np.ndarray) -> np.ndarray:
    """Widen to float64; a float32 becomes the double with the same shortest decimal, as a CSV of it would be read."""
    if values.dtype.kind != "f" or values.dtype.itemsize >= 8 or len(values) <= FEW:
        return np.asarray(values, dtype=np.float64)
    uniques, inverse = np.unique(values, return_inverse=True)
    return np.asarray(uniques.astype(str), dtype=np.float64)[inverse]


def _number(value: Any) -> float:
    """Return a value as a number: 12 % is 12, $1,234.5 is 1234.5, true is 1."""
    if isinstance(value, str) and "_" in value:
        return math.nan  # 1_2 names something; Python reads it as twelve
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        if not isinstance(value, str):
            return math.nan
    value = value.strip()
    if _WRITTEN_NUMBER.fullmatch(value):
        try:
            return float(value.translate(_UNWRITTEN))
        except ValueError:  # a sign or a symbol alone
            return math.nan
    return _BOOLEAN_WORDS.get(value.lower(), math.nan)


def _numbers(uniques: Any) -> np.ndarray:
    return np.fromiter((_number(v) for v in uniques.tolist()), np.float64, len(uniques))


def as_datetime(values: np.ndarray, *, text_format: str | None = None) -> np.ndarray:
    """Return datetime64[us] (n_rows,) in UTC without a zone; what is no date becomes NaT.

    Args:
        values: Datetimes, or texts in ISO 8601 or in ``text_format``, which may be a number's digits, (n_rows,).
        text_format: strptime format of the texts, as found when the training data was read.
    """
    if values.dtype.kind == "M":
        return values.astype("M8[us]")
    if values.dtype.kind in "fiub":
        if text_format is None:
            return np.full(len(values), _NOT_A_TIME)
        values = as_text(values)
    if len(values) <= FEW and text_format is None:
        return _few_moments(values.tolist())
    codes, uniques = pd.factorize(values, use_na_sentinel=True)
    moments = _parse_dates(uniques, text_format) if text_format else _many_moments(uniques)
    return np.append(moments, _NOT_A_TIME)[codes]


def _few_moments(values: list[Any]) -> np.ndarray:
    """Read ISO 8601 one by one, which is faster; pandas reads more of it, and is asked about the rest."""
    moments = np.array([_moment(value) for value in values], dtype="M8[us]")
    rest = [i for i in np.flatnonzero(np.isnat(moments)) if not pd.isna(values[i])]
    if rest:
        moments[rest] = _parse_dates([values[i] for i in rest], _ISO)
    return moments


def _many_moments(texts: Any) -> np.ndarray:
    """Read ISO 8601 at once; the years that pandas' nanoseconds lack are read one by one, as of a few values."""
    moments = _parse_dates(texts, _ISO)
    rest = np.flatnonzero(np.isnat(moments))
    moments[rest] = np.array([_moment(texts[i]) for i in rest], dtype="M8[us]")
    return moments


def _moment(value: Any) -> np.datetime64:
    """One date as the standard library reads it; an offset is turned into UTC."""
    if pd.isna(value):
        return _NOT_A_TIME
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment, "us")
    except (OverflowError, ValueError):
        return _NOT_A_TIME


def _parse_dates(texts: Any, text_format: str) -> np.ndarray:
    values = pd.Series(np.asarray(texts, dtype=object))
    moments = pd.to_datetime(values, format=text_format, errors="coerce", utc=True)
    return np.asarray(moments.dt.tz_localize(None).to_numpy().astype("M8[us]"))


def date_format(texts: Sequence[str]) -> str | None:
    """Return the format that reads at least 95 % of the texts: ``ISO8601``, a strptime format, or None.

    Where month and day could be swapped, the format that reads more of them wins, month first on a draw. Months without
    a day, or by their English names, and digits alone, are read by :func:`stated_date_format` only.
    """
    sample = [t for t in texts if t not in MISSING_TEXT]
    if not sample or np.mean([bool(_DATE_LIKE.match(t)) for t in sample[:_SAMPLE]]) < _PARSEABLE:
        return None
    shares = {_ISO: _share_read(sample, _ISO)}
    if shares[_ISO] < _PARSEABLE:
        shares |= {f: _share_read(sample, f) for f in _DATE_FORMATS if _share_read(sample[:20], f) >= 0.5}
    best = max(shares, key=lambda f: shares[f])
    return best if shares[best] >= _PARSEABLE else None


def stated_date_format(texts: Sequence[str]) -> str | None:
    """Return the strptime format of texts that are said to be dates, or None: 'Jan 2020', '31 January 2020', '2020-01'.

    It is the one that reads most of the texts, at least 95 % of them.
    """
    sample = [t for t in texts if t not in MISSING_TEXT]
    if not sample:
        return None
    shares = {f: _share_read(sample, f) for f in _STATED_FORMATS if _share_read(sample[:20], f) > 0}
    best = max(shares, key=lambda f: shares[f], default="")
    return best if best and shares[best] >= _PARSEABLE else None


def _share_read(texts: Sequence[str], text_format: str) -> float:
    return float(np.mean(~np.isnat(_parse_dates(texts, text_format))))


def infer_type(series: pd.Series) -> ColumnType:
    """Return what a raw column holds; see :func:`clean` for the canonical values."""
    return _infer(series)[0]


def clean(series: pd.Series, wanted: ColumnType | None = None) -> tuple[pd.Series, ColumnType, str | None]:
    """Return a column in canonical form, its type, and its date format if it was parsed from text.

    Numbers are float64 (int64 where whole and complete), booleans bool (float64 where some are missing), datetimes
    datetime64[us] in UTC, everything else text with None for missing.
    """
    kind, text_format = (wanted, None) if wanted else _infer(series)
    values = series.to_numpy()
    if kind is ColumnType.DATETIME:
        if text_format is None and values.dtype.kind in "Ofiu":
            texts = _distinct_texts(values)
            text_format = date_format(texts) or stated_date_format(texts)
        if isinstance(series.dtype, pd.DatetimeTZDtype):
            values = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        kept = text_format if text_format != _ISO else None
        moments = as_datetime(values, text_format=kept)
        return pd.Series(moments, name=series.name), kind, kept
    if kind in NUMBERS:
        if kind is ColumnType.NUMERIC and values.dtype.kind in "iu" and values.dtype != np.uint64:
            return pd.Series(values.astype(np.int64), name=series.name), kind, None
        numbers = as_numeric(values)
        whole = kind is ColumnType.BOOLEAN and not np.isnan(numbers).any()
        return pd.Series(numbers.astype(bool) if whole else numbers, name=series.name), kind, None
    return pd.Series(as_text(values), name=series.name, dtype=object), kind, None


def _infer(series: pd.Series) -> tuple[ColumnType, str | None]:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        kind, text_format = _infer(pd.Series(series.to_numpy()))
        # Whoever made categories of numbers has said that they are no quantity, unless their order counts.
        named = kind is ColumnType.NUMERIC and not dtype.ordered
        return (ColumnType.CATEGORICAL, None) if named else (kind, text_format)
    if isinstance(dtype, pd.DatetimeTZDtype) or dtype.kind == "M":
        return ColumnType.DATETIME, None
    if pd.api.types.is_bool_dtype(dtype):
        return ColumnType.BOOLEAN, None
    if pd.api.types.is_numeric_dtype(dtype) or dtype.kind == "m":
        return ColumnType.NUMERIC, None
    return _infer_objects(series.to_numpy())


def _distinct_texts(values: np.ndarray) -> list[str]:
    return factorize(values)[1]


def _infer_objects(values: np.ndarray) -> tuple[ColumnType, str | None]:
    codes, texts = factorize(np.asarray(values, dtype=object))
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    n = int(counts.sum())
    if n == 0:
        return ColumnType.NUMERIC, None
    if len(texts) <= 6 and all(t.lower() in _BOOLEAN_WORDS for t in texts):
        return ColumnType.BOOLEAN, None
    numeric = ~np.isnan(_numbers(np.array(texts[:_SAMPLE], dtype=object)))
    if counts[:_SAMPLE][numeric].sum() >= 0.5 * counts[:_SAMPLE].sum():
        numeric = ~np.isnan(_numbers(np.array(texts, dtype=object)))
        if counts[numeric].sum() >= _PARSEABLE * n and _same_unit(texts):
            return ColumnType.NUMERIC, None
    if (text_format := date_format(texts)) is not None:
        return ColumnType.DATETIME, text_format
    return _infer_words(texts, n), None


def _same_unit(texts: list[str]) -> bool:
    """Whether at most one currency or percent sign occurs; 5 $ and 5 € are not the same number."""
    return sum(any(symbol in text for text in texts) for symbol in _SYMBOLS) <= 1


def _infer_words(texts: list[str], n: int) -> ColumnType:
    """Tell prose, identifiers and categories apart by words per value and by repetition.

    Four words and more on average is prose once it hardly repeats; short values that are (almost) all different name
    the row and say nothing about the next one.  In scripts without spaces two characters count as a word; long strings
    of any length, as molecules, sequences and addresses of pages, are read as prose is.
    """
    sample = texts[:: max(1, len(texts) // _SAMPLE)]
    words = float(np.mean([len(t.split()) + len(_WITHOUT_SPACES.findall(t)) / 2 for t in sample]))
    lengths = [len(t) for t in sample]
    share = len(texts) / n
    if words >= 4 and (len(texts) > 100 or (len(texts) > 20 and share > 0.5)):
        return ColumnType.TEXT
    if share >= DISTINCT and len(texts) > 10 and words < 4:
        if np.mean(lengths) >= _LONG and np.std(lengths) > 0.1 * np.mean(lengths):
            return ColumnType.TEXT
        return ColumnType.IDENTIFIER
    return ColumnType.CATEGORICAL


def column_digest(series: pd.Series) -> bytes:
    """Return SHA-256 of a canonical column's values; equal values give equal digests whatever the file format."""
    values = series.to_numpy()
    digest = hashlib.sha256()
    if values.dtype.kind == "M":
        digest.update(b"M" + values.astype("M8[us]").astype("<i8").tobytes())
    elif values.dtype.kind in "fiub":
        numbers = values.astype("<f8") + 0.0
        numbers[np.isnan(numbers)] = np.nan
        digest.update(b"N" + numbers.tobytes())
    else:
        codes, texts = factorize(values)
        digest.update(b"T" + codes.astype("<i8").tobytes())
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()
