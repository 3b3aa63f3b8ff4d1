"""Batches: checked where they are declared, started when they are due, and attended to until they have ended.

A run is one job of the cluster, named as the run.  Whatever is done here may
be done twice: a controller that was killed in between is followed by one that
finds the same run in the same state.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from factory.data.loading import uploaded
from factory.errors import Detail, InvalidRequest, NotFound, ServiceFault
from factory.ledger import Batch, BatchRun, Ledger
from factory.ledger.moments import now
from factory.operate.attending import KEPT_S, LOST_S, REFUSED_S, log_path
from factory.operate.intake import may_be_named, not_allowed
from factory.operate.jobs import JobInfo, Jobs, JobSpec
from factory.parsing import parse
from factory.settings import Settings
from factory.spec import Actor, BatchWish, Principal

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Runs at a time, those of one team only where no other one waits: each takes one CPU of the head node beside what
admission has given away."""
FAILED_S = 600.0
"""After which the start of a run that could not be started is tried again; others have its turn meanwhile."""
LOGGED_AGAIN_S = 300.0
"""After which it is looked again whether the log of a run is kept, for as long as the cluster has it."""
CLEANED_EVERY = timedelta(hours=1)
_LEDGER = "factory_batches"
"""Metadata of our jobs, with the ledger that they are of."""


def batch_folder(batch: str, settings: Settings) -> Path:
    """Return the folder of a batch's runs."""
    return settings.root / "batches" / batch


def run_folder(run: BatchRun, settings: Settings) -> Path:
    """Return the folder that a run writes its predictions into."""
    return settings.root / run.folder


def run_log(run: BatchRun, settings: Settings) -> Path:
    """Return where the log of a run is kept once its job has ended."""
    return log_path(settings, run.id, 1)


def log_of(run: BatchRun, *, jobs: Jobs, settings: Settings) -> str:
    """Return what a run's job has printed so far; empty where it has not begun, or its log is gone.

    Raises:
        ServiceFault: the cluster, which has the log, does not answer.
        OSError: the log cannot be read.
    """
    path = run_log(run, settings)
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    try:
        return jobs.logs(run.id)
    except NotFound:
        return ""


# --- declaring -----------------------------------------------------------------------


def declare(document: object, *, ledger: Ledger, settings: Settings, by: Actor, asker: Principal | None) -> Batch:
    """Check a batch and store it.

    Args:
        document: The batch, not checked yet.
        ledger: Where it is stored.
        settings: Name the folders that data may be named in.
        by: Who declares it, for the audit log.
        asker: Whose scopes and team count; None for somebody who runs this process, and may read what it may.

    Raises:
        InvalidRequest: it is not valid, or names rows that it may not; all problems are named.
        NotFound: the asker's team is another.
        Conflict: there is one of this name, the team has too many, or is archived.
    """
    wish = parse(BatchWish, document, what="batch")
    _require_zone(wish)
    if asker is not None and not asker.sees(wish.team):
        raise NotFound(
            f"There is no team {wish.team!r} that you may order for.",
            hint="Name the team that your token is of.",
            details=[Detail("team", f"{wish.team!r} is not known")],
        )
    anywhere = asker is None or (asker.team is None and asker.may("admin"))
    try:
        allowed(wish, anywhere=anywhere, ledger=ledger, settings=settings)
    except NotFound as error:
        raise InvalidRequest(error.message, hint=error.hint, details=error.details) from error
    return ledger.create_batch(wish, anywhere=anywhere, by=by)


def _require_zone(wish: BatchWish) -> None:
    try:
        if wish.schedule is not None:
            wish.schedule.require_zone()
    except ValueError as error:
        raise InvalidRequest(
            f"The batch is not valid: schedule: {error}.",
            hint="Mend the named field and try again.",
            details=[Detail("schedule", f"{error}.")],
        ) from error


def allowed(wish: BatchWish, *, anywhere: bool, ledger: Ledger, settings: Settings) -> str:
    """Return where the rows of a batch are, as a path.

    Raises:
        InvalidRequest: the path may not be named.
        NotFound: the upload or the variant is none that the team sees.
    """
    name = wish.variant.partition("@")[0].partition("/")[0]
    if not ledger.may_see("variant", name, wish.team):
        raise NotFound(
            f"There is no variant {name!r} that team {wish.team} sees.",
            hint="`factory variants list` shows them all.",
            details=[Detail("variant", f"{name!r} is not known")],
        )
    if wish.upload is not None:
        if not anywhere and not ledger.may_see("dataset", wish.upload, wish.team):
            raise NotFound(
                f"There is no upload {wish.upload[:12]!r}.",
                hint="Upload the table first.",
                details=[Detail("upload", f"{wish.upload[:12]!r} is not known")],
            )
        return str(uploaded(wish.upload, settings=settings))
    assert wish.path is not None
    if not Path(wish.path).is_absolute():
        raise InvalidRequest(
            f"path: {wish.path!r} is not absolute.",
            hint="A run begins in another folder: write the whole path.",
            details=[Detail("path", "is not absolute")],
        )
    require_named([wish.path], anywhere=anywhere, settings=settings)
    return wish.path


