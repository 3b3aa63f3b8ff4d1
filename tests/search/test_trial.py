"""One job: how its fits can end, what they write, what they may see."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from factory.data.preparation import Preparation
from factory.families.base import Deadline, FitContext, Sample, Shape
from factory.search.jobs import FitJob, FitResult, TrialData, merged
from factory.search.plan import family
from factory.search.samples import fit_preparation, preparation_folder
from factory.search.trial import MemoryWatch, TrialRunner
from factory.spec import ColumnType, Task, Trial, TrialState

from .conftest import make_data, make_dataset, make_frame

ALL = (0, 1, 2)


def job(name: str = "linear", parameters: dict[str, Any] | None = None, *, number: int = 0, **fields: Any) -> FitJob:
    given = family(name).portfolio(Task.BINARY, shape=Shape(200))[0].parameters if parameters is None else parameters
    trial = Trial(number=number, family=name, parameters=given, seed=7, state=TrialState.RUNNING)
    return FitJob(trial=trial, **({"folds": ALL} | fields))


def probing(does: str, **fields: Any) -> FitJob:
    return job("probe", {"does": does, "skill": 0.5}, **fields)


def after(job: FitJob, result: FitResult) -> Trial:
    """Return what becomes of a job's trial."""
    return merged(job.trial, result)


def data_for(task: Task, folder: Path) -> TrialData:
    return make_data(folder, dataset=make_dataset(task), kind="cross_validation", folds=3)


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    return data_for(Task.BINARY, tmp_path)


@pytest.mark.parametrize("task", list(Task))
def test_folds_are_fitted_and_scored(task: Task, tmp_path: Path) -> None:
    data = data_for(task, tmp_path)
    result = TrialRunner(data).run(job("lightgbm"))
    assert result.state is TrialState.SUCCEEDED
    assert result.reason == ""
    assert [f.fold for f in result.folds] == [0, 1, 2]
    assert result.curve
    assert result.cost_s >= sum(f.cost_s for f in result.folds) - 0.01 > 0
    assert result.memory_mb > 50
    for fold, split in zip(result.folds, data.splits, strict=True):
        assert fold.train_score > fold.score
        assert fold.rounds > 0
        prediction = np.load(data.out_of_fold(0, fold.fold), allow_pickle=False)
        assert prediction.dtype == np.float32
        score = data.metric.score(data.dataset.y[split.validation], prediction.astype(np.float64))
        assert score == pytest.approx(fold.score, rel=1e-4)


def test_the_loss_of_a_configuration_is_learned_by_and_refitted_by(tmp_path: Path) -> None:
    data = data_for(Task.REGRESSION, tmp_path)
    y = data.dataset.y
    y[:] = np.random.default_rng(0).exponential(100.0, len(y))  # whose mean is far above its median
    runner, middles = TrialRunner(data), []
    parameters = family("lightgbm").portfolio(Task.REGRESSION, shape=Shape(n_rows=160))[0].parameters
    for number, loss in enumerate(("squared", "absolute")):
        first = job("lightgbm", parameters | {"loss": loss}, number=number, folds=(0,))
        assert runner.run(first).state is TrialState.SUCCEEDED
        refit = job("lightgbm", parameters | {"loss": loss}, number=number, folds=(), refit_rounds=5)
        assert runner.run(refit).state is TrialState.SUCCEEDED
        model = family("lightgbm").load(data.model_folder(number, None))
        table = Preparation.load(preparation_folder(data, None)).transform(data.dataset.frame)
        middles.append((np.mean(np.load(data.out_of_fold(number, 0))), np.mean(model.predict(table))))
    assert np.less(middles[1], 0.9 * np.array(middles[0])).all()


def test_only_the_folds_that_were_asked_for_are_fitted(data: TrialData) -> None:
    result = TrialRunner(data).run(job(folds=(1,)))
    assert [f.fold for f in result.folds] == [1]
    assert sorted(p.name for p in data.folder_of(0).iterdir()) == ["fold-1", "fold-1.npy"]
    assert sorted(p.name for p in (data.workspace / "preparations").iterdir()) == ["fold-1"]


def test_folds_one_by_one_give_what_they_give_together(tmp_path: Path) -> None:
    """By other processes too: each runner stands for one."""
    together = TrialRunner(data_for(Task.BINARY, tmp_path / "one")).run(job("lightgbm"))
    apart = data_for(Task.BINARY, tmp_path / "two")
    scores = [TrialRunner(apart).run(job("lightgbm", folds=(k,))).folds[0].score for k in (0, 2, 1)]
    assert [f.score for f in together.folds] == [scores[0], scores[2], scores[1]]
    again = TrialRunner(apart).run(job("lightgbm", number=1))
    assert [f.score for f in again.folds] == [f.score for f in together.folds]


