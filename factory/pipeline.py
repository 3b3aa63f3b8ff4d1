"""The single path: one request becomes registered variants.

``produce`` is called by every door.  Each stage writes its event to the
ledger and is idempotent: a driver that was killed anywhere is followed by
another ``produce`` of the same request, which takes the finished trials from
the ledger and goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from factory.errors import Conflict, FactoryError, SystemFault
from factory.families.base import Deadline
from factory.ledger import Ledger, RequestRecord
from factory.search.cluster import local_cpus
from factory.search.engine import RaySession, SearchResult, search
from factory.search.plan import Plan, check_request, make_plan
from factory.search.transfer import Transfer
from factory.settings import Settings
from factory.spec import Recipe, RequestState, Trial, TrialState, Variant, VariantRequest
from factory.variants.bundle import Bundle
from factory.variants.delivery import Baseline
from factory.variants.fanout import Failed, fan_out
from factory.variants.gates import Verdict
from factory.variants.making import Made, Order, finish
from factory.variants.material import Material, Unit, divide, gather
from factory.variants.origin import Origin, made_again, origin_of
from factory.variants.reference import resolve
from factory.variants.registry import Registry
from factory.variants.segments import LENT_FROM, SegmentOrder, lend, seeds_of

log = logging.getLogger(__name__)

POOLED_SHARE = 0.4
"""Part of the time that the pooled variant gets where there are segments; the others share the rest."""
FINISH_SHARE, FINISH_LEAST_S, FINISH_MOST_S = 0.12, 3.0, 20.0
"""Part of the budget kept for bundle, scores, gate and registration; measured 2 to 5 s for one variant."""
LEAST_SEARCH_S = 5.0
NAMED = 5
"""Variants that a message names; more are told by their number."""


@dataclass(frozen=True)
class Progress:
    """One step of a request, as a listener sees it."""

    request_id: str
    state: RequestState
    message: str
    trial: Trial | None = None
    segment: str = ""
    left_s: float = 0.0


Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Outcome:
    """What a request came to.

    Attributes:
        variants: All of the request, the pooled one first; also those that an interrupted attempt has made.
        verdicts: Of those that this attempt made.
        made: What this attempt made, with trials and weights.
        pooled_segments: Segments that the pooled variant serves.
    """

    request_id: str
    state: RequestState
    variants: tuple[Variant, ...]
    verdicts: tuple[Verdict, ...]
    made: tuple[Made, ...]
    pooled_segments: tuple[str, ...] = ()


def submit(document: object, *, ledger: Ledger, settings: Settings, retry_of: str | None = None) -> RequestRecord:
    """Check a request and put it into the queue.

    Raises:
        InvalidRequest: with one detail for each problem; nothing is stored.
        NotFound: the recipe or the parent does not exist.
    """
    request, _ = check_request(document, settings=settings)
    if request.parent is not None and request.making != "cold":
        resolve(request.parent, ledger=ledger)  # refused now rather than when the data are read
    record = ledger.create_request(request, retry_of=retry_of)
    ledger.reach(record.id, RequestState.QUEUED, "Waiting for a driver.")
    return ledger.request(record.id)


def produce(request_id: str, *, ledger: Ledger, settings: Settings, listen: Listener = lambda _: None) -> Outcome:
    """Make what a request asks for, from where an earlier attempt may have stopped.

    Args:
        request_id: A request of the ledger that has not ended.
        ledger: The state.
        settings: Of this process.
        listen: Told every state and every trial.

    Returns:
        The variants, promoted or rejected by their gates.

    Raises:
        UserFault, SystemFault: the request ended as FAILED for this reason; nothing is half-registered.
        Conflict: the request has ended or its variants are made, or another live driver works on it.
    """
    settings.prepare_home()
    if (state := ledger.request(request_id).state) in (RequestState.REGISTERED, RequestState.SERVING):
        raise Conflict(
            f"Request {request_id} is {state}: its variants are made, there is nothing left to do.",
            hint=f"`factory requests show {request_id}` lists them; submit its document again for new ones.",
        )
    with (
        ledger.claim(request_id) as claim,
        _ending_as_failed(claim.record.id, ledger),
        RaySession(settings) as ray,
    ):
        return _Making(claim.record, ledger, settings, ray, listen).run()


@contextmanager
def _ending_as_failed(request_id: str, ledger: Ledger) -> Iterator[None]:
    """Record an error as the request's end; an interruption leaves the request as it is, to be gone on with."""
    try:
        yield
    except FactoryError as error:
        ledger.fail(request_id, error)
        raise
    except Exception as error:
        log.exception("request %s failed", request_id)
        fault = SystemFault(
            f"Unexpected {type(error).__name__}: {error}.", hint="Please report it with the log of the request."
        )
        ledger.fail(request_id, fault)
        raise fault from error


