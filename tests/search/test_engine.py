"""The whole search without Ray: first folds, further ones, blend, refits, going on after an interruption."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.data.preparation import Preparation
from factory.errors import InvalidData, TrainingFault
from factory.families.base import Deadline
from factory.ledger import Ledger
from factory.search.cluster import RaySession
from factory.search.engine import SearchResult, search
from factory.search.jobs import TrialData
from factory.search.plan import Plan, family
from factory.search.watchdog import DIED, LEFT_BEHIND, UNANSWERED
from factory.settings import Settings
from factory.spec import Task, Trial, TrialState

from .conftest import make_data, make_dataset, make_frame, make_request, make_test_plan

SMALL = {"time_s": 15}
"""Below :data:`factory.search.engine.INLINE_S`: time ends these searches."""
PLENTY = {"time_s": 600, "trials": 3}
"""So few trials run inline too. In so much time none is left out or made faster, however busy the machine is."""


class Interrupted(BaseException):
    """What ends a driver in mid-search."""


def run(
    plan: Plan,
    data: TrialData,
    *,
    history: Sequence[Trial] = (),
    left_s: float = 600,
    record: Callable[[Trial], None] = lambda _: None,
) -> SearchResult:
    # One thread: two of them wait for each other where tests run side by side.
    settings = Settings(home=data.workspace, cpus=1)
    with RaySession(settings) as ray:
        result = search(
            plan, data, ray=ray, settings=settings, history=history, deadline=Deadline.after(left_s), record=record
        )
        assert not ray.connected
    return result


def predicted(data: TrialData, result: SearchResult) -> np.ndarray:
    """Predict all rows with the blend's parts, as a bundle does."""
    total: Any = 0
    for number, weight in result.blend.weights.items():
        for part in result.parts[number]:
            model = family(part.trial.family).load(part.folder)
            table = Preparation.load(part.preparation).transform(data.dataset.frame)
            total = total + weight * part.share * model.predict(table)
    return np.asarray(total)


def written(data: TrialData) -> dict[Path, int]:
    """Return the files of all trials, with the time they were written at."""
    return {p: p.stat().st_mtime_ns for p in (data.workspace / "trials").rglob("*") if p.is_file()}


