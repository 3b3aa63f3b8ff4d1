"""The search itself: a race of trials on two executors, then a blend, then refits.

Small searches run inline.  All others start inline as well, while Ray starts
in the main thread, and go on with Ray Tune as soon as it is there; both take
their trials from the same proposer (:mod:`factory.search.executor`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from factory.errors import TrainingFault, counted
from factory.families.base import Deadline
from factory.search.calibration import Calibration
from factory.search.cluster import RaySession
from factory.search.ensemble import MOST_CANDIDATES, Blend, Candidates, greedy
from factory.search.executor import Executor
from factory.search.history import Proposer
from factory.search.jobs import TrialData
from factory.search.near import POOL, NearWorkers
from factory.search.plan import Plan, family
from factory.search.race import common_folds
from factory.search.refit import RefitProposer
from factory.search.samples import preparation_folder
from factory.search.splits import check_defined
from factory.search.study import Configuration, Prior
from factory.search.watchdog import DIED, UNANSWERED
from factory.search.yielding import Room, Yielding
from factory.settings import Settings
from factory.spec import REMADE, Trial, VariantRequest

INLINE_S = 20.0
"""Below this budget Ray's start would take most of it: the search runs inline."""
NEAR_S = 120.0
"""Below this budget Ray's start, and that of its workers, is worth avoiding where there is none yet."""
REFIT_SHARE = 0.25
"""Part of the search's time kept for refits on all rows, where there is one fold only."""


@dataclass(frozen=True)
class Part:
    """A fitted model of a trial.

    Attributes:
        trial: Its trial.
        folder: Where the model lies.
        fold: That it was fitted on; None for all rows.
        preparation: Where the preparation lies whose tables it takes.
        share: Of the trial's weight.
    """

    trial: Trial
    folder: Path
    fold: int | None
    preparation: Path
    share: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        trials: All of them, by number.
        candidates: Out-of-fold predictions of those that a blend may be made of.
        folds: Positions of the folds that these are of.
        blend: The best blend of the candidates by these predictions.
        parts: Candidate → its models; their shares sum to 1.
        judges: Candidate → its model of the first fold, which has not learned from the gate's rows; empty where no
            model has.
        skipped: Family → why it was left out.
        notes: What else a person should know of how it was searched.
        calibration: Of a variant that was made again without a search; there are no candidates then.
    """

    trials: tuple[Trial, ...]
    candidates: Candidates
    folds: tuple[int, ...]
    blend: Blend
    parts: dict[int, tuple[Part, ...]]
    skipped: dict[str, str]
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    judges: dict[int, Part] = field(default_factory=dict)


def search(
    plan: Plan,
    data: TrialData,
    *,
    ray: RaySession | None,
    settings: Settings,
    history: Sequence[Trial],
    deadline: Deadline,
    record: Callable[[Trial], None],
    segment: str = "",
    seeds: Sequence[Configuration] = (),
    prior: Prior | None = None,
    room: Room | None = None,
    near: NearWorkers | None = None,
) -> SearchResult:
    """Search until the deadline or the trials are used up, and return the best blend.

    Args:
        plan: What may be tried.
        data: The search's rows, folds and workspace.
        ray: Connected to when the search is not small; None keeps every search in this process.
        settings: Of this process.
        history: Trials that an interrupted run of this search has finished.
        deadline: When the blend and its refits have to be there.
        record: Called with each trial when it starts and when it ends.
        segment: Value of the segment, empty for the pooled data.
        seeds: Configurations to try first.
        prior: What other searches found, for the proposals after the first bets.
        room: Whether the request is asked to make room for another.
        near: Workers of this machine, for a search that is too short for Ray's start.

    Raises:
        Preempted: room was asked for; every trial that has ended is recorded.
        InvalidData: the metric is not defined on the rows that validate.
        TrainingFault: no trial succeeded; names the reasons.
    """
    check_defined(data.metric, data.dataset, data.splits[0].validation, what="validation rows")
    refits = len(data.splits) == 1
    left_s = deadline.left_s
    trials_until = Deadline(deadline.at - (REFIT_SHARE * left_s if refits else 0.0))
    without = frozenset((settings.engine_without or "").split(","))
    if "transfer" in without:
        seeds, prior = (), None
    trials: dict[int, Trial] = {}
    executor = Executor(
        plan, data, ray=ray, settings=settings, usable=lambda: any(t.folds for t in [*trials.values()]), near=near
    )
    small = ray is None or _is_small(plan, left_s)
    proposer = Proposer(
        plan=plan,
        data=data,
        history=history,
        deadline=trials_until,
        parallel=1 if small else max(1, executor.crew.workers),
        record=record,
        segment=segment,
        seeds=seeds,
        prior=prior,
        without=without,
        trials=trials,
    )
    room = room or Room()
    suffices = near_suffices(plan, proposer.families, left_s=left_s, ray=ray)
    if near is not None and not suffices:
        near.close()
    executor.run(
        Yielding(proposer, room),
        small=small,
        near=near is not None and suffices,
        name=f"search-{segment or 'pooled'}",
    )
    room.make()
    candidates, common = _candidates(data, _in_order(trials))
    if "ensemble" in without:
        best = _best(candidates, trials)
        candidates = replace(candidates, predictions={best: candidates.predictions[best]})
    blend = _blend(candidates, trials)
    if refits:
        proposed = RefitProposer(data, trials, blend, deadline)
        executor.run_few(proposed, count=proposed.count, expected_s=proposed.expected_s, name="refit")
    return SearchResult(
        trials=_in_order(trials),
        candidates=candidates,
        folds=common,
        blend=blend,
        parts={n: _parts(data, trials[n]) for n in candidates.predictions},
        skipped=dict(proposer.skipped),
        notes=(executor.crew.reason,) if executor.crew.reason and not small else (),
        judges={n: first_part(data, trials[n]) for n in candidates.predictions} if data.n_gate else {},
    )


def near_may_serve(request: VariantRequest, *, left_s: float, ray: RaySession) -> bool:
    """Whether a request's search may do without Ray, as far as that is known before its data are read."""
    searched = request.making not in REMADE and request.segments is None and request.resources.workers == 1
    return searched and INLINE_S < left_s < NEAR_S and not ray.given


