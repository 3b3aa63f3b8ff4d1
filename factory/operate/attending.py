"""What the controller does about one attempt: submit it, watch it, end it, and say what follows for its request.

Everything here may be done twice: a controller that was killed in between is
followed by one that finds the same attempt in the same state.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from factory.errors import Conflict, InvalidRequest, NotFound, ServiceFault, SystemFault
from factory.ledger import Attempt, Ledger, OpenAttempt, Outcome, RequestRecord
from factory.ledger.moments import now
from factory.ledger.records import ADOPTED
from factory.operate.jobs import JobInfo, Jobs, JobSpec, JobState
from factory.settings import Settings
from factory.spec import Actor, RequestState

log = logging.getLogger(__name__)

FAULTS = 3
"""Attempts in a row that may end by a fault that is not the requester's; then the request fails."""
BACK_OFF_S = 10.0
"""Until the first of them is tried again; twice as long each time."""
LOST_S = 15.0
"""A job that the cluster does not show so long after its submission is lost."""
REFUSED_S = 60.0
"""For which the cluster may refuse a job, while it answers otherwise, until the attempt has failed."""
GRACE_S = 30.0
"""For which an attempt that is asked to make room may go on with the trials that run; then it is stopped."""
OVERTIME, SLACK_S = 2.0, 300.0
"""An attempt that takes longer than its budget so many times, and so much more, hangs."""
UNKNOWN_S = 3600.0
"""Taken for the time of a request whose budget is its recipe's."""
KEPT_S, FORGOTTEN = 3600.0, 20
"""So long after its end the cluster forgets a job, so many at a time: each that it knows is told in every answer."""
LEDGER = "factory_ledger"
"""Metadata of our jobs: two factories may share one cluster."""
FAULT = "fault"
"""Kind of the event in which a driver tells the fault that ended its attempt."""

CONTROLLER = Actor(who="controller")

_MADE = (RequestState.REGISTERED, RequestState.SERVING, RequestState.REJECTED)


