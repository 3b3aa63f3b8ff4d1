"""Who gets further folds, at what cost, and on which folds a blend is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.search.ensemble import bagged, greedy, resampled
from factory.search.metric import Metric
from factory.search.race import LEAST_WEIGHT, choose, common_folds, contenders, gain, relative_loss
from factory.spec import Task

RMSE = Metric("neg_root_mean_squared_error", Task.REGRESSION)
AUC = Metric("roc_auc", Task.BINARY)
Y = np.zeros(400)
"""With this target a prediction is its own error, and two of them can be at right angles."""


def error(first: float, second: float) -> np.ndarray:
    return np.tile([first, second], len(Y) // 2)


BEST, OTHER = error(1.0, 0.0), error(0.9, 1.0)
"""A tenth of the other takes half a percent off the best one's error."""


def chosen(predictions: dict[int, np.ndarray]) -> tuple[int, ...]:
    return tuple(choose(RMSE, Y, predictions))


# --- choose ---------------------------------------------------------------------


def test_who_brings_the_blend_nothing_gets_no_further_folds() -> None:
    assert chosen({0: 2 * BEST, 1: BEST, 2: 3 * BEST}) == (1,)
    assert chosen({5: BEST}) == (5,)


def test_the_heaviest_member_stands_first() -> None:
    assert chosen({0: OTHER, 1: BEST}) == (1, 0)
    assert chosen({0: BEST, 1: OTHER}) == (0, 1)


def test_further_folds_bring_less_and_less_and_the_more_the_member_weighs() -> None:
    gains = [gain(0.5, n) for n in range(1, 8)]
    assert gains == sorted(gains, reverse=True)
    assert sum(gains) == pytest.approx(0.5 * (1 - 1 / 8))
    assert gain(0.3, 1) > gain(0.5, 2) > gain(0.3, 2)


def test_a_member_of_little_weight_gets_no_further_folds() -> None:
    predictions = {0: error(1.0, -0.16), 1: error(1.0, 4.0)}
    blend = greedy(RMSE, [Y], {n: [p] for n, p in predictions.items()})
    assert 0 < blend.weights[1] < LEAST_WEIGHT
    assert chosen(predictions) == (0,)


def test_the_choice_follows_from_what_was_measured_alone() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 60)
    guesses = generator.uniform(size=(12, 60)) / 2 + y / 3
    predictions = {n: np.stack([1 - p, p], axis=1) for n, p in enumerate(guesses)}

    def choice(order: list[int]) -> dict[int, float]:
        return choose(AUC, y, {n: predictions[n] for n in order})

    first = choice(list(predictions))
    assert len(first) > 1
    for seed in range(5):
        assert choice(np.random.default_rng(seed).permutation(12).tolist()) == first


@pytest.mark.parametrize(("metric", "score", "loss"), [(RMSE, -0.4, 0.4), (AUC, 0.9, 0.1)])
def test_a_score_becomes_a_loss_that_percentages_are_taken_of(metric: Metric, score: float, loss: float) -> None:
    assert relative_loss(metric, score) == pytest.approx(loss)


# --- common folds ---------------------------------------------------------------


ERRORS = np.random.default_rng(0).normal(size=(31, 400))
"""Of candidates that are as good as each other and err independently: a blend of more is better."""


def lined_up(folds: dict[int, tuple[int, ...]], scale: dict[int, float] | None = None):
    """Line up candidates whose errors are those of :data:`ERRORS`, in another order on each fold."""

    def predictions(n: int, k: int) -> np.ndarray:
        return np.roll(ERRORS[n], 7 * k) * (scale or {}).get(n, 1.0)

    return common_folds(RMSE, dict.fromkeys(range(8), np.zeros(400)), predictions, folds)


@pytest.mark.parametrize(
    ("folds", "members", "common"),
    [
        ({0: (0,), 3: (0,)}, (0, 3), (0,)),
        ({1: (0, 2), 2: (0, 1)}, (1, 2), (0,)),
        ({4: tuple(range(8)), 2: (0,), 9: tuple(range(5))}, (2, 4, 9), (0,)),
        ({0: (0, 1, 2, 3), 1: (0, 1), 2: (0, 1, 3)}, (0, 1, 2), (0, 1)),
    ],
)
def test_more_members_that_err_independently_are_worth_folds(
    folds: dict[int, tuple[int, ...]], members: tuple[int, ...], common: tuple[int, ...]
) -> None:
    assert lined_up(folds) == (members, common)


def test_members_that_bring_nothing_take_no_folds_away() -> None:
    folds = {0: tuple(range(8)), 1: (0,), 2: (0, 1)}
    assert lined_up(folds, {1: 30.0, 2: 30.0}) == ((0,), tuple(range(8)))
    assert lined_up(folds, {1: 30.0}) == ((0, 2), (0, 1))


