"""Variants, the alias ledger, and deployments: what is known, promised and served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Connection, delete, desc, func, insert, select

from factory.errors import Conflict, Detail, InvalidRequest, NotFound, listing, suggest
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.bounds import cleaned
from factory.ledger.database import repeatable
from factory.ledger.engines import exclusive
from factory.ledger.moments import now
from factory.ledger.records import AliasChange, Deployment, ServingChange, document_json, payload_json
from factory.ledger.requests import Requests
from factory.ledger.visibility import visible
from factory.spec import ALIAS, Actor, DeploymentWish, Variant


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

    @repeatable
    def set_deployment(
        self,
        name: str,
        wish: DeploymentWish,
        *,
        version: int,
        why: str = "",
        who: str = "",
        evidence: Mapping[str, object] | None = None,
        if_digest: str | None = None,
        by: Actor | None = None,
    ) -> Deployment | None:
        """Store how a version is to be served; the name's other rows (a champion beside a canary) stay.

        Args:
            name: Of the variant.
            wish: How it is to be served.
            version: Which of its versions.
            why: The reason, which its history keeps.
            who: Who changes it, for the history, where it is nobody that the audit log knows.
            evidence: For the reason.
            if_digest: :func:`served_digest` of the name as the caller knows it; nothing is changed where it is another.
            by: Who changes it, for the audit log.

        Returns:
            The deployment, or None for ``as: none``, which takes this version out of traffic.

        Raises:
            Conflict: the name is not served as the caller knows it.
            NotFound: there is no such version.
        """
        with self._write() as connection:
            return change_deployment(
                connection,
                name,
                wish,
                version=version,
                why=why,
                who=who,
                evidence=evidence,
                if_digest=if_digest,
                by=by,
            )

    def withdraw_canary(
        self, name: str, version: int, since: datetime, *, evidence: Mapping[str, object], by: Actor
    ) -> bool:
        """Take a canary out of traffic, unless it is another one by now, or has another share.

        Args:
            name: Of the variant.
            version: Of the canary.
            since: When it was given its share.
            evidence: Why (``why``), and what it follows from; history and audit log keep it.
            by: Who withdraws it.

        Returns:
            Whether it was the canary still.
        """
        at = schema.deployments.c
        this = (at.name == name, at["as"] == "canary", at.version == version, at.updated == since)
        with self._write() as connection:
            exclusive(connection, f"deployment of {name}")
            gone = connection.execute(delete(schema.deployments).where(*this)).rowcount > 0
            if gone:
                detail = payload_json(evidence)
                why = str(detail.get("why", ""))
                keep_change(connection, name, DeploymentWish(as_="none"), version, who=by.who, why=why, evidence=detail)
                append_audit(connection, "canary.withdraw", name, by=by, team=team_of(name), detail=detail)
        return gone

    def deployment_history(self, name: str, *, most: int = 200) -> list[ServingChange]:
        """Return how it was changed how a name is served, the last change first."""
        at = schema.deployment_changes.c
        query = select(schema.deployment_changes).where(at.name == name).order_by(desc(at.id)).limit(most)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            ServingChange.model_validate({"as_": row["as"]} | {k: v for k, v in row.items() if k not in ("id", "as")})
            for row in rows
        ]

    def deployments(self) -> list[Deployment]:
        """Return everything that is to be served, ordered by name."""
        with self._read() as connection:
            return deployed(connection, None)

    def deployment(self, name: str) -> list[Deployment]:
        """Return how a name is to be served; empty where it is not."""
        with self._read() as connection:
            return deployed(connection, name)


def team_of(variant: str) -> str:
    """Return the team of a variant, which its name begins with.

    >>> team_of("growth.churn.asia")
    'growth'
    """
    return variant.partition(".")[0]


def served_digest(served: Iterable[Deployment]) -> str:
    """Return the digest of how a name is served, by which a change is made to what its caller has seen only."""
    rows = [row.model_dump(mode="json") for row in served]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


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


def change_deployment(
    connection: Connection,
    name: str,
    wish: DeploymentWish,
    *,
    version: int,
    why: str = "",
    who: str = "",
    evidence: Mapping[str, object] | None = None,
    if_digest: str | None = None,
    by: Actor | None = None,
) -> Deployment | None:
    """Change how a version is served within a transaction; as :meth:`Catalog.set_deployment`."""
    at = schema.deployments.c
    exclusive(connection, f"deployment of {name}")
    if if_digest is not None and if_digest != served_digest(deployed(connection, name)):
        raise Conflict(
            f"How {name} is served was changed meanwhile.",
            hint="Read it again, and make the change on what it is now.",
            details=[Detail("if_digest", "is not the digest of how it is served")],
        )
    required_variant(connection, name, version)
    deployment = None
    if wish.as_ == "none":
        connection.execute(delete(schema.deployments).where(at.name == name, at.version == version))
    else:
        connection.execute(delete(schema.deployments).where(at.name == name, at["as"] == wish.as_))
        row = {"name": name, "as": wish.as_, "percent": wish.percent, "version": version, "updated": now()}
        connection.execute(insert(schema.deployments).values(row))
        deployment = _deployment(row)
    keep_change(connection, name, wish, version, who=by.who if by else who, why=why, evidence=evidence)
    if by is not None:
        detail = wish.model_dump(by_alias=True) | {"version": version, "why": cleaned(why)}
        append_audit(connection, "deployment.set", name, by=by, team=team_of(name), detail=detail)
    return deployment


def keep_change(
    connection: Connection,
    name: str,
    wish: DeploymentWish,
    version: int,
    *,
    who: str,
    why: str,
    evidence: Mapping[str, object] | None,
) -> None:
    """Write down that a version is served in another way, within the transaction that changes it."""
    row = {"name": name, "as": wish.as_, "version": version, "percent": wish.percent, "time": now()}
    row |= {"who": cleaned(who, 255), "why": cleaned(why), "evidence": payload_json(evidence)}
    connection.execute(insert(schema.deployment_changes).values(row))


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


def deployed(connection: Connection, name: str | None) -> list[Deployment]:
    """Return how a name is served, or with None all of them, within a transaction."""
    at = schema.deployments.c
    query = select(schema.deployments).order_by(at.name, at.id)
    if name is not None:
        query = query.where(at.name == name)
    return [_deployment(dict(row)) for row in connection.execute(query).mappings()]


def _deployment(row: dict[str, Any]) -> Deployment:
    return Deployment(
        name=row["name"], as_=row["as"], percent=row["percent"], version=row["version"], updated=row["updated"]
    )
