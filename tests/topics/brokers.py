"""Real brokers that a test starts on free ports and stops."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from factory.operate.ports import free_port

PATIENCE_S = 60.0
"""For which a server may start; RabbitMQ takes ten seconds."""


@contextmanager
def server(kind: str, folder: Path) -> Iterator[str]:
    """Run a broker of a kind, or skip where its program is not installed; yield its address."""
    with _STARTS[kind](folder) as url:
        yield url


@contextmanager
def redis(folder: Path, *, port: int = 0) -> Iterator[str]:
    port = port or free_port(0)
    command = [_found("redis-server"), "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    with _running(command, port, folder):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def nats(folder: Path) -> Iterator[str]:
    port = free_port(0)
    command = [_found("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "js")]
    with _running(command, port, folder):
        yield f"nats://127.0.0.1:{port}"


@contextmanager
def rabbit(folder: Path) -> Iterator[str]:
    port, home = free_port(0), folder / "rabbit"
    home.mkdir()
    config = home / "rabbitmq.conf"
    config.write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nvm_memory_high_watermark.absolute = 1GB\n")
    # As root the script of Debian changes to another user, which has no right to the test's folder.
    program = next((p for p in Path("/usr/lib/rabbitmq").glob("lib/*/sbin/rabbitmq-server")), None)
    if program is None:
        pytest.skip("rabbitmq-server is not installed")
    distribution, mapper = free_port(0), free_port(0)
    environment = {
        **os.environ,
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
    }
    # Erlang would start its port mapper as a daemon, which outlives the server.
    mapping = _running([_found("epmd"), "-port", str(mapper), "-address", "127.0.0.1"], mapper, folder)
    with mapping, _running([str(program)], port, folder, environment):
        while not _says_hello(port):
            time.sleep(0.1)
        yield f"amqp://guest:guest@127.0.0.1:{port}/"


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """Run librdkafka's own mock of a cluster, which speaks the protocol over TCP: no package has a Kafka server."""
    pytest.importorskip("confluent_kafka")
    process = subprocess.Popen([sys.executable, "-c", _MOCK], stdout=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout is not None
    try:
        yield f"kafka://{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


_MOCK = """
import time
from confluent_kafka import Producer
producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "made-here"})
[broker] = producer.list_topics(timeout=30).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
time.sleep(3600)
"""

_STARTS = {"redis": redis, "nats": nats, "amqp": rabbit, "kafka": kafka}


def _found(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


@contextmanager
def _running(command: list[str], port: int, folder: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        # A shell script may stand before the server: its whole group ends.
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _says_hello(port: int) -> bool:
    """Return whether RabbitMQ speaks AMQP: it takes connections before it does, and clients do not close those."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
