"""One trial: how it can end, what it writes, what it may see."""

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
from factory.search.plan import family
from factory.search.trial import MemoryWatch, TrialData, TrialJob, TrialRunner, fit_preparation, preparation_folder
from factory.spec import ColumnType, Task, Trial, TrialState

from .conftest import make_data, make_dataset, make_frame


def job(name: str = "linear", parameters: dict[str, Any] | None = None, *, number: int = 0, **fields: Any) -> TrialJob:
    given = family(name).portfolio(Task.BINARY, shape=Shape(200))[0].parameters if parameters is None else parameters
    return TrialJob(trial=Trial(number=number, family=name, parameters=given, seed=7), **fields)


def data_for(task: Task, folder: Path) -> TrialData:
    return make_data(folder, dataset=make_dataset(task), kind="cross_validation", folds=3)


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    return data_for(Task.BINARY, tmp_path)


@pytest.mark.parametrize("task", list(Task))
def test_a_trial_succeeds(task: Task, tmp_path: Path) -> None:
    data = data_for(task, tmp_path)
    trial = TrialRunner(data).run(job("lightgbm"))
    assert trial.state is TrialState.SUCCEEDED
    assert trial.reason == ""
    assert len(trial.fold_scores) == 3
    assert trial.score == pytest.approx(np.mean(trial.fold_scores))
    assert trial.train_score is not None
    assert trial.score is not None
    assert trial.train_score > trial.score
    assert trial.rounds > 0
    assert trial.curve
    assert trial.cost_s > 0
    assert trial.memory_mb > 50
    out_of_fold = np.load(Path(trial.artifacts or "") / "out_of_fold.npy", allow_pickle=False)
    ends = np.cumsum([len(s.validation) for s in data.splits])[:-1]
    scores = [
        data.metric.score(data.dataset.y[s.validation], part.astype(np.float64))
        for s, part in zip(data.splits, np.split(out_of_fold, ends), strict=True)
    ]
    assert scores == pytest.approx(trial.fold_scores, rel=1e-4)


def test_what_a_trial_writes_can_be_loaded_and_gives_its_predictions(data: TrialData) -> None:
    trial = TrialRunner(data).run(job())
    folder = Path(trial.artifacts or "")
    assert folder == data.workspace / "trials" / "0000"
    assert sorted(p.name for p in folder.iterdir()) == ["fold-0", "fold-1", "fold-2", "out_of_fold.npy"]
    assert sorted(p.name for p in (data.workspace / "preparations").iterdir()) == ["fold-0", "fold-1", "fold-2"]
    parts = []
    for k, split in enumerate(data.splits):
        preparation = Preparation.load(preparation_folder(data, k))
        model = family("linear").load(folder / f"fold-{k}")
        parts.append(model.predict(preparation.transform(data.dataset.frame.iloc[split.validation])))
    np.testing.assert_allclose(np.load(folder / "out_of_fold.npy"), np.concatenate(parts), atol=1e-6)


def test_the_same_job_gives_the_same_trial_in_another_runner(tmp_path: Path) -> None:
    trials = [TrialRunner(data_for(Task.BINARY, tmp_path / name)).run(job("lightgbm")) for name in ("one", "two")]
    assert trials[0].fold_scores == trials[1].fold_scores
    again = TrialRunner(data_for(Task.BINARY, tmp_path / "one")).run(job("lightgbm"))
    assert again.fold_scores == trials[0].fold_scores, "preparations that are there already are taken"


def test_a_preparation_sees_the_training_rows_only(tmp_path: Path) -> None:
    """Each row has a category of its own twice; the validation rows' other halves are elsewhere."""
    frame = make_frame(120).assign(city=[f"city {i // 2}" for i in range(120)])
    data = make_data(tmp_path, dataset=make_dataset(frame=frame), kind="cross_validation", folds=2)
    for k, split in enumerate(data.splits):
        train, validation = TrialRunner(data)._samples(k)
        seen = set(data.dataset.frame["city"].iloc[split.train])
        known = data.dataset.frame["city"].iloc[split.validation].isin(seen).to_numpy()
        assert 0 < known.sum() < len(known)
        assert ((validation.table.codes[:, 0] > 0) == known).all()
        assert (train.table.codes[:, 0] > 0).all()
        alone = Preparation.fit(data.dataset.frame.iloc[split.train], data.dataset.types, seed=data.seed)
        np.testing.assert_array_equal(
            validation.table.codes, alone.transform(data.dataset.frame.iloc[split.validation]).codes
        )
        np.testing.assert_array_equal(validation.y, data.dataset.y[split.validation])


