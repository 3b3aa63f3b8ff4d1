"""The model card: complete, offline, and safe with strangers' names."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from factory.data.findings import Finding
from factory.data.profile import profile
from factory.search.calibration import Calibration
from factory.search.metric import Metric
from factory.spec import Ceilings, CurvePoint, Gates, Task, Trial, TrialState, Variant
from factory.variants import charts
from factory.variants.evaluation import Confusion, evaluate, permutation_importance
from factory.variants.frontier import Frontier, FrontierPoint
from factory.variants.gates import Evidence, judge
from factory.variants.report import Card, example_row, leaderboard, learning_curves, overfits, render
from factory.variants.resampling import paired_bootstrap
from factory.variants.slices import slice_columns, slices
from factory.variants.watch import Watch
from factory.variants.windows import NextWindow

EVIL = '<script>alert("x")</script>\'"&'
VOID = {"meta", "br"}


def trials() -> list[Trial]:
    curve = tuple(CurvePoint(step=i, train=0.6 / i, validation=0.3 + 0.3 / i) for i in range(1, 60))
    return [
        Trial(number=0, family="linear", parameters={}, state=TrialState.SUCCEEDED, score=0.80, train_score=0.81),
        Trial(
            number=1,
            family="lightgbm",
            parameters={},
            state=TrialState.SUCCEEDED,
            score=0.83,
            train_score=1.0,
            curve=curve,
        ),
        Trial(number=2, family="xgboost", parameters={}, state=TrialState.FAILED, reason=EVIL),
        Trial(number=3, family="constant", parameters={}, state=TrialState.SUCCEEDED, score=0.5, train_score=0.5),
    ]


def card_of(made, **changes: object) -> Card:
    task, y = made.bundle.task, made.test.y
    names = {Task.BINARY: "roc_auc", Task.MULTICLASS: "neg_log_loss", Task.REGRESSION: "neg_root_mean_squared_error"}
    metric = Metric.of(names[task], task)
    prediction = made.bundle.predict_raw(made.test.frame)
    constant = (
        np.full(len(y), y.mean()) if task is Task.REGRESSION else np.full_like(prediction, 1 / prediction.shape[1])
    )
    comparison = paired_bootstrap(metric, y, prediction, constant, seed=0)
    evidence = Evidence(metric=metric, comparison=comparison, baseline="a constant", latency_ms=0.4, size_mb=1.2)
    evaluation = evaluate(metric, y, prediction, classes=made.bundle.classes, seed=0)
    variant = Variant(
        name="growth.churn", version=3, request_id="r-1", task=task, metric=metric.name, score=evaluation.score.value,
        score_low=evaluation.score.low, score_high=evaluation.score.high, recipe="tabular-auto", recipe_digest="a" * 64,
        dataset_digest="b" * 64, bundle_digest="c" * 64, cost_s=83, size_mb=1.2, latency_ms=0.4,
    )  # fmt: skip
    weights = {0: 0.25, 1: 0.75}
    parts = slices(metric, y, prediction, baseline=constant, columns=slice_columns(made.test, ()), seed=0)
    fields = {
        "variant": variant,
        "baseline": "a constant",
        "verdict": judge(Gates(), Ceilings(latency_ms=5), evidence),
        "comparison": comparison,
        "evaluation": evaluation,
        "importance": permutation_importance(made.bundle, made.test.frame, y, metric=metric, seed=0),
        "leaderboard": leaderboard(trials(), weights=weights),
        "curves": learning_curves(trials(), weights=weights),
        "findings": (
            Finding(kind="leakage", column="gone", action="drop", value=1.0, message="'gone' gives it away."),
        ),
        "slices": parts,
        "watch": (Watch(kind="selection", flagged=True, sentence="The search was too good."),),
        "profile": profile(made.dataset),
        "example": example_row(made.test.frame),
        "budget_s": 60,
    }
    return Card(**{**fields, **changes})


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_card_has_all_that_a_reader_needs(made):
    card = card_of(made)
    page = Balanced(render(card))
    text = re.sub(r"\s+", " ", page.text)
    metric = Metric(card.variant.metric, card.variant.task)
    assert f"{metric.label}, " in text
    assert metric.display(card.evaluation.score.value) in text
    for expected in (
        "growth.churn version 3", "Gate", "Leaderboard", "lightgbm", "scikit-learn", "75 %", "⚠", "Learning curves",
        "permutation importance", "'gone' gives it away.", "a" * 64, "models:/growth.churn@champion", "/invocations",
        "Slices", "city", "Bern", "Overfit watch", "The search was too good.", "without the columns that were left out",
        "factory predict growth.churn", "within a budget of 1:00", card.profile.target,
    ):  # fmt: skip
        assert expected in text, expected
    assert ("Confusion matrix" in text) == bool(card.variant.task is not Task.REGRESSION)
    assert ("Predicted and true" in text) == bool(card.variant.task is Task.REGRESSION)
    assert page.tags.count("svg") == 3
    assert render(card) == render(card)


@pytest.mark.parametrize(
    ("scores", "told"), [((0.7, 0.8, 0.9), "how much 3 windows differed"), ((0.8,), "there was one only")]
)
def test_card_of_rows_in_order_of_time_says_how_far_its_score_holds(binary, scores, told):
    card = card_of(binary)
    window = NextWindow(n_rows=700, days=29.2, scores=scores, resampled=card.evaluation.score)
    page = Balanced(
        render(card.model_copy(update={"evaluation": card.evaluation.model_copy(update={"next_window": window})}))
    )
    text = re.sub(r"\s+", " ", page.text)
    assert "for the next window of about 700 rows (29 days); further ahead is not promised." in text
    assert told in text
    assert "next window" not in Balanced(render(card)).text


def test_card_asks_nothing_of_a_network(binary):
    page = Balanced(render(card_of(binary)))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert "url(" not in render(card_of(binary))
    assert "@import" not in render(card_of(binary))
    assert any(value and value.startswith("default-src 'none'") for _, value in page.attributes)


def test_names_of_strangers_are_text(binary):
    card = card_of(binary)
    confusion = Confusion(labels=(EVIL, "yes"), counts=((3, 1), (0, 4)))
    profiled = card.profile.model_copy(update={"target": EVIL, "class_balance": {EVIL: 0.5, "yes": 0.5}})
    importance = tuple(one.model_copy(update={"column": EVIL}) for one in card.importance)
    finding = card.findings[0].model_copy(update={"message": EVIL})
    part = card.slices[0].model_copy(update={"column": EVIL, "value": EVIL})
    page = render(
        card.model_copy(
            update={
                "evaluation": card.evaluation.model_copy(update={"confusion": confusion}),
                "profile": profiled,
                "importance": importance,
                "findings": (finding,),
                "slices": (part,),
                "watch": (card.watch[0].model_copy(update={"sentence": EVIL}),),
                "baseline": EVIL,
                "example": {EVIL: EVIL},
                "variant": card.variant.model_copy(update={"segment": EVIL, "parent": EVIL}),
            }
        )
    )
    assert "<script" not in page
    assert EVIL in Balanced(page).text
    assert "<script" not in charts.scatter_chart([(0, 1), (1, 2)], target=EVIL)
    assert "<script" not in charts.curve_chart([(1, 0.5, None)], name=EVIL)


def test_card_of_a_rejected_variant_says_why(regression):
    card = card_of(regression)
    worse = card.comparison.model_copy(update={"difference": -1.0, "low": -2.0, "high": 0.5, "probability": 0.1})
    metric = Metric(card.variant.metric, card.variant.task)
    verdict = judge(
        Gates(),
        Ceilings(),
        Evidence(metric=metric, comparison=worse, baseline="growth.churn/2", latency_ms=1, size_mb=1),
    )
    page = render(card.model_copy(update={"verdict": verdict, "comparison": worse}))
    assert "rejected by its gate" in page
    assert "worse by 1" in page
    assert "the champion stays as it was" in page


def test_bare_card_is_drawn_too(binary):
    card = card_of(
        binary,
        importance=(),
        slices=(),
        watch=(),
        leaderboard=(),
        curves=(),
        findings=(),
        example={},
        budget_s=None,
        features=None,
    )
    unregistered = card.model_copy(update={"variant": card.variant.model_copy(update={"version": 0})})
    text = Balanced(render(unregistered)).text
    assert "version" not in text.split("Predicts")[0].replace("model-variant", "")
    assert "Nothing suspicious was found" in text


def test_many_classes_are_listed_by_their_mistakes(multiclass):
    n = 30
    counts = np.diag(np.full(n, 9))
    counts[3, 4] = 5
    confusion = Confusion(labels=tuple(f"c{i}" for i in range(n)), counts=tuple(map(tuple, counts.tolist())))
    card = card_of(multiclass)
    page = render(card.model_copy(update={"evaluation": card.evaluation.model_copy(update={"confusion": confusion})}))
    assert "Most frequent mistakes" in page
    assert "35.7%" in page
    assert 'class="confusion"' not in page


def test_many_trials_are_folded_away(binary):
    many = [
        Trial(number=i, family="linear", parameters={}, state=TrialState.SUCCEEDED, score=i / 50) for i in range(50)
    ]
    page = render(card_of(binary, leaderboard=leaderboard(many, weights={49: 1.0})))
    assert "30 more trials" in page
    assert page.index(">49<") < page.index(">48<")


def test_a_score_over_one_fold_does_not_stand_above_those_over_all() -> None:
    def trial(number: int, score: float | None, folds: int) -> Trial:
        scores = (score or 0.0,) * folds
        return Trial(number=number, family="linear", parameters={}, score=score, folds=range(folds), fold_scores=scores)

    some = [trial(0, 0.99, 1), trial(1, 0.8, 8), trial(2, None, 0), trial(3, 0.9, 8), trial(4, 0.95, 5)]
    rows = leaderboard(some, weights={3: 1.0}, tested={3: 0.88, 0: 0.7})
    assert [(row.number, row.folds, row.test_score) for row in rows] == [
        (3, 8, 0.88), (1, 8, None), (4, 5, None), (0, 1, 0.7), (2, 0, None),
    ]  # fmt: skip


def test_a_card_shows_training_validation_and_test_of_each_trial(binary) -> None:
    def text(tested: dict[int, float]) -> str:
        rows = leaderboard(trials(), weights={1: 1.0}, tested=tested)
        return re.sub(r"(<[^>]*>|\s)+", " ", render(card_of(binary, leaderboard=rows)))

    told = text({1: 0.8123})
    assert "validation folds training test gap" in told
    assert re.search(r"0\.8300 \S 1\.0000 0\.8123 0\.17 ⚠", told), "validation, folds, training, test, gap"
    assert "nothing was chosen by it" in told
    assert "nothing was chosen by it" not in text({})


def test_overfitting_is_relative_to_the_score():
    def trial(score: float, train: float) -> Trial:
        return Trial(number=0, family="linear", parameters={}, score=score, train_score=train)

    assert overfits(trial(0.8, 0.95))
    assert not overfits(trial(0.8, 0.85))
    assert overfits(trial(-0.5, -0.1))
    assert not overfits(trial(-50_000, -48_000))


def test_example_is_the_most_complete_row_as_json():
    frame = pd.DataFrame(
        {
            "n": [np.nan, np.int64(3)],
            "flag": [True, False],
            "day": pd.to_datetime(["2024-01-01", "2024-01-02"]),
            "word": [None, "a"],
        }
    )
    assert example_row(frame) == {"n": 3.0, "flag": False, "day": "2024-01-02T00:00:00", "word": "a"}
    assert example_row(frame.iloc[:0]) == {}


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (5.0, 5.0), (-1e-9, 1e9), (0.1234, 0.1235), (-3.0, -2.0)])
def test_charts_of_any_range_have_ticks_inside(low, high):
    start, end = charts.padded(low, high)
    found = charts.ticks(start, end)
    assert 2 <= len(found) <= 9
    assert all(start - 1e-9 <= tick <= end + 1e-9 for tick in found)
    charts.difference_chart(low, (low + high) / 2, high, margin=0)
    charts.curve_chart([(1, low, high), (2, high, None)], name="one")


def test_kept_columns_are_told_with_what_they_matter(binary):
    kept = Finding(kind="leakage", column="age", action="keep", value=1.0, message="'age' gives it away.")
    text = Balanced(render(card_of(binary, findings=(kept,)))).text
    assert "Shuffled, it costs" in text
    assert "without the columns that were left out" not in text


def test_a_bad_slice_is_marked_and_one_without_a_score_is_told(binary):
    card = card_of(binary)
    first, second, *rest = card.slices
    worse = first.comparison.model_copy(update={"difference": -0.2, "probability": 0.0})
    bad = first.model_copy(update={"comparison": worse})
    bare = second.model_copy(update={"score": None, "comparison": None})
    text = Balanced(render(card.model_copy(update={"slices": (bad, bare, *rest)}))).text
    assert "-0.2 ⚠" in text
    assert text.count("not defined on these rows") == 1


def test_the_curve_of_quality_against_latency_marks_the_variant(binary):
    points = [
        FrontierPoint(latency_ms=0.1, size_mb=0.2, score=0.80, trials=(1,), models=1),
        FrontierPoint(latency_ms=0.9, size_mb=1.2, score=0.83, trials=(1, 2), models=8, chosen=True),
        FrontierPoint(latency_ms=6.0, size_mb=9.0, score=0.84, trials=(1, 2, 5), models=24),
    ]
    curve = Frontier(
        metric="roc_auc",
        points=tuple(points),
        bound_ms=0.8,
        ceiling_ms=1,
        lost=0.0625,
        sentence="Under the ceiling of 1 ms.",
    )
    calibration = Calibration(method="temperature", temperature=0.8, gain=0.01, threshold=0.31, threshold_gain=0.04)
    page = render(card_of(binary, frontier=curve, calibration=calibration))
    text = re.sub(r"\s+", " ", Balanced(page).text)
    chart = page.split("Quality against latency: ")[1].split("</svg>")[0]
    assert chart.count("<circle") == 3
    assert chart.count('class="dot b"') == 1
    assert "0.9 ms, ROC AUC 0.8300, 2 trials, 8 models, 1.2 MB" in chart
    assert "Under the ceiling of 1 ms." in text
    assert "Calibrated by a temperature of 0.8, which saved 0.0100 of log loss" in text
    assert "“yes” is answered from a probability of 0.310 on" in text
    assert "Quality against latency" not in render(card_of(binary))
