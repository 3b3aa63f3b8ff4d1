"""An attempt goes on from what is there, and says what is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from factory.data.dataset import from_frame
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.samples import clear_drafts, preparation_folder
from factory.search.splits import Split
from factory.spec import FileDataset, Task, Trial, TrialState
from factory.variants.recovery import INTERRUPTED, LOST, taken_up

from .conftest import mixed_frame


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    """Two folds of which trial 0 has all files."""
    frame = mixed_frame(40)[["age", "churned"]]
    dataset = from_frame(frame, FileDataset(path="x.parquet", target="churned", task=Task.BINARY))
    even, odd = np.arange(0, 40, 2), np.arange(1, 40, 2)
    data = TrialData(dataset, (Split(even, odd), Split(odd, even)), Metric.of("roc_auc", Task.BINARY), tmp_path, 0)
    (tmp_path / "representation").mkdir()
    for fold in (0, 1):
        data.model_folder(0, fold).mkdir(parents=True)
        preparation_folder(data, fold).mkdir(parents=True)
        np.save(data.out_of_fold(0, fold), np.zeros(20))
    return data


WHOLE = Trial(
    number=0,
    family="linear",
    parameters={},
    state=TrialState.SUCCEEDED,
    score=0.7,
    folds=(0, 1),
    fold_scores=(0.6, 0.8),
)
FAILED = Trial(number=1, family="linear", parameters={}, state=TrialState.FAILED, reason="No luck.")
RUNNING = Trial(number=2, family="linear", parameters={}, state=TrialState.RUNNING)


def test_what_is_there_is_taken_and_what_ran_was_killed(data: TrialData) -> None:
    recorded: list[Trial] = []
    taken, n_lost = taken_up([WHOLE, FAILED, RUNNING], data, record=recorded.append)
    assert n_lost == 0
    assert taken[:2] == [WHOLE, FAILED]
    assert recorded == taken[2:]
    assert (taken[2].state, taken[2].reason) == (TrialState.KILLED, INTERRUPTED)


@pytest.mark.parametrize(
    "gone", ["trials/0000/fold-1", "trials/0000/fold-1.npy", "preparations/fold-0", "representation", ""]
)
def test_a_trial_whose_files_are_gone_is_fitted_again(data: TrialData, gone: str) -> None:
    path = data.workspace / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    recorded: list[Trial] = []
    taken, n_lost = taken_up([WHOLE, FAILED], data, record=recorded.append)
    assert n_lost == 1
    assert not recorded, "the ledger keeps what a finished trial came to"
    assert (taken[0].state, taken[0].reason, taken[0].folds, taken[0].score) == (TrialState.KILLED, LOST, (), None)
    assert taken[1] == FAILED


def test_drafts_of_killed_processes_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    draft = tmp_path / "trials" / ".fold-0-4711-140012"
    draft.mkdir(parents=True)
    (draft / "model.txt").write_text("half")
    (tmp_path / "trials" / ".fold-0.npy-4711-140012.npy").write_text("half")
    kept = [tmp_path / "trials" / "fold-0-1-2", tmp_path / ".hidden", tmp_path / "trials" / ".fold-0"]
    for path in kept:
        path.mkdir()
    assert clear_drafts(tmp_path) == 2
    assert sorted(tmp_path.rglob("*")) == sorted([*kept, tmp_path / "trials"])
    assert clear_drafts(tmp_path / "nowhere") == 0
