"""The test of a canary beside its champion: how often it errs, and how soon it sees what is worse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from math import comb, prod

import numpy as np
import pytest

from bench.canaries import CASES, Case, row, withdrawn_after
from factory.ledger import CanaryCounts, CanaryRecord
from serve.guard import ALIKE, MOST_ERRORS, MOST_PARTS, PART, Guard, Took, after, capitals


@pytest.mark.parametrize("case", [case for case in CASES if case.good], ids=lambda case: case.what)
def test_a_canary_that_is_good_enough_is_hardly_ever_withdrawn(case: Case) -> None:
    """Looked at after each call, also at the very edge of what is allowed, and with keys of many rows on one side."""
    short = replace(case, before=min(case.before, 2_000))
    assert row(short, n_canaries=40 if case.before else 150, n_calls=600)["met"]


@pytest.mark.parametrize(
    ("case", "within", "says"),
    [
        (Case("fails", errors=1.0), 3, "failed"),
        (Case("fails", errors=0.2), 80, "failed"),
        (Case("fails", errors=0.05), 600, "failed"),
        (Case("slow", times=4.0), 40, "as long"),
        (Case("slow", times=4.0, heavy_canary=0.5, heavy_champion=0.1), 60, "as long"),
    ],
)
def test_a_worse_canary_is_withdrawn_soon(case: Case, within: int, says: str) -> None:
    random = np.random.default_rng(2)
    calls = [withdrawn_after(random, replace(case, good=False), n_calls=10_000) for _ in range(30)]
    assert None not in calls
    assert np.median(np.array(calls, dtype=float)) <= within
    guard = Guard()
    for _ in range(5_000):
        guard.champion(Took(1, 1.0))
        (guard.failed if random.random() < case.errors else lambda: guard.answered(Took(1, case.times)))()
    assert says in guard.suspicion


def test_only_calls_of_about_as_many_rows_are_compared() -> None:
    guard = Guard()
    guard.champion(Took(1, 1.0))
    guard.answered(Took(10_000, 50.0))
    assert guard.counts == CanaryCounts(calls=1)
    guard.champion(Took(10_000, 48.0))
    guard.answered(Took(10_100, 50.0))
    guard.answered(Took(10_100, 500.0))
    assert guard.counts == CanaryCounts(calls=3, compared=1), "each call of the champion is compared with once"
    guard.answered(Took(1, 9.0))
    guard.answered(None)
    assert guard.counts == CanaryCounts(calls=5, compared=2, slower=1)


def test_rows_that_are_compared_differ_by_less_than_makes_one_slower() -> None:
    sizes = {rows: Took(rows, 1.0).size for rows in range(1, 20_000)}
    for size in set(sizes.values()):
        rows = [n for n, its in sizes.items() if its == size]
        assert max(rows) / min(rows) < ALIKE
    assert Took(0, 1.0).size == Took(1, 1.0).size


def test_capitals_neither_grow_nor_shrink_on_average_at_the_edge() -> None:
    """Over all that may become of a few parts, by its probability."""
    sizes = (3, 8, 1)
    means = np.zeros(2)
    for ones in product(*(range(n + 1) for n in sizes)):
        pairs = list(zip(sizes, ones, strict=True))
        ends = capitals(after(CanaryRecord(), [CanaryCounts(n, k, n, k) for n, k in pairs]))
        chances = [prod(comb(n, k) * p**k * (1 - p) ** (n - k) for n, k in pairs) for p in (MOST_ERRORS, 0.5)]
        means += np.multiply(ends, chances)
    assert means == pytest.approx([1, 1])
    assert capitals(CanaryRecord()) == (1, 1)


def test_counts_of_before_there_were_bets_are_bet_on_at_once() -> None:
    counts = CanaryCounts(calls=40, failed=1, compared=30, slower=12)
    assert after(CanaryRecord(counts), ()) == after(CanaryRecord(), [counts])
    assert capitals(CanaryRecord(counts)) == capitals(after(CanaryRecord(), [counts]))


@pytest.mark.parametrize("before", [300, 1_000, 10_000, 100_000])
def test_a_canary_that_breaks_after_a_long_good_time_is_suspected_soon(before: int) -> None:
    guard = Guard(fleet=after(CanaryRecord(), [CanaryCounts(PART, 0, PART, 2)] * (before // PART)))
    assert not guard.verdict
    n_failed = 0
    while not guard.suspicion:
        guard.failed()
        n_failed += 1
    assert n_failed <= 6
    guard.told(after(guard.fleet, guard.take()))
    assert "calls failed where the champion answered" in guard.verdict
    assert ("too many of them one soon after the other" in guard.verdict) == (before >= 1_000), "in all, 1 % may fail"


def test_a_canary_that_becomes_slow_after_a_long_good_time_is_suspected_soon() -> None:
    guard = Guard(fleet=after(CanaryRecord(), [CanaryCounts(PART, 0, PART, 2)] * 1_250))
    n_slow = 0
    while not guard.suspicion:
        guard.champion(Took(1, 1.0))
        guard.answered(Took(1, 4.0))
        n_slow += 1
    assert n_slow <= 35


def test_replicas_see_together_what_none_of_them_has_seen_alone() -> None:
    """Each has seen too little to be sure; by what the ledger was told each of them is."""
    guards, fleet = [Guard() for _ in range(4)], CanaryRecord()
    for guard in guards:
        guard.failed()
        assert not guard.suspicion
    for guard in guards:
        parts = guard.take()
        guard.failed()  # while the ledger is told
        fleet = after(fleet, parts)
        guard.told(fleet)
    assert [guard.counts for guard in guards] == [CanaryCounts(calls=n, failed=n) for n in (2, 3, 4, 5)]
    assert [guard.take() for guard in guards] == [(CanaryCounts(calls=1, failed=1),)] * 4
    assert ["failed where the champion answered" in guard.verdict for guard in guards] == [False, True, True, True]


def test_what_the_ledger_has_not_taken_is_taken_again_by_parts() -> None:
    guard = Guard()
    for k in range(3 * PART):
        (guard.failed if k == 0 else partial(guard.answered, None))()
    parts = (CanaryCounts(PART, 1), CanaryCounts(PART), CanaryCounts(PART))
    assert guard.take() == guard.take() == parts
    guard.answered(None)
    assert guard.take() == (*parts, CanaryCounts(1))
    assert guard.counts == CanaryCounts(3 * PART + 1, 1)
    guard.told(after(CanaryRecord(), guard.take()))
    assert guard.take() == ()
    assert guard.counts == guard.fleet.counts == CanaryCounts(3 * PART + 1, 1)


def test_parts_that_wait_for_the_ledger_are_bounded() -> None:
    guard = Guard()
    n = 5 * PART * MOST_PARTS + 3
    for _ in range(n):
        guard.answered(None)
        assert len(guard._parts) <= MOST_PARTS
    parts = guard.take()
    assert len(parts) <= MOST_PARTS
    assert sum(part.calls for part in parts) == n
    guard.failed()
    assert len(guard.take()) <= MOST_PARTS
