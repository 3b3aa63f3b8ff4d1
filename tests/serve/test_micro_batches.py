"""Calls of several callers that are predicted in one go: the same answers, fewer predictions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import pytest

from factory.spec import Task, Variant
from factory.variants.bundle import Bundle
from serve import loaded as loaded_module
from serve import micro_batches as module
from serve import predictions, remembered
from serve.inputs import NamedColumns, Payload
from serve.joined import joined, shape_of
from serve.loaded import Loaded, Times
from serve.predictions import INLINE_MS, Prediction

from .conftest import Caller, MakePredictor, Shelf, customers, make_bundle

COLUMNS = ["age", "income", "city", "member", "since"]
URL = "/variants/growth.forest/invocations"
ROWS = customers(24, seed=3)[COLUMNS].astype({"since": str}).astype(object).to_dict("records")
WHOLE = [row for row in ROWS if row["city"] is not None]
FAST, SLOW = 0.3, 2 * INLINE_MS
"""Milliseconds of a row that is predicted in the event loop, and of one that is predicted in a thread."""


@pytest.fixture(scope="module")
def forest() -> Bundle:
    return make_bundle(COLUMNS, target="churned", task=Task.BINARY, family="random_forest")


@pytest.fixture
def shelf(own_shelf: Shelf, forest: Bundle) -> Shelf:
    own_shelf.put("growth.forest", forest)
    return own_shelf


@pytest.fixture
def timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no answer of the ledger grow old: whoever waits for a new one comes a turn later than the others."""
    monkeypatch.setattr(remembered, "clock", lambda: 0.0)


@pytest.fixture
def goes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the rows of each prediction."""
    made: list[int] = []
    real = predictions.predicted

    def predicted(payload: Any, loaded: Loaded) -> Prediction:
        made.append(payload.n_rows)
        return real(payload, loaded)

    monkeypatch.setattr(predictions, "predicted", predicted)
    return made


def timed(shelf: Shelf, *, row_ms: float, gain_ms: float) -> Callable[[Variant], Loaded]:
    """Return what loads variants and says that they take so long, since a test's machine may be busy."""
    return lambda variant: replace(shelf.load(variant), times=Times(row_ms, gain_ms))


def body(row: dict[str, Any]) -> dict[str, Any]:
    return {"json": {"dataframe_records": [{k: None if v != v else v for k, v in row.items()}]}}


async def ask(caller: Caller, bodies: list[dict[str, Any]], *, at_once: bool) -> list[tuple[int, bytes, set[str]]]:
    async with caller.client() as client:
        await client.post(URL, **bodies[0])
        calls = [client.post(URL, **one) for one in bodies]
        answers = await asyncio.gather(*calls) if at_once else [await call for call in calls]
    return [(one.status_code, one.content, set(one.headers)) for one in answers]


@pytest.mark.usefixtures("timeless")
@pytest.mark.parametrize("row_ms", [FAST, INLINE_MS - 1, SLOW])
def test_calls_at_one_time_are_one_prediction_with_the_same_answers(
    row_ms: float, shelf: Shelf, make_caller: MakePredictor, goes: list[int]
) -> None:
    bodies = [body(row) for row in ROWS]
    bodies[7] = body({**ROWS[7], "age": str(ROWS[7]["age"]), "member": True})
    load = timed(shelf, row_ms=row_ms, gain_ms=1.0)
    alone = asyncio.run(ask(make_caller(shelf, load=load), bodies, at_once=False))
    assert goes == [1] * 25
    goes.clear()
    caller = make_caller(shelf, load=load)
    assert asyncio.run(ask(caller, bodies, at_once=True)) == alone
    assert sum(goes) == 25
    assert len(goes) <= 3, "the first one of both rounds, and the others of the second together"
    counted = caller.app.core.telemetry.tally.take()
    assert [(one.name, one.calls, one.failed) for one in counted] == [("growth.forest", 25, 0)]


def test_where_a_row_gains_little_each_call_is_predicted_at_once(
    shelf: Shelf, make_caller: MakePredictor, goes: list[int]
) -> None:
    load = timed(shelf, row_ms=FAST, gain_ms=module.GAIN_MS / 2)
    asyncio.run(ask(make_caller(shelf, load=load), [body(row) for row in ROWS], at_once=True))
    assert goes == [1] * 25


