"""Ports, stops, and starts that fail; the real start is in ``tests/serve/test_predictor_serve.py``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import psutil
import pytest

from factory.errors import Conflict, ServiceFault, StorageFault
from factory.operate.deployments import (
    MARK,
    RunningPredictor,
    running_predictor,
    start_predictor,
    stop_predictor,
)
from factory.operate.ports import free_port, free_ports
from factory.operate.stack.processes import identity
from factory.operate.stack.records import Plan, Port, Service, ServiceState, StackFolder, StackState
from factory.settings import Settings


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_busy_port_is_refused_before_anything_starts(tmp_path, address):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(home=tmp_path / "home", serve_port=port)
        with pytest.raises(Conflict, match=f"Port {port} on 127.0.0.1 cannot be used") as error:
            start_predictor(settings)
    assert str(os.getpid()) in error.value.message
    assert "FACTORY_SERVE_PORT" in error.value.hint
    assert error.value.exit_code == 2
    assert [path.name for path in settings.root.iterdir()] == []


def test_free_ports():
    assert free_port(0) > 0
    port = free_port(0)
    assert free_port(port) == port


def test_free_ports_are_none_that_the_system_gives_to_connections():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        lowest, highest = given.getsockname()[1], max(ports)
    assert highest < lowest, "the system gives a port among those"


def test_a_home_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StorageFault):
        start_predictor(Settings(home=blocked / "home", serve_port=0))


def test_a_predictor_that_ends_is_told_with_the_end_of_its_log(tmp_path):
    # A ledger that cannot be used ends the replica; a setting that is not valid ends the process at once.
    settings = Settings.model_construct(**{**Settings(home=tmp_path, serve_port=0).model_dump(), "serve_replicas": 0})
    with pytest.raises(ServiceFault, match="The predictor ended") as error:
        start_predictor(settings)
    assert "FACTORY_SERVE_REPLICAS" in error.value.message
    assert running_predictor(settings) is None
    assert not (tmp_path / "predictor.json").exists()


def test_a_state_file_of_a_process_that_is_gone(tmp_path):
    settings = Settings(home=tmp_path)
    gone = RunningPredictor(pid=os.getpid(), created=1.0, mark="none", port=1, log="")
    (tmp_path / "predictor.json").write_text(json.dumps(asdict(gone)))
    assert running_predictor(settings) is None
    assert not stop_predictor(settings), "a process of the same number is not ours to stop"
    assert not (tmp_path / "predictor.json").exists()
    (tmp_path / "predictor.json").write_text("{")
    assert running_predictor(settings) is None


def test_the_predictor_of_a_stack_is_found_and_left_to_it(tmp_path):
    settings = Settings(home=tmp_path)
    folder = StackFolder(settings.root)
    folder.prepare()
    service = Service(name="predictor", command=("sleep", "60"), ports=(Port(number=8123, setting="X"),))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        known = {"pid": process.pid, "identity": identity(process.pid) or ""}
        state = ServiceState(name="predictor", state="healthy", **known)
        folder.write(Plan(mark="m", services=(service,)))
        folder.write(StackState(mark="m", phase="running", services=(state,), **known))
        found = running_predictor(settings)
        assert found is not None
        assert (found.url, found.pid, found.of_stack) == ("http://127.0.0.1:8123", process.pid, True)
        with pytest.raises(Conflict, match="runs on port 8123 already") as other:
            start_predictor(settings, port=8124)
        with pytest.raises(Conflict, match="is a service of the stack") as stop:
            stop_predictor(settings)
        assert "factory down" in other.value.hint == stop.value.hint
        process.kill()
    assert running_predictor(settings) is None
    assert not stop_predictor(settings)


def test_what_ignores_the_stop_and_what_lost_its_parent_is_killed(tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True);"
        "print('up', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, MARK: "test-mark"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    process = psutil.Process(parent.pid)
    (child,) = process.children()
    known = RunningPredictor(
        pid=parent.pid, created=process.create_time(), mark="test-mark", port=1, log=str(tmp_path / "log")
    )
    (tmp_path / "predictor.json").write_text(json.dumps(asdict(known)))
    try:
        assert stop_predictor(Settings(home=tmp_path), timeout_s=0.3)
        assert not process.is_running()
        assert not child.is_running()
    finally:
        parent.stdout.close()
        parent.kill()
        parent.wait()
