"""One contract for Ray's jobs and their fake, and what only Ray has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

import psutil
import pytest

from factory.errors import Conflict, NotFound, ServiceFault
from factory.operate.jobs import JobInfo, Jobs, JobSpec, JobState
from factory.operate.ports import free_port
from factory.operate.ray_jobs import RayJobs
from factory.search.cluster import ray_token
from factory.testing.jobs import FakeJobs, Script

PROGRAM = """
import os, sys, time
lines, seconds, code = sys.argv[1:4]
print(os.getpid(), os.getcwd(), oct(os.umask(0)), os.environ.get("GREETING"), *sys.argv[4:], flush=True)
for line in lines.split(","):
    print(line, flush=True)
time.sleep(float(seconds))
sys.exit(int(code))
"""


class Cluster(Protocol):
    """What the contract needs of a cluster beside its jobs."""

    jobs: Jobs

    def spec(self, name: str, *, prints: str = "", seconds: float = 0.0, code: int = 0, cpus: float = 0.0) -> JobSpec:
        """A job that prints some lines, lasts, and ends with a code."""

    def wait(self, true: Callable[[], bool]) -> None:
        """Let time pass until something is so."""

    def kill(self, name: str) -> None:
        """Kill the process of a running job."""


class Simulated:
    """Two CPUs, in virtual time."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}
        self.jobs = FakeJobs(lambda spec: self._scripts[spec.submission_id])

    def spec(self, name: str, *, prints: str = "", seconds: float = 0.0, code: int = 0, cpus: float = 0.0) -> JobSpec:
        lines = tuple((0.0, line) for line in prints.split(","))
        self._scripts[name] = Script(run_s=seconds + 0.1, exit_code=code, lines=lines)
        return JobSpec(name, ("program",), metadata={"request": name}, cpus=cpus)

    def wait(self, true: Callable[[], bool]) -> None:
        for _ in range(1000):
            if true():
                return
            self.jobs.advance(0.1)
        raise AssertionError("it did not come")

    def kill(self, name: str) -> None:
        self.jobs.kill(name)


