"""What the predictor stands on, so that it can be killed: a Ray of two nodes, an MLflow server, a Redis."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from factory.operate.ports import free_port
from factory.operate.stack.records import Service
from factory.operate.stack.services import declared
from factory.operate.stack.supervisor import wrong_with
from factory.settings import Settings
from tests.topics.brokers import redis

OBJECT_STORE_BYTES = 80_000_000


class TwoNodes:
    """A Ray of two nodes on this machine, of one core each; the second one can be killed and put back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self._node = node
        self._second = self._cluster.add_node(**node)

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return str(self._cluster.address)

    def kill(self) -> bool:
        """Kill the second node's raylet; its workers end with it."""
        for started in self._second.all_processes["raylet"]:
            started.process.kill()
        return True

    def restore(self) -> None:
        """Put another node in its place."""
        with suppress(Exception):
            self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**self._node)

    def close(self) -> None:
        """Stop both nodes."""
        self._cluster.shutdown()


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Run a Ray of two nodes; RAY_ADDRESS names it meanwhile."""
    nodes = TwoNodes()
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        yield nodes
    finally:
        del os.environ["RAY_ADDRESS"]
        nodes.close()


class MlflowServer:
    """The MLflow server of a home, as ``factory up`` runs it.

    Args:
        settings: Of the home.
        folder: Gets its log.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        settings = settings.model_copy(update={"mlflow_port": free_port(0)})
        [self._service] = (service for service in declared(settings) if service.name == "mlflow")
        self._log = folder / "mlflow.log"
        self._process = _started(self._service, self._log)

    @property
    def url(self) -> str:
        """For MLFLOW_TRACKING_URI."""
        return self._service.url

    def kill(self) -> bool:
        """Kill it with its workers."""
        process = psutil.Process(self._process.pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        return True

    def restore(self) -> None:
        """Start it again, and wait until it answers."""
        self._process = _started(self._service, self._log)


def _started(service: Service, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        process = subprocess.Popen(service.command, env=service.env, stdout=stream, stderr=stream)
    assert service.health is not None
    until = time.monotonic() + service.start_s
    while said := wrong_with(service.health):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise SystemExit(f"{said}\n{log.read_text()[-2000:]}")
        time.sleep(0.2)
    return process


class RedisServer:
    """A Redis that keeps what it was told on disk.

    Args:
        folder: Of its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port(0)
        self._running = ExitStack()
        self.restore()

    def kill(self) -> bool:
        """Kill it."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == "redis-server" and f":{self.port}" in " ".join(process.cmdline()):
                    process.kill()
                    self._running.close()
                    return True
        return False

    def restore(self) -> None:
        """Start it again."""
        self._running.enter_context(redis(self._folder, port=self.port))

    def close(self) -> None:
        """Stop it."""
        self._running.close()
