"""Why a request waits: a sentence for each rule, and what a decision does with odd situations."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from factory.operate.admission import (
    Capacity,
    Rule,
    decide,
)

from .admitted import FOUR, LONG, NOW, TWO_CPUS, Case, runs, team, wants

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