class Real:
    """A Ray of two CPUs, started for this module with a token of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = ray_token(folder)
        port = free_port(0)
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"),
            *(f"--port={free_port(0)}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port(0)}"),
            *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
            *("--object-store-memory=80000000", f"--temp-dir={folder}", "--disable-usage-stats"),
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            # On the loopback address only, and without 30 s of draining at the end.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        with (folder / "log").open("w") as log:
            self._head = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.jobs = RayJobs(f"http://127.0.0.1:{port}", token_path=self.token)

    def __enter__(self) -> Real:
        self.wait(self._up, within_s=120)
        return self

    def __exit__(self, *_: object) -> None:
        self.jobs.close()
        root = psutil.Process(self._head.pid)
        processes = [root, *root.children(recursive=True)]
        self._head.terminate()
        psutil.wait_procs(processes, timeout=20)
        for process in [*processes, *psutil.process_iter()]:
            try:
                if process in processes or os.getsid(process.pid) == self._head.pid:
                    process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self._head.wait()

    def spec(self, name: str, *, prints: str = "", seconds: float = 0.0, code: int = 0, cpus: float = 0.0) -> JobSpec:
        program = (sys.executable, "-c", PROGRAM, prints, str(seconds), str(code), "$(id) `id`; 'a b'")
        return JobSpec(
            name,
            program,
            env={"GREETING": "hello $(id) 5$"},
            metadata={"request": name},
            cpus=cpus,
            folder=str(self.folder / "jobs" / name),
        )

    def wait(self, true: Callable[[], bool], *, within_s: float = 60.0) -> None:
        until = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < until, "it did not come"
            assert self._head.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        self.wait(lambda: "GREETING" in self.jobs.logs(name) and "hello" in self.jobs.logs(name))
        line = next(line for line in self.jobs.logs(name).splitlines() if line.endswith("'a b'") and "hello" in line)
        os.kill(int(line.split()[0]), 9)

    def _up(self) -> bool:
        try:
            return self.jobs.capacity().cpus > 0
        except ServiceFault:
            return False


@pytest.fixture(scope="module")
def ray() -> Iterator[Real]:
    # Ray's sockets lie below it, and their paths may have 107 characters at most: pytest's folders are too deep.
    folder = Path(mkdtemp(prefix="mvfj-"))
    try:
        with Real(folder) as real:
            yield real
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["fake", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.timeout(240)])])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "fake":
        return Simulated()
    real: Cluster = request.getfixturevalue("ray")
    return real


def state(cluster: Cluster, name: str) -> JobState | None:
    known = cluster.jobs.info(name)
    return None if known is None else known.state


def ended(cluster: Cluster, name: str) -> JobInfo:
    """Wait until a job has ended."""

    def true() -> bool:
        known = cluster.jobs.info(name)
        return known is not None and known.state.ended

    cluster.wait(true)
    known = cluster.jobs.info(name)
    assert known is not None
    return known


# --- the contract ----------------------------------------------------------------


def test_a_job_runs_once_and_tells_how_it_ended(cluster: Cluster) -> None:
    spec = cluster.spec("good-1", prints="one,two")
    cluster.jobs.submit(spec)
    cluster.jobs.submit(spec)
    cluster.jobs.submit(cluster.spec("bad-1", prints="no such file", code=2))
    assert state(cluster, "good-1") in (JobState.PENDING, JobState.RUNNING)
    good, bad = ended(cluster, "good-1"), ended(cluster, "bad-1")
    assert (good.state, good.exit_code, good.metadata) == (JobState.SUCCEEDED, 0, {"request": "good-1"})
    assert (bad.state, bad.exit_code) == (JobState.FAILED, 2)
    assert "exit code 2" in bad.message
    assert good.started_at is not None
    assert good.ended_at is not None
    assert good.started_at.tzinfo is UTC
    assert good.started_at <= good.ended_at
    assert {name: job.state for name, job in cluster.jobs.list().items() if name in ("good-1", "bad-1")} == {
        "good-1": JobState.SUCCEEDED,
        "bad-1": JobState.FAILED,
    }
    assert cluster.jobs.logs("good-1").count("one\ntwo\n") == 1
    cluster.jobs.submit(spec)
    assert cluster.jobs.info("good-1") == good, "nor does a job that has ended start again"


def test_a_log_is_followed_to_its_end(cluster: Cluster) -> None:
    cluster.jobs.submit(cluster.spec("told-1", prints="one,two,three", seconds=1))
    heard = []
    for text in cluster.jobs.tail("told-1"):
        heard.append(text)
        if isinstance(cluster, Simulated):
            cluster.jobs.advance(0.5)
    assert "one\ntwo\nthree\n" in "".join(heard)
    assert state(cluster, "told-1") is JobState.SUCCEEDED


def test_a_running_job_is_stopped(cluster: Cluster) -> None:
    cluster.jobs.submit(cluster.spec("long-1", seconds=60))
    cluster.wait(lambda: state(cluster, "long-1") is JobState.RUNNING)
    with pytest.raises(Conflict, match="RUNNING"):
        cluster.jobs.delete("long-1")
    assert cluster.jobs.stop("long-1")
    stopped = ended(cluster, "long-1")
    assert (stopped.state, stopped.exit_code) == (JobState.STOPPED, None)
    cluster.wait(lambda: not cluster.jobs.stop("long-1"))
    assert cluster.jobs.delete("long-1")
    assert not cluster.jobs.delete("long-1")
    assert cluster.jobs.info("long-1") is None


def test_a_killed_job_tells_the_signal(cluster: Cluster) -> None:
    cluster.jobs.submit(cluster.spec("killed-1", seconds=60))
    cluster.wait(lambda: state(cluster, "killed-1") is JobState.RUNNING)
    cluster.kill("killed-1")
    killed = ended(cluster, "killed-1")
    assert (killed.state, killed.exit_code) == (JobState.FAILED, -9)


def test_a_job_that_waits_for_resources_is_stopped_once_it_has_them(cluster: Cluster) -> None:
    assert cluster.jobs.capacity().cpus == 2
    cluster.jobs.submit(cluster.spec("large-1", seconds=60, cpus=2))
    cluster.wait(lambda: state(cluster, "large-1") is JobState.RUNNING)
    cluster.jobs.submit(cluster.spec("waits-1", seconds=60, cpus=1))
    assert cluster.jobs.stop("waits-1")
    assert state(cluster, "waits-1") is JobState.PENDING
    assert cluster.jobs.logs("waits-1") == ""
    assert cluster.jobs.stop("large-1")
    assert ended(cluster, "waits-1").state is JobState.STOPPED


def test_what_nobody_submitted_is_not_there(cluster: Cluster) -> None:
    assert cluster.jobs.info("none-1") is None
    assert not cluster.jobs.stop("none-1")
    assert not cluster.jobs.delete("none-1")
    for ask in (cluster.jobs.logs, lambda name: next(iter(cluster.jobs.tail(name)))):
        with pytest.raises(NotFound, match="none-1"):
            ask("none-1")


# --- of Ray only -----------------------------------------------------------------


@pytest.mark.slow
def test_a_job_has_its_folder_and_its_environment_and_no_shell_reads_its_arguments(ray: Real) -> None:
    ray.jobs.submit(ray.spec("apart-1"))
    ended(ray, "apart-1")
    folder = ray.folder / "jobs" / "apart-1"
    said = next(line for line in ray.jobs.logs("apart-1").splitlines() if line.split()[1:2] == [str(folder)])
    assert said.split(maxsplit=2)[2] == "0o77 hello $(id) 5$ $(id) `id`; 'a b'"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_without_the_token_nobody_is_let_in(ray: Real, tmp_path: Path) -> None:
    assert ray.token.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "token"
    other.write_text("ab" * 32)
    for token in (None, other):
        with RayJobs(ray.jobs.address, token_path=token) as stranger, pytest.raises(ServiceFault, match="token"):
            stranger.list()
    with RayJobs(ray.jobs.address, token_path=tmp_path / "none") as lost, pytest.raises(ServiceFault, match="No such"):
        lost.list()
