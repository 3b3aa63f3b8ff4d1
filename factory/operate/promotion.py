"""Who is champion and what is served, as people change it by any door.

The ledger is changed first, since it decides; MLflow's alias mirrors it.
Where MLflow cannot be reached, the same change may be made again: it finds the
ledger as it should be and only the mirror is set.
"""

from __future__ import annotations

from typing import get_args

from factory.errors import Conflict, Detail, NotFound
from factory.ledger import Deployment, Ledger
from factory.settings import Settings
from factory.spec import ALIAS, Actor, DeploymentWish, Variant
from factory.variants.reference import resolve
from factory.variants.registry import Registry


def named(reference: str, *, ledger: Ledger) -> Variant:
    """Return the variant that a reference names; a bare name without a champion is its newest version.

    Raises:
        InvalidRequest: the version is no number, or there is no such alias.
        NotFound: there is no variant of that name, no such version, or nothing has the alias.
    """
    if "@" not in reference and "/" not in reference and ledger.alias(reference, "champion") is None:
        versions = ledger.variants(reference)
        if versions:
            return versions[-1]
    return resolve(reference, ledger=ledger)


def promote(
    variant: Variant, *, ledger: Ledger, settings: Settings, by: Actor, why: str, override: bool = False
) -> Variant:
    """Make a version the champion, and serve it.

    Args:
        variant: The version.
        ledger: The state.
        settings: Name the registry.
        by: Who promotes; alias ledger and audit log keep it.
        why: The reason, which both keep.
        override: Also where its gate turned it down; that is recorded.

    Raises:
        Conflict: its gate turned it down.
        ServiceFault: MLflow cannot be reached; the ledger is changed already.
    """
    if variant.state == "rejected" and not override:
        raise Conflict(
            f"{variant.name}/{variant.version} was turned down by its gate.",
            hint="Look at its model card; an override (--override) promotes it all the same and is recorded.",
            details=[Detail("version", f"{variant.version} is rejected")],
        )
    reason = f"{'Override: ' if override else ''}{why}"
    _serve(variant, DeploymentWish(), ledger=ledger, settings=settings, by=by, why=reason)
    return variant


def roll_back(name: str, *, ledger: Ledger, settings: Settings, by: Actor, why: str) -> Variant:
    """Make the version champion that was it before the present one; arguments and errors as of :func:`promote`.

    Raises:
        NotFound: there was no other champion before.
    """
    past = [c.version for c in ledger.alias_history(name) if c.alias == "champion" and c.version is not None]
    before = [version for version in past if version != past[-1]]
    if not before:
        raise NotFound(
            f"{name} has no earlier champion.",
            hint=f"`factory variants lineage {name}` shows every change.",
            details=[Detail("name", "was never promoted twice")],
        )
    variant = ledger.variant(name, before[-1])
    _serve(variant, DeploymentWish(), ledger=ledger, settings=settings, by=by, why=f"Rollback: {why}")
    return variant


def deploy(
    variant: Variant, wish: DeploymentWish, *, ledger: Ledger, settings: Settings, by: Actor, why: str
) -> Deployment | None:
    """Serve a version as wished; one that its gate turned down becomes champion only by :func:`promote`.

    Raises:
        Conflict: a rejected version would become champion.
        ServiceFault: MLflow cannot be reached; the ledger is changed already.
    """
    champion = ledger.alias(variant.name, "champion") == variant.version
    if variant.state == "rejected" and wish.as_ == "champion" and not champion:
        raise Conflict(
            f"{variant.name}/{variant.version} was turned down by its gate.",
            hint="Serve it as challenger, or make it champion with a reason: factory variants promote --override.",
            details=[Detail("as", "champion is not for a rejected version")],
        )
    return _serve(variant, wish, ledger=ledger, settings=settings, by=by, why=why)


def _serve(
    variant: Variant, wish: DeploymentWish, *, ledger: Ledger, settings: Settings, by: Actor, why: str
) -> Deployment | None:
    """Set alias and deployment of a version, without asking what its gate said."""
    aliased = wish.as_ in get_args(ALIAS)
    if aliased:
        ledger.set_alias(variant.name, wish.as_, variant.version, who=by.who, why=why, by=by)
    deployment = ledger.set_deployment(variant.name, wish, version=variant.version, by=by)
    if aliased:
        Registry(settings).set_alias(variant.name, wish.as_, variant.version)
    return deployment
