"""The test of a canary beside its champion: how often it errs, and how soon it sees what is worse."""

from __future__ import annotations

import numpy as np
import pytest

from factory.ledger import CanaryCounts
from serve.guard import ALPHA, MOST_ERRORS, SLOWER, Guard, capital

N_CANARIES, N_CALLS = 400, 500


def withdrawn_after(random: np.random.Generator, *, errors: float, times: float, n_calls: int) -> int | None:
    """Return after how many calls a canary is withdrawn that fails so often, and takes so many times as long."""
    guard = Guard()
    for call in range(1, n_calls + 1):
        guard.champion(random.lognormal(0, 0.5))
        if random.random() < errors:
            guard.failed()
        else:
            guard.answered(times * random.lognormal(0, 0.5))
        if guard.verdict:
            return call
    return None


def test_a_canary_that_is_good_enough_is_hardly_ever_withdrawn() -> None:
    """At the very edge of what is allowed, looked at after each call: at most alpha of all, within three deviations."""
    random = np.random.default_rng(0)
    withdrawn = sum(
        withdrawn_after(random, errors=MOST_ERRORS, times=SLOWER, n_calls=N_CALLS) is not None
        for _ in range(N_CANARIES)
    )
    assert withdrawn <= N_CANARIES * ALPHA + 3 * np.sqrt(N_CANARIES * ALPHA)


def test_a_canary_as_good_as_its_champion_stays() -> None:
    random = np.random.default_rng(1)
    assert not any(withdrawn_after(random, errors=0, times=1, n_calls=N_CALLS) for _ in range(100))


@pytest.mark.parametrize(
    ("errors", "times", "within", "says"),
    [(1.0, 1.0, 3, "failed"), (0.2, 1.0, 80, "failed"), (0.05, 1.0, 600, "failed"), (0.0, 4.0, 40, "as long")],
)
def test_a_worse_canary_is_withdrawn_soon(errors: float, times: float, within: int, says: str) -> None:
    random = np.random.default_rng(2)
    calls = [withdrawn_after(random, errors=errors, times=times, n_calls=5_000) for _ in range(50)]
    assert None not in calls
    assert np.median(np.array(calls, dtype=float)) <= within
    guard = Guard()
    for _ in range(5_000):
        guard.champion(1.0)
        (guard.failed if random.random() < errors else lambda: guard.answered(times))()
    assert says in guard.verdict


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
