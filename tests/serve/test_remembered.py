"""What is remembered of the ledger: renewed before anybody waits, and asked for again when something has changed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factory.errors import StorageFault
from serve import remembered
from serve.remembered import MAX_AGE_S, UNCHANGED_S, Changes, Remembered


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Catalogue:
    """A ledger with one fact, which may be away."""

    def __init__(self) -> None:
        self.mark, self.fact, self.is_away = 1, "old", False
        self.marks_read, self.facts_read = 0, 0

    def read_mark(self) -> int:
        self.marks_read += 1
        self._answer()
        return self.mark

    def read_fact(self) -> str:
        self.facts_read += 1
        self._answer()
        return self.fact

    def change(self, fact: str) -> None:
        self.mark, self.fact = self.mark + 1, fact

    def _answer(self) -> None:
        if self.is_away:
            raise StorageFault("away", hint="wait")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remembered, "clock", clock)
    return clock


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def following(catalogue: Catalogue, executor: ThreadPoolExecutor) -> Remembered[str, str]:
    return Remembered(executor, max_age_s=UNCHANGED_S, changes=Changes(catalogue.read_mark, executor))


def test_an_answer_is_renewed_before_anybody_waits_for_it(clock: Clock, executor: ThreadPoolExecutor) -> None:
    answers = iter("abc")

    async def scenario() -> list[str]:
        known: Remembered[str, str] = Remembered(executor)
        told = [await known.get("key", lambda: next(answers))]
        clock.now += 0.4
        told.append(await known.get("key", lambda: next(answers)))
        clock.now += 0.3
        told.append(await known.get("key", lambda: next(answers)))
        while known._renewals:
            await asyncio.sleep(0.001)
        told.append(await known.get("key", lambda: next(answers)))
        clock.now += 1.1
        told.append(await known.get("key", lambda: next(answers)))
        return told

    assert asyncio.run(scenario()) == ["a", "a", "a", "b", "c"]


def test_fresh_is_what_nobody_has_to_ask_for(clock: Clock, executor: ThreadPoolExecutor) -> None:
    catalogue = Catalogue()

    async def scenario() -> None:
        known = following(catalogue, executor)
        assert known.fresh("key") is None
        await known.get("key", catalogue.read_fact)
        assert known.fresh("key") == "old"
        clock.now += 0.6 * MAX_AGE_S
        assert known.fresh("key") is None, "whether something has changed is asked for before a second is over"
        await known.get("key", catalogue.read_fact)
        assert known.fresh("key") == "old", "somebody asks already"
        known.doubt()
        assert known.fresh("key") is None, "something has changed"

    asyncio.run(scenario())


def test_a_thousand_names_cost_one_question_a_second_while_nothing_changes(
    clock: Clock, executor: ThreadPoolExecutor
) -> None:
    catalogue = Catalogue()

    async def scenario() -> None:
        known = following(catalogue, executor)
        for _ in range(5):
            assert {await known.get(str(name), catalogue.read_fact) for name in range(1000)} == {"old"}
            clock.now += MAX_AGE_S
        assert (catalogue.facts_read, catalogue.marks_read) == (1000, 5)
        clock.now += UNCHANGED_S
        assert await known.get("7", catalogue.read_fact) == "old"
        assert catalogue.facts_read == 1001, "asked for again now and then all the same"

    asyncio.run(scenario())


def test_a_change_counts_within_a_second(clock: Clock, executor: ThreadPoolExecutor) -> None:
    catalogue = Catalogue()

    async def scenario() -> None:
        known = following(catalogue, executor)
        assert await known.get("key", catalogue.read_fact) == "old"
        catalogue.change("new")
        assert await known.get("key", catalogue.read_fact) == "old"
        clock.now += MAX_AGE_S
        assert await known.get("key", catalogue.read_fact) == "new"

    asyncio.run(scenario())


def test_an_answer_that_was_under_way_when_something_changed_is_not_kept(
    clock: Clock, executor: ThreadPoolExecutor
) -> None:
    catalogue, begun, go_on = Catalogue(), threading.Event(), threading.Event()

    def slowly() -> str:
        fact = catalogue.read_fact()
        begun.set()
        assert go_on.wait(10)
        return fact

    async def scenario() -> list[str]:
        known = following(catalogue, executor)
        first = asyncio.create_task(known.get("key", slowly))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        catalogue.change("new")
        clock.now += MAX_AGE_S
        later = await known.get("key", catalogue.read_fact)
        go_on.set()
        return [later, await first, await known.get("key", catalogue.read_fact)]

    later, first, after = asyncio.run(scenario())
    assert (later, first, after) == ("new", "old", "new")


def test_what_is_known_counts_while_the_ledger_is_away(clock: Clock, executor: ThreadPoolExecutor) -> None:
    catalogue = Catalogue()

    async def scenario() -> None:
        known = following(catalogue, executor)
        assert await known.get("key", catalogue.read_fact) == "old"
        catalogue.is_away = True
        for _ in range(3):
            clock.now += UNCHANGED_S
            assert await known.get("key", catalogue.read_fact) == "old"
        with pytest.raises(StorageFault):
            await known.get("other", catalogue.read_fact)

    asyncio.run(scenario())


@pytest.mark.parametrize("hangs", [True, False])
def test_while_the_ledger_is_away_one_caller_waits_briefly_and_the_others_not_at_all(
    hangs: bool, clock: Clock, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "WAITED_S", 0.02)
    catalogue, go_on = Catalogue(), threading.Event()
    waited = 0
    soon = Remembered._soon

    async def counted(*arguments: Any) -> Any:
        nonlocal waited
        waited += 1
        return await soon(*arguments)

    monkeypatch.setattr(Remembered, "_soon", counted)

    def read() -> str:
        if catalogue.is_away and hangs:
            assert go_on.wait(20)
        return catalogue.read_fact()

    async def scenario() -> None:
        nonlocal waited
        known: Remembered[str, str] = Remembered(executor, without_s=900.0)
        keys = [str(key) for key in range(20)]
        assert {await known.get(key, read) for key in keys} == {"old"}
        catalogue.is_away = True
        for _ in range(10):
            clock.now += MAX_AGE_S
            assert {await known.get(key, read) for key in keys} == {"old"}
            while known._renewals and not hangs:
                await asyncio.sleep(0.001)
        assert waited == 1
        assert len(known._renewals) <= 1, "one looks whether it is back, however many ask"
        catalogue.is_away = False
        catalogue.change("new")
        go_on.set()
        while known._renewals:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(remembered, "WAITED_S", 60.0)
        clock.now += MAX_AGE_S
        if known.is_away:  # whoever asks first has it looked at
            await known.get("0", read)
            while known._renewals:
                await asyncio.sleep(0.001)
        assert {await known.get(key, read) for key in keys} == {"new"}

    try:
        asyncio.run(scenario())
    finally:
        go_on.set()


def test_what_nobody_knows_is_not_waited_for_without_end(
    clock: Clock, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "ASKED_S", 0.02)
    go_on = threading.Event()
    known: Remembered[str, bool] = Remembered(executor)

    async def scenario() -> None:
        with pytest.raises(StorageFault, match="has not answered in time"):
            await known.get("key", lambda: go_on.wait(20))
        assert known.is_away
        go_on.set()
        while known._renewals:
            await asyncio.sleep(0.001)
        assert not known.is_away
        assert await known.get("key", lambda: False), "the answer that came late is kept"

    try:
        asyncio.run(scenario())
    finally:
        go_on.set()


def test_a_change_that_was_missed_counts_a_second_after_the_ledger_is_back(
    clock: Clock, executor: ThreadPoolExecutor
) -> None:
    catalogue = Catalogue()

    def away() -> str:
        raise StorageFault("away", hint="wait")

    async def scenario() -> None:
        known = following(catalogue, executor)
        assert await known.get("key", catalogue.read_fact) == "old"
        catalogue.change("new")
        clock.now += MAX_AGE_S
        assert await known.get("key", away) == "old", "that something has changed was told, and not what"
        clock.now += remembered.AWAY_S
        assert await known.get("key", catalogue.read_fact) == "new"

    asyncio.run(scenario())


def test_nothing_is_told_where_the_ledger_was_never_there(executor: ThreadPoolExecutor) -> None:
    catalogue = Catalogue()
    catalogue.is_away = True
    with pytest.raises(StorageFault):
        asyncio.run(following(catalogue, executor).get("key", catalogue.read_fact))
