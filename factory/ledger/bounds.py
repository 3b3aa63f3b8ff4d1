"""Text on its way into a table: names that must fit are refused, messages are cut.

PostgreSQL refuses what is too long for its column, NUL and half of a surrogate
pair, SQLite takes them all.  Both get what both can keep.
"""

from __future__ import annotations

from factory.errors import Detail, InvalidRequest

MESSAGE = 10_000
"""Longest message of an event or attempt; a traceback of some hundred lines fits."""


def bounded(field: str, value: str, most: int, *, least: int = 1) -> str:
    """Return a name as it is.

    Raises:
        InvalidRequest: it has fewer or more characters than allowed, or one that cannot be printed.
    """
    if least <= len(value) <= most and (value.isprintable() or not value):
        return value
    shown = repr(value if len(value) <= 80 else value[:77] + "...")
    raise InvalidRequest(
        f"{field}: {shown} has {len(value)} characters; {least} to {most} that can be printed are allowed.",
        hint=f"Give a {field} that fits.",
        details=[Detail(field, f"{len(value)} characters")],
    )


def cleaned(text: str, most: int = MESSAGE) -> str:
    """Return a message that can be stored: cut to ``most`` characters, without what no database keeps.

    >>> cleaned("one\\x00two", 6)
    'one\\ufffdt…'
    """
    text = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= most else text[: most - 1] + "…"
