"""What is fitted next: bets on the first fold, then further folds of those that earn it, then the search.

A race over folds.  The portfolio's configurations are fitted on the first fold
until it is through or a part of the time is used.  A greedy choice says what
each would weigh in a blend; the next fold is always the one that takes most
off the blend's loss for its time.  With what time is left the next best get
theirs, then Optuna proposes more.  Pruning is part of it: a configuration that
does not earn its second fold has cost one of eight.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from factory.families.base import Deadline
from factory.search.allowance import LATER_FOLD, LATER_FOLD_S, POOL_START_S, SHORTEST_TRIAL_S, Allowance
from factory.search.jobs import FitJob, FitResult, TrialData, first_fold_score, merged
from factory.search.plan import Plan, family
from factory.search.race import gain, relative_loss
from factory.search.standing import Standing, fold_s
from factory.search.study import Configuration, Key, Prior, Study, key_of, shape_of
from factory.search.watchdog import DIED
from factory.space import Parameters, clip
from factory.spec import Trial, TrialState

BATCH = 4
"""Trials asked for at once in a repeatable search; fixed, so that it does not depend on the machine's CPUs."""
RANK_CYCLE = (0, 1, 0, 2)
"""How the search shares its trials among the best families: half to the first, a quarter each to the next two."""
EXPLORE_SHARE = 0.4
"""Part of the time for first folds; then the best of them get the others (docs/decisions/engine.md)."""
SLOWER, PROMISING = 0.4, 1.02
"""Part of its rate at which a booster is tried as well, and the loss relative to the least up to which it is."""
PATIENT_S = 120.0
"""Seconds of a search from which the driver leaves boosters to Ray's workers, while these start."""
COUNTED_SHARE = 0.75
"""Part of the time after which counted trials wait: a count that time does not suffice for cannot be repeatable."""
COUNTED_MEMBERS = 6
"""Trials that get all folds in a search whose trials are counted: the chosen ones, then the next best."""
JOB_S = 1.5
"""Folds that take less are handed out several at once: each job costs a tenth of a second to start."""


