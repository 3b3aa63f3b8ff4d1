"""Greedy selection: what it must choose, what it may never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.search.blueprint import Blueprint, MemberPlan, refit_shares
from factory.search.ensemble import STEPS, Arena, Blend, Candidates, greedy
from factory.search.metric import Metric
from factory.spec import Task, Trial

RMSE = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)
AUC = Metric.of("roc_auc", Task.BINARY)


def blended(blend: Blend, predictions: dict[int, list[np.ndarray]], fold: int) -> np.ndarray:
    return np.sum([w * predictions[k][fold] for k, w in blend.weights.items()], axis=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), n_candidates=st.integers(1, 6), n_folds=st.integers(1, 4))
def test_a_blend_is_no_worse_than_its_best_candidate(seed: int, n_candidates: int, n_folds: int) -> None:
    generator = np.random.default_rng(seed)
    folds = [generator.normal(size=40) for _ in range(n_folds)]
    predictions = {k: [y + generator.normal(size=40) for y in folds] for k in range(n_candidates)}
    blend = greedy(RMSE, folds, predictions)
    alone = [np.mean([RMSE.score(y, p) for y, p in zip(folds, predictions[k], strict=True)]) for k in predictions]
    assert blend.score >= max(alone) - 1e-12
    assert sum(blend.weights.values()) == pytest.approx(1)
    assert all(0 < w <= 1 for w in blend.weights.values())
    recomputed = np.mean([RMSE.score(y, blended(blend, predictions, i)) for i, y in enumerate(folds)])
    assert blend.score == pytest.approx(recomputed)
    assert greedy(RMSE, folds, predictions) == blend


def test_errors_that_cancel_are_blended_and_a_useless_candidate_is_left_out() -> None:
    generator = np.random.default_rng(0)
    y, error = generator.normal(size=200), generator.normal(size=200)
    predictions = {3: [y + error], 7: [y - error], 9: [generator.normal(size=200) * 5]}
    blend = greedy(RMSE, [y], predictions)
    assert blend.weights == {3: 0.5, 7: 0.5}
    assert blend.score == pytest.approx(0)


def test_equal_scores_keep_the_smaller_blend_and_the_earlier_candidate() -> None:
    y = np.array([0, 1, 0, 1])
    good = np.array([[0.8, 0.2], [0.2, 0.8], [0.7, 0.3], [0.3, 0.7]])
    assert greedy(AUC, [y], {5: [good], 2: [good], 4: [good[::-1]]}).weights == {2: 1.0}


def test_folds_may_be_on_different_scales() -> None:
    """Ranking across folds would call this blend bad; fold by fold it is perfect."""
    y = np.array([0, 0, 1, 1])
    low, high = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.6, 0.7, 0.8, 0.9])
    predictions = {0: [np.stack([1 - p, p], axis=1) for p in (low, high)]}
    assert greedy(AUC, [y, y], predictions).score == 1.0


def test_steps_bound_the_weights() -> None:
    generator = np.random.default_rng(1)
    y = generator.normal(size=300)
    predictions = {k: [y + generator.normal(size=300)] for k in range(60)}
    blend = greedy(RMSE, [y], predictions)
    assert len(blend.weights) <= STEPS
    assert min(blend.weights.values()) >= 1 / STEPS
    best = max(predictions, key=lambda k: RMSE.score(y, predictions[k][0]))
    assert greedy(RMSE, [y], predictions, steps=1).weights == {best: 1.0}


def test_many_rows_are_thinned() -> None:
    generator = np.random.default_rng(2)
    y = generator.normal(size=100_000)
    blend = greedy(RMSE, [y], {0: [y + 1.0], 1: [y - 1.0]})
    assert blend.weights == {0: 0.5, 1: 0.5}


def test_only_what_is_allowed_is_blended() -> None:
    generator = np.random.default_rng(3)
    y = generator.normal(size=400)
    predictions = {k: [y + generator.normal(size=400) * (1 + 0.1 * k)] for k in range(6)}
    arena = Arena(RMSE, [y], predictions)
    assert len(arena.greedy(affords=lambda members: len(members) <= 2).weights) == 2
    assert set(arena.greedy(among={1, 4}).weights) <= {1, 4}
    assert arena.greedy(affords=lambda _: False) == Blend({}, -np.inf)
    whole = arena.greedy()
    assert arena.score(whole.weights) == pytest.approx(whole.score)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["roc_auc", "neg_log_loss", "neg_brier_score", "f1", "average_precision"])
def test_candidates_are_scored_at_once_as_the_metric_scores_each(name: str, weighted: bool) -> None:
    generator = np.random.default_rng(5)
    metric = Metric.of(name, Task.BINARY)
    folds = [generator.integers(0, 2, 120) for _ in range(3)]
    raw = {k: [np.round(generator.random(120), 2) * 0.5 + 0.4 * y for y in folds] for k in range(5)}
    candidates = Candidates(
        metric,
        tuple(folds),
        {k: tuple(np.stack([1 - p, p], axis=1) for p in parts) for k, parts in raw.items()},
        tuple(generator.random(120) for _ in folds) if weighted else None,
    )
    blend = greedy(metric, folds, candidates.predictions, weights=candidates.weights)
    ranked = greedy(metric.chooser, folds, candidates.predictions, weights=candidates.weights)
    assert blend.weights == ranked.weights
    blended = candidates.blended(blend.weights)
    assert blend.score == pytest.approx(candidates.score(blended, metric))


@pytest.mark.parametrize(
    ("task", "name"), [(Task.BINARY, "neg_log_loss"), (Task.REGRESSION, "neg_root_mean_squared_error")]
)
def test_heavy_rows_choose_the_blend(task: Task, name: str) -> None:
    """Each of two candidates knows one half of the rows; all the weight lies on one of the halves."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 200)
    noise, first = generator.random(200), np.arange(200) < 100
    near = 0.1 + 0.8 * y
    known = {0: np.where(first, near, noise), 1: np.where(first, noise, near)}
    shown = {n: [np.stack([1 - p, p], axis=1) if task is Task.BINARY else p] for n, p in known.items()}
    metric, weight = Metric.of(name, task), np.where(first, 1.0, 1e-6)
    blend = greedy(metric, [y], shown, weights=[weight])
    assert blend.weights == {0: 1.0}
    assert blend.score == pytest.approx(metric.score(y, shown[0][0], weight=weight), abs=1e-6)
    candidates = Candidates(metric, (y,), {n: tuple(p) for n, p in shown.items()}, (weight,))
    assert candidates.score(shown[0], metric) == pytest.approx(blend.score)
    assert set(greedy(metric, [y], shown).weights) == {0, 1}


