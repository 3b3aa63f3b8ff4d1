"""Starting, stopping and looking at a stack from outside of its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil

from factory.errors import Conflict, Detail, ServiceFault
from factory.operate.ports import free_port
from factory.operate.stack.processes import MARK, SERVICE, end, family, memory_mb
from factory.operate.stack.records import Plan, Service, ServiceState, StackFolder, StackState, State, now
from factory.operate.stack.supervisor import LEFTOVER_S, Supervisor, wrong_with
from factory.spec import Document

LOOK_S = 0.2
SLACK_S = 30.0
"""That a supervisor has for its stop beside what its services may take; then it is killed."""
SUPERVISOR_S = 60.0
"""A supervisor that has not written its state by then, on a loaded machine, does not start."""

_LEFT_BEHIND: list[subprocess.Popen[bytes]] = []
"""Python warns of a child that is forgotten while it runs; these are meant to outlive us."""

Progress = Callable[[ServiceState], None]


class ServiceStatus(Document):
    """How a service is, asked just now."""

    name: str
    state: State
    pid: int | None
    ports: tuple[int, ...]
    url: str
    uptime_s: float | None
    memory_mb: float | None
    restarts: int
    message: str
    log: str


class StackStatus(Document):
    """How a stack is, asked just now.

    Attributes:
        supervised: Whether its supervisor lives.
        services: In the order in which they are declared; none where no stack was ever started.
        fault: Why it could not be started the last time.
    """

    supervised: bool = False
    services: tuple[ServiceStatus, ...] = ()
    fault: str = ""

    @property
    def well(self) -> bool:
        """Whether all that was to run runs and answers."""
        return self.supervised and all(service.state == "healthy" for service in self.services)


def start(root: Path, services: Sequence[Service], *, progress: Progress = lambda _: None) -> StackState:
    """Start a stack, leave its supervisor behind, and wait until all services are well.

    Args:
        root: Its FACTORY_HOME.
        services: What to start.
        progress: Told whenever a service's state changes.

    Raises:
        Conflict: a port is taken, or the stack runs already.
        ServiceFault: a service was not well in time; all are stopped again, and the end of its log is told.
        StorageFault: the FACTORY_HOME cannot be written.
    """
    folder = StackFolder(root)
    lock = folder.lock()
    try:
        _prepare(folder, services)
        errors = folder.path / "supervisor.err"
        with os.fdopen(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "factory.operate.stack", str(root)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=_own_environment(),
                start_new_session=True,
                # It holds the lock as long as it lives.
                pass_fds=(lock,),
            )
    finally:
        os.close(lock)
    _LEFT_BEHIND.append(supervisor)
    try:
        return _await(folder, supervisor, progress)
    except BaseException:
        stop(root)
        raise


def run(
    root: Path, services: Sequence[Service], *, echo: bool = False, on_ready: Callable[[], str] | None = None
) -> None:
    """Start a stack and supervise it in this process until SIGTERM or SIGINT.

    Args:
        root: Its FACTORY_HOME.
        services: What to start.
        echo: Whether all log lines are printed, as JSON.
        on_ready: Called when all services are well; what it returns is logged.

    Raises:
        Conflict: a port is taken, or the stack runs already.
        ServiceFault: a service was not well in time; all are stopped again, and the end of its log is told.
        StorageFault: the FACTORY_HOME cannot be written.
    """
    folder = StackFolder(root)
    lock = folder.lock()
    before = os.umask(0o077)
    try:
        plan = _prepare(folder, services)
        fault = Supervisor(folder, plan, echo=echo, on_ready=on_ready).run()
    finally:
        os.umask(before)
        os.close(lock)
    if fault:
        raise _could_not(folder, fault)


def stop(root: Path) -> tuple[str, ...]:
    """Stop a stack with everything that it started, also where its supervisor was killed; return what ran.

    Services have their time after SIGTERM; what is left then is killed.
    """
    folder = StackFolder(root)
    state, plan = folder.state(), folder.plan()
    if state is None:
        return ()
    ran = tuple(service.name for service in state.services if service.runs)
    if state.supervised:
        with suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
        planned = plan.services if plan is not None else ()
        until = time.monotonic() + SLACK_S + sum(service.stop_s + LEFTOVER_S for service in planned)
        while state.supervised and time.monotonic() < until:
            time.sleep(LOOK_S)
        with suppress(psutil.Error):
            if state.supervised:
                psutil.Process(state.pid).kill()
    state = folder.state() or state
    end(_leftovers(state), grace_s=LEFTOVER_S)
    for service in state.services:
        folder.pid_file(service.name).unlink(missing_ok=True)
    if state.phase not in ("stopped", "failed"):
        services = tuple(ServiceState(name=service.name, state="stopped") for service in state.services)
        folder.write(state.model_copy(update={"phase": "stopped", "services": services}))
    for child in _LEFT_BEHIND:
        child.poll()
    return ran


def look(root: Path) -> StackStatus:
    """Ask how the stack of a FACTORY_HOME is; starts and changes nothing."""
    folder = StackFolder(root)
    plan, state = folder.plan(), folder.state()
    if plan is None or state is None:
        return StackStatus()
    known = {service.name: service for service in state.services}
    with ThreadPoolExecutor(max(1, len(plan.services))) as pool:
        asked = [
            pool.submit(
                _status, folder, service, known.get(service.name) or ServiceState(name=service.name), state.supervised
            )
            for service in plan.services
        ]
        services = tuple(each.result() for each in asked)
    return StackStatus(supervised=state.supervised, services=services, fault=state.fault)


def _prepare(folder: StackFolder, services: Sequence[Service]) -> Plan:
    """Clear away what a killed supervisor left behind, and write what is to run."""
    before = folder.state()
    if before is not None:
        end(_leftovers(before), grace_s=LEFTOVER_S)
    refuse_taken_ports(services)
    plan = Plan(mark=uuid4().hex, services=tuple(services))
    (folder.path / "state.json").unlink(missing_ok=True)
    folder.write(plan)
    return plan


def refuse_taken_ports(services: Sequence[Service]) -> None:
    """Look at all ports before anything is started.

    Raises:
        Conflict: some are taken, or wanted twice; each is named with what holds it and what changes it.
    """
    wanted: dict[int, str] = {}
    found: list[Detail] = []
    for service in services:
        for port in service.ports:
            if port.number in wanted:
                found.append(Detail(port.setting, f"Port {port.number} is also {wanted[port.number]}."))
                continue
            wanted[port.number] = port.setting
            try:
                free_port(port.number)
            except Conflict as error:
                found.append(Detail(port.setting, f"{service.name}: {error.message}"))
    if found:
        raise Conflict(
            "The stack was not started: " + " ".join(f"{d.message} ({d.field})" for d in found),
            hint=f"Stop what listens there, or choose other ports: {found[0].field}=…",
            details=found,
        )


def _await(folder: StackFolder, supervisor: subprocess.Popen[bytes], progress: Progress) -> StackState:
    began = time.monotonic()
    told: dict[str, State] = {}
    while True:
        ended = supervisor.poll() is not None
        state = folder.state()
        if state is not None:
            for service in state.services:
                if told.get(service.name) != service.state and state.phase in ("starting", "running"):
                    told[service.name] = service.state
                    progress(service)
            if state.phase == "running":
                return state
        if ended or (state is None and time.monotonic() - began > SUPERVISOR_S):
            said = (folder.path / "supervisor.err").read_text(errors="replace").strip()
            fault = state.fault if state is not None else ""
            raise _could_not(folder, fault or f"the supervisor ended. {said.rpartition(chr(10))[2]}".strip())
        time.sleep(LOOK_S)


def _could_not(folder: StackFolder, fault: str) -> ServiceFault:
    name = fault.partition(" ")[0]
    lines = folder.last_lines(name)
    return ServiceFault(
        f"The stack could not be started and is stopped again: {fault.rstrip('.')}."
        + (f" The end of its log:\n{lines}" if lines else ""),
        hint=f"The whole logs are in {folder.path}.",
    )


def _status(folder: StackFolder, service: Service, known: ServiceState, supervised: bool) -> ServiceStatus:
    runs = known.runs
    state, message = known.state, known.message
    if not runs:
        state = known.state if supervised and known.state in ("waiting", "restarting") else "stopped"
    elif service.health is not None:
        message = wrong_with(service.health)
        state = "healthy" if not message else "starting" if known.state == "starting" else "unhealthy"
    return ServiceStatus(
        name=service.name,
        state=state,
        pid=known.pid if runs else None,
        ports=tuple(port.number for port in service.ports),
        url=service.url,
        uptime_s=(now() - known.started).total_seconds() if runs and known.started is not None else None,
        memory_mb=memory_mb(known.pid) if runs and known.pid is not None else None,
        restarts=known.restarts,
        message=message,
        log=str(folder.log_file(service.name)),
    )


def _leftovers(state: StackState) -> list[psutil.Process]:
    """Return what still runs of a stack whose supervisor does not."""
    found = {process.pid: process for process in family(None, mark=state.mark)}
    for service in state.services:
        if service.leader is not None:
            found |= {process.pid: process for process in family(service.leader, mark=state.mark)}
    return list(found.values())


def _own_environment() -> dict[str, str]:
    """Return the supervisor's environment: ours, without a sign of being itself part of a stack."""
    project = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(part for part in (project, os.environ.get("PYTHONPATH")) if part)
    return {name: value for name, value in os.environ.items() if name not in (MARK, SERVICE)} | {"PYTHONPATH": path}
