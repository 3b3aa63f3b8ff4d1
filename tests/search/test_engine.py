"""The whole search without Ray: trials, blend, refits, going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.data.preparation import Preparation
from factory.errors import TrainingFault
from factory.families.base import Deadline
from factory.search.engine import RaySession, SearchResult, search
from factory.search.plan import Plan, family
from factory.search.trial import TrialData, preparation_folder
from factory.settings import Settings
from factory.spec import Task, Trial, TrialState

from .conftest import make_data, make_dataset, make_test_plan

SMALL = {"time_s": 15}
"""Below :data:`factory.search.engine.INLINE_S`."""


class Interrupted(BaseException):
    """What ends a driver in mid-search."""


def run(
    plan: Plan,
    data: TrialData,
    *,
    history: Sequence[Trial] = (),
    left_s: float = 15,
    record: Callable[[Trial], None] = lambda _: None,
) -> SearchResult:
    settings = Settings(home=data.workspace)
    with RaySession(settings) as ray:
        result = search(
            plan, data, ray=ray, settings=settings, history=history, deadline=Deadline.after(left_s), record=record
        )
        assert not ray.connected
    return result


def predicted(data: TrialData, result: SearchResult) -> np.ndarray:
    """Predict all rows with the parts, as a bundle does."""
    total: Any = 0
    for part in result.parts:
        preparation = Preparation.load(preparation_folder(data, part.fold))
        model = family(part.trial.family).load(part.folder)
        total = total + part.weight * model.predict(preparation.transform(data.dataset.frame))
    return np.asarray(total)


@pytest.mark.parametrize("task", list(Task))
def test_a_small_search_runs_inline_to_a_blend(task: Task, tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", task=task, budget=SMALL | {"trials": 3})
    data = make_data(tmp_path, dataset=make_dataset(task), plan=plan)
    recorded: list[Trial] = []
    result = run(plan, data, record=recorded.append)
    assert [t.family for t in result.trials] == ["constant", "linear", "lightgbm"]
    assert [(t.number, t.finished) for t in recorded] == [(n, end) for n in range(3) for end in (False, True)]
    assert recorded[1::2] == list(result.trials)
    assert result.best.score == max(t.score or -np.inf for t in result.trials)
    assert result.blend.score >= (result.best.score or 0) - 1e-6
    assert sum(part.weight for part in result.parts) == pytest.approx(1)
    assert sorted({part.fold for part in result.parts}) == [0, 1, 2, 3, 4]
    assert plan.metric.score(data.dataset.y, predicted(data, result)) > result.blend.score


def test_a_holdout_is_refitted_on_all_rows(tmp_path: Path) -> None:
    plan = make_test_plan("linear", "lightgbm", budget=SMALL | {"trials": 3}, validation={"kind": "holdout"})
    data = make_data(tmp_path, plan=plan)
    result = run(plan, data)
    assert {part.fold for part in result.parts} == {None}
    assert all(part.folder.name == "refit" for part in result.parts)
    assert predicted(data, result).shape == (len(data.dataset), 2)


def test_time_ends_a_search(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=SMALL)
    deadline = Deadline.after(5.5)
    result = run(plan, make_data(tmp_path, plan=plan), left_s=5.5)
    assert deadline.left_s > -0.5
    assert len(result.trials) > 7
    assert {t.origin for t in result.trials} == {"portfolio", "search"}


def test_an_interrupted_search_goes_on_with_its_history(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 15, "trials": 3})
    data = make_data(tmp_path, plan=plan)
    ledger: dict[int, Trial] = {}

    def recording(trial: Trial) -> None:
        ledger[trial.number] = Trial.model_validate(json.loads(trial.model_dump_json()))
        if trial.number == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(plan, data, record=recording)
    killed = ledger[2].model_copy(update={"state": TrialState.KILLED})
    before = {p: p.stat().st_mtime_ns for n in (0, 1) for p in Path(ledger[n].artifacts or "").rglob("*.npy")}
    assert len(before) == 2
    result = run(plan, data, history=[ledger[0], ledger[1], killed])
    assert list(result.trials[:3]) == [ledger[0], ledger[1], killed]
    assert [t.number for t in result.trials[3:]] == [3]
    assert result.trials[3].parameters == killed.parameters
    assert {p: p.stat().st_mtime_ns for p in before} == before
    whole = run(plan, make_data(tmp_path / "whole", plan=plan))
    assert [t.score for t in whole.trials[:2]] == [t.score for t in result.trials[:2]]


def test_failed_trials_do_not_end_the_search(tmp_path: Path, probe: None) -> None:
    plan = make_test_plan("probe", "constant", spaces={"probe": {"does": "raise"}}, budget=SMALL | {"trials": 3})
    result = run(plan, make_data(tmp_path, plan=plan))
    assert [t.state for t in result.trials] == [TrialState.FAILED, TrialState.SUCCEEDED, TrialState.FAILED]
    assert set(result.blend.weights) == {1}


def test_a_search_without_a_model_says_why(tmp_path: Path, probe: None) -> None:
    plan = make_test_plan("probe", spaces={"probe": {"does": "raise"}}, budget=SMALL | {"trials": 2})
    with pytest.raises(TrainingFault, match=r"None of 2 trials gave a usable model\. probe: ValueError: the probe was"):
        run(plan, make_data(tmp_path, plan=plan))


def test_lost_predictions_leave_a_trial_out_of_the_blend(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", budget=SMALL | {"trials": 2})
    data = make_data(tmp_path, plan=plan)
    result = run(plan, data)
    (Path(result.trials[1].artifacts or "") / "out_of_fold.npy").unlink()
    again = run(plan, data, history=result.trials)
    assert set(again.blend.weights) == {0}


def test_a_short_search_leaves_slow_frameworks_out_and_says_so(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "torch_network", "keras_network", "linear", budget=SMALL)
    result = run(plan, make_data(tmp_path, plan=plan), left_s=4)
    assert set(result.skipped) == {"torch_network", "keras_network"}
    assert {t.family for t in result.trials} <= {"constant", "linear"}
