"""Scores and pictures of held-out rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss, roc_auc_score

from factory.search.metric import REPORTED, Metric
from factory.spec import Task
from factory.variants.evaluation import (
    calibration,
    confusion,
    evaluate,
    one_row_latency_ms,
    permutation_importance,
    residuals,
)


def metric_of(task: Task) -> Metric:
    return Metric.of(REPORTED[task][0], task)


def test_every_task_shows_its_scores(made):
    prediction = made.bundle.predict_raw(made.test.frame)
    task = made.bundle.task
    evaluation = evaluate(metric_of(task), made.test.y, prediction, classes=made.bundle.classes, seed=0)
    assert set(evaluation.scores) == set(REPORTED[task])
    assert evaluation.score.value == evaluation.scores[evaluation.metric]
    assert set(evaluation.intervals) == set(evaluation.scores)
    assert evaluation.intervals[evaluation.metric] == evaluation.score
    for name, interval in evaluation.intervals.items():
        assert interval.value == pytest.approx(evaluation.scores[name])
        assert interval.low <= interval.value <= interval.high
    assert evaluation.n_rows == len(made.test.y)
    assert (evaluation.confusion is None) == (task is Task.REGRESSION)
    assert (evaluation.residuals is None) == (task is not Task.REGRESSION)
    assert type(evaluation).model_validate_json(evaluation.model_dump_json()) == evaluation


def test_scores_are_scikit_learns(binary):
    p = binary.bundle.predict_raw(binary.test.frame)
    scores = evaluate(metric_of(Task.BINARY), binary.test.y, p, classes=("no", "yes"), seed=0).scores
    assert scores["roc_auc"] == pytest.approx(roc_auc_score(binary.test.y, p[:, 1]))
    assert scores["neg_log_loss"] == pytest.approx(-log_loss(binary.test.y, p))
    assert scores["neg_brier_score"] == pytest.approx(-brier_score_loss(binary.test.y, p[:, 1]))


def test_absent_class_leaves_out_what_it_does_not_define(multiclass):
    rows = multiclass.test.y != 2
    prediction = multiclass.bundle.predict_raw(multiclass.test.frame[rows])
    metric = Metric.of("neg_log_loss", Task.MULTICLASS)
    evaluation = evaluate(metric, multiclass.test.y[rows], prediction, classes=multiclass.bundle.classes, seed=0)
    assert set(evaluation.scores) == {"neg_log_loss", "accuracy"}


def test_confusion_counts_true_rows_by_predicted_columns(multiclass):
    prediction = multiclass.bundle.predict_raw(multiclass.test.frame)
    found = confusion(multiclass.test.y, prediction, classes=multiclass.bundle.classes)
    expected = confusion_matrix(multiclass.test.y, prediction.argmax(axis=1), labels=[0, 1, 2])
    np.testing.assert_array_equal(found.counts, expected)


def test_calibration_of_honest_probabilities_lies_on_the_diagonal():
    generator = np.random.default_rng(0)
    p = generator.random(20_000)
    y = (generator.random(20_000) < p).astype(np.int64)
    bins = calibration(y, np.column_stack([1 - p, p]))
    assert len(bins) == 10
    assert max(abs(one.predicted - one.observed) for one in bins) < 0.03
    assert sum(one.n_rows for one in bins) == 20_000
    assert len(calibration(y[:15], np.column_stack([1 - p, p])[:15])) == 1


def test_residuals_are_true_minus_predicted():
    y = np.arange(1000.0)
    found = residuals(y, y - 2, seed=0)
    assert (found.mean, found.std, found.quantiles[2]) == (2, 0, 2)
    assert len(found.points) == 400
    assert all(true == predicted + 2 for predicted, true in found.points)


def test_importance_finds_the_columns_that_matter(made):
    metric = metric_of(made.bundle.task)
    found = permutation_importance(made.bundle, made.test.frame, made.test.y, metric=metric, seed=0)
    assert {one.column for one in found} == {"age", "income", "city", "member", "since"}
    assert found[0].column == "age"
    assert found[0].drop > 0
    assert found == permutation_importance(made.bundle, made.test.frame, made.test.y, metric=metric, seed=0)


def test_importance_keeps_to_its_time(made):
    metric = metric_of(made.bundle.task)
    hasty = permutation_importance(made.bundle, made.test.frame, made.test.y, metric=metric, seed=0, limit_s=0.0)
    assert len(hasty) < 5


def test_one_row_takes_a_few_milliseconds(binary):
    assert 0 < one_row_latency_ms(binary.bundle, binary.test.frame) < 50