class _Making:
    """The stages of one request, in order."""

    def __init__(
        self, record: RequestRecord, ledger: Ledger, settings: Settings, ray: RaySession, listen: Listener
    ) -> None:
        self.id, self.ledger, self.settings, self.ray, self.listen = record.id, ledger, settings, ray, listen
        self.request: VariantRequest
        self.recipe: Recipe
        self.request, self.recipe = check_request(record.request, settings=settings)
        self.registry = Registry(settings)
        self.workspace = settings.workspace(record.id)
        budget = self.request.budget or self.recipe.budget.default
        spent_s = sum(t.cost_s for t in ledger.trials(record.id)) / local_cpus(settings)
        self.deadline = Deadline.after(max(budget.time_s - spent_s, 2 * LEAST_SEARCH_S))
        self.finish_s = float(np.clip(FINISH_SHARE * budget.time_s, FINISH_LEAST_S, FINISH_MOST_S))
        self.state = record.state

    def run(self) -> Outcome:
        if any(not variant.segment for variant in self.ledger.variants(request_id=self.id)):
            # The pooled variant is recorded last: an earlier attempt was killed between that and the request's end.
            return self.conclude([])
        self.reach(RequestState.PREPARING, "Reading and screening the data.")
        validation = self.request.validation or self.recipe.validation
        material = gather(self.request, validation, settings=self.settings, note=self.note)
        plan = make_plan(self.request, self.recipe, material.dataset.task)
        pooled, units, thin = divide(material, plan, workspace=self.workspace, note=self.note)
        origin, pooled = origin_of(
            self.id,
            pooled,
            plan,
            ledger=self.ledger,
            registry=self.registry,
            settings=self.settings,
            note=self.note,
        )
        self.reach(RequestState.SEARCHING, self.search_message(material, plan, pooled, len(units), origin))
        with self.registry_warming_up():
            result = self.search(pooled, plan, origin, share=POOLED_SHARE if units else 1.0)
        segments = self.segments(units, pooled, result, plan, material) if units else {}
        self.reach(RequestState.EVALUATING, "Scoring the best blend on rows that the search has not seen.")
        made = [self.deliver(finish(self.order(pooled, plan, material, origin), result)), *segments.values()]
        return self.conclude(made, thin=(*thin, *(unit.segment for unit in units)))

    def conclude(self, made: list[Made], *, thin: tuple[str, ...] = ()) -> Outcome:
        """End the request with what it has made, in this attempt and in earlier ones.

        Args:
            made: In this attempt.
            thin: Segments that the pooled variant serves unless they have a variant.
        """
        mine = {one.variant.name for one in made}
        earlier = [v for v in self.ledger.variants(request_id=self.id) if v.name not in mine]
        for variant in earlier:
            known = {change.version for change in self.ledger.alias_history(variant.name)}
            if variant.state == "registered" and variant.version not in known:
                self.promote(variant, why="Passed its gate in an attempt that was killed before this.", evidence={})
        variants = [*(one.variant for one in made), *earlier]
        passed = [variant for variant in variants if variant.state == "registered"]
        end = RequestState.REGISTERED if passed else RequestState.REJECTED
        names = ", ".join(f"{v.name}/{v.version}" for v in passed[:NAMED]) + (", ..." if len(passed) > NAMED else "")
        self.reach(end, f"Registered {names}." if passed else "No variant passed its gate; champions stay.")
        return Outcome(
            request_id=self.id,
            state=end,
            variants=tuple(variants),
            verdicts=tuple(one.verdict for one in made),
            made=tuple(made),
            pooled_segments=tuple(segment for segment in thin if segment not in {v.segment for v in variants}),
        )

    # --- searching -----------------------------------------------------------

    def search(self, unit: Unit, plan: Plan, origin: Origin, *, share: float) -> SearchResult:
        left_s = max(self.deadline.left_s - self.finish_s, LEAST_SEARCH_S)
        unit.data.workspace.mkdir(parents=True, exist_ok=True)
        if not origin.searched:
            return made_again(
                origin,
                unit,
                plan,
                settings=self.settings,
                deadline=Deadline.after(left_s),
                record=self.record,
                history=self.history(unit.segment),
            )
        result = search(
            plan,
            unit.data,
            ray=self.ray,
            settings=self.settings,
            history=self.history(unit.segment),
            deadline=Deadline.after(left_s * share),
            record=self.record,
            segment=unit.segment,
            seeds=origin.transfer.seeds,
            prior=origin.transfer.prior,
        )
        for family, reason in result.skipped.items():
            self.note("search", f"{family} was left out: {reason}.")
        return result

    def history(self, segment: str) -> list[Trial]:
        """Return this search's finished trials; one that an earlier driver left running is recorded as killed."""
        finished = []
        for trial in self.ledger.trials(self.id, segment=segment):
            if not trial.finished:
                update = {"state": TrialState.KILLED, "reason": "Its driver was interrupted."}
                trial = trial.model_copy(update=update)
                self.ledger.record_trial(self.id, trial)
            finished.append(trial)
        return finished

    def record(self, trial: Trial) -> None:
        self.ledger.record_trial(self.id, trial)
        self.tell(f"trial {trial.number} ({trial.family}) {trial.state}", trial=trial, segment=trial.segment)

    def search_message(self, material: Material, plan: Plan, pooled: Unit, n_segments: int, origin: Origin) -> str:
        data = pooled.data
        if not origin.searched and origin.parent is not None:
            return (
                f"Making {origin.parent.name}/{origin.parent.version} again ({origin.kind}) on "
                f"{len(data.dataset.y):,} rows; {len(pooled.unseen.y):,} rows are set aside for the gate."
            )
        folds_text = "a holdout" if len(data.splits) == 1 else f"{len(data.splits)} folds"
        more = f", {n_segments} segments" if n_segments else ""
        families = f"{len(plan.families)} families" if len(plan.families) > 1 else f"the family {plan.families[0]}"
        return (
            f"Searching {families} on {len(data.dataset.y):,} rows and "
            f"{material.dataset.frame.shape[1]} columns ({plan.task}, {plan.metric.label}, {folds_text}{more}); "
            f"{len(pooled.unseen.y):,} rows are set aside for the gate."
        )

    @contextmanager
    def registry_warming_up(self) -> Iterator[None]:
        """Let MLflow import and create its database beside the search."""
        thread = threading.Thread(target=self.warm_up_registry, name="mlflow-warm-up", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def warm_up_registry(self) -> None:
        try:
            self.registry.warm_up()
        except FactoryError as error:
            # It comes up again, and is then the request's end, if it still holds at registration.
            log.warning("request %s: %s", self.id, error.message)

    # --- segments ------------------------------------------------------------

    def segments(
        self, units: list[Unit], pooled: Unit, result: SearchResult, plan: Plan, material: Material
    ) -> dict[str, Made]:
        """Make the segments' variants over the cluster, seeded by the pooled search; one that fails ends no other.

        All of them are judged at once, as they come, so each gate asks for a confidence that lets one of them pass by
        luck no more often than a single gate would (Bonferroni).
        """
        origin = Origin("warm_start", transfer=Transfer(seeded_by=(self.id,)))
        done = {v.segment for v in self.ledger.variants(request_id=self.id)}
        confidence = 1 - (1 - plan.gates.confidence) / len(units)
        stricter = replace(plan, gates=plan.gates.model_copy(update={"confidence": confidence}))
        orders = [
            SegmentOrder(
                order=self.order(unit, stricter, material, origin),
                lent=None if unit.rows is None else lend(pooled.data, result, unit.rows),
                seeds=seeds_of(result),
            )
            for unit in units
            if unit.segment not in done
        ]
        if done:
            self.note("segment", f"{len(done)} segments were made by an earlier attempt.")
        made: dict[str, Made] = {}
        deadline = Deadline.after(max(self.deadline.left_s - self.finish_s, LEAST_SEARCH_S))
        for given, outcome in fan_out(orders, ray=self.ray, settings=self.settings, deadline=deadline):
            segment = given.order.lineage.segment
            if isinstance(outcome, Failed):
                self.note("segment", f"Segment {segment!r} is served by the pooled variant: {outcome.reason}")
                continue
            for trial in outcome.trials:
                if trial.number < LENT_FROM:
                    self.ledger.record_trial(self.id, trial)
            made[segment] = self.deliver(outcome)
            self.note("segment", f"{len(done) + len(made)} of {len(units)} segments are made: {segment!r}.")
        return made

    # --- delivering ----------------------------------------------------------

    def order(self, unit: Unit, plan: Plan, material: Material, origin: Origin) -> Order:
        """Return everything that the making of a variant needs."""
        used = set(unit.data.dataset.frame.columns)
        return Order(
            lineage=self.lineage(unit, plan, material, origin),
            plan=plan,
            data=unit.data,
            unseen=unit.unseen,
            champion=self.champion(unit, plan),
            findings=material.findings,
            ignored=tuple(
                dict.fromkeys(c for c in (*material.ignored, *material.dataset.frame.columns) if c not in used)
            ),
            profile=material.profile,
            features=material.dataset.features,
            memory=origin.memory,
            target=origin.transfer.target,
        )

    def deliver(self, made: Made) -> Made:
        """Register a judged variant, and promote it if its gate says yes; return it with its version."""
        variant = self.registry.register(
            made.folder,
            variant=made.variant,
            example=made.example,
            metrics=made.registration.metrics,
            parameters=made.registration.parameters,
            curves=made.registration.curves,
            files=made.registration.files,
            description=made.verdict.sentence,
        )
        variant = self.ledger.record_variant(variant)
        self.note("frontier", f"{variant.name}/{variant.version}: {made.trade}")
        self.note("gate", f"{variant.name}/{variant.version}: {made.verdict.sentence}")
        if made.verdict.passed:
            self.promote(variant, why=made.verdict.sentence, evidence=made.comparison.model_dump(mode="json"))
        return replace(made, variant=variant)

    def lineage(self, unit: Unit, plan: Plan, material: Material, origin: Origin) -> Variant:
        """Return the variant before it was scored: where it comes from."""
        parent = f"{origin.parent.name}/{origin.parent.version}" if origin.parent else self.request.parent
        features = material.dataset.features
        return Variant(
            name=unit.name,
            version=0,
            request_id=self.id,
            segment=unit.segment,
            kind=origin.kind,
            task=plan.task,
            metric=plan.metric.name,
            score=0.0,
            score_low=0.0,
            score_high=0.0,
            recipe=plan.recipe.name,
            recipe_digest=plan.recipe.digest,
            dataset_digest=material.dataset.digest,
            bundle_digest="",
            feature_service=features.service if features else None,
            feature_service_digest=features.digest if features else None,
            parent=self.request.variant if unit.segment else parent,
            seeded_by=origin.transfer.seeded_by,
            seed=self.request.seed,
        )

    def promote(self, variant: Variant, *, why: str, evidence: dict[str, Any]) -> None:
        """Let the ledger's alias, and MLflow's as its mirror, point at a variant that passed, as the request wishes."""
        wish = self.request.deployment
        if wish.as_ == "none":
            return
        alias = "champion" if wish.as_ == "champion" else "challenger"
        self.ledger.set_alias(
            variant.name,
            alias,
            variant.version,
            who=f"request {self.id}",
            why=why,
            evidence=evidence,
        )
        self.registry.set_alias(variant.name, alias, variant.version)
        self.ledger.set_deployment(variant.name, wish, version=variant.version)
        self.note("alias", f"{variant.name}/{variant.version} is {alias} now.")

    def champion(self, unit: Unit, plan: Plan) -> Baseline | None:
        """Return the champion's predictions of the gate's rows; None where a constant is to be beaten."""
        version = self.ledger.alias(unit.name, "champion")
        if plan.gates.baseline != "constant" and version is not None:
            champion = self.ledger.variant(unit.name, version)
            bundle = Bundle.load(self.registry.local_bundle(unit.name, version), digest=champion.bundle_digest)
            problems = bundle.check_input(
                unit.unseen.frame[[c.name for c in bundle.columns if c.name in unit.unseen.frame]]
            )
            if bundle.task is plan.task and bundle.classes == unit.unseen.classes and not problems:
                prediction = bundle.judged(bundle.predict_raw(unit.unseen.frame), plan.metric)
                return Baseline(f"the champion {unit.name}/{version}", prediction)
            self.note(
                "gate", f"The champion {unit.name}/{version} cannot predict these rows; compared with a constant."
            )
        return None

    # --- telling -------------------------------------------------------------

    def reach(self, state: RequestState, message: str) -> None:
        self.state = state
        self.ledger.reach(self.id, state, message)
        self.tell(message)

    def note(self, kind: str, message: str) -> None:
        self.ledger.note(self.id, kind, message)
        self.tell(message)

    def tell(self, message: str, *, trial: Trial | None = None, segment: str = "") -> None:
        self.listen(Progress(self.id, self.state, message, trial, segment, self.deadline.left_s))
