"""Starting and stopping the predictor, which is a process of its own.

The predictor outlives the command that started it.  What is needed to find
and stop it is in ``FACTORY_HOME/predictor.json``; a number in the environment
of all its processes (Ray's, HAProxy's) tells them from everybody else's, so
that a stop leaves none behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import psutil

from factory.errors import Conflict, Detail, ServiceFault
from factory.operate.ports import HOST, free_port
from factory.operate.stack.records import StackFolder
from factory.search.cluster import token_variables
from factory.settings import Settings

MARK = "FACTORY_PREDICTOR_ID"
"""Variable that all processes of one predictor have in their environment."""
START_S = 120.0
"""Ray takes 5 to 12 s to start, and Serve with its first replica 5 to 10; the rest is for a loaded machine."""
STEADY_ANSWERS = 4
"""Answers in a row, a fifth of a second apart, after which no reload of the proxy is under way any more."""
STOP_S = 20.0
"""A stop takes 5 s beside the calls that are waited for; what is left after this is killed."""
MOST_DRAINED_S = 120.0
"""For which calls are waited for at most, whatever their deadline."""

_SERVICE = "predictor"
_STACK_HINT = "`factory down` stops it with the stack, `factory up --without predictor` leaves it out."

_STARTED: list[subprocess.Popen[bytes]] = []
"""Python warns of a child that is forgotten while it runs; this one is meant to outlive us."""


@dataclass(frozen=True)
class RunningPredictor:
    """A predictor that was started.

    Attributes:
        pid: Its process.
        created: When that process started (seconds since 1970), since a pid can be used again.
        mark: Value of :data:`MARK` in the environment of all its processes.
        port: Port of its HTTP endpoint.
        log: File with what it printed.
        of_stack: Whether it is one of a stack's services, which starts and stops it.
        grpc_port: Port of its gRPC endpoint.
    """

    pid: int
    created: float
    mark: str
    port: int
    log: str
    of_stack: bool = False
    grpc_port: int = 0

    @property
    def url(self) -> str:
        """Address of its HTTP endpoint."""
        return f"http://{HOST}:{self.port}"

    @property
    def grpc(self) -> str:
        """Address of its gRPC endpoint, as clients take it."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/ready", timeout=5, trust_env=False).status_code == 200
        return False


def start_predictor(settings: Settings, *, port: int | None = None, timeout_s: float = START_S) -> RunningPredictor:
    """Start the predictor and wait until it answers; one that runs already, also a stack's, is returned as it is.

    Args:
        settings: Settings that it gets.
        port: Port of its HTTP endpoint; default: the settings'. 0 takes a free one.
        timeout_s: How long to wait until it answers.

    Raises:
        Conflict: the port is busy, or a predictor runs on another one.
        StorageFault: FACTORY_HOME cannot be written.
        ServiceFault: it did not answer in time, or ended; its log's last lines are told.
    """
    wanted = settings.serve_port if port is None else port
    if (present := running_predictor(settings)) is not None:
        if wanted in (0, present.port):
            _await_ready(present, settings, timeout_s=timeout_s)
            return present
        raise Conflict(
            f"The predictor of this FACTORY_HOME runs on port {present.port} already; {wanted} was asked for.",
            hint=_STACK_HINT if present.of_stack else "`factory deployments stop` stops it.",
            details=[Detail("port", f"{wanted} is not {present.port}")],
        )
    root = settings.prepare_home()
    chosen = free_port(wanted)
    for_grpc = grpc_port(settings, after=wanted)
    mark = uuid4().hex
    log = root / "logs" / "predictor.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "serve.predictor", f"--port={chosen}", f"--grpc-port={for_grpc}"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment(settings, mark=mark),
            start_new_session=True,
        )
    _STARTED.append(process)
    started = RunningPredictor(
        pid=process.pid,
        created=psutil.Process(process.pid).create_time(),
        mark=mark,
        port=chosen,
        log=str(log),
        grpc_port=for_grpc,
    )
    _state(settings).write_text(json.dumps(asdict(started)), encoding="utf-8")
    try:
        _await_ready(started, settings, timeout_s=timeout_s)
    except BaseException:
        stop_predictor(settings)
        raise
    return started


def running_predictor(settings: Settings) -> RunningPredictor | None:
    """Return the predictor of this FACTORY_HOME if its process runs: one that was started here, or its stack's."""
    known = _known(settings)
    return known if known is not None and known.alive else _of_stack(settings)


def drain_s(settings: Settings) -> float:
    """Return for how long whoever stops a replica, or its proxy, waits for the calls that it answers.

    A little more than their deadline, after which each of them has ended.
    """
    return min(settings.serve_deadline_s, MOST_DRAINED_S) + 5.0


