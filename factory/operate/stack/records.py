"""What lies in ``FACTORY_HOME/stack``: what is to run, what runs, who supervises it, and what it printed."""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from factory.errors import Conflict, StorageFault
from factory.operate.stack.processes import Leader
from factory.spec import NAME, Document

LAST_LINES = 15


class HttpProbe(Document):
    """A service is well when this address answers with status 200.

    Attributes:
        contains: What the answer must hold.
        token_file: File with a bearer token for it.
    """

    url: str
    contains: str = ""
    token_file: Path | None = None
    timeout_s: float = 3.0


class Port(Document):
    """A port that a service listens on, and the variable that changes it."""

    number: int = Field(ge=1, le=65535)
    setting: str


class Service(Document):
    """One process that the stack keeps running, with whatever it starts itself.

    Attributes:
        command: Program and arguments; anyone on the machine can read them, so no secrets.
        env: Its whole environment.
        ports: That it listens on.
        health: How it is asked whether it is well; without, it is well while it runs.
        depends_on: Services that must be well before it is started the first time.
        start_s: In which it has to be well.
        stop_s: That it has after SIGTERM.
        url: Where people find it.
    """

    name: str = Field(pattern=NAME)
    command: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    health: HttpProbe | None = None
    depends_on: tuple[str, ...] = ()
    start_s: float = 60.0
    stop_s: float = 10.0
    url: str = ""


class Plan(Document):
    """All services of a stack, and the mark that their processes bear."""

    mark: str
    services: tuple[Service, ...]

    @model_validator(mode="after")
    def _can_be_started(self) -> Self:
        names = [service.name for service in self.services]
        if len(set(names)) < len(names):
            raise ValueError(f"Services have one name each; received {names}")
        for service in self.services:
            if unknown := set(service.depends_on) - set(names):
                raise ValueError(f"{service.name} depends on {sorted(unknown)}, which are not among {names}")
        try:
            TopologicalSorter({service.name: service.depends_on for service in self.services}).prepare()
        except CycleError as error:
            raise ValueError(f"Services depend on each other in a circle: {error.args[1]}") from error
        return self

    def dependents(self, name: str) -> tuple[str, ...]:
        """Return the services that depend on one."""
        return tuple(service.name for service in self.services if name in service.depends_on)


State = Literal["waiting", "starting", "healthy", "unhealthy", "restarting", "stopped"]


class ServiceState(Document):
    """Where a service stands, as its supervisor last saw it."""

    name: str
    state: State = "waiting"
    pid: int | None = None
    identity: str = ""
    started: datetime | None = None
    restarts: int = 0
    message: str = ""

    @property
    def leader(self) -> Leader | None:
        """Its main process, if it has one."""
        return Leader(self.pid, self.identity) if self.pid is not None else None

    @property
    def runs(self) -> bool:
        """Whether its main process lives."""
        return self.leader is not None and self.leader.alive


class StackState(Document):
    """Where a stack stands, as its supervisor last saw it.

    Attributes:
        phase: "failed" is a stack that could not be started and was stopped again.
        fault: Why, for a person.
    """

    mark: str
    pid: int
    identity: str
    phase: Literal["starting", "running", "stopping", "stopped", "failed"]
    services: tuple[ServiceState, ...]
    fault: str = ""

    @property
    def supervised(self) -> bool:
        """Whether its supervisor lives and has not come to its end."""
        return self.phase not in ("stopped", "failed") and Leader(self.pid, self.identity).alive


class StackFolder:
    """The folder of one stack.

    Args:
        root: The FACTORY_HOME that it is part of.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "stack"

    def prepare(self) -> Path:
        """Make the folder, for its owner only, and return it.

        Raises:
            StorageFault: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as error:
            raise self._unusable(error) from error
        return self.path

    def lock(self) -> int:
        """Take the stack for this process and those that inherit the returned descriptor, as long as one lives.

        Raises:
            Conflict: a stack of this FACTORY_HOME runs.
            StorageFault: the folder cannot be used.
        """
        self.prepare()
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            state = self.state()
            who = f", supervised by process {state.pid}" if state is not None and state.supervised else ""
            raise Conflict(
                f"The stack of {str(self.root)!r} runs already{who}.",
                hint="`factory status` shows it, `factory down` stops it; another FACTORY_HOME has a stack of its own.",
            ) from None
        return descriptor

    def plan(self) -> Plan | None:
        """Return what was to run the last time; None where nothing was, or another release wrote it."""
        with suppress(OSError, ValidationError):
            return Plan.model_validate_json((self.path / "plan.json").read_bytes())
        return None

    def state(self) -> StackState | None:
        """Return what runs; None where nothing was started, or another release did."""
        with suppress(OSError, ValidationError):
            return StackState.model_validate_json((self.path / "state.json").read_bytes())
        return None

    def running(self, name: str) -> tuple[Service, int] | None:
        """Return a service that the stack keeps running, with the number of its process; None where it does not."""
        plan, state = self.plan(), self.state()
        if plan is None or state is None or not state.supervised:
            return None
        pids = {one.name: one.pid for one in state.services if one.runs}
        return next(
            ((service, pid) for service in plan.services if service.name == name and (pid := pids.get(name))), None
        )

    def write(self, document: Plan | StackState) -> None:
        """Write what is to run (it may hold secrets), or what runs; readers see the old or the new one.

        Raises:
            StorageFault: it cannot be written.
        """
        path = self.path / ("plan.json" if isinstance(document, Plan) else "state.json")
        fresh = path.with_suffix(".new")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(document.model_dump_json(indent=1))
            fresh.replace(path)
        except OSError as error:
            raise self._unusable(error) from error

    def pid_file(self, name: str) -> Path:
        """File with the number of a service's process, for other tools."""
        return self.path / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        """File with what a service printed, a JSON object each line."""
        return self.path / f"{name}.log"

    def last_lines(self, name: str, *, most: int = LAST_LINES) -> str:
        """Return the end of what a service printed, as it printed it."""
        with suppress(OSError), self.log_file(name).open(errors="replace") as file:
            return "\n".join(_message(line) for line in deque(file, maxlen=most))
        return ""

    def _unusable(self, error: OSError) -> StorageFault:
        return StorageFault(
            f"{str(self.path)!r} cannot be used: {error.strerror or error}.",
            hint="Free some space, or set FACTORY_HOME to a folder that this user may write.",
        )


def _message(line: str) -> str:
    with suppress(ValueError, AttributeError):
        return str(json.loads(line).get("message", line.rstrip()))
    return line.rstrip()


def now() -> datetime:
    """Return the time as it is written into records."""
    return datetime.now(UTC)
