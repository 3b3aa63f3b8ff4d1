"""The test of a canary beside its champion: how often it errs, and how soon it sees what is worse."""

from __future__ import annotations

import numpy as np
import pytest

from bench.canaries import CASES, Case, row, withdrawn_after
from factory.ledger import CanaryCounts
from serve.guard import ALIKE, Guard, Took, capital


@pytest.mark.parametrize("case", [case for case in CASES if case.good], ids=lambda case: case.what)
def test_a_canary_that_is_good_enough_is_hardly_ever_withdrawn(case: Case) -> None:
    """Looked at after each call, also at the very edge of what is allowed, and with keys of many rows on one side."""
    assert row(case, n_canaries=150, n_calls=600)["met"]


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
    calls = [withdrawn_after(random, case, n_calls=10_000) for _ in range(30)]
    assert None not in calls
    assert np.median(np.array(calls, dtype=float)) <= within
    guard = Guard()
    for _ in range(5_000):
        guard.champion(Took(1, 1.0))
        (guard.failed if random.random() < case.errors else lambda: guard.answered(Took(1, case.times)))()
    assert says in guard.verdict


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


@pytest.mark.parametrize("most", [0.01, 0.5])
def test_capital_does_not_grow_on_average_while_it_is_good_enough(most: float) -> None:
    random = np.random.default_rng(3)
    ends = [capital(int(n_ones), 30, most=most) for n_ones in random.binomial(30, most, 4_000)]
    assert np.mean(ends) <= 1 + 4 * np.std(ends) / np.sqrt(len(ends))


def test_replicas_see_together_what_none_of_them_has_seen_alone() -> None:
    """Each has seen too little to be sure; by the sums that the ledger keeps each of them is."""
    guards, fleet = [Guard() for _ in range(4)], CanaryCounts()
    for guard in guards:
        guard.failed()
        assert not guard.verdict
    for guard in guards:
        told = guard.untold
        guard.failed()  # while the ledger is told
        fleet += told
        guard.tell(told, fleet)
    assert [guard.counts for guard in guards] == [CanaryCounts(calls=n, failed=n) for n in (2, 3, 4, 5)]
    assert [guard.untold for guard in guards] == [CanaryCounts(calls=1, failed=1)] * 4
    assert "failed where the champion answered" in guards[-1].verdict
