"""What lives of a stack, and how it is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from factory.operate.stack import control
from factory.operate.stack.processes import family
from factory.operate.stack.records import StackFolder


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def marked(home: Path) -> list[psutil.Process]:
    """Return what lives of a stack."""
    state = StackFolder(home).state()
    return family(None, mark=state.mark) if state is not None else []


def states(home: Path) -> dict[str, str]:
    return {each.name: each.state for each in control.look(home).services}


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and is not yet collected does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
