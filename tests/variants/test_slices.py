"""Parts of the held-out rows: cut by a column, scored, and blamed only when it is sure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from factory.errors import NotFound
from factory.search.metric import Metric
from factory.spec import Ceilings, Gates, Task
from factory.variants.gates import Evidence, judge
from factory.variants.resampling import Dependence, paired_bootstrap
from factory.variants.slices import LEAST_ROWS, MOST_VALUES, blamed, slice_columns, slices

RMSE = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)


def predictions(n: int = 2000, *, spoiled: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.Series]:
    """Targets, a good candidate, a worse baseline, and regions of which the candidate may be bad in one."""
    generator = np.random.default_rng(0)
    region = generator.choice(["north", "south", "east", "west"], n, p=[0.1, 0.2, 0.3, 0.4])
    y = generator.normal(size=n)
    candidate = y + generator.normal(0, np.where(region == spoiled, 1.5, 0.5), n)
    return y, candidate, y + generator.normal(0, 0.8, n), pd.Series(region, dtype=object)


def cut(spoiled: str = "", *, max_loss: float | None = None, n: int = 2000):
    y, candidate, baseline, region = predictions(n, spoiled=spoiled)
    return slices(RMSE, y, candidate, baseline=baseline, columns={"region": region}, seed=0, max_loss=max_loss)


def test_slices_are_scored_as_their_rows_are():
    y, candidate, baseline, region = predictions()
    found = {one.value: one for one in cut()}
    assert list(found) == ["west", "east", "south", "north"]
    for value, one in found.items():
        rows = (region == value).to_numpy()
        assert one.n_rows == rows.sum()
        assert one.score.value == pytest.approx(RMSE.score(y[rows], candidate[rows]))
        assert one.score.low < one.score.value < one.score.high
        assert one.comparison.baseline == pytest.approx(RMSE.score(y[rows], baseline[rows]))
    assert cut() == cut()


def test_a_bad_slice_is_blamed_and_no_other():
    assert blamed(cut(), confidence=0.95) == ()
    assert [one.value for one in blamed(cut("north", max_loss=0.1), confidence=0.95)] == ["north"]
    assert blamed(cut("north", max_loss=2.0), confidence=0.95) == ()


def test_equal_slices_are_rarely_blamed():
    generator = np.random.default_rng(1)
    unfair = 0
    for seed in range(40):
        y = generator.normal(size=1500)
        part = pd.Series(generator.integers(0, 12, 1500).astype(str), dtype=object)
        both = [y + generator.normal(0, 1, 1500) for _ in range(2)]
        found = slices(RMSE, y, both[0], baseline=both[1], columns={"part": part}, seed=seed, max_loss=0.0)
        unfair += bool(blamed(found, confidence=0.95))
    assert unfair <= 6


def test_columns_are_cut_by_levels_or_quarters():
    n = 4000
    generator = np.random.default_rng(0)
    y = generator.normal(size=n)
    columns = {
        "many": pd.Series(generator.integers(0, 30, n).astype(str), dtype=object),
        "amount": pd.Series(np.where(generator.random(n) < 0.1, np.nan, generator.lognormal(9, 1, n))),
        "day": pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 400, n), unit="D")),
        "flag": pd.Series(generator.random(n) < 0.5),
        "few": pd.Series(np.where(np.arange(n) < LEAST_ROWS - 1, "rare", "usual"), dtype=object),
    }
    found = slices(RMSE, y, y + 1, baseline=y + 2, columns=columns, seed=0)
    values = {name: [one.value for one in found if one.column == name] for name in columns}
    assert len(values["many"]) == MOST_VALUES + 1
    assert values["many"][-1] == "all others"
    assert len(values["amount"]) == 5
    assert values["amount"][0].startswith("below ")
    assert values["amount"][-1] == "missing"
    assert values["day"][0].startswith("below 2024-")
    assert values["flag"] == ["True", "False"] or values["flag"] == ["False", "True"]
    assert values["few"] == ["usual"]
    for name in ("many", "amount", "day", "flag"):
        assert sum(one.n_rows for one in found if one.column == name) == n


@pytest.mark.parametrize("ordered", [True, False], ids=["moments", "groups"])
def test_slices_draw_what_errs_alike_together(ordered: bool):
    generator = np.random.default_rng(0)
    unit = np.repeat(np.arange(60), 20)
    y, part = np.zeros(1200), pd.Series(np.resize(["one", "other"], 1200), dtype=object)
    candidate = np.exp(generator.normal(size=60))[unit]
    kinds = (None, Dependence(unit, ordered=ordered))
    plain, whole = (
        slices(RMSE, y, candidate, baseline=y + 1, columns={"part": part}, seed=0, dependence=one) for one in kinds
    )
    for a, b in zip(plain, whole, strict=True):
        assert (a.value, a.n_rows, a.score.value) == (b.value, b.n_rows, b.score.value)
        assert b.score.high - b.score.low > 1.5 * (a.score.high - a.score.low)
        assert b.comparison.high - b.comparison.low > 1.5 * (a.comparison.high - a.comparison.low)


def test_a_slice_of_one_class_has_no_auc():
    y = np.r_[np.zeros(100, dtype=np.int64), np.tile([0, 1], 50)]
    p = np.column_stack([1 - y, y]) * 0.5 + 0.25
    side = pd.Series(["one"] * 100 + ["both"] * 100, dtype=object)
    for name, defined in (("roc_auc", [True, False]), ("neg_log_loss", [True, True])):
        metric = Metric.of(name, Task.BINARY)
        found = slices(metric, y, p, baseline=np.full_like(p, 0.5), columns={"side": side}, seed=0)
        assert {one.value: one.score is not None for one in found} == dict(zip(("both", "one"), defined, strict=True))


def test_default_columns_are_the_important_categorical_ones(binary):
    assert list(slice_columns(binary.test, ())) == ["city", "member"]
    assert list(slice_columns(binary.test, (), ranked=("age", "member", "city"))) == ["member", "city"]
    assert list(slice_columns(binary.test, ("since", "age"))) == ["since", "age"]
    with pytest.raises(NotFound, match="citty"):
        slice_columns(binary.test, ("citty",))


def verdict(found, gates: Gates):
    y, candidate, baseline, _ = predictions()
    comparison = paired_bootstrap(RMSE, y, candidate, baseline, seed=0)
    evidence = Evidence(
        metric=RMSE, comparison=comparison, baseline="growth.x/1", latency_ms=1, size_mb=1, slices=found
    )
    return judge(gates, Ceilings(), evidence)


def test_slices_are_a_gate_where_the_request_says_so():
    bad, gates = cut("north", max_loss=0.1), Gates(slices=("region",), slice_max_loss=0.1)
    assert verdict(bad, Gates()).passed
    failing = verdict(bad, gates)
    assert [check.name for check in failing.checks if not check.passed] == ["slices"]
    assert "region = north" in failing.sentence
    assert "1 of 4 slices" in failing.sentence
    passing = verdict(cut(max_loss=0.1), gates)
    assert passing.passed
    assert "None of 4 slices (region)" in passing.sentence
    assert "No slice has" in verdict((), gates).sentence
