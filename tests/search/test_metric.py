"""Fast paths equal scikit-learn's own scorers; names and tasks that do not fit are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import get_scorer_names

from factory.errors import InvalidRequest
from factory.search.metric import _FAST, Metric
from factory.spec import Task

FAST = [(task, name) for task, scores in _FAST.items() for name in scores]


def predictions(task: Task, seed: int, *, n_rows: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Random targets and predictions; few digits make ties."""
    generator = np.random.default_rng(seed)
    if task is Task.REGRESSION:
        y = np.round(generator.normal(size=n_rows), digits)
        return y, np.round(y + generator.normal(size=n_rows), digits)
    n_classes = 2 if task is Task.BINARY else 4
    y = np.concatenate([np.arange(n_classes), generator.integers(0, n_classes, n_rows)])
    p = np.round(generator.dirichlet(np.ones(n_classes), len(y)), digits) + 1e-6
    return y, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("task", "name"), FAST)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n_rows=st.integers(2, 60), digits=st.integers(1, 6))
def test_fast_paths_equal_scikit_learn(task: Task, name: str, seed: int, n_rows: int, digits: int) -> None:
    y, p = predictions(task, seed, n_rows=n_rows, digits=digits)
    metric = Metric.of(name, task)
    assert metric.score(y, p) == pytest.approx(metric._by_scorer(y, p), rel=1e-9, abs=1e-12)


def test_fast_paths_at_their_edges() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    y = np.array([0, 1, 1])
    for name in ("neg_log_loss", "accuracy", "roc_auc"):
        metric = Metric(name, Task.BINARY)
        assert metric.score(y, certain) == pytest.approx(metric._by_scorer(y, certain))
    assert np.isnan(Metric("roc_auc", Task.BINARY).score(np.ones(3, dtype=np.int64), certain))
    r2, flat = Metric("r2", Task.REGRESSION), np.full(4, 2.0)
    for p in (flat, flat + 1):
        assert r2.score(flat, p) == r2._by_scorer(flat, p)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Task.BINARY, "f1"),
        (Task.BINARY, "precision"),
        (Task.BINARY, "average_precision"),
        (Task.BINARY, "positive_likelihood_ratio"),
        (Task.MULTICLASS, "roc_auc_ovr"),
        (Task.MULTICLASS, "f1_macro"),
        (Task.MULTICLASS, "top_k_accuracy"),
        (Task.REGRESSION, "neg_median_absolute_error"),
        (Task.REGRESSION, "neg_mean_poisson_deviance"),
    ],
)
def test_any_scorer_that_fits_is_taken(task: Task, name: str) -> None:
    y, p = predictions(task, 1, n_rows=50, digits=6)
    if task is Task.REGRESSION:
        y, p = np.abs(y) + 0.1, np.abs(p) + 0.1
    assert np.isfinite(Metric.of(name, task).score(y, p))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Task.REGRESSION, "accuracy"),
        (Task.REGRESSION, "roc_auc"),
        (Task.REGRESSION, "rand_score"),
        (Task.MULTICLASS, "f1"),
        (Task.MULTICLASS, "roc_auc"),
        (Task.BINARY, "top_k_accuracy"),
    ],
)
def test_a_scorer_that_does_not_fit_the_task_is_refused(task: Task, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name!r} does not fit a {task} task") as refused:
        Metric.of(name, task)
    assert "Usual ones" in refused.value.hint


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"no scikit-learn scorer 'roc_auk'. Did you mean 'roc_auc'\?"):
        Metric.of("roc_auk", Task.BINARY)


@pytest.mark.parametrize("task", list(Task))
def test_every_scorer_is_taken_or_refused_and_nothing_else(task: Task) -> None:
    taken = []
    for name in get_scorer_names():
        try:
            taken.append(Metric.of(name, task).name)
        except InvalidRequest:
            continue
    assert set(_FAST[task]) <= set(taken)
    assert len(taken) < len(get_scorer_names())


def test_what_people_see() -> None:
    assert Metric("neg_log_loss", Task.BINARY).label == "log loss"
    assert Metric("neg_log_loss", Task.BINARY).display(-0.25) == "0.2500"
    assert Metric("roc_auc", Task.BINARY).label == "ROC AUC"
    assert Metric("neg_root_mean_squared_error", Task.REGRESSION).display(-47231.4) == "47,231"
