"""When a booster stops, which round it keeps, and when it starts again faster."""

import pickle
import time
from pathlib import Path

import catboost
import numpy as np
import pytest

from factory import plugins
from factory.families import _boosting
from factory.families._boosting import HIGHEST_RATE, Progress
from factory.families.base import Deadline, Family, FitContext, Shape
from factory.families.lightgbm import LightGBMModel
from factory.spec import Task
from factory.testing.rows import sample


def _progress(*, rate: float = 0.1, rounds: int | None = None, deadline: Deadline | None = None) -> Progress:
    context = FitContext(Task.REGRESSION, 0, 0, rounds=rounds, deadline=deadline or Deadline())
    return Progress(context, learning_rate=rate, n_rows=1_000, validated=True, may_raise=True)


def test_best_round_is_kept_when_patience_ends() -> None:
    progress = _progress()
    while progress.going:
        progress.record(train=0.0, validation=abs(progress.done - 40) / 40)
    assert progress.best == 41
    assert progress.done == 41 + 100


def test_best_round_is_kept_when_the_deadline_comes() -> None:
    progress = _progress(deadline=Deadline.after(-1))
    losses = iter([3.0, 1.0, 2.0])
    for loss in losses:
        progress.record(train=None, validation=loss)
    assert not progress.going
    assert progress.best == 2


def test_curve_is_thinned() -> None:
    progress = _progress(rate=0.005)
    while progress.going:
        progress.record(train=0.0, validation=1 / (1 + progress.done))
    assert progress.done == 10_000
    assert 100 < len(progress.points) <= 200
    assert [p.step for p in progress.points[:31]] == list(range(1, 32))


def test_one_round_that_was_held_up_raises_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 0.01, 0.02, 9.0, 9.01, 9.02, 9.03, 9.04, 9.05, 9.06])
    monkeypatch.setattr(_boosting.time, "perf_counter", lambda: next(moments))
    progress = _progress(deadline=Deadline.after(60))
    for _ in range(10):
        progress.record(train=None, validation=1.0)
    assert progress.raised_rate is None
    assert progress.going


def test_points_of_the_curve_wait_for_losses_that_are_measured() -> None:
    progress = _progress()
    for step in range(1, 101):
        last = step - (step - 1) % 10
        progress.record(train=0.0, validation=1 / last, measured=step == last)
    assert [p.step for p in progress.points] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    assert [p.validation for p in progress.points] == [1 / p.step for p in progress.points]
    assert progress.best == 91


def test_rate_is_raised_only_where_the_rounds_left_are_too_few() -> None:
    near, far, fixed = (
        _progress(deadline=Deadline.after(1.0)),
        _progress(deadline=Deadline.after(3_600)),
        _progress(rounds=1_000, deadline=Deadline.after(1.0)),
    )
    for _ in range(10):
        time.sleep(0.02)
        for progress in (near, far, fixed):
            progress.record(train=None, validation=1.0)
    assert near.raised_rate is not None
    assert 0.1 < near.raised_rate <= HIGHEST_RATE
    assert not near.going
    assert far.raised_rate is None
    assert fixed.raised_rate is None


def test_catboost_that_does_not_let_itself_be_cut_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one column many trees have no split, which it counted once and not another time (odd_tables: 2 columns)."""
    kind = plugins.load("families", "catboost")
    assert isinstance(kind, Family)
    rows, held_out = sample(Task.REGRESSION), sample(Task.REGRESSION, seed=1)
    parameters = kind.portfolio(Task.REGRESSION, shape=Shape(len(rows)))[0].parameters

    def fitted() -> np.ndarray:
        context = FitContext(Task.REGRESSION, 0, 0)
        return kind.fit(rows, validation=held_out, parameters=parameters, context=context).predict(held_out.table)

    cut = fitted()

    def refuse(*_: object, **__: object) -> None:
        raise catboost.CatBoostError("end tree index should be not greater than tree count.")

    monkeypatch.setattr(catboost.CatBoost, "shrink", refuse)
    np.testing.assert_allclose(fitted(), cut, rtol=1e-6)


@pytest.mark.parametrize("task", Task)
def test_lightgbm_answers_a_single_row_as_it_answers_many(task: Task, tmp_path: Path) -> None:
    train, kind = sample(task, n_rows=400), plugins.load("families", "lightgbm")
    n_classes = {Task.REGRESSION: 0, Task.BINARY: 2, Task.MULTICLASS: 3}[task]
    parameters = kind.portfolio(task, shape=Shape(400, 4, 2, 8, n_classes))[0].parameters
    fitted = kind.fit(train, validation=None, parameters=parameters, context=FitContext(task, n_classes, 0, rounds=20))
    fitted.save(tmp_path)
    together = fitted.predict(train.table)
    for model in (fitted, kind.load(tmp_path), pickle.loads(pickle.dumps(fitted))):
        alone = np.concatenate([model.predict(train.table.rows(np.array([i]))) for i in range(40)])
        assert np.array_equal(alone, together[:40])
        assert isinstance(model, LightGBMModel)
        assert model._row is not None
    assert pickle.loads(pickle.dumps(fitted))._row is None
