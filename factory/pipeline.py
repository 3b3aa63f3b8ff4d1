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
from dataclasses import dataclass

import numpy as np

from factory.errors import Conflict, FactoryError, SystemFault
from factory.families.base import Deadline
from factory.ledger import Ledger, RequestRecord
from factory.search.cluster import local_cpus
from factory.search.engine import RaySession, SearchResult, search
from factory.search.plan import Plan, check_request, make_plan
from factory.settings import Settings
from factory.spec import (
    Recipe,
    RequestState,
    Trial,
    TrialState,
    Variant,
    VariantRequest,
)
from factory.variants.bundle import Bundle
from factory.variants.delivery import (
    Appraisal,
    Baseline,
    appraise,
    appraised,
    constant_baseline,
    evidence_files,
    model_card,
)
from factory.variants.gates import Verdict
from factory.variants.material import Material, Unit, divide, gather
from factory.variants.registry import Registry

log = logging.getLogger(__name__)

POOLED_SHARE = 0.4
"""Part of the time that the pooled variant gets where there are segments; the others share the rest."""
FINISH_SHARE, FINISH_LEAST_S, FINISH_MOST_S = 0.12, 3.0, 20.0
"""Part of the budget kept for bundle, scores, gate and registration; measured 2 to 5 s for one variant."""
LEAST_SEARCH_S = 5.0


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
    """What a request came to: its variants, each with its verdict and whether it was promoted."""

    request_id: str
    state: RequestState
    variants: tuple[Variant, ...]
    verdicts: tuple[Verdict, ...]
    results: tuple[SearchResult, ...]
    pooled_segments: tuple[str, ...] = ()


