"""The proposer: portfolio first, then search; history is known; a repeatable plan asks in batches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from factory.families.base import Deadline, Shape
from factory.search.history import BATCH, RANK_CYCLE, SHORTEST_TRIAL_S, Proposer
from factory.search.plan import Plan, family
from factory.space import ChoiceDimension, FloatDimension, IntDimension, clip
from factory.spec import Task, Trial, TrialState

from .conftest import ended, make_test_plan

COUNTED = {"time_s": 1e6, "trials": 16}


def propose(plan: Plan, *, history: Sequence[Trial] = (), left_s: float = 1e6, **fields: Any) -> Proposer:
    given = {"parallel": 2, "n_rows": 500, "record": lambda _: None} | fields
    return Proposer(plan=plan, history=history, deadline=Deadline.after(left_s), **given)


def score_of(trial: Trial) -> float:
    """A score that follows from the configuration alone."""
    numbers = [float(v) for v in trial.parameters.values() if isinstance(v, int | float)]
    return float(np.sin(sum(numbers))) + len(trial.family) / 10


def work(proposer: Proposer, *, parallel: int = 1, order: Callable[[list[Trial]], int] = lambda _: 0) -> list[Trial]:
    """Run a proposer to its end with that many pretended workers; ``order`` says which running trial ends next."""
    running: list[Trial] = []
    while True:
        while len(running) < parallel and (job := proposer.next()) is not None:
            running.append(job.trial)
        if not running:
            assert proposer.exhausted
            return [proposer.trials[n] for n in sorted(proposer.trials)]
        trial = running.pop(order(running))
        proposer.done(ended(trial, score_of(trial)))


def configurations(trials: Sequence[Trial]) -> list[tuple[str, tuple[Any, ...]]]:
    return [(t.family, tuple(sorted(t.parameters.items()))) for t in trials]


# --- the portfolio ------------------------------------------------------------


@pytest.mark.parametrize("task", list(Task))
def test_the_portfolio_comes_first_best_bets_before_second_ones(task: Task) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", "xgboost", task=task, budget={"trials": 30, "time_s": 1e6})
    trials = work(propose(plan))
    bets = [(name, bet) for name in plan.families for bet in family(name).portfolio(task, shape=Shape(500))]
    bets.sort(key=lambda entry: entry[1].rank)  # stable: ties in the recipe's order of families
    assert [t.origin for t in trials] == ["portfolio"] * len(bets) + ["search"] * (30 - len(bets))
    for trial, (name, bet) in zip(trials, bets, strict=False):
        assert (trial.family, trial.parameters) == (name, bet.parameters)


def test_pools_come_one_after_the_other() -> None:
    names = ("torch_network", "linear", "keras_network", "lightgbm", "constant")
    proposer = propose(make_test_plan(*names))
    trials = [job.trial for job in iter(proposer.next, None)]
    pools = [pool for pool, _ in itertools.groupby(family(t.family).pool for t in trials)]
    assert pools == ["torch", "trees", "tensorflow"]


def test_a_portfolio_is_brought_into_a_narrowed_space_once() -> None:
    plan = make_test_plan("lightgbm", spaces={"lightgbm": {"num_leaves": 12, "learning_rate": 0.05}})
    trials = [job.trial for job in iter(propose(plan).next, None)]
    assert {t.parameters["num_leaves"] for t in trials} == {12}
    fixed: dict[str, Any] = dict.fromkeys(("min_data_in_leaf", "cat_smooth"), 1)
    fixed |= {"feature_fraction": 1, "bagging_fraction": 1, "crosses": [True], "categoricals": ["native"]}
    fixed |= {"lambda_l1": 0, "lambda_l2": 0, "extra_trees": [False], "num_leaves": 12, "learning_rate": 0.05}
    proposer = propose(make_test_plan("lightgbm", spaces={"lightgbm": fixed}))
    (trial,) = [job.trial for job in iter(proposer.next, None)]
    proposer.done(ended(trial, 0.9))
    assert proposer.exhausted, "with every parameter fixed there is nothing to search"


# --- searching ----------------------------------------------------------------


def test_every_proposal_lies_in_its_space() -> None:
    plan = make_test_plan("linear", "lightgbm", spaces={"lightgbm": {"num_leaves": [8, 16]}}, budget=COUNTED)
    trials = work(propose(plan), parallel=3)
    assert [t.number for t in trials] == list(range(16))
    for trial in trials:
        space = plan.spaces[trial.family]
        assert trial.parameters == clip(space, trial.parameters)
        assert set(trial.parameters) == set(space)


def test_the_best_families_share_the_search() -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", "xgboost", budget={"time_s": 1e6, "trials": 29})
    proposer = propose(plan)
    scores = {"constant": 0.5, "linear": 0.7, "lightgbm": 0.9, "xgboost": 0.8}
    while (job := proposer.next()) is not None:
        proposer.done(ended(job.trial, scores[job.trial.family]))
    searched = [t.family for t in proposer.trials.values() if t.origin == "search"]
    ranked = ["lightgbm", "xgboost", "linear"]
    assert searched[:8] == [ranked[RANK_CYCLE[i % 4]] for i in range(8)]


def test_the_search_finds_what_is_good(probe: None) -> None:
    plan = make_test_plan("probe", spaces={"probe": {"does": ["fit"]}}, budget={"time_s": 1e6, "trials": 40})
    proposer = propose(plan)
    while (job := proposer.next()) is not None:
        proposer.done(ended(job.trial, -abs(float(job.trial.parameters["skill"] or 0) - 0.9)))
    searched = [t for t in proposer.trials.values() if t.origin == "search"]
    errors = [-(t.score or 0) for t in searched]
    assert np.median(errors[-16:]) < 0.5 * np.median(errors[:8])


def test_no_configuration_comes_twice_and_a_used_up_space_ends_the_search() -> None:
    spaces = {"linear": {"knots": [4, 5], "degree": [1, 2]}}
    trials = work(propose(make_test_plan("linear", spaces=spaces, budget={"time_s": 1e6, "trials": 50})), parallel=2)
    tried = configurations(trials)
    assert len(set(tried)) == len(tried)
    assert 4 <= len(tried) <= 8


def test_a_searched_trial_must_reach_the_better_half_of_first_folds() -> None:
    plan = make_test_plan("linear", "lightgbm")
    proposer = propose(plan)
    jobs = list(iter(proposer.next, None))
    assert {job.prune_below for job in jobs} == {None}
    for i, job in enumerate(jobs):
        proposer.done(ended(job.trial, i / 10))
    job = proposer.next()
    assert job is not None
    assert job.prune_below == (len(jobs) // 2) / 10


def test_a_failed_trial_ends_nothing() -> None:
    proposer = propose(make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 12}))
    while (job := proposer.next()) is not None:
        proposer.done(ended(job.trial, None if job.trial.number % 2 else score_of(job.trial)))
    states = [t.state for t in proposer.trials.values()]
    assert states == [TrialState.SUCCEEDED, TrialState.FAILED] * 6


def test_nothing_is_searched_where_nothing_works() -> None:
    proposer = propose(make_test_plan("linear", "lightgbm"))
    while (job := proposer.next()) is not None:
        proposer.done(ended(job.trial, None))
    assert proposer.exhausted
    assert {t.origin for t in proposer.trials.values()} == {"portfolio"}


# --- limits -------------------------------------------------------------------


def test_trials_are_counted_but_killed_ones() -> None:
    recorded: list[Trial] = []
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 3})
    proposer = propose(plan, record=recorded.append)
    first, second, third = (proposer.next() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert proposer.exhausted
    assert proposer.next() is None
    proposer.lost(second.trial.number, "Its worker process died.")
    assert recorded[-1].state is TrialState.KILLED
    assert recorded[-1].reason == "Its worker process died."
    assert not proposer.exhausted
    proposer.done(ended(second.trial, 0.9))
    assert proposer.trials[second.trial.number].state is TrialState.KILLED, "what was given up stays so"
    assert proposer.next() is not None
    proposer.done(ended(first.trial, 0.5))
    proposer.lost(first.trial.number, "too late")
    assert proposer.trials[first.trial.number].state is TrialState.SUCCEEDED
    assert [t.number for t in proposer.running] == [2, 3]


def test_a_trial_gets_a_part_of_the_time_left() -> None:
    proposer = propose(make_test_plan(), left_s=1000, parallel=2)
    job = proposer.next()
    assert job is not None
    assert job.limit_s == pytest.approx(200, abs=1)
    assert job.deadline_at == proposer.deadline.at
    short = propose(make_test_plan(), left_s=SHORTEST_TRIAL_S + 1, parallel=1).next()
    assert short is not None
    assert short.limit_s == pytest.approx(SHORTEST_TRIAL_S, abs=0.5)


def test_a_search_that_is_too_late_still_tries_for_one_real_model() -> None:
    proposer = propose(make_test_plan("constant", "linear", "lightgbm"), left_s=SHORTEST_TRIAL_S - 0.1)
    families = []
    while (job := proposer.next()) is not None:
        families.append(job.trial.family)
        assert Deadline(job.deadline_at).left_s == pytest.approx(SHORTEST_TRIAL_S, abs=0.5)
        proposer.done(ended(job.trial, None if job.trial.family == "linear" else 0.5))
    assert families == ["constant", "linear", "lightgbm"]
    assert proposer.exhausted


def test_who_stops_gets_nothing_more() -> None:
    proposer = propose(make_test_plan())
    proposer.stopped = True
    assert proposer.exhausted
    assert proposer.next() is None


NETWORKS = ("constant", "lightgbm", "torch_network", "keras_network")


@pytest.mark.parametrize(
    ("left_s", "skipped"),
    [(60, {"torch_network", "keras_network"}), (150, {"keras_network"}), (600, set())],
)
def test_a_framework_must_be_worth_its_start(left_s: float, skipped: set[str]) -> None:
    proposer = propose(make_test_plan(*NETWORKS), left_s=left_s)
    assert set(proposer.skipped) == skipped
    assert all(f"of the {left_s:.0f} s to start" in reason for reason in proposer.skipped.values())
    assert {job.trial.family for job in iter(proposer.next, None)} == set(NETWORKS) - skipped


def test_a_framework_is_used_where_nothing_else_is_or_trials_are_counted() -> None:
    alone = propose(make_test_plan("constant", "keras_network"), left_s=60)
    assert not alone.skipped
    assert "keras_network" in {job.trial.family for job in iter(alone.next, None)}
    counted = propose(make_test_plan(*NETWORKS, budget={"time_s": 60, "trials": 50}), left_s=60)
    assert not counted.skipped


# --- repeating ----------------------------------------------------------------

REPEATED = {"time_s": 1e6, "trials": 23}


def chance(seed: int) -> Callable[[list[Trial]], int]:
    generator = np.random.default_rng(seed)
    return lambda running: int(generator.integers(len(running)))


@pytest.mark.parametrize(("parallel", "seed"), [(2, 0), (2, 1), (3, 2), (7, 3)])
def test_counted_trials_do_not_depend_on_workers_or_their_order(parallel: int, seed: int) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=REPEATED, seed=5)
    alone = work(propose(plan))
    many = work(propose(plan), parallel=parallel, order=chance(seed))
    assert configurations(alone) == configurations(many)
    assert [t.seed for t in alone] == [t.seed for t in many]
    assert sum(t.origin == "search" for t in alone) > 2 * BATCH


def test_another_seed_searches_elsewhere() -> None:
    plans = [make_test_plan("linear", "lightgbm", budget=REPEATED, seed=seed) for seed in (0, 1)]
    one, other = (configurations(work(propose(plan))) for plan in plans)
    n_portfolio = len(family("linear").portfolio(Task.BINARY, shape=Shape(500))) + 4
    assert one[:n_portfolio] == other[:n_portfolio]
    assert one[n_portfolio:] != other[n_portfolio:]


def test_counted_trials_are_asked_for_in_batches() -> None:
    plan = make_test_plan("linear", budget=REPEATED)
    proposer = propose(plan)
    portfolio = list(iter(proposer.next, None))
    assert len(portfolio) == 2
    proposer.done(ended(portfolio[1].trial, 0.8))
    assert proposer.next() is None, "the search waits for the whole portfolio"
    assert not proposer.exhausted
    proposer.done(ended(portfolio[0].trial, 0.7))
    for _ in range(2):
        batch = list(iter(proposer.next, None))
        assert len(batch) == BATCH
        for job in batch[::-1]:
            assert proposer.next() is None
            proposer.done(ended(job.trial, score_of(job.trial)))


# --- history ------------------------------------------------------------------


def half_run(plan: Plan, n_trials: int) -> list[Trial]:
    """The trials of a driver that was killed when so many had ended and two were running."""
    proposer = propose(plan)
    for _ in range(n_trials):
        job = proposer.next()
        assert job is not None
        proposer.done(ended(job.trial, score_of(job.trial)))
    running = [job.trial for job in (proposer.next(), proposer.next()) if job is not None]
    killed = {"state": TrialState.KILLED, "reason": "Its driver was interrupted."}
    return [*list(proposer.trials.values())[:n_trials], *(t.model_copy(update=killed) for t in running)]


@pytest.mark.parametrize("budget", [REPEATED, {"time_s": 1e6}], ids=["counted", "timed"])
@pytest.mark.parametrize("n_trials", [1, 4, 12])
def test_only_what_was_killed_is_proposed_again(n_trials: int, budget: dict[str, float]) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=budget)
    history = half_run(plan, n_trials)
    proposer = propose(plan, history=history)
    fresh: list[Trial] = []
    while len(fresh) < 10 and (job := proposer.next()) is not None:
        fresh.append(job.trial)
        proposer.done(ended(job.trial, score_of(job.trial)))
    assert [t.number for t in fresh] == list(range(len(history), len(history) + len(fresh)))
    assert [proposer.trials[t.number] for t in history] == history
    before = set(configurations(history[:n_trials]))
    assert not before & set(configurations(fresh))
    killed = [t for t in history[n_trials:] if t.origin == "portfolio"]
    assert set(configurations(killed)) <= set(configurations(fresh))


def test_a_resumed_count_goes_on_counting() -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 1e6, "trials": 12})
    history = half_run(plan, 9)
    trials = work(propose(plan, history=history), parallel=2)
    assert sum(t.state is not TrialState.KILLED for t in trials) == 12
    assert configurations(trials) == configurations(work(propose(plan, history=history), parallel=3, order=chance(1)))


def test_history_enters_the_study_once() -> None:
    plan = make_test_plan("linear", "lightgbm", budget=REPEATED)
    history = [t for t in half_run(plan, 8) if t.state is TrialState.SUCCEEDED]
    proposer = propose(plan, history=history)
    for job in list(iter(proposer.next, None)):
        proposer.done(ended(job.trial, 0.5))
    values = [t.value for t in proposer._study.get_trials() if t.value is not None]
    assert values[:8] == [t.score for t in history]
    assert len(values) == len(proposer.trials)


def test_history_of_other_spaces_and_families_is_taken_as_far_as_it_fits() -> None:
    """What a parent or a sibling found: parameters outside this space, other category sets, a family not here."""
    plan = make_test_plan("linear", "lightgbm", spaces={"lightgbm": {"num_leaves": [8, 16]}, "linear": {"knots": 5}})
    inside = {**family("lightgbm").portfolio(Task.BINARY, shape=Shape(500))[0].parameters, "num_leaves": 12}
    history = [
        ended(Trial(number=0, family="lightgbm", parameters=inside), 0.9),
        ended(Trial(number=1, family="lightgbm", parameters={**inside, "num_leaves": 200, "unknown": "x"}), 0.8),
        ended(Trial(number=2, family="linear", parameters={"splines": False, "knots": 12, "degree": 9}), 0.7),
        ended(Trial(number=3, family="catboost", parameters={"depth": 4}), 0.95),
        ended(Trial(number=4, family="lightgbm", parameters=inside), None),
    ]
    proposer = propose(plan, history=history)
    known = proposer._study.get_trials()
    assert [t.value for t in known] == [0.9, 0.8, 0.7]
    assert known[0].params == {"family": "lightgbm", **{f"lightgbm.{k}": v for k, v in inside.items()}}
    assert "lightgbm.num_leaves" not in known[1].params
    assert known[2].params == {"family": "linear", "linear.splines": False}
    for job in itertools.islice(iter(proposer.next, None), 12):
        assert job.trial.family in plan.families
        proposer.done(ended(job.trial, score_of(job.trial)))
    assert any(t.origin == "search" for t in proposer.trials.values())


def test_kinds_of_dimensions_reach_optuna_as_they_are(probe: None) -> None:
    space = make_test_plan("lightgbm", "probe").spaces
    kinds = {type(d) for dimensions in space.values() for d in dimensions.values()}
    assert kinds == {FloatDimension, IntDimension, ChoiceDimension}
    proposer = propose(make_test_plan("lightgbm", budget=COUNTED))
    work(proposer)
    searched = [t for t in proposer._study.get_trials() if t.params and "lightgbm.num_leaves" in t.distributions]
    distribution = searched[-1].distributions["lightgbm.num_leaves"]
    assert (distribution.low, distribution.high, distribution.log) == (4, 255, True)


def test_threads_share_one_proposer() -> None:
    """As the inline thread and Ray Tune do."""
    proposer = propose(make_test_plan("linear", "lightgbm", budget={"time_s": 1e6, "trials": 60}))
    errors: list[BaseException] = []

    def worker() -> None:
        try:
            while not proposer.exhausted:
                if (job := proposer.next()) is not None:
                    proposer.done(ended(job.trial, score_of(job.trial)))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(proposer.trials) == list(range(60))
