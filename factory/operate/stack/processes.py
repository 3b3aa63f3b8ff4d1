"""Which processes are ours, also after they were renamed, orphaned, or their number was used again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

MARK, SERVICE = "FACTORY_STACK_ID", "FACTORY_STACK_SERVICE"
"""Variables that everything a stack starts has in its environment: of which stack, and of which of its services."""


def identity(pid: int) -> str | None:
    """Return what tells a process from all others that ever had its number; None where none runs.

    It is made of the kernel's own clock, which setting the time does not change, and of the machine's start.
    """
    if sys.platform == "linux":
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else f"{_boot()}:{fields[19]}"
        return None
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{_boot()}:{process.create_time()}"
    return None


@cache
def _boot() -> str:
    """Return what is different after each start of the machine, where it tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Leader:
    """The main process of a service, which leads a session of its own.

    Attributes:
        pid: Its number.
        identity: What :func:`identity` said of it.
    """

    pid: int
    identity: str

    @property
    def alive(self) -> bool:
        """Whether it lives, and is not another of the same number."""
        return identity(self.pid) == self.identity


def family(leader: Leader | None, *, mark: str, service: str = "") -> list[psutil.Process]:
    """Return the living processes of a service, or of a whole stack.

    Args:
        leader: Its main process, living or not. None for a whole stack.
        mark: The stack's.
        service: Whose processes are meant; empty for all of the stack.

    A process that renames itself (Ray's agents do) loses its environment, one that starts a session (Ray's job
    drivers do) leaves ours, and one whose parent died its ancestry: each is known by one of the others.
    """
    parents: dict[int, int] = {}
    living: dict[int, psutil.Process] = {}
    ours: set[int] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                parents[process.pid], living[process.pid] = process.ppid(), process
                if _belongs(process, leader, mark=mark, service=service):
                    ours.add(process.pid)
    while found := {pid for pid, parent in parents.items() if parent in ours and pid not in ours}:
        ours |= found
    return [living[pid] for pid in sorted(ours)]


def _belongs(process: psutil.Process, leader: Leader | None, *, mark: str, service: str) -> bool:
    environment = process.environ()
    if environment.get(MARK) == mark:
        return not service or environment.get(SERVICE) == service
    if leader is None or os.getsid(process.pid) != leader.pid:
        return False
    if leader.alive:
        return True
    # The number may have led another session since: of a daemon, which has an environment and not our mark in it.
    reused = identity(leader.pid) is not None or leader.identity.partition(":")[0] != _boot()
    return not reused and "PATH" not in environment


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> list[psutil.Process]:
    """Ask processes to end, and kill those that do not; return those that had to be killed."""
    asked = list(processes)
    for process in asked:
        with suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(asked, timeout=grace_s)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)
    return stubborn


def memory_mb(pid: int) -> float:
    """Return the memory of a process and its descendants; shared pages count in part, where the system tells it."""
    total = 0.0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total / 1e6
