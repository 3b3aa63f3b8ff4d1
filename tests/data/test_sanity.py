"""Statistics of single columns, against their definitions and against scikit-learn and SciPy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats.contingency import association

from factory.data import sanity
from factory.spec import ColumnType

RNG = np.random.default_rng(0)


def test_correlation_is_numpys_over_the_rows_that_have_both() -> None:
    x, y = RNG.normal(size=200), RNG.normal(size=200)
    y += x
    expected = np.corrcoef(x[10:], y[10:])[0, 1]
    x[:10] = np.nan
    assert sanity.correlation(x, y) == pytest.approx(expected)
    assert sanity.correlation(np.ones(200), y) == 0
    assert sanity.correlation(x[:12], y[:12]) == 0  # two rows are always on a line
    assert sanity.label_correlation(-(y > 0).astype(float), (y > 0).astype(np.int64), n_classes=2) == pytest.approx(-1)


def test_cramers_v_is_scipys_where_there_are_many_rows_and_zero_by_chance() -> None:
    labels = RNG.integers(0, 3, 20_000)
    codes = np.where(RNG.random(20_000) < 0.6, labels, RNG.integers(0, 3, 20_000))
    table = sanity.Contingency.of(codes, labels)
    dense = pd.crosstab(codes, labels).to_numpy()
    assert sanity.cramers_v(table) == pytest.approx(association(dense, method="cramer"), abs=1e-3)
    codes, labels = RNG.integers(0, 200, 400), RNG.integers(0, 2, 400)
    assert association(pd.crosstab(codes, labels).to_numpy(), method="cramer") > 0.5
    assert sanity.cramers_v(sanity.Contingency.of(codes, labels)) < 0.3
    assert sanity.cramers_v(sanity.Contingency.of(np.zeros(9, dtype=np.int64), np.arange(9) % 2)) == 0


def test_contingency_leaves_out_what_is_missing() -> None:
    codes, labels = np.array([0, 1, -1, 1]), np.array([0, 1, 1, 1])
    table = sanity.Contingency.of(codes, labels)
    assert list(zip(table.levels, table.labels, table.counts, strict=True)) == [(0, 0, 1), (1, 1, 2)]
    assert (table.of_levels.tolist(), table.of_classes.tolist()) == ([1, 2], [1, 2])
    nothing = sanity.Contingency.of(np.full(3, -1), np.arange(3))
    assert sanity.cramers_v(nothing) == 0
    assert sanity.rules(nothing, least_rows=1) == ()


def test_rules_are_less_sure_of_few_rows() -> None:
    codes, labels = np.repeat([0, 1, 3, 3], [5, 500, 700, 300]), np.repeat([1, 1, 0, 1], [5, 500, 700, 300])
    table = sanity.Contingency.of(codes, labels)
    few, many, mixed = sanity.rules(table, least_rows=1)
    assert (few.confidence, many.confidence) == (1, 1)
    assert few.at_least < 0.6 < 0.99 < many.at_least
    assert (mixed.level, mixed.label, mixed.confidence, mixed.n_rows) == (3, 0, 0.7, 1000)
    assert mixed.prior == pytest.approx(700 / 1505)
    assert [rule.level for rule in sanity.rules(table, least_rows=6)] == [1, 3]


def test_a_hundred_thousand_levels_take_the_memory_of_their_rows() -> None:
    codes, labels = np.arange(200_000) // 2, RNG.integers(0, 200, 200_000)
    tracemalloc.start()
    table = sanity.Contingency.of(codes, labels)
    assert sanity.cramers_v(table) < 0.1
    assert sanity.rules(table, least_rows=50) == ()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # 100,000 levels times 200 classes would be 160 MB


def test_renaming_is_one_to_one() -> None:
    labels = RNG.integers(0, 3, 300)

    def same(codes: np.ndarray) -> bool:
        return sanity.renames(codes, labels, least_rows=20, least_per_class=5)

    assert same(np.array([2, 0, 1])[labels])
    assert same(np.where(RNG.random(300) < 0.8, -1, labels))
    assert not same(np.r_[(labels[0] + 1) % 3, labels[1:]])
    assert not same(labels * 2 + RNG.integers(0, 2, 300))
    assert not same(labels // 2)
    assert not same(np.where(np.arange(300) < 10, labels, -1))


def test_an_affine_map_is_found_up_to_rounding() -> None:
    y = RNG.normal(50_000, 9_000, 300)
    assert sanity.affine((y * -0.01 + 7).round(6), y, least_rows=20)
    assert sanity.affine(np.where(RNG.random(300) < 0.5, np.nan, y), y, least_rows=20)
    assert not sanity.affine(y + RNG.normal(0, 5, 300), y, least_rows=20)
    assert not sanity.affine(np.log(y), y, least_rows=20)
    assert not sanity.affine(np.ones(300), y, least_rows=20)


def test_twins_are_numpys_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = RNG.normal(size=(400, 12))
    matrix[:, 7] = -matrix[:, 2] + 0.01 * RNG.normal(size=400)
    matrix[:, 11] = matrix[:, 0] * 1e9 + 4e9
    matrix[:, 5] = 3.0
    monkeypatch.setattr(sanity, "_BLOCK", 5)
    found = sanity.twins(matrix, least=0.99)
    assert [(left, right) for left, right, _ in found] == [(0, 11), (2, 7)]
    assert found[1][2] == pytest.approx(np.corrcoef(matrix[:, 2], matrix[:, 7])[0, 1], abs=1e-5)


def test_divergence_is_scipys_in_bits() -> None:
    p, q = RNG.dirichlet(np.ones(9)), RNG.dirichlet(np.ones(9))
    assert sanity.divergence(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert sanity.divergence(p, p) == 0
    assert sanity.divergence(np.array([1.0, 0]), np.array([0, 1.0])) == 1


@pytest.mark.parametrize(("n_before", "n_after"), [(100, 40), (5000, 60), (20_000, 20_000)])
def test_equal_distributions_differ_by_their_noise(n_before: int, n_after: int) -> None:
    beyond = []
    for _ in range(20):
        before, after = pd.Series(RNG.normal(size=n_before)), pd.Series(RNG.normal(size=n_after))
        shift = sanity.shift(before, after, ColumnType.NUMERIC)
        beyond.append(shift.divergence - shift.noise)
    assert abs(np.mean(beyond)) < 0.02
    assert max(beyond) < 0.1


def test_shifts_of_numbers_levels_and_fill_rates() -> None:
    x = pd.Series(RNG.normal(size=1000))
    assert sanity.shift(x, x + 100, ColumnType.NUMERIC).divergence == 1
    assert 0.1 < sanity.shift(x, x + 1, ColumnType.NUMERIC).divergence < 0.25
    rare = pd.Series([f"r{i}" for i in range(1000)], dtype=object)
    assert sanity.shift(rare, rare + "!", ColumnType.CATEGORICAL).divergence == 0
    words = pd.Series(RNG.choice(["a", "b"], 1000), dtype=object)
    assert sanity.shift(words, words.str.upper(), ColumnType.CATEGORICAL).divergence == 1
    emptied = sanity.shift(x, x.where(np.arange(1000) < 10), ColumnType.NUMERIC)
    assert (emptied.fill_difference, emptied.fill_ratio) == (pytest.approx(0.99), pytest.approx(100))
    nothing = sanity.shift(x, x * np.nan, ColumnType.NUMERIC)
    assert (nothing.divergence, nothing.fill_ratio) == (0, np.inf)
    day = pd.Series(pd.date_range("2024-01-01", periods=100))
    assert sanity.shift(day, day + pd.Timedelta(days=900), ColumnType.DATETIME).divergence == 0
