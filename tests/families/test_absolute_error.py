"""Families that learn medians where a metric asks for the least absolute error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factory import plugins
from factory.data.preparation import Table
from factory.data.target import weighted_median
from factory.families.base import Family, FitContext, Loss, Model, Sample, Shape
from factory.spec import Task

FAMILIES = [name for name in plugins.names("families") if plugins.load("families", name).learns_medians]
MEDIAN, MEAN = np.log(2), 1.0
"""Of the noise."""
WHAT_FITS_SHORTLY = {"learning_rate": 0.1, "epochs": 40, "batch_size": 64}


def rows(n_rows: int, seed: int) -> tuple[Sample, np.ndarray]:
    """Return rows whose noise is exponential, and their targets without it, (n_rows,)."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(n_rows, 3)).astype(np.float32)
    codes = rng.integers(0, 3, (n_rows, 1)).astype(np.int32)
    signal = numeric[:, 0] + np.where(codes[:, 0] == 1, 2.0, 0.0)
    table = Table(numeric, codes, (3,), ("a", "b", "c"), ("d",))
    return Sample(table, signal + rng.exponential(MEAN, n_rows)), signal


def fitted(family: Family, loss: Loss, **others: object) -> Model:
    shape = Shape(n_rows=1_500, n_columns=4, n_categorical=1, most_levels=3)
    parameters = dict(family.portfolio(Task.REGRESSION, shape=shape)[0].parameters)
    parameters |= {name: value for name, value in {**WHAT_FITS_SHORTLY, **others}.items() if name in parameters}
    context = FitContext(Task.REGRESSION, 0, seed=3, loss=loss)
    train, validation = rows(1_500, 0)[0], rows(500, 1)[0]
    return family.fit(train, validation=validation, parameters=parameters, context=context)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_median_is_learned_and_kept(name: str, tmp_path: Path) -> None:
    family = plugins.load("families", name)
    unseen, signal = rows(1_000, 2)
    models = {loss: fitted(family, loss) for loss in ("squared", "absolute")}
    middles = {loss: float(np.mean(model.predict(unseen.table) - signal)) for loss, model in models.items()}
    assert middles["absolute"] == pytest.approx(MEDIAN, abs=0.12)
    assert middles["squared"] == pytest.approx(MEAN, abs=0.12)
    errors = {loss: np.abs(model.predict(unseen.table) - unseen.y).mean() for loss, model in models.items()}
    assert errors["absolute"] < errors["squared"]
    models["absolute"].save(tmp_path)
    loaded = family.load(tmp_path)
    for some in (unseen.table, unseen.table.rows(np.arange(1)), unseen.table.rows(np.arange(3))):
        np.testing.assert_allclose(loaded.predict(some), models["absolute"].predict(some), rtol=1e-6)


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "catboost"])
def test_boosters_of_medians_are_merged_and_go_on(name: str) -> None:
    family = plugins.load("families", name)
    model, unseen = fitted(family, "absolute", one_hot_max_size=16), rows(200, 2)[0]
    merged = family.merge([model, model])
    assert merged is not None
    np.testing.assert_allclose(merged.predict(unseen.table), model.predict(unseen.table), rtol=1e-5, atol=1e-6)
    later = rows(1_500, 4)[0]
    shifted = replace(later, y=later.y + 3)
    parameters = dict(family.portfolio(Task.REGRESSION, shape=Shape(n_rows=1_500, n_columns=4))[0].parameters)
    parameters |= {"learning_rate": 0.1}
    context = FitContext(Task.REGRESSION, 0, seed=3, rounds=60, loss="absolute")
    further = family.resume(model, shifted, validation=None, parameters=parameters, context=context)
    assert further is not None
    assert np.mean(further.predict(unseen.table) - model.predict(unseen.table)) == pytest.approx(3, abs=0.4)


def test_the_median_of_weighted_numbers() -> None:
    values = np.array([5.0, 1.0, 3.0, 2.0])
    assert weighted_median(values, None) == 2.5
    assert weighted_median(values, np.array([9.0, 1.0, 1.0, 1.0])) == 5
    assert weighted_median(values, np.array([0.1, 1.0, 0.2, 1.5])) == 2
