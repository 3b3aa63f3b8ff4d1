"""Each rule of admission in the smallest cluster that shows it; times are seconds, and it is always ``NOW``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from factory.operate.admission import (
    EXEMPT_S,
    MOST_PREEMPTIONS,
    PATIENCE_S,
    PRIORITY_S,
    Capacity,
    Decision,
    Rule,
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

CASES = [
    Case("what fits starts", [wants("a", "growth", 4)], admit=("a",)),
    Case("all of it or nothing", [wants("a", "growth", 3)], [runs("x", "risk", 2)]),
    Case(
        "nothing that is not needed has to be free",
        [wants("a", "growth", 1)],
        [runs("x", "risk", 1, gpus=3)],
        capacity=Capacity(4, 2, 16),
        admit=("a",),
    ),
    # --- fair shares ---
    Case(
        "the team with the smallest share comes first, however long the other one waits",
        [wants("a", "growth", 1, ago=500), wants("b", "risk", 1)],
        [runs("x", "growth", 2), runs("y", "search", 1)],
        admit=("b",),
    ),
    Case(
        "a share is that of the resource a team has most of",
        [wants("a", "growth", 1), wants("b", "risk", 1)],
        [runs("x", "growth", 2, memory_gb=2), runs("y", "risk", 1, memory_gb=12)],
        admit=("a",),
    ),
    Case(
        "a weight of two is worth twice the share",
        [wants("a", "growth", 1), wants("b", "risk", 1)],
        [runs("x", "growth", 2), runs("y", "risk", 1)],
        [team("growth", weight=3)],
        admit=("a",),
    ),
    Case(
        "teams take turns",
        [wants(f"{t}{n}", t, 1, ago=9 - n) for t in ("a", "b") for n in range(4)],
        admit=("a0", "b0", "a1", "b1"),
    ),
    Case(
        "of equal teams the one that waits longest with nothing running comes first",
        [wants("a", "growth", 4, ago=300), wants("b", "risk", 4, ago=200)],
        teams=[team("growth", last_end=100)],
        admit=("b",),
    ),
    # --- within a team ---
    Case(
        "priorities order a team's own requests",
        [wants("a", "growth", 4, ago=500), wants("b", "growth", 4, priority="high")],
        admit=("b",),
    ),
    Case(
        "a priority buys nothing against another team",
        [wants("a", "growth", 1, priority="low"), wants("b", "risk", 1, priority="high")],
        [runs("x", "risk", 1), runs("y", "search", 2)],
        admit=("a",),
    ),
    Case(
        "a day of waiting weighs as much as a level of priority",
        [wants("a", "growth", 4, ago=PRIORITY_S["normal"] + 60), wants("b", "growth", 4, priority="high")],
        admit=("a",),
    ),
    # --- limits ---
    Case(
        "no more run at once than a team may",
        [wants("a", "growth", 1, ago=1), wants("b", "growth", 1)],
        [runs("x", "growth", 1)],
        [team("growth", requests=2)],
        admit=("a",),
    ),
    Case(
        "nothing starts when a month is used up",
        [wants("a", "growth", 1), wants("b", "risk", 1)],
        teams=[team("growth", trial_seconds_month=100, used=100)],
        admit=("b",),
    ),
    Case("what exceeds the cluster delays nobody", [wants("a", "growth", 64), wants("b", "risk", 4)], admit=("b",)),
    # --- guarantees ---
    Case(
        "who is within its guarantee comes before who borrows, whatever the shares",
        [wants("a", "growth", 1), wants("b", "risk", 1)],
        [runs("x", "growth", 1), runs("y", "search", 2)],
        [team("growth", cpus=2)],
        admit=("a",),
    ),
    Case(
        "what lies idle may be borrowed",
        [wants("a", "risk", 4)],
        teams=[team("growth", cpus=4)],
        admit=("a",),
    ),
    Case(
        "borrowers give back what is guaranteed",
        [wants("a", "growth", 2)],
        [runs("x", "risk", 2), runs("y", "risk", 2)],
        [team("growth", **TWO_CPUS)],
        preempt=(("x", "a"),),
    ),
    Case(
        "no more is reclaimed than the guarantee covers",
        [wants("a", "growth", 3)],
        [runs("x", "risk", 4)],
        [team("growth", **TWO_CPUS)],
    ),
    Case(
        "what a guarantee of CPUs needs of memory comes with it",
        [wants("a", "growth", 2, memory_gb=8)],
        [runs("x", "risk", 4, memory_gb=16)],
        [team("growth", **TWO_CPUS)],
        preempt=(("x", "a"),),
    ),
    Case(
        "GPUs are guaranteed only by name",
        [wants("a", "growth", 1, gpus=1)],
        [runs("x", "risk", 1, gpus=2)],
        [team("growth", cpus=4)],
        capacity=Capacity(4, 2, 16),
    ),
    Case(
        "the least urgent makes room, and of these what started last",
        [wants("a", "growth", 1)],
        [
            runs("x", "risk", 1, ago=900, priority="low"),
            runs("y", "risk", 1, ago=800, priority="low"),
            runs("z", "risk", 2, ago=700),
        ],
        [team("growth", **ONE_CPU)],
        preempt=(("y", "a"),),
    ),
    Case(
        "nobody makes room needlessly",
        [wants("a", "growth", 2)],
        [runs("x", "risk", 1, ago=700), runs("y", "risk", 3, ago=800)],
        [team("growth", **TWO_CPUS)],
        preempt=(("y", "a"),),
    ),
    Case(
        "a team is not taken below its guarantee",
        [wants("a", "growth", 2)],
        [runs("x", "risk", 2), runs("y", "risk", 2)],
        [team("growth", **TWO_CPUS), team("risk", cpus=4)],
    ),
    Case(
        "nobody makes room where that would not be enough",
        [wants("a", "growth", 4)],
        [runs("x", "risk", 2), runs("y", "search", 2, preemptible=False)],
        [team("growth", cpus=4)],
    ),
    Case(
        "who made room three times is left alone",
        [wants("a", "growth", 4)],
        [runs("x", "risk", 4, n_preempted=MOST_PREEMPTIONS)],
        [team("growth", cpus=4)],
    ),
    Case(
        "who has only just started is left alone",
        [wants("a", "growth", 4)],
        [runs("x", "risk", 4, ago=EXEMPT_S - 1)],
        [team("growth", cpus=4)],
    ),
    Case(
        "what ends within a minute is waited for",
        [wants("a", "growth", 2)],
        [runs("x", "risk", 2, ends=50), runs("y", "risk", 2)],
        [team("growth", **TWO_CPUS)],
    ),
    Case(
        "but not what should have ended",
        [wants("a", "growth", 2)],
        [runs("x", "risk", 2, ends=-50), runs("y", "risk", 2, priority="high")],
        [team("growth", **TWO_CPUS)],
        preempt=(("x", "a"),),
    ),
    Case(
        "nobody else has to make room while somebody does",
        [wants("a", "growth", 2)],
        [runs("x", "risk", 2, stopping=True), runs("y", "risk", 2)],
        [team("growth", **TWO_CPUS)],
    ),
    Case(
        "and nobody else takes that room",
        [wants("a", "growth", 2), wants("b", "search", 1, takes=60)],
        [runs("x", "risk", 1, stopping=True), runs("y", "risk", 2)],
        [team("growth", **TWO_CPUS)],
    ),
    Case(
        "several get their guarantee back at once",
        [wants("a", "growth", 1, ago=3), wants("b", "growth", 1, ago=2), wants("c", "growth", 1, ago=1)],
        [runs(i, "risk", 1, ago=ago) for i, ago in (("w", 900), ("x", 800), ("y", 700), ("z", 600))],
        [team("growth", **TWO_CPUS)],
        preempt=(("z", "a"), ("y", "b")),
    ),
    # --- back-filling ---
    Case(
        "a short one starts beside the place that is kept for a large one",
        [wants("a", "growth", 4, ago=9), wants("b", "risk", 1, takes=300)],
        [runs("x", "search", 3, ends=360)],
        admit=("b",),
    ),
    Case(
        "a long one would delay it",
        [wants("a", "growth", 4, ago=9), wants("b", "risk", 1, takes=400)],
        [runs("x", "search", 3, ends=360)],
    ),
    Case(
        "one of unknown length might delay it",
        [wants("a", "growth", 4, ago=9), wants("b", "risk", 1, takes=None)],
        [runs("x", "search", 3, ends=360)],
    ),
    Case(
        "a long one starts where there is room beside it",
        [
            wants("a", "growth", 3, ago=9),
            wants("b", "risk", 1, ago=2, takes=LONG),
            wants("c", "hr", 1, ago=1, takes=LONG),
        ],
        [runs("x", "search", 2, ends=360)],
        admit=("b",),
    ),
    Case(
        "what is late is not relied upon: only what fits beside the whole place starts",
        [wants("a", "growth", 3, ago=9), wants("b", "risk", 1, takes=1), wants("c", "hr", 1, takes=1, memory_gb=1)],
        [runs("x", "search", 2, ends=-10)],
    ),
    Case(
        "a request may overtake one of its own team",
        [wants("a", "growth", 4, ago=9), wants("b", "growth", 1, takes=300)],
        [runs("x", "search", 3, ends=360)],
        admit=("b",),
    ),
    Case(
        "but not for longer than an hour, while other teams wait",
        [wants("a", "growth", 4, ago=LATER), wants("b", "growth", 1, takes=300), wants("c", "risk", 4)],
        [runs("x", "search", 2, ends=360), runs("y", "growth", 1, ends=360)],
    ),
    Case(
        "requests for GPUs do not stand in the way of those without",
        [wants("a", "growth", 1, gpus=2, ago=LONG), wants("b", "growth", 1, takes=LONG), wants("c", "risk", 1, gpus=2)],
        [runs("x", "search", 1, gpus=2, ends=None), runs("y", "growth", 1, gpus=0)],
        capacity=Capacity(16, 2, 64),
        admit=("b",),
    ),
    # --- nobody starves ---
    Case(
        "who has waited an hour with nothing running comes first, also before guarantees",
        [wants("a", "growth", 1, ago=LATER), wants("b", "risk", 1)],
        [runs("x", "search", 3, preemptible=False)],
        [team("risk", cpus=4)],
        admit=("a",),
    ),
    Case(
        "then nothing takes what it lacks, however short",
        [wants("a", "growth", 4, ago=LATER), wants("b", "risk", 1, takes=1)],
        [runs("x", "search", 3, ends=360)],
    ),
    Case(
        "what it does not lack is left to others",
        [wants("a", "growth", 1, gpus=2, ago=LATER), wants("b", "risk", 14, ago=2), wants("c", "hr", 1, ago=1)],
        [runs("x", "search", 1, gpus=2, ends=360)],
        capacity=SIXTEEN,
        admit=("b",),
    ),
    Case(
        "waiting counts from the end of the last attempt",
        [wants("a", "growth", 1, ago=LATER), wants("b", "risk", 1)],
        [runs("x", "search", 3)],
        [team("risk", cpus=4), team("growth", last_end=60)],
        admit=("b",),
    ),
    Case(
        "places are kept for as many of them as fit together",
        [
            wants("a", "growth", 1, gpus=2, ago=LATER + 2),
            wants("b", "risk", 8, ago=LATER + 1),
            wants("c", "hr", 3, takes=1),
        ],
        [runs("x", "search", 10, gpus=2)],
        capacity=SIXTEEN,
    ),
    Case(
        "and for no more than that",
        [
            wants("a", "growth", 1, gpus=2, ago=LATER + 2),
            wants("b", "risk", 16, ago=LATER + 1),
            wants("c", "hr", 3, takes=1),
        ],
        [runs("x", "search", 10, gpus=2)],
        capacity=SIXTEEN,
        admit=("c",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.rule for case in CASES])
def test_rule(case: Case) -> None:
    decision = case.decision
    assert decision.admit == case.admit
    assert decision.preempt == case.preempt
    assert set(decision.held) == {request.id for request in case.waiting} - set(case.admit)


DECEMBER = "; about 3 days"
SENTENCES = [
    (
        Rule.CAPACITY,
        "waiting for 2 CPUs: team growth holds 4 of 4 CPUs; about 6 minutes",
        Case("", [wants("a", "risk", 2)], [runs("x", "growth", 4)]),
    ),
    (
        Rule.CAPACITY,
        "waiting for 1 of its 3 CPUs: teams growth and search hold 2 of 4 CPUs; about a minute",
        Case("", [wants("a", "risk", 3)], [runs("x", "growth", 1, ends=70), runs("y", "search", 1, ends=90)]),
    ),
    (
        Rule.CAPACITY,
        "waiting for 1 of its 2 CPUs and 1 GPU: teams growth, hr and 1 more hold 2 of 2 GPUs; no estimate yet",
        Case(
            "",
            [wants("a", "risk", 2, gpus=1)],
            [
                runs("x", "growth", 1, gpus=1, ends=None),
                runs("y", "hr", 1, gpus=0.5, ends=None),
                runs("z", "it", 1, gpus=0.5),
            ],
            capacity=Capacity(4, 2, 16),
        ),
    ),
    (
        Rule.CAPACITY,
        "waiting for 8 GB of memory: team growth holds 16 of 16 GB of memory; about 2.5 hours",
        Case("", [wants("a", "risk", 1, memory_gb=8)], [runs("x", "growth", 1, memory_gb=16, ends=9000)]),
    ),
    (
        Rule.NEVER,
        "never: asks for 64 CPUs, the cluster has 4",
        Case("", [wants("a", "risk", 64)]),
    ),
    (
        Rule.NEVER,
        "never: asks for 1 GPU, the cluster has no GPU",
        Case("", [wants("a", "risk", 1, gpus=1)]),
    ),
    (
        Rule.NEVER,
        "never: asks for 5 CPUs and 32 GB of memory, the cluster has 4 CPUs and 16 GB of memory",
        Case("", [wants("a", "risk", 5, memory_gb=32)]),
    ),
    (
        Rule.NEVER,
        "never: team risk may run no request",
        Case("", [wants("a", "risk", 1)], teams=[team("risk", requests=0)]),
    ),
    (
        Rule.NEVER,
        "never: team risk may use no trial-seconds",
        Case("", [wants("a", "risk", 1)], teams=[team("risk", trial_seconds_month=0)]),
    ),
    (
        Rule.TRIAL_SECONDS,
        "waiting for 1 December: team risk has used its 36,000 trial-seconds of this month; about 2 days",
        Case("", [wants("a", "risk", 1)], teams=[team("risk", trial_seconds_month=36_000, used=36_001)]),
    ),
    (
        Rule.REQUESTS,
        "waiting for one to end: team risk runs 2 requests, as many as it may; about 6 minutes",
        Case("", [wants("a", "risk", 1)], [runs("x", "risk", 1), runs("y", "risk", 1, ends=None)],
             [team("risk", requests=2)]),
    ),
    (
        Rule.RECLAIM,
        "waiting for 2 CPUs guaranteed to team risk: team growth makes room as running trials end",
        Case("", [wants("a", "risk", 2)], [runs("x", "growth", 4)], [team("risk", **TWO_CPUS)]),
    ),
    (
        Rule.RESERVED,
        "waiting, for what is free is kept for team growth, which comes first; about 15 minutes",
        Case("", [wants("a", "risk", 1, takes=LONG), wants("b", "growth", 3, ago=9)],
             [runs("x", "search", 2), runs("y", "it", 1, ends=900)]),
    ),
    (
        Rule.ORDER,
        "a request of team risk comes first; about 25 minutes",
        Case("", [wants("a", "risk", 2), wants("b", "risk", 4, ago=9, takes=600)], [runs("x", "growth", 3, ends=300)],
             teams=[team("idle", weight=9)]),
    ),
    (
        Rule.ORDER,
        "2 requests of team risk come first; no estimate yet",
        Case("", [wants("a", "risk", 2), wants("b", "risk", 4, ago=9, takes=None), wants("c", "risk", 4, ago=8)],
             [runs("x", "growth", 3)]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "sentence", "case"), SENTENCES, ids=[sentence for _, sentence, _ in SENTENCES])
def test_sentence(rule: Rule, sentence: str, case: Case) -> None:
    held = case.decision.held["a"]
    assert (held.rule, held.sentence) == (rule, sentence)
    if "about" in sentence:
        assert held.eta_s is not None
        assert held.eta_s > 0
    else:
        assert held.eta_s is None


def test_a_month_ends_with_the_year() -> None:
    new_year = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    load = team("risk", trial_seconds_month=1, used=1)
    held = decide(FOUR, [wants("a", "risk", 1)], [], [load], new_year - 60).held["a"]
    assert held.sentence.startswith("waiting for 1 January:")
    assert held.eta_s == 60


def test_reasons_are_looked_up_as_in_a_dictionary() -> None:
    held = decide(FOUR, [wants(f"a{n}", "risk", 3, ago=9 - n) for n in range(3)], [], [], NOW).held
    assert list(held) == ["a1", "a2"]
    assert len(held) == 2
    assert "a0" not in held
    with pytest.raises(KeyError):
        held["a0"]
    assert dict(held)["a2"].rule is Rule.ORDER


def test_a_cluster_that_has_lost_nodes_starts_nothing_more() -> None:
    decision = decide(FOUR, [wants("a", "risk", 1)], [runs("x", "growth", 6)], [], NOW)
    assert decision.admit == ()
    assert "team growth holds 6 of 4 CPUs" in decision.held["a"].sentence


def test_patience_without_end_lets_guarantees_starve_others() -> None:
    waiting = [wants("a", "growth", 1, ago=1e6), wants("b", "risk", 1)]
    running, teams = [runs("x", "search", 3)], [team("risk", cpus=4)]
    assert decide(FOUR, waiting, running, teams, NOW, patience_s=math.inf).admit == ("b",)
    assert decide(FOUR, waiting, running, teams, NOW).admit == ("a",)
