"""What is to hold of requests whatever is killed: seen while they are made, and read from the records afterwards."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Self

import psutil

from factory.ledger.records import UNDER_WAY
from factory.operate.attending import FAULTS, log_path
from factory.spec import RequestState, Trial, TrialState

from .works import Works

LOOK_S = 0.3
"""Between two looks at the processes of jobs, each of which lives for seconds."""


class Watch:
    """Watches the requests of a control plane while things are killed; a context manager.

    Args:
        works: The control plane.
    """

    def __init__(self, works: Works) -> None:
        self._works = works
        self._drivers: defaultdict[str, set[psutil.Process]] = defaultdict(set)
        self._most: Counter[str] = Counter()
        self._finished: dict[tuple[str, int], Trial] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._ended: set[str] = set()
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def under_way(self) -> dict[str, RequestState]:
        """Return the requests that have not ended, with their states."""
        states = {name: self._works.ledger.request(name).state for name in self.requests if name not in self._ended}
        self._ended |= {name for name, state in states.items() if state not in UNDER_WAY}
        return {name: state for name, state in states.items() if state in UNDER_WAY}

    def note_finished(self) -> None:
        """Keep what has finished until now: it may gain folds from here on, and nothing else."""
        for name in self.under_way():
            for trial in self._works.ledger.trials(name):
                if trial.finished:
                    self._finished[name, trial.number] = trial

    def story(self, name: str) -> str:
        """Return what happened to a request, and what its last job has said."""
        told = [f"{event.time:%H:%M:%S} {event.state}: {event.message}" for event in self._works.ledger.events(name)]
        log = log_path(self._works.settings, name, len(self._works.ledger.attempts(name)))
        return "\n".join((name, *told, log.read_text()[-2000:] if log.is_file() else ""))

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            working: Counter[str] = Counter()
            for process, attempt in self._works.drivers().items():
                self._drivers[attempt].add(process)
                working[attempt.rpartition("-")[0]] += 1
            self._most |= working

    # --- afterwards ------------------------------------------------------------

    def check(self) -> None:
        """Check all requests; they have ended."""
        ledger = self._works.ledger
        made = Counter(version["factory.request_id"] for version in self._works.versions())
        jobs = self._works.jobs.list()
        for name in self.requests:
            record = ledger.request(name)
            assert record.state is RequestState.REGISTERED, self.story(name)
            assert record.driver is None, name
            assert ledger.verify_events(name) is None, name
            (variant,) = ledger.variants(request_id=name)
            assert ledger.alias(variant.name, "champion") is not None
            assert made[name] == 1, f"{name} has {made[name]} versions in MLflow"
            self._check_attempts(name)
            self._check_trials(name)
        assert ledger.verify_audit() is None
        assert ledger.open_attempts() == []
        assert {job.submission_id for job in jobs.values() if not job.state.ended} == set()
        assert len({(v.name, v.version) for v in ledger.variants()}) == len(ledger.variants())

    def _check_attempts(self, name: str) -> None:
        attempts = self._works.ledger.attempts(name)
        told = [(attempt.outcome, attempt.message) for attempt in attempts]
        assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
        assert attempts[-1].outcome == "done", told
        assert {attempt.outcome for attempt in attempts[:-1]} <= {"system_fault", "lost"}, told
        assert len(attempts) <= FAULTS, told
        for before, after in pairwise(attempts):
            assert before.ended_at is not None
            assert before.ended_at <= after.admitted_at, f"{name}: two attempts at a time"
        for attempt in attempts:
            assert len(self._drivers[attempt.submission_id]) <= 1, f"{attempt.submission_id} was started twice"
        assert self._most[name] <= 1, f"{name}: two drivers at a time"
        assert self._works.ledger.request(name).attempt <= len(attempts), "each attempt has claimed once"

    def _check_trials(self, name: str) -> None:
        trials = {trial.number: trial for trial in self._works.ledger.trials(name)}
        ran = [trial for trial in trials.values() if trial.state is not TrialState.KILLED]
        configurations = Counter((t.family, json.dumps(t.parameters, sort_keys=True)) for t in ran)
        assert [c for c, n in configurations.items() if n > 1] == [], f"{name}: fitted again"
        assert all(trial.finished for trial in trials.values())
        for (request, number), known in self._finished.items():
            if request == name:
                now = trials[number]
                assert _kept(now) == _kept(known), "what had finished is as it was"
                assert _folds(known).items() <= _folds(now).items(), "or has gained folds"


def _kept(trial: Trial) -> tuple[object, ...]:
    return trial.number, trial.family, trial.parameters, trial.seed, trial.state, trial.origin, trial.reason


def _folds(trial: Trial) -> dict[int, float]:
    return dict(zip(trial.folds, trial.fold_scores, strict=True))
