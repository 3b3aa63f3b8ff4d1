"""Who runs the jobs of a search: this process, Ray Tune's workers, or this process until Ray is there.

What is promised of time.  A fit looks at its deadline after every round.  One
that does not (a framework that hangs within a round) is left to itself:

* a worker of Ray ends its own process, a little after its job's deadline, and
  another one takes its place (:mod:`factory.search.tune`);
* a fit in this process runs in a thread of its own (:mod:`factory.search.watchdog`).
  The search goes on without it: nobody waits for the fit any longer, its result
  is not used, and no further trial is started here; refits are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

from factory.families.base import Shape
from factory.search.cluster import Crew, RaySession, local_cpus, memory_budget_mb
from factory.search.jobs import Jobs, TrialData
from factory.search.near import NearWorkers
from factory.search.plan import Plan, family
from factory.search.trial import TrialRunner
from factory.search.tune import WORKERS_ARE_UP, run_tune
from factory.search.watchdog import LEFT_BEHIND, awaited
from factory.settings import Settings

log = logging.getLogger(__name__)

WORKER_NICENESS = 15
"""Of the processes that Ray starts (its RAY_worker_niceness)."""
SWITCH_S = 5e-4
"""Python's switch interval while Ray starts beside a fit. With the usual 5 ms a booster, which asks for the interpreter
several times a round, waited for Tune's loop each time: 20 ms a round instead of 3 (measured)."""
TUNE_START_S = 5.0
"""Until Tune's workers are up (measured 3 to 8 s): fits that take less altogether are done here meanwhile."""


