"""A proposer that is asked and told in the order and with the scores that a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from factory.families.base import Deadline
from factory.search.history import (
    Proposer,
)
from factory.search.jobs import FitJob, FitResult, TrialData
from factory.search.plan import Plan
from factory.spec import Trial

from .conftest import outcome

COUNTED = {"time_s": 1e6, "trials": 16}
FIXED_LINEAR = {"linear": {"splines": [True], "knots": 6, "degree": 2}}
Order = Callable[[list[FitJob]], int]
Answer = Callable[[FitJob], FitResult]


def propose(plan: Plan, data: TrialData, *, left_s: float = 1e6, **fields: Any) -> Proposer:
    given = {"history": (), "parallel": 2, "record": lambda _: None} | fields
    return Proposer(plan=plan, data=data, deadline=Deadline.after(left_s), **given)


def score_of(trial: Trial) -> float:
    """A score within 0.7 to 0.95 that follows from the configuration alone."""
    numbers = [float(v) for v in trial.parameters.values() if isinstance(v, int | float)]
    return 0.8 + 0.1 * float(np.sin(sum(numbers))) + len(trial.family) / 200


def by_configuration(data: TrialData, *, fold_s: Callable[[], float] = lambda: 0.1) -> Answer:
    """Workers whose fits are as good as the configuration; a blend of two is better than one."""
    return lambda job: outcome(data, job, score_of(job.trial), noise=job.trial.number, fold_s=fold_s())


def with_scores(data: TrialData, scores: dict[int, float | None], *, fold_s: float = 0.1) -> Answer:
    """Workers whose fits are as good as these scores by number (0.7 where there is none) and else alike."""
    return lambda job: outcome(data, job, scores.get(job.trial.number, 0.7), fold_s=fold_s)


def work(
    proposer: Proposer, answer: Answer, *, parallel: int = 1, order: Order = lambda _: 0, jobs: int = 10_000
) -> list[FitJob]:
    """Run a proposer with that many pretended workers, to its end or for so many jobs; return the jobs.

    Args:
        proposer: Whose jobs are worked through.
        answer: Does a job.
        parallel: Workers.
        order: Says which running job ends next.
        jobs: When to stop.
    """
    running: list[FitJob] = []
    given: list[FitJob] = []
    while len(given) < jobs:
        while len(running) < parallel and len(given) < jobs and (job := proposer.next()) is not None:
            running.append(job)
            given.append(job)
        if not running:
            assert proposer.exhausted
            break
        job = running.pop(order(running))
        proposer.done(job, answer(job))
    for job in running:
        proposer.done(job, answer(job))
    return given


def trials_of(proposer: Proposer) -> list[Trial]:
    return [proposer.trials[n] for n in sorted(proposer.trials)]


def configurations(trials: Sequence[Trial]) -> list[tuple[str, tuple[Any, ...]]]:
    return [(t.family, tuple(sorted(t.parameters.items()))) for t in trials]


def first_folds(jobs: Sequence[FitJob]) -> list[Trial]:
    return [job.trial for job in jobs if 0 in job.folds]


def further(jobs: Sequence[FitJob]) -> list[tuple[int, int]]:
    """Return the trial and the fold of all fits beyond first folds, in their order."""
    return [(job.trial.number, fold) for job in jobs for fold in job.folds if fold > 0]
