"""Variants and the alias ledger: what is known and promised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

from sqlalchemy import Connection, desc, func, insert, select

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, listing, suggest
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.bounds import cleaned
from factory.ledger.database import repeatable
from factory.ledger.engines import exclusive
from factory.ledger.moments import now
from factory.ledger.records import AliasChange, document_json, payload_json
from factory.ledger.requests import Requests
from factory.ledger.visibility import visible
from factory.spec import ALIAS, Actor, Variant


class Catalog(Requests):
    """The part of the ledger that knows variants."""

    @repeatable
    def record_variant(self, variant: Variant) -> Variant:
        """Store a version of a variant, and return it as stored (``created`` is filled).

        Storing the same content again does nothing.

        Raises:
            Conflict: that version is stored with another content.
            NotFound: its request is not in the ledger.
        """
        with self._write() as connection:
            request = self._locked(connection, variant.request_id)
            if (known := _variant(connection, variant.name, variant.version)) is not None:
                changed = _differences(known, variant.model_copy(update={"created": variant.created or known.created}))
                if changed:
                    raise Conflict(
                        f"{variant.name}/{variant.version} is stored with another {listing(changed)}.",
                        hint="A version never changes; register a new one.",
                        details=[Detail(field, "differs from what is stored") for field in changed],
                    )
                return known
            variant = variant.model_copy(update={"created": variant.created or now()})
            connection.execute(
                insert(schema.variants).values(
                    name=variant.name,
                    version=variant.version,
                    request_id=variant.request_id,
                    state=variant.state,
                    created=variant.created,
                    document=document_json(variant) | {"artifacts": variant.artifacts},
                    team=request.team,
                )
            )
        return variant

    @repeatable
    def variant(self, name: str, version: int, *, seen_by: str | None = None) -> Variant:
        """Return one version, where given only if that team sees it.

        Raises:
            NotFound: there is none; the versions or the nearest name are named.
        """
        with self._read() as connection:
            return required_variant(connection, name, version, seen_by=seen_by)

    @repeatable
    def variants(self, name: str | None = None, *, request_id: str | None = None) -> list[Variant]:
        """Return versions ordered by name and version, of one name or made for one request where given."""
        at = schema.variants.c
        query = select(at.document).order_by(at.name, at.version)
        if name is not None:
            query = query.where(at.name == name)
        if request_id is not None:
            query = query.where(at.request_id == request_id)
        with self._read() as connection:
            return [Variant.model_validate(document) for document in connection.scalars(query)]

    @repeatable
    def set_alias(
        self,
        name: str,
        alias: str,
        version: int | None,
        *,
        who: str,
        why: str,
        evidence: Mapping[str, object] | None = None,
        by: Actor | None = None,
    ) -> AliasChange:
        """Point an alias at a version, or remove it with None; one row is added to the alias ledger.

        Where the alias points there already, no row is added and the present one is returned. With ``by`` the audit
        log gets a row as well.

        Raises:
            InvalidRequest: the alias is not one of those that exist.
            NotFound: there is no such version, or no alias to remove.
        """
        if alias not in get_args(ALIAS):
            raise InvalidRequest(
                f"There is no alias {alias!r}.{suggest(alias, get_args(ALIAS))}",
                hint=f"Allowed: {listing(get_args(ALIAS))}.",
                details=[Detail("alias", f"{alias!r} is not allowed")],
            )
        with self._write() as connection:
            return change_alias(connection, name, alias, version, who=who, why=why, evidence=evidence, by=by)

    @repeatable
    def alias(self, name: str, alias: str) -> int | None:
        """Return the version that an alias points at, or None."""
        with self._read() as connection:
            row = alias_row(connection, name, alias)
        return None if row is None else row.version

    @repeatable
    def catalogue_mark(self) -> tuple[object, ...]:
        """Return what is another whenever an alias, a deployment or a share has changed.

        Transactions may end in another order than they took their numbers and times, so that the largest alone do not
        tell.
        """
        aliases, deployed, shares = schema.aliases.c, schema.deployments.c, schema.shares.c
        marks = (
            select(func.count(aliases.id), func.max(aliases.id)),
            select(
                func.count(deployed.id),
                func.max(deployed.updated),
                func.sum(deployed.version),
                func.sum(deployed.percent),
            ),
            select(func.count(shares.kind), func.max(shares.created)),
        )
        with self._read() as connection:
            return tuple(value for mark in marks for value in connection.execute(mark).one())

    @repeatable
    def aliases(self, names: Collection[str]) -> dict[str, dict[ALIAS, int]]:
        """Return the version that each alias points at, by name; a name without an alias has none."""
        at = schema.aliases.c
        newest = select(func.max(at.id)).where(at.name.in_(names)).group_by(at.name, at.alias)
        query = select(at.name, at.alias, at.version).where(at.id.in_(newest), at.version.is_not(None))
        found: dict[str, dict[ALIAS, int]] = {name: {} for name in names}
        with self._read() as connection:
            for name, alias, version in connection.execute(query.order_by(at.alias)):
                found[name][alias] = version
        return found

    @repeatable
    def alias_history(self, name: str) -> list[AliasChange]:
        """Return every change of a name's aliases, the oldest first."""
        at = schema.aliases.c
        with self._read() as connection:
            rows = connection.execute(select(schema.aliases).where(at.name == name).order_by(at.id)).all()
        return [_alias_change(row._asdict()) for row in rows]


