"""The estimators: scikit-learn's own checks, its tools, tables with text, and pickles without pickled models."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import factory
from factory import FactoryClassifier, FactoryRegressor
from factory.errors import UntrustedBundle

SMALL: dict[str, Any] = {"trials": 2, "families": ("constant", "linear"), "random_state": 0}


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "never-made"))


def table(n_rows: int = 160) -> tuple[pd.DataFrame, np.ndarray]:
    generator = np.random.default_rng(0)
    city = generator.choice(["Bern", "Genf", None], n_rows)
    age = np.where(generator.random(n_rows) < 0.1, np.nan, generator.integers(18, 80, n_rows))
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 300, n_rows), unit="D")
    signal = (city == "Bern") * 2.0 + np.nan_to_num(age, nan=50) / 30 + generator.normal(0, 0.3, n_rows)
    return pd.DataFrame({"city": city, "age": age, "day": day}), signal


@pytest.mark.parametrize("kind", [FactoryClassifier, FactoryRegressor])
def test_scikit_learn_finds_nothing_wrong(kind: type[BaseEstimator]) -> None:
    repeated = (
        "A row twice may stand in two folds, a row of weight two stands in one: neither search nor bag are equal."
    )
    known = {"check_sample_weight_equivalence_on_dense_data": repeated}
    logs = check_estimator(kind(**SMALL), on_skip=None, expected_failed_checks=known)
    assert sum(log["status"] == "passed" for log in logs) >= {FactoryClassifier: 59, FactoryRegressor: 56}[kind]
    # Skipped where SCIPY_ARRAY_API is not set, as it is for all estimators.
    others = {log["check_name"] for log in logs if log["status"] not in ("passed", "xfail")}
    assert others <= {"check_array_api_input"}


def test_heavy_rows_are_learned_and_rows_of_weight_zero_are_not_there() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 2))
    told, opposed = X[:, 0] > 0, X[:, 0] <= 0
    both, y = np.vstack([X, X]), np.concatenate([told, opposed])
    weight = np.repeat([3.0, 1.0], 200)
    heavy = FactoryClassifier(**SMALL).fit(both, y, sample_weight=weight)
    assert np.mean(heavy.predict(X) == told) > 0.95
    away = FactoryClassifier(**SMALL).fit(both, np.where(weight > 2, y, 7), sample_weight=weight - 1 * (weight == 1))
    assert list(away.classes_) == [0, 1]
    assert np.array_equal(away.predict_proba(X), FactoryClassifier(**SMALL).fit(X, told).predict_proba(X))
    with pytest.raises(ValueError, match="Negative values"):
        FactoryRegressor(**SMALL).fit(X, X[:, 0], sample_weight=-np.ones(200))
    with pytest.raises(ValueError, match=r"neg_max_error.*cannot be taken over weighted rows"):
        FactoryRegressor(**SMALL, metric="neg_max_error").fit(X, X[:, 0], sample_weight=np.ones(200))


def test_a_table_with_text_dates_and_gaps(tmp_path: Any) -> None:
    frame, signal = table()
    labels = np.where(signal > np.median(signal), "high", "low")
    classifier = FactoryClassifier(**SMALL).fit(frame, labels)
    assert list(classifier.classes_) == ["high", "low"]
    assert classifier.score(frame, labels) > 0.8
    assert list(classifier.leaderboard_["family"]) == ["linear", "constant"]
    assert list(classifier.feature_names_in_) == ["city", "age", "day"]
    assert FactoryRegressor(**SMALL).fit(frame, signal).score(frame, signal) > 0.8
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame[["age", "city", "day"]])
    assert not (tmp_path / "never-made").exists()


def test_columns_without_names_are_taken_by_their_places() -> None:
    X, y = load_diabetes(return_X_y=True)
    frame = pd.DataFrame(X, columns=[f"column {j}" for j in range(X.shape[1])])
    by_name, by_place = FactoryRegressor(**SMALL).fit(frame, y), FactoryRegressor(**SMALL).fit(X, y)
    expected = by_name.predict(frame)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        np.testing.assert_array_equal(by_name.predict(X), expected)
    with pytest.warns(UserWarning, match="fitted without feature names"):
        np.testing.assert_array_equal(by_place.predict(frame), by_place.predict(X))
    numbered = pd.DataFrame(X)
    np.testing.assert_array_equal(FactoryRegressor(**SMALL).fit(numbered, y).predict(numbered), expected)


def test_what_the_factory_refuses_is_a_value_error() -> None:
    X, y = load_diabetes(return_X_y=True)
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        FactoryRegressor(families=("liner",)).fit(X, y)
    with pytest.raises(ValueError, match="roc_auc"):
        FactoryRegressor(**SMALL, metric="roc_auc").fit(X, y)
    with pytest.raises(ValueError, match="one row only"):
        FactoryClassifier(**SMALL).fit(X[:40], [0] * 20 + [1] * 19 + [2])


def test_the_tools_of_scikit_learn_take_them() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:200, :4], y[:200]
    scores = cross_val_score(FactoryClassifier(**SMALL), X, y, cv=2, scoring="roc_auc")
    assert scores.min() > 0.9
    pipeline = make_pipeline(StandardScaler(), FactoryClassifier(**SMALL))
    search = GridSearchCV(pipeline, {"factoryclassifier__families": [("constant",), ("linear",)]}, cv=2).fit(X, y)
    assert search.best_params_ == {"factoryclassifier__families": ("linear",)}
    assert clone(search.best_estimator_).fit(X, y).predict_proba(X).shape == (200, 2)


def test_a_pickle_holds_no_pickled_model() -> None:
    frame, signal = table()
    fitted = FactoryRegressor(**SMALL).fit(frame, signal)
    text = pickle.dumps(fitted)
    again = pickle.loads(text)
    assert np.array_equal(again.predict(frame), fitted.predict(frame))
    named = {str(a) for o, a, _ in pickletools.genops(text) if o.name in ("SHORT_BINUNICODE", "BINUNICODE", "GLOBAL")}
    assert {n for n in named if n.startswith(("factory.", "sklearn.", "lightgbm"))} == {"factory.estimators"}
    state = fitted.__getstate__()
    digest, archive = state["bundle_"]
    with pytest.raises(UntrustedBundle, match="digest"):
        FactoryRegressor().__setstate__({**state, "bundle_": (digest[::-1], archive)})


@pytest.mark.slow
def test_two_trials_at_a_time() -> None:
    X, y = load_diabetes(return_X_y=True)
    fitted = factory.FactoryRegressor(
        trials=4, budget_s=60, families=("constant", "linear"), n_jobs=2, random_state=0
    ).fit(X, y)
    assert len(fitted.leaderboard_) == 4
    assert fitted.score(X, y) > 0.4