def test_a_wrong_call_is_told_so_and_the_others_are_answered(
    shelf: Shelf, make_caller: MakePredictor, goes: list[int]
) -> None:
    bodies = [body(row) for row in ROWS[:6]]
    bodies[2] = body({**ROWS[2], "age": "many"})
    bodies[4] = body({**ROWS[4], "city": {"no": "level"}})
    bodies[5] = body({k: v for k, v in ROWS[5].items() if k != "age"})
    load = timed(shelf, row_ms=FAST, gain_ms=1.0)
    alone = asyncio.run(ask(make_caller(shelf, load=load), bodies, at_once=False))
    assert [status for status, *_ in alone] == [200, 200, 422, 200, 422, 422]
    assert asyncio.run(ask(make_caller(shelf, load=load), bodies, at_once=True)) == alone


class Going:
    """Micro-batches of a slow variant whose first prediction is held up."""

    def __init__(self, core: Any, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core, self.loaded = core, loaded
        self.began, self.go_on = Event(), Event()
        self.made: list[int] = []
        real = predictions.predicted

        def predicted(payload: Any, loaded: Loaded) -> Prediction:
            self.made.append(payload.n_rows)
            if len(self.made) == 1:
                self.began.set()
                assert self.go_on.wait(60)
            return real(payload, loaded)

        monkeypatch.setattr(predictions, "predicted", predicted)

    async def begin(self, columns: list[NamedColumns]) -> list[asyncio.Task[Prediction]]:
        """Ask for a first prediction, and for others while it is under way."""
        tasks = [asyncio.create_task(self.core.micro_batches.predicted(columns[0], self.loaded))]
        await asyncio.to_thread(self.began.wait, 60)
        tasks += [asyncio.create_task(self.core.micro_batches.predicted(one, self.loaded)) for one in columns[1:]]
        await asyncio.sleep(0)
        return tasks


@pytest.fixture
def going(shelf: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch) -> Going:
    load = timed(shelf, row_ms=SLOW, gain_ms=1.0)
    return Going(make_caller(shelf).app.core, load(shelf.ledger.variants("growth.forest")[0]), monkeypatch)


def named(row: dict[str, Any], n: int = 1) -> NamedColumns:
    return NamedColumns({name: [value] * n for name, value in row.items()})


def test_who_has_given_up_is_predicted_no_more(going: Going) -> None:
    async def scenario() -> None:
        first, second, third = await going.begin([named(row) for row in WHOLE[:3]])
        first.cancel()
        second.cancel()
        await asyncio.sleep(0)
        going.go_on.set()
        alone = going.loaded.bundle.predict_raw((await third).inputs)
        np.testing.assert_array_equal((await third).raw, alone)
        assert first.cancelled()
        assert going.made == [1, 1]
        await asyncio.gather(*going.core.micro_batches._going)
        assert not going.core.micro_batches._waiting

    asyncio.run(scenario())


def test_calls_of_other_columns_and_too_many_rows_are_further_predictions(going: Going) -> None:
    async def scenario() -> None:
        fewer = {name: value for name, value in WHOLE[0].items() if name != "age"}
        columns = [named(WHOLE[0]), *(named(row, 8) for row in WHOLE[:10]), named(fewer), named(WHOLE[1])]
        tasks = await going.begin(columns)
        going.go_on.set()
        made = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one).__name__ for one in made] == ["Prediction"] * 11 + ["InvalidData", "Prediction"]
        assert going.made == [1, 64, 17, 1]

    asyncio.run(scenario())


def test_what_is_read_otherwise_is_not_joined() -> None:
    whole, half = (NamedColumns({"age": np.array([1], dtype=kind)}) for kind in ("int64", "float64"))
    assert shape_of(whole) != shape_of(half)
    payloads: list[Payload] = [named({"age": value}) for value in (30, None, "30")]
    assert len({shape_of(one) for one in payloads}) == 1
    assert joined(payloads) == NamedColumns({"age": [30, None, "30"]})


def test_what_a_row_gains_is_measured_where_answers_stay_the_same(
    churn: Bundle, forest: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_module, "_call_ms", lambda _, rows: 0.2 + 0.1 * len(rows["age"]))
    assert forest.rowwise
    assert not churn.rowwise
    assert Times.of(churn).gain_ms == 0.0
    assert Times.of(forest).gain_ms == pytest.approx(0.3 - (0.2 + 0.8) / 8)
