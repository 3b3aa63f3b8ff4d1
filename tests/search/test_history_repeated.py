"""A search as a whole, the same one twice, and one that goes on after an interruption."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from factory.search.history import (
    BATCH,
    RANK_CYCLE,
)
from factory.search.jobs import TrialData
from factory.search.plan import Plan
from factory.search.study import portfolio, shape_of
from factory.search.watchdog import DIED
from factory.space import clip
from factory.spec import Trial, TrialState

from .conftest import make_data, make_dataset, make_test_plan, outcome
from .proposed import (
    COUNTED,
    Order,
    by_configuration,
    configurations,
    first_folds,
    propose,
    score_of,
    trials_of,
    work,
)


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    """Eight folds of 120 rows, two classes."""
    return make_data(tmp_path, dataset=make_dataset(n_rows=960))


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
    proposer.lost(second, DIED)
    assert recorded[-1].state is TrialState.KILLED
    assert recorded[-1].reason == DIED
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
