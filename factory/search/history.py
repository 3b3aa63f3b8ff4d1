"""Which trial comes next: portfolio first, then Optuna, always knowing the history.

One Optuna study (ask and tell, define-by-run, family-dependent spaces).  What
happened before enters by ``study.add_trial``: resuming after a crash, yielding
and warm starting are the same act, seeding the study with history.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna

from factory.families.base import Deadline, Shape
from factory.search.plan import Plan, family
from factory.search.trial import TrialJob
from factory.space import ChoiceDimension, Dimension, FloatDimension, Parameters, Value, clip
from factory.spec import Trial, TrialState

BATCH = 4
"""Trials asked for at once in a repeatable search; fixed, so that it does not depend on the machine's CPUs."""
RANK_CYCLE = (0, 1, 0, 2)
"""How the search shares its trials among the best families: half to the first, a quarter each to the next two."""
TARGET_TRIALS = 10
"""A trial may take this part of the time that is left on one CPU, so that at least so many trials are seen."""
DISTRIBUTED_TRIALS = 3
"""The same where a trial trains on several workers: their start alone takes 20 to 40 s."""
SHORTEST_TRIAL_S = 3.0
POOL_START_S = {"trees": 0.0, "torch": 8.0, "tensorflow": 20.0}
"""Seconds until a worker of that pool has imported its framework, measured on two cores (docs/decisions/workers.md)."""
POOL_START_SHARE = 0.08
"""A pool is used when its start takes no more than this part of the search's time."""


MOST_REPEATS = 20
"""A family is used up when so many proposals in a row were configurations that have been tried."""

_HOPEFUL = (TrialState.RUNNING, TrialState.SUCCEEDED)


