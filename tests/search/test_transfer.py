"""What a search takes over from those before it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from factory.families.base import Shape
from factory.ledger import PastSearch
from factory.search.metric import Metric
from factory.search.study import Prior, PriorTrial, Study, portfolio
from factory.search.transfer import (
    MOST_OF_FAMILY,
    MOST_PRIOR,
    MOST_SEEDS,
    NEAR,
    Sibling,
    described,
    prior_trials,
    seeds,
    siblings,
    target_score,
    transfer,
    trials_to_parity,
)
from factory.spec import Task, Traits, Trial

from .conftest import make_data, make_test_plan

AUC = Metric("roc_auc", Task.BINARY)
SHAPE = Shape(n_rows=200, n_columns=4, n_classes=2)
FAMILIES = ("constant", "linear", "lightgbm", "xgboost")


def trial(number: int, score: float | None, *, family: str = "lightgbm", **parameters: float) -> Trial:
    fold = () if score is None else (0,)
    scores = () if score is None else (score,)
    return Trial(
        number=number,
        family=family,
        parameters=parameters,
        state="succeeded",
        score=score,
        folds=fold,
        fold_scores=scores,
    )


def past(*trials: Trial, name: str = "r-1", blend: dict[int, float] | None = None, **traits: object) -> PastSearch:
    known = {
        "task": "binary",
        "n_rows": 100,
        "n_columns": 5,
        "n_classes": 2,
        "columns": ("a", "b"),
        "metric": "roc_auc",
    }
    return PastSearch(
        request_id=name,
        variant="t.n",
        recorded=datetime.now(UTC),
        traits=Traits.model_validate(known | {"constant_score": 0.5} | traits),
        trials=trials,
        blend=blend or {},
    )


def mine(**traits: object) -> Traits:
    found = past(**traits).traits
    assert found is not None
    return found


def test_near_searches_are_siblings_and_the_parent_comes_first() -> None:
    near, nearest = past(trial(0, 0.8), name="near", n_rows=1000), past(trial(0, 0.8), name="nearest")
    far, empty = past(trial(0, 0.8), name="far", columns=("x", "y")), past(name="empty")
    found = siblings(mine(), [near, far, nearest, empty])
    assert [s.search.request_id for s in found] == ["nearest", "near"]
    assert all(s.distance <= NEAR for s in found)
    found = siblings(mine(), [near, nearest], parent=far)
    assert [s.search.request_id for s in found] == ["far", "nearest", "near"]
    assert not found[0].near


def test_seeds_are_members_first_then_the_best_of_each_family() -> None:
    plan = make_test_plan(*FAMILIES)
    search = past(
        trial(0, 0.5, family="constant"),
        *(trial(n, 0.70 + n / 100, num_leaves=8 + n) for n in range(1, 12)),
        trial(12, 0.6, family="xgboost", max_depth=4),
        trial(13, None, family="linear"),
        blend={3: 0.4, 12: 0.6},
    )
    found = seeds([Sibling(search, 0.1)], families=plan.families, spaces=plan.spaces)
    assert [name for name, _ in found[:2]] == ["xgboost", "lightgbm"]
    assert found[1][1]["num_leaves"] == 11
    assert [p["num_leaves"] for name, p in found if name == "lightgbm"] == [11, 19, 18]
    assert len(found) <= MOST_SEEDS
    assert {name for name, _ in found} == {"xgboost", "lightgbm"}
    assert sum(name == "lightgbm" for name, _ in found) == MOST_OF_FAMILY


def test_seeds_of_a_nearer_search_come_first_and_none_comes_twice() -> None:
    plan = make_test_plan(*FAMILIES)
    near = Sibling(past(trial(0, 0.8, num_leaves=20)), 0.0)
    far = Sibling(past(trial(0, 0.9, num_leaves=20), trial(1, 0.95, num_leaves=40)), 0.3)
    found = seeds([far, near], families=plan.families, spaces=plan.spaces)
    assert [p["num_leaves"] for _, p in found] == [20, 40]


def test_places_are_told_pulled_to_the_middle_and_bounded() -> None:
    search = past(*(trial(n, n / 200, num_leaves=8 + n) for n in range(100)))
    near, far = (prior_trials([Sibling(search, d)], families=FAMILIES) for d in (0.0, 0.5))
    assert len(near) == MOST_PRIOR
    assert len(far) == MOST_PRIOR / 2
    assert (near[0].place, near[-1].place) == pytest.approx((1.0, 0.01))
    assert (far[0].place, far[-1].place) == pytest.approx((0.75, 0.255))
    assert len(prior_trials([Sibling(search, 0.0)] * 3, families=FAMILIES)) == MOST_PRIOR


def test_a_search_without_relatives_takes_over_nothing() -> None:
    plan = make_test_plan(*FAMILIES)
    found = transfer([], mine=mine(), metric=AUC, families=plan.families, spaces=plan.spaces)
    assert (found.seeds, found.prior, found.seeded_by, found.target) == ((), None, (), None)


def test_seeds_come_before_the_portfolio() -> None:
    plan = make_test_plan(*FAMILIES)
    search = past(*(trial(n, 0.8, num_leaves=20 + n) for n in range(3)), blend={1: 1.0})
    found = transfer([Sibling(search, 0.1)], mine=mine(), metric=AUC, families=plan.families, spaces=plan.spaces)
    assert found.seeded_by == ("r-1",)
    assert found.prior is not None
    assert found.prior.target == found.target
    study = Study(plan, families=plan.families, shape=SHAPE, seeds=found.seeds, prior=found.prior)
    bets = [study.next_bet()]
    assert bets[0] is not None
    assert bets[0][1]["num_leaves"] == 21, "the member of the blend is the first seed"
    while study.bets_left:
        bets.append(study.next_bet())
    assert bets[:3] == list(found.seeds)
    assert [study.is_seed(bet) for bet in bets] == [True] * 3 + [False] * (len(bets) - 3)
    assert bets[3:] == portfolio(plan, plan.families, shape=SHAPE)


def test_told_trials_enter_on_the_scale_of_the_own_scores_and_steer_the_proposals() -> None:
    plan = make_test_plan("lightgbm")
    generator = np.random.default_rng(0)
    told = []
    for leaves in np.exp(generator.uniform(np.log(4), np.log(255), 40)).astype(int):
        place = float(np.exp(-abs(np.log(leaves / 20))))
        told.append(PriorTrial("lightgbm", {"num_leaves": int(leaves)}, place))

    def proposals(prior: Prior | None) -> float:
        study = Study(plan, families=("lightgbm",), shape=SHAPE, prior=prior)
        for number in range(3):
            name, parameters = study.next_bet()
            study.tell(trial(number, None, family=name, **parameters), [-0.9, -0.8, -0.7][number])  # type: ignore[arg-type]
        asked = [study.ask("lightgbm", number=100 + n) for n in range(12)]
        values = [t.value for t in study._study.get_trials() if t.value is not None]
        assert all(-0.9 <= value <= -0.7 for value in values)
        assert len(values) == 3 + (len(prior.trials) if prior else 0)
        return float(np.mean([abs(np.log(p["num_leaves"] / 20)) for p in asked if p]))  # type: ignore[arg-type]

    assert proposals(Prior(tuple(told))) < proposals(None)


def test_parity_is_what_is_left_of_a_constants_loss() -> None:
    theirs = past(trial(0, 0.7), trial(1, 0.9))
    assert target_score(theirs, mine=mine(), metric=AUC) == pytest.approx(0.9)
    loss = Metric("neg_root_mean_squared_error", Task.REGRESSION)
    theirs = past(trial(0, -3.0), metric=loss.name, constant_score=-10.0)
    assert target_score(theirs, mine=mine(constant_score=-2.0), metric=loss) == pytest.approx(-0.6)
    assert target_score(theirs, mine=mine(), metric=AUC) is None
    assert target_score(past(), mine=mine(), metric=AUC) is None


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.9], 1), ([0.5, 0.8994], None), ([0.5, 0.8996], 2), ([None, 0.95, 0.99], 2), ([], None)],
)
def test_trials_are_counted_until_the_loss_is_within_half_a_percent(
    scores: list[float | None], expected: int | None
) -> None:
    assert trials_to_parity(scores, 0.9, metric=AUC) == expected


def test_data_are_described_with_what_a_constant_scores(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    found = described(data)
    assert (found.metric, found.constant_score) == (data.metric.name, 0.5)
    assert found.n_rows == len(data.dataset)
