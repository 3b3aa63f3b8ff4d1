"""Rows as a chain of hashes: a row that was changed, taken out or put in between shows.

Each row's hash covers its content and the hash of the row before.  The end of
the chain is kept in another table, so that rows missing at the end show as
well.  It is no signature: whoever may write every table can make the chain
anew, so note an end elsewhere where that matters.

Source: Haber and Stornetta, How to time-stamp a digital document, 1991.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime


def link(previous: str | None, content: Sequence[object]) -> str:
    """Return the hash of a row, SHA-256 as 64 hexadecimal digits.

    Args:
        previous: Hash of the row before; None or empty for the first.
        content: The row's values in a fixed order: plain JSON and moments, the same before and after they were stored.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_moment)
    return hashlib.sha256(f"{previous or ''}\n{text}".encode()).hexdigest()


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    raise TypeError(f"{value!r} has no place in a chain")
