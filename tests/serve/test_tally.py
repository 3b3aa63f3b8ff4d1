"""What replicas count on its way into the ledger: by version and minute, with faults, and never lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from factory.errors import StorageFault
from factory.ledger import AuditQuery, CanaryCounts
from factory.spec import DeploymentWish, Variant
from serve import core as core_module
from serve import tally as module
from serve.loaded import Loaded
from serve.tally import Tally
from serve.traffic import KEY_HEADER, position

from .calls import CHURN
from .conftest import Caller, MakePredictor, Shelf
from .test_traffic import BODY, asked, two

__all__ = ["two"]

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def told(shelf: Shelf) -> dict[str, tuple[int, int]]:
    rows = shelf.ledger.served("minute", since=LONG_AGO)
    return {
        name: (
            sum(r.calls for r in rows if f"{r.name}/{r.version}" == name),
            sum(r.failed for r in rows if f"{r.name}/{r.version}" == name),
        )
        for name in {f"{r.name}/{r.version}" for r in rows}
    }


def test_calls_are_told_by_version_and_those_that_ask_for_no_prediction_are_none(
    two: Shelf, make_caller: MakePredictor
) -> None:
    caller = make_caller(two)
    got = [asked(caller, key) for key in range(40)]
    caller.get("/v2/models/growth.churn")
    caller.post(CHURN, json={"dataframe_records": [{"age": "old"}]}, headers={KEY_HEADER: "0"})
    asyncio.run(caller.app.core.tell())
    counts = told(two)
    assert counts["growth.churn/2"][0] == got.count("growth.churn/2")
    assert sum(calls for calls, _ in counts.values()) == 41, "a caller's fault is a call"
    assert sum(failed for _, failed in counts.values()) == 0
    (row, *_) = two.ledger.served("minute", since=LONG_AGO)
    assert sum(row.latency) == row.calls
    asyncio.run(caller.app.core.tell())
    assert told(two) == counts, "nothing is told twice"


def test_a_canary_that_fails_is_counted_with_it_and_its_champion_with_the_answer(
    two: Shelf, make_caller: MakePredictor
) -> None:
    caller = make_caller(two, load=failing(two))
    key = next(key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3)
    assert asked(caller, key) == "growth.churn/1"
    asyncio.run(caller.app.core.tell())
    assert told(two) == {"growth.churn/1": (1, 0), "growth.churn/2": (1, 1)}
    (served,) = two.ledger.deployment("growth.churn")
    assert two.ledger.canary_counts("growth.churn", 2, served.updated) == CanaryCounts(calls=1, failed=1)


def failing(shelf: Shelf) -> Any:
    """Return what loads version 1 and not version 2."""

    def load(variant: Variant) -> Loaded:
        if variant.version == 2:
            raise StorageFault("The folder is broken.", hint="Mend it.")
        return shelf.load(variant)

    return load


CANARIES_KEYS = [key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3]


async def one_call(replica: Caller, key: int) -> None:
    async with replica.client() as client:
        await client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)})


def test_a_canary_is_withdrawn_by_what_several_replicas_have_seen(two: Shelf, make_caller: MakePredictor) -> None:
    replicas = [make_caller(two, load=failing(two)) for _ in range(2)]

    async def scenario() -> None:
        # Both are there before anything has failed, so that neither begins with what the other has seen.
        for replica in replicas:
            async with replica.client() as client:
                await client.post(CHURN, **BODY, headers={KEY_HEADER: "no canary's: 1"})
        await one_call(replicas[0], CANARIES_KEYS[0])
        await replicas[0].app.core.tell()
        await one_call(replicas[1], CANARIES_KEYS[1])
        assert two.ledger.deployment("growth.churn"), (
            "neither has seen enough, and the second did not know of the first"
        )
        await replicas[1].app.core.tell()

    asyncio.run(scenario())
    assert two.ledger.deployment("growth.churn") == [], "the sums say it, though no call comes after they are told"
    (row,) = two.ledger.audit_page(AuditQuery(action="canary.withdraw")).items
    assert (row.detail["calls"], row.detail["failed"]) == (2, 2)


def test_a_canary_that_is_seldom_called_is_withdrawn_too(two: Shelf, make_caller: MakePredictor) -> None:
    """The ledger is told many times between two calls, and other replicas come and go."""

    async def scenario() -> int:
        for n_calls, key in enumerate(CANARIES_KEYS):
            replica = make_caller(two, load=failing(two))
            for _ in range(3):
                await replica.app.core.tell()
            await one_call(replica, key)
            for _ in range(3):
                await replica.app.core.tell()
            if not two.ledger.deployment("growth.churn"):
                return n_calls + 1
        return 0

    assert asyncio.run(scenario()) == 2


def test_a_canary_is_watched_by_one_replica_however_seldom_it_is_called(two: Shelf, make_caller: MakePredictor) -> None:
    replica = make_caller(two, load=failing(two))

    async def scenario() -> None:
        await one_call(replica, CANARIES_KEYS[0])
        for _ in range(5):
            await replica.app.core.tell()
        await one_call(replica, CANARIES_KEYS[1])
        await replica.app.core.tell()

    asyncio.run(scenario())
    assert two.ledger.deployment("growth.churn") == []


def test_a_withdrawal_that_the_ledger_does_not_take_is_made_later(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = make_caller(two, load=failing(two))

    def away(*_: object, **__: object) -> bool:
        raise StorageFault("The ledger is away.", hint="Wait.")

    async def scenario() -> None:
        with monkeypatch.context() as gone:
            gone.setattr(two.ledger, "withdraw_canary", away)
            for key in CANARIES_KEYS[:4]:
                await one_call(replica, key)
            await replica.app.core.tell()
            await one_call(replica, CANARIES_KEYS[4])
        watched = replica.app.core.traffic._watched["growth.churn"]
        assert watched.guard.counts.calls == 2, "it gets no calls any more"
        await replica.app.core.tell()
        assert two.ledger.deployment("growth.churn") == []
        await replica.app.core.tell()
        assert replica.app.core.traffic._watched == {}

    asyncio.run(scenario())


def test_a_canary_with_another_share_begins_anew(two: Shelf, make_caller: MakePredictor) -> None:
    replica = make_caller(two, load=failing(two))

    async def scenario() -> None:
        await one_call(replica, CANARIES_KEYS[0])
        await replica.app.core.tell()
        two.ledger.set_deployment("growth.churn", DeploymentWish(as_="canary", percent=31), version=2)
        replica.app.core.traffic._known.doubt()
        await one_call(replica, CANARIES_KEYS[1])
        await replica.app.core.tell()

    asyncio.run(scenario())
    (served,) = two.ledger.deployment("growth.churn")
    assert two.ledger.canary_counts("growth.churn", 2, served.updated) == CanaryCounts(calls=1, failed=1)


def test_what_the_ledger_does_not_take_is_told_later(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = make_caller(two)
    asked(caller, 1)

    def away(_: object) -> None:
        raise StorageFault("The ledger is away.", hint="Wait.")

    with monkeypatch.context() as gone:
        gone.setattr(two.ledger, "add_served", away)
        asyncio.run(caller.app.core.tell())
    assert told(two) == {}
    asyncio.run(caller.app.core.tell())
    assert sum(calls for calls, _ in told(two).values()) == 1


def test_no_fault_ends_telling(two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = make_caller(two)
    asked(caller, 1)
    faults = [RuntimeError("a bug"), StorageFault("The ledger is away.", hint="Wait."), None]
    over, real = asyncio.Event(), two.ledger.add_served

    def add(counted: Any) -> None:
        if (fault := faults.pop(0)) is not None:
            raise fault
        real(counted)
        over.set()

    monkeypatch.setattr(core_module, "TOLD_EVERY_S", 0.01)
    monkeypatch.setattr(two.ledger, "add_served", add)
    asyncio.run(caller.app.core.keep_telling(over))
    assert faults == []
    assert sum(calls for calls, _ in told(two).values()) == 1


def test_counts_that_wait_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    clock = [0.0]
    monkeypatch.setattr(module, "wall_clock", lambda: clock[0])
    tally = Tally()
    for minute in range(5):
        clock[0] = 60.0 * minute
        tally.answered("growth.churn/1", took_s=0.0005, failed=False)
    taken = tally.take()
    assert [one.began.minute for one in taken] == [2, 3, 4]
    tally.give_back(taken)
    tally.answered("growth.churn/1", took_s=9.0, failed=True)
    assert [(one.began.minute, one.calls, one.failed) for one in tally.take()] == [(2, 1, 0), (3, 1, 0), (4, 2, 1)]


def test_a_call_lies_in_the_group_of_what_it_took() -> None:
    tally = Tally()
    for took_ms in (0.4, 1.0, 1.01, 4_999, 60_000):
        tally.answered("growth.churn/1", took_s=took_ms / 1e3, failed=False)
    (one,) = tally.take()
    assert (one.latency[0], one.latency[1], one.latency[-2], one.latency[-1]) == (2, 1, 1, 1)
