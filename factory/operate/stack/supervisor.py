"""Keeps the services of a stack running: starts them in order, asks how they are, starts the dead again, stops all.

One thread decides everything; others only carry log lines and health checks.
What it sees is in ``state.json``, for ``factory status`` and whoever waits for
the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, cast

import httpx
import psutil

from factory.errors import FactoryError, ServiceFault, StorageFault
from factory.operate.stack import launch
from factory.operate.stack.logs import JsonLog
from factory.operate.stack.processes import MARK, SERVICE, end, family, identity
from factory.operate.stack.records import HttpProbe, Plan, Service, ServiceState, StackFolder, StackState, State, now

LOOK_S, CALM_LOOK_S = 0.1, 0.5
"""Between two looks: while something starts, and while all is well."""
ASK_S = 10.0
"""Between two health checks of a service that is well; one that starts is asked at each second look."""
MISSES = 3
"""Checks in a row that a service may miss until it counts as unwell: a garbage collection takes one."""
SETTLED_S = 1.0
"""A service without a health check is well when it has lived so long."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
STEADY_S = 60.0
"""After so long without trouble the back-off begins anew."""
LEFTOVER_S = 1.0
"""That what a service leaves behind has after SIGTERM."""


class _CannotStart(Exception):
    """A service did not become well when the stack was started."""


@dataclass
class _Unit:
    """A service as it runs."""

    service: Service
    log: JsonLog
    process: subprocess.Popen[bytes] | None = None
    identity: str = ""
    began: float = 0.0
    started: datetime | None = None
    well_since: float | None = None
    misses: int = 0
    starts: int = 0
    troubles: int = 0
    not_before: float = 0.0
    asked: float = 0.0
    answer: Future[str] | None = None
    message: str = ""

    @property
    def state(self) -> State:
        if self.process is None:
            return "restarting" if self.starts else "waiting"
        if self.well_since is None:
            return "starting"
        return "healthy" if self.misses < MISSES else "unhealthy"

    @property
    def record(self) -> ServiceState:
        return ServiceState(
            name=self.service.name,
            state=self.state,
            pid=self.process.pid if self.process is not None else None,
            identity=self.identity,
            started=self.started,
            restarts=max(0, self.starts - 1),
            message=self.message,
        )


