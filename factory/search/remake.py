"""Variants made again without a search: their configurations fitted on other rows, or their models trained on.

``refit`` fits its members once on all rows, with rounds scaled by the rows: all
of them, or those that a tenth of their search's cost affords.  ``go_on`` lets
each of its models continue on new rows, stopped early by some that are kept
back.  Both take seconds, since nothing is tried.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from factory.data.dataset import Dataset
from factory.data.preparation import Preparation
from factory.errors import NotFound, TrainingFault, counted
from factory.families.base import Deadline, FitContext, Model, Sample
from factory.search.blueprint import Blueprint, MemberPlan
from factory.search.calibration import Calibration
from factory.search.engine import Part, SearchResult
from factory.search.ensemble import Blend, Candidates
from factory.search.jobs import FitJob, TrialData, merged
from factory.search.plan import family, with_loss
from factory.search.probe import Representation
from factory.search.samples import into_folder, preparation_folder
from factory.search.trial import TrialRunner
from factory.search.watchdog import LEFT_BEHIND, awaited
from factory.spec import Trial, TrialState

log = logging.getLogger(__name__)

SHORTEST_S = 1.0
"""A model is given so long at least, however many wait."""

_STAYED = "stays as it was"
"""Part of the reason of a model that learned nothing; an interrupted attempt is gone on with by it."""

Record = Callable[[Trial], None]
T = TypeVar("T")


def represent_as(blueprint: Blueprint, data: TrialData) -> None:
    """Write down that columns and target are represented as a blueprint says, so that nobody probes these rows."""
    folder = (data.shared or data.workspace) / "representation"
    if not folder.is_dir():
        known = Representation(blueprint.target_scale, crosses=blueprint.crosses, omitted=blueprint.omitted)
        into_folder(folder, known.save)


def refit(
    blueprint: Blueprint,
    data: TrialData,
    *,
    calibration: Calibration,
    deadline: Deadline,
    threads: int,
    memory_limit_mb: float,
    record: Record,
    history: Sequence[Trial] = (),
) -> SearchResult:
    """Fit the members that a blueprint names for it on all rows, the heaviest first, as far as time and memory go.

    Args:
        blueprint: Of the variant that is made again.
        data: The new rows; folds are not used.
        calibration: Of that variant. It stays, since there are no out-of-fold predictions to learn another one from.
        deadline: When all has to be fitted; members that do not fit are left out.
        threads: Threads of a fit.
        memory_limit_mb: Resident memory that this process may reach.
        record: Called with each trial when it starts and when it ends.
        history: Trials of an interrupted attempt; what they have is not fitted again.

    Raises:
        TrainingFault: no member could be fitted; names the reasons.
    """
    represent_as(blueprint, data)
    runner = TrialRunner(data, threads=threads, memory_limit_mb=memory_limit_mb)
    trials: list[Trial] = []
    members = [member for member, _ in blueprint.refitted]
    for number, member, known in _numbered(members, data, history):
        if known is not None:
            trials.append(known)
            continue
        n_rows = len(data.dataset.y)
        trial = _started(number, member, data, rounds=member.rounds_for(n_rows), n_rows=n_rows, record=record)
        job = FitJob(trial=trial, deadline_at=deadline.at, refit_rounds=trial.rounds)
        fitted = awaited(partial(runner.run, job), name=f"refit-{number}", until=deadline.at, usable=_usable(trials))
        lost = trial.model_copy(update={"state": TrialState.KILLED, "reason": LEFT_BEHIND})
        trials.append(lost if fitted is None else merged(trial, fitted))
        record(trials[-1])
    weights = [weight for _, weight in blueprint.refitted]
    return _result(data, trials, weights, calibration, preparations=[preparation_folder(data, None)] * len(trials))


@dataclass(frozen=True)
class Fitted:
    """A model that is to go on: what it is a model of, its preparation, and its share in the variant."""

    plan: MemberPlan
    model: Model
    preparation: Preparation
    weight: float


def go_on(
    models: Sequence[Fitted],
    data: TrialData,
    *,
    calibration: Calibration,
    old: Dataset | None,
    target_scale: Literal["raw", "sqrt", "log"],
    deadline: Deadline,
    threads: int,
    record: Record,
    history: Sequence[Trial] = (),
) -> SearchResult:
    """Train the models of a variant on, with new rows.

    The first fold's training rows are learned from, its validation rows stop the training. A model whose family cannot
    go on is fitted anew on the old and the new rows; without the old rows it stays as it is.

    Args:
        models: Of the variant.
        data: The new rows, with the columns and classes of the variant.
        calibration: Of the variant; it stays.
        old: Rows that the variant was searched on; None where they are gone.
        target_scale: On which a regression target is learned.
        deadline: When all has to be done; what does not fit stays as it is.
        threads: Threads of a fit.
        record: Called with each trial when it starts and when it ends.
        history: Trials of an interrupted attempt; what they have is not trained again.

    Raises:
        TrainingFault: not one model learned anything from the new rows.
    """
    learner = _Learner(data, old, target_scale, threads)
    trials: list[Trial] = []
    places: dict[str, Path] = {}
    for number, given, known in _numbered(models, data, history):
        place = places.setdefault(given.preparation.digest, data.workspace / "parent" / str(len(places)))
        if not place.is_dir():
            into_folder(place, given.preparation.save)
        if known is not None:
            trials.append(known)
            learner.n_learned += _STAYED not in known.reason
            continue
        n_rows = given.plan.n_rows
        trial = _started(number, given.plan, data, rounds=given.model.rounds, n_rows=n_rows, record=record)
        until = Deadline.after(max(deadline.left_s / (len(models) - len(trials)), SHORTEST_S))
        work = partial(learner.continued, given, until if not deadline.passed else deadline)
        learned = awaited(work, name=f"continue-{number}", until=deadline.at, usable=lambda: True)
        learned = learned or _as_it_was(given, f"It {_STAYED}: {LEFT_BEHIND}")
        into_folder(data.model_folder(number, None), learned.model.save)
        update = {
            "state": TrialState.SUCCEEDED,
            "reason": learned.reason,
            "rounds": learned.model.rounds,
            "n_rows": learned.n_rows,
            "curve": learned.model.curve,
            "cost_s": round(learner.last_s, 3),
        }
        trials.append(trial.model_copy(update=update))
        record(trials[-1])
    if learner.n_learned == 0:
        raise TrainingFault(
            "None of the parent's models learned from the new rows: " + "; ".join(sorted({t.reason for t in trials})),
            hint="Ask for `making: refit` with old and new rows in one table, or for `warm_start`.",
        )
    weights = [given.weight for given in models]
    return _result(data, trials, weights, calibration, preparations=[places[m.preparation.digest] for m in models])


@dataclass(frozen=True)
class _Learned:
    """What a model became: the rows that its rounds were found on, and why it stayed as it was where it did."""

    model: Model
    n_rows: int
    reason: str = ""


class _Learner:
    """Continues models on new rows; each preparation's tables are made once."""

    def __init__(
        self, data: TrialData, old: Dataset | None, target_scale: Literal["raw", "sqrt", "log"], threads: int
    ) -> None:
        self._data, self._old, self._scale, self._threads = data, old, target_scale, threads
        self._new: dict[str, tuple[Sample, Sample]] = {}
        self._all: dict[str, Sample] = {}
        self.n_learned = 0
        self.last_s = 0.0

    def continued(self, given: Fitted, deadline: Deadline) -> _Learned:
        """Return what a model became."""
        began = deadline.left_s
        if deadline.passed:
            return _as_it_was(given, f"Time was up before it: it {_STAYED}.")
        try:
            found = self._learned(given, deadline)
        except Exception as error:  # noqa: BLE001 - whatever a framework raises costs this model only
            log.warning("%s could not go on:\n%s", given.plan.family, traceback.format_exc())
            found = _as_it_was(given, f"It {_STAYED}: {type(error).__name__}: {str(error).strip()[:300]}")
        self.last_s = began - deadline.left_s
        self.n_learned += found.model is not given.model
        return found

    def _learned(self, given: Fitted, deadline: Deadline) -> _Learned:
        kind, plan = family(given.plan.family), given.plan
        train, validation = self._of_new(given.preparation)
        parameters, loss = with_loss(plan.parameters)
        context = FitContext(
            task=self._data.dataset.task,
            n_classes=self._data.n_classes,
            seed=plan.seed,
            threads=self._threads,
            deadline=deadline,
            target_scale=self._scale,
            loss=loss,
            raises_rate=False,
        )
        found = kind.resume(given.model, train, validation=validation, parameters=parameters, context=context)
        if found is not None:
            # Further rounds on the new rows came to those on the parent's: together they are of all these rows.
            more = len(train) if plan.n_rows and found.rounds > given.model.rounds else 0
            return _Learned(found, plan.n_rows + more)
        if self._old is None:
            return _as_it_was(given, f"{plan.family} cannot go on, and the parent's rows are gone: it {_STAYED}.")
        rows = self._of_all(given.preparation)
        fixed = replace(context, rounds=plan.rounds_for(len(rows)) or None)
        model = kind.fit(rows, validation=None, parameters=parameters, context=fixed)
        return _Learned(model, len(rows), "Fitted on the old and new rows.")

    def _of_new(self, preparation: Preparation) -> tuple[Sample, Sample]:
        if preparation.digest not in self._new:
            table, split = preparation.transform(self._data.dataset.frame), self._data.splits[0]
            given = self._data.dataset
            parts = [
                Sample(table.rows(rows), given.y[rows], given.weight(rows)) for rows in (split.train, split.validation)
            ]
            self._new[preparation.digest] = (parts[0], parts[1])
        return self._new[preparation.digest]

    def _of_all(self, preparation: Preparation) -> Sample:
        if preparation.digest not in self._all and self._old is not None:
            both = [self._old, self._data.dataset]
            columns = list(preparation.columns)
            frame = pd.concat([rows.frame[columns] for rows in both], ignore_index=True)
            y = pd.concat([pd.Series(rows.y) for rows in both], ignore_index=True).to_numpy()
            self._all[preparation.digest] = Sample(
                preparation.transform(frame), y, _weight_of(both), _group_of(both, self._data.group)
            )
        return self._all[preparation.digest]


