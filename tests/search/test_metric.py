"""Fast paths equal scikit-learn's own scorers; names and tasks that do not fit are refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import get_scorer_names

from factory.errors import InvalidData, InvalidRequest
from factory.search.domain import DOMAINS
from factory.search.fast_scores import FAST as SCORES
from factory.search.metric import REPORTED, Metric, centred
from factory.spec import Task

FAST = [(task, name) for task, scores in SCORES.items() for name in scores]


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


@pytest.mark.parametrize(("task", "name"), [*FAST, *((t, n) for t, names in REPORTED.items() for n in names)])
def test_a_row_of_weight_two_counts_as_two_rows(task: Task, name: str) -> None:
    y, p = predictions(task, 3, n_rows=80, digits=2)
    times = np.random.default_rng(1).integers(1, 5, len(y))
    metric, weight = Metric.of(name, task), times.astype(np.float64)
    score = metric.score(y, p, weight=weight)
    assert score == pytest.approx(metric.score(np.repeat(y, times), np.repeat(p, times, axis=0)), rel=1e-9)
    assert score == pytest.approx(metric._by_scorer(y, p, weight=weight), rel=1e-9)
    assert score == pytest.approx(metric.score(y, p, weight=weight * 7), rel=1e-9)
    assert metric.weighs


@pytest.mark.parametrize("name", DOMAINS)
def test_predictions_that_a_scorer_is_not_defined_for_are_raised_to_a_floor(name: str) -> None:
    seen, y = np.arange(4), np.array([1.0, 2.0, 3.0, 6.0, 0.5])
    metric = Metric.of(name, Task.REGRESSION).on(y, seen=seen, target="sold")
    assert metric.floor == 1.0, "the least target of the rows that may be seen"
    below = np.array([-5.0, 2.5, 0.0, 5.0, 0.4])
    assert metric.score(y, below) == metric._by_scorer(y, np.maximum(below, 1.0))
    assert np.isfinite(Metric(name, Task.REGRESSION).score(y, below))
    assert metric.weighs


def test_counts_with_zeros_get_a_floor_above_zero() -> None:
    y = np.array([0.0, 0.0, 3.0, 1.0])
    poisson = Metric.of("neg_mean_poisson_deviance", Task.REGRESSION).on(y, seen=np.arange(4), target="sold")
    assert poisson.floor == pytest.approx(1e-3)
    assert Metric.of("r2", Task.REGRESSION).on(y - 9, seen=np.arange(4), target="sold").floor is None
    assert np.isnan(poisson.score(np.array([-1.0, 2.0]), np.ones(2))), "not defined, and no end of anything"


@pytest.mark.parametrize(
    ("name", "y", "said", "other"),
    [
        ("neg_mean_gamma_deviance", [0.0, 1.0, 2.0], "above 0; 'sold' is not in 1 of 3 rows", "poisson"),
        ("neg_mean_poisson_deviance", [-1.0, 1.0, -2.0], "of 0 or more; 'sold' is not in 2 of 3", "neg_root_mean_sq"),
        ("neg_mean_squared_log_error", [-1.0, 1.0, 2.0], "above -1; 'sold' is not in 1 of 3", "neg_root_mean_sq"),
    ],
)
def test_targets_that_a_scorer_is_not_defined_for_are_refused(name: str, y: list[float], said: str, other: str) -> None:
    with pytest.raises(InvalidData, match=said) as caught:
        Metric.of(name, Task.REGRESSION).on(np.array(y), seen=np.arange(2), target="sold")
    assert caught.value.details[0].field == "metric"
    assert other in caught.value.hint
    assert name not in caught.value.hint


def test_every_scorer_of_regressions_is_defined_for_all_numbers_or_has_a_domain() -> None:
    y, p = np.array([-3.0, 0.0, 2.0]), np.array([-1.0, -0.5, 0.0])
    for name in get_scorer_names():
        try:
            metric = Metric.of(name, Task.REGRESSION)
        except InvalidRequest:
            continue
        assert np.isfinite(metric.score(y, p)) != (name in DOMAINS), name


def test_some_scorers_cannot_weigh_rows() -> None:
    assert not Metric.of("neg_max_error", Task.REGRESSION).weighs
    assert Metric.of("recall", Task.BINARY).weighs
    assert Metric.of("roc_auc_ovr", Task.MULTICLASS).weighs
    assert not Metric.of("roc_auc_ovo", Task.MULTICLASS).weighs, "it has the parameter, and refuses it"


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
def test_every_scorer_of_scikit_learn_gives_a_number_or_is_refused_in_a_sentence(task: Task) -> None:
    y, p = predictions(task, 3, n_rows=60, digits=6)
    if task is Task.REGRESSION:
        y, p = np.abs(y) + 0.1, np.abs(p) + 0.1
    taken, reasons = [], set()
    for name in get_scorer_names():
        try:
            metric = Metric.of(name, task)
        except InvalidRequest as refused:
            reasons.add(refused.message.split(" task: ")[1])
            continue
        taken.append(name)
        assert np.isfinite(metric.score(y, p)), name
    assert reasons <= {
        "it judges numbers, and this task predicts classes.",
        "it judges classes or their probabilities, and this task predicts numbers.",
        "it is for rows with several labels each.",
        "it is for two classes only.",
        "of two classes, the two likeliest are always right.",
    }
    assert set(SCORES[task]) <= set(taken)
    assert set(REPORTED[task]) <= set(taken)


def test_a_refused_scorer_names_its_kin() -> None:
    with pytest.raises(InvalidRequest, match="'f1' does not fit a multiclass task: it is for two classes") as refused:
        Metric.of("f1", Task.MULTICLASS)
    assert "Akin to it: f1_macro, f1_micro, f1_weighted." in refused.value.hint


def test_a_class_that_is_absent_leaves_a_score_undefined_or_out_of_the_mean() -> None:
    y, p = predictions(Task.MULTICLASS, 0, n_rows=40, digits=6)
    some = y < 3
    assert np.isnan(Metric.of("roc_auc_ovr", Task.MULTICLASS).score(y[some], p[some]))
    for name in ("balanced_accuracy", "f1_macro"):
        metric = Metric.of(name, Task.MULTICLASS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert metric.score(y[some], p[some]) == pytest.approx(metric._by_scorer(y[some], p[some]))


def test_labels_follow_a_threshold_once_the_odds_are_centred_on_it() -> None:
    _, p = predictions(Task.BINARY, 4, n_rows=200, digits=6)
    for threshold in (0.1, 0.5, 0.83):
        moved = centred(p, threshold)
        np.testing.assert_array_equal(moved.argmax(axis=1), p[:, 1] > threshold)
        np.testing.assert_array_equal(np.argsort(moved[:, 1]), np.argsort(p[:, 1]))
    by_label = {name for name in get_scorer_names() if _judges_labels(name)}
    assert {"accuracy", "balanced_accuracy", "f1", "matthews_corrcoef"} <= by_label
    assert not by_label & {"roc_auc", "neg_log_loss", "average_precision", "neg_brier_score"}


def _judges_labels(name: str) -> bool:
    try:
        return Metric.of(name, Task.BINARY).by_label
    except InvalidRequest:
        return False


def test_reported_scores_are_others_than_the_metric() -> None:
    assert [m.name for m in Metric("r2", Task.REGRESSION).reported()] == [
        name for name in REPORTED[Task.REGRESSION] if name != "r2"
    ]


def test_what_people_see() -> None:
    assert Metric("neg_log_loss", Task.BINARY).label == "log loss"
    assert Metric("neg_log_loss", Task.BINARY).display(-0.25) == "0.2500"
    assert Metric("roc_auc", Task.BINARY).label == "ROC AUC"
    assert Metric("neg_root_mean_squared_error", Task.REGRESSION).display(-47231.4) == "47,231"
    assert Metric("neg_root_mean_squared_error", Task.REGRESSION).display(-1.23456e-6) == "1.235e-06"