def submit(document: object, *, ledger: Ledger, settings: Settings, retry_of: str | None = None) -> RequestRecord:
    """Check a request and put it into the queue.

    Raises:
        InvalidRequest: with one detail for each problem; nothing is stored.
        NotFound: the recipe does not exist.
    """
    request, _ = check_request(document, settings=settings)
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
        self.reach(RequestState.PREPARING, "Reading and screening the data.")
        validation = self.request.validation or self.recipe.validation
        material = gather(self.request, validation, settings=self.settings, note=self.note)
        plan = make_plan(self.request, self.recipe, material.dataset.task)
        units, pooled = divide(material, plan, workspace=self.workspace, note=self.note)
        self.reach(RequestState.SEARCHING, self.search_message(material, plan, units))
        with self.registry_warming_up():
            for position, unit in enumerate(units):
                unit.result = self.search(unit, plan, share=self.share(position, len(units)))
        self.reach(RequestState.EVALUATING, "Scoring the best blend on rows that the search has not seen.")
        judged = [self.deliver(unit, plan, material) for unit in units]
        passed = [variant for variant, appraisal in judged if appraisal.verdict.passed]
        end = RequestState.REGISTERED if passed else RequestState.REJECTED
        names = ", ".join(f"{v.name}/{v.version}" for v in passed)
        self.reach(end, f"Registered {names}." if passed else "No variant passed its gate; champions stay.")
        return Outcome(
            request_id=self.id,
            state=end,
            variants=tuple(variant for variant, _ in judged),
            verdicts=tuple(appraisal.verdict for _, appraisal in judged),
            results=tuple(unit.result for unit in units if unit.result is not None),
            pooled_segments=pooled,
        )

    # --- searching -----------------------------------------------------------

    def share(self, position: int, n_units: int) -> float:
        """Part of the remaining search time that a unit gets."""
        if n_units == 1:
            return 1.0
        return POOLED_SHARE if position == 0 else 1 / (n_units - position)

    def search(self, unit: Unit, plan: Plan, *, share: float) -> SearchResult:
        left_s = max(self.deadline.left_s - self.finish_s, LEAST_SEARCH_S)
        unit.data.workspace.mkdir(parents=True, exist_ok=True)
        result = search(
            plan,
            unit.data,
            ray=self.ray,
            settings=self.settings,
            history=self.history(unit.segment),
            deadline=Deadline.after(left_s * share),
            record=self.record,
            segment=unit.segment,
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

    def search_message(self, material: Material, plan: Plan, units: list[Unit]) -> str:
        data = units[0].data
        folds_text = "a holdout" if len(data.splits) == 1 else f"{len(data.splits)} folds"
        more = f", {len(units) - 1} segments" if len(units) > 1 else ""
        families = f"{len(plan.families)} families" if len(plan.families) > 1 else f"the family {plan.families[0]}"
        return (
            f"Searching {families} on {len(data.dataset.y):,} rows and "
            f"{material.dataset.frame.shape[1]} columns ({plan.task}, {plan.metric.label}, {folds_text}{more}); "
            f"{len(units[0].unseen.y):,} rows are set aside for the gate."
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

    # --- delivering ----------------------------------------------------------

    def deliver(self, unit: Unit, plan: Plan, material: Material) -> tuple[Variant, Appraisal]:
        """Judge a unit's blend, register it, and promote it if its gate says yes."""
        if unit.result is None:
            raise SystemFault(f"The search of {unit.name} left no result.", hint="Run the request again.")
        result, baseline = unit.result, self.baseline(unit, plan)
        lineage = self.lineage(unit, plan, material)
        appraisal = appraise(
            result,
            plan=plan,
            data=unit.data,
            unseen=unit.unseen,
            baseline=baseline,
            findings=material.findings,
            ignored=material.ignored,
            metadata={"variant": unit.name, "request": self.id, "recipe": plan.recipe.name},
            folder=unit.data.workspace / "bundle",
        )
        variant = appraised(lineage, appraisal)
        card = model_card(
            variant,
            appraisal,
            result,
            plan=plan,
            baseline=baseline,
            findings=material.findings,
            profile=material.profile,
            features=material.dataset.features,
            example=unit.unseen.frame,
        )
        files = evidence_files(card, result)
        (unit.data.workspace / "card.html").write_text(files["card.html"], encoding="utf-8")
        variant = self.registry.register(
            appraisal.folder,
            variant=variant,
            example=unit.unseen.frame.head(3),
            metrics={**appraisal.evaluation.scores, "latency_ms": appraisal.latency_ms, "size_mb": appraisal.size_mb},
            parameters={"families": ",".join(plan.families), "validation": plan.validation.kind, "seed": variant.seed},
            curves={f"{t.number}-{t.family}": t.curve for t in result.trials if t.number in appraisal.weights},
            files=files,
            description=appraisal.verdict.sentence,
        )
        variant = self.ledger.record_variant(variant)
        self.note("frontier", f"{variant.name}/{variant.version}: {appraisal.frontier.sentence}")
        self.note("gate", f"{variant.name}/{variant.version}: {appraisal.verdict.sentence}")
        if appraisal.verdict.passed:
            self.promote(variant, appraisal)
        return variant, appraisal

    def lineage(self, unit: Unit, plan: Plan, material: Material) -> Variant:
        """Return the variant before it was scored: where it comes from."""
        features = material.dataset.features
        return Variant(
            name=unit.name,
            version=0,
            request_id=self.id,
            segment=unit.segment,
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
            parent=self.request.variant if unit.segment else self.request.parent,
            seed=self.request.seed,
            cost_s=round(sum(t.cost_s for t in unit.result.trials), 2) if unit.result else 0.0,
        )

    def promote(self, variant: Variant, appraisal: Appraisal) -> None:
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
            why=appraisal.verdict.sentence,
            evidence=appraisal.comparison.model_dump(mode="json"),
        )
        self.registry.set_alias(variant.name, alias, variant.version)
        self.ledger.set_deployment(variant.name, wish, version=variant.version)
        self.note("alias", f"{variant.name}/{variant.version} is {alias} now.")

    def baseline(self, unit: Unit, plan: Plan) -> Baseline:
        """Return what the gate compares with: the champion where there is one and the gates want it."""
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
        return constant_baseline(unit.data.dataset, unit.unseen)

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
