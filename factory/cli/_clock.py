"""The clock of a command that makes a variant in this process: it began when the process was started."""

from __future__ import annotations

import sys
import time

import psutil

from factory.search.clock import Clock


def own_clock(*, after_s: float = 0.0, of_process: bool = False) -> Clock:
    """Return when this command's time began: with its process, unless that calls one command after the other.

    Args:
        after_s: Seconds that the command needs when the variant is there.
        of_process: Whether the process does nothing before it makes the variant.
    """
    process, given = psutil.Process(), sys.argv[1:]
    if not given or process.cmdline()[-len(given) :] != given:
        return Clock(time.time(), after_s=after_s)
    return Clock(process.create_time(), after_s=after_s, of_process=of_process)
