"""A few rows walk a booster's trees in numpy: the answers are XGBoost's and CatBoost's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factory import plugins
from factory.data.preparation import Table
from factory.families import _catboost_walk, catboost
from factory.families._boosting import FEW_ROWS
from factory.families._catboost_walk import Walk
from factory.families._walk import Trees
from factory.families.base import FitContext, Model, Sample
from factory.families.xgboost import DEPTH_8, WALK, XGBoost
from factory.spec import Task
from factory.testing.rows import N_CLASSES, sample

NO_CODES = np.empty((240, 0), np.int32)


def family() -> XGBoost:
    found = plugins.load("families", "xgboost")
    assert isinstance(found, XGBoost)
    return found


def numbers(task: Task, *, seed: int = 0) -> Sample:
    """The usual rows without their categories: numbers, some of them missing."""
    rows = sample(task, seed=seed)
    return Sample(Table(rows.table.numeric, NO_CODES, (), rows.table.numeric_names, ()), rows.y)


def fitted(train: Sample, task: Task) -> Model:
    context = FitContext(task=task, n_classes=N_CLASSES[task], seed=3, rounds=30)
    return family().fit(train, validation=None, parameters=DEPTH_8, context=context)


def one_by_one(model: Model, table: Table) -> np.ndarray:
    return np.concatenate([model.predict(table.rows(np.arange(i, i + 1))) for i in range(len(table))])


@pytest.mark.parametrize("task", list(Task), ids=str)
def test_answers_are_those_of_many_rows(task: Task, tmp_path: Path) -> None:
    model, table = fitted(numbers(task), task), numbers(task, seed=2).table
    many = model.predict(table)
    np.testing.assert_allclose(one_by_one(model, table), many, atol=1e-5)
    few = table.rows(np.arange(FEW_ROWS))
    np.testing.assert_allclose(model.predict(few), many[:FEW_ROWS], atol=1e-5)
    model.save(tmp_path)
    assert (tmp_path / WALK).is_file()
    loaded = family().load(tmp_path)
    assert np.array_equal(loaded.predict(few), model.predict(few))


@pytest.mark.parametrize("task", list(Task), ids=str)
def test_splits_on_sets_of_levels_are_walked_too(task: Task, tmp_path: Path) -> None:
    train, table = of_levels(sample(task), 8), of_levels(sample(task, seed=2), 8).table
    model = fitted(train, task)
    many = model.predict(table)
    np.testing.assert_allclose(one_by_one(model, table), many, atol=1e-5)
    model.save(tmp_path)
    assert (tmp_path / WALK).is_file()
    np.testing.assert_allclose(one_by_one(family().load(tmp_path), table), many, atol=1e-5)


def test_sets_of_more_levels_than_a_number_has_bits_stay_with_xgboost(tmp_path: Path) -> None:
    train, table = of_levels(sample(Task.REGRESSION), 60), of_levels(sample(Task.REGRESSION, seed=2), 60).table
    model = fitted(train, Task.REGRESSION)
    np.testing.assert_allclose(one_by_one(model, table), model.predict(table), atol=1e-6)
    model.save(tmp_path)
    assert not (tmp_path / WALK).exists()


@pytest.mark.parametrize("missing", [False, True], ids=["all there", "some missing"])
@pytest.mark.parametrize("levels", [0, 8], ids=["numbers", "levels"])
@pytest.mark.parametrize("task", list(Task), ids=str)
def test_catboosts_symmetric_trees_are_walked_to_the_last_bit(
    task: Task, levels: int, missing: bool, tmp_path: Path
) -> None:
    train, table = numbers(task), numbers(task, seed=2).table
    if levels:
        train, table = of_levels(sample(task), levels), of_levels(sample(task, seed=2), levels).table
    if not missing:
        train, table = replace(train, table=without_gaps(train.table)), without_gaps(table)
    context = FitContext(task=task, n_classes=N_CLASSES[task], seed=3, rounds=30)
    model = catboost.PLUGIN.fit(train, validation=None, parameters=catboost.ONE_HOT, context=context)
    many = model.predict(table)
    model.save(tmp_path)
    assert (tmp_path / catboost.WALK).is_file()
    loaded = catboost.PLUGIN.load(tmp_path)
    assert np.array_equal(one_by_one(loaded, table), many)
    assert np.array_equal(loaded.predict(table), many)


@pytest.mark.parametrize("shape", [(8,), (8, 5), (40, 3, 12)], ids=str)
@pytest.mark.parametrize("task", list(Task), ids=str)
def test_statistics_of_the_target_by_level_are_looked_up(task: Task, shape: tuple[int, ...], tmp_path: Path) -> None:
    train, table = of_columns(task, shape, seed=0), of_columns(task, shape, seed=2).table
    context = FitContext(task=task, n_classes=N_CLASSES[task], seed=3, rounds=60)
    model = catboost.PLUGIN.fit(train, validation=None, parameters=catboost.DEFAULTS, context=context)
    model.save(tmp_path)
    walk = Walk.load(tmp_path / catboost.WALK)
    assert walk.statistics is not None
    assert len(walk.statistics.starts) > 1
    strange = replace(table, codes=np.where(table.codes == 2, np.array(shape, np.int32), table.codes))
    loaded = catboost.PLUGIN.load(tmp_path)
    for rows in (table, strange):
        assert np.array_equal(one_by_one(loaded, rows), model.predict(rows))


def test_more_levels_than_are_looked_for_stay_with_catboost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_catboost_walk, "MOST_CODES", 6)
    monkeypatch.setattr(_catboost_walk, "_hash_of_code", _catboost_walk._hash_of_code.__wrapped__)
    train, table = of_columns(Task.BINARY, (8,), seed=0), of_columns(Task.BINARY, (8,), seed=2).table
    context = FitContext(task=Task.BINARY, n_classes=2, seed=3, rounds=30)
    model = catboost.PLUGIN.fit(train, validation=None, parameters=catboost.DEFAULTS, context=context)
    model.save(tmp_path)
    assert not (tmp_path / catboost.WALK).exists()
    assert np.array_equal(one_by_one(catboost.PLUGIN.load(tmp_path), table), model.predict(table))


def test_a_model_of_very_many_leaves_stays_with_catboost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_catboost_walk, "MOST_LEAVES", 100)
    context = FitContext(task=Task.REGRESSION, n_classes=0, seed=3, rounds=30)
    model = catboost.PLUGIN.fit(numbers(Task.REGRESSION), validation=None, parameters=catboost.ONE_HOT, context=context)
    model.save(tmp_path)
    assert not (tmp_path / catboost.WALK).exists()


def test_a_walk_that_does_not_answer_as_catboost_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = of_columns(Task.REGRESSION, (8,), seed=0)
    context = FitContext(task=Task.REGRESSION, n_classes=0, seed=3, rounds=30)
    model = catboost.PLUGIN.fit(train, validation=None, parameters=catboost.DEFAULTS, context=context)
    monkeypatch.setattr(_catboost_walk, "_FACTOR", np.uint64(7))
    model.save(tmp_path)
    assert not (tmp_path / catboost.WALK).exists()


def of_columns(task: Task, shape: tuple[int, ...], *, seed: int) -> Sample:
    """The usual rows with columns of so many levels, the first of which says most, and one more that no row has."""
    rows, random = sample(task, seed=seed), np.random.default_rng(seed)
    first = of_levels(rows, shape[0] - 1).table.codes
    others = [random.integers(0, n, (len(rows.y), 1)) for n in shape[1:]]
    codes = np.concatenate([first, *others], axis=1).astype(np.int32)
    names = tuple(f"e{k}" for k in range(len(shape)))
    levels = tuple(n + 1 for n in shape)
    return Sample(Table(rows.table.numeric[:, 1:], codes, levels, ("b", "c", "d"), names), rows.y)


def without_gaps(table: Table) -> Table:
    return replace(table, numeric=np.nan_to_num(table.numeric))


def of_levels(rows: Sample, n_levels: int) -> Sample:
    """The usual rows with one column of levels that say much, in no order; 0 is that of missing values."""
    order = np.random.default_rng(0).permutation(n_levels)
    ranks = np.argsort(np.argsort(rows.table.numeric[:, 0])) * n_levels // len(rows.y)
    codes = np.where(np.arange(len(rows.y)) % 11 == 0, 0, 1 + order[ranks]).astype(np.int32)[:, np.newaxis]
    return Sample(Table(rows.table.numeric[:, 1:], codes, (n_levels + 1,), ("b", "c", "d"), ("e",)), rows.y)


def test_an_intercept_alone_is_an_answer() -> None:
    train = numbers(Task.REGRESSION)
    model = fitted(replace(train, y=np.full(240, 7.0)), Task.REGRESSION)
    np.testing.assert_allclose(one_by_one(model, train.table.rows(np.arange(3))), 7.0, atol=1e-5)


def test_a_value_at_the_threshold_keeps_its_side() -> None:
    x = np.repeat(np.float32([1.0, np.nextafter(np.float32(1), np.float32(2)), 2.0]), 80)[:, np.newaxis]
    train = Sample(Table(x, NO_CODES, (), ("a",), ()), (x[:, 0] > 1).astype(np.float64))
    model = fitted(train, Task.REGRESSION)
    np.testing.assert_allclose(one_by_one(model, train.table), model.predict(train.table), atol=1e-5)


def test_nodes_in_any_order_come_to_stand_depth_first() -> None:
    """Two trees, the second one a leaf; the first has its nodes behind its children, and one that no root leads to."""
    trees = Trees.from_children(
        roots=np.array([3, 5]),
        feature=np.array([0, 0, 0, 0, 1, 0, 0]),
        threshold=np.float32([0, 0, 0, 0.5, 1.5, 0, 0]),
        left=np.array([-1, -1, -1, 4, 0, -1, -1]),
        right=np.array([-1, -1, -1, 2, 1, -1, -1]),
        missing_left=np.array([False, False, False, True, False, False, False]),
    )
    assert len(trees.steps) == 6
    X = np.float32([[0, 1], [0, 2], [1, 0], [np.nan, 0], [np.nan, np.nan]])
    assert trees.answers(X).reshape(5, 2).tolist() == [[0, 5], [1, 5], [2, 5], [0, 5], [1, 5]]
    again = Trees.from_arrays(**trees.arrays())
    assert np.array_equal(again.answers(X), trees.answers(X))