@dataclass
class Supervisor:
    """Runs one plan until it is told to stop.

    Attributes:
        folder: Where the records of the stack are; its lock is held by this process.
        plan: What to run.
        echo: Whether all log lines are printed as well.
        on_ready: Called once when all services are well; what it returns is logged.
    """

    folder: StackFolder
    plan: Plan
    echo: bool = False
    on_ready: Callable[[], str] | None = None
    _units: list[_Unit] = field(default_factory=list)
    _stopping: bool = False
    _written: StackState | None = None

    def run(self) -> str:
        """Start all, keep them running, and stop them after SIGTERM or SIGINT; return why it could not be started."""
        fault = ""
        with self._signals(), contextlib.closing(self._log("supervisor")) as log, ThreadPoolExecutor(8) as pool:
            self._units = [_Unit(service, self._log(service.name)) for service in self.plan.services]
            log.note(f"starts {', '.join(service.name for service in self.plan.services)}")
            try:
                self._supervise(pool, log)
            except _CannotStart as error:
                fault = str(error)
                log.note(fault)
            finally:
                notify("STOPPING=1")
                self._stop_all(log)
                self._write("failed" if fault else "stopped", fault)
                log.note("has stopped")
        return fault

    def stop(self) -> None:
        """Let :meth:`run` come to its end; can be called from a signal's handler."""
        self._stopping = True

    def _supervise(self, pool: ThreadPoolExecutor, log: JsonLog) -> None:
        ready = False
        while not self._stopping:
            for unit in self._units:
                self._look(unit, pool, log, starting=not ready)
            if not ready and all(unit.state == "healthy" for unit in self._units):
                ready = True
                log.note("all services are well")
                self._write("running")
                notify("READY=1")
                if self.on_ready is not None:
                    self._finish(self.on_ready, log)
            self._write("running" if ready else "starting")
            time.sleep(CALM_LOOK_S if all(unit.state == "healthy" for unit in self._units) else LOOK_S)

    def _finish(self, on_ready: Callable[[], str], log: JsonLog) -> None:
        try:
            said = on_ready()
        except FactoryError as error:
            raise _CannotStart(f"supervisor could not finish the start: {error.message}") from error
        if said:
            log.note(said)

    def _look(self, unit: _Unit, pool: ThreadPoolExecutor, log: JsonLog, *, starting: bool) -> None:
        if unit.process is None:
            if time.monotonic() < unit.not_before or (starting and not self._may_start(unit)):
                return
            try:
                self._start(unit, log)
            except OSError as error:
                # No memory or no numbers left for a process.
                unit.message = f"could not be started: {error.strerror or error}"
                self._trouble(unit, log, starting=starting)
            return
        code = unit.process.poll()
        late = unit.well_since is None and time.monotonic() - unit.began > unit.service.start_s
        if code is None and not late:
            self._ask(unit, pool, log)
            return
        trouble = "was not well within {:g} s: {}".format(unit.service.start_s, unit.message or "no answer")
        unit.message = trouble if code is None else f"ended with {_ending(code)}"
        self._trouble(unit, log, starting=starting)

    def _trouble(self, unit: _Unit, log: JsonLog, *, starting: bool) -> None:
        if starting:
            raise _CannotStart(f"{unit.service.name} {unit.message}")
        self._later(unit, log)

    def _may_start(self, unit: _Unit) -> bool:
        well = {each.service.name for each in self._units if each.state == "healthy"}
        return well.issuperset(unit.service.depends_on)

    def _start(self, unit: _Unit, log: JsonLog) -> None:
        service = unit.service
        command = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *service.command]
        # From the main thread: the kernel ends a child with the thread that started it.
        unit.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**service.env, MARK: self.plan.mark, SERVICE: service.name},
            start_new_session=True,
        )
        unit.log.follow(cast("IO[bytes]", unit.process.stdout))
        unit.identity = identity(unit.process.pid) or ""
        unit.began, unit.started = time.monotonic(), now()
        unit.well_since, unit.misses, unit.answer, unit.message = None, 0, None, ""
        unit.starts += 1
        with suppress(OSError):
            self.folder.pid_file(service.name).write_text(f"{unit.process.pid}\n")
        log.note(f"{service.name} is started", pid=unit.process.pid)

    def _ask(self, unit: _Unit, pool: ThreadPoolExecutor, log: JsonLog) -> None:
        """Take the answer of a health check, or start one."""
        at = time.monotonic()
        if unit.answer is not None:
            if unit.answer.done():
                self._take(unit, unit.answer.result(), log)
                unit.answer = None
        elif unit.service.health is None:
            if at - unit.began >= SETTLED_S:
                self._take(unit, "", log)
        elif at - unit.asked >= (2 * LOOK_S if unit.state != "healthy" else ASK_S):
            unit.asked = at
            unit.answer = pool.submit(wrong_with, unit.service.health)

    def _take(self, unit: _Unit, wrong: str, log: JsonLog) -> None:
        unit.message = wrong
        unit.misses = unit.misses + 1 if wrong else 0
        if unit.misses == MISSES and unit.well_since is not None:
            log.note(f"{unit.service.name} is not well: {wrong}")
        if not wrong and unit.well_since is None:
            unit.well_since = time.monotonic()
            log.note(f"{unit.service.name} is well after {unit.well_since - unit.began:.1f} s")
        if unit.troubles and unit.well_since is not None and time.monotonic() - unit.well_since > STEADY_S:
            unit.troubles = 0

    def _later(self, unit: _Unit, log: JsonLog) -> None:
        """Clear away what is left of a service, and start it again after a while."""
        self._clear(unit, grace_s=LEFTOVER_S)
        backoff_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**unit.troubles)
        unit.troubles += 1
        unit.not_before = time.monotonic() + backoff_s
        log.note(f"{unit.service.name} {unit.message}; it is started again in {backoff_s:g} s")

    def _stop_all(self, log: JsonLog) -> None:
        """Stop services when none that depends on them runs any more, all that can be stopped together at once."""
        left = {unit.service.name: unit for unit in self._units}
        while left:
            free = [unit for name, unit in left.items() if not left.keys() & set(self.plan.dependents(name))]
            self._write("stopping")
            for unit in free:
                if unit.process is not None:
                    log.note(f"{unit.service.name} is stopped", pid=unit.process.pid)
                    with suppress(ProcessLookupError):
                        unit.process.terminate()
            until = time.monotonic() + max(unit.service.stop_s for unit in free)
            for unit in free:
                if unit.process is not None:
                    with suppress(subprocess.TimeoutExpired):
                        unit.process.wait(max(0.0, until - time.monotonic()))
                killed = self._clear(unit, grace_s=LEFTOVER_S)
                if killed:
                    log.note(f"of {unit.service.name}, {len(killed)} processes had to be killed")
                unit.message = ""
                unit.log.close()
                del left[unit.service.name]

    def _clear(self, unit: _Unit, *, grace_s: float) -> list[psutil.Process]:
        killed = end(family(unit.record.leader, mark=self.plan.mark, service=unit.service.name), grace_s=grace_s)
        if unit.process is not None:
            with suppress(subprocess.TimeoutExpired):
                unit.process.wait(LEFTOVER_S)
            unit.process = None
        unit.identity, unit.started, unit.well_since = "", None, None
        self.folder.pid_file(unit.service.name).unlink(missing_ok=True)
        return killed

    def _write(self, phase: str, fault: str = "") -> None:
        services = tuple(unit.record for unit in self._units)
        if phase in ("stopped", "failed"):
            services = tuple(service.model_copy(update={"state": "stopped"}) for service in services)
        state = StackState.model_validate(
            {
                "mark": self.plan.mark,
                "pid": os.getpid(),
                "identity": identity(os.getpid()) or "",
                "phase": phase,
                "services": services,
                "fault": fault,
            }
        )
        if state != self._written:
            # A full disk must not end the supervisor; it is tried again at the next look.
            with suppress(StorageFault):
                self.folder.write(state)
                self._written = state

    def _log(self, name: str) -> JsonLog:
        return JsonLog(self.folder.log_file(name), service=name, echo=self.echo)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, as long as this lasts and where this is the main thread."""

        def asked(_: int, __: FrameType | None) -> None:
            self.stop()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def wrong_with(probe: HttpProbe) -> str:
    """Return what is wrong with a service, or nothing."""
    headers = {}
    try:
        if probe.token_file is not None:
            headers = {"Authorization": f"Bearer {probe.token_file.read_text().strip()}"}
        answer = httpx.get(probe.url, headers=headers, timeout=probe.timeout_s, trust_env=False)
    except (httpx.HTTPError, OSError) as error:
        return f"{probe.url} does not answer: {error or type(error).__name__}"
    if answer.status_code != httpx.codes.OK:
        return f"{probe.url} answers {answer.status_code}"
    return "" if probe.contains in answer.text else f"{probe.url} answers, but is not ready"


def notify(message: str) -> None:
    """Tell systemd where we stand, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            channel.send(message.encode())


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def supervise(root: Path) -> int:
    """Run the plan that lies in a FACTORY_HOME; return the exit code of the process that does nothing else.

    Raises:
        ServiceFault: there is none.
    """
    folder = StackFolder(root)
    plan = folder.plan()
    if plan is None:
        raise ServiceFault(f"{str(folder.path)!r} holds no plan.", hint="`factory up` makes it.")
    return 1 if Supervisor(folder, plan).run() else 0