@pytest.mark.parametrize("task", list(Task))
def test_a_small_search_runs_inline_to_a_blend(task: Task, tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", task=task, budget=PLENTY)
    data = make_data(tmp_path, dataset=make_dataset(task), plan=plan)
    recorded: list[Trial] = []
    result = run(plan, data, record=recorded.append)
    assert len(result.trials) == 3
    assert {t.state for t in result.trials} == {TrialState.SUCCEEDED}
    for number in range(3):
        states = [t for t in recorded if t.number == number]
        assert [t.folds for t in states[:2]] == [(), (0,)]
        assert [t.finished for t in states] == [False] + [True] * (len(states) - 1)
        assert all(set(a.folds) < set(b.folds) for a, b in itertools.pairwise(states))
        assert states[-1] == result.trials[number]
    assert plan.metric.score(data.dataset.y, predicted(data, result)) > result.blend.score


def test_the_chosen_get_all_folds_and_make_the_blend(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=PLENTY)
    data = make_data(tmp_path, plan=plan)
    result = run(plan, data)
    chosen = [t for t in result.trials if len(t.folds) > 1]
    assert {t.folds for t in chosen} == {tuple(range(8))}
    assert {t.folds for t in result.trials if t not in chosen} == {(0,)}
    assert list(result.candidates.predictions) == [t.number for t in chosen]
    assert set(result.blend.weights) <= set(result.candidates.predictions)
    assert result.folds == tuple(range(8))
    for target, k in zip(result.candidates.targets, result.folds, strict=True):
        np.testing.assert_array_equal(target, data.dataset.y[data.splits[k].validation])
    for trial in chosen:
        shown = result.candidates.predictions[trial.number]
        scores = [plan.metric.score(y, p.astype(float)) for y, p in zip(result.candidates.targets, shown, strict=True)]
        assert scores == pytest.approx(trial.fold_scores, abs=1e-4)
        assert [(part.fold, part.share) for part in result.parts[trial.number]] == [(k, 1 / 8) for k in range(8)]
        assert result.blend.score >= trial.score - 1e-4


def test_a_holdout_is_refitted_on_all_rows(tmp_path: Path) -> None:
    plan = make_test_plan("linear", "lightgbm", budget=PLENTY, validation={"kind": "holdout"})
    data = make_data(tmp_path, plan=plan)
    result = run(plan, data)
    assert {t.folds for t in result.trials} == {(0,)}
    assert set(result.parts) == {0, 1, 2}
    for number, (part,) in result.parts.items():
        refitted = number in result.blend.weights
        assert (part.fold, part.share) == (None if refitted else 0, 1.0)
        assert part.folder.name == ("refit" if refitted else "fold-0")
    assert predicted(data, result).shape == (len(data.dataset), 2)


def test_time_ends_a_search(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=SMALL)
    deadline = Deadline.after(5.5)
    result = run(plan, make_data(tmp_path, plan=plan), left_s=5.5)
    assert deadline.left_s > -0.5
    assert len(result.trials) >= 3
    assert all(t.folds[:1] == (0,) for t in result.trials if t.folds)
    assert {t.state for t in result.trials} <= {TrialState.SUCCEEDED, TrialState.PRUNED}
    assert sum(t.cost_s for t in result.trials) < 6.5


def test_an_interrupted_search_goes_on_with_its_history(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=PLENTY)
    data = make_data(tmp_path, plan=plan)
    ledger: dict[int, Trial] = {}

    def recording(trial: Trial) -> None:
        ledger[trial.number] = Trial.model_validate(json.loads(trial.model_dump_json()))
        if trial.number == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(plan, data, record=recording)
    killed = ledger[2].model_copy(update={"state": TrialState.KILLED})
    before = written(data)
    result = run(plan, data, history=[ledger[0], ledger[1], killed])
    assert result.trials[2] == killed
    assert [t.number for t in result.trials[3:]] == [3]
    assert result.trials[3].parameters == killed.parameters
    assert before.items() <= written(data).items()
    whole = run(plan, make_data(tmp_path / "whole", plan=plan))
    assert [t.fold_scores for t in whole.trials[:2]] == [t.fold_scores for t in result.trials[:2]]


def test_a_search_interrupted_among_its_folds_fits_the_missing_ones_only(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", "lightgbm", budget=PLENTY)
    data = make_data(tmp_path, plan=plan)
    ledger: dict[int, Trial] = {}

    def recording(trial: Trial) -> None:
        ledger[trial.number] = Trial.model_validate(json.loads(trial.model_dump_json()))
        if len(trial.folds) > 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(plan, data, record=recording)
    before = written(data)
    result = run(plan, data, history=list(ledger.values()))
    assert before.items() <= written(data).items()
    whole = run(plan, make_data(tmp_path / "whole", plan=plan))
    assert [(t.folds, t.fold_scores) for t in result.trials] == [(t.folds, t.fold_scores) for t in whole.trials]
    assert result.blend == whole.blend


def test_failed_trials_do_not_end_the_search(tmp_path: Path, probe: None) -> None:
    plan = make_test_plan("probe", "constant", spaces={"probe": {"does": "raise"}}, budget=PLENTY)
    result = run(plan, make_data(tmp_path, plan=plan))
    assert [t.state for t in result.trials] == [TrialState.SUCCEEDED, TrialState.FAILED, TrialState.FAILED]
    assert set(result.blend.weights) == {0}


def test_a_trial_that_fails_on_a_further_fold_leaves_a_model_all_the_same(tmp_path: Path, probe: None) -> None:
    """With a real ledger, which refuses what a finished trial may not become."""
    spaces = {"probe": {"does": "raise_later", "skill": 0.6}}
    plan = make_test_plan("probe", spaces=spaces, budget=PLENTY | {"trials": 2})
    data = make_data(tmp_path, plan=plan)
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        request_id = ledger.create_request(make_request()).id
        result = run(plan, data, record=lambda trial: ledger.record_trial(request_id, trial))
        assert ledger.trials(request_id) == list(result.trials)
    (trial,) = result.trials
    assert (trial.state, trial.folds) == (TrialState.SUCCEEDED, (0,))
    assert [(part.fold, part.share) for part in result.parts[0]] == [(0, 1.0)]
    assert result.folds == (0,)


def test_a_search_without_a_model_says_why(tmp_path: Path, probe: None) -> None:
    plan = make_test_plan("probe", spaces={"probe": {"does": "raise"}}, budget=PLENTY | {"trials": 2})
    with pytest.raises(TrainingFault, match=r"None of 2 trials gave a usable model\. probe: ValueError: the probe was"):
        run(plan, make_data(tmp_path, plan=plan))


@pytest.mark.parametrize("reason", [DIED, UNANSWERED])
def test_workers_that_were_lost_are_no_reason_for_a_constant(reason: str, tmp_path: Path) -> None:
    """Whoever asked is not told that nothing better can be learned: the search is a fault, and is made again."""
    plan = make_test_plan("constant", budget=PLENTY | {"trials": 1})
    lost = Trial(number=0, family="linear", parameters={}, state=TrialState.KILLED, reason=reason)
    with pytest.raises(TrainingFault, match=rf"None of 2 trials gave a usable model\. linear: {reason}"):
        run(plan, make_data(tmp_path, plan=plan), history=[lost])


def test_lost_predictions_leave_a_trial_out_of_the_blend(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "linear", budget=PLENTY | {"trials": 2})
    data = make_data(tmp_path, plan=plan)
    result = run(plan, data)
    assert set(result.blend.weights) == {1}
    data.out_of_fold(1, 0).unlink()
    again = run(plan, data, history=result.trials)
    assert set(again.blend.weights) == {0}


def late_data(tmp_path: Path, plan: Plan) -> TrialData:
    """Return rows of which the latest, which validate, are all of one class."""
    frame = make_frame(120)
    frame["flag"] = np.where(frame["day"] > frame["day"].quantile(0.7), "no", frame["flag"])
    return make_data(tmp_path, dataset=make_dataset(frame=frame), plan=plan)


def test_labels_of_one_class_are_enough_to_choose_by(tmp_path: Path) -> None:
    """They cannot be ranked, as two classes' labels are chosen by elsewhere."""
    time = {"kind": "time", "column": "day"}
    plan = make_test_plan("constant", "linear", budget=PLENTY | {"trials": 2}, validation=time, metric="accuracy")
    result = run(plan, late_data(tmp_path, plan))
    assert sum(result.blend.weights.values()) == pytest.approx(1)
    assert result.blend.score == max(t.score for t in result.trials if t.score is not None)


def test_a_metric_that_the_first_fold_does_not_define_is_told_at_once(tmp_path: Path) -> None:
    plan = make_test_plan("constant", budget=PLENTY | {"trials": 1}, validation={"kind": "time", "column": "day"})
    told: list[Trial] = []
    message = r"validation: ROC AUC is not defined on the 24 validation rows: there is none of class 'yes' among them\."
    with pytest.raises(InvalidData, match=message) as refused:
        run(plan, late_data(tmp_path, plan), record=told.append)
    assert told == []
    assert [detail.field for detail in refused.value.details] == ["validation"]
    assert "Elsewhere there are" in refused.value.message
    assert "rows of 'yes'" in refused.value.message


def test_a_fit_here_that_does_not_end_is_left_behind(
    tmp_path: Path, probe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.search.watchdog.LEFT_BEHIND_S", 0.3)
    plan = make_test_plan("probe", "constant", spaces={"probe": {"does": "stall"}}, budget=SMALL)
    deadline = Deadline.after(1.5)
    result = run(plan, make_data(tmp_path, plan=plan), left_s=1.5)
    assert -4 < deadline.left_s < -0.2, "a fit that starts late has three seconds"
    lost = [t for t in result.trials if t.family == "probe"]
    assert [(t.state, t.reason) for t in lost] == [(TrialState.KILLED, LEFT_BEHIND)]
    assert [result.trials[n].family for n in result.blend.weights] == ["constant"]


def test_a_blend_is_chosen_among_the_best_and_the_best_of_each_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.search.engine.MOST_CANDIDATES", 1)
    plan = make_test_plan("constant", "linear", budget=PLENTY, validation={"kind": "holdout"})
    result = run(plan, make_data(tmp_path, plan=plan))
    best = max((t for t in result.trials if t.family == "linear"), key=lambda t: t.score or 0)
    assert len(result.trials) > 2
    assert set(result.candidates.predictions) == {0, best.number}
    assert not result.candidates.predictions[0][0].flags.writeable, "mapped from disk"


def test_a_short_search_leaves_slow_frameworks_out_and_says_so(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "torch_network", "keras_network", "linear", budget=SMALL)
    result = run(plan, make_data(tmp_path, plan=plan), left_s=4)
    assert set(result.skipped) == {"torch_network", "keras_network"}
    assert {t.family for t in result.trials} <= {"constant", "linear"}