@dataclass
class Attendant:
    """Attends to attempts.

    Args:
        ledger: The state.
        jobs: The cluster.
        settings: Of this process; a job gets those that name places.
    """

    ledger: Ledger
    jobs: Jobs
    settings: Settings
    _unknown: set[str] = field(default_factory=set, init=False)
    _began_again: dict[str, datetime] = field(default_factory=dict, init=False)

    def admitted(self, request_id: str) -> Attempt:
        """Open an attempt: of the job that waits for it where one does, else of a job to be submitted.

        Raises:
            Conflict: the request cannot be admitted any more.
        """
        record = self.ledger.request(request_id)
        waits = record.door == "job" and self._is_alive(adopted_jobs([request_id], ledger=self.ledger).get(request_id))
        return self.ledger.admit(request_id, kind="adopted" if waits else "controller")

    def submit(self, attempt: Attempt) -> bool:
        """Hand an attempt's job to the cluster, which starts it once however often it is asked.

        Returns:
            Whether it can have it. An attempt whose job it refuses all the time has ended.

        Raises:
            ServiceFault: the cluster cannot be asked; the next pass asks again.
        """
        try:
            if attempt.kind == "controller":
                self.jobs.submit(self._spec(attempt))
        except InvalidRequest as wrong:
            # A setting of ours that no job can be given.
            self._fault(attempt, ServiceFault(wrong.message, hint=wrong.hint))
            return False
        except ServiceFault as fault:
            if self._lately(attempt.admitted_at, REFUSED_S):
                raise
            self._fault(attempt, fault)
            return False
        self.ledger.mark_submitted(attempt.submission_id)
        return True

    def attend(self, attempt: OpenAttempt, job: JobInfo | None) -> bool:
        """Look at an open attempt; return whether it was ended.

        Args:
            attempt: As the ledger has it, read before its job.
            job: As the cluster has it; None where it does not know it.

        Raises:
            ServiceFault: the cluster cannot be asked; the next pass asks again.
        """
        if job is None and attempt.submitted_at is None and attempt.wish != "cancel":
            # Killed between the attempt's row and the cluster's answer.
            return not self.submit(attempt)
        if job is None and self._lately(attempt.submitted_at, LOST_S):
            return False
        if job is None or job.state.ended:
            self._settle(attempt, job)
            self._began_again.pop(attempt.submission_id, None)
            return True
        if job.state is JobState.RUNNING and attempt.running_at is None:
            self.ledger.mark_running(attempt.submission_id)
        elif attempt.submitted_at is None:
            self.ledger.mark_submitted(attempt.submission_id)
        if self._is_over(attempt):
            self.jobs.stop(job.submission_id)
        return False

    def untidy(self, open_: Set[str], jobs: Mapping[str, JobInfo]) -> list[tuple[str, Callable[[], object]]]:
        """Return what is left to do about jobs of attempts that have ended, each with the id of its request.

        Those that still run are stopped, and the cluster forgets those that ended long ago.

        Args:
            open_: Submission ids of the open attempts, read before the jobs.
            jobs: As the cluster has them.
        """
        over = [
            job
            for job in jobs.values()
            if job.submission_id not in open_ and job.metadata.get(LEDGER) == self.ledger_id
        ]
        strays = [job for job in over if not job.state.ended and self._is_stray(job.submission_id)]
        # Not at once: a controller that was held up may still want to submit one of them, which its name forbids.
        old = [job for job in over if job.ended_at is not None and now() > job.ended_at + timedelta(seconds=KEPT_S)]
        acts = [(self.jobs.stop, job) for job in strays] + [(self.jobs.delete, job) for job in old[:FORGOTTEN]]
        return [(job.metadata.get("request", ""), partial(act, job.submission_id)) for act, job in acts]

    def _is_stray(self, submission_id: str) -> bool:
        """Whether the attempt of a job that runs has ended: its job came up late, or a stop was not heard."""
        try:
            return self.ledger.attempt(submission_id).ended_at is not None
        except NotFound:
            if submission_id not in self._unknown:
                log.warning("job %s is of this ledger, which does not know it", submission_id)
            self._unknown.add(submission_id)
            return False

    def _is_over(self, attempt: OpenAttempt) -> bool:
        """Whether a job that runs has to be stopped."""
        if attempt.wish == "cancel" or self._is_late(attempt):
            return True
        if attempt.wish is None or attempt.request_state is RequestState.EVALUATING:
            # What is evaluated is nearly done, and cannot be gone on with in the middle.
            return False
        return not self._lately(self.ledger.request(attempt.request_id).preempt_requested_at, GRACE_S)

    def _is_late(self, attempt: OpenAttempt) -> bool:
        if attempt.running_at is None:
            return False
        time_s = attempt.time_s or attempt.expected_s or UNKNOWN_S
        began = min(attempt.running_at, self._began_again.get(attempt.submission_id, attempt.running_at))
        if began > now():
            # The clock was set back: from here on its time runs once more.
            began = self._began_again[attempt.submission_id] = now()
        return now() > began + timedelta(seconds=OVERTIME * time_s + SLACK_S)

    @staticmethod
    def _lately(since: datetime | None, most_s: float) -> bool:
        """Whether something was no longer ago than that; what is to come was noted before the clock was set back."""
        return since is not None and since <= now() < since + timedelta(seconds=most_s)

    # --- ending --------------------------------------------------------------

    def _settle(self, attempt: OpenAttempt, job: JobInfo | None) -> None:
        """End an attempt whose job is over, and say what follows for its request: first that, then the attempt's end.

        Killed in between, the next pass finds the request where this one left it, and the attempt still open.
        """
        record = self.ledger.request(attempt.request_id)
        self._keep_log(attempt, job)
        end = self.ledger.end_attempt
        if record.state in _MADE:
            end(attempt.submission_id, "done")
        elif record.state is RequestState.FAILED:
            ours: Outcome = "timed_out" if self._is_late(attempt) else "system_fault"
            end(attempt.submission_id, "user_fault" if record.fault == "user" else ours, _told(record))
        elif record.state is RequestState.CANCELLED:
            end(attempt.submission_id, "cancelled")
        elif attempt.wish == "cancel":
            self._cancel(attempt, "Cancelled.")
        elif attempt.wish == "preempt":
            end(attempt.submission_id, "preempted", "It made room; its finished trials are kept.")
        elif self._is_late(attempt):
            late = ServiceFault(
                "The job did not end in twice its time and five minutes more, and was stopped.",
                hint="Look at its log; a framework may hang on these data. `factory requests retry ID` tries again.",
            )
            self.ledger.fail(attempt.request_id, late)
            end(attempt.submission_id, "timed_out", late.message)
        elif attempt.kind == "adopted" and job is not None and job.state is JobState.STOPPED:
            # Not by us: somebody stopped, at the cluster itself, what was submitted there.
            self._cancel(attempt, "Its job was stopped.")
        else:
            lost = job is None or (job.exit_code is None and job.state is JobState.FAILED)
            self._fault(attempt, self._fault_of(attempt, job), outcome="lost" if lost else "system_fault")

    def _cancel(self, attempt: Attempt, message: str) -> None:
        self.ledger.advance(attempt.request_id, RequestState.CANCELLED, message)
        self.ledger.end_attempt(attempt.submission_id, "cancelled")

    def _fault(self, attempt: Attempt, fault: SystemFault, *, outcome: Outcome = "system_fault") -> None:
        """End an attempt that a fault of ours ended: it is tried again, until too many have ended so."""
        n_faults = self.ledger.faults_in_a_row(attempt.request_id) + 1
        if n_faults >= FAULTS:
            self.ledger.fail(attempt.request_id, fault)
        wait_s = BACK_OFF_S * 2 ** (n_faults - 1) if n_faults < FAULTS else 0.0
        self.ledger.end_attempt(attempt.submission_id, outcome, fault.message, retry_after_s=wait_s)

    def _fault_of(self, attempt: Attempt, job: JobInfo | None) -> SystemFault:
        """Return what ended an attempt: what its driver told, or what the cluster says."""
        told = self.ledger.last_events([attempt.request_id], FAULT).get(attempt.request_id)
        if told is not None and told.time >= attempt.admitted_at:
            return SystemFault(told.message, hint=str(told.payload.get("hint", "")))
        if job is None:
            said = "the cluster does not know its job any more"
        elif job.exit_code is not None:
            said = f"its job ended with exit code {job.exit_code}"
        elif job.state is JobState.STOPPED:
            said = "its job was stopped at the cluster"
        else:
            said = f"its job was lost: {job.message or job.state}"
        return ServiceFault(
            f"Attempt {attempt.number} broke off: {said}.",
            hint=f"`factory requests logs {attempt.request_id}` shows what it said last.",
        )

    def _keep_log(self, attempt: OpenAttempt, job: JobInfo | None) -> None:
        """Copy a job's log beside the request, since the cluster forgets it; a log is nothing to fail for."""
        if job is None:
            return
        path = log_path(self.settings, attempt.request_id, attempt.number)
        try:
            text = self.jobs.logs(job.submission_id)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_suffix(".part")
            draft.write_text(text, encoding="utf-8")
            draft.chmod(0o600)
            draft.replace(path)
        except (OSError, NotFound, ServiceFault) as error:  # with a node that died, its logs are gone
            log.warning("request %s: the log of attempt %d was not kept: %s", attempt.request_id, attempt.number, error)

    # --- jobs ----------------------------------------------------------------

    def _spec(self, attempt: Attempt) -> JobSpec:
        settings, request_id = self.settings, attempt.request_id
        env = {
            "FACTORY_HOME": str(settings.root),
            "FACTORY_ATTEMPT": attempt.submission_id,
            "FACTORY_GRANTED_CPUS": str(max(int(attempt.cpus), 1)),
            "FACTORY_LEDGER_URL": settings.ledger,
            "MLFLOW_TRACKING_URI": settings.tracking_uri,
            "FACTORY_RECIPES": str(settings.recipes_folder),
            "FACTORY_FEATURE_REPO": str(settings.feature_repo_folder),
            **self._credentials(attempt),
        }
        # Nothing is reserved for the driver: its trials reserve what they use, and could not start beside it.
        return JobSpec(
            submission_id=attempt.submission_id,
            entrypoint=(str(Path(sys.executable).with_name("factory")), "run", request_id),
            env=env,
            metadata={LEDGER: self.ledger_id, "request": request_id, "team": attempt.team},
            folder=str(settings.workspace(request_id)),
        )

    def _credentials(self, attempt: Attempt) -> dict[str, str]:
        """Return what lets code in a job ask the portal for its own request and nothing else; it ends with the attempt.

        None for a team that was never made, or is archived: the job itself does not need it.
        """
        name = f"job {attempt.submission_id}"[:64]
        try:
            issued = self.ledger.issue_token(
                name, team=attempt.team, scopes=("read",), request_id=attempt.request_id, by=CONTROLLER
            )
        except (Conflict, NotFound):
            return {}
        return {"FACTORY_URL": self.settings.public, "FACTORY_TOKEN": issued.secret}

    @property
    def ledger_id(self) -> str:
        """What tells our jobs from those of another factory on the same cluster."""
        return hashlib.sha256(self.ledger.url.encode()).hexdigest()[:16]

    def _is_alive(self, job_id: str | None) -> bool:
        job = self.jobs.info(job_id) if job_id else None
        return job is not None and not job.state.ended


def adopted_jobs(request_ids: Iterable[str], *, ledger: Ledger) -> dict[str, str]:
    """Return the job that each request came with, as it told; those that came another way are left out."""
    told = ledger.last_events(request_ids, ADOPTED)
    return {request_id: str(event.payload["job"]) for request_id, event in told.items()}


def job_of(attempt: Attempt, *, ledger: Ledger) -> str:
    """Return the cluster's name of an attempt's job; one that came past the controller has told it."""
    if attempt.kind == "controller":
        return attempt.submission_id
    return adopted_jobs([attempt.request_id], ledger=ledger).get(attempt.request_id, attempt.submission_id)


def log_path(settings: Settings, request_id: str, number: int) -> Path:
    """Return where the log of an attempt is kept once its job has ended."""
    return settings.root / "logs" / request_id / f"{number}.log"


def _told(record: RequestRecord) -> str:
    return record.error.message if record.error else ""
