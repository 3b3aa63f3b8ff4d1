"""How long a request takes and what it computes, from how the engine spends its time and from what was seen.

A request is made in parts: reading and screening, a search, and the finish
(bundle, scores, gate, registration).  A timed search is ended by the clock; a
counted one, a refit and an incremental making end when their fits are through,
or by the same clock.  So each part has a stated prior, and the history of the
team's requests of the same recipe and kind says how wrong their sum was.
docs/decisions/quotes.md tells where the priors come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

import numpy as np

from factory.ledger import Ledger, PastSearch
from factory.operate.quotes.history import Asked, PastMaking
from factory.operate.quotes.spread import Spread
from factory.search.clock import LEAST_S, LEAST_SEARCH_S, finish_s_of
from factory.search.cluster import Crew, memory_budget_mb
from factory.search.engine import INLINE_S
from factory.search.history import COUNTED_MEMBERS
from factory.search.standing import fold_s
from factory.settings import Settings
from factory.spec import Budget, Trial, Variant

LATE_SHARE, LATE_S = 0.05, 15.0
"""What the engine promises: its process ends within the budget, a twentieth of it and 15 s."""
START_S, END_S = Spread(2.8, 3.8, 6.3), Spread(0.2, 0.4, 0.7)
"""Process, imports and ledger, until the data are read; and until the process is gone. On one CPU."""
PACE, PACE_SEEN = Spread(0.3, 0.75, 1.1), Spread(0.8, 1.0, 1.4)
"""How long a machine takes for what every request begins and ends with, by that on which these priors were measured; a
disk that has all in memory makes it a third. The second one is how much that changes once earlier starts tell it."""
READ_S, READ_CELL_S = Spread(1.0, 1.6, 3.0), Spread(1e-6, 3e-6, 8e-6)
"""Reading, typing, screening, splitting: at least, and for each cell."""
SETUP_S = Spread(1.0, 2.0, 4.0)
"""Until the first trial: the probe of columns and target, and the first framework."""
PARENT_S = Spread(1.0, 1.9, 3.5)
"""Until a parent's bundle is there, in place of a search's set-up."""
FINISH_S = Spread(2.0, 3.0, 6.5)
"""Scores, gate, explanations, bundle and MLflow for one variant."""
REGISTRY_S, REGISTRY_CPU_S = 6.0, Spread(1.5, 3.0, 5.0)
"""MLflow is imported beside the search, which ends no earlier; what it computes comes on top."""
RAY_S, RAY_CPU_S = Spread(10.0, 13.0, 18.0), Spread(6.0, 11.0, 18.0)
"""Until Ray and Tune are up and down again, and what their processes compute."""
USED_FOLDS, USED_HOLDOUT, USED_SEGMENTS = Spread(0.93, 0.98, 1.0), Spread(0.70, 0.77, 0.96), Spread(0.8, 0.96, 1.08)
"""Part of its time that a timed search uses. Of a holdout a quarter is kept for refits, which take less; segments fill
what is left in shares, and one that has begun may be late."""
BUSY, BUSY_INLINE = Spread(0.5, 0.74, 0.92), Spread(0.5, 0.75, 0.95)
"""Part of the workers' time that is spent in fits, once the search is set up."""
FOLD_S, FOLD_CELL_S = 0.2, 15e-6
"""A fold of a middling configuration: at least, and for each cell of its training rows and each class beyond two."""
FOLD_UNKNOWN = Spread(0.3, 2.0, 8.0)
FOLD_FACTOR, PAST_FACTOR = 2.2, 1.6
"""Within this factor lie four in five: of a fold by its table's size; of one by the trials of earlier searches."""
GO_ON_FACTOR = 3.0
"""The same of a fit that goes on from an earlier one, which may stop at once or take as long as a new one."""
VALUE_BYTES = 8
"""Of a number, or of a text that many rows share; other texts take more, which is not known before they are read."""
NEAREST, MOST_TRIALS = 2, 25
"""Earlier searches whose trials tell what a fold costs, and trials of each."""


