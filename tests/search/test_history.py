"""The race: first folds of all, further folds of the chosen, then the search; history is never fitted again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.families.base import Deadline
from factory.ledger import Ledger
from factory.search.allowance import (
    CUT_SHORT,
    DISTRIBUTED_FIT_SHARE,
    FIT_SHARE_FEW_ROWS,
    LATER_FOLD,
    LATER_FOLD_S,
    LONG_S,
    SHORTEST_SHARE,
    SHORTEST_TRIAL_S,
)
from factory.search.history import EXPLORE_SHARE, SLOWER, Proposer
from factory.search.jobs import FitJob, FitResult, TrialData
from factory.search.plan import family
from factory.search.race import choose, gain
from factory.search.study import Configuration, portfolio, shape_of
from factory.search.watchdog import DIED, HUNG
from factory.spec import Task, Trial, TrialState

from .conftest import Clock, make_data, make_dataset, make_request, make_test_plan, outcome
from .proposed import (
    FIXED_LINEAR,
    Answer,
    by_configuration,
    first_folds,
    further,
    propose,
    trials_of,
    with_scores,
    work,
)


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    """Eight folds of 120 rows, two classes."""
    return make_data(tmp_path, dataset=make_dataset(n_rows=960))


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


def test_without_the_race_every_trial_begins_with_all_its_folds(data: TrialData) -> None:
    jobs = list(iter(propose(make_test_plan("constant", "linear"), data, without={"race"}).next, None))
    assert {job.folds for job in jobs} == {tuple(range(len(data.splits)))}


# --- further folds --------------------------------------------------------------


def test_only_trials_that_earn_them_get_further_folds(data: TrialData) -> None:
    """Predictions that are alike but for their skill: the best one is the blend, the others are far behind."""
    plan = make_test_plan("constant", "linear", "lightgbm", spaces=FIXED_LINEAR)
    proposer = propose(plan, data, without={"slower"})
    jobs = work(proposer, with_scores(data, {2: 0.95}), jobs=9)
    n_bets = len(first_folds(jobs))
    assert [t.origin for t in first_folds(jobs)] == ["portfolio"] * n_bets
    assert sorted(further(jobs)) == [(2, fold) for fold in range(1, 8)]
    assert [t.folds for t in trials_of(proposer)][:4] == [(0,), (0,), tuple(range(8)), (0,)]


def test_the_next_fold_is_that_which_brings_most_for_its_time(data: TrialData) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", "xgboost")
    proposer = propose(plan, data, without={"slower"})
    jobs = work(proposer, by_configuration(data, fold_s=lambda: 10.0), jobs=28)
    n_bets = len(portfolio(proposer.plan, proposer.plan.families, shape=shape_of(data)))
    assert [job.folds for job in jobs[:n_bets]] == [(0,)] * n_bets
    first = {n: np.load(data.out_of_fold(n, 0)) for n in range(n_bets)}
    weights = choose(data.metric, data.dataset.y[data.splits[0].validation], first)
    assert len(weights) > 1
    n_folds = dict.fromkeys(weights, 1)
    for number, fold in further(jobs[n_bets:]):
        lacking = [n for n in weights if n_folds[n] < len(data.splits)]
        if not lacking:
            break
        assert number == min(lacking, key=lambda n: (-gain(weights[n], n_folds[n]), n))
        assert fold == n_folds[number], "one after the other, so that the rows of members line up"
        n_folds[number] += 1
    assert max(n_folds.values()) > 2


def test_of_equal_members_the_cheaper_one_gets_its_folds_first(data: TrialData) -> None:
    """Two whose errors differ, so that both are in the blend."""
    proposer = propose(make_test_plan("linear", "constant", spaces=FIXED_LINEAR), data)
    costs = {0: 30.0, 1: 3.0}

    def answer(job: FitJob) -> FitResult:
        return outcome(data, job, 0.9, noise=job.trial.number, fold_s=costs[job.trial.number])

    order = further(work(proposer, answer))
    assert order[:2] == [(1, 1), (1, 2)]
    assert order.index((0, 1)) < order.index((1, 7)), "but what a further fold brings gets less and less"


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
    proposer.lost(second, DIED)
    proposer.done(third, outcome(data, third, 0.8))
    assert proposer.next() is None
    assert proposer.exhausted
    (trial,) = trials_of(proposer)
    assert (trial.state, trial.folds, trial.reason) == (TrialState.SUCCEEDED, (0, 2), "")
    assert trial.score == pytest.approx(0.85)
    assert recorded[-1] == trial


@pytest.mark.parametrize("reason", [DIED, HUNG])
def test_a_bet_is_made_once_more_where_its_worker_died_of_something_else(reason: str, data: TrialData) -> None:
    proposer = propose(make_test_plan("linear", spaces=FIXED_LINEAR), data)
    lost = []
    while (job := proposer.next()) is not None:
        proposer.lost(job, reason)
        lost.append((job.trial.number, job.trial.parameters, job.folds))
    first = lost[0][1]
    assert lost == [(n, first, (0,)) for n in range(2 if reason == DIED else 1)]
    assert {trial.state for trial in trials_of(proposer)} == {TrialState.KILLED}
    assert proposer.exhausted


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
                share = FIT_SHARE_FEW_ROWS * (CUT_SHORT if job.trial.family == "constant" else 1)
                first_s = share * min(left_s, (LONG_S * left_s) ** 0.5)
                assert job.limit_s == pytest.approx(min(LATER_FOLD * (LATER_FOLD * 6 + LATER_FOLD_S), first_s))


@pytest.mark.parametrize("fold_s", [2.0, 6.0])
def test_a_further_fold_may_take_no_more_than_the_first(data: TrialData, clock: Clock, fold_s: float) -> None:
    proposer = propose(make_test_plan("constant", "linear", "lightgbm"), data, left_s=60.0, parallel=1)
    jobs = [job for _, job, _ in race(proposer, by_configuration(data, fold_s=lambda: fold_s), clock)]
    limits = {job.limit_s for job in jobs if job.trial.family != "constant"}
    whole = FIT_SHARE_FEW_ROWS * 60
    assert max(limits) == pytest.approx(whole)
    assert min(limits) == pytest.approx(min(LATER_FOLD * (LATER_FOLD * fold_s + LATER_FOLD_S), whole))


@pytest.mark.parametrize(
    ("left_s", "fold_s", "found"),
    [(300.0, 2.0, True), (300.0, 8.0, False), (60.0, 0.5, False)],
    ids=["early", "it had no time left", "a short search"],
)
def test_a_good_booster_that_is_done_early_learns_in_smaller_steps_too(
    data: TrialData, clock: Clock, left_s: float, fold_s: float, found: bool
) -> None:
    proposer = propose(make_test_plan("constant", "lightgbm"), data, left_s=left_s, parallel=1)
    race(proposer, with_scores(data, {1: 0.95}, fold_s=fold_s), clock)
    good, next_one, *others = [trial for trial in trials_of(proposer) if trial.family == "lightgbm"]
    smaller = {**good.parameters, "learning_rate": pytest.approx(SLOWER * float(good.parameters["learning_rate"]))}
    assert (next_one.parameters == smaller) is found
    assert next_one.origin == "portfolio"
    assert smaller not in [trial.parameters for trial in others]


def test_who_waits_for_workers_takes_quick_bets_only(data: TrialData, clock: Clock) -> None:
    def taken(left_s: float, *, jobs: int) -> list[str]:
        proposer = propose(make_test_plan("constant", "lightgbm", "linear"), data, left_s=left_s)
        given = [proposer.next(quick=True) for _ in range(jobs)]
        assert not proposer.exhausted
        last = proposer.next()
        assert last is not None
        return [job.trial.family for job in (*given, last) if job is not None]

    long = taken(300.0, jobs=5)
    assert long == ["constant", "linear", "linear", "lightgbm"], "what the workers take comes from the others"
    assert taken(60.0, jobs=2) == ["constant", "lightgbm", "linear"]


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

    assert first(LONG_S).limit_s == pytest.approx(FIT_SHARE_FEW_ROWS * LONG_S)
    assert first(25 * LONG_S).limit_s == pytest.approx(FIT_SHARE_FEW_ROWS * 5 * LONG_S), "with the root of the time"
    forest = first(LONG_S, family="extra_trees").limit_s
    assert forest == pytest.approx(CUT_SHORT * FIT_SHARE_FEW_ROWS * LONG_S), "cut to a few trees it would be nothing"
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
