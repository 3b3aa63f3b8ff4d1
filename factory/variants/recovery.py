"""What an interrupted attempt has left: trials to go on from, and drafts to clear away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from factory.search.jobs import TrialData
from factory.search.samples import preparation_folder
from factory.spec import Trial, TrialState

LOST = "Its files are gone: it is fitted again."
INTERRUPTED = "Its driver was interrupted."


def taken_up(trials: Sequence[Trial], data: TrialData, *, record: Callable[[Trial], None]) -> tuple[list[Trial], int]:
    """Return the trials of an earlier attempt that a search goes on from, and how many of them have lost their files.

    A trial that was left running was killed, and is recorded so. One whose files are gone counts as killed in this
    search only: the ledger keeps what it came to. The search tries the configurations of both again.

    Args:
        trials: Of the ledger.
        data: Of the search; says where files lie.
        record: Writes a trial into the ledger.
    """
    taken, n_lost = [], 0
    for trial in trials:
        if not trial.finished:
            trial = trial.model_copy(update={"state": TrialState.KILLED, "reason": INTERRUPTED})
            record(trial)
        elif is_lost(trial, data):
            n_lost += 1
            empty = {"folds": (), "fold_scores": (), "score": None, "train_score": None, "cost_s": 0.0}
            trial = trial.model_copy(update={"state": TrialState.KILLED, "reason": LOST, **empty})
        taken.append(trial)
    return taken, n_lost


def is_lost(trial: Trial, data: TrialData) -> bool:
    """Whether a trial has folds of which a model, its predictions, or what it was prepared with is gone."""
    if not trial.folds:
        return False
    represented = ((data.shared or data.workspace) / "representation").is_dir()
    return not represented or not all(
        data.out_of_fold(trial.number, fold).is_file()
        and data.model_folder(trial.number, fold).is_dir()
        and preparation_folder(data, fold).is_dir()
        for fold in trial.folds
    )
