"""Real processes of the command, known by their FACTORY_HOME, to be killed and to be looked after."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

COMMAND = Path(sys.executable).with_name("factory")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A FACTORY_HOME whose processes, known by their environment, are all ended afterwards."""
    home = tmp_path / "home"
    yield home
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the live processes that were started with this FACTORY_HOME: the driver, and Ray's that it started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FACTORY_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def runs(process: psutil.Process, method: str) -> bool:
    """Whether this is a worker of Ray's that runs this method now; Ray puts it into the command line."""
    try:
        return method in process.cmdline()[0]
    except (psutil.Error, IndexError):
        return False


def wait_until(true: Callable[[], bool], *, within_s: float, what: str) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, f"{what} did not come within {within_s} s"
        time.sleep(0.1)


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    environment |= {"FACTORY_HOME": str(home), "FACTORY_CPUS": "2"}
    command = [str(COMMAND), *arguments]
    return subprocess.Popen(
        command, cwd=home.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def submit(home: Path, request: Path) -> str:
    """Submit a request's document and return its id."""
    submitted = start(home, "submit", str(request), "--json")
    output, errors = submitted.communicate(timeout=120)
    assert submitted.returncode == 0, errors
    return str(json.loads(output)["id"])
