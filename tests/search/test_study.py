"""Configurations: the portfolio's order, what Optuna proposes, and what it is told of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from factory.families.base import Shape
from factory.search.plan import Plan, family, with_loss
from factory.search.study import Configuration, Study, portfolio
from factory.space import ChoiceDimension, FloatDimension, IntDimension, clip
from factory.spec import Task, Trial, TrialState

from .conftest import make_test_plan

SHAPE = Shape(500)
NARROW: dict[str, Any] = {"linear": {"splines": [True], "knots": [4, 5], "degree": [1, 2]}}


def made(plan: Plan, **fields: Any) -> Study:
    return Study(plan, **({"families": plan.families, "shape": SHAPE} | fields))


def bets(study: Study) -> list[Configuration]:
    found = []
    while study.bets_left:
        found.append(study.next_bet())
    return found


def past(number: int, name: str, parameters: dict[str, Any], state: TrialState = TrialState.SUCCEEDED) -> Trial:
    return Trial(number=number, family=name, parameters=parameters, state=state)


# --- the portfolio ------------------------------------------------------------


@pytest.mark.parametrize("task", list(Task))
def test_bets_are_tried_by_rank_and_ties_in_the_recipes_order(task: Task) -> None:
    names = ("constant", "linear", "lightgbm", "xgboost", "extra_trees")
    plan = make_test_plan(*names, task=task)
    expected = [(bet.rank, name, bet) for name in names for bet in family(name).portfolio(task, shape=SHAPE)]
    expected.sort(key=lambda entry: entry[0])
    assert bets(made(plan)) == [(name, bet.parameters) for _, name, bet in expected]


def test_pools_come_one_after_the_other() -> None:
    plan = make_test_plan("torch_network", "linear", "keras_network", "lightgbm", "constant")
    pools = [family(name).pool for name, _ in portfolio(plan, plan.families, shape=SHAPE)]
    assert list(dict.fromkeys(pools)) == ["torch", "trees", "tensorflow"]
    assert pools == sorted(pools, key=["torch", "trees", "tensorflow"].index)


@pytest.mark.parametrize("preferred", ["squared", "absolute"])
def test_where_the_metric_is_of_medians_the_loss_is_a_choice(preferred: Any) -> None:
    plan = make_test_plan("linear", "lightgbm", task=Task.REGRESSION, metric="neg_median_absolute_error")
    assert "loss" not in plan.spaces["linear"]
    tried = bets(made(plan, shape=replace(SHAPE, loss=preferred)))
    losses = [parameters["loss"] for name, parameters in tried if name == "lightgbm"]
    assert losses == [preferred, *({"squared", "absolute"} - {preferred}), *[preferred] * (len(losses) - 2)]
    assert losses[2:]
    first, twin, *_ = (parameters for name, parameters in tried if name == "lightgbm")
    assert with_loss(first)[0] == with_loss(twin)[0]
    assert with_loss(first)[1] == preferred
    assert [name for name, _ in tried].count("linear") == len(family("linear").portfolio(Task.REGRESSION, shape=SHAPE))
    other = make_test_plan("lightgbm", task=Task.REGRESSION, metric="r2")
    assert all("loss" not in parameters for _, parameters in bets(made(other)))
    assert with_loss({"depth": 3}) == ({"depth": 3}, "squared")


def test_bets_are_brought_into_a_narrowed_space_and_tried_once() -> None:
    plan = make_test_plan("linear", spaces={"linear": {"splines": [True], "knots": 5, "degree": 1}})
    study = made(plan)
    assert bets(study) == [("linear", {"splines": True, "knots": 5, "degree": 1})]
    assert not study.searchable("linear"), "with every parameter fixed there is nothing to search"


def test_seeds_come_before_the_portfolio_once_and_within_the_space() -> None:
    plan = make_test_plan("constant", "linear", spaces={"linear": {"knots": [4, 6]}})
    seeds: list[Configuration] = [
        ("linear", {"splines": True, "knots": 12, "degree": 2}),
        ("linear", {"splines": True, "knots": 6, "degree": 2}),
        ("lightgbm", {"num_leaves": 8}),
    ]
    tried = bets(made(plan, seeds=seeds))
    assert tried[0] == ("linear", {"splines": True, "knots": 6, "degree": 2})
    assert [name for name, _ in tried] == ["linear", "constant", "linear"]


def test_families_that_cost_too_much_to_start_are_left_out() -> None:
    plan = make_test_plan("constant", "linear", "lightgbm")
    study = made(plan, families=("constant", "linear"), seeds=[("lightgbm", {})])
    assert {name for name, _ in bets(study)} == {"constant", "linear"}


# --- searching ----------------------------------------------------------------


def test_proposals_lie_in_the_space_and_none_comes_twice() -> None:
    plan = make_test_plan("linear", spaces=NARROW)
    study = made(plan)
    tried = [parameters for _, parameters in bets(study)]
    while study.searchable("linear"):
        asked = study.ask("linear", number=len(tried))
        if asked is not None:
            tried.append(asked)
            study.tell(past(len(tried) - 1, "linear", asked), 0.5)
    assert study.ask("linear", number=99) is None
    keys = [tuple(sorted(parameters.items())) for parameters in tried]
    assert len(set(keys)) == len(keys)
    assert 3 <= len(keys) <= 5
    assert all(clip(plan.spaces["linear"], parameters) == parameters for parameters in tried)


def test_the_seed_decides_what_is_asked() -> None:
    def asked(seed: int) -> list[object]:
        study = made(make_test_plan("lightgbm", seed=seed))
        return [study.ask("lightgbm", number=n) for n in range(4)]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_the_search_finds_what_is_good(probe: None) -> None:
    study = made(make_test_plan("probe", spaces={"probe": {"does": ["fit"]}}))
    errors = []
    for number in range(40):
        parameters = study.ask("probe", number=number)
        assert parameters is not None
        errors.append(abs(float(parameters["skill"] or 0) - 0.9))
        study.tell(past(number, "probe", parameters), -errors[-1])
    assert np.median(errors[-16:]) < 0.5 * np.median(errors[:8])


def test_kinds_of_dimensions_reach_optuna_as_they_are(probe: None) -> None:
    plan = make_test_plan("lightgbm", "probe")
    kinds = {type(d) for dimensions in plan.spaces.values() for d in dimensions.values()}
    assert kinds == {FloatDimension, IntDimension, ChoiceDimension}
    study = made(plan)
    parameters = study.ask("lightgbm", number=0)
    assert parameters is not None
    study.tell(past(0, "lightgbm", parameters), 0.5)
    (known,) = study._study.get_trials()
    distribution = known.distributions["lightgbm.num_leaves"]
    assert (distribution.low, distribution.high, distribution.log) == (4, 255, True)


# --- history ------------------------------------------------------------------


def test_what_was_tried_is_not_proposed_again_but_what_was_killed_is() -> None:
    plan = make_test_plan("constant", "linear")
    everything = bets(made(plan))
    ends = [TrialState.SUCCEEDED, TrialState.KILLED, TrialState.FAILED]
    history = [past(n, *bet, state) for n, (bet, state) in enumerate(zip(everything, ends, strict=True))]
    assert bets(made(plan, history=history)) == [everything[1]]


def test_history_of_other_spaces_and_families_is_taken_as_far_as_it_fits() -> None:
    """What a parent or a sibling found: parameters outside this space, other category sets, a family not here."""
    plan = make_test_plan("linear", "lightgbm", spaces={"lightgbm": {"num_leaves": [8, 16]}, "linear": {"knots": 5}})
    inside = {**family("lightgbm").portfolio(Task.BINARY, shape=SHAPE)[0].parameters, "num_leaves": 12}
    known: list[tuple[Trial, float | None]] = [
        (past(0, "lightgbm", inside), 0.9),
        (past(1, "lightgbm", {**inside, "num_leaves": 200, "unknown": "x"}), 0.8),
        (past(2, "linear", {"splines": False, "knots": 12, "degree": 9}), 0.7),
        (past(3, "catboost", {"depth": 4}), 0.95),
        (past(4, "lightgbm", inside), None),
    ]
    study = made(plan, history=[trial for trial, _ in known])
    for trial, value in known:
        study.tell(trial, value)
    told = study._study.get_trials()
    assert [t.value for t in told] == [0.9, 0.8, 0.7]
    assert told[0].params == {"family": "lightgbm", **{f"lightgbm.{k}": v for k, v in inside.items()}}
    assert "lightgbm.num_leaves" not in told[1].params
    assert told[2].params == {"family": "linear", "linear.splines": False}
    for number in range(5, 12):
        parameters = study.ask("lightgbm", number=number)
        assert parameters is not None
        study.tell(past(number, "lightgbm", parameters), 0.5)


def test_a_trial_without_a_value_is_told_as_failed() -> None:
    study = made(make_test_plan("linear"))
    parameters = study.ask("linear", number=0)
    assert parameters is not None
    study.tell(past(0, "linear", parameters, TrialState.FAILED), None)
    assert [t.state.name for t in study._study.get_trials()] == ["FAIL"]
