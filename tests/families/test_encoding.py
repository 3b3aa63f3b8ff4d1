"""Means in place of levels: never from a row's own target, only where levels are many, and the same after loading."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factory import plugins
from factory.data.dense import DenseEncoder
from factory.data.preparation import Table
from factory.families._dense_inputs import DenseInputs
from factory.families._encoding import (
    INNER_FOLDS,
    MOST_MEANS,
    MOST_TARGETS,
    SMOOTHING,
    Inputs,
    TargetEncoding,
    _inner_folds,
)
from factory.families._forest import ForestModel
from factory.families._head import Head
from factory.families._mlp import NetworkModel
from factory.families.base import Family, FitContext, Model, Sample, Shape
from factory.families.kernel import KernelModel
from factory.families.linear import LinearModel
from factory.families.neighbours import NeighboursModel
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


def _grouped(rows: Sample, *, n_groups: int = 40, seed: int = 3) -> Sample:
    """Rows of groups, with an effect of each; the many levels are these groups."""
    random = np.random.default_rng(seed)
    group = random.integers(0, n_groups, len(rows))
    codes = rows.table.codes.copy()
    codes[:, 1] = group + 1
    y = rows.y + random.normal(size=n_groups)[group]
    return replace(rows, table=replace(rows.table, codes=codes), y=y, group=group + 7)


def test_no_row_sees_the_targets_of_its_own_group() -> None:
    """The means that training rows see may not tell more than those that rows of new groups do."""
    rows = _grouped(_rows())
    encoding, seen = _encoding(rows)
    assert np.ptp(seen.numeric[:, 0]) == 0, "levels that are groups tell nothing of a group that nobody has seen"
    assert seen.numeric[0, 0] == encoding.values[0, 0] == pytest.approx(rows.y.mean(), rel=1e-5)
    assert np.ptp(encoding.values[1:41, 0]) > 1, "those of known groups do"
    _, alone = _encoding(replace(rows, group=None))
    assert np.ptp(alone.numeric[:, 0]) > 1


def test_levels_that_groups_share_are_means_of_other_groups() -> None:
    rows = _rows()
    group = np.random.default_rng(3).integers(0, 40, N)
    _, before = _encoding(replace(rows, group=group))
    mine = group == 5
    raised = rows.y + 100.0 * mine
    _, after = _encoding(replace(rows, y=raised, group=group))
    overall = 100.0 * mine.mean() + 1e-3
    change = after.numeric[:, 0] - before.numeric[:, 0]
    assert (change[mine] <= overall).all(), "what all rows see of the overall mean, at most"
    assert change[~mine].max() > 2 * overall


def test_inner_folds_of_groups_are_whole_and_about_as_large() -> None:
    group = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 40, 60))
    sample = Sample(_rows().table.rows(np.arange(len(group)) % N), np.zeros(len(group)), None, group)
    fold, whole = _inner_folds(sample, 0)
    assert whole
    assert all(len(set(fold[group == g])) == 1 for g in range(60))
    assert np.bincount(fold) == pytest.approx(len(group) / INNER_FOLDS, rel=0.1)
    fold, whole = _inner_folds(replace(sample, group=np.zeros(len(group), dtype=np.int64)), 0)
    assert not whole, "one group cannot be left out"
    assert np.ptp(np.bincount(fold)) <= 1


def test_rows_keep_their_groups() -> None:
    rows = _grouped(_rows()).rows(np.array([4, 2]))
    assert rows.group is not None
    assert rows.group.tolist() == (rows.table.codes[:, 1] + 6).tolist()


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


# --- families beside the boosters -------------------------------------------------------------------

N_CLASSES = {Task.REGRESSION: 0, Task.BINARY: 2, Task.MULTICLASS: 3}
FORESTS = ["extra_trees", "random_forest"]
DENSE = ["kernel", "linear", "neighbours"]
TREES = {"categoricals": "target", "trees": 50, "max_features": 0.7, "min_samples_leaf": 1}


def _fitted(name: str, task: Task, train: Sample, *, seed: int = 3) -> tuple[Family, Model]:
    family = plugins.load("families", name)
    assert isinstance(family, Family)
    first = family.portfolio(task, shape=Shape(N, 4, 2, LEVELS, N_CLASSES[task]))[0].parameters
    context = FitContext(task=task, n_classes=N_CLASSES[task], seed=seed)
    parameters = TREES if name in FORESTS else first
    return family, family.fit(train, validation=None, parameters=parameters, context=context)


@pytest.mark.parametrize("task", list(Task), ids=str)
@pytest.mark.parametrize("name", [*DENSE, *FORESTS])
def test_many_levels_are_learned_without_their_order(name: str, task: Task, tmp_path: Path) -> None:
    train, fresh = _rows(task), _rows(task, seed=1)
    family, model = _fitted(name, task, train)
    answer = model.predict(fresh.table)
    if task is Task.REGRESSION:
        assert np.corrcoef(answer, fresh.y)[0, 1] > 0.7
    else:
        assert (answer.argmax(axis=1) == fresh.y).mean() > (0.6 if task is Task.MULTICLASS else 0.7)
    model.save(tmp_path)
    np.testing.assert_allclose(family.load(tmp_path).predict(fresh.table), answer, rtol=1e-6, atol=1e-6)
    one = fresh.table.rows(np.array([5]))
    np.testing.assert_allclose(model.predict(one)[0], answer[5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*DENSE, *FORESTS])
def test_levels_never_seen_are_as_the_whole(name: str) -> None:
    """Levels that training lacks answer alike, whichever they are, and as a missing one does."""
    train = _rows()
    low = replace(train.table, codes=np.where(train.table.codes > 200, train.table.codes - 100, train.table.codes))
    _, model = _fitted(name, Task.REGRESSION, replace(train, table=low))
    means = _means(model)
    np.testing.assert_array_equal(means[201:], np.full_like(means[201:], means[0, 0]))


def _means(model: Model) -> np.ndarray:
    encoding = model.encoding if isinstance(model, ForestModel) else _inputs(model).encoding
    assert encoding is not None
    return encoding.values


def _inputs(model: Model) -> DenseInputs:
    if isinstance(model, NetworkModel):
        return model.inputs
    assert isinstance(model, KernelModel | LinearModel | NeighboursModel)
    return model._inputs


def test_a_neighbour_does_not_know_its_own_target_by_its_level() -> None:
    rows = _rows()
    _, before = _fitted("neighbours", Task.REGRESSION, rows)
    y = rows.y.copy()
    y[17], y[18] = y[18], y[17]  # the scale of the target stays
    _, after = _fitted("neighbours", Task.REGRESSION, replace(rows, y=y))
    assert isinstance(before, NeighboursModel)
    assert isinstance(after, NeighboursModel)
    apart = np.abs(before._X - after._X).max(axis=1)
    assert apart[17] < 0.05 < apart.max()


def test_dense_inputs_from_before_target_means_are_read(tmp_path: Path) -> None:
    rows = _rows()
    few = replace(rows.table, codes=rows.table.codes[:, :1], levels=rows.table.levels[:1], categorical_names=("few",))
    by_level = np.random.default_rng(0).normal(size=(LEVELS, 2)).astype(np.float32)
    many = {"many": np.array([1]), "starts": np.array([0]), "values": by_level}
    frequencies = DenseInputs(DenseEncoder.from_arrays(DenseEncoder.fit(few).arrays() | many))
    n_columns = frequencies.encoder.n_columns
    head = Head.of(rows.y, FitContext(task=Task.REGRESSION, n_classes=0, seed=0))
    model = LinearModel(frequencies, None, np.arange(n_columns + 1.0)[:, np.newaxis], head)
    model.save(tmp_path)
    with np.load(tmp_path / "linear.npz") as stored:
        assert not any(name.startswith("means") for name in stored.files)
    family = plugins.load("families", "linear")
    assert isinstance(family, Family)
    np.testing.assert_array_equal(family.load(tmp_path).predict(rows.table), model.predict(rows.table))


def test_an_encoding_from_before_codes_could_stay_is_read(tmp_path: Path) -> None:
    encoding, _ = _encoding(_rows())
    stored = encoding.arrays()
    del stored["keeps"]
    np.savez(tmp_path / "inputs.npz", crosses=np.array(True), **stored)
    found = Inputs.load(tmp_path).encoding
    assert found is not None
    assert not found.keeps
    np.testing.assert_array_equal(found.transform(_rows().table).numeric, encoding.transform(_rows().table).numeric)


@pytest.mark.parametrize("task", list(Task), ids=str)
@pytest.mark.parametrize("name", FORESTS)
def test_merged_forests_keep_the_means_that_each_grew_on(name: str, task: Task, tmp_path: Path) -> None:
    rows = _rows(task)
    halves = [rows.rows(np.arange(N) % 2 == k) for k in range(2)]
    fitted = [_fitted(name, task, half, seed=k) for k, half in enumerate(halves)]
    family, models = fitted[0][0], [model for _, model in fitted]
    merged = family.merge(models)
    assert isinstance(merged, ForestModel)
    fresh = _rows(task, seed=1).table
    expected = np.mean([model.predict(fresh) for model in models], axis=0)
    np.testing.assert_allclose(merged.predict(fresh), expected, atol=1e-5)
    merged.save(tmp_path)
    np.testing.assert_allclose(family.load(tmp_path).predict(fresh), expected, atol=1e-5)
    again = family.merge([merged, models[0]])
    assert again is not None, "what was merged may be merged again"


def test_means_are_bounded_in_number() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 20, (N, 30)).astype(np.int32)
    table = Table(np.zeros((N, 1), np.float32), codes, (20,) * 30, ("a",), tuple(f"c{j}" for j in range(30)))
    encoding, seen = _encoding(Sample(table, random.integers(0, 9, N)), 9)
    assert encoding.n_means == seen.numeric.shape[1] - 1 == 30
    assert 30 <= MOST_MEANS < 60


def test_a_network_goes_on_with_the_means_that_it_was_trained_on(tmp_path: Path) -> None:
    family = plugins.load("families", "tabm")
    assert isinstance(family, Family)
    shape = Shape(N, 4, 2, LEVELS)
    on_codes, on_means, *_ = (bet.parameters for bet in family.portfolio(Task.REGRESSION, shape=shape))
    assert (on_codes["categoricals"], on_means["categoricals"]) == ("native", "target")
    rows, fresh = _rows(), _rows(seed=1)
    context = FitContext(task=Task.REGRESSION, n_classes=0, seed=0, rounds=10)
    model = family.fit(rows, validation=None, parameters={**on_means, "width": 32}, context=context)
    assert isinstance(model, NetworkModel)
    assert model.architecture.embedded == ()
    answer = model.predict(fresh.table)
    assert np.corrcoef(answer, fresh.y)[0, 1] > 0.7
    model.save(tmp_path)
    np.testing.assert_allclose(family.load(tmp_path).predict(fresh.table), answer, rtol=1e-5, atol=1e-5)
    tuned = family.resume(model, fresh, validation=None, parameters=on_means, context=context)
    assert isinstance(tuned, NetworkModel)
    np.testing.assert_array_equal(_means(tuned), _means(model))


def test_a_network_bets_on_means_where_a_level_has_few_rows() -> None:
    family = plugins.load("families", "tabm")
    assert isinstance(family, Family)

    def chosen(shape: Shape) -> list[object]:
        return [bet.parameters["categoricals"] for bet in family.portfolio(Task.BINARY, shape=shape)]

    assert chosen(Shape(10_000, 4, 2, 2_000)) == ["native", "target", "native"]
    assert chosen(Shape(100_000, 4, 2, 2_000)) == ["native", "native"]
    assert chosen(Shape(100, 4, 2, 30)) == ["native", "native"]


@pytest.mark.parametrize("name", FORESTS)
def test_a_forest_bets_on_means_first_where_levels_are_many(name: str) -> None:
    family = plugins.load("families", name)
    assert isinstance(family, Family)
    for task in Task:
        many = family.portfolio(task, shape=Shape(N, 4, 2, 11))
        assert many[0].parameters["categoricals"] == "target"
        assert {bet.parameters["categoricals"] for bet in many} == {"native", "target"}
        rare = family.portfolio(task, shape=Shape(N, 4, 2, N // 4))
        assert [bet.parameters["categoricals"] for bet in rare if bet.rank == many[0].rank] == ["native"]
        assert {bet.parameters["categoricals"] for bet in rare} == {"native", "target"}
        few = family.portfolio(task, shape=Shape(N, 4, 2, 10))
        assert {bet.parameters["categoricals"] for bet in few} == {"native"}
