"""Overfit watch: luck in the search's score, and trainings that went past their best."""

from __future__ import annotations

import numpy as np
import pytest

from factory.search.metric import Metric
from factory.spec import CurvePoint, Task, Trial
from factory.variants.resampling import Interval
from factory.variants.watch import Member, turning_point, watch_curves, watch_gap, watch_selection, watch_trials

AUC = Metric.of("roc_auc", Task.BINARY)
RMSE = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)


@pytest.mark.parametrize(
    ("chosen", "flagged", "word"), [(0.84, False, "both agree"), (0.90, True, "too good"), (0.75, True, "easier")]
)
def test_the_search_and_the_gate_agree_within_chance(chosen, flagged, word):
    judged = Interval(value=0.83, low=0.80, high=0.86)
    seen = watch_selection(AUC, chosen, judged, n_chosen=5400, n_judged=600)
    assert seen.flagged == flagged
    assert word in seen.sentence
    assert f"{chosen:.4f}" in seen.sentence
    assert "0.8300" in seen.sentence


def test_losses_are_told_without_their_sign():
    judged = Interval(value=-33.0, low=-35.0, high=-31.0)
    sentence = watch_selection(RMSE, -32.0, judged, n_chosen=100, n_judged=100).sentence
    assert "Between 29.1716 and 34.8284" in sentence
    assert "-" not in sentence.replace("-validation", "")
    assert "20.0000" in watch_gap(RMSE, -20.0, -32.0, judged).sentence


def test_chance_ends_at_the_best_score_there_is():
    judged = Interval(value=-33.0, low=-80.0, high=0.0)
    assert "Between 0.0000 and 88.5" in watch_selection(RMSE, -32.0, judged, n_chosen=100, n_judged=100).sentence
    judged = Interval(value=0.9, low=0.6, high=1.0)
    assert "and 1.0000 would" in watch_selection(AUC, 0.92, judged, n_chosen=100, n_judged=100).sentence


def test_chance_covers_what_it_should():
    """Of many pairs of samples from one variant about one in twenty is outside."""
    generator = np.random.default_rng(0)
    outside = 0
    for _ in range(2000):
        chosen, judged = generator.normal(0, 1 / np.sqrt(900)), generator.normal(0, 1 / np.sqrt(300))
        half = 1.96 / np.sqrt(300)
        interval = Interval(value=judged, low=judged - half, high=judged + half)
        outside += watch_selection(AUC, chosen, interval, n_chosen=900, n_judged=300).flagged
    assert 0.03 < outside / 2000 < 0.07


def curve(held, train=None) -> tuple[CurvePoint, ...]:
    train = np.linspace(1, 0.1, len(held)) if train is None else train
    return tuple(CurvePoint(step=i, train=t, validation=v) for i, (t, v) in enumerate(zip(train, held, strict=True)))


STEPS = np.arange(100)
NOISE = np.random.default_rng(0).normal(0, 0.004, 100)


def test_a_validation_loss_that_rises_again_is_flagged():
    rising = curve(0.5 + 0.5 * np.exp(-STEPS / 10) + 0.002 * np.maximum(STEPS - 40, 0) + NOISE)
    best, last = turning_point(rising)
    assert 25 <= best.step <= 45
    assert last.step == 99
    trial = Trial(number=7, family="torch_network", parameters={}, score=0.8, curve=rising)
    (seen,) = watch_curves([trial, trial.model_copy(update={"number": 8})], weights={7: 0.5})
    assert seen.flagged
    assert seen.sentence.startswith(f"torch_network (trial 7) learned by heart after step {best.step}: until step 99")


@pytest.mark.parametrize(
    "held",
    [
        0.5 + 0.5 * np.exp(-STEPS / 10) + NOISE,  # level at the end: the gap grows, and no harm is done
        0.5 + 0.5 * np.exp(-STEPS / 60),
        np.r_[0.5 + 0.5 * np.exp(-STEPS / 10)][:8],
        np.r_[1.0, np.full(99, np.nan)],
    ],
)
def test_a_level_or_short_curve_is_not(held):
    assert turning_point(curve(held)) is None


def test_a_loss_that_rises_on_both_sides_is_not_learned_by_heart():
    held = 0.5 + 0.5 * np.exp(-STEPS / 10) + 0.002 * np.maximum(STEPS - 40, 0)
    assert turning_point(curve(held, train=held)) is None


def test_a_gap_that_blending_made_grow_is_flagged_and_a_mere_gap_is_not():
    judged, forest = Interval(value=0.80, low=0.77, high=0.83), Member("extra_trees", 0.97, 0.88)
    assert not watch_gap(AUC, 1.0, 0.88, judged).flagged, "forests know their training rows"
    grown = watch_gap(AUC, 0.99, 0.89, judged, best=forest, spread=0.03)
    assert grown.flagged
    assert "extra_trees alone reaches 0.9700" in grown.sentence
    assert not watch_gap(AUC, 0.96, 0.89, judged, best=forest, spread=0.03).flagged, "it follows its rows less closely"
    assert not watch_gap(AUC, 0.99, 0.89, judged, best=forest, spread=0.09).flagged, "these rows may be harder by luck"


def trials_of(family, train, held, **more):
    return [
        Trial(number=n, family=family, parameters={}, score=v, train_score=t, folds=(0,), fold_scores=(v,), **more)
        for n, (t, v) in enumerate(zip(train, held, strict=True))
    ]


def test_a_family_whose_trials_get_worse_the_closer_they_follow_their_rows_is_flagged():
    train = np.linspace(0.80, 1.0, 8)
    trials = trials_of("neighbours", train, 0.85 - (train - 0.8) ** 2 / 2)
    (seen,) = watch_trials(AUC, trials, weights={0: 1.0})
    assert seen.flagged
    assert seen.kind == "gap"
    assert "neighbours" in seen.sentence
    assert "from trial 0 to trial 7 ROC AUC went from 0.8000 to 1.0000 on training rows" in seen.sentence
    assert not watch_trials(AUC, trials, weights={}), "no member of the variant"
    assert not watch_trials(AUC, trials[:5], weights={0: 1.0}), "too few"
    assert not watch_trials(AUC, trials_of("neighbours", train, train - 0.1), weights={0: 1.0})
    assert not watch_trials(AUC, trials_of("extra_trees", np.ones(8), train), weights={0: 1.0}), "all fit them alike"
    drawn = np.random.default_rng(0).normal(0.8, 0.01, 8)
    assert not watch_trials(AUC, trials_of("extra_trees", train, drawn), weights={0: 1.0}), "by luck"
    curved = trials_of("lightgbm", train, 1 - train, curve=curve(0.5 + 0.5 * np.exp(-STEPS / 10)))
    assert not watch_trials(AUC, curved, weights={0: 1.0}), "its curves are looked at"