def near_suffices(plan: Plan, families: Collection[str], *, left_s: float, ray: RaySession | None) -> bool:
    """Whether a search needs no Ray: it is short, no Ray is there, and one kind of worker fits all of it.

    Segments are made on Ray, which had better start while their pooled variant is searched.
    """
    pools = {family(name).pool for name in families}
    alone = plan.request.segments is None and not _distributes(plan)
    return ray is not None and not ray.given and left_s < NEAR_S and pools == {POOL} and alone


def _distributes(plan: Plan) -> bool:
    return plan.request.resources.workers > 1 and any(family(name).distributed for name in plan.families)


def _in_order(trials: Mapping[int, Trial]) -> tuple[Trial, ...]:
    return tuple(trials[number] for number in sorted(trials))


def _blend(candidates: Candidates, trials: Mapping[int, Trial]) -> Blend:
    """Return the best blend; the best single trial where the metric cannot tell blends apart on these rows."""
    metric = candidates.metric
    for one in dict.fromkeys((metric.chooser, metric)):
        blend = greedy(one, candidates.targets, candidates.predictions, weights=candidates.weights)
        if blend.weights:
            return blend
    best = _best(candidates, trials)
    return Blend({best: 1.0}, _score(trials[best]))


def _best(candidates: Candidates, trials: Mapping[int, Trial]) -> int:
    return max(sorted(candidates.predictions), key=lambda n: _score(trials[n]))


def _score(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score


def _is_small(plan: Plan, left_s: float) -> bool:
    few = plan.budget.trials is not None and plan.budget.trials <= 3
    return not _distributes(plan) and (left_s < INLINE_S or few)


def _candidates(data: TrialData, trials: Sequence[Trial]) -> tuple[Candidates, tuple[int, ...]]:
    """Return the trials that can be blended, with their predictions of the folds they share, and these folds.

    The predictions are mapped from disk, and so many trials at most as a blend looks at: the best ones, and the best of
    each family.
    """
    folds = {t.number: tuple(k for k in t.folds if data.out_of_fold(t.number, k).is_file()) for t in trials if t.folds}
    folds = {number: done for number, done in folds.items() if 0 in done}
    if not folds or _only_lost(trials):
        reasons = sorted({f"{t.family}: {t.reason}" for t in trials if t.reason}) or ["no trial could finish in time"]
        raise TrainingFault(
            f"None of {counted(len(trials), 'trial')} gave a usable model. " + " | ".join(reasons[:6]),
            hint="Give more time or memory, or look at `factory requests logs ID` for each trial's reason.",
        )
    by_number, used = {t.number: t for t in trials}, sorted({k for done in folds.values() for k in done})
    weights = data.weights_of(used)
    members, common = common_folds(
        data.metric,
        {k: data.dataset.y[data.splits[k].validation] for k in used},
        lambda n, k: _mapped(data.out_of_fold(n, k)),
        folds,
        weights=None if weights is None else dict(zip(used, weights, strict=True)),
    )
    members = _worth_blending([by_number[n] for n in members], common)
    candidates = Candidates(
        metric=data.metric,
        targets=tuple(data.dataset.y[data.splits[k].validation] for k in common),
        predictions={n: tuple(_mapped(data.out_of_fold(n, k)) for k in common) for n in members},
        weights=data.weights_of(common),
    )
    return candidates, common


def _only_lost(trials: Sequence[Trial]) -> bool:
    """Whether trials were lost with their workers and nothing but a constant was made: no word on the data."""
    lost = any(t.reason in (DIED, UNANSWERED) for t in trials)
    return lost and all(t.family == "constant" for t in trials if t.folds)


def _worth_blending(trials: Sequence[Trial], folds: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of the best trials on these folds, and of the best one of each family."""
    scores = {t.number: sum(s for k, s in zip(t.folds, t.fold_scores, strict=True) if k in folds) for t in trials}
    ordered = sorted(trials, key=lambda t: (-scores[t.number], t.number))
    firsts = {t.family: t.number for t in reversed(ordered)}
    kept = {*(t.number for t in ordered[:MOST_CANDIDATES]), *firsts.values()}
    return tuple(sorted(kept))


def _mapped(path: Path) -> np.ndarray:
    """Return predictions whose pages the operating system may drop again."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def first_part(data: TrialData, trial: Trial) -> Part:
    """Return a trial's model of the first fold as all of it."""
    return Part(trial, data.model_folder(trial.number, 0), 0, preparation_folder(data, 0), 1.0)


def _parts(data: TrialData, trial: Trial) -> tuple[Part, ...]:
    """Return a trial's models: its refit where there is one, else those of its folds with equal shares."""
    if (refit := data.model_folder(trial.number, None)).is_dir():
        return (Part(trial, refit, None, preparation_folder(data, None), 1.0),)
    return tuple(
        Part(trial, data.model_folder(trial.number, k), k, preparation_folder(data, k), 1 / len(trial.folds))
        for k in trial.folds
    )