def _usable(trials: Sequence[Trial]) -> Callable[[], bool]:
    return lambda: any(trial.state is TrialState.SUCCEEDED for trial in trials)


def _as_it_was(given: Fitted, reason: str) -> _Learned:
    return _Learned(given.model, given.plan.n_rows, reason)


def _weight_of(parts: Sequence[Dataset]) -> np.ndarray | None:
    """Return the weights of the rows of several datasets; each one's have a mean of 1, whatever their unit is."""
    if all(rows.weights is None for rows in parts):
        return None
    weights = [(rows.weight(), len(rows)) for rows in parts]
    return np.concatenate([np.ones(n_rows) if weight is None else weight for weight, n_rows in weights])


def _group_of(parts: Sequence[Dataset], column: str | None) -> np.ndarray | None:
    """Return the number of the group of each row of several datasets; None where one of them lacks the column."""
    if column is None:
        return None
    try:
        values = np.concatenate([np.asarray(rows.column(column)).astype(str) for rows in parts])
    except NotFound:  # rows of a parent, which was validated otherwise
        return None
    return np.unique(values, return_inverse=True)[1]


def _numbered(given: Sequence[T], data: TrialData, history: Sequence[Trial]) -> Iterator[tuple[int, T, Trial | None]]:
    """Yield each thing to be fitted with a number for its trial, or with the trial of an earlier attempt that has it.

    A finished trial never changes, so every attempt has numbers of its own; the place is the rest of a division.
    """
    n = len(given)
    known = {
        trial.number % n: trial
        for trial in history
        if trial.state is TrialState.SUCCEEDED and data.model_folder(trial.number, None).is_dir()
    }
    base = n * (1 + max((trial.number for trial in history), default=-n) // n)
    for place, thing in enumerate(given):
        yield base + place, thing, known.get(place)


def _started(number: int, member: MemberPlan, data: TrialData, *, rounds: int, n_rows: int, record: Record) -> Trial:
    trial = Trial(
        number=number,
        family=member.family,
        parameters=member.parameters,
        state=TrialState.RUNNING,
        rounds=rounds,
        n_rows=n_rows,
        origin="history",
        seed=member.seed,
        artifacts=str(data.folder_of(number)),
    )
    record(trial)
    return trial


def _result(
    data: TrialData,
    trials: Sequence[Trial],
    weights: Sequence[float],
    calibration: Calibration,
    *,
    preparations: Sequence[Path],
) -> SearchResult:
    """Return what was made in the form of a search's result, without candidates."""
    there = {t.number: w for t, w in zip(trials, weights, strict=True) if data.model_folder(t.number, None).is_dir()}
    if not there:
        reasons = sorted({f"{t.family}: {t.reason}" for t in trials if t.reason})
        raise TrainingFault(
            f"None of {counted(len(trials), 'member')} could be fitted again. " + " | ".join(reasons[:6]),
            hint="Give more time or memory, or ask for `making: warm_start`.",
        )
    total = sum(there.values())
    parts: dict[int, tuple[Part, ...]] = {
        trial.number: (Part(trial, data.model_folder(trial.number, None), None, place, 1.0),)
        for trial, place in zip(trials, preparations, strict=True)
        if trial.number in there
    }
    return SearchResult(
        trials=tuple(trials),
        candidates=Candidates(data.metric, (), {}),
        folds=(),
        blend=Blend({number: weight / total for number, weight in there.items()}, float("nan")),
        parts=parts,
        skipped={},
        calibration=calibration,
    )
