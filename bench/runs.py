"""Runs of the comparison with the peers, one JSON line each, written the moment that a run has ended.

Whatever stops the comparison, the runs that have ended are kept, and are not
made again; of a run that was made again the newest counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """What was run."""

    peer: str
    data: str
    seed: int
    budget_s: int


@dataclass(frozen=True)
class Run:
    """One fit of one system.

    Attributes:
        peer: The system.
        data: The table.
        seed: Of the split and of the fit.
        budget_s: Seconds that it was given.
        score: On the test rows; None where it failed.
        loss: The score as something that is to be small; None where it failed.
        wall_s: Of the whole process, timing of single rows left out.
        fit_s: Of the call that fits, as the process told it; None for ours, and where it failed.
        latency_ms: Median of predicting one row in process; None where it failed.
        peak_pss_mb: Of all its processes.
        cpu_s: Of all its processes.
        others_cores: Cores that everything else on the machine kept busy meanwhile.
        returncode: Of the process.
        timed_out: Whether it was killed for its time.
        error: Last line of its output where it failed.
        versions: Of its packages.
        commit: Of the project.
        date: UTC.
        hardware: Of the machine.
    """

    peer: str
    data: str
    seed: int
    budget_s: int
    score: float | None
    loss: float | None
    wall_s: float
    fit_s: float | None
    latency_ms: float | None
    peak_pss_mb: float
    cpu_s: float
    others_cores: float
    returncode: int
    timed_out: bool
    error: str | None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    date: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What was run."""
        return Key(self.peer, self.data, self.seed, self.budget_s)


def append(path: Path, run: Run) -> None:
    """Add a run to the journal, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # A process that was killed may have left half a line.
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(asdict(run)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Run]:
    """Return the newest run of each key, in the order in which the keys came up; none where there is no journal."""
    if not path.exists():
        return []
    found: dict[Key, Run] = {}
    for line in path.read_text().splitlines():
        try:
            run = Run(**json.loads(line))
        except json.JSONDecodeError:
            continue
        found[run.key] = run
    return list(found.values())


def missing(wanted: Iterable[Key], runs: Iterable[Run]) -> list[Key]:
    """Return those of the wanted keys that no run has yet."""
    there = {run.key for run in runs}
    return [key for key in wanted if key not in there]