# --- folds that lack a class ------------------------------------------------------


def test_a_fold_of_one_class_has_no_say_in_a_ranking() -> None:
    good, bad = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.8, 0.6, 0.4, 0.2])
    y, ones = np.array([0, 0, 1, 1]), np.ones(4, dtype=np.int64)

    def shown(second: np.ndarray) -> np.ndarray:
        return np.stack([1 - second, second], axis=1)

    predictions = {1: (shown(bad), shown(good)), 2: (shown(good), shown(bad))}
    blend = greedy(Metric("roc_auc", Task.BINARY), (y, ones), predictions)
    assert blend == Blend({2: 1.0}, 1.0)


def test_labels_are_blended_where_no_fold_can_be_ranked() -> None:
    ones, metric = np.ones(4, dtype=np.int64), Metric("accuracy", Task.BINARY)
    right, wrong = np.tile([0.1, 0.9], (4, 1)), np.tile([0.9, 0.1], (4, 1))
    assert greedy(metric, (ones,), {1: (wrong,), 2: (right,)}) == Blend({2: 1.0}, 1.0)
    assert greedy(metric.chooser, (ones,), {1: (wrong,), 2: (right,)}) == Blend({}, -np.inf)


def test_the_few_rows_of_a_class_are_looked_at_among_many() -> None:
    """Evenly spaced, one row of ten would be looked at, and none of the three of the second class."""
    y = np.zeros(300_000, dtype=np.int64)
    y[[5, 7, 11]] = 1
    second = np.where(y == 1, 0.9, 0.1)
    good = np.stack([1 - second, second], axis=1)
    assert greedy(Metric("roc_auc", Task.BINARY), (y,), {0: (good[:, ::-1],), 1: (good,)}) == Blend({1: 1.0}, 1.0)