@dataclass(frozen=True)
class Size:
    """Of a table as it is learned from: rows, features and classes; 0 classes for regression and where not known."""

    n_rows: int
    n_columns: int
    n_classes: int = 0

    @property
    def cells(self) -> float:
        """Values that a fit reads; each class beyond two is another model of them."""
        return float(self.n_rows) * self.n_columns * max(1, self.n_classes - 1)


@dataclass(frozen=True)
class Estimate:
    """What a request takes.

    Attributes:
        making_s: Wall time from when its data are read to its end.
        around_s: Wall time before and after that: of the start and the end of its process.
        fits_s: Seconds of all its trials.
        rest_cpu_s: Processor time of everything else.
        threads: Of each trial.
    """

    making_s: Spread
    around_s: Spread
    fits_s: Spread
    rest_cpu_s: Spread
    threads: int = 1

    @property
    def cpu_s(self) -> Spread:
        """Processor time of all of it."""
        return self.fits_s.times(self.threads) + self.rest_cpu_s + self.around_s

    @property
    def wall_s(self) -> Spread:
        """Wall time of all of it."""
        return self.making_s + self.around_s

    def corrected(self, cases: Sequence[tuple[Estimate, PastMaking]], *, fits: bool = True) -> Estimate:
        """Return it as past cases say, each with the estimate that was made of it in the same way.

        Args:
            cases: Estimates, and what came.
            fits: Whether they tell what fits take, too.
        """
        making_s = self.making_s.corrected([one.making_s.residual(was.making_s) for one, was in cases])
        if not fits:
            return replace(self, making_s=making_s)
        seen = [one.fits_s.residual(was.fits_s) for one, was in cases]
        return replace(self, making_s=making_s, fits_s=self.fits_s.corrected(seen))


def pace_of(past: Sequence[PastMaking]) -> Spread:
    """Return how long the machine takes for what every request begins and ends with, as the starts of others tell."""
    starts = [was.start_s for was in past if was.start_s is not None]
    return PACE_SEEN.times(float(np.median(starts)) / START_S.mid) if starts else PACE


def promise_s(time_s: float) -> float:
    """Return the seconds after which a request's process has ended."""
    return time_s * (1 + LATE_SHARE) + LATE_S


@lru_cache(maxsize=4096)
def estimate(asked: Asked, size: Size | None, fold: Spread, *, pace: Spread, cpus: int, settings: Settings) -> Estimate:
    """Return what a request takes by the stated priors; kept, since each quote asks for those of past requests again.

    Args:
        asked: What it asks for.
        size: Of its table; None where nobody knows.
        fold: Seconds of one fold, or of one refit of a parent's whole blend.
        pace: Of the machine, as :func:`pace_of` tells it.
        cpus: That it may use.
        settings: Of this process.
    """
    # The clock of the budget starts with the process.
    time_s = max(asked.time_s - pace.by(START_S).mid, LEAST_S)
    clock_s = max(time_s - finish_s_of(asked.time_s), LEAST_SEARCH_S)
    read_s = pace.by(READ_S if size is None else READ_S + READ_CELL_S.times(size.cells))
    around_s, finish_s = pace.by(START_S) + pace.by(END_S), pace.by(FINISH_S)
    if asked.kind == "remade":
        fits_s = fold.times(1 / cpus).between(0.0, clock_s)
        rest_s = read_s + pace.by(PARENT_S) + finish_s
        return Estimate(rest_s + fits_s, around_s, fits_s, rest_s, threads=cpus)
    memory_mb = memory_budget_mb(Budget(memory_gb=asked.memory_gb), settings)
    few = asked.trials is not None and asked.trials <= 3
    inline = not asked.segmented and asked.workers == 1 and (clock_s < INLINE_S or few)
    workers = 1 if inline else max(_crew(size, cpus=cpus, memory_mb=memory_mb).workers, 1)
    set_up_s = read_s + pace.by(SETUP_S)
    # A table that takes the whole budget to read is searched all the same.
    least_s = max(read_s.mid + LEAST_SEARCH_S, REGISTRY_S)
    if asked.trials is None or asked.segmented:
        used = USED_SEGMENTS if asked.segmented else USED_FOLDS if asked.n_folds > 1 else USED_HOLDOUT
        search_s = used.times(clock_s).between(least_s, float("inf"))
        free_s = max(search_s.mid - set_up_s.mid, 1.0)
        # While Ray starts, the fits run in the driver, one at a time.
        alone_s = 0.0 if inline else min(RAY_S.mid, free_s)
        fits_s = (BUSY_INLINE if inline else BUSY).times(workers * free_s - (workers - 1) * alone_s)
    else:
        members = min(asked.trials, COUNTED_MEMBERS)
        n_folds = asked.trials + members * max(asked.n_folds - 1, 1)  # of a holdout: a refit
        fits_s = fold.times(n_folds).between(0.0, clock_s * workers)
        least_s = REGISTRY_S if inline else RAY_S.mid
        search_s = (set_up_s + fits_s.times(1 / workers)).between(least_s, max(clock_s, least_s))
    rest_cpu_s = set_up_s + pace.by(REGISTRY_CPU_S) + finish_s
    return Estimate(search_s + finish_s, around_s, fits_s, rest_cpu_s if inline else rest_cpu_s + RAY_CPU_S)


