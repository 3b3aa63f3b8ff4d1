"""Ray's jobs as the controller needs them: submit at most once, look, stop, read the log, and how large Ray is.

:class:`Jobs` is the contract. ``factory/operate/ray_jobs.py`` speaks it to a
cluster and ``factory/testing/jobs.py`` to a simulated one;
``tests/operate/test_jobs.py`` holds both to it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from factory.errors import Detail, InvalidRequest
from factory.operate.admission import Capacity

LOG_BYTES = 1_000_000
"""The most of a log that is read: its end."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPOILT = re.compile(r"\0|\$[\w{]")


class JobState(StrEnum):
    """Where a job stands, in Ray's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether no state can follow."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobSpec:
    """One job to be started.

    Attributes:
        submission_id: Its name at Ray; a name is used once, also after the job was deleted.
        entrypoint: Program and arguments, each passed on as it is; they are shown in Ray's dashboard and log.
        env: Variables beside those that Ray's own processes have. Whoever holds Ray's token can read them.
        metadata: Kept by Ray beside the job.
        cpus: That the entrypoint itself holds; what its trials use is reserved by them in addition. With nothing
            reserved at all it runs on the head node.
        gpus: That the entrypoint itself holds.
        memory_mb: That the entrypoint itself holds; Ray counts it and enforces nothing.
        folder: Where it runs; made with mode 0700 where it is missing. Default: where Ray was started.
    """

    submission_id: str
    entrypoint: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    gpus: float = 0.0
    memory_mb: float = 0.0
    folder: str | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not _ID.fullmatch(self.submission_id):
            wrong.append(Detail("submission_id", f"{self.submission_id!r} is not letters, digits, '.', '_' and '-'"))
        if isinstance(self.entrypoint, str) or not self.entrypoint:
            wrong.append(Detail("entrypoint", "is a sequence of a program and its arguments, not a shell's text"))
        wrong += [Detail("entrypoint", f"{part!r} holds a zero byte") for part in self.entrypoint if "\0" in part]
        wrong += [Detail("folder", f"{self.folder!r} holds a zero byte")] * ("\0" in (self.folder or ""))
        wrong += [Detail("env", f"{n!r} is no name of a variable") for n in self.env if not _VARIABLE.fullmatch(n)]
        # The value is not told: it may be a secret.
        spoilt = [name for name, value in self.env.items() if _SPOILT.search(value)]
        wrong += [Detail("env", f"{n!r} holds a zero byte, or a $NAME that Ray would replace") for n in spoilt]
        if wrong:
            listed = "; ".join(f"{w.field} {w.message}" for w in wrong)
            hint = "In a URL, write %24 for a dollar sign." if spoilt else ""
            raise InvalidRequest(f"The job cannot be submitted: {listed}.", hint=hint, details=wrong)

    @property
    def command(self) -> str:
        """The line that Ray gives to a shell: quoted, with files of its own user only and no core dumps."""
        place = f"mkdir -p -- {shlex.quote(self.folder)} && cd -- {shlex.quote(self.folder)} && " if self.folder else ""
        return f"umask 077; ulimit -c 0; {place}exec {shlex.join(self.entrypoint)}"


@dataclass(frozen=True)
class JobInfo:
    """What Ray knows of a job.

    Attributes:
        submission_id: Its name.
        state: Where it stands.
        message: Ray's sentence about the state, with the end of the log where it failed.
        exit_code: Of the entrypoint that ended by itself, negative for a signal. None where it still runs, was
            stopped, or was lost with its node: a failed job without exit code is the cluster's fault.
        started_at: When Ray took it; Ray keeps no time of its leaving PENDING.
        ended_at: When it ended.
        metadata: As submitted.
    """

    submission_id: str
    state: JobState
    message: str = ""
    exit_code: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class Jobs(Protocol):
    """What the controller asks of a cluster.

    Each method raises :class:`~factory.errors.ServiceFault` where the cluster cannot be asked; whether the call had
    its effect is then unknown. A cluster that was restarted has forgotten its jobs.
    """

    def submit(self, spec: JobSpec) -> None:
        """Start a job; nothing happens where one of this name is known already."""

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end: SIGTERM, 3 s later SIGKILL; return whether there was something to stop.

        A job that still waits for resources ends only after it was given some, and may run for a moment.
        """

    def info(self, submission_id: str) -> JobInfo | None:
        """Return what is known of a job; None where there is none of this name."""

    def list(self) -> dict[str, JobInfo]:
        """Return all jobs by name, ended ones as long as they are not deleted."""

    def logs(self, submission_id: str) -> str:
        """Return the end of what a job printed, at most a megabyte of whole lines; empty before it began.

        Raises:
            NotFound: there is no job of this name.
        """

    def tail(self, submission_id: str) -> Iterator[str]:
        """Yield what a job prints, from its beginning, until it has ended.

        An empty string comes where it has been silent, so that the caller can look whether anyone still listens.

        Raises:
            NotFound: there is no job of this name.
        """

    def delete(self, submission_id: str) -> bool:
        """Let the cluster forget an ended job; return whether it was known.

        Raises:
            Conflict: it has not ended.
        """

    def capacity(self) -> Capacity:
        """Return what the living nodes have together, used or not."""
