"""Requests, teams and situations for tests of admission."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from factory.operate.admission import (
    PATIENCE_S,
    Capacity,
    Decision,
    Running,
    TeamLoad,
    Waiting,
    decide,
)
from factory.spec import Quota

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
FOUR = Capacity(cpus=4, gpus=0, memory_gb=16)
SIXTEEN = Capacity(cpus=16, gpus=2, memory_gb=64)


def wants(id_: str, team: str, cpus: float, *, ago: float = 0, takes: float | None = 600, **more: Any) -> Waiting:
    """Return a request that came some seconds ago and is expected to take some."""
    given = {"gpus": 0.0, "memory_gb": 0.0, "priority": "normal"} | more
    return Waiting(id=id_, team=team, cpus=cpus, since=NOW - ago, expected_s=takes, **given)


def runs(id_: str, team: str, cpus: float, *, ago: float = 900, ends: float | None = 360, **more: Any) -> Running:
    """Return a request that started some seconds ago and is expected to end in some."""
    given = {"gpus": 0.0, "memory_gb": 0.0, "priority": "normal"} | more
    end = None if ends is None else NOW + ends
    return Running(id=id_, team=team, cpus=cpus, since=NOW - ago, expected_end=end, **given)


def team(name: str, *, used: float = 0, last_end: float | None = None, **quota: Any) -> TeamLoad:
    """Return a team with a quota, whose last attempt ended some seconds ago."""
    return TeamLoad(name, Quota(**quota), used, None if last_end is None else NOW - last_end)


@dataclass(frozen=True)
class Case:
    """A rule, a situation, and what follows from the rule."""

    rule: str
    waiting: list[Waiting]
    running: list[Running] = field(default_factory=list)
    teams: list[TeamLoad] = field(default_factory=list)
    capacity: Capacity = FOUR
    admit: tuple[str, ...] = ()
    preempt: tuple[tuple[str, str], ...] = ()

    @property
    def decision(self) -> Decision:
        """What is decided."""
        return decide(self.capacity, self.waiting, self.running, self.teams, NOW)


LATER = PATIENCE_S + 60
ONE_CPU, TWO_CPUS = {"cpus": 1}, {"cpus": 2}
LONG = 7200.0