def test_a_poor_candidate_with_all_folds_does_not_push_out_what_is_better() -> None:
    """Neighbours are quick: with eight folds they once were the whole variant, beside forests and boosters with two."""
    assert lined_up({0: tuple(range(8)), 1: (0,), 2: (0, 1)}, {0: 10.0}) == ((0, 1, 2), (0,))
    assert lined_up({0: tuple(range(8)), 1: (0, 1), 2: (0, 1)}, {0: 1.1}) == ((0, 1, 2), (0, 1))


def test_what_the_first_fold_hides_the_others_show() -> None:
    """On digits a kernel machine with five folds was left out for a booster with six: by the first fold alone they
    were equal."""
    random = np.random.default_rng(0)
    better = {k: random.normal(size=60) * (1.0 if k == 0 else 0.4) for k in range(8)}
    worse = {k: random.normal(size=60) for k in range(8)}
    worse[0] = better[0] * 0.999
    targets = dict.fromkeys(range(8), np.zeros(60))
    members, common = common_folds(
        RMSE, targets, lambda n, k: (worse, better)[n][k], {0: tuple(range(6)), 1: tuple(range(5))}
    )
    assert (members, common) == ((0, 1), tuple(range(5)))


def test_few_rows_of_one_fold_do_not_outvote_the_rows_of_all() -> None:
    """On telco_churn six more candidates with the first fold alone once took seven folds away from fourteen others."""
    outvoted = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        errors = {(n, k): random.normal(size=60) * (0.5 + 0.1 * n) for n in range(8) for k in range(8)}
        folds = {n: tuple(range(8)) if n < 6 else (0,) for n in range(8)}
        targets = dict.fromkeys(range(8), np.zeros(60))
        common = common_folds(RMSE, targets, lambda n, k, errors=errors: errors[n, k], folds)[1]
        outvoted += len(common) == 1
    assert outvoted <= 5


@pytest.mark.parametrize("metric", [AUC, Metric("roc_auc_ovo", Task.MULTICLASS), Metric("accuracy", Task.BINARY)])
def test_members_line_up_by_any_metric(metric: Metric) -> None:
    random = np.random.default_rng(1)
    n_classes = 3 if metric.task is Task.MULTICLASS else 2
    y = np.arange(90) % n_classes
    good = np.eye(n_classes)[y] * 0.4 + random.uniform(0, 0.6, (90, n_classes))
    even = np.full((90, n_classes), 1 / n_classes)
    first = {n: p / p.sum(axis=1, keepdims=True) for n, p in {0: even, 1: good}.items()}
    folds = {0: (0, 1, 2), 1: (0, 1)}
    assert common_folds(metric, dict.fromkeys(range(3), y), lambda n, _: first[n], folds)[0] == (0, 1)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.integers(0, 30), st.sets(st.integers(1, 7)), min_size=1, max_size=8))
def test_every_member_has_every_common_fold(further: dict[int, set[int]]) -> None:
    folds = {n: (0, *sorted(more)) for n, more in further.items()}
    members, common = lined_up(folds)
    assert common[0] == 0
    assert all(set(common) <= set(folds[n]) for n in members)
    deepest = max(folds, key=lambda n: len(folds[n]))
    assert deepest in members
    assert list(members) == sorted(members)


def test_a_bet_that_chance_may_have_put_behind_is_a_contender() -> None:
    random = np.random.default_rng(0)
    y = (np.arange(400) % 20 == 0).astype(np.int64)
    sharp, alike, poor = (
        np.stack([1 - p, p], axis=1)
        for p in (np.clip(0.4 * y + random.uniform(0, 0.6, 400) * noise, 0, 1) for noise in (1.0, 1.0, 4.0))
    )
    metric = Metric("roc_auc", Task.BINARY)
    assert contenders(metric, y, {0: sharp, 1: alike, 2: poor}) == {0, 1}


def test_few_rows_spread_the_choice_over_equals() -> None:
    random = np.random.default_rng(0)
    y = random.normal(size=60)
    alike = {n: y + random.normal(size=60) for n in range(4)}
    metric = Metric("neg_root_mean_squared_error", Task.REGRESSION)
    assert len(bagged(metric, y, alike)) == 4
    assert len(resampled(metric, np.zeros(9_000))) == 1


def test_a_slow_scorer_sees_all_rows_once() -> None:
    (rows,) = resampled(Metric("roc_auc_ovo", Task.MULTICLASS), np.arange(60) % 3)
    assert rows.tolist() == list(range(60))
