"""Many comparisons at once are as sure as one was meant to be."""

from __future__ import annotations

import numpy as np
import pytest

from factory.variants.multiplicity import adjusted_confidence, stands

RULES = ("holm", "benjamini_hochberg")


def standing(probabilities, rule, confidence=0.95):
    needed = adjusted_confidence(probabilities, confidence=confidence, rule=rule)
    assert all(confidence - 1e-9 <= c < 1 for c in needed)
    return [stands(p, c) for p, c in zip(probabilities, needed, strict=True)]


@pytest.mark.parametrize("rule", RULES)
def test_one_comparison_stays_as_it_was(rule):
    assert adjusted_confidence([0.97], confidence=0.95, rule=rule) == pytest.approx((0.95,))
    assert adjusted_confidence([], confidence=0.95, rule=rule) == ()


def test_holm_and_benjamini_hochberg_by_hand():
    p = np.array([0.001, 0.012, 0.02, 0.04, 0.6])  # Holm's thresholds .01 .0125 .0167; BH's .01 .02 .03 .04 .05
    shuffle = np.array([3, 0, 4, 2, 1])
    expected = {"holm": [True, True, False, False, False], "benjamini_hochberg": [True] * 4 + [False]}
    for rule in RULES:
        assert standing((1 - p)[shuffle].tolist(), rule) == np.array(expected[rule])[shuffle].tolist()


def test_holm_stops_at_the_first_that_falls():
    # The third would stand by its own threshold of .05, but the second fell.
    assert standing([0.999, 0.96, 0.955], "holm") == [True, False, False]


@pytest.mark.parametrize(("rule", "most"), [("holm", 0.06), ("benjamini_hochberg", 0.06)])
def test_luck_alone_rarely_stands(rule, most):
    generator = np.random.default_rng(0)
    lucky = [any(standing(generator.random(54).tolist(), rule)) for _ in range(2000)]
    assert np.mean(lucky) < most
    assert np.mean([(generator.random(54) >= 0.95).any() for _ in range(2000)]) > 0.9


def test_equal_probabilities_stand_or_fall_together():
    assert standing([1.0] * 54, "holm") == [True] * 54
    assert standing([0.96] * 54, "holm") == [False] * 54
    assert standing([0.96] * 54, "benjamini_hochberg") == [True] * 54
