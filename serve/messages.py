"""What a message asks, and what its answer and its dead letter look like.

A message is a JSON object: one of the bodies of ``/invocations``, or one row as
``record`` or ``entity``; beside it ``id``, which an answer carries, and
``variant`` where a consumer answers for several.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import to_json

from factory.errors import Detail, FactoryError, InvalidRequest
from factory.spec import ColumnType
from factory.topics.base import Received
from factory.variants.bundle import Bundle
from serve.inputs import EntityRows, Payload, columns_of_records, shape_error
from serve.invocations import payload_of, read_json

MOST_ID = 200
MOST_ROWS = 1_000_000
"""Of one message, before they are made into columns; whoever answers it knows the bound of the settings."""
_ONE_ROW = ("record", "entity")


@dataclass(frozen=True)
class Message:
    """A message that was read.

    Attributes:
        received: As it has arrived.
        id: That its sender gave it; empty where none.
        name: Variant that it asks, as people write it.
        payload: The rows.
    """

    received: Received
    id: str
    name: str
    payload: Payload = field(repr=False)


def read_message(received: Received, *, name: str) -> Message:
    """Read a message.

    Args:
        received: As it has arrived.
        name: Variant that the consumer answers for, or a pattern of several with ``*``.

    Raises:
        InvalidRequest: it is no such document, or asks a variant that this consumer does not answer for.
        BodyTooLarge: it has too many rows or columns.
    """
    document = read_json(received.body)
    id_, variant = document.pop("id", ""), document.pop("variant", None)
    # A number is as good a key; a boolean is one in Python only.
    if isinstance(id_, bool) or not isinstance(id_, str | int):
        raise shape_error("id", "a string or a whole number", id_)
    if len(id_ := str(id_)) > MOST_ID:
        raise InvalidRequest(
            f"id: It has {len(id_)} characters; {MOST_ID} are allowed.",
            hint="Send a shorter one.",
            details=[Detail("id", f"has {len(id_)} characters")],
        )
    return Message(received, id_, _asked_for(variant, name=name), _payload(document))


def _asked_for(variant: object, *, name: str) -> str:
    if not isinstance(variant, str | None):
        raise shape_error("variant", "a name", variant)
    if variant is None and "*" in name:
        raise InvalidRequest(
            f"The message names no variant; this consumer answers for {name!r}.",
            hint='Send the name beside the rows: {"variant": "team.name", "record": {...}}.',
            details=[Detail("variant", "is missing")],
        )
    if variant is not None and not fnmatchcase(variant, name):
        raise InvalidRequest(
            f"variant: This consumer answers for {name!r}; received {variant[:130]!r}.",
            hint="Send the message to the topic of that variant's consumer.",
            details=[Detail("variant", f"{variant[:130]!r} is not like {name!r}")],
        )
    return variant or name


def _payload(document: dict[str, object]) -> Payload:
    if len(document) == 1 and (kind := next(iter(document))) in _ONE_ROW:
        row = document[kind]
        if not isinstance(row, dict) or not row:
            raise shape_error(kind, "an object with a value for each column", row)
        if kind == "entity":
            return EntityRows([row])
        return columns_of_records([row], where=kind, max_rows=1)
    return payload_of(document, max_rows=MOST_ROWS)


def messages_of(rows: pd.DataFrame, *, key: str | None, as_: str) -> list[tuple[str, bytes]]:
    """Return an id, empty for none, and a message for each row.

    Args:
        rows: Of columns, or of keys of entities.
        key: Column whose value is the id; left out of the row.
        as_: ``record`` or ``entity``.
    """
    ids = [""] * len(rows) if key is None else [_id_of(value) for value in rows[key]]
    shown = rows.drop(columns=[] if key is None else [key]).astype(object)
    records = shown.where(shown.notna(), None).to_dict("records")
    return [
        (id_, to_json({**({"id": id_} if id_ else {}), as_: record})) for id_, record in zip(ids, records, strict=True)
    ]


def _id_of(value: Any) -> str:
    """Return a key as people write it: whole numbers without a point, none where it is missing."""
    if pd.isna(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def original_of(letter: bytes) -> tuple[str, bytes]:
    """Return the topic and the body of the message that a dead letter holds.

    Raises:
        InvalidRequest: it is no dead letter, or one whose message was too large to be kept in it.
    """
    try:
        read = DeadLetter.model_validate_json(letter)
        if read.message is not None:
            return read.topic, read.message.encode()
        if read.message_base64 is None:
            raise InvalidRequest(
                f"The letter of message {read.message_id!r} of {read.topic!r} is without it: it was too large to keep.",
                hint="Send it again from where it came from, in smaller ones.",
                details=[Detail("message_id", read.message_id)],
            )
        return read.topic, b64decode(read.message_base64, validate=True)
    except ValueError as error:
        raise InvalidRequest(
            f"This is no dead letter: {letter[:80]!r}.", hint="Name the topic that dead letters go to."
        ) from error


def answer_of(message: Message, *, by: str, predictions: bytes) -> bytes:
    """Return the body of an answer.

    Args:
        message: That is answered.
        by: ``name/version`` that has answered.
        predictions: As ``/invocations`` answers them.
    """
    return b'{"id":' + to_json(message.id) + b',"variant":' + to_json(by) + b"," + predictions.removeprefix(b"{")


def dead_letter(received: Received, error: FactoryError, *, topic: str, most_bytes: int = 2**31) -> bytes:
    """Return the body of a dead letter: the message as it came, and why it is not answered.

    Args:
        received: The message.
        error: Why.
        topic: Where it came from.
        most_bytes: Of the letter; a message that makes it larger is left out.
    """
    try:
        text, encoded = received.body.decode(), None
    except UnicodeDecodeError:
        text, encoded = None, b64encode(received.body).decode()
    letter = _letter(received, error, topic=topic, text=text, encoded=encoded)
    return letter if len(letter) <= most_bytes else _letter(received, error, topic=topic, text=None, encoded=None)


def _letter(received: Received, error: FactoryError, *, topic: str, text: str | None, encoded: str | None) -> bytes:
    return to_json(
        {
            **error.as_dict(),
            "message": text,
            "message_base64": encoded,
            "topic": topic,
            "message_id": received.id,
            "deliveries": received.deliveries,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


# --- as they are described ----------------------------------------------------------


class Question(BaseModel):
    """Rows to predict; exactly one of the kinds of rows is sent."""

    model_config = ConfigDict(extra="forbid")

    id: str | int = Field(
        "", description="What the message is about. A second one with the same id is not answered again."
    )
    variant: str | None = Field(None, description="Name of the variant, where the consumer answers for several.")
    record: dict[str, object] | None = Field(None, description="One row: a value for each column.")
    entity: dict[str, object] | None = Field(
        None, description="Keys of one entity, whose features are read from the online store."
    )
    dataframe_records: list[dict[str, object]] | None = Field(None, description="Rows, a value for each column.")
    dataframe_split: dict[str, object] | None = Field(None, description="Rows as `columns` and `data`.")
    instances: list[object] | None = Field(None, description="Rows as objects, or in the order of the columns.")
    inputs: dict[str, object] | None = Field(None, description="Columns, each with a value for each row.")
    entities: list[dict[str, object]] | None = Field(None, description="Keys of several entities.")


def question_for(bundle: Bundle) -> type[Question]:
    """Return the description of a message to one variant: its columns, with their types."""
    columns: dict[str, Any] = {
        f"column_{i}": (_KINDS.get(column.type, str) | None, Field(None, alias=column.name, title=column.name))
        for i, column in enumerate(bundle.columns)
    }
    row = create_model("Row", **columns)
    record: Any = (row | None, Field(None, description="One row: a value for each column; null is a missing one."))
    return create_model("Question", __base__=Question, __doc__=Question.__doc__, record=record)


_KINDS: dict[ColumnType, type] = {ColumnType.NUMERIC: float, ColumnType.BOOLEAN: bool}


class Answer(BaseModel):
    """Predictions for the rows of one message."""

    id: str = Field(description="Of the message; empty where it had none.")
    variant: str = Field(description="Who has answered: name/version.")
    predictions: list[dict[str, object]] = Field(description="One for each row, as /invocations answers them.")


class Reason(BaseModel):
    """Why a message is not answered."""

    code: str
    message: str
    hint: str
    details: list[dict[str, str]]


class DeadLetter(BaseModel):
    """A message that cannot be answered; `factory stream replay` sends it again."""

    error: Reason
    message: str | None = Field(description="The message as it came.")
    message_base64: str | None = Field(description="The same, where it is not UTF-8.")
    topic: str = Field(description="Where it came from.")
    message_id: str = Field(description="That the broker gave it.")
    deliveries: int = Field(description="How often it was delivered.")
    time: str = Field(description="When it was given up.")
