"""When a booster stops, which round it keeps, and when it starts again faster."""

import time

from factory.families._boosting import HIGHEST_RATE, Progress
from factory.families.base import Deadline, FitContext
from factory.spec import Task


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