def stop_predictor(settings: Settings, *, timeout_s: float | None = None) -> bool:
    """Stop the predictor with all its processes; return whether one ran.

    It is asked to stop first: it takes no new calls, and Serve ends HAProxy at once, with the calls that came by it.
    What is left after ``timeout_s``, by default a while after the deadline of calls, is killed.

    Raises:
        Conflict: it is a stack's, which would start it again.
    """
    known = _known(settings)
    if known is None:
        if _of_stack(settings) is not None:
            raise Conflict("The predictor is a service of the stack, which starts it again.", hint=_STACK_HINT)
        return False
    ran = known.alive
    processes = _processes(known)
    if ran:
        os.kill(known.pid, signal.SIGTERM)
        psutil.wait_procs(processes, timeout=drain_s(settings) + STOP_S if timeout_s is None else timeout_s)
    left = list({*processes, *_processes(known)})
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
    for child in _STARTED:
        child.poll()
    _state(settings).unlink(missing_ok=True)
    ready_file(settings).unlink(missing_ok=True)
    return ran or bool(left)


def wanted_grpc_port(settings: Settings, *, after: int) -> int:
    """Return the predictor's port for gRPC: the settings', else the one after its port; 0 for any that is free."""
    if settings.serve_grpc_port is not None:
        return settings.serve_grpc_port
    return min(after + 1, 65_535) if after else 0


def grpc_port(settings: Settings, *, after: int) -> int:
    """Return the predictor's port for gRPC if nobody listens on it; for 0 a free one.

    Raises:
        Conflict: somebody listens on it.
    """
    return free_port(wanted_grpc_port(settings, after=after), setting="FACTORY_SERVE_GRPC_PORT")


def _environment(settings: Settings, *, mark: str) -> dict[str, str]:
    """Return the predictor's environment: ours, its settings, and where this project's packages are."""
    given = {f"FACTORY_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_none=True).items()}
    project = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (project, os.environ.get("PYTHONPATH")) if part)
    places = {"FACTORY_HOME": str(settings.root), "PYTHONPATH": path}
    return {**os.environ, **given, **places, **token_variables(settings), MARK: mark}


def announce_ready(settings: Settings) -> None:
    """Let whoever waits know that the replicas are behind the proxy; called by the predictor itself."""
    ready_file(settings).write_text(os.environ.get(MARK, ""), encoding="utf-8")


def ready_file(settings: Settings) -> Path:
    """Return the file that says which predictor has announced itself."""
    return settings.root / "predictor.ready"


def _announced(settings: Settings, predictor: RunningPredictor) -> bool:
    with contextlib.suppress(OSError):
        return ready_file(settings).read_text(encoding="utf-8") == predictor.mark
    return False


def _await_ready(predictor: RunningPredictor, settings: Settings, *, timeout_s: float) -> None:
    """Wait until the predictor has announced itself and answered several times in a row.

    While Serve starts, its proxy answers through a fallback process and is then reloaded; what is in flight at that
    moment would be lost.
    """
    deadline = time.monotonic() + timeout_s
    answers = 0
    while answers < STEADY_ANSWERS:
        answers = answers + 1 if _announced(settings, predictor) and predictor.ready else 0
        ended = not predictor.alive
        if ended or time.monotonic() > deadline:
            tail = "\n".join(Path(predictor.log).read_text(errors="replace").splitlines()[-15:])
            raise ServiceFault(
                ("The predictor ended" if ended else f"The predictor did not answer within {timeout_s:g} s")
                + f". The end of its log:\n{tail}",
                hint=f"The whole log is {predictor.log}.",
            )
        time.sleep(0.2)


def _state(settings: Settings) -> Path:
    return settings.root / "predictor.json"


def _known(settings: Settings) -> RunningPredictor | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return RunningPredictor(**json.loads(_state(settings).read_text(encoding="utf-8")))
    return None


def _of_stack(settings: Settings) -> RunningPredictor | None:
    """Return the predictor that the stack of this FACTORY_HOME runs."""
    folder = StackFolder(settings.root)
    found = folder.running(_SERVICE)
    if found is None:
        return None
    service, pid = found
    with contextlib.suppress(psutil.Error):
        created = psutil.Process(pid).create_time()
        log = str(folder.log_file(_SERVICE))
        # One that was started by an older factory has no second port.
        port, for_grpc = [*(each.number for each in service.ports), 0][:2]
        return RunningPredictor(pid, created, mark="", port=port, log=log, of_stack=True, grpc_port=for_grpc)
    return None


def _processes(predictor: RunningPredictor) -> list[psutil.Process]:
    """Return its process, what descends from it, and whatever bears its mark.

    A process that is renamed (Ray's agents are) may lose its environment, and one whose parent died its ancestry.
    """
    found = []
    with contextlib.suppress(psutil.Error):
        if predictor.alive:
            process = psutil.Process(predictor.pid)
            found = [process, *process.children(recursive=True)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == predictor.mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return list(dict.fromkeys(found))
