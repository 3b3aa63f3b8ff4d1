"""The single path: one request becomes registered variants.

``produce`` is called by every door.  Each stage writes its event to the
ledger and is idempotent: a driver that was killed anywhere is followed by
another ``produce`` of the same request, which takes the finished trials from
the ledger and goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from factory.errors import Conflict, FactoryError, StorageFault, counted
from factory.families.base import Deadline
from factory.ledger import Ledger, RequestRecord
from factory.search.clock import FINISH_LEAST_S, LEAST_SEARCH_S, Clock, finish_s_of
from factory.search.cluster import RaySession, local_cpus, memory_budget_mb
from factory.search.engine import SearchResult, near_may_serve, search
from factory.search.near import NearWorkers
from factory.search.plan import Plan, check_request, make_plan
from factory.search.samples import clear_drafts
from factory.search.transfer import Transfer
from factory.search.yielding import Room
from factory.settings import Settings
from factory.spec import REMADE, Recipe, RequestState, Trial, Variant, VariantRequest
from factory.variants.appraisal import chosen_blend
from factory.variants.ending import ending_as_failed
from factory.variants.fanout import Failed, fan_out, pooled_share
from factory.variants.frontier import Chosen
from factory.variants.gates import Verdict
from factory.variants.joint import JointGate
from factory.variants.making import Made, Order, finish, order_of
from factory.variants.material import Material, Unit, bounded, divide, gather, left_pooled
from factory.variants.mlflow_model import make_ready
from factory.variants.origin import Origin, made_again, origin_of
from factory.variants.recovery import taken_up
from factory.variants.registry import Registry
from factory.variants.release import Release
from factory.variants.segments import SegmentOrder, lend, seeds_of, told
from factory.variants.settled import LENT_FROM

log = logging.getLogger(__name__)

REGISTRY_AWAY_S = 120.0
"""For which MLflow's server may be away; what is made is made, and a server that is started again takes a minute."""
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


def produce(
    request_id: str,
    *,
    ledger: Ledger,
    settings: Settings,
    listen: Listener = lambda _: None,
    clock: Clock | None = None,
) -> Outcome:
    """Make what a request asks for, from where an earlier attempt may have stopped.

    Args:
        request_id: A request of the ledger that has not ended.
        ledger: The state.
        settings: Of this process.
        listen: Told every state and every trial.
        clock: When its time began; now where not given.

    Returns:
        The variants, promoted or rejected by their gates.

    Raises:
        UserFault, SystemFault: the request ended as FAILED for this reason; nothing is half-registered.
        Conflict: the request has ended, was cancelled, or is made already, or another live driver works on it.
    """
    clock = clock or Clock.now()
    settings.prepare_home()
    if (state := ledger.request(request_id).state) in (RequestState.REGISTERED, RequestState.SERVING):
        raise Conflict(
            f"Request {request_id} is {state}: its variants are made, there is nothing left to do.",
            hint=f"`factory requests show {request_id}` lists them; submit its document again for new ones.",
        )
    with (
        ledger.claim(request_id) as claim,
        ending_as_failed(claim.record.id, ledger=ledger, settings=settings),
        RaySession(settings) as ray,
        NearWorkers() as near,
    ):
        return _Making(claim.record, ledger, settings, ray, near, listen, clock).run()


