"""What a team may see: its own, and what was shared with it or with everyone."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import BindParameter, ColumnElement, Select, select, true

from factory.ledger import schema

ShareKind = Literal["dataset", "variant", "request"]

EVERYONE = "*"


def shared_with(kind: ShareKind, team: str | BindParameter[str]) -> Select[tuple[str]]:
    """Return the query of the ids or names of a kind that others have shared with a team."""
    at = schema.shares.c
    query = select(at.subject).where(at.kind == kind, at.with_team.in_((team, EVERYONE)))
    return query.where(at.team != team)


def visible(
    kind: ShareKind, subject: ColumnElement[Any], owner: ColumnElement[Any], team: str | BindParameter[str] | None
) -> ColumnElement[bool]:
    """Return the condition under which a team sees a row; None sees all.

    Args:
        kind: Of the rows.
        subject: Column of their ids or names.
        owner: Column of the teams they belong to.
        team: Who looks.
    """
    return true() if team is None else (owner == team) | subject.in_(shared_with(kind, team))
