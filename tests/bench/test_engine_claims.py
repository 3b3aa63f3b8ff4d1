"""What the engine's measurements plant, split and compare is what they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.odd_tables import TABLES, TARGET, constant
from bench.one_latency import lost
from bench.planted import PLANTED, line, plant
from bench.refit_cost import shares
from bench.segments import by_segment, labels, rate
from bench.sets import SETS, BenchSet, score
from bench.time_order import blocks, by_time
from factory.ledger.records import Event
from factory.spec import RequestState


@pytest.mark.parametrize("data", ["telco_churn", "california_housing"])
def test_planted_columns_tell_the_target_to_those_who_learn_only(data: str) -> None:
    rng = np.random.default_rng(0)
    bench_set = SETS[data]
    y = rng.normal(100, 20, 400) if bench_set.task == "regression" else rng.choice(["No", "Yes"], 400)
    frame = pd.DataFrame({"x": rng.normal(size=400), bench_set.target: y})
    train, later = plant(bench_set, frame.iloc[:300], frame.iloc[300:], seed=0)
    assert set(train.columns) == set(later.columns) == {"x", bench_set.target, *PLANTED}
    for rows, told in ((train, True), (later, False)):
        number = rows[bench_set.target].rank(method="dense")
        assert bool(abs(np.corrcoef(number, rows["leak"])[0, 1]) > 0.95) is told
    assert train["ticket"].is_unique
    assert later["drifted"].mean() > train["drifted"].max()


def test_a_planted_column_has_to_be_found_and_treated_as_asked() -> None:
    free = {"data": "adult", "metric": "AUC", "said": {"leak": ["'leak' alone tells; it is left out."]}, "used": []}
    made: dict[str, dict[str, Any]] = {"as it comes": free, "drop": {"used": []}, "keep leak": {"used": ["leak"]}}
    assert line("leak", made)["met"]
    assert line("leak", made)["found"] == "alone tells"
    assert not line("leak", {**made, "keep leak": {"used": []}})["met"]
    assert not line("leak", {**made, "as it comes": {**free, "used": ["leak"]}})["met"]
    assert not line("leak", {**made, "as it comes": {**free, "said": {}}})["met"]


def test_a_refit_is_judged_by_its_whole_making() -> None:
    row = {"parent_cost_s": 90.0, "parent_made_s": 60.0, "parent_wall_s": 64.0}
    dear = shares(row | {"refit_cost_s": 0.9, "refit_made_s": 7.5, "refit_wall_s": 12.8})
    assert dear == {"cost_share": 0.01, "made_share": 0.125, "wall_share": 0.2, "met": False}
    assert shares(row | {"refit_cost_s": 0.9, "refit_made_s": 6.0, "refit_wall_s": 12.8})["met"]


def test_rows_of_one_moment_are_never_parted() -> None:
    frame = pd.DataFrame({"at": pd.to_datetime(["2026-01-01", "2026-01-03", "2026-01-02", "2026-01-03"])})
    earlier, later = by_time(frame, "at")
    assert earlier.index.tolist() == [0, 2]
    assert later.index.tolist() == [1, 3]


def test_later_rows_are_scored_window_by_window_in_the_order_of_time() -> None:
    later = pd.DataFrame({SETS["avocado"].target: [1.0, 1.0, 2.0, 2.0, 3.0]})
    answer = pd.DataFrame({"prediction": [1.0, 1.0, 1.0, 1.0, 1.0]})
    assert blocks(SETS["avocado"], later, answer, n_rows=2) == [0.0, 1.0]
    assert blocks(SETS["avocado"], later, answer, n_rows=9) == []


def test_segments_are_named_alike_however_a_missing_one_is_written() -> None:
    assert labels(pd.Series(["a", None, np.nan, "None"], dtype=object)).tolist() == ["a", *["(missing)"] * 3]


def test_a_segment_of_one_class_has_no_score() -> None:
    table = BenchSet("table", "y", "AUC")
    test = pd.DataFrame({"y": ["n", "p", "n", "n"]})
    answer = pd.DataFrame({"n": [0.9, 0.2, 0.5, 0.5], "p": [0.1, 0.8, 0.5, 0.5]})
    assert by_segment(table, test, np.array(["a", "a", "b", "b"]), answer) == {"a": 1.0}


def test_a_rate_needs_three_events() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    events = [
        Event(
            request_id="r",
            sequence=n,
            time=began + timedelta(seconds=2 * n),
            state=RequestState.SEARCHING,
            kind="gate",
            message="",
        )
        for n in range(4)
    ]
    assert rate(events) == 30
    assert rate(events[:2]) is None


def test_the_ceiling_costs_what_it_adds_to_the_loss() -> None:
    free = {"data": "adult", "arm": "tabular-fast", "score": 0.90}
    assert lost(free, free) is None
    assert lost({"data": "adult", "arm": "tabular-fast, 1 ms", "score": 0.89}, free) == 10
    assert lost({"data": "adult", "arm": "tabular-fast, 1 ms", "score": None}, free) is None


@pytest.mark.parametrize("name", TABLES)
def test_odd_tables_are_as_odd_as_they_say(name: str) -> None:
    odd = TABLES[name]
    frame = odd.make(odd.rows + 50, np.random.default_rng(0))
    assert len(frame) == odd.rows + 50
    bench_set = BenchSet(name, TARGET, odd.metric)
    base = score(bench_set, frame[TARGET], constant(bench_set, frame[TARGET], n_rows=len(frame)))
    assert base > 0
    if name == "2 columns":
        assert frame.shape[1] == 2
    if name == "2,000 columns":
        assert frame.shape[1] == 2_000
    if name == "200 classes":
        assert frame[TARGET].nunique() == 200
    if name == "all columns missing but one":
        assert (frame.drop(columns=TARGET).notna().sum() > 0).sum() == 1
    if name == "all values missing but one":
        assert int(frame.drop(columns=TARGET).notna().sum().sum()) == 1
