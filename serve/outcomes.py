"""What became of what was predicted, as whoever knows it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, Field, Strict, TypeAdapter, ValidationError

from factory.errors import MOST_DETAILS, Detail, InvalidRequest, first_of
from factory.parsing import parse
from factory.spec import Document
from serve.errors import BodyTooLarge
from serve.invocations import read_json
from serve.journal import Outcome


class ToldOutcome(Document):
    """An outcome of one thing."""

    key: str = Field(min_length=1, max_length=200, description="That the prediction's call had sent as X-Request-Key.")
    outcome: Annotated[bool, Strict()] | float | str = Field(description="What came true: a label, or a number.")
    time: AwareDatetime | None = Field(None, description="When, with a time zone; now if empty.")


class ToldOutcomes(Document):
    """Outcomes of several things."""

    outcomes: tuple[ToldOutcome, ...] = Field(min_length=1)


LOOKED_AT = 1_000
"""Outcomes that are looked at together."""
_SOME = TypeAdapter(tuple[ToldOutcome, ...])


def read_outcomes(body: bytes, *, most: int) -> list[Outcome]:
    """Read the outcomes of predictions.

    Args:
        body: ``{"outcomes": [{"key": "4711", "outcome": "yes", "time": "2026-11-29T10:00:00Z"}]}``.
        most: Outcomes of one call.

    Raises:
        InvalidRequest: the body is not like that; its first problems are named.
        BodyTooLarge: there are too many.
    """
    document = read_json(body)
    _require_nothing_else(document)
    # Counted before each is looked at: a body of many megabytes holds millions.
    if isinstance(listed := document.get("outcomes"), list) and len(listed) > most:
        raise BodyTooLarge(f"The call has {len(listed):,} outcomes; {most:,} are allowed.", hint="Send several calls.")
    told = _told(document)
    now = datetime.now(UTC)
    return [Outcome(one.key, _value(one.outcome), one.time or now) for one in told]


def _told(document: dict[str, object]) -> Sequence[ToldOutcome]:
    """Return the outcomes of a document, looked at in parts: an error for each of millions would take seconds."""
    listed = document.get("outcomes")
    if not isinstance(listed, list) or not listed:
        return parse(ToldOutcomes, document, what="outcomes").outcomes
    told: list[ToldOutcome] = []
    for at in range(0, len(listed), LOOKED_AT):
        some = listed[at : at + LOOKED_AT]
        for i, one in enumerate(some):
            if isinstance(one, dict) and len(one) > MOST_DETAILS:
                path, message = f"outcomes.{at + i}", f"It has {len(one):,} fields; key, outcome and time are allowed."
                raise InvalidRequest(
                    f"The outcomes are not valid: {path}: {message}",
                    hint="Mend the named field and try again.",
                    details=[Detail(path, message)],
                )
        try:
            told += _SOME.validate_python(some)
        except ValidationError:
            # Those before are good: what is wrong is named by its place among all.
            parse(ToldOutcomes, {"outcomes": listed[: at + LOOKED_AT]}, what="outcomes")
            raise
    return told


def _require_nothing_else(document: Mapping[str, object]) -> None:
    """Refuse other fields, of which a body may have a million, before each of them becomes an error of its own."""
    others = [name for name in document if name not in ToldOutcomes.model_fields]
    if others:
        named = first_of(
            [Detail(name[:200], "There is no such field.") for name in others[:MOST_DETAILS]], n=len(others)
        )
        raise InvalidRequest(
            f"The outcomes are not valid: there is no field {others[0][:200]!r}.",
            hint="A body holds `outcomes`, a list of objects with key, outcome and time.",
            details=named,
        )


def _value(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