def test_a_preparation_is_made_once(data: TrialData) -> None:
    fit_preparation(data, 0)
    before = {p: p.stat().st_mtime_ns for p in preparation_folder(data, 0).rglob("*")}
    TrialRunner(data).run(job())
    assert {p: p.stat().st_mtime_ns for p in preparation_folder(data, 0).rglob("*")} == before


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
        trial = runner.run(job("probe", {"does": does, "skill": 0.5}, number=4))
    assert trial.state is state
    assert reason in trial.reason
    assert trial.score is None
    assert (does == "raise") == ("trial 4 (probe) failed:\nTraceback" in caplog.text)
    assert runner.run(job("probe", {"does": "fit", "skill": 0.5})).state is TrialState.SUCCEEDED


def test_a_worker_that_swells_is_stopped(data: TrialData, probe: None) -> None:
    watch = MemoryWatch(float("inf"))
    watch.keep_going()
    limit_mb = watch.peak_mb + 120
    trial = TrialRunner(data, memory_limit_mb=limit_mb).run(job("probe", {"does": "swell", "skill": 0.5}))
    assert trial.state is TrialState.OUT_OF_MEMORY
    assert trial.reason == f"Stopped: the worker passed its {limit_mb:,.0f} MB."
    assert trial.memory_mb > limit_mb


def test_a_fit_that_cannot_fit_is_not_started(data: TrialData) -> None:
    trial = TrialRunner(data, memory_limit_mb=60).run(job())
    assert trial.state is TrialState.OUT_OF_MEMORY
    assert trial.reason.startswith("Not started: it would need about")
    assert not (data.workspace / "trials").exists()


def test_a_first_fold_below_the_others_prunes(data: TrialData) -> None:
    good = TrialRunner(data).run(job())
    trial = TrialRunner(data).run(job(number=1, prune_below=good.fold_scores[0] + 0.01))
    assert trial.state is TrialState.PRUNED
    assert trial.fold_scores == good.fold_scores[:1]
    assert "below the" in trial.reason
    kept = TrialRunner(data).run(job(number=2, prune_below=good.fold_scores[0]))
    assert kept.state is TrialState.SUCCEEDED


def test_a_deadline_is_kept(data: TrialData, probe: None) -> None:
    started = time.monotonic()
    trial = TrialRunner(data).run(job("probe", {"does": "hang", "skill": 0.5}, limit_s=0.6))
    assert 0.5 < time.monotonic() - started < 2
    assert trial.state in (TrialState.SUCCEEDED, TrialState.PRUNED)
    late = TrialRunner(data).run(job("probe", {"does": "fit", "skill": 0.5}, deadline_at=time.time() - 1))
    assert late.state is TrialState.PRUNED
    assert late.reason == "Time was up after 0 of 3 folds."


def test_a_fold_without_a_score_fails_with_the_reason(tmp_path: Path) -> None:
    labels = ["no"] * 55 + ["yes"] * 5
    frame = make_frame(60).assign(flag=labels, day=pd.Timestamp("2024-01-01") - pd.to_timedelta(range(60), unit="D"))
    data = make_data(tmp_path, dataset=make_dataset(frame=frame), kind="time", column="day")
    trial = TrialRunner(data).run(job("constant", {}))
    assert trial.state is TrialState.FAILED
    assert trial.reason == "Fold 0 has no ROC AUC: does it lack a class among its validation rows?"
    json.loads(trial.model_dump_json())


# --- refits -------------------------------------------------------------------


def test_a_refit_takes_all_rows_and_the_rounds_it_is_given(data: TrialData) -> None:
    runner = TrialRunner(data)
    trial = runner.run(job("lightgbm"))
    runner.run(TrialJob(trial=trial, refit_rounds=17))
    model = family("lightgbm").load(Path(trial.artifacts or "") / "refit")
    preparation = Preparation.load(preparation_folder(data, None))
    table = preparation.transform(data.dataset.frame)
    context = FitContext(Task.BINARY, 2, seed=7, rounds=17)
    whole = family("lightgbm").fit(
        Sample(table, data.dataset.y), validation=None, parameters=trial.parameters, context=context
    )
    np.testing.assert_allclose(model.predict(table), whole.predict(table), atol=1e-9)
    assert preparation.columns == tuple(c for c in data.dataset.frame if data.dataset.types[c] != ColumnType.IDENTIFIER)


def test_a_refit_without_time_leaves_the_folds_model(data: TrialData, probe: None) -> None:
    runner = TrialRunner(data)
    trial = runner.run(job("probe", {"does": "fit", "skill": 0.5}))
    slow = trial.model_copy(update={"parameters": {"does": "hang", "skill": 0.5}})
    ended = runner.run(TrialJob(trial=slow, refit_rounds=3, deadline_at=Deadline.after(0.3).at))
    assert ended.state is TrialState.PRUNED
    assert not (Path(trial.artifacts or "") / "refit").exists()


def test_no_draft_and_no_pickle_is_left_behind(data: TrialData) -> None:
    TrialRunner(data).run(job())
    written = [p for p in data.workspace.rglob("*") if p.is_file()]
    assert {p.suffix for p in written} == {".json", ".npz", ".npy"}
    assert list(data.workspace.rglob(".*")) == []