def _crew(size: Size | None, *, cpus: int, memory_mb: float) -> Crew:
    """Return the workers of a search over a table of that size."""
    data_mb = 0.0 if size is None else size.n_rows * size.n_columns * VALUE_BYTES / 1e6
    return Crew.of(cpus=cpus, memory_mb=memory_mb, data_mb=data_mb)


def fold_prior(size: Size | None) -> Spread:
    """Return what a fold takes by the size of its table alone."""
    if size is None:
        return FOLD_UNKNOWN
    return _within(FOLD_S + FOLD_CELL_S * size.cells, FOLD_FACTOR)


def fold_of_past(past: Sequence[PastMaking], size: Size, *, ledger: Ledger) -> Spread | None:
    """Return what a fold takes by the searches on the tables that were nearest in size; None where there are none."""
    searched = [m for m in past if m.asked.kind != "remade" and m.fits_s > 0]
    nearest = sorted(searched, key=lambda m: abs(np.log(size_of(m).cells / max(size.cells, 1))))[:NEAREST]
    costs = []
    for making in nearest:
        folds = [fold_s(t) for t in _fitted(ledger.past_search(making.request_id, most_trials=MOST_TRIALS))]
        if folds:
            costs.append(fmean(folds) * _growth(size.cells / size_of(making).cells))
    return _within(float(np.median(costs)), PAST_FACTOR) if costs else None


def refit_of(parent: Variant, size: Size | None, *, again: bool, ledger: Ledger) -> Spread | None:
    """Return what one fit of each member of a parent's blend takes; None where its trials are not known.

    Args:
        parent: The variant that is made again.
        size: Of the new table; as large as the parent's where nobody knows.
        again: Whether its members are fitted anew, or its models go on.
        ledger: Has its trials.
    """
    search = ledger.past_search(parent.request_id, segment=parent.segment)
    members = [trial for trial in search.trials if trial.number in search.blend and trial.cost_s > 0]
    if not members:
        return None
    growth = 1.0
    if size is not None and search.traits is not None:
        growth = _growth(
            size.cells / replace(size, n_rows=search.traits.n_rows, n_columns=search.traits.n_columns).cells
        )
    return _within(growth * sum(fold_s(trial) for trial in members), PAST_FACTOR if again else GO_ON_FACTOR)


def seen_fold(making: PastMaking, *, cpus: int) -> Spread:
    """Return what the fits of a past request without a search took, as :func:`refit_of` would have told it."""
    return _within(making.fits_s * cpus, PAST_FACTOR)


def size_of(making: PastMaking) -> Size:
    """Return the size of a past request's table."""
    return Size(making.traits.n_rows, making.traits.n_columns, making.traits.n_classes)


def _growth(ratio: float) -> float:
    """Return how much longer a fit takes on a table so many times as large; far apart, a size says little."""
    return min(max(ratio, 1 / 30), 30.0)


def _fitted(search: PastSearch) -> list[Trial]:
    return [trial for trial in search.trials if trial.folds and trial.family != "constant"]


def _within(mid: float, factor: float) -> Spread:
    return Spread(mid / factor, mid, mid * factor)