class _Making:
    """The stages of one request, in order."""

    def __init__(
        self,
        record: RequestRecord,
        ledger: Ledger,
        settings: Settings,
        ray: RaySession,
        near: NearWorkers,
        listen: Listener,
        clock: Clock,
    ) -> None:
        self.id, self.ledger, self.settings, self.listen = record.id, ledger, settings, listen
        self.clock = clock
        self.ray, self.near = ray, near
        self.request: VariantRequest
        self.recipe: Recipe
        self.request, self.recipe = check_request(record.request, settings=settings)
        self.registry = Registry(settings, patience_s=REGISTRY_AWAY_S)
        self.release = Release(self.id, self.request, ledger=ledger, registry=self.registry, note=self.note)
        self.workspace = settings.workspace(record.id)
        budget = self.request.terms(self.recipe).budget
        # What was spent on files that are gone was not spent on what this attempt has.
        spent_s = sum(t.cost_s for t in ledger.trials(record.id)) / local_cpus(settings)
        spent_s *= self.workspace.is_dir()
        self.deadline = clock.deadline(budget.time_s, spent_s=spent_s)
        self.finish_s = finish_s_of(budget.time_s)
        self.state = record.state
        self.warming = threading.Thread(target=self.warm_up_registry, name="mlflow-warm-up", daemon=True)
        self.room = Room(self.asked_to_stop)

    def asked_to_stop(self) -> bool:
        try:
            return self.ledger.wish(self.id) is not None
        except StorageFault:
            return False  # it is looked up again

    def run(self) -> Outcome:
        if any(not variant.segment for variant in self.ledger.variants(request_id=self.id)):
            # The pooled variant is recorded last: an earlier attempt was killed between that and the request's end.
            return self.conclude([])
        clear_drafts(self.workspace)
        if near_may_serve(self.request, left_s=self.deadline.left_s - self.finish_s, ray=self.ray):
            self.near.start()  # which imports while the data are read
        if self.request.making in REMADE:
            self.warming.start()  # nothing is searched that would be longer than MLflow's import
        start = None if (start_s := self.clock.start_s) is None else {"start_s": start_s}
        self.reach(RequestState.PREPARING, "Reading and screening the data.", start)
        terms = self.request.terms(self.recipe)
        most_mb = memory_budget_mb(terms.budget, self.settings)
        material = gather(self.request, terms.validation, settings=self.settings, note=self.note, memory_mb=most_mb)
        plan = bounded(make_plan(self.request, self.recipe, material.dataset.task), material, note=self.note)
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
        plan = replace(plan, metric=pooled.data.metric)  # which may have the floor of a parent that goes on
        self.reach(RequestState.SEARCHING, self.search_message(material, plan, pooled, len(units), origin))
        with self.registry_warming_up():
            result = self.search(pooled, plan, origin, share=self.pooled_share(len(units)))
        chosen, segments = None, dict[str, Made]()
        if units:
            began_s = self.deadline.left_s
            until = Deadline.after(self.finish_s)
            chosen = chosen_blend(result, plan=plan, data=pooled.data, unseen=pooled.unseen, deadline=until)
            self.finish_s = max(self.finish_s - (began_s - self.deadline.left_s), FINISH_LEAST_S)
            segments = self.segments(units, pooled, result, chosen, plan, material)
        self.reach(RequestState.EVALUATING, "Scoring the best blend on rows that the search has not seen.")
        whole = finish(self.order(pooled, plan, material, origin), result, deadline=self.deadline, chosen=chosen)
        made = [self.release.deliver(whole), *segments.values()]
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
            self.release.catch_up(variant)
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
                history=self.history(unit),
            )
        result = search(
            plan,
            unit.data,
            ray=self.ray,
            settings=self.settings,
            history=self.history(unit),
            deadline=Deadline.after(left_s * share),
            record=self.record,
            segment=unit.segment,
            seeds=origin.transfer.seeds,
            prior=origin.transfer.prior,
            room=self.room,
            near=self.near,
        )
        for family, reason in result.skipped.items():
            self.note("search", f"{family} was left out: {reason}.")
        for sentence in result.notes:
            self.note("search", sentence)
        return result

    def pooled_share(self, n_segments: int) -> float:
        """Return the part of the time that the pooled variant's search gets; the segments have the rest."""
        cpus = self.ray.connect().cpus if self.ray.given else local_cpus(self.settings)
        return pooled_share(n_segments, left_s=self.deadline.left_s - self.finish_s, cpus=cpus)

    def history(self, unit: Unit) -> list[Trial]:
        """Return the trials that an earlier attempt has left to go on from, and tell of those that are lost."""
        trials = self.ledger.trials(self.id, segment=unit.segment)
        taken, n_lost = taken_up(trials, unit.data, record=partial(self.ledger.record_trial, self.id))
        if n_lost:
            lost = StorageFault(
                f"Files of {n_lost} of {len(trials)} trials of an earlier attempt are gone from "
                f"{str(unit.data.workspace)!r}; their configurations are fitted again.",
                hint="Nothing but the factory may clear FACTORY_HOME while a request is unfinished.",
            )
            log.error("request %s: %s", self.id, lost.message)
            self.note("storage", f"{lost.message} {lost.hint}")
        return taken

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
        more = f", {counted(n_segments, 'segment')}" if n_segments else ""
        families = f"{len(plan.families)} families" if len(plan.families) > 1 else f"the family {plan.families[0]}"
        return (
            f"Searching {families} on {len(data.dataset.y):,} rows and "
            f"{material.dataset.frame.shape[1]} columns ({plan.task}, {plan.metric.label}, {folds_text}{more}); "
            f"{len(pooled.unseen.y):,} rows are set aside for the gate."
        )

    @contextmanager
    def registry_warming_up(self) -> Iterator[None]:
        """Let MLflow import and create its database beside the search, unless it does already."""
        if self.warming.ident is None:
            self.warming.start()
        try:
            yield
        finally:
            self.warming.join()

    def warm_up_registry(self) -> None:
        try:
            self.registry.warm_up()
            make_ready()
        except FactoryError as error:
            # It comes up again, and is then the request's end, if it still holds at registration.
            log.warning("request %s: %s", self.id, error.message)

    # --- segments ------------------------------------------------------------

    def segments(
        self,
        units: list[Unit],
        pooled: Unit,
        result: SearchResult,
        chosen: Chosen,
        plan: Plan,
        material: Material,
    ) -> dict[str, Made]:
        """Make the segments' variants over the cluster, seeded by the pooled search; one that fails ends no other.

        All gates together let one of them pass by luck no more often than a single gate would
        (:class:`~factory.variants.joint.JointGate`).
        """
        origin = Origin("warm_start", transfer=Transfer(seeded_by=(self.id,)))
        earlier = [v for v in self.ledger.variants(request_id=self.id) if v.segment]
        done = {v.segment for v in earlier}
        gate = JointGate(plan.gates, n_segments=len(units), earlier=earlier)
        orders = [
            SegmentOrder(
                order=replace(self.order(unit, plan, material, origin), sure=gate.sure),
                lent=None if unit.rows is None else lend(pooled.data, result, chosen, unit.rows),
                seeds=seeds_of(result),
            )
            for unit in units
            if unit.segment not in done
        ]
        if done:
            self.note("segment", f"An earlier attempt has made {counted(len(done), 'segment')}.")
        made: dict[str, Made] = {}

        def take(one: Made) -> None:
            segment = one.variant.segment
            made[segment] = self.release.deliver(one)
            n_made = len(done) + len(made)
            self.note("segment", f"{n_made} of {len(units)} segments are made: {segment!r}, {told(one)}.")

        deadline = Deadline.after(max(self.deadline.left_s - self.finish_s, LEAST_SEARCH_S))
        for given, outcome in fan_out(orders, ray=self.ray, settings=self.settings, deadline=deadline, room=self.room):
            if isinstance(outcome, Failed):
                segment = given.order.lineage.segment
                self.note(*left_pooled(segment, outcome.reason))
                continue
            for trial in outcome.trials:
                if trial.number < LENT_FROM:
                    self.ledger.record_trial(self.id, trial)
            if gate.settled(outcome):
                take(outcome)
        for one in gate.rest():
            take(one)
        return made

    # --- delivering ----------------------------------------------------------

    def order(self, unit: Unit, plan: Plan, material: Material, origin: Origin) -> Order:
        champion = self.release.champion(unit, plan)
        return order_of(self.id, unit, plan=plan, material=material, origin=origin, champion=champion)

    # --- telling -------------------------------------------------------------

    def reach(self, state: RequestState, message: str, payload: Mapping[str, object] | None = None, /) -> None:
        self.state = state
        self.ledger.reach(self.id, state, message, payload=payload)
        self.tell(message)

    def note(self, kind: str, message: str, payload: Mapping[str, object] | None = None, /) -> None:
        self.ledger.note(self.id, kind, message, payload=payload)
        self.tell(message)

    def tell(self, message: str, *, trial: Trial | None = None, segment: str = "") -> None:
        self.listen(Progress(self.id, self.state, message, trial, segment, self.deadline.left_s))
