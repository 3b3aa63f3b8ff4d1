"""Calibration and threshold on real out-of-fold predictions: they help on rows they have not seen, or are left out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from factory.search import calibration
from factory.search.calibration import Calibration, calibrate
from factory.search.metric import Metric, centred
from factory.spec import Task

LOG_LOSS = Metric.of("neg_log_loss", Task.MULTICLASS)
AUC = Metric.of("roc_auc", Task.BINARY)


def out_of_fold(model, X, y, *, n_folds=4):
    splits = list(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(X, y))
    return [y[v] for _, v in splits], [model.fit(X[t], y[t]).predict_proba(X[v]) for t, v in splits]


def test_an_overconfident_model_is_cooled_and_new_rows_agree() -> None:
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)
    model = GaussianNB(var_smoothing=1e-3)
    found = calibrate(LOG_LOSS, *out_of_fold(model, X_train, y_train), bagged=False)
    assert found.method == "temperature"
    assert found.temperature > 1.5
    assert found.gain > 0
    raw = model.fit(X_train, y_train).predict_proba(X_test)
    calibrated = found.apply(raw)
    assert LOG_LOSS.score(y_test, calibrated) > LOG_LOSS.score(y_test, raw) + 0.5 * found.gain
    np.testing.assert_array_equal(calibrated.argmax(axis=1), raw.argmax(axis=1))
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)


def test_a_bag_may_become_surer_but_not_less_sure() -> None:
    X, y = load_digits(return_X_y=True)
    assert calibrate(LOG_LOSS, *out_of_fold(GaussianNB(var_smoothing=1e-3), X, y), bagged=True) == Calibration()
    unsure = RandomForestClassifier(60, max_depth=7, random_state=0)
    found = calibrate(LOG_LOSS, *out_of_fold(unsure, X, y), bagged=True)
    assert found.temperature < 0.8


def test_a_row_of_weight_three_teaches_as_three_rows_do() -> None:
    y, p = out_of_fold(GaussianNB(var_smoothing=0.1), *load_digits(return_X_y=True))
    times = [np.where(np.arange(len(fold)) % 2, 3, 1) for fold in y]
    found = calibrate(LOG_LOSS, y, p, bagged=False, weights=[t / t.mean() for t in times])
    repeated = [[np.repeat(part, t, axis=0) for part, t in zip(parts, times, strict=True)] for parts in (y, p)]
    assert found.temperature == pytest.approx(calibrate(LOG_LOSS, *repeated, bagged=False).temperature, rel=1e-3)
    assert found.temperature != calibrate(LOG_LOSS, y, p, bagged=False).temperature


def test_a_threshold_is_found_where_the_positive_class_is_rare() -> None:
    """Of 20,000 rows 1 % are positive; probabilities are honest, so the best F1 lies far above their mean."""
    generator = np.random.default_rng(0)
    second = np.concatenate([generator.beta(1, 200, 19_000), generator.beta(1, 3, 1_000)])
    y = (generator.random(20_000) < second).astype(np.int64)
    p, f1 = np.stack([1 - second, second], axis=1), Metric.of("f1", Task.BINARY)
    found = calibrate(f1, [y[k::5] for k in range(5)], [p[k::5] for k in range(5)], bagged=True)
    best = max(f1.score(y, centred(p, t)) for t in np.linspace(0.1, 0.6, 51))
    assert f1.score(y, centred(p, 0.5)) < 0.9 * best
    assert f1.score(y, centred(p, found.threshold)) > 0.97 * best


def test_a_calibrated_model_and_few_rows_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = out_of_fold(model, X, y)
    assert calibrate(AUC, *folds, bagged=False) == Calibration()
    monkeypatch.setitem(calibration.LEAST_ROWS, Task.BINARY, 100)
    assert calibrate(AUC, *folds, bagged=False).method == "none"
    assert calibrate(Metric.of("r2", Task.REGRESSION), [y * 1.0], [y * 1.0], bagged=False) == Calibration()


@pytest.mark.parametrize("n_folds", [1, 4])
def test_ranking_survives_an_isotonic_curve(n_folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calibration.LEAST_ROWS, Task.BINARY, 100)
    generator = np.random.default_rng(0)
    truth = generator.random(8_000)
    y = (generator.random(8_000) < truth).astype(np.int64)
    shown = np.where(truth > 0.5, 0.5 + (truth - 0.5) ** 3, truth**2)
    p = np.stack([1 - shown, shown], axis=1)
    found = calibrate(AUC, np.array_split(y[:4000], n_folds), np.array_split(p[:4000], n_folds), bagged=False)
    assert found.method == "isotonic"
    calibrated = found.apply(p[4000:])
    assert AUC.score(y[4000:], calibrated) == AUC.score(y[4000:], p[4000:])
    assert np.abs(calibrated[:, 1] - truth[4000:]).mean() < 0.5 * np.abs(shown - truth)[4000:].mean()
    assert Calibration.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("name", ["balanced_accuracy", "f1"])
def test_a_threshold_serves_the_stated_metric_on_new_rows(name: str) -> None:
    metric = Metric.of(name, Task.BINARY)
    X, y = load_digits(return_X_y=True)
    rare = (y == 8).astype(np.int64)
    X_train, X_test, y_train, y_test = train_test_split(X, rare, test_size=0.5, random_state=0, stratify=rare)
    model = RandomForestClassifier(60, max_depth=5, random_state=0)
    found = calibrate(metric, *out_of_fold(model, X_train, y_train), bagged=True)
    assert 0 < found.threshold < 0.4
    p = found.apply(model.fit(X_train, y_train).predict_proba(X_test))
    assert metric.score(y_test, centred(p, found.threshold)) > metric.score(y_test, p) + 0.02
    np.testing.assert_array_equal(found.labels(p), p[:, 1] > found.threshold)
    assert calibrate(AUC, *out_of_fold(model, X_train, y_train), bagged=True).threshold == 0.5
