"""The control plane as processes of one FACTORY_HOME, each of which can be killed and started again.

Ray's head, MLflow's server and the controllers are started as ``factory up`` starts them, but without its supervisor:
it would start them again by itself, and here the test says when. There are two controllers, of which one leads, a
second node of Ray, which joins as one on another machine does, and a PostgreSQL of the test's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
import psutil

from factory.errors import ServiceFault
from factory.ledger import Ledger
from factory.operate.controller import LEAD
from factory.operate.inprocess import InProcess
from factory.operate.ports import free_port
from factory.operate.ray_jobs import RayJobs
from factory.operate.stack import launch
from factory.operate.stack.processes import MARK, SERVICE, Leader, family, identity
from factory.operate.stack.records import Service, StackFolder
from factory.operate.stack.services import declared
from factory.operate.stack.supervisor import wrong_with
from factory.search.cluster import ray_token
from factory.settings import Settings
from tests.postgres import PostgresServer

from .conftest import processes_of, runs, wait_until

CONTROLLERS = ("controller-0", "controller-1")
PATIENCE_S = 120.0
"""For which the test waits for the database that it has killed itself, and for a service that it has started."""

NODE = """
import signal, sys, types
from ray.cluster_utils import Cluster

cluster = Cluster()
cluster.head_node = types.SimpleNamespace(gcs_address=sys.argv[1])
cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
signal.pause()
"""
"""A node that joins a head of another process; `ray start` refuses that where the head has the loopback address."""


class Works:
    """A control plane that runs; it is started by :meth:`up` and ended by :meth:`down`.

    Args:
        home: FACTORY_HOME.
        server: That holds the ledger.
        database: In it, empty.

    Attributes:
        settings: Of all its processes.
        ledger: For the test itself.
        factory: For the test itself.
    """

    def __init__(self, home: Path, server: PostgresServer, database: str) -> None:
        ports = {name: free_port(0) for name in ("ray_port", "dashboard_port", "mlflow_port")}
        self.settings = Settings(home=home, ledger_url=server.url(database), cpus=1, **ports)
        self.server = server
        self.home = self.settings.root
        self._folder = StackFolder(self.home).prepare()
        self._mark = uuid4().hex
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._leaders: dict[str, Leader] = {}
        known = {service.name: service for service in declared(self.settings)}
        controllers = {name: known["controller"].model_copy(update={"name": name}) for name in CONTROLLERS}
        self._services = {name: known[name] for name in ("ray", "mlflow")} | {"node": self._node(known["ray"])}
        self._services |= controllers
        self.jobs = RayJobs(self.settings.dashboard, token_path=ray_token(self.home))
        self.ledger = Ledger.open(self.settings.ledger, patience_s=PATIENCE_S)
        self.factory = InProcess(self.ledger, self.settings)

    def up(self) -> None:
        """Start all services, and wait until they are well."""
        for names in (("ray", "mlflow"), ("node",), CONTROLLERS):
            for name in names:
                self.start(name)
            for name in names:
                self.wait_for(name)

    def down(self) -> list[str]:
        """End all services in turn, and return what is left of them."""
        self.server.start()
        for name in reversed(self._services):
            with contextlib.suppress(KeyError):
                self._processes[name].terminate()
        for name, process in self._processes.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._services[name].stop_s)
        # What has its time and does not use it: Ray's workers end a moment after their node.
        until = time.monotonic() + 10
        while (left := self._living()) and time.monotonic() < until:
            time.sleep(0.2)
        shown = [" ".join(process.cmdline())[:200] for process in left]
        for process in left:
            process.kill()
        self.jobs.close()
        self.ledger.close()
        with contextlib.suppress(OSError):
            shutil.rmtree((self._folder / "ray").resolve())
        return shown

    # --- single services -------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a service, as its supervisor does; it is not waited for."""
        service = self._services[name]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *service.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**service.env, MARK: self._mark, SERVICE: name},
                start_new_session=True,
            )
        self._processes[name] = process
        self._leaders[name] = Leader(process.pid, identity(process.pid) or "")

    def wait_for(self, name: str) -> None:
        """Wait until a service is well."""
        wait_until(lambda: self._is_well(name), within_s=PATIENCE_S * 3, what=f"{name} (see {self._folder})")

    def kill(self, name: str) -> None:
        """Kill a service with all its processes at once, as a power cut does."""
        for process in self._family(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._processes[name].kill()
        self._processes[name].wait()

    def leading(self) -> str:
        """Return which controller leads; the first one where none does."""
        holder = self.ledger.leader(LEAD) or ""
        led = (name for name in CONTROLLERS if f"-{self._processes[name].pid}-" in holder)
        return next(led, CONTROLLERS[0])

    def runs(self, name: str) -> bool:
        """Whether a service has not ended."""
        return self._processes[name].poll() is None

    def _is_well(self, name: str) -> bool:
        service = self._services[name]
        assert self.runs(name), f"{name} ended: {self._said(name)}"
        if name == "node":
            with contextlib.suppress(ServiceFault):
                return self.jobs.capacity().cpus == 2
            return False
        return service.health is None or not wrong_with(service.health)

    def _said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def _family(self, name: str) -> list[psutil.Process]:
        return family(self._leaders[name], mark=self._mark, service=name)

    def _living(self) -> list[psutil.Process]:
        return family(None, mark=self._mark) or processes_of(self.home)

    def _node(self, head: Service) -> Service:
        """Return a second node of one CPU, which joins the head."""
        command = (sys.executable, "-c", NODE, f"127.0.0.1:{self.settings.ray_port}")
        return Service(name="node", command=command, env=head.env, stop_s=head.stop_s)

    # --- what works on requests ------------------------------------------------

    def drivers(self) -> dict[psutil.Process, str]:
        """Return the processes of jobs, each with the attempt that it was started for."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if command[1:3] != [str(Path(sys.executable).with_name("factory")), "run"]:
                    continue
                environment = process.environ()
                if environment.get("FACTORY_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found[process] = environment["FACTORY_ATTEMPT"]
        # A driver that starts another program is two processes of one command for a moment.
        pids = {process.pid for process in found}
        return {process: attempt for process, attempt in found.items() if _parent_of(process) not in pids}

    def workers(self, *, of: str = "") -> list[psutil.Process]:
        """Return the processes that fit trials now, of one service where given."""
        among = self._family(of) if of else processes_of(self.home)
        return [process for process in among if runs(process, "Trainable.train")]

    def versions(self) -> list[dict[str, str]]:
        """Return the tags of each version that MLflow knows."""
        address = f"{self._services['mlflow'].url}/api/2.0/mlflow/model-versions/search"
        answer = httpx.get(address, params={"max_results": 1000}, timeout=60, trust_env=False).raise_for_status()
        return [
            {tag["key"]: tag["value"] for tag in found["tags"]} for found in answer.json().get("model_versions", [])
        ]

    def wait(self, true: Callable[[], bool], *, within_s: float) -> bool:
        """Wait until something is so, or the time is over; return whether it is."""
        until = time.monotonic() + within_s
        while not (found := true()) and time.monotonic() < until:
            time.sleep(0.25)
        return found


def _parent_of(process: psutil.Process) -> int | None:
    """Return the process that has started another one; None where it is gone already."""
    try:
        return process.ppid()
    except psutil.Error:
        return None
