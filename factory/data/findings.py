"""What a screening says: a suspicion about a column, and the finding that it becomes when the request had its say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from factory.spec import Document

Action = Literal["drop", "warn", "keep"]
Kind = Literal[
    "requested",
    "constant",
    "all_missing",
    "nearly_empty",
    "nearly_constant",
    "identifier",
    "group",
    "duplicate",
    "target_copy",
    "leakage",
    "absence",
    "correlation",
    "rule",
    "twins",
    "high_missing",
    "drift",
]
LEAKS: frozenset[Kind] = frozenset({"target_copy", "leakage", "absence"})
"""Kinds of findings that say: this column gives the target away."""


class Finding(Document):
    """One suspicion about one column, and what is done about it.

    Attributes:
        kind: What it is.
        column: Which column.
        action: ``drop`` (left out), ``warn`` (used, look at it), ``keep`` (used, since the request says so).
        value: What was measured: a share, a correlation, a score, a divergence; None where there is no number.
        others: Of a column that gives the target away: the best score that another column reaches alone.
        message: All of it, for a person.
    """

    kind: Kind
    column: str
    action: Action
    value: float | None = None
    others: float | None = None
    message: str


@dataclass(frozen=True)
class Suspicion:
    """A finding before the request had its say: what was seen, and what follows from it."""

    kind: Kind
    column: str
    seen: str
    follows: str = "it is left out"
    drops: bool = True
    advice: str = ""
    value: float | None = None
    others: float | None = None

    def finding(self, *, keep: bool) -> Finding:
        follows = "it is used, since the request names it in 'keep'." if keep else f"{self.follows}.{self.advice}"
        return Finding(
            kind=self.kind,
            column=self.column,
            action="keep" if keep else "drop" if self.drops else "warn",
            value=None if self.value is None else round(self.value, 6),
            others=None if self.others is None else round(self.others, 6),
            message=f"{self.column!r} {self.seen}; {follows}",
        )
