"""Which members are refitted: the heaviest first, as far as the time goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.families.base import Deadline
from factory.search.ensemble import Blend
from factory.search.jobs import FitResult, TrialData
from factory.search.refit import SAFETY, RefitProposer
from factory.search.watchdog import DIED
from factory.spec import Trial, TrialState

from .conftest import make_data


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    return make_data(tmp_path, kind="holdout", share=0.25)


def members(*costs_s: float, family: str = "lightgbm") -> dict[int, Trial]:
    fitted = {"state": TrialState.SUCCEEDED, "score": 0.8, "folds": (0,), "fold_scores": (0.8,), "rounds": 30}
    return {
        n: Trial(number=n, family=family, parameters={}).model_copy(update=fitted | {"cost_s": cost_s})
        for n, cost_s in enumerate(costs_s)
    }


def test_the_heaviest_member_comes_first_with_rounds_for_all_rows(data: TrialData) -> None:
    proposer = RefitProposer(data, members(1, 1, 1), Blend({0: 0.25, 1: 0.15, 2: 0.6}, 0.9), Deadline.after(100))
    jobs = list(iter(proposer.next, None))
    assert [job.trial.number for job in jobs] == [2, 0, 1]
    assert {job.refit_rounds for job in jobs} == {40}
    assert {job.folds for job in jobs} == {()}
    assert {job.deadline_at for job in jobs} == {proposer.deadline.at}
    proposer.done(jobs[0], FitResult(number=2))
    proposer.lost(jobs[1], DIED)
    assert proposer.exhausted
    assert proposer.next() is None


def test_rounds_that_are_steps_of_a_penalty_path_do_not_grow_with_the_rows(data: TrialData) -> None:
    trials = members(1, family="linear")
    (job,) = iter(RefitProposer(data, trials, Blend({0: 1.0}, 0.9), Deadline.after(100)).next, None)
    assert job.refit_rounds == 30


def test_only_members_of_the_blend_are_refitted_and_each_once(data: TrialData) -> None:
    data.model_folder(1, None).mkdir(parents=True)
    proposer = RefitProposer(data, members(1, 1, 1), Blend({1: 0.5, 2: 0.5}, 0.9), Deadline.after(100))
    assert [job.trial.number for job in iter(proposer.next, None)] == [2]


def test_a_refit_keeps_a_rate_that_the_fit_raised(data: TrialData) -> None:
    trials = {0: members(1)[0].model_copy(update={"raised_rate": 0.4})}
    (job,) = iter(RefitProposer(data, trials, Blend({0: 1.0}, 0.9), Deadline.after(100)).next, None)
    assert job.trial.raised_rate == 0.4


def test_a_refit_that_does_not_fit_the_time_is_passed_over(data: TrialData) -> None:
    dear = 10.0
    just_too_little_s = dear * SAFETY / 0.75 - 0.5
    blend = Blend({0: 0.9, 1: 0.1}, 0.9)
    proposer = RefitProposer(data, members(dear, 1), blend, Deadline.after(just_too_little_s))
    assert [job.trial.number for job in iter(proposer.next, None)] == [1]
    enough = RefitProposer(data, members(dear, 1), blend, Deadline.after(just_too_little_s + 1))
    assert [job.trial.number for job in iter(enough.next, None)] == [0, 1]
