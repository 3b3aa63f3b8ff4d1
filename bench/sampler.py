"""Wall time, processor time and peak memory of a command and all that it starts, daemons included.

Memory is the proportional set size (PSS) of every process, which counts a
shared page once however many processes map it; the sum over all processes is
what the machine really gives.  Ray's daemons leave their parent, so the caller
becomes the subreaper of what it starts: whoever loses its parent becomes a
child of the caller, and nothing is missed.  Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
"""From Linux's ``prctl.h``."""
INTERVAL_S = 0.5
"""Between two samples; one costs 2 to 10 ms for each process, according to its memory."""
EAGER_INTERVAL_S, EAGER_SAMPLES = 0.05, 20
"""The first second is looked at more closely, for commands that take no longer."""
GRACE_S = 3.0
"""What still runs this long after the command's end has been left behind."""
_NAME_WIDTH = 60


@dataclass(frozen=True)
class Process:
    """A process at the moment of the peak, or one that was left behind."""

    name: str
    pss_mb: float


@dataclass(frozen=True)
class Measurement:
    """What a command took.

    Attributes:
        returncode: Of the command; minus the signal where it was killed.
        timed_out: Whether it was killed at its time limit.
        wall_s: From its start to its end.
        cpu_s: Processor time of all its processes, as the samples saw it.
        others_cores: Processors that everything else on the machine, and on its host, kept busy meanwhile, on average.
        peak_pss_mb: Largest sum of PSS over all its processes.
        peak_at_s: Seconds from the start to that sample.
        peak: The processes of that sample, the largest first.
        left_behind: Processes that still ran when the command had ended; they were killed.
        samples: How many there were.
    """

    returncode: int
    timed_out: bool
    wall_s: float
    cpu_s: float
    others_cores: float
    peak_pss_mb: float
    peak_at_s: float
    peak: tuple[Process, ...]
    left_behind: tuple[Process, ...]
    samples: int


def measure(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    timeout_s: float | None = None,
) -> Measurement:
    """Run a command to its end and measure it.

    Args:
        command: Program and arguments.
        env: Its environment; the caller's if None.
        cwd: Its working directory.
        log: File for its output; without one the output goes to the terminal.
        timeout_s: Seconds after which it is killed.

    Raises:
        OSError: the command cannot be started, or a process of it cannot be looked at.
    """
    with _subreaper(), _output(log) as output:
        sampler = _Sampler(kept=frozenset(p.pid for p in psutil.Process().children()))
        machine = busy_s()
        started = time.monotonic()
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=output, stderr=subprocess.STDOUT if output else None
        )
        sampler.start(process.pid)
        timed_out = False
        try:
            returncode = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            returncode = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            wall_s = time.monotonic() - started
            machine = busy_s() - machine
            left_behind = sampler.stop()
    return Measurement(
        returncode=returncode,
        timed_out=timed_out,
        wall_s=wall_s,
        cpu_s=sampler.cpu_s,
        others_cores=max(0.0, machine - sampler.cpu_s) / wall_s,
        peak_pss_mb=sum(p.pss_mb for p in sampler.peak),
        peak_at_s=max(0.0, sampler.peak_at - started),
        peak=tuple(sorted(sampler.peak, key=lambda p: -p.pss_mb)),
        left_behind=left_behind,
        samples=sampler.samples,
    )


@dataclass
class _Sampler:
    """A thread that looks at all descendants of this process, but for the children it had before."""

    kept: frozenset[int]
    peak: list[Process] = field(default_factory=list)
    peak_at: float = 0.0
    samples: int = 0

    def start(self, command: int) -> None:
        self._command = command
        self._cpu: dict[tuple[int, float], float] = {}
        self._failure: OSError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    def stop(self) -> tuple[Process, ...]:
        """End the sampling; return what outlived the command, after killing it."""
        self._over.set()
        self._thread.join()
        patience = time.monotonic() + GRACE_S
        while self._descendants() and time.monotonic() < patience:
            time.sleep(0.1)
            self._reap()
        left_behind = tuple(seen for process in self._descendants() if (seen := _look(process)))
        while descendants := self._descendants():
            for process in descendants:
                _kill(process)
            time.sleep(0.1)
            self._reap()
        if self._failure is not None:
            raise self._failure
        return left_behind

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._sample()
                self._over.wait(EAGER_INTERVAL_S if self.samples < EAGER_SAMPLES else INTERVAL_S)
        except OSError as failure:
            self._failure = failure

    def _sample(self) -> None:
        now = time.monotonic()
        seen = []
        for process in self._descendants():
            if look := _look(process):
                seen.append(look)
                self._note_cpu(process)
        if sum(p.pss_mb for p in seen) > sum(p.pss_mb for p in self.peak):
            self.peak, self.peak_at = seen, now
        self.samples += 1
        self._reap()

    def _note_cpu(self, process: psutil.Process) -> None:
        try:
            times = process.cpu_times()
            self._cpu[process.pid, process.create_time()] = times.user + times.system
        except psutil.NoSuchProcess:
            return

    def _descendants(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process().children():
            if child.pid not in self.kept:
                found.append(child)
                try:
                    found += child.children(recursive=True)
                except psutil.NoSuchProcess:
                    continue
        return [p for p in found if _alive(p)]

    def _reap(self) -> None:
        """Collect orphans that have ended; the command itself is waited for by who started it."""
        for child in psutil.Process().children():
            if child.pid != self._command and child.pid not in self.kept and not _alive(child):
                try:
                    os.waitpid(child.pid, os.WNOHANG)
                except ChildProcessError:
                    continue


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _look(process: psutil.Process) -> Process | None:
    """Return a process's name and PSS; None where it has just ended."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        name = " ".join(process.cmdline()) or process.name()
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return None
    kilobytes = next((line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")), "0")
    return Process(_short(name), int(kilobytes) / 1024)


def _short(name: str) -> str:
    """Return a command line without folders, which say nothing and differ from machine to machine."""
    return " ".join(word.rpartition("/")[2] for word in name.split())[:_NAME_WIDTH]


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def busy_s() -> float:
    """Return the processor seconds that the machine has spent on anything since it started.

    Those that its host gave to other machines are among them: they were not there for a measurement either.
    """
    times = psutil.cpu_times()
    stolen = getattr(times, "steal", 0.0)
    return float(times.user + times.system + times.nice + times.irq + times.softirq + stolen)


@contextmanager
def _subreaper() -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def adopt(on: int) -> None:
        if libc.prctl(PR_SET_CHILD_SUBREAPER, on, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")

    adopt(1)
    try:
        yield
    finally:
        adopt(0)


@contextmanager
def _output(log: Path | None) -> Iterator[int | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        yield file.fileno()