@dataclass
class Proposer:
    """Hands out jobs and learns from their results. Safe to call from several threads.

    Args:
        plan: What is searched.
        data: The search's data.
        history: Trials of this search from before it was interrupted; what they have is never fitted again.
        deadline: When the search has to be over.
        parallel: Jobs that run at once.
        record: Called with every trial that starts or changes.
        segment: Value of the segment that is searched; empty for the pooled data.
        seeds: Configurations to try first.
        prior: What other searches found.
        without: Parts that are left out to measure what they bring: bagging, portfolio, race, search, slower.
    """

    plan: Plan
    data: TrialData
    history: Sequence[Trial]
    deadline: Deadline
    parallel: int
    record: Callable[[Trial], None]
    segment: str = ""
    seeds: Sequence[Configuration] = ()
    prior: Prior | None = None
    without: Collection[str] = ()
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._allowance = Allowance.of(self.plan, self.data, deadline=self.deadline)
        self._slower: set[Key] = set()
        self.families, self.skipped = self._allowance.families()
        self._running: set[tuple[int, int]] = set()
        self._closed: set[int] = set()
        self._turn = 0
        self._dry = False
        self._pool = ""
        self._standing = Standing(self.data)
        for trial in sorted(self.history, key=lambda t: t.number):
            self.trials[trial.number] = trial
        self._told = max(self.trials, default=-1) + 1

    @cached_property
    def _study(self) -> Study:
        """Configurations to try; made by the first who asks, since the portfolios want to know the probe's answer."""
        study = Study(
            self.plan,
            families=self.families,
            shape=shape_of(self.data),
            seeds=self.seeds,
            history=self.history,
            prior=self.prior,
            firsts_only="portfolio" in self.without,
        )
        for trial in sorted(self.history, key=lambda t: t.number):
            study.tell(trial, first_fold_score(trial))
            self._bet_slower(study, trial)
        return study

    # --- the executor's side ---------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether no further job will come."""
        with self._lock:
            return self._late or (self._dry and not self._running)

    def next(self, *, quick: bool = False) -> FitJob | None:
        """Return the next job, or None when there is none now (see :attr:`exhausted`).

        Args:
            quick: Whether it is for a process that has other things to do. In a search that is long enough to wait for
                others, it gets bets that take no more than a second or two; a booster takes them ten times its time.
        """
        with self._lock:
            if self._late:
                return None
            if quick and self._allowance.whole_s >= PATIENT_S and not self.plan.repeatable:
                job = self._first_fold_job(quick=True)
            else:
                exploring = self._exploring
                job = self._first_fold_job() if exploring else self._further_folds_job()
                if job is None:
                    job = self._further_folds_job() if exploring else self._first_fold_job()
                self._dry = job is None
            if job is not None:
                self._pool = family(job.trial.family).pool
                self._running |= {(job.trial.number, fold) for fold in job.folds}
            return job

    def done(self, job: FitJob, result: FitResult) -> None:
        """Take a job's result and record the trial."""
        with self._lock:
            self._running -= {(result.number, fold) for fold in job.folds}
            self._dry = False
            if len(result.folds) < len(job.folds):
                self._closed.add(result.number)
            before = self.trials[result.number]
            trial = merged(before, result)
            self.trials[result.number] = trial
            if trial != before:
                self.record(trial)
            if 0 not in job.folds:
                return
            if not self.plan.repeatable:
                self._study.tell(trial, first_fold_score(trial))
                self._bet_slower(self._study, trial)
            elif not any(fold == 0 for _, fold in self._running) and not self._batch_open:
                self._tell_batch()

    def _bet_slower(self, study: Study, trial: Trial) -> None:
        """Let a good booster that was done early learn in smaller steps as well, in a search that has time for it."""
        rate, score = trial.parameters.get("learning_rate"), first_fold_score(trial)
        key = key_of(trial.family, trial.parameters)
        if not self._allowance.is_long or "slower" in self.without:
            return
        if not isinstance(rate, float) or score is None or key in self._slower:
            return
        scores = [s for other in self.trials.values() if (s := first_fold_score(other)) is not None]
        least = min(relative_loss(self.data.metric, s) for s in scores)
        allowed_s = self._allowance.first_s(trial.family, n_counted=self._counted, parallel=self.parallel)
        in_time = fold_s(trial) / SLOWER < allowed_s
        if trial.origin == "search" or not in_time or relative_loss(self.data.metric, score) > PROMISING * least:
            return
        bet = (trial.family, clip(self.plan.spaces[trial.family], trial.parameters | {"learning_rate": SLOWER * rate}))
        self._slower.add(key_of(*bet))
        study.bet_next(bet)

    def lost(self, job: FitJob, reason: str) -> None:
        """Give up a job whose worker died; what its trial has, it keeps, and a bet that has nothing is made again."""
        trial = job.trial
        with self._lock:
            if reason == DIED and 0 in job.folds and trial.origin != "search":
                self._study.again((trial.family, trial.parameters))
            self.done(job, FitResult(number=trial.number, state=TrialState.KILLED, reason=reason))

    # --- when ------------------------------------------------------------------

    @property
    def _late(self) -> bool:
        """Whether the time is over; a budget too short for any search still owes one real model."""
        return self.deadline.passed and not self._owes_a_model

    @property
    def _owes_a_model(self) -> bool:
        hopeful = (TrialState.RUNNING, TrialState.SUCCEEDED)
        real = [t for t in self.trials.values() if t.family != "constant" and t.state in hopeful]
        return not real and self._study.bets_left

    @property
    def _exploring(self) -> bool:
        """Whether first folds come before further ones."""
        if self.plan.budget.trials is not None and self._counted >= self.plan.budget.trials:
            return False
        if len(self.data.splits) == 1 or not self._standing.ready(self.trials):
            return True
        spent_s, whole_s = time.time() - self._allowance.began, self._allowance.whole_s
        if self.plan.repeatable:
            in_time = spent_s < COUNTED_SHARE * whole_s
            return self._batch_running or (in_time and (self._study.bets_left or bool(self._searchable())))
        return self._study.bets_left and spent_s < EXPLORE_SHARE * whole_s

    @property
    def _counted(self) -> int:
        return sum(t.state is not TrialState.KILLED for t in self.trials.values())

    @property
    def _batch_open(self) -> bool:
        """Whether a batch of a repeatable search is half asked for."""
        asked = [t for t in self.trials.values() if t.number >= self._told and t.origin == "search"]
        return self._study.bets_left or 0 < len(asked) < BATCH

    @property
    def _batch_running(self) -> bool:
        return any(fold == 0 for _, fold in self._running)

    # --- first folds -----------------------------------------------------------

    def _first_fold_job(self, *, quick: bool = False) -> FitJob | None:
        """Return the first fold of a new trial, or None where none fits or the last batch has to end first.

        Args:
            quick: Whether it has to be a bet that takes no more than a second or two.
        """
        if self.plan.budget.trials is not None and self._counted >= self.plan.budget.trials:
            return None
        if self.deadline.left_s < self._allowance.shortest_s and not self._owes_a_model:
            return None
        if self.plan.repeatable and not self._batch_open and self._batch_running:
            return None
        number = max(self.trials, default=-1) + 1
        if (bet := self._study.next_bet(quick=quick)) is not None:
            return self._start(number, *bet, origin="history" if self._study.is_seed(bet) else "portfolio")
        while not quick and (names := self._affordable()):
            name = names[RANK_CYCLE[self._turn % len(RANK_CYCLE)] % len(names)]
            self._turn += 1
            if (asked := self._study.ask(name, number=number)) is not None:
                return self._start(number, name, asked, origin="search")
        return None

    def _start(self, number: int, name: str, parameters: Parameters, *, origin: str) -> FitJob:
        trial = Trial(
            number=number,
            family=name,
            parameters=parameters,
            state=TrialState.RUNNING,
            origin=origin,
            seed=(self.plan.request.seed * 1_000_003 + number) % 2**31,
            segment=self.segment,
            n_rows=len(self.data.splits[0].train),
            artifacts=str(self.data.folder_of(number)),
        )
        self.trials[number] = trial
        self.record(trial)
        # A search that is late fits its one model in what a shortest trial takes.
        deadline_at = max(self.deadline.at, time.time() + SHORTEST_TRIAL_S)
        limit_s = self._allowance.first_s(name, n_counted=self._counted, parallel=self.parallel)
        folds = tuple(range(len(self.data.splits))) if "race" in self.without else (0,)
        return self._job(trial, folds, limit_s=limit_s, deadline_at=deadline_at)

    def _searchable(self) -> list[str]:
        """Families with something to search, best score first; ties in the recipe's order."""
        if "search" in self.without:
            return []
        best: dict[str, float] = {}
        for trial in self._settled():
            value = first_fold_score(trial)
            if value is not None and self._study.searchable(trial.family):
                best[trial.family] = max(best.get(trial.family, -np.inf), value)
        return sorted(best, key=lambda name: -best[name])

    def _affordable(self) -> list[str]:
        """Searchable families of which one more trial, and in a race its further folds, would still fit the time."""
        names = self._searchable()
        if self.plan.repeatable:
            return names
        costs: dict[str, list[float]] = defaultdict(list)
        for trial in self._settled():
            if trial.folds:
                costs[trial.family].append(fold_s(trial))
        rounds = 1 + (len(self.data.splits) - 1) / self.parallel
        return [n for n in names if LATER_FOLD * rounds * float(np.median(costs[n])) < self.deadline.left_s]

    def _settled(self) -> list[Trial]:
        """Trials whose end may influence the next; in a repeatable search, whole batches only."""
        finished = [t for t in self.trials.values() if t.finished]
        return [t for t in finished if t.number < self._told] if self.plan.repeatable else finished

    def _tell_batch(self) -> None:
        for number in sorted(self.trials):
            if number >= self._told:
                self._study.tell(self.trials[number], first_fold_score(self.trials[number]))
        self._told = max(self.trials, default=-1) + 1

    # --- further folds ---------------------------------------------------------

    def _further_folds_job(self) -> FitJob | None:
        """Return the next folds that fit the time of the trial that gains most by them for its time."""
        if "bagging" in self.without or (self.plan.repeatable and self._batch_running):
            return None
        for number in self._by_gain():
            fold = next(k for k in range(1, len(self.data.splits)) if not self._has(number, k))
            if (job := self._fold_job(number, fold)) is not None:
                return job
        for number in self._next_best():
            further = [k for k in range(1, len(self.data.splits)) if not self._has(number, k)]
            if self._folds_fit(number, len(further)) and (job := self._fold_job(number, further[0])) is not None:
                return job
        return None

    def _by_gain(self) -> list[int]:
        """Return the chosen trials that lack folds, those first whose next one brings most for its time."""
        weights = self._standing.chosen(self.trials)
        n_folds = {n: sum(self._has(n, k) for k in range(len(self.data.splits))) for n in weights}

        def pace(number: int) -> float:
            brings = gain(weights[number], n_folds[number])
            if self.plan.repeatable:
                return brings
            trial = self.trials[number]
            # A worker that holds a framework had better go on with it: another one has to be started.
            pool = family(trial.family).pool
            start_s = POOL_START_S.get(pool, 0.0) if pool != self._pool else 0.0
            return brings / (fold_s(trial) + LATER_FOLD_S + start_s)

        lacking = [n for n in weights if n not in self._closed and n_folds[n] < len(self.data.splits)]
        return sorted(lacking, key=lambda n: (-pace(n), n))

    def _fold_job(self, number: int, fold: int) -> FitJob | None:
        """Return a trial's next folds from this one on, as many as make a job; None where not even one fits."""
        expected_s = LATER_FOLD * fold_s(self.trials[number]) + LATER_FOLD_S
        if expected_s > self.deadline.left_s:
            return None
        most = max(1, int(JOB_S / expected_s))
        folds = [k for k in range(fold, len(self.data.splits)) if not self._has(number, k)][:most]
        return self._job(
            self.trials[number],
            tuple(folds),
            limit_s=self._allowance.later_s(self.trials[number].family, expected_s),
            deadline_at=self.deadline.at,
        )

    def _next_best(self) -> list[int]:
        """Return trials beyond the chosen ones that lack folds and are good enough to get them, the best first.

        A portfolio's entry may be worse than the best by a part, or by chance; one that was searched for has to be
        among the better half of those that have their folds, as long as more can be searched for instead.
        """
        values = {
            n: v for n in self._standing.ready(self.trials) if (v := first_fold_score(self.trials[n])) is not None
        }
        complete = [v for n, v in values.items() if len(self.trials[n].folds) == len(self.data.splits)]
        bar = float(np.median(complete)) if complete else -np.inf
        more = not self.plan.repeatable and bool(self._affordable())
        chosen, contenders = self._standing.chosen(self.trials), self._standing.contenders(self.trials)
        good = []
        for number, value in values.items():
            raced = self.trials[number].origin == "search" and more
            if number not in chosen and (value >= bar if raced else number in contenders):
                good.append(number)
        good.sort(key=lambda n: (-values[n], n))
        if self.plan.repeatable:
            # What gets its folds must not depend on which of them are done already.
            good = good[: max(0, COUNTED_MEMBERS - len(chosen))]
        folds = range(len(self.data.splits))
        return [n for n in good if n not in self._closed and any(not self._has(n, k) for k in folds)]

    def _folds_fit(self, number: int, n_folds: int) -> bool:
        """Whether so many folds of a trial would be done in time on all workers."""
        each_s = LATER_FOLD * fold_s(self.trials[number]) + LATER_FOLD_S
        return each_s * max(1.0, n_folds / self.parallel) <= self.deadline.left_s

    def _has(self, number: int, fold: int) -> bool:
        return fold in self.trials[number].folds or (number, fold) in self._running

    def _job(self, trial: Trial, folds: tuple[int, ...], *, limit_s: float, deadline_at: float) -> FitJob:
        resources = self.plan.request.resources
        return FitJob(
            trial=trial,
            folds=folds,
            limit_s=limit_s,
            deadline_at=deadline_at,
            workers=resources.workers,
            gpus_per_worker=resources.gpus_per_worker,
        )
