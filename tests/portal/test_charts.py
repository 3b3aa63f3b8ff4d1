"""Figures of the pages: which marks trials become, how many are drawn, and in which range."""

from __future__ import annotations

from typing import Any

import pytest

from factory.ledger import TrialMark
from factory.search.plan import load_recipe
from factory.settings import Settings
from factory.spec import CurvePoint, Trial, TrialState
from serve.portal.pages.charts import FAMILIES, learning_curves, look_of, looks, score_over_trials, worth_seeing
from serve.portal.pages.words import Words
from serve.portal.progress import MOST_SCORED, MOST_UNSCORED, Mark, Progress, Spent, leading, thinned

WORDS = Words.of("en")
SPENT = Spent(held_s=0, money=0, money_an_hour=0, currency="USD", fits_s=0)


def mark(number: int, score: float | None, state: str = "succeeded", family: str = "linear") -> Mark:
    return Mark(number=number, family=family, state=state, score=score)


def figure(*marks: Mark, **more: Any) -> dict[str, Any]:
    told = {"n_trials": len(marks), "states": {}, "leading": (), "best": (), "curved": (), "n_segments": 0} | more
    return score_over_trials(Progress(marks=marks, spent=SPENT, **told), metric="ROC AUC", words=WORDS)


def trace(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = [one for one in found["data"] if one["name"] == name]
    return dict(one)


def test_every_family_has_a_look_of_its_own() -> None:
    recipe = load_recipe("tabular-auto", settings=Settings(_env_file=None))
    families = {*recipe.families, *FAMILIES}
    assert len({look_of(family).colour for family in families}) == len(families)
    assert look_of("of a plug-in") == look_of("of a plug-in")
    found = looks(["of a plug-in"], WORDS)
    assert found["kernel"]["name"] == "Kernel machine"
    assert set(found) == {*FAMILIES, "of a plug-in"}
    assert all(one["path"].startswith("M") for one in found.values())


def test_pruned_and_failed_trials_have_marks_that_say_so() -> None:
    found = figure(mark(1, 0.7, "pruned"), mark(0, 0.8), mark(2, 0.6, "killed"), mark(3, 0.9, family="xgboost"))
    linear, boosted = trace(found, "Linear"), trace(found, "XGBoost")
    symbol = look_of("linear").symbol
    assert linear["marker"]["symbol"] == [symbol, f"{symbol}-open", "x-thin-open"]
    assert linear["text"] == ["Succeeded", "Pruned", "Killed"]
    assert (boosted["x"], boosted["y"]) == ([3], [0.9])


def test_trials_without_a_score_stand_at_the_lower_edge() -> None:
    lost = [mark(1, None, "failed"), mark(2, None, "out_of_memory"), mark(3, None, "pruned"), mark(4, None, "running")]
    found = figure(mark(0, 0.8), *lost)
    failed, pruned = trace(found, "Failed"), trace(found, "Pruned")
    assert (failed["x"], failed["yaxis"], failed["text"][1]) == ([1, 2], "y2", "Linear: Out of memory")
    assert (pruned["x"], pruned["showlegend"]) == ([3], True)
    assert found["layout"]["yaxis2"]["range"] == [0, 1]
    assert not trace(figure(mark(0, 0.8)), "Failed")["showlegend"]


def test_the_best_so_far_is_a_line_to_the_last_trial() -> None:
    found = figure(mark(0, 0.5), mark(1, 0.8), mark(2, 0.7), leading=(mark(0, 0.5), mark(1, 0.8)))
    line = trace(found, "Best so far")
    assert (line["x"], line["y"]) == ([0, 1, 2], [0.5, 0.8, 0.8])
    assert trace(figure(mark(0, None, "failed")), "Best so far")["x"] == []


def marks(n: int, **more: Any) -> list[TrialMark]:
    return [TrialMark(k, "linear", more.get("state", TrialState.SUCCEEDED), more.get("score", k / n)) for k in range(n)]


def test_of_very_many_trials_a_bounded_part_is_drawn() -> None:
    some = marks(50)
    assert thinned(some) == some
    many = [*marks(10_000), *[TrialMark(10_000 + k, "linear", TrialState.FAILED, None) for k in range(10_000)]]
    drawn = thinned(many)
    scored = [one.number for one in drawn if one.score is not None]
    assert len(scored) <= MOST_SCORED
    assert len(drawn) - len(scored) <= MOST_UNSCORED
    assert {0, *range(9_500, 10_000)} <= set(scored), "the first, and the latest"
    assert drawn[-1].number == 19_999


def test_trials_lead_that_succeeded_with_more_than_all_before() -> None:
    scores = [(0.5, "succeeded"), (0.9, "pruned"), (None, "failed"), (0.4, "succeeded"), (0.6, "succeeded")]
    found = leading([TrialMark(k, "linear", TrialState(state), score) for k, (score, state) in enumerate(scores)])
    assert [one.number for one in found] == [0, 4]


@pytest.mark.parametrize(
    ("scores", "low"),
    [([0.8, 0.5], None), ([0.8, 0.81, 0.82, 0.83, 0.84], None), ([0.5, 0.8, 0.81, 0.82, 0.83, 0.84], 0.796)],
)
def test_a_constant_far_below_does_not_flatten_the_rest(scores: list[float], low: float | None) -> None:
    found = worth_seeing(scores)
    assert (found is None) == (low is None)
    if found is not None:
        assert found == pytest.approx([low, 0.844])


def test_learning_curves_have_a_line_for_each_part() -> None:
    curve = (CurvePoint(step=1, train=0.9, validation=0.95), CurvePoint(step=2, validation=0.8))
    trial = Trial(number=4, family="tabm", parameters={}, state="succeeded", score=0.8, curve=curve)
    found = learning_curves([trial], words=WORDS)
    assert found is not None
    assert [(one["name"], one["x"]) for one in found["data"]] == [
        ("TabM 4, validation", [1, 2]),
        ("TabM 4, training", [1]),
    ]
    assert learning_curves([], words=WORDS) is None
