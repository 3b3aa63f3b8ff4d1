"""The race: first folds of all, further folds of the chosen, then the search; history is never fitted again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.families.base import Deadline
from factory.ledger import Ledger
from factory.search.history import (
    BATCH,
    CUT_SHORT,
    DISTRIBUTED_FIT_SHARE,
    EXPLORE_SHARE,
    FIT_SHARE_FEW_ROWS,
    LATER_FOLD,
    LATER_FOLD_S,
    RANK_CYCLE,
    SHORTEST_SHARE,
    SHORTEST_TRIAL_S,
    Proposer,
    shape_of,
)
from factory.search.jobs import FitJob, FitResult, TrialData
from factory.search.plan import Plan, family
from factory.search.study import Configuration, portfolio
from factory.space import clip
from factory.spec import Task, Trial, TrialState

from .conftest import Clock, make_data, make_dataset, make_request, make_test_plan, outcome

COUNTED = {"time_s": 1e6, "trials": 16}
FIXED_LINEAR = {"linear": {"splines": [True], "knots": 6, "degree": 2}}
Order = Callable[[list[FitJob]], int]
Answer = Callable[[FitJob], FitResult]


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    """Eight folds of 120 rows, two classes."""
    return make_data(tmp_path, dataset=make_dataset(n_rows=960))


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


# --- first folds ----------------------------------------------------------------


@pytest.mark.parametrize("task", list(Task))
def test_the_portfolio_comes_first_best_bets_before_second_ones(task: Task, tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", "xgboost", task=task, budget={"trials": 24, "time_s": 1e6})
    data = make_data(tmp_path, dataset=make_dataset(task), plan=plan)
    proposer = propose(plan, data)
    work(proposer, by_configuration(data))
    bets = portfolio(plan, plan.families, shape=shape_of(data))
    trials = trials_of(proposer)
    assert [(t.family, t.parameters) for t in trials[: len(bets)]] == bets
    assert [t.origin for t in trials] == ["portfolio"] * len(bets) + ["search"] * (24 - len(bets))


def test_pools_come_one_after_the_other(data: TrialData) -> None:
    plan = make_test_plan("torch_network", "linear", "keras_network", "lightgbm", "constant")
    trials = [job.trial for job in iter(propose(plan, data).next, None)]
    pools = [pool for pool, _ in itertools.groupby(family(t.family).pool for t in trials)]
    assert pools == ["torch", "trees", "tensorflow"]


def test_seeds_are_tried_before_the_portfolio(data: TrialData) -> None:
    plan = make_test_plan("constant", "linear")
    seed: Configuration = ("linear", {"splines": True, "knots": 11, "degree": 1})
    jobs = list(iter(propose(plan, data, seeds=[seed]).next, None))
    assert (jobs[0].trial.family, jobs[0].trial.parameters) == seed
    assert [job.trial.origin for job in jobs] == ["history", "portfolio", "portfolio", "portfolio"]


def test_every_trial_begins_with_the_first_fold_alone(data: TrialData) -> None:
    recorded: list[Trial] = []
    proposer = propose(make_test_plan("constant", "linear", "lightgbm"), data, record=recorded.append)
    jobs = list(iter(proposer.next, None))
    assert {job.folds for job in jobs} == {(0,)}
    assert recorded == [job.trial for job in jobs]
    assert {t.state for t in recorded} == {TrialState.RUNNING}
    for job in jobs:
        proposer.done(job, outcome(data, job, 0.8))
    assert [t.folds for t in recorded[len(jobs) :]] == [(0,)] * len(jobs)
    assert {t.state for t in trials_of(proposer)} == {TrialState.SUCCEEDED}


# --- further folds --------------------------------------------------------------


def test_only_trials_that_earn_them_get_further_folds(data: TrialData) -> None:
    """Predictions that are alike but for their skill: the best one is the blend, the others are far behind."""
    proposer = propose(make_test_plan("constant", "linear", "lightgbm", spaces=FIXED_LINEAR), data)
    jobs = work(proposer, with_scores(data, {2: 0.95}), jobs=9)
    n_bets = len(first_folds(jobs))
    assert [t.origin for t in first_folds(jobs)] == ["portfolio"] * n_bets
    assert sorted(further(jobs)) == [(2, fold) for fold in range(1, 8)]
    assert [t.folds for t in trials_of(proposer)][:4] == [(0,), (0,), tuple(range(8)), (0,)]


def test_folds_go_in_turn_so_that_rows_line_up_at_any_moment(data: TrialData) -> None:
    proposer = propose(make_test_plan("constant", "linear", "lightgbm", "xgboost"), data)
    jobs = work(proposer, by_configuration(data, fold_s=lambda: 10.0), jobs=28)
    n_bets = len(portfolio(proposer.plan, proposer.plan.families, shape=shape_of(data)))
    assert [job.folds for job in jobs[:n_bets]] == [(0,)] * n_bets
    folds = [fold for _, fold in further(jobs[n_bets:])]
    assert folds == sorted(folds)
    by_fold = {k: {n for n, fold in further(jobs) if fold == k} for k in folds}
    assert len(by_fold[1]) > 1
    assert all(members == by_fold[1] for k, members in by_fold.items() if k < folds[-1])


def test_cheap_folds_are_handed_out_several_at_once(data: TrialData) -> None:
    proposer = propose(make_test_plan("linear", spaces=FIXED_LINEAR), data)
    jobs = work(proposer, with_scores(data, {}, fold_s=0.1))
    assert [job.folds for job in jobs] == [(0,), (1, 2, 3), (4, 5, 6), (7,)]
    (trial,) = trials_of(proposer)
    assert trial.folds == tuple(range(8))
    assert trial.cost_s == pytest.approx(0.8)


def test_a_fixed_configuration_gets_all_folds_and_ends_the_search(data: TrialData) -> None:
    proposer = propose(make_test_plan("linear", spaces=FIXED_LINEAR), data)
    jobs = work(proposer, with_scores(data, {}, fold_s=10), parallel=3)
    assert further(jobs) == [(0, fold) for fold in range(1, 8)]
    assert proposer.exhausted


def test_near_bets_come_after_the_chosen_ones_and_far_ones_never(data: TrialData) -> None:
    """A loss of 0.05: a quarter more is near. All predictions are alike, so that the blend is the best one alone."""
    plan = make_test_plan("constant", "linear", "lightgbm", spaces=FIXED_LINEAR)
    proposer = propose(plan, data)
    jobs = work(proposer, with_scores(data, {0: 0.93, 1: 0.95, 2: 0.94}, fold_s=10), jobs=20)
    order = [n for n, _ in itertools.groupby(number for number, _ in further(jobs))]
    assert order == [1, 2]


def test_a_searched_trial_must_be_among_the_better_half_for_its_folds(data: TrialData) -> None:
    proposer = propose(make_test_plan("linear"), data)
    better, worse = 2, 3
    work(proposer, with_scores(data, {0: 0.95, 1: 0.94, better: 0.946, worse: 0.944}, fold_s=10), jobs=40)
    complete = [t for t in trials_of(proposer) if len(t.folds) == 8]
    assert proposer.trials[better].origin == proposer.trials[worse].origin == "search"
    assert better in {t.number for t in complete}
    assert proposer.trials[worse].folds == (0,)


def test_a_trial_that_fails_on_a_further_fold_stays_and_gets_no_more(data: TrialData, tmp_path: Path) -> None:
    """What is recorded is what a ledger takes: a finished trial changes by its folds only."""
    proposer = propose(make_test_plan("constant", "linear", spaces=FIXED_LINEAR), data)
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        request_id = ledger.create_request(make_request()).id
        proposer.record = lambda trial: ledger.record_trial(request_id, trial)

        def answer(job: FitJob) -> FitResult:
            fits = job.trial.number == 0 or job.folds == (0,)
            return outcome(data, job, (0.95 if job.trial.number else 0.94) if fits else None, fold_s=10)

        jobs = work(proposer, answer)
        assert [fold for number, fold in further(jobs) if number == 1] == [1]
        assert [t.folds for t in trials_of(proposer)] == [tuple(range(8)), (0,)]
        assert {t.state for t in trials_of(proposer)} == {TrialState.SUCCEEDED}
        assert ledger.trials(request_id) == trials_of(proposer)


def test_a_lost_worker_costs_its_folds_only(data: TrialData) -> None:
    recorded: list[Trial] = []
    proposer = propose(make_test_plan("linear", spaces=FIXED_LINEAR), data, record=recorded.append)
    first = proposer.next()
    assert first is not None
    proposer.done(first, outcome(data, first, 0.9, fold_s=1.0))
    second, third = proposer.next(), proposer.next()
    assert second is not None
    assert third is not None
    assert (second.folds, third.folds) == ((1,), (2,))
    proposer.lost(second, "Its worker process died.")
    proposer.done(third, outcome(data, third, 0.8))
    assert proposer.next() is None
    assert proposer.exhausted
    (trial,) = trials_of(proposer)
    assert (trial.state, trial.folds, trial.reason) == (TrialState.SUCCEEDED, (0, 2), "")
    assert trial.score == pytest.approx(0.85)
    assert recorded[-1] == trial


# --- a race against the clock ---------------------------------------------------


def race(proposer: Proposer, answer: Answer, clock: Clock) -> list[tuple[float, FitJob, float]]:
    """Run one worker whose fits take time; return the seconds left, the job and what the job took."""
    log = []
    while (job := proposer.next()) is not None:
        left_s, result = proposer.deadline.left_s, answer(job)
        clock.sleep(result.cost_s)
        proposer.done(job, result)
        log.append((left_s, job, result.cost_s))
    assert proposer.exhausted
    return log


def test_further_folds_begin_when_a_part_of_the_time_is_used(data: TrialData, clock: Clock) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", "xgboost")
    proposer = propose(plan, data, left_s=100, parallel=1)
    log = race(proposer, by_configuration(data, fold_s=lambda: 8.0), clock)
    n_first = len(list(itertools.takewhile(lambda entry: entry[1].folds == (0,), log)))
    assert n_first == int(EXPLORE_SHARE * 100 / 8)
    assert n_first < len(portfolio(plan, plan.families, shape=shape_of(data)))
    assert further([job for _, job, _ in log[n_first : n_first + 2]]) != []
    assert -8 < proposer.deadline.left_s < LATER_FOLD * 8 + LATER_FOLD_S


def test_no_further_fold_begins_that_would_not_end_in_time(data: TrialData, clock: Clock) -> None:
    for left_s in (37.0, 61.0, 100.0):
        proposer = propose(make_test_plan("constant", "linear", "lightgbm"), data, left_s=left_s, parallel=1)
        for left, job, cost_s in race(proposer, by_configuration(data, fold_s=lambda: 6.0), clock):
            if 0 not in job.folds:
                assert cost_s <= left
                assert job.deadline_at == proposer.deadline.at
                assert job.limit_s == pytest.approx(LATER_FOLD * (LATER_FOLD * 6 + LATER_FOLD_S))


def test_time_that_is_over_ends_the_search(data: TrialData, clock: Clock) -> None:
    proposer = propose(make_test_plan(), data, left_s=50)
    job = proposer.next()
    assert job is not None
    proposer.done(job, outcome(data, job, 0.8))
    assert proposer.next() is not None
    assert not proposer.exhausted
    clock.sleep(50)
    assert proposer.exhausted
    assert proposer.next() is None


def test_a_first_fold_gets_a_part_of_the_time(data: TrialData, clock: Clock) -> None:
    def first(left_s: float, *, family: str = "linear", **request: Any) -> FitJob:
        job = propose(make_test_plan(family, **request), data, left_s=left_s, parallel=2).next()
        assert job is not None
        assert job.deadline_at == pytest.approx(clock.now + left_s)
        return job

    assert first(1000).limit_s == pytest.approx(FIT_SHARE_FEW_ROWS * 1000)
    forest = first(1000, family="extra_trees").limit_s
    assert forest == pytest.approx(CUT_SHORT * FIT_SHARE_FEW_ROWS * 1000), "cut to a few trees it would be nothing"
    assert first(20).limit_s == pytest.approx(max(FIT_SHARE_FEW_ROWS * 20, SHORTEST_SHARE * 20))
    counted = first(1000, budget={"time_s": 1000, "trials": 16})
    assert counted.limit_s == pytest.approx(1000 * 2 / 18), "two of eighteen shares are for the further folds"
    distributed = first(1000, resources={"workers": 2})
    assert distributed.limit_s == pytest.approx(DISTRIBUTED_FIT_SHARE * 1000)


@pytest.mark.parametrize("left_s", [0.0, -5.0])
def test_a_search_that_is_too_late_still_tries_for_one_real_model(data: TrialData, clock: Clock, left_s: float) -> None:
    proposer = propose(make_test_plan("constant", "linear", "lightgbm"), data, left_s=left_s)
    families = []
    while (job := proposer.next()) is not None:
        families.append(job.trial.family)
        assert job.folds == (0,)
        assert Deadline(job.deadline_at).left_s == pytest.approx(SHORTEST_TRIAL_S)
        proposer.done(job, outcome(data, job, None if job.trial.family == "lightgbm" and len(families) < 3 else 0.5))
    assert families == ["constant", "lightgbm", "linear"]
    assert proposer.exhausted


NETWORKS = ("constant", "lightgbm", "torch_network", "keras_network")


@pytest.mark.parametrize(
    ("left_s", "skipped"),
    [(60, {"torch_network", "keras_network"}), (150, {"keras_network"}), (600, set())],
)
def test_a_framework_must_be_worth_its_start(data: TrialData, left_s: float, skipped: set[str]) -> None:
    proposer = propose(make_test_plan(*NETWORKS), data, left_s=left_s)
    assert set(proposer.skipped) == skipped
    assert all(f"of the {left_s:.0f} s to start" in reason for reason in proposer.skipped.values())
    assert {job.trial.family for job in iter(proposer.next, None)} == set(NETWORKS) - skipped


def test_a_framework_is_used_where_nothing_else_is_or_trials_are_counted(data: TrialData) -> None:
    alone = propose(make_test_plan("constant", "keras_network"), data, left_s=60)
    assert not alone.skipped
    assert "keras_network" in {job.trial.family for job in iter(alone.next, None)}
    counted = propose(make_test_plan(*NETWORKS, budget={"time_s": 60, "trials": 50}), data, left_s=60)
    assert not counted.skipped


# --- searching ------------------------------------------------------------------


def test_every_proposal_lies_in_its_space(data: TrialData) -> None:
    plan = make_test_plan("linear", "lightgbm", spaces={"lightgbm": {"num_leaves": [8, 16]}}, budget=COUNTED)
    proposer = propose(plan, data)
    work(proposer, by_configuration(data), parallel=3)
    assert sorted(proposer.trials) == list(range(16))
    for trial in trials_of(proposer):
        space = plan.spaces[trial.family]
        assert trial.parameters == clip(space, trial.parameters)
        assert set(trial.parameters) == set(space)


def test_the_best_families_share_the_search(data: TrialData) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", "xgboost", budget={"time_s": 1e6, "trials": 29})
    proposer = propose(plan, data)
    scores = {"constant": 0.5, "linear": 0.7, "lightgbm": 0.9, "xgboost": 0.8}
    work(proposer, lambda job: outcome(data, job, scores[job.trial.family]))
    searched = [t.family for t in trials_of(proposer) if t.origin == "search"]
    ranked = ["lightgbm", "xgboost", "linear"]
    assert searched[:8] == [ranked[RANK_CYCLE[i % 4]] for i in range(8)]


def test_failed_trials_end_nothing(data: TrialData) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 12})
    proposer = propose(plan, data)
    work(proposer, lambda job: outcome(data, job, None if job.trial.number % 2 else score_of(job.trial)))
    states = [t.state for t in trials_of(proposer)]
    assert states == [TrialState.SUCCEEDED, TrialState.FAILED] * 6
    assert {t.folds for t in trials_of(proposer)[1::2]} == {()}


def test_nothing_is_searched_where_nothing_works(data: TrialData) -> None:
    proposer = propose(make_test_plan("linear", "lightgbm"), data)
    work(proposer, lambda job: outcome(data, job, None))
    assert {t.origin for t in trials_of(proposer)} == {"portfolio"}


def test_trials_are_counted_but_killed_ones(data: TrialData) -> None:
    recorded: list[Trial] = []
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 3})
    proposer = propose(plan, data, record=recorded.append)
    first, second, third = (proposer.next() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert proposer.next() is None
    assert not proposer.exhausted, "further folds may come"
    proposer.lost(second, "Its worker process died.")
    assert recorded[-1].state is TrialState.KILLED
    assert recorded[-1].reason == "Its worker process died."
    fourth = proposer.next()
    assert fourth is not None
    assert (fourth.trial.number, fourth.folds) == (3, (0,))
    for job in (first, third, fourth):
        proposer.done(job, outcome(data, job, score_of(job.trial)))
    work(proposer, by_configuration(data))
    assert sorted(proposer.trials) == [0, 1, 2, 3]


# --- repeating ------------------------------------------------------------------

REPEATED = {"time_s": 1e6, "trials": 23}


def chance(seed: int) -> Order:
    generator = np.random.default_rng(seed)
    return lambda running: int(generator.integers(len(running)))


@pytest.mark.parametrize(("parallel", "seed"), [(2, 0), (3, 2), (7, 3)])
def test_counted_trials_do_not_depend_on_workers_their_order_or_speed(
    parallel: int, seed: int, data: TrialData
) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=REPEATED, seed=5)
    one, many = propose(plan, data), propose(plan, data, parallel=parallel)
    speed = np.random.default_rng(seed)
    work(one, by_configuration(data))
    work(many, by_configuration(data, fold_s=lambda: speed.uniform(0.01, 5)), parallel=parallel, order=chance(seed))
    alone, together = trials_of(one), trials_of(many)
    assert configurations(alone) == configurations(together)
    for field in ("seed", "state", "folds", "fold_scores", "score"):
        assert [getattr(t, field) for t in alone] == [getattr(t, field) for t in together]
    assert sum(t.origin == "search" for t in alone) > 2 * BATCH
    depths = [len(t.folds) for t in alone]
    assert set(depths) == {1, 8}, "the chosen get all folds, the others none"
    assert depths.count(8) > 1


def test_counted_trials_get_their_folds_when_all_are_there(data: TrialData) -> None:
    proposer = propose(make_test_plan("constant", "linear", "lightgbm", budget=REPEATED), data)
    jobs = work(proposer, by_configuration(data), parallel=3, order=chance(1))
    assert [0 in job.folds for job in jobs] == sorted((0 in job.folds for job in jobs), reverse=True)


def test_another_seed_searches_elsewhere(data: TrialData) -> None:
    found = []
    for seed in (0, 1):
        proposer = propose(make_test_plan("linear", "lightgbm", budget=REPEATED, seed=seed), data)
        work(proposer, by_configuration(data))
        found.append(configurations(trials_of(proposer)))
    n_bets = len(portfolio(proposer.plan, proposer.plan.families, shape=shape_of(data)))
    assert found[0][:n_bets] == found[1][:n_bets]
    assert found[0][n_bets:] != found[1][n_bets:]


def test_counted_trials_are_asked_for_in_batches(data: TrialData) -> None:
    proposer = propose(make_test_plan("linear", budget=REPEATED), data)
    bets = list(iter(proposer.next, None))
    assert len(bets) == 2
    proposer.done(bets[1], outcome(data, bets[1], 0.8))
    assert proposer.next() is None, "the search waits for the whole portfolio"
    assert not proposer.exhausted
    proposer.done(bets[0], outcome(data, bets[0], 0.7))
    for _ in range(2):
        batch = list(iter(proposer.next, None))
        assert len(batch) == BATCH
        for job in batch[::-1]:
            assert proposer.next() is None
            proposer.done(job, outcome(data, job, score_of(job.trial)))


# --- history --------------------------------------------------------------------


def interrupted(plan: Plan, data: TrialData, n_jobs: int, *, fold_s: float = 10) -> list[Trial]:
    """The trials of a driver that was killed when so many jobs had ended and two were running."""
    proposer = propose(plan, data)
    work(proposer, by_configuration(data, fold_s=lambda: fold_s), jobs=n_jobs)
    for _ in range(2):
        proposer.next()
    killed = {"state": TrialState.KILLED, "reason": "Its driver was interrupted."}
    return [t if t.finished else t.model_copy(update=killed) for t in trials_of(proposer)]


@pytest.mark.parametrize("budget", [REPEATED, {"time_s": 1e6}], ids=["counted", "timed"])
@pytest.mark.parametrize("n_jobs", [1, 4, 12, 30])
def test_a_resumed_search_fits_nothing_that_is_there(data: TrialData, n_jobs: int, budget: dict[str, float]) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=budget)
    history = interrupted(plan, data, n_jobs)
    there = {(t.number, fold) for t in history for fold in t.folds}
    assert len(there) == n_jobs
    proposer = propose(plan, data, history=history)
    jobs = work(proposer, by_configuration(data, fold_s=lambda: 10), jobs=25)
    fits = [(job.trial.number, fold) for job in jobs for fold in job.folds]
    assert len(set(fits)) == len(fits)
    assert not there & set(fits)
    fresh = first_folds(jobs)
    assert [t.number for t in fresh] == list(range(len(history), len(history) + len(fresh)))
    known = [t for t in history if t.state is not TrialState.KILLED]
    assert not set(configurations(known)) & set(configurations(fresh))
    killed = [t for t in history if t.state is TrialState.KILLED]
    assert [proposer.trials[t.number] for t in killed] == killed
    again = [t for t in killed if t.origin == "portfolio"]
    assert set(configurations(again)) <= set(configurations(fresh))
    for before in known:
        after = proposer.trials[before.number]
        assert set(zip(before.folds, before.fold_scores, strict=True)) <= set(
            zip(after.folds, after.fold_scores, strict=True)
        )


def test_a_resumed_search_goes_on_with_the_folds_that_are_missing(data: TrialData) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 8})
    whole = propose(plan, data)
    work(whole, by_configuration(data, fold_s=lambda: 10))
    history = interrupted(plan, data, 12)
    assert any(1 < len(t.folds) < 8 for t in history)
    resumed = propose(plan, data, history=history)
    work(resumed, by_configuration(data, fold_s=lambda: 10))
    assert [(t.folds, t.fold_scores) for t in trials_of(resumed)] == [
        (t.folds, t.fold_scores) for t in trials_of(whole)
    ]


def test_a_resumed_count_goes_on_counting(data: TrialData) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 12})
    history = interrupted(plan, data, 9)
    assert sum(t.state is TrialState.KILLED for t in history) == 2
    two, three = propose(plan, data, history=history), propose(plan, data, history=history)
    work(two, by_configuration(data), parallel=2)
    work(three, by_configuration(data), parallel=3, order=chance(1))
    assert sum(t.state is not TrialState.KILLED for t in trials_of(two)) == 12
    assert configurations(trials_of(two)) == configurations(trials_of(three))
    assert [t.folds for t in trials_of(two)] == [t.folds for t in trials_of(three)]


def test_history_enters_the_study_once(data: TrialData) -> None:
    plan = make_test_plan("linear", "lightgbm", budget=REPEATED)
    history = [t for t in interrupted(plan, data, 8) if t.state is TrialState.SUCCEEDED]
    proposer = propose(plan, data, history=history)
    work(proposer, by_configuration(data))
    values = [t.value for t in proposer._study._study.get_trials() if t.value is not None]
    assert values[:8] == [t.fold_scores[0] for t in history]
    assert values == [t.fold_scores[0] for t in trials_of(proposer)[: len(values)]], "all but the last batch, each once"
    assert len(values) > len(proposer.trials) - BATCH


def test_threads_share_one_proposer(data: TrialData) -> None:
    """As the inline thread and Ray Tune do."""
    proposer = propose(make_test_plan("linear", "lightgbm", budget={"time_s": 1e6, "trials": 40}), data)
    errors: list[BaseException] = []

    def worker() -> None:
        try:
            while not proposer.exhausted:
                if (job := proposer.next()) is not None:
                    proposer.done(job, by_configuration(data)(job))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(proposer.trials) == list(range(40))
    assert {len(t.folds) for t in trials_of(proposer)} == {1, 8}


def test_predictions_of_the_best_first_folds_only_are_kept(data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of a thousand trials would hold the predictions of all of them."""
    monkeypatch.setattr("factory.search.standing.MOST_CANDIDATES", 3)
    proposer = propose(make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 3600, "trials": 8}), data)
    work(proposer, by_configuration(data))
    best = sorted(trials_of(proposer), key=lambda t: t.fold_scores[0], reverse=True)[:3]
    assert len(trials_of(proposer)) == 8
    assert proposer._standing.ready(proposer.trials) == {t.number for t in best} == set(proposer._standing._shown)
