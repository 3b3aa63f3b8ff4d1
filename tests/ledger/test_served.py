"""What is answered: sums of all replicas by minute and hour, and what counts against a canary."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from factory.ledger import LATENCY_MS, CanaryCounts, CanaryRecord, Ledger, Served, ShadowCounts
from factory.ledger import served as module

NOON = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
FAST = (1, *(0,) * len(LATENCY_MS))


def calls(
    n: int = 1, *, name: str = "growth.churn", version: int = 1, began: datetime = NOON, failed: int = 0
) -> Served:
    latency = tuple(n * each for each in FAST)
    return Served(name=name, version=version, began=began, calls=n, failed=failed, latency=latency)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the ledger's clock."""
    return lambda moment: monkeypatch.setattr(module, "now", lambda: moment)


def test_what_replicas_count_is_added_up_by_minute_and_hour(ledger: Ledger, at: Callable[[datetime], None]) -> None:
    at(NOON)
    ledger.add_served([calls(3), calls(2, began=NOON + timedelta(seconds=40)), calls(1, version=2)])
    ledger.add_served([calls(4, failed=2)])
    minutes = ledger.served("minute", since=NOON - timedelta(hours=1))
    assert [(one.version, one.began.minute, one.calls, one.failed) for one in minutes] == [
        (1, 0, 7, 2),
        (1, 1, 2, 0),
        (2, 0, 1, 0),
    ]
    assert minutes[0].latency == tuple(7 * each for each in FAST)
    (hour, _) = ledger.served("hour", since=NOON - timedelta(hours=1))
    assert (hour.began, hour.calls) == (NOON.replace(minute=0, second=0), 9)


def test_only_those_that_were_asked_for_are_returned(ledger: Ledger, at: Callable[[datetime], None]) -> None:
    at(NOON)
    ledger.add_served([calls(), calls(name="risk.fraud"), calls(began=NOON - timedelta(minutes=30))])
    since = NOON - timedelta(minutes=5)
    assert [one.name for one in ledger.served("minute", since=since)] == ["growth.churn", "risk.fraud"]
    assert [one.name for one in ledger.served("minute", since=since, names=["risk.fraud"])] == ["risk.fraud"]
    assert ledger.served("minute", since=since, names=[]) == []


def test_what_is_old_is_forgotten(ledger: Ledger, at: Callable[[datetime], None]) -> None:
    at(NOON)
    ledger.add_served([calls()])
    at(NOON + timedelta(hours=4))
    ledger.add_served([calls(name="risk.fraud", began=NOON + timedelta(hours=4))])
    long_ago = NOON - timedelta(days=1)
    assert [one.name for one in ledger.served("minute", since=long_ago)] == ["risk.fraud"]
    assert [one.name for one in ledger.served("hour", since=long_ago)] == ["growth.churn", "risk.fraud"]
    at(NOON + timedelta(days=36))
    ledger.add_served([])
    assert ledger.served("hour", since=long_ago) == []


def test_nothing_is_lost_where_replicas_tell_at_once(ledger: Ledger) -> None:
    def tell(replica: int) -> None:
        for _ in range(10):
            names = ["growth.churn", "risk.fraud"]
            ledger.add_served([calls(name=name, began=datetime.now(UTC)) for name in (names, names[::-1])[replica % 2]])
            ledger.add_canary("growth.churn", 2, NOON, CanaryCounts(calls=1, failed=1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tell, range(4)))
    totals = ledger.served("hour", since=datetime.now(UTC) - timedelta(hours=2), names=["risk.fraud"])
    assert sum(one.calls for one in totals) == 40
    assert ledger.canary_counts("growth.churn", 2, NOON) == CanaryCounts(calls=40, failed=40)


def test_bets_are_made_one_after_the_other_by_what_was_known_before(ledger: Ledger) -> None:
    def bet(known: CanaryRecord) -> tuple[float, ...]:
        return (*known.bets, 0.1 + known.counts.calls)

    def tell(_: int) -> None:
        for _ in range(5):
            ledger.add_canary("growth.churn", 2, NOON, CanaryCounts(calls=1), bet=bet)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tell, range(4)))
    expected = CanaryRecord(CanaryCounts(calls=20), tuple(0.1 + n for n in range(20)))
    assert ledger.canary_record("growth.churn", 2, NOON) == expected
    assert ledger.canary_record("growth.churn", 3, NOON) == CanaryRecord()


def test_a_canary_begins_anew_with_another_share(ledger: Ledger) -> None:
    ledger.add_canary("growth.churn", 2, NOON, CanaryCounts(calls=5, failed=1, compared=4, slower=3))
    assert ledger.add_canary("growth.churn", 2, NOON, CanaryCounts(calls=1)).counts == CanaryCounts(6, 1, 4, 3)
    later = NOON + timedelta(seconds=1)
    assert ledger.add_canary("growth.churn", 2, later, CanaryCounts(calls=1)) == CanaryRecord(CanaryCounts(calls=1))
    assert ledger.canary_counts("growth.churn", 2, NOON) == CanaryCounts()


def test_how_a_shadow_compares_is_added_up_by_whom_it_is_compared_with(ledger: Ledger) -> None:
    one = ShadowCounts(calls=1, labelled=4, agreed=3)
    for against, counts in ((1, one), (3, ShadowCounts(calls=1, measured=2, difference=0.5)), (1, one)):
        ledger.add_shadow("growth.churn", 2, NOON, against, counts)
    assert ledger.shadow_counts("growth.churn", 2, NOON) == {
        1: ShadowCounts(calls=2, labelled=8, agreed=6),
        3: ShadowCounts(calls=1, measured=2, difference=0.5),
    }
    later = NOON + timedelta(seconds=1)
    ledger.add_shadow("growth.churn", 2, later, 1, one)
    assert ledger.shadow_counts("growth.churn", 2, later) == {1: one}
    assert ledger.shadow_counts("growth.churn", 2, NOON) == {}


def test_what_a_part_of_the_calls_took_at_most() -> None:
    assert calls(0).quantile_ms(0.5) is None
    latency = (10, 10, *(0,) * (len(LATENCY_MS) - 1))
    both = Served(name="growth.churn", version=1, began=NOON, calls=20, latency=latency)
    assert both.quantile_ms(0.5) == 1.0
    assert both.quantile_ms(0.75) == 1.5
    slow = Served(name="growth.churn", version=1, began=NOON, calls=1, latency=(*(0,) * len(LATENCY_MS), 1))
    assert slow.quantile_ms(0.95) == LATENCY_MS[-1]