@dataclass
class Proposer:
    """Proposes trials and learns from their ends. Safe to call from several threads.

    Args:
        plan: What is searched.
        history: Finished trials of this search (a resumed one); they are never proposed again.
        deadline: When the search has to be over.
        parallel: Trials that run at once.
        n_rows: Rows of the search.
        record: Called with every trial that starts or ends.
        segment: Value of the segment that is searched; empty for the pooled data.
    """

    plan: Plan
    history: Sequence[Trial]
    deadline: Deadline
    parallel: int
    n_rows: int
    record: Callable[[Trial], None]
    segment: str = ""
    trials: dict[int, Trial] = field(default_factory=dict)
    stopped: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        seed = self.plan.request.seed
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed + len(self.history), n_startup_trials=8)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._told = 0
        self._turn = 0
        self.skipped: dict[str, str] = {}
        for trial in sorted(self.history, key=lambda t: t.number):
            self.trials[trial.number] = trial
            self._learn(trial)
        self._told = max(self.trials, default=-1) + 1
        # A killed trial says nothing about its configuration, so that is tried again.
        self._seen = {(t.family, _key(t.parameters)) for t in self.history if t.state is not TrialState.KILLED}
        self._used_up: set[str] = set()
        self._families = self._affordable_families()
        self._portfolio = [
            (name, parameters)
            for name, parameters in self._all_portfolios()
            if (name, _key(parameters)) not in self._seen
        ]

    def _affordable_families(self) -> tuple[str, ...]:
        """Leave out families whose framework takes too much of the time to start, unless nothing else is left."""
        budget_s = self.deadline.left_s
        names = []
        for name in self.plan.families:
            start_s = POOL_START_S.get(family(name).pool, 0.0)
            if self.plan.repeatable or start_s <= POOL_START_SHARE * budget_s:
                names.append(name)
            else:
                self.skipped[name] = f"its framework takes about {start_s:.0f} s of the {budget_s:.0f} s to start"
        if all(name == "constant" for name in names):
            self.skipped.clear()
            return self.plan.families
        return tuple(names)

    def _all_portfolios(self) -> list[tuple[str, Parameters]]:
        """By rank, ties in the recipe's order of families; pools one after the other."""
        task, shape = self.plan.task, Shape(n_rows=self.n_rows)
        ordered: list[tuple[str, Parameters]] = []
        for pool in dict.fromkeys(family(name).pool for name in self._families):
            members = [name for name in self._families if family(name).pool == pool]
            bets = [(bet, name) for name in members for bet in family(name).portfolio(task, shape=shape)]
            for bet, name in sorted(bets, key=lambda entry: entry[0].rank):
                parameters = clip(self.plan.spaces[name], bet.parameters)
                if (name, parameters) not in ordered:
                    ordered.append((name, parameters))
        return ordered

    def next(self) -> TrialJob | None:
        """Return the next trial to run, or None when there is none now (see :attr:`exhausted`)."""
        with self._lock:
            if self.exhausted or self._waits_for_batch():
                return None
            if self._portfolio:
                name, parameters = self._portfolio.pop(0)
                trial = self._new(name, parameters, origin="portfolio")
            elif (asked := self._ask()) is not None:
                trial = asked
            else:
                return None
            self.trials[trial.number] = trial
            self._seen.add((trial.family, _key(trial.parameters)))
            self.record(trial)
            resources = self.plan.request.resources
            return TrialJob(
                trial=trial,
                limit_s=self._limit_s(),
                deadline_at=max(self.deadline.at, time.time() + SHORTEST_TRIAL_S),
                prune_below=self._prune_below() if trial.origin == "search" else None,
                workers=resources.workers,
                gpus_per_worker=resources.gpus_per_worker,
            )

    @property
    def exhausted(self) -> bool:
        """Whether no further trial will be proposed."""
        with self._lock:
            if self.stopped or (self.deadline.left_s < SHORTEST_TRIAL_S and not self._owes_a_model):
                return True
            if self.plan.budget.trials is not None and len(self._counted()) >= self.plan.budget.trials:
                return True
            return not self._portfolio and not self._searchable() and not self.running

    @property
    def _owes_a_model(self) -> bool:
        """Whether a budget too short for any search has not led to a single real model yet."""
        real = [t for t in self.trials.values() if t.family != "constant" and t.state in _HOPEFUL]
        return not real and bool(self._portfolio)

    @property
    def running(self) -> list[Trial]:
        """Trials that were proposed and have not ended."""
        with self._lock:
            return [trial for trial in self.trials.values() if not trial.finished]

    def done(self, trial: Trial) -> None:
        """Take a finished trial back and record it."""
        with self._lock:
            if self.trials[trial.number].finished:
                return
            self.trials[trial.number] = trial
            self.record(trial)
            if not self.plan.repeatable:
                self._learn(trial)
            elif self._between_batches and not self.running:
                self._learn_batch()

    def lost(self, number: int, reason: str) -> None:
        """Record a trial whose worker died."""
        with self._lock:
            if not self.trials[number].finished:
                self.done(self.trials[number].model_copy(update={"state": TrialState.KILLED, "reason": reason}))

    def _counted(self) -> list[Trial]:
        return [t for t in self.trials.values() if t.state is not TrialState.KILLED]

    def _waits_for_batch(self) -> bool:
        """In a repeatable search the next four are asked for when the portfolio or the last four have ended."""
        return self.plan.repeatable and self._between_batches and bool(self.running)

    @property
    def _between_batches(self) -> bool:
        """Whether the portfolio is used up and no batch is half asked for: who waits then may learn."""
        return not self._portfolio and len(self._asked) in (0, BATCH)

    def _learn_batch(self) -> None:
        for number in sorted(self.trials):
            if number >= self._told and self.trials[number].finished:
                self._learn(self.trials[number])
        self._told = max(self.trials, default=-1) + 1

    def _new(self, name: str, parameters: Parameters, *, origin: str) -> Trial:
        number = max(self.trials, default=-1) + 1
        return Trial(
            number=number,
            family=name,
            parameters=parameters,
            state=TrialState.RUNNING,
            origin=origin,
            seed=(self.plan.request.seed * 1_000_003 + number) % 2**31,
            segment=self.segment,
        )

    def _limit_s(self) -> float:
        """Return what the next trial may take: its share of what is left on all CPUs."""
        trials = DISTRIBUTED_TRIALS if self.plan.request.resources.workers > 1 else TARGET_TRIALS
        if self.plan.budget.trials is not None:
            trials = max(1, min(trials, self.plan.budget.trials - len(self._counted())))
        return max(SHORTEST_TRIAL_S, self.deadline.left_s * self.parallel / trials)

    def _searchable(self) -> list[str]:
        """Families with something to search, best score first; ties in the recipe's order."""
        best: dict[str, float] = {}
        for trial in self._settled():
            space = self.plan.spaces.get(trial.family, {})
            searched = trial.family not in self._used_up and any(_free(d) for d in space.values())
            if trial.score is not None and searched:
                best[trial.family] = max(best.get(trial.family, -np.inf), trial.score)
        return sorted(best, key=lambda name: -best[name])

    def _settled(self) -> list[Trial]:
        """Finished trials whose end may influence the next; in a repeatable search, whole batches only."""
        finished = [t for t in self.trials.values() if t.finished]
        return [t for t in finished if t.number < self._told] if self.plan.repeatable else finished

    def _ask(self) -> Trial | None:
        """Return a trial that Optuna proposes for the family whose turn it is, never a configuration twice."""
        while self._searchable():
            name = self._choose_family()
            for _ in range(MOST_REPEATS):
                self._study.enqueue_trial({"family": name})
                asked = self._study.ask()
                asked.suggest_categorical("family", list(self.plan.families))
                parameters = {p: _suggest(asked, f"{name}.{p}", d) for p, d in self.plan.spaces[name].items()}
                if (name, _key(parameters)) not in self._seen:
                    trial = self._new(name, parameters, origin="search")
                    self._asked[trial.number] = asked
                    return trial
                self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            self._used_up.add(name)
        return None

    def _choose_family(self) -> str:
        """Take turns among the best families, passing over one whose trials no longer fit the time."""
        ranked = self._searchable()
        costs: dict[str, list[float]] = defaultdict(list)
        for trial in self._settled():
            if trial.state is TrialState.SUCCEEDED:
                costs[trial.family].append(trial.cost_s)
        if not self.plan.repeatable:
            fitting = [n for n in ranked if float(np.median(costs[n])) < self.deadline.left_s]
            ranked = fitting or ranked
        name = ranked[RANK_CYCLE[self._turn % len(RANK_CYCLE)] % len(ranked)]
        self._turn += 1
        return name

    def _prune_below(self) -> float | None:
        """First-fold score that a searched trial must reach: that of the better half so far."""
        first = sorted(t.fold_scores[0] for t in self._settled() if t.state is TrialState.SUCCEEDED and t.fold_scores)
        return first[len(first) // 2] if len(first) >= 4 else None

    def _learn(self, trial: Trial) -> None:
        """Tell the study how a trial ended; a trial that it did not ask for is added as history."""
        asked = self._asked.pop(trial.number, None)
        if trial.score is None:
            if asked is not None:
                self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return
        if asked is not None:
            self._study.tell(asked, trial.score)
            return
        if trial.family not in self.plan.spaces:
            return
        space = self.plan.spaces[trial.family]
        inside = {p: v for p, v in trial.parameters.items() if p in space and clip({p: space[p]}, {p: v})[p] == v}
        self._study.add_trial(
            optuna.trial.create_trial(
                value=trial.score,
                params={"family": trial.family, **{f"{trial.family}.{p}": v for p, v in inside.items()}},
                distributions={
                    "family": optuna.distributions.CategoricalDistribution(list(self.plan.families)),
                    **{f"{trial.family}.{p}": _distribution(space[p]) for p in inside},
                },
            )
        )


def _key(parameters: Parameters) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(parameters.items()))


def _free(dimension: Dimension) -> bool:
    if isinstance(dimension, ChoiceDimension):
        return len(dimension.choices) > 1
    return dimension.low < dimension.high


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if isinstance(dimension, ChoiceDimension):
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    if isinstance(dimension, FloatDimension):
        return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return optuna.distributions.IntDistribution(dimension.low, dimension.high, log=dimension.log)


def _suggest(asked: optuna.trial.Trial, name: str, dimension: Dimension) -> Value:
    value: Value
    if isinstance(dimension, ChoiceDimension):
        value = asked.suggest_categorical(name, dimension.choices)
    elif isinstance(dimension, FloatDimension):
        value = asked.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    else:
        value = asked.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
    return value
