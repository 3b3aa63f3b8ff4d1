"""Each rule of admission in the smallest cluster that shows it; times are seconds, and it is always ``NOW``."""

from __future__ import annotations

import pytest

from factory.operate.admission import (
    EXEMPT_S,
    MOST_PREEMPTIONS,
    PRIORITY_S,
    Capacity,
)

from .admitted import LATER, LONG, ONE_CPU, SIXTEEN, TWO_CPUS, Case, runs, team, wants

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
