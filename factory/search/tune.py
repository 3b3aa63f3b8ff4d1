"""Ray Tune as the executor: our proposals, its actors.

Tune never restores anything of its own; the ledger's history does.  Actors are
reused, and since Tune reuses by resource shape, each pool of families asks for
its own amount of memory: a worker so holds one heavy framework only.  A worker
that grew is recycled the same way, by a shape that is one megabyte larger.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from functools import cache
from typing import Any

import psutil

from factory.search.jobs import FitJob, FitResult, Jobs, TrialData
from factory.search.plan import family
from factory.search.trial import TrialRunner
from factory.search.watchdog import UNANSWERED, death_of, ending_this_process_after

POOL_MEMORY_MB = {"trees": 700, "torch": 1_000, "tensorflow": 1_400}
"""Resident memory of a worker with its frameworks imported, without data (docs/decisions/workers.md)."""
RECYCLE_SHARE = 0.8
"""A worker that holds this part of its limit after a trial is replaced: resident memory does not fall again."""
WORKERS_ARE_UP = "workers-are-up"
"""File of the workspace that the first worker makes: what runs elsewhere until then had better end."""
GRACE_S = 5.0
"""Tune stops whatever is still running so long after the search's deadline: trials on several workers, mostly."""


def run_tune(
    jobs: Jobs,
    data: TrialData,
    *,
    threads: int,
    memory_limit_mb: float,
    name: str,
) -> None:
    """Work through the jobs on the connected Ray.

    Args:
        jobs: Where trials come from; ``jobs.parallel`` of them run at once.
        data: Put into the object store once.
        threads: CPUs of each trial.
        memory_limit_mb: Resident memory that one worker may reach.
        name: Of the Tune run's folder.
    """
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(_worker_class(), data=data, memory_limit_mb=memory_limit_mb, threads=threads),
        lambda config: tune.PlacementGroupFactory([config["resources"]]),
    )
    # A trial that fails, or that is ended when time is up, is told with its reason; Ray's traceback says less.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    exchange = _Exchange(jobs, threads=threads, memory_limit_mb=memory_limit_mb)
    left_s = jobs.deadline.left_s
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_search_algorithm(exchange),
            num_samples=-1,
            reuse_actors=True,
            time_budget_s=left_s + GRACE_S if left_s < 10**6 else None,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(data.workspace / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()
    exchange.abandon(UNANSWERED)


def _configuration(job: FitJob, *, threads: int, generation: int) -> dict[str, Any]:
    """Return a trial's Tune configuration: the job, and the resource shape that decides which worker takes it."""
    kind = family(job.trial.family)
    # Ray Train's own workers hold the CPUs of a distributed trial; the trial itself only waits for them.
    cpus = {} if job.workers > 1 and kind.distributed else {"CPU": threads}
    memory_mb = POOL_MEMORY_MB.get(kind.pool, 1_000) + generation
    return {"job": job.model_dump_json(), "resources": {**cpus, "memory": memory_mb * 1_000_000}}


@cache
def _worker_class() -> type:
    from ray import tune

    class TrialWorker(tune.Trainable):  # type: ignore[misc]
        """Runs one trial per configuration and keeps its prepared folds between them."""

        def setup(self, config: dict[str, Any], data: TrialData, memory_limit_mb: float, threads: int) -> None:  # noqa: ARG002 - Tune's signature
            self._runner = TrialRunner(data, threads=threads, memory_limit_mb=memory_limit_mb)
            (data.workspace / WORKERS_ARE_UP).touch()

        def step(self) -> dict[str, Any]:
            """Run the whole trial and report once: many reports are what is slow in Tune."""
            job = FitJob.model_validate_json(self.config["job"])
            with ending_this_process_after(job):
                result = self._runner.run(job)
            resident_mb = psutil.Process().memory_info().rss / 1e6
            score = result.folds[-1].score if result.folds else float("nan")
            return {"score": score, "result": result.model_dump_json(), "resident_mb": resident_mb, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:  # noqa: ARG002 - Tune's signature
            return True

    return TrialWorker


class _Exchange:
    """Hands jobs to Tune and Tune's results back; remembers which Tune trial is which of ours."""

    def __init__(self, jobs: Jobs, *, threads: int, memory_limit_mb: float) -> None:
        self._jobs, self._threads, self._limit_mb = jobs, threads, memory_limit_mb
        self._jobs_by_trial: dict[str, tuple[FitJob, float]] = {}
        self._generation: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, object]:
        """Tune pickles its tuner for a restore that never happens here; nothing of ours goes along."""
        return {}

    def suggest(self, trial_id: str, finished: str) -> dict[str, Any] | str | None:
        """Return the next configuration, None to wait, or Tune's word for finished."""
        if len(self._jobs_by_trial) >= self._jobs.parallel:
            return None
        job = self._jobs.next()
        if job is None:
            return finished if self._jobs.exhausted else None
        self._jobs_by_trial[trial_id] = job, time.time()
        generation = self._generation[family(job.trial.family).pool]
        return _configuration(job, threads=self._threads, generation=generation)

    def complete(self, trial_id: str, result: dict[str, Any] | None, *, error: bool) -> None:
        """Take a trial's end, or the death of its worker."""
        if trial_id not in self._jobs_by_trial:
            return
        job, handed_at = self._jobs_by_trial.pop(trial_id)
        if result is None or "result" not in result or error:
            self._jobs.lost(job, death_of(job, handed_at=handed_at))
            return
        if result["resident_mb"] > RECYCLE_SHARE * self._limit_mb:
            self._generation[family(job.trial.family).pool] += 1
        self._jobs.done(job, FitResult.model_validate_json(result["result"]))

    def abandon(self, reason: str) -> None:
        """Give up what Tune has not brought back; a job that another executor runs is not Tune's to give up."""
        for job, _ in self._jobs_by_trial.values():
            self._jobs.lost(job, reason)
        self._jobs_by_trial.clear()


def _search_algorithm(exchange: _Exchange) -> object:
    from ray.tune.search import Searcher
    from ray.tune.search.search_generator import SearchGenerator

    class JobSearcher(Searcher):  # type: ignore[misc]
        """Tune's view of the exchange."""

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            return exchange.suggest(trial_id, Searcher.FINISHED)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            exchange.complete(trial_id, result, error=error)

    class StatelessGenerator(SearchGenerator):  # type: ignore[misc]
        """Writes no state: the ledger holds the history.

        Tune's own would be a pickle, and Tune copies the folder in the background while the next one is written.
        """

        def save_to_dir(self, dirpath: str, session_str: str) -> None:
            pass

    return StatelessGenerator(JobSearcher(metric="score", mode="max"))
