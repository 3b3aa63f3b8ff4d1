"""Bootstrap intervals: right, repeatable and quick."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import from_frame
from factory.search.metric import Metric
from factory.spec import FileDataset, GroupSplit, Holdout, Task, TimeSplit
from factory.variants import counted, resampling
from factory.variants.resampling import MIN_RESAMPLES, Dependence, bootstrap, paired_bootstrap


def classes_sample(n_rows: int, n_classes: int, *, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(n_classes, size=n_rows)
    logits = 2 * np.eye(n_classes)[y] + generator.normal(0, noise, (n_rows, n_classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, np.round(p / p.sum(axis=1, keepdims=True), 6)


def numbers_sample(n_rows: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.normal(1e5, 100, n_rows)
    return y, y + generator.normal(0, 50, n_rows)


def in_time(moment: np.ndarray | None) -> Dependence | None:
    return None if moment is None else Dependence(moment, ordered=True)


COUNTED = [
    *((Task.BINARY, name) for name in counted._CLASSIFICATION),
    *((Task.MULTICLASS, name) for name in ("neg_log_loss", "accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr")),
    *((Task.REGRESSION, name) for name in counted._REGRESSION),
]


@pytest.mark.parametrize(("task", "name"), COUNTED, ids=str)
def test_counted_form_equals_the_metric_on_drawn_rows(task, name):
    y, prediction = numbers_sample(80) if task is Task.REGRESSION else classes_sample(80, 2 + (task is Task.MULTICLASS))
    metric = Metric.of(name, task)
    form = counted.counted_form(metric, y, prediction)
    assert form is not None
    generator = np.random.default_rng(1)
    drawn = [generator.integers(len(y), size=len(y)) for _ in range(5)]
    counts = np.stack([np.bincount(rows, minlength=len(y)) for rows in drawn]).astype(float)
    expected = [metric.score(y[rows], prediction[rows]) for rows in drawn]
    np.testing.assert_allclose(form(counts), expected, rtol=1e-9)


@pytest.mark.parametrize(("task", "name"), [*COUNTED, (Task.BINARY, "recall")], ids=str)
def test_heavy_rows_widen_an_interval_as_fewer_rows_do(task, name):
    y, prediction = (
        numbers_sample(400) if task is Task.REGRESSION else classes_sample(400, 2 + (task is Task.MULTICLASS))
    )
    metric = Metric.of(name, task)
    heavy = np.where(np.arange(400) < 100, 1.0, 1e-9)
    one, few, whole = (
        bootstrap(metric, y, prediction, seed=0, weight=heavy, n=200),
        bootstrap(metric, y[:100], prediction[:100], seed=0, n=200),
        bootstrap(metric, y, prediction, seed=0, weight=np.full(400, 0.25), n=200),
    )
    assert one.value == pytest.approx(few.value, rel=1e-4)
    assert one.high - one.low == pytest.approx(few.high - few.low, rel=0.35)
    equal = bootstrap(metric, y, prediction, seed=0, n=200)
    assert (whole.low, whole.high) == pytest.approx((equal.low, equal.high), rel=1e-6)
    same = paired_bootstrap(
        metric, y, prediction, np.where(heavy > 0.5, prediction.T, prediction.T[::-1]).T, seed=0, weight=heavy
    )
    assert same.difference == pytest.approx(0, abs=1e-4 * max(1, abs(one.value)))


def test_auc_counts_ties_half():
    y = np.array([0, 1, 0, 1, 1, 0])
    p = np.array([0.2, 0.2, 0.5, 0.5, 0.9, 0.9])
    prediction = np.column_stack([1 - p, p])
    form = counted.counted_form(Metric.of("roc_auc", Task.BINARY), y, prediction)
    assert form(np.ones((1, 6)))[0] == pytest.approx(0.5)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    metric = Metric.of("accuracy", Task.BINARY)
    truth = metric.score(*classes_sample(200_000, 2, seed=999))
    covered = [
        interval.low <= truth <= interval.high
        for seed in range(120)
        for interval in [bootstrap(metric, *classes_sample(200, 2, seed=seed), seed=seed, confidence=0.9)]
    ]
    assert 0.82 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("name", ["roc_auc", "matthews_corrcoef"])
def test_same_seed_same_interval(name):
    y, p = classes_sample(150, 2)
    metric = Metric.of(name, Task.BINARY)
    first, again, other = (bootstrap(metric, y, p, seed=seed, n=50) for seed in (1, 1, 2))
    assert first == again != other
    assert first.low < first.value < first.high


def test_pairing_sees_a_difference_that_two_intervals_hide():
    y, baseline = numbers_sample(300)
    candidate = y + (baseline - y) * 0.97
    metric = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)
    one, two = (bootstrap(metric, y, p, seed=0) for p in (candidate, baseline))
    assert one.low < two.value
    comparison = paired_bootstrap(metric, y, candidate, baseline, seed=0)
    assert comparison.low > 0
    assert comparison.probability == 1
    assert comparison.difference == pytest.approx(one.value - two.value)
    assert comparison.n_resamples == 1000


def test_no_difference_is_no_improvement():
    y, p = classes_sample(200, 2)
    comparison = paired_bootstrap(Metric.of("roc_auc", Task.BINARY), y, p, p, seed=0)
    assert (comparison.difference, comparison.low, comparison.high, comparison.probability) == (0, 0, 0, 0)


def test_margin_is_part_of_the_probability():
    y, baseline = numbers_sample(300)
    candidate = y + (baseline - y) * 0.9
    metric = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)
    assert paired_bootstrap(metric, y, candidate, baseline, seed=0, margin=4).probability > 0.9
    assert paired_bootstrap(metric, y, candidate, baseline, seed=0, margin=20).probability < 1e-9


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "matthews_corrcoef"])
def test_resamples_of_one_class_are_left_out(name):
    y = np.zeros(20, dtype=np.int64)
    y[0] = 1
    p = np.linspace(0.1, 0.9, 20)
    comparison = paired_bootstrap(
        Metric.of(name, Task.BINARY), y, np.column_stack([p, 1 - p]), np.full((20, 2), 0.5), seed=0, n=100
    )
    assert 0 < comparison.n_resamples < 100
    assert np.isfinite([comparison.low, comparison.high]).all()


@pytest.mark.parametrize(
    ("task", "name", "least"),
    [
        (Task.BINARY, "roc_auc", 1000),
        (Task.BINARY, "average_precision", 1000),
        (Task.BINARY, "matthews_corrcoef", MIN_RESAMPLES),
        (Task.MULTICLASS, "neg_log_loss", 1000),
        (Task.MULTICLASS, "roc_auc_ovr", 1000),
        (Task.MULTICLASS, "roc_auc_ovo", MIN_RESAMPLES),
        (Task.REGRESSION, "neg_root_mean_squared_error", 1000),
    ],
    ids=str,
)
def test_what_is_not_counted_gets_fewer_resamples_of_many_rows(task, name, least):
    y, p = numbers_sample(5000) if task is Task.REGRESSION else classes_sample(5000, 2 if task is Task.BINARY else 4)
    metric = Metric.of(name, task)
    other = p * 0.999 if task is Task.REGRESSION else 0.99 * p + 0.01 / p.shape[1]
    assert paired_bootstrap(metric, y, p, other, seed=0).n_resamples == least


def test_many_classes_get_fewer_resamples_of_a_score_for_each_class():
    y, p = classes_sample(2000, 100)
    judged = resampling._Judged(y, None)
    interval = resampling._resampled(Metric.of("roc_auc_ovr", Task.MULTICLASS), judged, [p], seed=0, n=1000)
    assert len(interval[0]) == MIN_RESAMPLES


@pytest.mark.parametrize("name", ["roc_auc", "matthews_corrcoef"])
def test_a_tail_that_few_resamples_reach_is_a_normal_one(name):
    y, p = classes_sample(150, 2, noise=2.0)
    metric = Metric.of(name, Task.BINARY)
    noise = np.random.default_rng(0).normal(0, 0.5, len(p))[:, None] * [1, -1]
    other = np.clip(p + noise, 0.001, 0.999)
    found = paired_bootstrap(metric, y, p, other, seed=0, n=100)
    assert found.tail == "normal"
    assert 0.85 < found.probability < 1
    turned = paired_bootstrap(metric, y, other, p, seed=0, n=100)
    assert turned.probability == pytest.approx(1 - found.probability, abs=0.011), "neither side is favoured"
    if name == "roc_auc":
        of_many = paired_bootstrap(metric, y, p, other, seed=1, n=4000)
        assert of_many.tail == "counted"
        assert found.probability == pytest.approx(of_many.probability, abs=0.05)


def test_a_stricter_gate_gets_resamples_that_can_be_counted():
    y, baseline = numbers_sample(200)
    candidate = y + (baseline - y) * 0.97
    metric, strict = Metric.of("neg_root_mean_squared_error", Task.REGRESSION), 1 - 0.05 / 54
    assert paired_bootstrap(metric, y, candidate, baseline, seed=0, asked=0.95).n_resamples == 1000
    assert paired_bootstrap(metric, y, candidate, baseline, seed=0, asked=strict).n_resamples == 10_800
    labels, p = classes_sample(40, 2)
    slow = paired_bootstrap(Metric.of("matthews_corrcoef", Task.BINARY), labels, p, 1 - p, seed=0, asked=strict)
    assert slow.n_resamples <= resampling.SLOW_RESAMPLES
    assert slow.probability > strict, "what is plain needs no ten thousand calls"


def test_luck_is_not_proof_at_the_level_of_many_segments():
    """Equal models and a hundred resamples: hardly one of 300 reaches what 54 segments ask for; counting lets some."""
    metric, asked = Metric.of("accuracy", Task.BINARY), 1 - 0.05 / 54
    proven = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        y = generator.integers(2, size=60)
        first, second = (np.column_stack([1 - p, p]) for p in generator.random((2, 60)))
        proven += paired_bootstrap(metric, y, first, second, seed=seed, n=100).probability >= asked
    assert proven <= 2


def test_neighbours_that_err_alike_widen_an_interval_only_where_they_are_drawn_in_blocks() -> None:
    generator = np.random.default_rng(0)
    metric = Metric.of("neg_mean_absolute_error", Task.REGRESSION)
    day = np.repeat(np.arange(40), 24)
    y = np.zeros(len(day))
    alike, apart = np.exp(generator.normal(size=40))[day], np.exp(generator.normal(size=len(day)))

    def width(prediction: np.ndarray, moment: np.ndarray | None) -> float:
        found = bootstrap(metric, y, prediction, seed=1, dependence=in_time(moment), n=400)
        return found.high - found.low

    hour = np.arange(len(day))
    assert width(alike, hour) > 2 * width(alike, None)
    assert width(alike, day) > 2 * width(alike, None)
    assert width(apart, hour) == pytest.approx(width(apart, None), rel=0.4)


@pytest.mark.parametrize("name", ["neg_root_mean_squared_error", "neg_max_error"])
def test_order_of_the_rows_does_not_matter_where_their_moments_are_known(name: str) -> None:
    metric = Metric.of(name, Task.REGRESSION)
    y, prediction = numbers_sample(120)
    moment = np.arange(120) // 4
    mixed = np.random.default_rng(3).permutation(120)
    one = bootstrap(metric, y, prediction, seed=0, dependence=in_time(moment), n=100)
    other = bootstrap(metric, y[mixed], prediction[mixed], seed=0, dependence=in_time(moment[mixed]), n=100)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    few = bootstrap(metric, y, prediction, seed=0, dependence=in_time(np.arange(120) // 30), n=100)
    assert few == bootstrap(metric, y, prediction, seed=0, n=100)


def test_comparison_of_rows_in_order_of_time_is_less_sure() -> None:
    generator = np.random.default_rng(2)
    metric = Metric.of("neg_mean_absolute_error", Task.REGRESSION)
    day = np.repeat(np.arange(30), 24)
    y, better = np.zeros(len(day)), generator.normal(0.1, 0.5, 30)[day]
    both = {"candidate": np.ones(len(day)), "baseline": 1 + better}
    plain = paired_bootstrap(metric, y, **both, seed=0)
    blocks = paired_bootstrap(metric, y, **both, seed=0, dependence=in_time(day))
    assert blocks.high - blocks.low > 2 * (plain.high - plain.low)
    assert blocks.difference == plain.difference


@pytest.mark.parametrize("name", ["neg_mean_absolute_error", "neg_max_error"])
@pytest.mark.parametrize("n_groups", [3, 40])
def test_rows_of_a_group_that_err_alike_widen_interval_and_comparison(n_groups: int, name: str) -> None:
    generator = np.random.default_rng(0)
    metric = Metric.of(name, Task.REGRESSION)
    group = np.repeat(np.arange(n_groups), 24)
    error = np.exp(generator.normal(size=n_groups))[group] + generator.uniform(0, 0.1, len(group))
    mixed = generator.permutation(len(group))
    y, error, group = np.zeros(len(group)), error[mixed], group[mixed]
    groups = Dependence(group, ordered=False)
    plain, whole = (bootstrap(metric, y, error, seed=1, dependence=d, n=200) for d in (None, groups))
    assert whole.value == plain.value
    if name != "neg_max_error":
        assert whole.high - whole.low > 1.5 * (plain.high - plain.low)
    both = {"candidate": error, "baseline": np.ones(len(group))}
    rows, drawn = (paired_bootstrap(metric, y, **both, seed=1, dependence=d) for d in (None, groups))
    assert drawn.difference == rows.difference
    if name != "neg_max_error":
        assert drawn.high - drawn.low > 1.5 * (rows.high - rows.low)
        assert abs(drawn.probability - 0.5) <= abs(rows.probability - 0.5)


@pytest.mark.parametrize("n_groups", [1, 2, 7, 8, 30])
def test_each_row_is_drawn_once_on_average_and_no_groups_are_too_few(n_groups: int) -> None:
    generator = np.random.default_rng(0)
    group = np.concatenate([np.arange(n_groups), generator.integers(n_groups, size=90)])
    drawn = Dependence(group, ordered=False)
    counts = np.array([np.bincount(drawn.drawn(generator), minlength=len(group)) for _ in range(3000)])
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.2)
    assert (counts.std(axis=0) > 0.5).all()
    alike = (counts[:, group == 0] == counts[:, [0]]).all()
    assert alike == (n_groups >= 8)


def test_dependence_is_that_of_the_validations_column() -> None:
    frame = pd.DataFrame({"x": np.arange(40.0), "y": np.arange(40.0) ** 2})
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(40)[::-1] // 4, unit="D")
    frame["shop"] = [f"shop {i % 5}" for i in range(40)]
    ref = FileDataset(path="made.parquet", target="y", task=Task.REGRESSION, drop=("shop",))
    rows = from_frame(frame, ref)
    days = Dependence.of(rows, TimeSplit(column="day"))
    assert (days.ordered, days.unit.tolist()) == (True, (np.arange(40)[::-1] // 4).tolist())
    shops = Dependence.of(rows, GroupSplit(column="shop"))
    assert (shops.ordered, shops.unit.tolist()) == (False, [i % 5 for i in range(40)])
    assert shops.take(np.array([4, 3, 9])).unit.tolist() == [1, 0, 1]
    assert Dependence.of(rows, Holdout()) is None
    assert Dependence.of(rows, GroupSplit(column="gone")) is None, "rows of a parent may lack it"
    assert Dependence.of(rows, TimeSplit(column="shop")) is None, "text has no order in time"
