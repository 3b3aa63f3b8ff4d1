"""Means in place of levels: never from a row's own target, only where levels are many, and the same after loading."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factory import plugins
from factory.data.preparation import Table
from factory.families._encoding import INNER_FOLDS, MOST_TARGETS, SMOOTHING, Inputs, TargetEncoding
from factory.families.base import Family, FitContext, Sample, Shape
from factory.spec import Task

N = 1_200
LEVELS = 300


def _rows(task: Task = Task.REGRESSION, *, seed: int = 0) -> Sample:
    """Two columns of numbers, the second a cross; one column of 4 levels and one of 300 with effects of their own."""
    random = np.random.default_rng(seed)
    numeric = random.normal(size=(N, 2)).astype(np.float32)
    codes = np.column_stack([random.integers(1, 5, N), random.integers(1, LEVELS, N)]).astype(np.int32)
    effects = np.random.default_rng(99).normal(size=LEVELS)
    signal = 2 * effects[codes[:, 1]] + 0.5 * numeric[:, 0] + 0.1 * random.normal(size=N)
    y = {
        Task.REGRESSION: signal,
        Task.BINARY: (signal > 0).astype(np.int64),
        Task.MULTICLASS: np.digitize(signal, [-1.0, 1.0]),
    }[task]
    return Sample(Table(numeric, codes, (5, LEVELS), ("a", "a*a"), ("few", "many"), n_crosses=1), y)


def _encoding(rows: Sample, n_classes: int = 0) -> tuple[TargetEncoding, Table]:
    found = TargetEncoding.fit(rows, n_classes=n_classes, seed=1)
    assert found is not None
    return found


def test_only_many_levels_are_encoded_and_crosses_stay_last() -> None:
    encoding, table = _encoding(_rows())
    for seen in (table, encoding.transform(_rows(seed=1).table)):
        assert seen.numeric_names == ("many:mean0", "a", "a*a")
        assert seen.categorical_names == ("few",)
        assert seen.levels == (5,)
        assert seen.plain.numeric_names == ("many:mean0", "a")
        assert seen.numeric.dtype == np.float32


def test_values_are_smoothed_means() -> None:
    rows = _rows()
    encoding, _ = _encoding(rows)
    mine = rows.table.codes[:, 1] == 7
    expected = (rows.y[mine].sum() + SMOOTHING * rows.y.mean()) / (mine.sum() + SMOOTHING)
    assert encoding.values[7, 0] == pytest.approx(expected, rel=1e-5)
    assert encoding.values[0, 0] == pytest.approx(rows.y.mean(), rel=1e-5), "a level never seen gets the overall mean"


def test_a_row_does_not_see_its_own_target() -> None:
    rows = _rows()
    _, before = _encoding(rows)
    for i in (0, 17, 400):
        y = rows.y.copy()
        y[i] += 1_000
        _, after = _encoding(replace(rows, y=y))
        assert after.numeric[i, 0] == before.numeric[i, 0]
        assert (after.numeric[:, 0] != before.numeric[:, 0]).sum() > N // INNER_FOLDS, "but others see it"


def test_targets_that_say_nothing_stay_without_signal() -> None:
    rows = _rows()
    noise = np.random.default_rng(5).normal(size=N)
    _, table = _encoding(replace(rows, y=noise))
    assert abs(np.corrcoef(table.numeric[:, 0], noise)[0, 1]) < 0.15


def test_each_class_has_its_share_up_to_a_bound() -> None:
    encoding, _ = _encoding(_rows(Task.MULTICLASS), 3)
    np.testing.assert_allclose(encoding.values.sum(axis=1), 1, atol=1e-5)
    many = replace(_rows(), y=np.random.default_rng(0).integers(0, 40, N))
    assert _encoding(many, 40)[0].values.shape == (LEVELS, MOST_TARGETS)


def test_weights_enter_the_means() -> None:
    rows = _rows()
    weight = np.where(np.arange(N) < N // 2, 2.0, 0.0)
    half = Sample(rows.table.rows(np.arange(N // 2)), rows.y[: N // 2], np.full(N // 2, 2.0))
    np.testing.assert_allclose(
        _encoding(replace(rows, weight=weight))[0].values, _encoding(half)[0].values, rtol=1e-4, atol=1e-6
    )


def test_few_levels_leave_the_table_as_it_is(tmp_path: Path) -> None:
    table = Table(np.zeros((50, 1), np.float32), np.ones((50, 1), np.int32), (5,), ("a",), ("b",))
    inputs, seen = Inputs.fit(Sample(table, np.arange(50.0)), crosses=True, encodes=True, n_classes=0, seed=0)
    assert inputs.unchanged
    assert seen.table is table
    inputs.save(tmp_path)
    assert not list(tmp_path.iterdir())
    assert Inputs.load(tmp_path).unchanged


@pytest.mark.parametrize("task", list(Task), ids=str)
@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "catboost"])
def test_boosters_learn_from_means_and_without_crosses(name: str, task: Task, tmp_path: Path) -> None:
    family = plugins.load("families", name)
    assert isinstance(family, Family)
    n_classes = {Task.REGRESSION: 0, Task.BINARY: 2, Task.MULTICLASS: 3}[task]
    train, fresh = _rows(task), _rows(task, seed=1)
    first = family.portfolio(task, shape=Shape(N, 4, 2, LEVELS, n_classes, n_crosses=1))[0].parameters
    context = FitContext(task=task, n_classes=n_classes, seed=3, rounds=60)
    parameters = {**first, "crosses": False, "categoricals": "target"}
    model = family.fit(train, validation=fresh, parameters=parameters, context=context)
    answer = model.predict(fresh.table)
    if task is Task.REGRESSION:
        assert np.corrcoef(answer, fresh.y)[0, 1] > 0.9
    else:
        assert (answer.argmax(axis=1) == fresh.y).mean() > 0.75
    model.save(tmp_path)
    np.testing.assert_allclose(family.load(tmp_path).predict(fresh.table), answer, rtol=1e-6, atol=1e-6)
    wild = replace(fresh.table, numeric=fresh.table.numeric * np.array([1, 1e6], np.float32))
    np.testing.assert_array_equal(model.predict(wild), answer)
    assert model.gains() is None
    assert family.merge([model, model]) is None, "each model has means of its own"
    more = family.resume(model, fresh, validation=None, parameters=parameters, context=context)
    assert more is None or more.rounds == 120
