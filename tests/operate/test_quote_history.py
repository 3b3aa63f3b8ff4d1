"""Quotes: what earlier requests teach them, of the score and of their own intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.ledger import Ledger
from factory.operate.quotes import usual
from factory.operate.quotes.estimate import START_S
from factory.operate.quotes.spread import Spread
from factory.search.plan import load_recipe
from factory.settings import Settings

from .quoted import RATES, document, frame, made, quoted

# --- the score to expect -------------------------------------------------------------


def test_nothing_is_known_of_the_first_of_its_kind(table: Path, ledger: Ledger, home: Settings) -> None:
    told = quoted(document(table), ledger, home)
    assert told.score is None
    assert told.score_basis == (
        "Nothing is known: of 0 earlier requests of the team for recipe 'tabular-auto', none had data like these."
    )
    other = pd.DataFrame({"x": np.arange(300.0), "y": np.arange(300.0) % 7, "z": ["a", "b"] * 150})
    made(ledger, document(table, dataset={"path": "x.csv", "target": "z"}), took_s=50, rows=other)
    assert quoted(document(table), ledger, home).score is None


def test_what_a_recipe_usually_takes_is_the_middle_of_what_the_teams_requests_took(
    table: Path, ledger: Ledger, home: Settings
) -> None:
    recipe = load_recipe("tabular-auto", settings=home)
    told = usual(recipe, "growth", ledger=ledger, settings=home, cpus=2, rates=RATES)
    assert (told.time_s, told.n_past, told.currency) == (recipe.budget.default.time_s, 0, "EUR")
    hourly = 2 * RATES.cpu_hour + recipe.budget.default.memory_gb * RATES.gb_hour
    assert told.money == pytest.approx(told.time_s * hourly / 3600, abs=1e-6)
    for version, took_s in enumerate([30, 50, 90], start=1):
        made(ledger, document(table), took_s=took_s, version=version)
    told = usual(recipe, "growth", ledger=ledger, settings=home, cpus=2, rates=RATES)
    assert told.n_past == 3
    assert told.time_s == pytest.approx(50 + START_S.mid, abs=2)
    for team in (None, "risk"):
        assert usual(recipe, team, ledger=ledger, settings=home, cpus=2, rates=RATES).n_past == 0


def test_the_score_is_that_of_variants_of_like_data(table: Path, ledger: Ledger, home: Settings) -> None:
    for version, score in enumerate([0.80, 0.82, 0.84], start=1):
        made(ledger, document(table), took_s=50, score=score, version=version)
    made(ledger, document(table, team="risk"), took_s=50, score=0.6)
    told = quoted(document(table), ledger, home)
    assert told.score is not None
    assert (told.score.metric, told.score.n_requests, told.score.nearest) == ("roc_auc", 3, "growth.churn")
    assert told.score.distance < 0.01
    assert told.score.score.expected == pytest.approx(0.82, abs=0.005)
    assert told.score.score.low < 0.80
    assert 0.84 < told.score.score.high < 1
    assert told.score_basis.startswith("By 3 of 3 earlier requests")
    assert quoted(document(table, metric="neg_log_loss"), ledger, home).score is None


def test_the_more_is_known_the_narrower_is_the_score(table: Path, ledger: Ledger, home: Settings) -> None:
    widths = []
    for version in range(1, 9):
        made(ledger, document(table), took_s=50, score=0.82, version=version)
        told = quoted(document(table), ledger, home).score
        assert told is not None
        widths.append(told.score.high - told.score.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 1.5


def test_losses_of_a_regression_are_compared_as_ratios(tmp_path: Path, ledger: Ledger, home: Settings) -> None:
    rows = frame().assign(spend=np.random.default_rng(1).normal(100, 20, 400)).drop(columns="churned")
    rows.to_parquet(tmp_path / "spend.parquet", index=False)
    request = document("", dataset={"path": str(tmp_path / "spend.parquet"), "target": "spend"})
    for version, score in enumerate([-10.0, -14.4], start=1):
        made(ledger, request, took_s=50, rows=rows, score=score, version=version)
    told = quoted(request, ledger, home).score
    assert told is not None
    assert told.metric == "neg_root_mean_squared_error"
    assert told.score.expected == pytest.approx(-12.0, rel=0.01)
    assert told.score.low < -14.4 < -10.0 < told.score.high < 0


def test_of_data_that_are_far_away_the_same_variants_history_is_taken(ledger: Ledger, home: Settings) -> None:
    request = document("s3://bucket/t.parquet")
    made(ledger, request, took_s=50, score=0.8)
    told = quoted(request, ledger, home)
    assert told.score is not None
    assert told.score.score.expected == pytest.approx(0.8)
    assert quoted(request | {"name": "other"}, ledger, home).score is None


# --- how history corrects ------------------------------------------------------------

residuals = st.lists(st.floats(-20, 20), max_size=40)


@given(seen=residuals)
@settings(deadline=None, derandomize=True)
def test_a_corrected_spread_stays_in_order(seen: list[float]) -> None:
    told = Spread(8, 10, 14).corrected(seen)
    assert told.low <= told.mid <= told.high


@given(seen=residuals, more=st.floats(1, 7))
@settings(deadline=None, derandomize=True)
def test_a_case_above_what_is_expected_never_lowers_it(seen: list[float], more: float) -> None:
    prior = Spread(8, 10, 14)
    before, after = prior.corrected(seen), prior.corrected([*seen, more])
    assert after.mid >= before.mid - 1e-9 or prior.residual(before.mid) > more


@pytest.mark.parametrize(("n_past", "least"), [(0, 0.75), (5, 0.7), (40, 0.72)])
@pytest.mark.parametrize("off", [0.0, 0.5, -0.4])
def test_four_in_five_lie_within_the_interval_once_there_is_history(n_past: int, least: float, off: float) -> None:
    """Cases that are as spread as the prior says, but for a shift that only history can tell."""
    rng = np.random.default_rng(0)
    within = []
    for _ in range(400):
        cases = rng.normal(off, 1 / 1.2816, n_past + 1)
        told = Spread(8, 10, 12).corrected(cases[:-1].tolist())
        within.append(told.low <= 10 + 2 * cases[-1] <= told.high)
    shifted_without_history = off and not n_past
    assert np.mean(within) >= (0.6 if shifted_without_history else least)
    assert np.mean(within) <= 0.9