def test_what_a_job_writes_can_be_loaded_and_gives_its_predictions(data: TrialData) -> None:
    TrialRunner(data).run(job())
    folder = data.workspace / "trials" / "0000"
    assert data.folder_of(0) == folder
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"fold-{k}{end}" for k in ALL for end in ("", ".npy"))
    for k, split in enumerate(data.splits):
        preparation = Preparation.load(preparation_folder(data, k))
        model = family("linear").load(data.model_folder(0, k))
        prediction = model.predict(preparation.transform(data.dataset.frame.iloc[split.validation]))
        np.testing.assert_allclose(np.load(data.out_of_fold(0, k)), prediction, atol=1e-6)


def test_a_preparation_is_made_once(data: TrialData) -> None:
    fit_preparation(data, 0)
    before = {p: p.stat().st_mtime_ns for p in preparation_folder(data, 0).rglob("*")}
    TrialRunner(data).run(job())
    assert {p: p.stat().st_mtime_ns for p in preparation_folder(data, 0).rglob("*")} == before


# --- folds that are added -------------------------------------------------------


def test_a_trial_gains_folds_and_its_score_is_their_mean(data: TrialData) -> None:
    runner = TrialRunner(data)
    first = job("lightgbm", folds=(0,))
    trial = after(first, runner.run(first))
    assert (trial.state, trial.folds) == (TrialState.SUCCEEDED, (0,))
    assert trial.score == trial.fold_scores[0]
    more = first.model_copy(update={"trial": trial, "folds": (2, 1)})
    result = runner.run(more)
    grown = after(more, result)
    assert grown.folds == (0, 1, 2)
    assert grown.fold_scores == (trial.fold_scores[0], result.folds[1].score, result.folds[0].score)
    assert grown.score == pytest.approx(np.mean(grown.fold_scores))
    whole = after(job("lightgbm", number=1), runner.run(job("lightgbm", number=1)))
    assert grown.fold_scores == whole.fold_scores
    assert grown.train_score == pytest.approx(whole.train_score)
    assert grown.rounds == whole.rounds
    assert grown.curve == trial.curve
    assert grown.cost_s == pytest.approx(trial.cost_s + result.cost_s)
    assert after(more.model_copy(update={"trial": grown}), result) == grown, "a fold counts once"


@pytest.mark.parametrize("folds", [(1,), (1, 2)])
def test_a_trial_that_fails_on_a_further_fold_has_succeeded_all_the_same(
    data: TrialData, probe: None, folds: tuple[int, ...]
) -> None:
    runner = TrialRunner(data)
    first = probing("raise_later", folds=(0,))
    trial = after(first, runner.run(first))
    further = first.model_copy(update={"trial": trial, "folds": folds})
    result = runner.run(further)
    assert (result.state, result.folds) == (TrialState.FAILED, ())
    assert after(further, result) == trial, "the ledger would take no other content"
    assert sorted(p.name for p in data.folder_of(0).iterdir()) == ["fold-0", "fold-0.npy"]


def test_what_was_fitted_before_a_fold_failed_counts(data: TrialData, probe: None) -> None:
    both = probing("raise_later", folds=(0, 1))
    result = TrialRunner(data).run(both)
    assert result.state is TrialState.FAILED
    assert [f.fold for f in result.folds] == [0]
    trial = after(both, result)
    assert (trial.state, trial.folds, trial.reason) == (TrialState.SUCCEEDED, (0,), "")


def test_a_rate_that_the_first_fold_raised_stays_for_the_others_and_the_refit(data: TrialData, probe: None) -> None:
    """The probe says by its rounds at what rate it was fitted, in hundredths."""
    runner = TrialRunner(data)
    first = probing("hurry", folds=(0,))
    trial = after(first, runner.run(first))
    assert trial.raised_rate == 0.5
    later = first.model_copy(update={"trial": trial, "folds": (1, 2)})
    result = runner.run(later)
    assert [f.rounds for f in result.folds] == [50, 50]
    assert after(later, result).raised_rate == 0.5
    at_once = runner.run(probing("hurry", number=1))
    assert [f.rounds for f in at_once.folds] == [50, 50, 50]
    unraised = runner.run(probing("hurry", number=2, folds=(1,)))
    assert [f.rounds for f in unraised.folds] == [0], "a later fold raises nothing by itself"
    assert unraised.raised_rate is None
    assert after(first, unraised).raised_rate is None


