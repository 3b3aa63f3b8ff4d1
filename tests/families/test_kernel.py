"""A kernel machine answers smoothly where the classes bend, and like the exact one where all rows are landmarks."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import log_loss

from factory import plugins
from factory.data.preparation import Table
from factory.families import kernel
from factory.families.base import Family, FitContext, Model, Sample
from factory.families.kernel import _with_ones
from factory.spec import Task


def _sample(X: np.ndarray, y: np.ndarray) -> Sample:
    names = tuple(f"x{j}" for j in range(X.shape[1]))
    return Sample(Table(X.astype(np.float32), np.empty((len(X), 0), np.int32), (), names, ()), y)


def _fit(train: Sample, context: FitContext, *, validation: Sample | None = None, landmarks: int = 600) -> Model:
    family = plugins.load("families", "kernel")
    assert isinstance(family, Family)
    return family.fit(train, validation=validation, parameters={"landmarks": landmarks, "width": 1.0}, context=context)


def test_equals_kernel_ridge_where_all_rows_are_landmarks() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 4))
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2
    train = _sample(X, y)
    model = _fit(train, FitContext(task=Task.REGRESSION, n_classes=0, seed=0, rounds=5), landmarks=300)
    C = 10 ** (-3 + 4 / 2)
    squares = ((train.table.numeric[:, np.newaxis] - train.table.numeric) ** 2).sum(axis=2)
    gamma = 1 / np.median(squares[squares > kernel.ALIKE])
    z = (y - y.mean()) / y.std()
    # The intercept is free in ours: it takes the mean of the features, which kernel ridge does not; so take it out.
    near = np.exp(-gamma * squares)
    middle = np.eye(300) - 1 / 300
    dual = np.linalg.solve(middle @ near @ middle * kernel.STRETCH**2 + np.eye(300) / C, z)
    expected = middle @ near @ middle @ dual * kernel.STRETCH**2
    np.testing.assert_allclose(model.predict(train.table), expected * y.std() + y.mean(), atol=2e-3)
    rough = KernelRidge(kernel="rbf", gamma=gamma, alpha=1 / (C * kernel.STRETCH**2)).fit(train.table.numeric, z)
    assert np.corrcoef(rough.predict(train.table.numeric), expected)[0, 1] > 0.99


def test_tells_digits_apart() -> None:
    X, y = load_digits(return_X_y=True)
    parts = np.split(np.random.default_rng(0).permutation(len(X)), [1000, 1200])
    train, validation, fresh = (_sample(X[rows], y[rows]) for rows in parts)
    model = _fit(train, FitContext(task=Task.MULTICLASS, n_classes=10, seed=0), validation=validation)
    assert log_loss(fresh.y, model.predict(fresh.table)) < 0.1


def test_rows_that_are_all_alike_have_one_answer() -> None:
    model = _fit(
        _sample(np.ones((40, 3)), np.arange(40) % 2), FitContext(task=Task.BINARY, n_classes=2, seed=0, rounds=3)
    )
    np.testing.assert_allclose(model.predict(_sample(np.ones((2, 3)), np.zeros(2)).table), 0.5, atol=1e-6)


def test_rows_are_answered_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _sample(np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2)
    model = _fit(rows, FitContext(task=Task.BINARY, n_classes=2, seed=0, rounds=3))
    whole = model.predict(rows.table)
    monkeypatch.setattr(kernel, "BATCH_CELLS", 50 * 7)
    np.testing.assert_allclose(model.predict(rows.table), whole, atol=1e-6)
    assert model.predict(rows.table.rows(np.arange(0))).shape == (0, 2)


def test_many_rows_to_stop_by_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MOST_CELLS", 0)
    random = np.random.default_rng(0)
    X = random.normal(size=(2_000, 2))
    train, validation = (_sample(part, (part[:, 0] > 0).astype(np.int64)) for part in (X[:200], X[200:]))
    looked_at: list[int] = []
    monkeypatch.setattr(kernel, "_with_ones", lambda Z: looked_at.append(len(Z)) or _with_ones(Z))
    _fit(train, FitContext(task=Task.BINARY, n_classes=2, seed=0), validation=validation)
    assert looked_at == [200, 250]
