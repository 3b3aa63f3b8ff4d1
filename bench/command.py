"""Wall time and peak memory of any command: ``python -m bench.command factory demo``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench.record import save
from bench.sampler import Measurement, measure

COLUMNS = {
    "command": "command",
    "returncode": "exit code",
    "wall_s": "wall s",
    "peak_pss_mb": "peak PSS MB",
    "cpu_s": "CPU s",
    "others_cores": "cores used by others",
    "left_behind": "processes left",
}
NOTE = "PSS summed over all processes, sampled every 0.5 s. Processes left: still running 3 s after the command's end."


def as_row(taken: Measurement) -> dict[str, Any]:
    """Return a measurement as plain data, with the largest processes of its peak."""
    return {
        "returncode": taken.returncode,
        "timed_out": taken.timed_out,
        "wall_s": round(taken.wall_s, 2),
        "peak_pss_mb": round(taken.peak_pss_mb),
        "peak_at_s": round(taken.peak_at_s, 1),
        "peak": [f"{p.pss_mb:.0f} MB {p.name}" for p in taken.peak[:10]],
        "cpu_s": round(taken.cpu_s, 1),
        "others_cores": round(taken.others_cores, 2),
        "left_behind": [f"{p.pss_mb:.0f} MB {p.name}" for p in taken.left_behind] or None,
        "samples": taken.samples,
    }


def main() -> int:
    """Measure the command of the arguments; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout-s", type=float, help="kill the command after this time")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("name a command to measure")
    taken = measure(arguments.command, timeout_s=arguments.timeout_s)
    row = {"command": " ".join(arguments.command), **as_row(taken)}
    save("command", [row], columns=COLUMNS, note=NOTE, documented=False)
    print("At the peak:", *row["peak"], sep="\n  ")
    return taken.returncode


if __name__ == "__main__":
    sys.exit(main())
