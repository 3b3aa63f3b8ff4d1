"""What all nouns share: a frozen document with a digest, and the words that several of them use."""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

NAME = r"^[a-z][a-z0-9_-]{0,62}$"


class Task(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class ColumnType(StrEnum):
    """What a column holds; decides how it is prepared."""

    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    CATEGORICAL = "categorical"
    DATETIME = "datetime"
    TEXT = "text"
    IDENTIFIER = "identifier"


NUMBERS = (ColumnType.NUMERIC, ColumnType.BOOLEAN)
"""Types whose values are read as numbers."""


class Document(BaseModel):
    """Base of all nouns: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this document."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _seconds(value: object) -> object:
    """Accept ``60``, ``"60s"``, ``"5m"`` or ``"1h"`` as seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|m|h)?\s*", value)
        if match is None:
            raise ValueError("Write a time above zero as 60, '60s', '5m' or '1h'")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]
