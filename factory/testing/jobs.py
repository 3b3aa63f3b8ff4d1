"""A cluster in memory that keeps the contract of Ray's jobs, with its own time and with faults on demand.

What a job does is a :class:`Script`.  Time moves only by
:meth:`FakeJobs.advance`, so that a day of 10,000 jobs passes in a second and
every run of a test is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count

from factory.errors import Conflict, NotFound, ServiceFault
from factory.operate.admission import Capacity
from factory.operate.jobs import LOG_BYTES, JobInfo, JobSpec, JobState

START_LIMIT_S = 900.0
"""Ray lets a job fail that was not given its resources by then (RAY_JOB_START_TIMEOUT_SECONDS)."""

SMALL = Capacity(cpus=2.0, gpus=0.0, memory_gb=8.0)


@dataclass(frozen=True)
class Script:
    """What a job does once it was given its resources; times are virtual seconds after it began to run.

    Attributes:
        start_s: From its resources to its beginning; Ray takes 0.7 to 2.5 s.
        run_s: How long it runs, unless something ends it.
        exit_code: With which it then ends.
        stop_s: How long it takes to end after it was stopped.
        lines: What it prints, each with its time.
        steps: What it does, each with its time: a call that acts as the job's driver would, on a ledger for example.
            A number that it returns ends the job there and then with this exit code.
    """

    start_s: float = 2.0
    run_s: float = 10.0
    exit_code: int = 0
    stop_s: float = 0.5
    lines: tuple[tuple[float, str], ...] = ()
    steps: tuple[tuple[float, Callable[[], int | None]], ...] = ()


@dataclass
class _Job:
    spec: JobSpec
    script: Script
    taken: datetime
    state: JobState = JobState.PENDING
    message: str = "Job has not started yet."
    exit_code: int | None = None
    ended: datetime | None = None
    placed: bool = False
    stopping: bool = False
    printed: list[str] = field(default_factory=list)

    @property
    def info(self) -> JobInfo:
        return JobInfo(
            submission_id=self.spec.submission_id,
            state=self.state,
            message=self.message,
            exit_code=self.exit_code,
            started_at=self.taken,
            ended_at=self.ended,
            metadata=dict(self.spec.metadata),
        )


class FakeJobs:
    """Jobs on one simulated node.

    Args:
        script: Says what a submitted job does.
        capacity: Of the node; jobs that do not fit wait.
        now: When its time begins.

    Attributes:
        now: Its time.
        reachable: Set it to False, and each call is a fault while the jobs go on.
        starts: How often each job began to run.
        calls: How often each method was called.
        specs: What was submitted, by name.
    """

    def __init__(
        self,
        script: Callable[[JobSpec], Script] = lambda _: Script(),
        *,
        capacity: Capacity = SMALL,
        now: datetime = datetime(2030, 1, 1, tzinfo=UTC),
    ) -> None:
        self.now = now
        self.reachable = True
        self.starts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.specs: dict[str, JobSpec] = {}
        self._script = script
        self._capacity = self._free = capacity
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[str, _Job] = {}
        self._infos: dict[str, JobInfo] = {}
        self._events: list[tuple[datetime, int, Callable[[], None]]] = []
        self._order = count()
        self._faults: dict[tuple[str, bool], int] = {}
        self._deleted: set[str] = set()

    # --- time and faults ------------------------------------------------------

    @property
    def next_event(self) -> datetime | None:
        """When something happens by itself next."""
        return self._events[0][0] if self._events else None

    @property
    def alive(self) -> frozenset[str]:
        """Jobs that have not ended, told also while nobody can reach them."""
        return frozenset(name for name, job in self._jobs.items() if not job.state.ended)

    @property
    def free(self) -> Capacity:
        """What no job holds."""
        return self._free

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that happens meanwhile, in order."""
        until = self.now + timedelta(seconds=seconds)
        while self._events and self._events[0][0] <= until:
            self.now, _, happen = heappop(self._events)
            happen()
        self.now = until

    def fail_next(self, operation: str, *, answer_lost: bool = False, times: int = 1) -> None:
        """Let the next calls of a method be faults: without effect, or with it and only the answer lost."""
        self._faults[operation, answer_lost] = times

    def kill(self, submission_id: str, *, exit_code: int = -9) -> None:
        """Kill a running job's process."""
        job = self._jobs[submission_id]
        if job.state is JobState.RUNNING:
            self._exit(job, exit_code)

    def lose(self, submission_id: str) -> None:
        """Let the node of a job die under it."""
        job = self._jobs[submission_id]
        if not job.state.ended:
            self._end(job, JobState.FAILED, "Job supervisor actor died.")

    def restart(self) -> None:
        """Let the head die and come back: all jobs end and are forgotten."""
        self._jobs.clear()
        self._waiting.clear()
        self._infos.clear()
        self._deleted.clear()
        self._events.clear()
        self._free = self._capacity

    # --- the contract ---------------------------------------------------------

    def submit(self, spec: JobSpec) -> None:
        """Start a job; nothing happens where one of this name is known already."""
        with self._call("submit"):
            name = spec.submission_id
            if name in self._deleted:
                raise Conflict(f"Job {name!r} was deleted; Ray does not take its name again.")
            if name not in self._jobs:
                self.specs[name] = spec
                job = self._jobs[name] = self._waiting[name] = _Job(spec, self._script(spec), taken=self.now)
                self._infos[name] = job.info
                self._at(START_LIMIT_S, lambda: self._give_up(job))
                self._place()

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; return whether there was something to stop."""
        with self._call("stop"):
            job = self._jobs.get(submission_id)
            if job is None or job.state.ended:
                return False
            if not job.stopping:
                job.stopping = True
                if job.state is JobState.RUNNING:
                    self._at(job.script.stop_s, lambda: self._stopped(job))
            return True

    def info(self, submission_id: str) -> JobInfo | None:
        """Return what is known of a job; None where there is none of this name."""
        with self._call("info"):
            return self._infos.get(submission_id)

    def list(self) -> dict[str, JobInfo]:
        """Return all jobs by name."""
        with self._call("list"):
            return dict(self._infos)

    def logs(self, submission_id: str) -> str:
        """Return the end of what a job printed."""
        with self._call("logs"):
            return "".join(self._known(submission_id).printed)[-LOG_BYTES:]

    def tail(self, submission_id: str) -> Iterator[str]:
        """Yield what a job has printed since the last time, and nothing where time has not moved."""
        job, told = self._known(submission_id), 0
        while True:
            with self._call("tail"):
                if self._jobs.get(submission_id) is not job:
                    raise ServiceFault(f"Ray broke off the log of job {submission_id!r}.")
                fresh, told, ended = job.printed[told:], len(job.printed), job.state.ended
            if ended and not fresh:
                return
            yield "".join(fresh)

    def delete(self, submission_id: str) -> bool:
        """Forget an ended job; return whether it was known."""
        with self._call("delete"):
            job = self._jobs.get(submission_id)
            if job is None:
                return False
            if not job.state.ended:
                raise Conflict(f"Job {submission_id!r} is {job.state}.", hint="Stop it first.")
            del self._jobs[submission_id], self._infos[submission_id]
            self._deleted.add(submission_id)
            return True

    def capacity(self) -> Capacity:
        """Return what the node has, used or not."""
        with self._call("capacity"):
            return self._capacity

    # --- what happens ---------------------------------------------------------

    @contextmanager
    def _call(self, operation: str) -> Iterator[None]:
        self.calls[operation] += 1
        if not self.reachable or self._due(operation, answer_lost=False):
            raise ServiceFault("Ray cannot be reached.", hint="The test wants it so.")
        yield
        if self._due(operation, answer_lost=True):
            raise ServiceFault("Ray does not answer in time.", hint="The test wants it so.")

    def _due(self, operation: str, *, answer_lost: bool) -> bool:
        left = self._faults.get((operation, answer_lost), 0)
        self._faults[operation, answer_lost] = max(0, left - 1)
        return left > 0

    def _known(self, submission_id: str) -> _Job:
        if submission_id not in self._jobs:
            raise NotFound(f"Ray knows no job {submission_id!r}.")
        return self._jobs[submission_id]

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        heappush(self._events, (self.now + timedelta(seconds=seconds), next(self._order), happen))

    def _place(self) -> None:
        """Give resources to those that wait and fit, in the order in which they came."""
        for name, job in list(self._waiting.items()):
            left = _less(self._free, job.spec)
            if min(left) >= -1e-9:
                self._free, job.placed = left, True
                del self._waiting[name]
                self._at(job.script.start_s, partial(self._begin, job))

    def _begin(self, job: _Job) -> None:
        if job.state is not JobState.PENDING:
            return
        self.starts[job.spec.submission_id] += 1
        self._change(job, JobState.RUNNING, "Job is currently running.")
        for at_s, text in job.script.lines:
            self._at(at_s, partial(self._print, job, text))
        for at_s, step in job.script.steps:
            self._at(at_s, partial(self._step, job, step))
        self._at(job.script.run_s, lambda: self._exit(job, job.script.exit_code))
        if job.stopping:
            self._at(job.script.stop_s, lambda: self._stopped(job))

    def _print(self, job: _Job, text: str) -> None:
        if job.state is JobState.RUNNING:
            job.printed.append(f"{text}\n")

    def _step(self, job: _Job, step: Callable[[], int | None]) -> None:
        if job.state is JobState.RUNNING and (code := step()) is not None:
            self._exit(job, code)

    def _exit(self, job: _Job, exit_code: int) -> None:
        if job.state is JobState.RUNNING:
            job.exit_code = exit_code
            if exit_code == 0:
                self._end(job, JobState.SUCCEEDED, "Job finished successfully.")
            else:
                self._end(job, JobState.FAILED, f"Job entrypoint command failed with exit code {exit_code}.")

    def _stopped(self, job: _Job) -> None:
        if job.state is JobState.RUNNING:
            self._end(job, JobState.STOPPED, "Job was intentionally stopped.")

    def _give_up(self, job: _Job) -> None:
        if job.state is JobState.PENDING:
            self._end(job, JobState.FAILED, f"Job supervisor actor failed to start within {START_LIMIT_S} seconds.")

    def _end(self, job: _Job, state: JobState, message: str) -> None:
        job.ended = self.now
        self._waiting.pop(job.spec.submission_id, None)
        self._change(job, state, message)
        if job.placed:
            self._free = _less(self._free, job.spec, times=-1)
            self._place()

    def _change(self, job: _Job, state: JobState, message: str) -> None:
        job.state, job.message = state, message
        self._infos[job.spec.submission_id] = job.info


def _less(capacity: Capacity, spec: JobSpec, *, times: int = 1) -> Capacity:
    return Capacity(
        cpus=capacity.cpus - times * spec.cpus,
        gpus=capacity.gpus - times * spec.gpus,
        memory_gb=capacity.memory_gb - times * spec.memory_mb / 1000,
    )