def require_named(paths: list[str], *, anywhere: bool, settings: Settings) -> None:
    """Return where all of some files may be read.

    Raises:
        InvalidRequest: one may not: it, or what its link leads to, lies elsewhere.
    """
    for path in paths:
        if not anywhere and not may_be_named(path, settings):
            message = not_allowed(path, settings, field="upload")
            raise InvalidRequest(
                f"path: {message}",
                hint="FACTORY_DATASET_FOLDERS says which folders may be named; its operator sets it.",
                details=[Detail("path", message)],
            )


def _team_of(batch: str) -> str:
    return batch.partition(".")[0]


def _turns(running: Counter[str], waiting: Mapping[str, str]) -> list[str]:
    """Return which of those that wait, who has waited longest first, may run now, by the teams of all of them.

    A team has a second run at a time only where no other one waits for its first.

    >>> _turns(Counter(), {"a1": "a", "a2": "a", "b1": "b"}), _turns(Counter({"a": 1}), {"a2": "a", "a3": "a"})
    (['a1', 'b1'], ['a2'])
    """
    left, teams, chosen = list(waiting), Counter(running), list[str]()
    while left and running.total() + len(chosen) < AT_ONCE:
        name = min(left, key=lambda one: teams[waiting[one]])  # the first of those with the fewest
        chosen.append(name)
        left.remove(name)
        teams[waiting[name]] += 1
    return chosen


# --- running -------------------------------------------------------------------------


