"""Who is champion and what is served, as people change it by any door.

The ledger is changed first, since it decides; MLflow's alias mirrors it.
Where MLflow cannot be reached, the same change may be made again: it finds the
ledger as it should be and only the mirror is set.
"""

from __future__ import annotations

from typing import get_args

from factory.errors import Conflict, Detail, FactoryError, NotFound
from factory.ledger import Deployment, Ledger, Proposal
from factory.search.plan import load_recipe
from factory.settings import Settings
from factory.spec import ALIAS, FOR_CALLERS, Actor, DeploymentWish, Variant
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


def needs_approval(variant: Variant, *, ledger: Ledger, settings: Settings) -> bool:
    """Return whether a second person has to approve before callers get a version.

    That is so where the recipe that it was made by asks for it, or the one of today; a version that was approved or
    champion before needs no approval any more.
    """
    return (variant.approval or _asks_today(variant.recipe, settings)) and not ledger.is_released(
        variant.name, variant.version
    )


def promote(
    variant: Variant,
    *,
    ledger: Ledger,
    settings: Settings,
    by: Actor,
    why: str,
    override: bool = False,
    instead_of: int | None = None,
) -> Variant | Proposal:
    """Make a version the champion, and serve it; where a second person has to approve that, propose it.

    Args:
        variant: The version.
        ledger: The state.
        settings: Name the registry and the recipes.
        by: Who promotes; alias ledger and audit log keep it.
        why: The reason, which both keep.
        override: Also where its gate turned it down, or nobody has approved it; that is recorded.
        instead_of: Version that is champion as the caller knows it, 0 for none; None where any will do.

    Returns:
        The version, or the proposal that waits for an approval.

    Raises:
        Conflict: its gate turned it down, or another version is champion by now.
        ServiceFault: MLflow cannot be reached; the ledger is changed already.
    """
    if variant.state == "rejected" and not override:
        raise Conflict(
            f"{variant.name}/{variant.version} was turned down by its gate.",
            hint="Look at its model card; an override (--override) promotes it all the same and is recorded.",
            details=[Detail("version", f"{variant.version} is rejected")],
        )
    wish = DeploymentWish()
    if needs_approval(variant, ledger=ledger, settings=settings):
        if not override:
            return ledger.propose(variant, wish, why=why, by=by, instead_of=instead_of)
        ledger.override_approval(variant, wish, why=why, by=by, instead_of=instead_of)
        _mirror(variant.name, wish, variant.version, settings=settings)
        return variant
    reason = f"{'Override: ' if override else ''}{why}"
    ledger.serve(variant, wish, why=reason, by=by, instead_of=instead_of)
    _mirror(variant.name, wish, variant.version, settings=settings)
    return variant


def decide(proposal_id: str, *, approve: bool, ledger: Ledger, settings: Settings, by: Actor, why: str) -> Proposal:
    """Approve a proposal, which serves the version, or reject it; arguments as of :func:`promote`.

    An approval that MLflow did not hear of may be made again.

    Raises:
        Conflict: it is decided already, or whoever approves had a hand in proposing it.
        NotFound: there is no such proposal.
        ServiceFault: MLflow cannot be reached; the ledger is changed already.
    """
    proposal = ledger.proposal(proposal_id)
    again = approve and (proposal.state, proposal.decided_by) == ("approved", by.who)
    stands = proposal.wish.as_ not in get_args(ALIAS) or ledger.alias(proposal.name, proposal.wish.as_) == (
        proposal.version
    )
    if not (again and stands):
        proposal = ledger.decide(proposal_id, approve=approve, why=why, by=by)
    if approve:
        _mirror(proposal.name, proposal.wish, proposal.version, settings=settings)
    return proposal


def roll_back(
    name: str, *, ledger: Ledger, settings: Settings, by: Actor, why: str, instead_of: int | None = None
) -> Variant:
    """Make the version champion that was it before the present one; arguments and errors as of :func:`promote`.

    With ``instead_of`` it is the one before that version: who asks twice does not come back to where it was.

    Raises:
        NotFound: there was no other champion before.
    """
    past = [c.version for c in ledger.alias_history(name) if c.alias == "champion" and c.version is not None]
    if instead_of in past:
        past = past[: len(past) - past[::-1].index(instead_of)]
    before = [version for version in past if version != past[-1]]
    if not before:
        raise NotFound(
            f"{name} has no earlier champion.",
            hint=f"`factory variants lineage {name}` shows every change.",
            details=[Detail("name", "was never promoted twice")],
        )
    variant = ledger.variant(name, before[-1])
    wish = DeploymentWish()
    ledger.serve(variant, wish, why=f"Rollback: {why}", by=by, instead_of=instead_of)
    _mirror(name, wish, variant.version, settings=settings)
    return variant


def deploy(
    variant: Variant,
    wish: DeploymentWish,
    *,
    ledger: Ledger,
    settings: Settings,
    by: Actor,
    why: str,
    if_digest: str | None = None,
) -> Deployment | None:
    """Serve a version as wished; one that its gate turned down gets to callers only by :func:`promote`.

    ``none`` takes it out of traffic, and from it the aliases by which callers would still get it.

    With ``if_digest`` only where its name is served as the caller knows it (:meth:`Ledger.set_deployment`).

    Raises:
        Conflict: a rejected version, or one that has to be approved, would get to callers; the champion would be taken
            from beside a canary or a shadow; or the name is served otherwise by now.
        ServiceFault: MLflow cannot be reached; the ledger is changed already.
    """
    champion = ledger.alias(variant.name, "champion") == variant.version
    if variant.state == "rejected" and wish.as_ in FOR_CALLERS and not champion:
        raise Conflict(
            f"{variant.name}/{variant.version} was turned down by its gate.",
            hint="Serve it as challenger or shadow, or promote it with a reason: factory variants promote --override.",
            details=[Detail("as", f"{wish.as_} is not for a rejected version")],
        )
    if wish.as_ in FOR_CALLERS and needs_approval(variant, ledger=ledger, settings=settings):
        raise Conflict(
            f"{variant.name}/{variant.version} has to be approved by a second person before callers get it.",
            hint="Propose it: factory variants promote. It may be served as challenger or shadow meanwhile.",
            details=[Detail("as", f"{wish.as_} is not for a version that nobody has approved")],
        )
    deployment = ledger.serve(variant, wish, why=why, by=by, if_digest=if_digest)
    if wish.as_ == "none":
        _clear(variant.name, ledger=ledger, settings=settings)
    else:
        _mirror(variant.name, wish, variant.version, settings=settings)
    return deployment


def _mirror(name: str, wish: DeploymentWish, version: int, *, settings: Settings) -> None:
    """Let MLflow's alias follow the ledger's."""
    if wish.as_ in get_args(ALIAS):
        Registry(settings).set_alias(name, wish.as_, version)


def _clear(name: str, *, ledger: Ledger, settings: Settings) -> None:
    """Remove from MLflow the aliases that the ledger removed, also those of a change that MLflow did not hear of."""
    last = {change.alias: change.version for change in ledger.alias_history(name)}
    for alias in (alias for alias, version in last.items() if version is None):
        Registry(settings).set_alias(name, alias, None)


def _asks_today(recipe: str, settings: Settings) -> bool:
    try:
        return load_recipe(recipe, settings=settings).approval
    except FactoryError:  # it is gone, or broken: what it was when the version was made counts
        return False