# --- other ends ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "state", "reason"),
    [
        ("raise", TrialState.FAILED, "ValueError: the probe was asked to raise"),
        ("nan", TrialState.FAILED, "predicts values that are not numbers"),
        ("exhaust", TrialState.OUT_OF_MEMORY, "Out of memory: the probe was asked to exhaust"),
    ],
)
def test_what_goes_wrong_is_the_trials_end(
    data: TrialData, probe: None, does: str, state: TrialState, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner = TrialRunner(data)
    with caplog.at_level(logging.WARNING):
        result = runner.run(probing(does, number=4))
    assert result.state is state
    assert reason in result.reason
    assert result.folds == ()
    trial = after(probing(does, number=4), result)
    assert (trial.state, trial.reason, trial.score) == (state, result.reason, None)
    assert (does == "raise") == ("trial 4 (probe) failed:\nTraceback" in caplog.text)
    assert runner.run(probing("fit")).state is TrialState.SUCCEEDED


def test_a_worker_that_swells_is_stopped(data: TrialData, probe: None) -> None:
    watch = MemoryWatch(float("inf"))
    watch.keep_going()
    limit_mb = watch.peak_mb + 120
    result = TrialRunner(data, memory_limit_mb=limit_mb).run(probing("swell"))
    assert result.state is TrialState.OUT_OF_MEMORY
    assert result.reason == f"Stopped: the worker passed its {limit_mb:,.0f} MB."
    assert result.memory_mb > limit_mb


def test_a_fit_that_cannot_fit_is_not_started(data: TrialData) -> None:
    result = TrialRunner(data, memory_limit_mb=60).run(job())
    assert result.state is TrialState.OUT_OF_MEMORY
    assert result.reason.startswith("Not started: it would need about")
    assert not (data.workspace / "trials").exists()


def test_a_limit_is_each_folds_own(data: TrialData, probe: None) -> None:
    started = time.monotonic()
    result = TrialRunner(data).run(probing("hang", limit_s=0.4))
    assert 1.1 < time.monotonic() - started < 20
    assert result.state is TrialState.SUCCEEDED
    assert len(result.folds) == 3, "what stopped in time counts"


def test_a_deadline_ends_a_job_between_its_folds(data: TrialData, probe: None) -> None:
    result = TrialRunner(data).run(probing("hang", limit_s=60, deadline_at=time.time() + 0.5))
    assert result.state is TrialState.PRUNED
    assert result.reason == "Time was up before fold 1."
    assert [f.fold for f in result.folds] == [0]
    late = TrialRunner(data).run(probing("fit", number=1, deadline_at=time.time() - 1))
    assert (late.state, late.folds) == (TrialState.PRUNED, ())
    assert late.reason == "Time was up before fold 0."
    assert not data.folder_of(1).exists()


def test_a_fold_without_a_score_fails_with_the_reason(tmp_path: Path) -> None:
    labels = ["no"] * 55 + ["yes"] * 5
    frame = make_frame(60).assign(flag=labels, day=pd.Timestamp("2024-01-01") - pd.to_timedelta(range(60), unit="D"))
    data = make_data(tmp_path, dataset=make_dataset(frame=frame), kind="time", column="day")
    result = TrialRunner(data).run(job("constant", {}, folds=(0,)))
    assert result.state is TrialState.FAILED
    assert result.reason == "Fold 0 has no ROC AUC: does it lack a class among its validation rows?"
    json.loads(result.model_dump_json())


# --- refits -------------------------------------------------------------------


def test_a_refit_takes_all_rows_and_the_rounds_it_is_given(data: TrialData) -> None:
    runner = TrialRunner(data)
    asked = job("lightgbm", folds=(), refit_rounds=17)
    assert runner.run(asked).state is TrialState.SUCCEEDED
    model = family("lightgbm").load(data.model_folder(0, None))
    preparation = Preparation.load(preparation_folder(data, None))
    table = preparation.transform(data.dataset.frame)
    context = FitContext(Task.BINARY, 2, seed=7, rounds=17)
    whole = family("lightgbm").fit(
        Sample(table, data.dataset.y), validation=None, parameters=asked.trial.parameters, context=context
    )
    np.testing.assert_allclose(model.predict(table), whole.predict(table), atol=1e-9)
    assert preparation.columns == tuple(c for c in data.dataset.frame if data.dataset.types[c] != ColumnType.IDENTIFIER)


def test_a_refit_without_time_leaves_the_folds_model(data: TrialData, probe: None) -> None:
    runner = TrialRunner(data)
    runner.run(probing("fit"))
    result = runner.run(probing("hang", folds=(), refit_rounds=3, deadline_at=Deadline.after(0.3).at))
    assert result.state is TrialState.PRUNED
    assert data.model_folder(0, 0).is_dir()
    assert not data.model_folder(0, None).exists()


def test_no_draft_and_no_pickle_is_left_behind(data: TrialData) -> None:
    TrialRunner(data).run(job())
    written = [p for p in data.workspace.rglob("*") if p.is_file()]
    assert {p.suffix for p in written} == {".json", ".npz", ".npy"}
    assert list(data.workspace.rglob(".*")) == []