class Executor:
    """Runs jobs: inline, on Ray Tune, or inline until Ray is there.

    Args:
        plan: Names the families, and the memory that all processes may take.
        data: What the jobs work on.
        ray: Connected to when it is needed; None keeps every job in this process, one thread each.
        settings: Of this process.
        usable: Whether there is a model already, so that a fit that does not end need not be waited for.
        near: Workers that serve where Ray is not worth its start; None where it always is.
    """

    def __init__(
        self,
        plan: Plan,
        data: TrialData,
        *,
        ray: RaySession | None,
        settings: Settings,
        usable: Callable[[], bool],
        near: NearWorkers | None = None,
    ) -> None:
        self._plan, self._data, self._ray, self._settings, self._usable = plan, data, ray, settings, usable
        self._near = near
        self._memory_mb = memory_budget_mb(plan.budget, settings)
        self._fit_mb = usual_fit_mb(plan, data)
        self._data_mb = data.dataset.memory_mb
        self.crew = self._crew_of(1 if ray is None else local_cpus(settings))

    def run(self, jobs: Jobs, *, small: bool, near: bool = False, name: str = "search") -> None:
        """Work through the jobs of a search, each on one CPU.

        Args:
            jobs: Where they come from; told how many may run at once.
            small: Whether no other process is worth its start.
            near: Whether workers of this machine do, without Ray.
            name: Of Tune's folder.
        """
        if small or self._ray is None or not (self.crew.workers or self._distributes):
            self._run_inline(jobs, lambda: True)
            return
        if near and self.crew.workers > 1 and self._run_near(jobs):
            return
        over = threading.Event()
        helper: AbstractContextManager[object] = contextlib.nullcontext()
        if not self._ray.connected and not self._distributes:
            sign = self._data.workspace / WORKERS_ARE_UP
            sign.unlink(missing_ok=True)  # an earlier attempt's

            def wanted() -> bool:
                return not (over.is_set() or sign.exists())

            helper = _Alongside(partial(self._run_inline, jobs, wanted, quick=True))
        with one_blas_thread(), helper:
            try:
                self.crew = self._crew_of(self._ray.connect().cpus)
                jobs.parallel = 1 if self._distributes else self.crew.workers
                self._run_tune(jobs, threads=1, name=name)
            finally:
                over.set()

    def _run_near(self, jobs: Jobs) -> bool:
        """Work through the jobs with workers that need no Ray; return False where Ray's have to go on."""
        assert self._near is not None
        self._near.start()
        try:
            # Once, by this process, while the workers import their frameworks: all of them need it first.
            TrialRunner(self._data).prepare(0)
        except Exception:
            log.warning("the first fold could not be prepared", exc_info=True)
        jobs.parallel = self.crew.workers
        return self._near.run(jobs, self._data, memory_limit_mb=self.crew.worker_mb)

    def run_few(self, jobs: Jobs, *, count: int, expected_s: float, name: str) -> None:
        """Work through jobs whose number is known: they share the CPUs of the search.

        Args:
            jobs: Where they come from.
            count: How many there are.
            expected_s: What they take altogether, on one CPU each.
            name: Of Tune's folder.
        """
        repeatable = self._plan.repeatable  # sums of several threads need not be equal to the last bit
        if self._ray is None or not self._ray.connected or not self.crew.workers or expected_s < TUNE_START_S:
            alone = repeatable or self._ray is None
            self._run_inline(jobs, lambda: True, threads=1 if alone else local_cpus(self._settings))
            return
        jobs.parallel = min(count, self.crew.workers)
        # All threads of a fit are on one node: what asks for more of them would wait for ever.
        threads = 1 if repeatable else max(1, min(self.crew.workers // count, self._ray.connect().node_cpus))
        self._run_tune(jobs, threads=threads, name=name)

    @property
    def _distributes(self) -> bool:
        return self._plan.request.resources.workers > 1

    def _crew_of(self, cpus: int) -> Crew:
        return Crew.of(cpus=cpus, memory_mb=self._memory_mb, fit_mb=self._fit_mb, data_mb=self._data_mb)

    def _run_tune(self, jobs: Jobs, *, threads: int, name: str) -> None:
        run_tune(jobs, self._data, threads=threads, memory_limit_mb=self.crew.worker_mb, name=name)

    def _run_inline(self, jobs: Jobs, wanted: Callable[[], bool], *, threads: int = 1, quick: bool = False) -> None:
        runner = TrialRunner(self._data, threads=threads, memory_limit_mb=max(self._memory_mb, 1000.0))
        while wanted() and not jobs.exhausted:
            job = jobs.next(quick=quick)
            if job is None:
                return
            name = f"trial-{job.trial.number}"
            result = awaited(partial(runner.run, job), name=name, until=job.deadline_at, usable=self._usable)
            if result is None:
                log.warning("trial %d (%s): %s", job.trial.number, job.trial.family, LEFT_BEHIND)
                jobs.lost(job, LEFT_BEHIND)
                return
            jobs.done(job, result)


def usual_fit_mb(plan: Plan, data: TrialData) -> float:
    """Return what the fit of a usual configuration takes: the median of the families' first bets."""
    n_rows, n_columns = len(data.splits[0].train), data.dataset.frame.shape[1]
    shape = Shape(n_rows=n_rows, n_columns=n_columns, n_classes=data.n_classes)
    families = [family(name) for name in plan.families if name != "constant"]
    needed = [
        one.memory_mb(
            n_rows=n_rows,
            n_columns=n_columns,
            n_classes=data.n_classes,
            parameters=one.portfolio(plan.task, shape=shape)[0].parameters,
        )
        for one in families
    ]
    return float(np.median(needed)) if needed else 0.0


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to the calling thread.

    Ray forks when it starts, and OpenBLAS ends its threads at a fork: a fit that waits for one of them at that moment
    in another thread waits for ever.
    """
    import scipy.linalg  # noqa: F401 - brings a BLAS of its own, which can be held only once it is loaded
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


class _Alongside:
    """Runs a function in a thread for the length of a ``with`` block, and re-raises what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name="inline-trials", daemon=True)

    def _guarded(self) -> None:
        with contextlib.suppress(OSError):  # a system that has no niceness of threads
            # As Ray's workers are: else they would share what one fit here leaves.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error

    def __enter__(self) -> None:
        self._before_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._thread.join()
        sys.setswitchinterval(self._before_s)
        if self._error is not None and exception[0] is None:
            raise self._error
