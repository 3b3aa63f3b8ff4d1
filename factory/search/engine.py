"""The search itself: a race of trials on two executors, then a blend, then refits.

Small searches run inline.  All others start inline as well, while Ray starts
in the main thread, and go on with Ray Tune as soon as it is there; both take
their trials from the same proposer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factory.errors import TrainingFault
from factory.families.base import Deadline
from factory.search.calibration import Calibration
from factory.search.cluster import Cluster, local_cpus, session
from factory.search.ensemble import Blend, Candidates, greedy
from factory.search.history import Proposer
from factory.search.jobs import Jobs, TrialData
from factory.search.plan import Plan, family
from factory.search.race import common_folds
from factory.search.refit import RefitProposer
from factory.search.samples import preparation_folder
from factory.search.study import Configuration, Prior
from factory.search.trial import TrialRunner
from factory.search.tune import run_tune
from factory.settings import Settings
from factory.spec import Trial

log = logging.getLogger(__name__)

INLINE_S = 20.0
"""Below this budget Ray's start would take most of it: the search runs inline."""
DRIVER_MB = 1_500.0
"""What the driver and an idle Ray take of a request's memory (PSS, measured)."""
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
        skipped: Family → why it was left out.
        calibration: Of a variant that was made again without a search; there are no candidates then.
    """

    trials: tuple[Trial, ...]
    candidates: Candidates
    folds: tuple[int, ...]
    blend: Blend
    parts: dict[int, tuple[Part, ...]]
    skipped: dict[str, str]
    calibration: Calibration | None = None


class RaySession:
    """Ray, connected to when it is first needed and kept for the whole request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = contextlib.ExitStack()
        self._cluster: Cluster | None = None

    def __enter__(self) -> RaySession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def connect(self) -> Cluster:
        """Return the connected cluster; takes seconds the first time. Call it from the main thread."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(session(self._settings))
        return self._cluster

    @property
    def connected(self) -> bool:
        """Whether Ray is there already."""
        return self._cluster is not None


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

    Raises:
        TrainingFault: no trial succeeded; names the reasons.
    """
    refits = len(data.splits) == 1
    left_s = deadline.left_s
    trials_until = Deadline(deadline.at - (REFIT_SHARE * left_s if refits else 0.0))
    small = ray is None or _is_small(plan, left_s)
    without = frozenset((settings.engine_without or "").split(","))
    if "transfer" in without:
        seeds, prior = (), None
    if "portfolio" in without:
        prior = Prior(prior.trials if prior else (), shortens=True)
    proposer = Proposer(
        plan=plan,
        data=data,
        history=history,
        deadline=trials_until,
        parallel=1 if small else local_cpus(settings),
        record=record,
        segment=segment,
        seeds=seeds,
        prior=prior,
        without=without,
    )
    executor = _Executor(plan, data, ray=ray, settings=settings)
    executor.run(proposer, name=f"search-{segment or 'pooled'}", small=small)
    trials = tuple(proposer.trials[number] for number in sorted(proposer.trials))
    candidates, common = _candidates(data, trials)
    if "ensemble" in without:
        best = max(candidates.predictions, key=lambda n: proposer.trials[n].score or -np.inf)
        candidates = replace(candidates, predictions={best: candidates.predictions[best]})
    blend = greedy(data.metric.chooser, candidates.targets, candidates.predictions)
    if refits:
        executor.run(
            RefitProposer(data, proposer.trials, blend, deadline), name="refit", small=ray is None or not ray.connected
        )
    parts = {n: _parts(data, proposer.trials[n]) for n in candidates.predictions}
    return SearchResult(trials, candidates, common, blend, parts, dict(proposer.skipped))


def _is_small(plan: Plan, left_s: float) -> bool:
    distributed = plan.request.resources.workers > 1 and any(family(name).distributed for name in plan.families)
    few = plan.budget.trials is not None and plan.budget.trials <= 3
    return not distributed and (left_s < INLINE_S or few)


class _Executor:
    """Runs jobs: inline, on Ray Tune, or inline until Ray is there."""

    def __init__(self, plan: Plan, data: TrialData, *, ray: RaySession | None, settings: Settings) -> None:
        self._plan, self._data, self._ray, self._settings = plan, data, ray, settings
        memory_mb = min(plan.budget.memory_gb, settings.memory_gb or plan.budget.memory_gb) * 1000
        self._worker_mb = max(800.0, (memory_mb - DRIVER_MB) / local_cpus(settings))
        self._inline = TrialRunner(data, threads=1, memory_limit_mb=max(memory_mb, 1000.0))

    def run(self, jobs: Jobs, *, name: str, small: bool) -> None:
        if small or self._ray is None:
            self._run_inline(jobs, lambda: True)
            return
        tune_is_up = threading.Event()
        helper: AbstractContextManager[object] = contextlib.nullcontext()
        if not self._ray.connected and not self._distributes():
            helper = _Alongside(lambda: self._run_inline(jobs, lambda: not tune_is_up.is_set()))
        with helper:
            try:
                cluster = self._ray.connect()
                jobs.parallel = 1 if self._distributes() else cluster.cpus
                run_tune(
                    jobs,
                    self._data,
                    threads=1,
                    memory_limit_mb=self._worker_mb,
                    name=name,
                    on_first_end=tune_is_up.set,
                )
            finally:
                tune_is_up.set()

    def _distributes(self) -> bool:
        return self._plan.request.resources.workers > 1

    def _run_inline(self, jobs: Jobs, wanted: Callable[[], bool]) -> None:
        while wanted() and not jobs.exhausted:
            job = jobs.next()
            if job is None:
                return
            jobs.done(job, self._inline.run(job))


class _Alongside:
    """Runs a function in a thread for the length of a ``with`` block, and re-raises what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name="inline-trials", daemon=True)

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._thread.join()
        if self._error is not None and exception[0] is None:
            raise self._error


def _candidates(data: TrialData, trials: Sequence[Trial]) -> tuple[Candidates, tuple[int, ...]]:
    """Return the trials that can be blended, with their predictions of the folds they share, and these folds."""
    folds = {t.number: tuple(k for k in t.folds if data.out_of_fold(t.number, k).is_file()) for t in trials if t.folds}
    folds = {number: done for number, done in folds.items() if 0 in done}
    if not folds:
        reasons = sorted({f"{t.family}: {t.reason}" for t in trials if t.reason}) or ["no trial could finish in time"]
        raise TrainingFault(
            f"None of {len(trials)} trials gave a usable model. " + " | ".join(reasons[:6]),
            hint="Give more time or memory, or look at `factory requests logs ID` for each trial's reason.",
        )
    members, common = common_folds(folds)
    candidates = Candidates(
        metric=data.metric,
        targets=tuple(data.dataset.y[data.splits[k].validation] for k in common),
        predictions={n: tuple(np.load(data.out_of_fold(n, k), allow_pickle=False) for k in common) for n in members},
    )
    return candidates, common


def _parts(data: TrialData, trial: Trial) -> tuple[Part, ...]:
    """Return a trial's models: its refit where there is one, else those of its folds with equal shares."""
    if (refit := data.model_folder(trial.number, None)).is_dir():
        return (Part(trial, refit, None, preparation_folder(data, None), 1.0),)
    return tuple(
        Part(trial, data.model_folder(trial.number, k), k, preparation_folder(data, k), 1 / len(trial.folds))
        for k in trial.folds
    )
