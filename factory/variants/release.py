"""From a judged variant to one that callers meet: registered, and promoted where its gate says yes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from factory.ledger import Ledger
from factory.search.plan import Plan
from factory.spec import FOR_CALLERS, Actor, Variant, VariantRequest
from factory.variants.appraisal import Baseline
from factory.variants.making import Made, Registration
from factory.variants.material import Note, Unit
from factory.variants.registry import Registry


class Release:
    """The ledger and MLflow, as one request's variants come into them.

    Args:
        request_id: The request.
        request: With the wish how its variants are deployed.
        ledger: Decides who is champion.
        registry: Mirrors it, and keeps the bundles.
        note: Told what happened.
    """

    def __init__(
        self, request_id: str, request: VariantRequest, *, ledger: Ledger, registry: Registry, note: Note
    ) -> None:
        self._id, self._request = request_id, request
        self._ledger, self._registry = ledger, registry
        self._note: Note = note

    def deliver(self, made: Made) -> Made:
        """Register a judged variant, and promote it if its gate says yes.

        Returns:
            The variant with its version, and without what MLflow has taken: a thousand segments would keep it all.
        """
        variant = self._registry.register(
            made.folder,
            variant=made.variant,
            example=made.example,
            metrics=made.registration.metrics,
            parameters=made.registration.parameters,
            curves=made.registration.curves,
            files=made.registration.files,
            judge=made.judge,
            description=made.verdict.sentence,
        )
        variant = self._ledger.record_variant(variant)
        self._note("frontier", f"{variant.name}/{variant.version}: {made.trade}")
        found = made.verdict.model_dump(mode="json") | {
            "baseline": made.card.baseline,
            "comparison": made.comparison.model_dump(mode="json"),
        }
        self._note("gate", f"{variant.name}/{variant.version}: {made.verdict.sentence}", found)
        if made.verdict.passed:
            self.promote(variant, why=made.verdict.sentence, evidence=made.comparison.model_dump(mode="json"))
        return replace(made, variant=variant, registration=Registration({}, {}, {}, {}))

    def catch_up(self, variant: Variant) -> None:
        """Promote a variant of an earlier attempt that was killed between its registration and that."""
        known = {change.version for change in self._ledger.alias_history(variant.name)}
        known |= {proposal.version for proposal in self._ledger.proposals(variant.name)}
        if variant.state == "registered" and variant.version not in known:
            self.promote(variant, why="Passed its gate in an attempt that was killed before this.", evidence={})

    def promote(self, variant: Variant, *, why: str, evidence: dict[str, Any]) -> None:
        """Let the ledger's alias, and MLflow's as its mirror, point at a variant that passed, as the request wishes.

        Where its recipe asks for a second person, that is proposed instead.
        """
        wish = self._request.deployment
        if wish.as_ == "none":
            return
        if variant.approval and wish.as_ in FOR_CALLERS:
            by = Actor(who=self._ledger.request(self._id).submitted_by or f"request {self._id}")
            proposal = self._ledger.propose(variant, wish, why=why, evidence=evidence, by=by)
            self._note(
                "proposal", f"{variant.name}/{variant.version} waits for an approval as {wish.as_}: {proposal.id}."
            )
            return
        alias = "champion" if wish.as_ == "champion" else "challenger"
        self._ledger.set_alias(
            variant.name,
            alias,
            variant.version,
            who=f"request {self._id}",
            why=why,
            evidence=evidence,
        )
        self._registry.set_alias(variant.name, alias, variant.version)
        self._ledger.set_deployment(
            variant.name, wish, version=variant.version, who=f"request {self._id}", why=why, evidence=evidence
        )
        self._note("alias", f"{variant.name}/{variant.version} is {alias} now.")

    def champion(self, unit: Unit, plan: Plan) -> Baseline | None:
        """Return the champion's predictions of the gate's rows; None where a constant is to be beaten."""
        version = self._ledger.alias(unit.name, "champion")
        if plan.gates.baseline == "constant" or version is None:
            return None
        champion, frame = self._ledger.variant(unit.name, version), unit.unseen.frame
        bundle = self._registry.judge(champion)
        problems = bundle.check_input(frame[[c.name for c in bundle.columns if c.name in frame]])
        if bundle.task is not plan.task or bundle.classes != unit.unseen.classes or problems:
            message = f"The champion {unit.name}/{version} cannot predict these rows; compared with a constant."
            self._note("gate", message)
            return None
        prediction = bundle.judged(bundle.predict_raw(frame), plan.metric)
        return Baseline(f"the champion {unit.name}/{version}", prediction)
