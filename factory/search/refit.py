"""Refits of a blend's members on all rows, proposed to the same executors as trials are.

With one holdout split, a member has not seen the validation rows; one fit more
with the rounds that early stopping found gives most of what bagging would.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from factory.families.base import Deadline
from factory.search.ensemble import Blend
from factory.search.jobs import FitJob, FitResult, TrialData
from factory.search.plan import family
from factory.spec import Trial

SAFETY = 1.3
"""A fit on all rows costs at most so much more than its share of rows says (90 % of the measured ones)."""


@dataclass
class RefitProposer:
    """Proposes one refit for each member that fits the time left, the heaviest weight first."""

    data: TrialData
    trials: Mapping[int, Trial]
    blend: Blend
    deadline: Deadline
    parallel: int = 1

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        members = [self.trials[n] for n in sorted(self.blend.weights, key=lambda n: -self.blend.weights[n])]
        self._waiting = [t for t in members if not self.data.model_folder(t.number, None).is_dir()]

    @property
    def count(self) -> int:
        """Refits that are still to be proposed."""
        return len(self._waiting)

    @property
    def expected_s(self) -> float:
        """What they take altogether on one CPU each, by what a fold took."""
        return self._growth * sum(trial.cost_s / max(len(trial.folds), 1) for trial in self._waiting)

    @property
    def _growth(self) -> float:
        return len(self.data.dataset.y) / len(self.data.splits[0].train)

    @property
    def exhausted(self) -> bool:
        """Whether no further refit will be proposed."""
        return not self._waiting

    def next(self, *, quick: bool = False) -> FitJob | None:  # noqa: ARG002 - refits are what they are
        """Return the next refit that fits the time left, or None."""
        growth = self._growth
        with self._lock:
            while self._waiting:
                trial = self._waiting.pop(0)
                if trial.cost_s * growth * SAFETY < self.deadline.left_s:
                    rounds = round(trial.rounds * growth) if family(trial.family).rounds_grow else trial.rounds
                    return FitJob(trial=trial, deadline_at=self.deadline.at, refit_rounds=rounds)
        return None

    def done(self, job: FitJob, result: FitResult) -> None:
        """Take a refit back; its folder says whether it was made."""

    def lost(self, job: FitJob, reason: str) -> None:
        """Give a refit up whose worker died; the fold's model stays."""
