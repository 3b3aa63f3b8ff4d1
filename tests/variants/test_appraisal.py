"""A finished search becomes a judged variant; its score's promise is that of its validation's kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.families.base import Deadline
from factory.search.engine import search
from factory.search.metric import Metric
from factory.search.splits import set_aside
from factory.settings import Settings
from factory.spec import Task, Trial
from factory.variants import appraisal
from factory.variants.appraisal import Appraisal, appraise, constant_baseline
from factory.variants.resampling import Dependence
from factory.variants.settled import LENT_FROM
from tests.search.conftest import make_data, make_dataset, make_test_plan


def delivered(folder: Path, task: Task, validation: dict[str, Any]) -> Appraisal:
    dataset = make_dataset(task, n_rows=500)
    plan = make_test_plan(
        "constant", "linear", task=task, budget={"time_s": 60, "trials": 2}, validation=validation,
        dataset={"path": "made.parquet", "target": "flag" if task is Task.BINARY else "amount"},
    )  # fmt: skip
    rows = set_aside(dataset, plan.validation)
    seen, unseen = dataset.take(rows.train), dataset.take(rows.validation)
    data = make_data(folder, dataset=seen, plan=plan)
    left = Deadline.after(15)
    settings = Settings(home=folder)
    result = search(plan, data, ray=None, settings=settings, history=(), deadline=left, record=lambda _: None)
    lent = [trial.model_copy(update={"number": LENT_FROM + trial.number}) for trial in result.trials]
    result = replace(result, trials=(*result.trials, *lent))
    return appraise(
        result,
        plan=plan,
        data=data,
        unseen=unseen,
        baseline=constant_baseline(seen, unseen, plan.metric),
        findings=(),
        ignored=(),
        metadata={},
        folder=folder / "bundle",
        deadline=left,
    )


@pytest.mark.parametrize("task", [Task.BINARY, Task.REGRESSION], ids=str)
def test_score_of_rows_in_order_of_time_is_promised_for_the_next_window(tmp_path: Path, task: Task) -> None:
    found = delivered(tmp_path, task, {"kind": "time", "column": "day"})
    window, score = found.evaluation.next_window, found.evaluation.score
    assert window is not None
    assert (window.n_rows, window.days) == (100, 99.0)
    assert len(window.scores) == 4, "eighty validation rows and a hundred of the gate, about fifty each"
    assert np.isfinite(window.scores).all()
    assert score.low <= window.resampled.low < score.value < window.resampled.high <= score.high
    assert score.high - score.low > window.resampled.high - window.resampled.low
    assert "next window of about 100 rows (99 days); further ahead is not promised." in found.verdict.sentence


def test_rows_of_a_group_are_drawn_together_wherever_a_variant_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    of = Dependence.drawn
    monkeypatch.setattr(
        Dependence, "drawn", lambda self, generator: drawn.append(len(self.unit)) or of(self, generator)
    )
    found = delivered(tmp_path, Task.BINARY, {"kind": "group", "column": "shop"})
    n_rows = found.evaluation.n_rows
    assert drawn.count(n_rows) >= 2_000, "comparison and score, a thousand resamples each"
    assert {one.n_rows for one in found.slices if one.score} <= set(drawn)


def test_score_of_random_rows_is_promised_for_rows_like_them(tmp_path: Path) -> None:
    found = delivered(tmp_path, Task.BINARY, {"kind": "holdout"})
    assert found.evaluation.next_window is None
    assert "promised" not in found.verdict.sentence


def test_trials_that_were_lent_to_a_segment_are_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scores are of the pooled rows, and say nothing beside those of the segment's."""
    seen: list[int] = []
    watch_trials, watch_blend = appraisal.watch_trials, appraisal.watch_blend

    def over_trials(metric: Metric, trials: Sequence[Trial], **rest: Any) -> Any:
        seen.extend(trial.number for trial in trials)
        return watch_trials(metric, trials, **rest)

    def of_blend(*given: Any, trials: Sequence[Trial], **rest: Any) -> Any:
        seen.extend(trial.number for trial in trials)
        return watch_blend(*given, trials=trials, **rest)

    monkeypatch.setattr(appraisal, "watch_trials", over_trials)
    monkeypatch.setattr(appraisal, "watch_blend", of_blend)
    delivered(tmp_path, Task.BINARY, {"kind": "holdout"})
    assert seen
    assert max(seen) < LENT_FROM
