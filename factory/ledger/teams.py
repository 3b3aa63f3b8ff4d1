"""Teams with their quotas, and the people in them.

Every change is in the audit log.  A team is never deleted, since what it made
names it; an archived one takes nothing new.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, listing, suggest
from factory.ledger import schema
from factory.ledger.audit import Audit, append_audit
from factory.ledger.bounds import bounded
from factory.ledger.engines import insert_new
from factory.ledger.moments import now
from factory.ledger.records import document_json
from factory.spec import NAME, SCOPES, Actor, Member, Quota, Scope, Team


class Teams(Audit):
    """The part of the ledger that knows teams."""

    def create_team(self, name: str, *, title: str = "", quota: Quota | None = None, by: Actor) -> Team:
        """Store a new team.

        Args:
            name: Lower-case letters, digits, ``_`` and ``-``, a letter first.
            title: As people read it; the name where empty.
            quota: What it may take; no guarantee and no limit where not given.
            by: Who creates it.

        Raises:
            Conflict: there is a team of that name, archived or not.
            InvalidRequest: the name or the title cannot be used.
        """
        if not re.fullmatch(NAME, name):
            raise InvalidRequest(
                f"name: {name[:80]!r} cannot be the name of a team.",
                hint="Use at most 63 lower-case letters, digits, '_' and '-', a letter first.",
                details=[Detail("name", f"does not match {NAME}")],
            )
        team = Team(name=name, title=bounded("title", title or name, 255), quota=quota or Quota(), created=now())
        with self._write() as connection:
            if not insert_new(connection, schema.teams, team.model_dump() | {"quota": document_json(team.quota)}):
                raise Conflict(
                    f"There is a team {name!r} already.",
                    hint="Choose another name, or change that team.",
                    details=[Detail("name", f"{name!r} is taken")],
                )
            detail = {"title": team.title, "quota": team.quota}
            append_audit(connection, "team.create", name, by=by, team=name, detail=detail)
        return team

    def team(self, name: str) -> Team:
        """Return a team, archived or not.

        Raises:
            NotFound: there is none; the nearest name is named.
        """
        with self._read() as connection:
            return required_team(connection, name)

    def teams(self, *, archived: bool = False) -> list[Team]:
        """Return the teams by name, with those that are archived where asked for."""
        query = select(schema.teams).order_by(schema.teams.c.name)
        if not archived:
            query = query.where(schema.teams.c.archived_at.is_(None))
        with self._read() as connection:
            return [_team(row) for row in connection.execute(query)]

    def change_team(
        self,
        name: str,
        *,
        title: str | None = None,
        quota: Quota | None = None,
        if_digest: str | None = None,
        by: Actor,
    ) -> Team:
        """Give a team another title or quota.

        Args:
            name: The team.
            title: The new one, if any.
            quota: The whole new one, if any.
            if_digest: ``digest`` of the team as the caller knows it; nothing is changed where it is another by now.
            by: Who changes it.

        Raises:
            Conflict: the team is archived, or not as the caller knows it.
            InvalidRequest: the title is too long.
            NotFound: there is no such team.
        """
        with self._write() as connection:
            team = _locked_team(connection, name)
            if if_digest is not None and if_digest != team.digest:
                raise Conflict(
                    f"Team {name} was changed meanwhile.",
                    hint="Read it again, and make the change on what it is now.",
                    details=[Detail("if_digest", "is not the digest of the team as it is")],
                )
            changed = team.model_copy(
                update={
                    "title": team.title if title is None else bounded("title", title, 255),
                    "quota": quota or team.quota,
                }
            )
            values = {"title": changed.title, "quota": document_json(changed.quota)}
            connection.execute(update(schema.teams).where(schema.teams.c.name == name).values(values))
            detail = {"title": changed.title, "quota": changed.quota, "before": team.quota}
            append_audit(connection, "team.change", name, by=by, team=name, detail=detail)
        return changed

    def archive_team(self, name: str, *, by: Actor) -> Team:
        """Take nothing new from a team: its tokens are refused from now on; what it made stays.

        Raises:
            Conflict: it is archived already.
            NotFound: there is no such team.
        """
        with self._write() as connection:
            team = _locked_team(connection, name).model_copy(update={"archived_at": now()})
            change = update(schema.teams).where(schema.teams.c.name == name)
            connection.execute(change.values(archived_at=team.archived_at))
            append_audit(connection, "team.archive", name, by=by, team=name)
        return team

    def add_member(self, team: str, subject: str, *, email: str = "", scopes: Iterable[Scope], by: Actor) -> Member:
        """Add a person to a team; one who is in it gets the new scopes and address.

        Args:
            team: The team.
            subject: The sign-in provider's id of the person.
            email: For people to read.
            scopes: What the person may do in this team.
            by: Who adds.

        Raises:
            Conflict: the team is archived.
            InvalidRequest: a scope does not exist, none is given, or a text is too long.
            NotFound: there is no such team.
        """
        member = Member(
            team=team,
            subject=bounded("subject", subject, 255),
            email=bounded("email", email, 255, least=0),
            scopes=checked_scopes(scopes),
            added=now(),
        )
        at = schema.members.c
        with self._write() as connection:
            _locked_team(connection, team)
            connection.execute(delete(schema.members).where(at.team == team, at.subject == subject))
            connection.execute(insert(schema.members).values(member.model_dump()))
            detail = {"email": email, "scopes": member.scopes}
            append_audit(connection, "member.add", subject, by=by, team=team, detail=detail)
        return member

    def remove_member(self, team: str, subject: str, *, by: Actor) -> None:
        """Take a person out of a team.

        Raises:
            NotFound: the person is not in it.
        """
        at = schema.members.c
        with self._write() as connection:
            change = delete(schema.members).where(at.team == team, at.subject == subject)
            if not connection.execute(change).rowcount:
                raise NotFound(
                    f"{subject[:80]!r} is not in team {team[:80]}.",
                    hint="`factory teams show NAME` lists its people.",
                    details=[Detail("subject", "is not in the team")],
                )
            append_audit(connection, "member.remove", subject, by=by, team=team)

    def members(self, team: str) -> list[Member]:
        """Return the people of a team, ordered by address.

        Raises:
            NotFound: there is no such team.
        """
        at = schema.members.c
        with self._read() as connection:
            required_team(connection, team)
            rows = connection.execute(select(schema.members).where(at.team == team).order_by(at.email, at.subject))
            return [Member.model_validate(row._asdict()) for row in rows]

    def memberships(self, subject: str) -> list[Member]:
        """Return what a person is in the teams that are not archived, ordered by team."""
        at, of = schema.members.c, schema.teams.c
        query = (
            select(schema.members)
            .join_from(schema.members, schema.teams, at.team == of.name)
            .where(at.subject == subject, of.archived_at.is_(None))
            .order_by(at.team)
        )
        with self._read() as connection:
            return [Member.model_validate(row._asdict()) for row in connection.execute(query)]


def required_team(connection: Connection, name: str) -> Team:
    """Return a team, archived or not.

    Raises:
        NotFound: there is none; the nearest name is named.
    """
    row = connection.execute(select(schema.teams).where(schema.teams.c.name == name)).one_or_none()
    if row is None:
        names = connection.scalars(select(schema.teams.c.name)).all()
        raise NotFound(
            f"There is no team {name[:80]!r}.{suggest(name[:80], names)}",
            hint="`factory teams list` shows them all.",
            details=[Detail("team", f"{name[:80]!r} is not known")],
        )
    return _team(row)


def checked_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    """Return scopes once each, in their usual order.

    Raises:
        InvalidRequest: one does not exist, or none is given.
    """
    given = set(scopes)
    if unknown := sorted(given - set(SCOPES)):
        raise InvalidRequest(
            f"scopes: {listing(map(repr, unknown))} does not exist.{suggest(unknown[0], SCOPES)}",
            hint=f"Allowed: {', '.join(SCOPES)}.",
            details=[Detail("scopes", f"{name!r} is not allowed") for name in unknown],
        )
    if not given:
        raise InvalidRequest(
            "scopes: none is given.", hint=f"Give some of {', '.join(SCOPES)}.", details=[Detail("scopes", "is empty")]
        )
    return tuple(scope for scope in SCOPES if scope in given)


def _locked_team(connection: Connection, name: str) -> Team:
    """Return a team that is not archived, which no other process changes until this transaction ends."""
    query = select(schema.teams).where(schema.teams.c.name == name).with_for_update()
    team = required_team(connection, name) if (row := connection.execute(query).one_or_none()) is None else _team(row)
    if team.archived_at is not None:
        raise Conflict(
            f"Team {name} is archived.",
            hint="Use another team; an archived one does not come back.",
            details=[Detail("team", f"archived {team.archived_at:%Y-%m-%d}")],
        )
    return team


def _team(row: Row[Any]) -> Team:
    return Team.model_validate(row._asdict())
