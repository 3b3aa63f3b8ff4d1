"""Many comparisons at once are as sure as one was meant to be."""

from __future__ import annotations

import numpy as np
import pytest

from factory.variants.multiplicity import adjusted_confidence, stands, strictest_confidence


def standing(probabilities, confidence=0.95):
    needed = adjusted_confidence(probabilities, confidence=confidence)
    strictest = strictest_confidence(len(needed), confidence=confidence)
    assert all(confidence - 1e-9 <= c <= strictest + 1e-12 for c in needed)
    return [stands(p, c) for p, c in zip(probabilities, needed, strict=True)]


def test_one_comparison_stays_as_it_was():
    assert adjusted_confidence([0.97], confidence=0.95) == pytest.approx((0.95,))
    assert adjusted_confidence([], confidence=0.95) == ()


def test_holm_by_hand():
    p = np.array([0.001, 0.012, 0.02, 0.04, 0.6])  # thresholds .01 .0125 .0167
    shuffle = np.array([3, 0, 4, 2, 1])
    expected = np.array([True, True, False, False, False])[shuffle]
    assert standing((1 - p)[shuffle].tolist()) == expected.tolist()


def test_holm_stops_at_the_first_that_falls():
    # The third would stand by its own threshold of .05, but the second fell.
    assert standing([0.999, 0.96, 0.955]) == [True, False, False]


def test_luck_alone_rarely_stands():
    generator = np.random.default_rng(0)
    lucky = [any(standing(generator.random(54).tolist())) for _ in range(2000)]
    assert np.mean(lucky) < 0.06
    assert np.mean([(generator.random(54) >= 0.95).any() for _ in range(2000)]) > 0.9


def test_what_bonferroni_lets_pass_stands_and_what_one_gate_refuses_falls():
    generator = np.random.default_rng(1)
    for _ in range(200):
        probabilities = np.concatenate([generator.random(20), 1 - generator.random(20) * 0.1])
        stood = np.array(standing(probabilities.tolist()))
        assert stood[probabilities >= strictest_confidence(40, confidence=0.95)].all()
        assert not stood[probabilities < 0.95].any()


def test_equal_probabilities_stand_or_fall_together():
    assert standing([1.0] * 54) == [True] * 54
    assert standing([0.96] * 54) == [False] * 54