def test_what_ranks_no_row_takes_no_part_in_a_ranking_unless_it_is_alone() -> None:
    random = np.random.default_rng(5)
    y = random.integers(0, 2, 3_000)
    p = np.clip(0.5 * y + random.normal(0.25, 0.2, len(y)), 0.01, 0.99)
    models = {0: np.full(len(y), 0.3), 1: p, 2: np.clip(p + random.normal(0, 0.3, len(y)), 0, 1)}
    shown = {n: [np.stack([1 - each, each], axis=1)] for n, each in models.items()}
    auc = Metric.of("roc_auc", Task.BINARY)
    assert 0 not in greedy(auc, [y], shown).weights
    assert 0 not in greedy(auc, [y], {n: shown[n] for n in (0, 1)}).weights
    assert greedy(auc, [y], {0: shown[0]}).weights == {0: 1.0}
    only = Arena(auc, [y], shown).greedy(affords=lambda members: members <= {0})
    assert set(only.weights) == {0}, "where nothing else is affordable"
    noisy = {0: shown[0], 1: [np.stack([1 - models[2], models[2]], axis=1)]}
    assert 0 in greedy(Metric.of("neg_log_loss", Task.BINARY), [y], noisy).weights, "there it takes loss away"


def searched(costs: dict[int, float], errors: dict[int, float]) -> tuple[Candidates, list[Trial]]:
    """Candidates with that much noise, each fitted on four folds for that many seconds."""
    random = np.random.default_rng(6)
    y = random.normal(size=400)
    predictions = {n: (y + error * random.normal(size=400),) for n, error in errors.items()}
    trials = [
        Trial(number=n, family="linear", parameters={}, state="succeeded", cost_s=cost, folds=(0, 1, 2, 3))
        for n, cost in costs.items()
    ]
    return Candidates(RMSE, (y,), predictions), trials


def test_a_refit_fits_the_best_members_that_a_tenth_of_the_searchs_cost_affords() -> None:
    weights = {0: 0.5, 1: 0.3, 2: 0.2}
    cheap = searched({0: 4, 1: 4, 2: 4, 9: 400}, {0: 0.3, 1: 0.3, 2: 0.3, 9: 1.0})
    assert refit_shares(*cheap, weights) == weights, "all of them are affordable"
    dear = searched({0: 40, 1: 6, 2: 6}, {0: 0.1, 1: 0.3, 2: 0.3})
    shares = refit_shares(*dear, weights)
    assert set(shares) == {1, 2}
    assert sum(shares.values()) == pytest.approx(1)
    together = searched({0: 20, 1: 10, 2: 10, 9: 50}, {0: 0.25, 1: 0.3, 2: 0.3, 9: 1.0})
    assert set(refit_shares(*together, weights)) == {1, 2}, "the best one alone would leave no time for the others"
    none = searched({0: 40, 1: 30, 2: 20}, {0: 0.1, 1: 0.3, 2: 0.3})
    assert refit_shares(*none, weights) == {2: 1.0}, "the cheapest, where none is"
    unknown = Candidates(RMSE, (), {})
    assert refit_shares(unknown, dear[1], weights) == weights, "a refit of a refit has nothing to choose by"


def test_a_blueprint_names_what_a_refit_fits() -> None:
    def member(n: int, weight: float, refit_weight: float | None = None) -> MemberPlan:
        return MemberPlan(number=n, family="linear", parameters={}, weight=weight, refit_weight=refit_weight)

    whole = Blueprint(members=(member(0, 0.7), member(1, 0.3)))
    assert [(m.number, w) for m, w in whole.refitted] == [(0, 0.7), (1, 0.3)]
    lean = Blueprint(members=(member(0, 0.7, 0.0), member(1, 0.2, 0.4), member(2, 0.1, 0.6)))
    assert [(m.number, w) for m, w in lean.refitted] == [(2, 0.6), (1, 0.4)]
