"""What the latest rows' score promises for the rows that come next."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from factory.data.dataset import from_frame
from factory.search.metric import Metric
from factory.search.splits import set_aside
from factory.spec import FileDataset, Task, TimeSplit
from factory.variants.evaluation import evaluate
from factory.variants.resampling import Dependence, Interval, bootstrap, ranks
from factory.variants.windows import NextWindow, Stretch, TimeOrder, foreseen, window_scores

RMSE = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)
AUC = Metric.of("roc_auc", Task.BINARY)


def numbers(errors: np.ndarray, *, rows: int = 50) -> Stretch:
    """A stretch whose windows of so many rows have these RMSEs, two rows a moment."""
    size = np.repeat(errors, rows)
    sign = np.where(np.arange(len(size)) % 2, 1.0, -1.0)
    return Stretch(np.arange(len(size)) // 2, np.zeros(len(size)), size * sign)


def test_interval_is_the_naive_forecasts() -> None:
    resampled = Interval(value=-4.0, low=-4.2, high=-3.8)
    scores = (-3.0, -5.0, -4.0, -4.0)
    reach = stats.t.ppf(0.975, 3) * np.sqrt((4 + 1 + 0) / 3)
    found = foreseen(RMSE, resampled, scores)
    assert (found.value, found.low) == pytest.approx((-4.0, -4.0 - reach))
    assert found.high == pytest.approx(min(-4.0 + reach, 0.0))
    assert foreseen(RMSE, resampled, scores, pieces=2).low == pytest.approx(-4.0 - reach * np.sqrt(1.5))


@pytest.mark.parametrize("pieces", [1, 2, 6])
def test_stretches_of_a_walk_differ_as_much_as_their_pieces_say(pieces: int) -> None:
    steps = np.cumsum(np.random.default_rng(0).normal(size=(20_000, 2 * pieces)), axis=1)
    differences = steps[:, pieces:].mean(axis=1) - steps[:, :pieces].mean(axis=1)
    resampled = Interval(value=-9.0, low=-9.0, high=-9.0)
    one = foreseen(RMSE, resampled, (-9.0, -8.0), pieces=1).low + 9
    wide = foreseen(RMSE, resampled, (-9.0, -8.0), pieces=pieces).low + 9
    assert wide / one == pytest.approx(differences.std(), rel=0.02)


def test_interval_is_never_narrower_than_resampling_says_nor_beyond_the_best_score() -> None:
    resampled = Interval(value=0.9, low=0.85, high=0.94)
    assert foreseen(AUC, resampled, (0.9, 0.9, 0.9)) == resampled
    assert foreseen(AUC, resampled, (0.9,)) == foreseen(AUC, resampled, ()) == resampled
    assert foreseen(AUC, resampled, (0.7, 0.9, 0.6)).high == 1.0


def test_windows_are_cut_between_moments_and_as_long_as_the_judged_ones() -> None:
    before = numbers(np.array([1.0, 2.0, 3.0, 4.0]))
    latest = numbers(np.array([5.0, 6.0]))
    mixed = np.random.default_rng(0).permutation(len(latest.y))
    order = TimeOrder(latest.moment[mixed], before=before)
    windows = order.windows(latest.y[mixed], latest.prediction[mixed], None)
    assert window_scores(RMSE, windows, lambda raw: raw) == pytest.approx([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    alone = TimeOrder(latest.moment).windows(latest.y, latest.prediction, np.ones(len(latest.y)))
    assert [len(one.y) for one in alone] == [20, 20, 20, 20, 20]
    for one, other in pairwise(alone):
        assert one.moment.max() < other.moment.min()


def test_rows_of_one_moment_and_few_rows_are_one_window() -> None:
    one = Stretch(np.zeros(90, dtype=np.int64), np.zeros(90), np.ones(90))
    assert [len(piece.y) for piece in one.cut(3)] == [90]
    assert len(numbers(np.ones(1), rows=30).cut(6)) == 1
    assert numbers(np.ones(1), rows=10).cut(2) == ()


def test_window_without_all_classes_has_no_score() -> None:
    y = np.repeat([0, 1, 0], 20) * (np.arange(60) % 2)
    p = np.column_stack([1 - 0.2 - 0.5 * y, 0.2 + 0.5 * y])
    windows = Stretch(np.arange(60), y, p).cut(3)
    assert len(windows) == 3
    assert window_scores(AUC, windows, lambda raw: raw) == (1.0,)


@pytest.mark.parametrize(
    ("days", "scores", "told"),
    [
        (41.0, (0.8, 0.7), ("1,303 rows (41 days)", "differed")),
        (0.5, (0.8, 0.7), ("1,303 rows (12 hours)", "differed")),
        (None, (0.8,), ("about 1,303 rows; further ahead is not promised", "cannot be told")),
    ],
)
def test_sentence_says_how_far_the_promise_reaches(days: float | None, scores: tuple[float, ...], told) -> None:
    resampled = Interval(value=0.8, low=0.7, high=0.9)
    sentence = NextWindow(n_rows=1303, days=days, scores=scores, resampled=resampled).sentence
    assert all(words in sentence for words in told)


def test_random_rows_keep_their_interval_and_rows_in_order_of_time_tell_the_next_window() -> None:
    latest, before = numbers(np.array([5.0, 6.0])), numbers(np.array([1.0, 3.0, 2.0, 4.0]))
    times = pd.Series(pd.date_range("2026-01-01", periods=50, freq="D").repeat(2))
    order = TimeOrder.of(times, before=before)
    assert (order.days, order.moment.tolist()) == (49.0, ranks(times).tolist())
    plain = evaluate(RMSE, latest.y, latest.prediction, classes=(), seed=0)
    ordered = evaluate(RMSE, latest.y, latest.prediction, classes=(), seed=0, order=order)
    assert plain.next_window is None
    assert ordered.next_window is not None
    assert ordered.next_window.scores == pytest.approx([-1, -3, -2, -4, -5, -6])
    assert ordered.score.value == plain.score.value
    assert ordered.score.low < ordered.next_window.resampled.low < plain.score.low
    assert ordered.intervals["r2"].high <= 1.0
    assert type(ordered).model_validate_json(ordered.model_dump_json()) == ordered


def test_next_window_is_within_the_interval_although_the_level_wanders() -> None:
    """Of a hundred walks, about 95 of the next windows: resampling alone reaches about a quarter of them."""
    hits, alone = 0, 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        whole = numbers(np.exp(0.15 * np.cumsum(generator.normal(size=8))), rows=60)
        error = whole.prediction * np.exp(generator.normal(0, 0.3, len(whole.y)))
        before = Stretch(whole.moment[:240], whole.y[:240], error[:240])
        latest, zeros = error[240:360], np.zeros(120)
        order = TimeOrder.of(pd.Series(whole.moment[240:360]), before=before)
        resampled = bootstrap(RMSE, zeros, latest, seed=seed, dependence=Dependence(order.moment, ordered=True), n=100)
        promised = foreseen(
            RMSE, resampled, window_scores(RMSE, order.windows(zeros, latest, None), np.asarray), pieces=2
        )
        coming = RMSE.score(zeros, error[360:])
        hits += promised.low <= coming <= promised.high
        alone += resampled.low <= coming <= resampled.high
    assert hits >= 91
    assert alone <= 60


def test_gate_of_a_time_column_is_the_latest_window() -> None:
    frame = pd.DataFrame({"day": pd.date_range("2026-01-01", periods=400, freq="D"), "y": np.arange(400.0)})
    ref = FileDataset(path="made.parquet", target="y", task=Task.REGRESSION)
    dataset = from_frame(frame.sample(frac=1, random_state=0).assign(x=1.5 * frame["y"]), ref)
    rows = set_aside(dataset, TimeSplit(column="day"))
    order = TimeOrder.of(dataset.column("day").iloc[rows.validation])
    assert order.days == len(rows.validation) - 1
    assert sorted(order.moment) == list(range(len(rows.validation)))
