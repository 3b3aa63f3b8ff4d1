from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factory.families._head import Head, TargetScale
from factory.families.base import FitContext
from factory.spec import Task

REGRESSION = FitContext(Task.REGRESSION, 0, seed=0)
Y = np.array([0.0, 1.0, 3.0, 250.0, 8e4])


@pytest.mark.parametrize("target_scale", ["raw", "sqrt", "log"])
def test_targets_come_back_from_every_scale(target_scale: TargetScale, tmp_path: Path) -> None:
    head = replace(Head.of(Y, replace(REGRESSION, target_scale=target_scale)), rounds=7)
    encoded = head.encode(Y)
    assert (encoded.mean(), encoded.std()) == pytest.approx((0, 1))
    assert np.allclose(head.decode(encoded), Y)
    head.save(tmp_path)
    assert Head.load(tmp_path) == head


@pytest.mark.parametrize("target_scale", ["sqrt", "log"])
def test_a_wild_answer_stays_finite_and_is_never_negative(target_scale: TargetScale) -> None:
    head = Head.of(Y, replace(REGRESSION, target_scale=target_scale))
    low, high = head.decode(np.array([-1e9, 1e9]))
    assert low == 0
    assert Y.max() < high < 1e9
    assert np.isfinite(head.encode(np.array([-5.0]))).all(), "a negative validation target"


def test_negative_targets_are_learned_as_they_are() -> None:
    assert Head.of(np.array([-1.0, 2.0]), replace(REGRESSION, target_scale="log")).target_scale == "raw"


def test_a_head_from_before_scales_is_read(tmp_path: Path) -> None:
    old = {"task": "regression", "n_classes": 0, "shift": 2.0, "scale": 3.0, "rounds": 4}
    (tmp_path / "head.json").write_text(json.dumps(old))
    assert Head.load(tmp_path).decode(np.array([1.0])).tolist() == [5.0]


def test_classes_have_no_scale() -> None:
    head = Head.of(np.array([0, 1]), replace(REGRESSION, task=Task.BINARY, n_classes=2, target_scale="log"))
    assert (head.target_scale, head.encode(np.array([0, 1])).tolist()) == ("raw", [0, 1])