@dataclass
class BatchAttendant:
    """Starts the runs of batches and attends to them.

    Args:
        ledger: The state.
        jobs: The cluster.
        settings: Of this process; a job gets those that name places.
        ledger_id: Tells our jobs from those of another factory.
    """

    ledger: Ledger
    jobs: Jobs
    settings: Settings
    ledger_id: str
    _cleaned: datetime | None = field(default=None, init=False)
    _logs: dict[str, datetime] = field(default_factory=dict, init=False)
    _failed: dict[str, datetime] = field(default_factory=dict, init=False)
    _refused: dict[str, datetime] = field(default_factory=dict, init=False)

    def acts(self, jobs: Mapping[str, JobInfo]) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield what is to be done, each with what it is about.

        Args:
            jobs: As the cluster has them; asked before this is called.
        """
        open_, moment = self.ledger.open_batch_runs(), now()
        has_job = {run.id: run for run in open_ if run.submitted_at is not None or run.id in jobs}
        for run in has_job.values():
            yield run.id, partial(self.attend, run, jobs.get(run.id))
        waiting = {run.id: run for run in open_ if run.id not in has_job}
        due = dict(self._due(moment))
        teams = {run_id: _team_of(run.batch) for run_id, run in waiting.items()}
        for turn in _turns(Counter(_team_of(run.batch) for run in has_job.values()), teams | due):
            if turn in waiting:
                yield turn, partial(self.attend, waiting[turn], None)
            else:
                yield turn, partial(self.start, turn)

    def _due(self, moment: datetime) -> Iterator[tuple[str, str]]:
        """Yield names and teams of batches that are due, but for those that could not be started a moment ago."""
        late = moment - timedelta(seconds=FAILED_S)
        self._failed = {name: at for name, at in self._failed.items() if late < at <= moment}
        yield from ((name, team) for team, name in self.ledger.due_batches(moment) if name not in self._failed)

    def untidy(self, jobs: Mapping[str, JobInfo]) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield what is left to do for runs that have ended, and once an hour for those that are not kept."""
        open_, moment = {run.id for run in self.ledger.open_batch_runs()}, now()
        self._refused = {run_id: at for run_id, at in self._refused.items() if run_id in open_}
        self._logs = {run_id: at for run_id, at in self._logs.items() if run_id in jobs}
        yield from self._untidy(open_, jobs)
        if self._cleaned is None or not self._cleaned <= moment < self._cleaned + CLEANED_EVERY:
            self._cleaned = moment
            # Each by itself: what is wrong with one keeps no other one.
            for name in self.ledger.batch_names():
                yield name, partial(self._clean, name)
            for folder in (self.settings.root / "logs").glob("batch-*"):
                yield folder.name, partial(self._remove_log, folder)

    def _clean(self, name: str) -> None:
        """Remove runs of a batch that it does not keep."""
        for run in self.ledger.old_batch_runs(self.ledger.batch(name)):
            self._remove(run)

    def start(self, name: str) -> BatchRun:
        """Start a run that is due, once for all times that were missed.

        Raises:
            Conflict: it is not due any more, or cannot run.
        """
        self._failed[name] = now()
        run = self.ledger.start_batch_run(name)
        del self._failed[name]
        log.info("run %d of batch %s is started", run.number, name, extra={"batch": name})
        self._submit(run)
        return run

    def attend(self, run: BatchRun, job: JobInfo | None) -> None:
        """Submit a run's job, stop it when it is late, or end the run when its job is over."""
        batch = self.ledger.batch(run.batch)
        if job is None and run.submitted_at is None:
            self._submit(run)
        elif job is None:
            if not self._lately(run.submitted_at, LOST_S):
                self._fail(run, "Its job was lost: the cluster does not know it any more.")
        elif job.state.ended:
            self._keep_log(run)
            late = " It had taken longer than its hours." if self._is_late(run, batch) else ""
            code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
            self._fail(
                run, f"Its job ended{code} without telling why.{late} `factory batches logs {run.batch}` shows more."
            )
        elif self._is_late(run, batch):
            self.jobs.stop(run.id)

    def _submit(self, run: BatchRun) -> None:
        try:
            self.jobs.submit(self._spec(run))
        except InvalidRequest as wrong:  # a setting of ours that no job can be given
            self._fail(run, wrong.message)
            return
        except ServiceFault as fault:
            # A cluster that refuses one job all the time, and answers otherwise.
            if self._lately(self._refused.setdefault(run.id, now()), REFUSED_S):
                raise
            self._fail(run, fault.message)
            return
        self._refused.pop(run.id, None)
        self.ledger.mark_batch_run(run.id)

    def _fail(self, run: BatchRun, message: str) -> None:
        self.ledger.end_batch_run(run.id, "failed", message)
        ended = self.ledger.batch_run(run.id)
        if ended.state == "failed":
            log.warning("run %d of batch %s failed: %s", run.number, run.batch, ended.message)

    def _untidy(self, open_: set[str], jobs: Mapping[str, JobInfo]) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield what is left to do about jobs of runs that have ended: logs are kept, and old jobs forgotten."""
        for job in jobs.values():
            if job.submission_id in open_ or job.metadata.get(_LEDGER) != self.ledger_id:
                continue
            if not job.state.ended:
                # Its run has told its end, and the process follows; or it was ended while its job came up late.
                yield job.submission_id, partial(self._end_stray, job)
                continue
            if not self._lately(self._logs.get(job.submission_id), LOGGED_AGAIN_S):
                self._logs[job.submission_id] = now()
                yield job.submission_id, partial(self._keep_ended_log, job.submission_id)
            if job.ended_at is not None and now() > job.ended_at + timedelta(seconds=KEPT_S):
                yield job.submission_id, partial(self.jobs.delete, job.submission_id)

    def _end_stray(self, job: JobInfo) -> None:
        try:
            ended = self.ledger.batch_run(job.submission_id).ended_at
        except NotFound:
            self.jobs.stop(job.submission_id)
            return
        if ended is not None and now() > ended + timedelta(seconds=LOST_S):
            self.jobs.stop(job.submission_id)

    def _keep_ended_log(self, run_id: str) -> None:
        try:
            run = self.ledger.batch_run(run_id)
        except NotFound:
            return
        if not run_log(run, self.settings).exists():
            self._keep_log(run)

    def _keep_log(self, run: BatchRun) -> None:
        """Copy a job's log, since the cluster forgets it; a log is nothing to fail for."""
        path = run_log(run, self.settings)
        try:
            text = self.jobs.logs(run.id)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_suffix(".part")
            draft.write_text(text, encoding="utf-8")
            draft.chmod(0o600)
            draft.replace(path)
        except (OSError, NotFound, ServiceFault) as error:
            log.warning("the log of run %d of batch %s was not kept: %s", run.number, run.batch, error)

    def _remove(self, run: BatchRun) -> None:
        """Remove an old run: its predictions, its log, and its row last, so that it is tried again."""
        for folder in (run_folder(run, self.settings), run_log(run, self.settings).parent):
            if folder.exists():
                shutil.rmtree(folder)
        self.ledger.forget_batch_run(run.id)
        log.info("removed run %d of batch %s, which keeps newer ones", run.number, run.batch)

    def _remove_log(self, folder: Path) -> None:
        """Remove the log of a run whose batch was deleted."""
        try:
            self.ledger.batch_run(folder.name)
        except NotFound:
            shutil.rmtree(folder)

    @staticmethod
    def _is_late(run: BatchRun, batch: Batch) -> bool:
        """Whether it has taken its hours: also where its process hangs before it has told that it has begun."""
        began = run.began or run.submitted_at
        return began is not None and now() > began + timedelta(hours=batch.hours)

    @staticmethod
    def _lately(since: datetime | None, most_s: float) -> bool:
        return since is not None and since <= now() < since + timedelta(seconds=most_s)

    def _spec(self, run: BatchRun) -> JobSpec:
        settings = self.settings
        env = {
            "FACTORY_HOME": str(settings.root),
            "FACTORY_LEDGER_URL": settings.ledger,
            "MLFLOW_TRACKING_URI": settings.tracking_uri,
            "FACTORY_FEATURE_REPO": str(settings.feature_repo_folder),
            "FACTORY_DATASET_FOLDERS": settings.dataset_folders or "",
            "FACTORY_CPUS": "1",
            "OMP_NUM_THREADS": "1",
        }
        # Nothing is reserved: while searches hold all CPUs, what is due at four would else begin at noon.
        return JobSpec(
            submission_id=run.id,
            entrypoint=(sys.executable, "-m", "serve.batch_run", run.id),
            env=env,
            metadata={_LEDGER: self.ledger_id, "batch": run.batch},
            folder=str(batch_folder(run.batch, settings)),
        )