def team_of(variant: str) -> str:
    """Return the team of a variant, which its name begins with.

    >>> team_of("growth.churn.asia")
    'growth'
    """
    return variant.partition(".")[0]


def change_alias(
    connection: Connection,
    name: str,
    alias: str,
    version: int | None,
    *,
    who: str,
    why: str,
    evidence: Mapping[str, object] | None = None,
    by: Actor | None = None,
) -> AliasChange:
    """Change an alias that exists within a transaction; as :meth:`Catalog.set_alias`."""
    exclusive(connection, f"alias of {name}")
    if version is not None:
        required_variant(connection, name, version)
    present = alias_row(connection, name, alias)
    if version is None and (present is None or present.version is None):
        raise NotFound(
            f"{name} has no alias {alias!r} to remove.",
            hint=f"`factory variants show {name}` shows its aliases.",
            details=[Detail("alias", f"{alias!r} is not set")],
        )
    if present is not None and present.version == version:
        return present
    change = AliasChange.model_validate(
        {"name": name, "alias": alias, "version": version, "who": cleaned(who, 255), "why": cleaned(why)}
        | {"evidence": payload_json(evidence), "time": now()}
    )
    connection.execute(insert(schema.aliases).values(change.model_dump()))
    if by is not None:
        detail = {"alias": alias, "version": version, "why": change.why}
        append_audit(connection, "alias.set", name, by=by, team=team_of(name), detail=detail)
    return change


def _variant(connection: Connection, name: str, version: int, seen_by: str | None = None) -> Variant | None:
    at = schema.variants.c
    query = select(at.document).where(at.name == name, at.version == version)
    document = connection.scalar(query.where(visible("variant", at.name, at.team, seen_by)))
    return None if document is None else Variant.model_validate(document)


def required_variant(connection: Connection, name: str, version: int, *, seen_by: str | None = None) -> Variant:
    """Return a version, where given only if that team sees it.

    Raises:
        NotFound: there is none; the versions or the nearest name are named.
    """
    found = _variant(connection, name, version, seen_by)
    if found is not None:
        return found
    at = schema.variants.c
    seen = visible("variant", at.name, at.team, seen_by)
    versions = connection.scalars(select(at.version).where(at.name == name, seen).order_by(at.version)).all()
    if versions:
        raise NotFound(
            f"{name} has no version {version}.",
            hint=f"Versions: {', '.join(map(str, versions))}.",
            details=[Detail("version", f"{version} is not among {list(versions)}")],
        )
    names = connection.scalars(select(at.name).where(seen).distinct()).all()
    raise NotFound(
        f"There is no variant {name!r}.{suggest(name, names)}",
        hint="`factory variants list` shows them all.",
        details=[Detail("name", f"{name!r} is not known")],
    )


def _differences(known: Variant, other: Variant) -> list[str]:
    stored, given = document_json(known), document_json(other)
    return sorted(field for field in given if stored[field] != given[field])


def alias_row(connection: Connection, name: str, alias: str) -> AliasChange | None:
    """Return the last change of an alias, within a transaction; None where it was never set."""
    at = schema.aliases.c
    query = select(schema.aliases).where(at.name == name, at.alias == alias).order_by(desc(at.id)).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _alias_change(row._asdict())


def _alias_change(row: dict[str, Any]) -> AliasChange:
    return AliasChange.model_validate({key: value for key, value in row.items() if key != "id"})
