"""A forest kept as arrays answers what scikit-learn's own trees answer, missing values included."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

from factory import plugins
from factory.data.preparation import Table
from factory.families.base import Family, FitContext, Sample
from factory.spec import Task
from factory.testing.rows import N_CLASSES, sample

PARAMETERS = {"trees": 50, "max_features": 0.7, "min_samples_leaf": 1}


@pytest.mark.parametrize("task", list(Task), ids=str)
def test_equals_scikit_learn(task: Task, tmp_path: Path) -> None:
    family = plugins.load("families", "extra_trees")
    assert isinstance(family, Family)
    train, rows = sample(task), sample(task, seed=2).table
    context = FitContext(task=task, n_classes=N_CLASSES[task], seed=3)
    family.fit(train, validation=None, parameters=PARAMETERS, context=context).save(tmp_path)
    kind = ExtraTreesRegressor if task is Task.REGRESSION else ExtraTreesClassifier
    shift, scale = (train.y.mean(), train.y.std()) if task is Task.REGRESSION else (0, 1)
    reference = kind(50, max_features=0.7, random_state=3).fit(_columns(train.table), (train.y - shift) / scale)
    answer = reference.predict if task is Task.REGRESSION else reference.predict_proba
    expected = answer(_columns(rows)) * scale + shift
    if task is not Task.REGRESSION:
        # One tree's worth of an even guess is mixed into the 50 trees' answers.
        expected = (50 * expected + 1 / N_CLASSES[task]) / 51
    np.testing.assert_allclose(family.load(tmp_path).predict(rows), expected, atol=1e-6)


def test_threshold_between_two_floats_keeps_its_side() -> None:
    family = plugins.load("families", "extra_trees")
    assert isinstance(family, Family)
    x = np.nextafter(np.float32(4), np.float32(5), dtype=np.float32)
    numeric = np.tile(np.array([[4.0], [x]], np.float32), (20, 1))
    table = Table(numeric, np.empty((40, 0), np.int32), (), ("a",), ())
    y = (numeric[:, 0] > 4).astype(np.float64)
    context = FitContext(task=Task.REGRESSION, n_classes=0, seed=0)
    model = family.fit(Sample(table, y), validation=None, parameters=PARAMETERS, context=context)
    np.testing.assert_allclose(model.predict(table), y, atol=1e-6)


def _columns(table: Table) -> np.ndarray:
    return np.concatenate([table.numeric, table.codes], axis=1, dtype=np.float32)
