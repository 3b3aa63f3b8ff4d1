"""Rows of a parent and of its child: what splits them stays with them, and judges what was forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from factory.data.dataset import Dataset
from factory.search.metric import Metric
from factory.spec import ColumnType, Task
from factory.variants.appraisal import Memory, _remembered
from factory.variants.origin import _like, lowered
from tests.search.conftest import make_test_plan

from .conftest import Made


def with_shops(dataset: Dataset) -> Dataset:
    """Return rows with a feature that the bundle does not know: twenty shops."""
    frame = dataset.frame.assign(shop=[f"shop {i % 20}" for i in range(len(dataset))])
    return replace(dataset, frame=frame, types=dataset.types | {"shop": ColumnType.CATEGORICAL})


def test_what_a_bundle_does_not_know_is_still_there_to_split_by(made: Made) -> None:
    rows = _like(with_shops(made.dataset), made.bundle)
    assert list(rows.frame) == list(rows.types) == [column.name for column in made.bundle.columns]
    assert rows.column("shop")[21] == "shop 1"
    few = rows.take(np.array([3, 4]))
    assert few.column("shop").tolist() == ["shop 3", "shop 4"]


def test_what_was_forgotten_is_judged_by_whole_groups(regression: Made) -> None:
    rows = _like(with_shops(regression.test), regression.bundle)
    shop = np.arange(len(rows)) % 20
    known = regression.bundle.predict_raw(rows.frame) + np.random.default_rng(0).normal(0, 30, 20)[shop]
    memory = Memory(rows, known, "rows")
    kinds = ({"kind": "holdout"}, {"kind": "group", "column": "shop"}, {"kind": "group", "column": "gone"})
    random, groups, gone = (
        _remembered(memory, regression.bundle, make_test_plan("linear", task=Task.REGRESSION, validation=kind))
        for kind in kinds
    )
    assert random is not None
    assert groups is not None
    assert groups.difference == pytest.approx(random.difference)
    assert groups.high - groups.low > 1.2 * (random.high - random.low)
    assert gone == random, "rows of a parent that was validated otherwise"


@pytest.mark.parametrize(
    ("name", "theirs", "floor"),
    [
        ("neg_mean_poisson_deviance", 0.5, 0.5),
        ("neg_mean_poisson_deviance", 7.0, 3.0),
        ("neg_mean_poisson_deviance", None, 3.0),
        ("neg_mean_gamma_deviance", 0.0, 3.0),
        ("neg_root_mean_squared_log_error", 0.0, 0.0),
        ("r2", 0.5, None),
    ],
    ids=["lower", "higher", "none", "outside of what the metric is defined for", "at its bound", "no bound"],
)
def test_a_variant_that_is_trained_on_keeps_the_lower_floor(
    name: str, theirs: float | None, floor: float | None
) -> None:
    metric = Metric.of(name, Task.REGRESSION).on(np.array([3.0, 4.0]), seen=np.arange(2), target="sold")
    assert lowered(metric, theirs).floor == floor
