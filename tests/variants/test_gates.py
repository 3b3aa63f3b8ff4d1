"""What lets a variant pass, and what it is told when it does not."""

from __future__ import annotations

import pytest

from factory.data.findings import Finding
from factory.search.metric import Metric
from factory.spec import Ceilings, Gates, Task
from factory.variants.gates import Evidence, judge
from factory.variants.resampling import Comparison
from factory.variants.slices import Slice

BETTER = Comparison(
    difference=0.03, low=0.01, high=0.05, probability=0.99, candidate=0.83, baseline=0.80, n_rows=500, n_resamples=1000
)


def evidence(**changes: object) -> Evidence:
    comparison = BETTER.model_copy(update={k: v for k, v in changes.items() if k in Comparison.model_fields})
    others = {k: v for k, v in changes.items() if k not in Comparison.model_fields}
    fields = {"latency_ms": 2.0, "size_mb": 1.5, "baseline": "growth.churn/3", **others}
    return Evidence(metric=Metric.of("roc_auc", Task.BINARY), comparison=comparison, **fields)


def leak(action: str) -> Finding:
    return Finding(kind="leakage", column="closed_on", action=action, value=1.0, message="It gives the target away.")


def failed(verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_better_passes_and_says_by_how_much():
    verdict = judge(Gates(min_improvement=0.002), Ceilings(latency_ms=5, size_mb=50), evidence())
    assert verdict.passed
    assert [check.name for check in verdict.checks] == ["rows", "improvement", "latency", "size", "leakage"]
    assert (
        "ROC AUC 0.8300 against 0.8000 of growth.churn/3: better by 0.03 (95% interval +0.01 to +0.05); "
        "more than 0.002 in 99.0% of 1000 resamples, 95.0% needed." in verdict.sentence
    )


def test_one_of_many_has_to_be_surer_of_its_improvement_and_no_slice_gets_off_by_it():
    worse = BETTER.model_copy(update={"difference": -0.03, "probability": 0.02, "margin": 0.0})
    part = Slice(column="region", value="north", n_rows=200, comparison=worse)
    alone = judge(Gates(slice_max_loss=0.0), Ceilings(), evidence(slices=(part,)))
    among_many = judge(Gates(slice_max_loss=0.0), Ceilings(), evidence(slices=(part,)), sure=0.995)
    assert failed(alone) == ["slices"]
    assert failed(among_many) == ["improvement", "slices"]
    assert "99.0% of 1000 resamples, 99.5% needed." in among_many.sentence


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"difference": -0.01, "probability": 0.2}, "improvement"),
        ({"difference": 0.0, "probability": 0.0}, "improvement"),
        ({"difference": 0.001, "probability": 0.99}, "improvement"),
        ({"difference": 0.03, "probability": 0.94}, "improvement"),
        ({"n_rows": 19}, "rows"),
        ({"latency_ms": 5.1}, "latency"),
        ({"size_mb": 50.5}, "size"),
        ({"findings": (leak("keep"),)}, "leakage"),
    ],
)
def test_each_condition_can_say_no(changes, check):
    verdict = judge(Gates(min_improvement=0.002), Ceilings(latency_ms=5, size_mb=50), evidence(**changes))
    assert not verdict.passed
    assert failed(verdict) == [check]
    assert verdict.sentence.startswith("Not passed. ")


def test_a_promise_about_later_rows_stands_in_the_verdict() -> None:
    told = judge(Gates(), Ceilings(), evidence(promise="Further ahead is not promised.")).sentence
    assert "500 held-out rows were judged. Further ahead is not promised." in told
    assert "promised" not in judge(Gates(), Ceilings(), evidence()).sentence


def test_no_ceiling_no_check():
    assert [check.name for check in judge(Gates(), Ceilings(), evidence()).checks] == ["rows", "improvement", "leakage"]


def test_leaking_column_that_was_left_out_or_allowed_passes():
    assert judge(Gates(), Ceilings(), evidence(findings=(leak("drop"),))).passed
    verdict = judge(Gates(allow_leakage=True), Ceilings(), evidence(findings=(leak("keep"),)))
    assert verdict.passed
    assert "closed_on" in verdict.sentence


def test_losses_are_shown_without_their_sign():
    loss = Metric.of("neg_log_loss", Task.BINARY)
    worse = BETTER.model_copy(update={"candidate": -0.5, "baseline": -0.4, "difference": -0.1, "probability": 0.0})
    verdict = judge(
        Gates(), Ceilings(), Evidence(metric=loss, comparison=worse, baseline="constant", latency_ms=1, size_mb=1)
    )
    assert "Log loss 0.5000 against 0.4000 of constant: worse by 0.1" in verdict.sentence


@pytest.mark.parametrize(("high", "passed"), [(0.01, True), (-0.001, False)])
def test_what_was_trained_on_must_not_forget(high: float, passed: bool) -> None:
    memory = evidence().comparison.model_copy(update={"low": -0.05, "high": high, "difference": -0.02})
    found = judge(Gates(), Ceilings(), evidence(memory=memory, memory_of="rows of the parent"))
    check = next(check for check in found.checks if check.name == "memory")
    assert (check.passed, found.passed) == (passed, passed)
    assert "rows of the parent" in check.sentence
