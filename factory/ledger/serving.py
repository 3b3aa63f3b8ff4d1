"""How names are served: by which version, as what, and every change of that with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Connection, delete, desc, insert, select

from factory.errors import Conflict, Detail
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.bounds import cleaned
from factory.ledger.catalog import Catalog, alias_row, change_alias, required_variant, team_of
from factory.ledger.database import repeatable
from factory.ledger.engines import exclusive
from factory.ledger.moments import now
from factory.ledger.records import Deployment, ServingChange, payload_json
from factory.spec import ALIAS, BESIDE, Actor, DeploymentWish, Variant


class Serving(Catalog):
    """The part of the ledger that knows what is served."""

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

        If it is challenger it loses that too, unless it is served beside the champion in another way as well.

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
                challenger = alias_row(connection, name, "challenger")
                stays = any(one.version == version for one in deployed(connection, name))
                if challenger is not None and challenger.version == version and not stays:
                    change_alias(connection, name, "challenger", None, who=by.who, why=why, evidence=detail, by=by)
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


def served_digest(served: Iterable[Deployment]) -> str:
    """Return the digest of how a name is served, by which a change is made to what its caller has seen only."""
    rows = [row.model_dump(mode="json") for row in served]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


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
    aliases_went: bool = False,
) -> Deployment | None:
    """Change how a version is served within a transaction; as :meth:`Serving.set_deployment`.

    What was not served, nor lost an alias just now, and is taken out of traffic is no change that history would tell.
    """
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
        gone = connection.execute(delete(schema.deployments).where(at.name == name, at.version == version)).rowcount
        if not (gone or aliases_went):
            return None
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


def take_aliases(connection: Connection, variant: Variant, *, why: str, by: Actor) -> bool:
    """Remove the aliases that point at a version, within the transaction that takes it out of traffic.

    Returns:
        Whether there was one.

    Raises:
        Conflict: it is champion, and others are served beside it, which would be there for nobody.
    """
    name, version = variant.name, variant.version
    exclusive(connection, f"alias of {name}")
    # Before it is read what is served beside it, in the order in which serving a version takes both.
    exclusive(connection, f"deployment of {name}")
    went = False
    for alias in get_args(ALIAS):
        present = alias_row(connection, name, alias)
        if present is None or present.version != version:
            continue
        beside = [one for one in deployed(connection, name) if one.as_ in BESIDE and one.version != version]
        if alias == "champion" and beside:
            told = " and ".join(f"{one.as_} {name}/{one.version}" for one in beside)
            raise Conflict(
                f"{name}/{version} is the champion, beside which there is {told}.",
                hint="Take that out of traffic first, or make another version champion."
                if len(beside) == 1
                else "Take those out of traffic first, or make another version champion.",
                details=[Detail("as", "none is not for a champion with others beside it")],
            )
        change_alias(connection, name, alias, None, who=by.who, why=why, by=by)
        went = True
    return went


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
