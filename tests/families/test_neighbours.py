"""The neighbours that are asked are the nearest ones, rows are bounded, and one row is quick."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from factory import plugins
from factory.data.preparation import Table
from factory.families import neighbours
from factory.families.base import Family, FitContext, Model, Sample
from factory.spec import Task


def _numbers(n_rows: int, n_columns: int, *, seed: int = 0) -> Sample:
    random = np.random.default_rng(seed)
    X = random.normal(size=(n_rows, n_columns)).astype(np.float32)
    names = tuple(f"x{j}" for j in range(n_columns))
    return Sample(Table(X, np.empty((n_rows, 0), np.int32), (), names, ()), X[:, 0] + random.normal(size=n_rows))


def _fit(train: Sample, **parameters: int | str) -> Model:
    family = plugins.load("families", "neighbours")
    assert isinstance(family, Family)
    context = FitContext(task=Task.REGRESSION, n_classes=0, seed=0)
    return family.fit(train, validation=None, parameters=dict(parameters), context=context)


@pytest.mark.parametrize(("votes", "weights"), [("distance", "distance"), ("equal", "uniform")])
def test_equals_scikit_learn(votes: str, weights: str) -> None:
    train, fresh = _numbers(500, 5), _numbers(100, 5, seed=1)
    X = train.table.numeric
    mean, spread = X.mean(axis=0), X.std(axis=0)
    reference = KNeighborsRegressor(7, weights=weights).fit((X - mean) / spread, train.y)
    expected = reference.predict((fresh.table.numeric - mean) / spread)
    np.testing.assert_allclose(_fit(train, k=7, votes=votes).predict(fresh.table), expected, rtol=1e-4, atol=1e-4)


def test_an_equal_row_decides() -> None:
    train = _numbers(500, 5)
    model = _fit(train, k=7, votes="distance")
    np.testing.assert_allclose(model.predict(train.table), train.y, rtol=1e-3, atol=1e-3)


def test_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_ROWS", 300)
    train = _numbers(2_000, 5)
    _fit(train, k=15, votes="distance").save(tmp_path)
    with np.load(tmp_path / neighbours.FILE, allow_pickle=False) as stored:
        assert stored["X"].shape == (300, 5)
