"""Champion and canary: who gets which, what a canary's fault comes to, and what ends it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import pytest

from factory.errors import ServiceFault, StorageFault
from factory.ledger import AuditQuery, CanaryCounts
from factory.spec import DeploymentWish, Task, Variant
from serve import predictions as predictions_module
from serve import remembered
from serve import traffic as module
from serve.guard import Took
from serve.limits import TIMEOUT_HEADER
from serve.loaded import Loaded
from serve.traffic import KEY_HEADER, RESTS_TIMES, position
from tests.answers import error_of

from .calls import CHURN, ROW
from .conftest import SETUP, Caller, MakePredictor, Shelf, make_bundle

BODY = {"json": {"dataframe_records": [ROW]}}


def canary(percent: float) -> DeploymentWish:
    return DeploymentWish.model_validate({"as": "canary", "percent": percent})


@pytest.fixture
def two(own_shelf: Shelf, churn: Any) -> Shelf:
    """A champion, and version 2 as its canary for three tenths of the keys."""
    own_shelf.put("growth.churn", churn)
    own_shelf.put("growth.churn", churn, champion=False)
    own_shelf.ledger.set_deployment("growth.churn", canary(30), version=2)
    return own_shelf


def asked(caller: Caller, key: int | str, path: str = CHURN, **more: Any) -> str:
    answer = caller.post(path, **(BODY | more), headers={KEY_HEADER: str(key)})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-variant"]


def test_a_share_of_the_keys_gets_the_canary_and_always_does(two: Shelf, make_caller: MakePredictor) -> None:
    caller, again = make_caller(two), make_caller(two)
    got = {key: asked(caller, key) for key in range(200)}
    assert 30 <= Counter(got.values())["growth.churn/2"] <= 90
    assert all(asked(again, key) == got[key] for key in range(0, 200, 7)), "on every replica"
    by_row = [caller.post(CHURN, json={"dataframe_records": [ROW | {"age": age}]}) for age in range(20, 60)]
    assert {answer.headers["x-variant"] for answer in by_row} == {"growth.churn/1", "growth.churn/2"}
    assert got[0] == asked(caller, 0, "/variants/growth.churn/invocations")


def test_who_names_a_version_or_an_alias_gets_it(two: Shelf, make_caller: MakePredictor) -> None:
    caller = make_caller(two)
    for path, version in (("growth.churn@champion", 1), ("growth.churn/versions/1", 1), ("growth.churn/versions/2", 2)):
        assert {asked(caller, key, f"/variants/{path}/invocations") for key in range(30)} == {f"growth.churn/{version}"}


def test_a_larger_share_only_adds_keys() -> None:
    at = [position("growth.churn", str(key).encode()) for key in range(20_000)]
    assert abs(np.mean(np.array(at) < 0.25) - 0.25) < 0.01
    other = [position("growth.score", str(key).encode()) for key in range(20_000)]
    assert abs(np.corrcoef(at, other)[0, 1]) < 0.03, "the same keys are not the canaries' of every name"


def test_a_change_of_the_share_counts_within_a_second(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(remembered, "clock", lambda: clock[0])
    caller = make_caller(two)
    key = next(key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3)
    assert asked(caller, key) == "growth.churn/2"
    two.ledger.set_deployment("growth.churn", DeploymentWish(as_="none"), version=2)
    clock[0] += remembered.MAX_AGE_S
    assert asked(caller, key) == "growth.churn/1"


def test_a_champion_that_is_out_of_traffic_answers_nobody(
    own_shelf: Shelf, churn: Any, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(remembered, "clock", lambda: clock[0])
    first = own_shelf.put("growth.churn", churn, champion=False)
    own_shelf.ledger.serve(first, DeploymentWish(), why="The first one.", by=SETUP)
    caller = make_caller(own_shelf)
    assert asked(caller, 1) == "growth.churn/1"
    own_shelf.ledger.serve(first, DeploymentWish(as_="none"), why="It leaks.", by=SETUP)
    clock[0] += remembered.MAX_AGE_S
    for name in ("growth.churn", "growth.churn@champion"):
        assert "has no champion" in error_of(caller.post(f"/variants/{name}/invocations", **BODY), 404)["message"]
    assert asked(caller, 1, "/variants/growth.churn/versions/1/invocations") == "growth.churn/1"


def test_a_canary_that_fails_hurts_nobody_and_is_withdrawn(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(variant: Variant) -> Loaded:
        if variant.version == 2:
            raise StorageFault("The folder is broken.", hint="Mend it.")
        return two.load(variant)

    clock = [100.0]
    monkeypatch.setattr(remembered, "clock", lambda: clock[0])
    caller = make_caller(two, load=load)

    async def crowd() -> set[str]:
        """Within one loop, with what the ledger is told."""
        async with caller.client() as client:
            answers = [await client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)}) for key in range(60)]
        await caller.app.core.tell()
        return {f"{answer.status_code} {answer.headers['x-variant']}" for answer in answers}

    assert asyncio.run(crowd()) == {"200 growth.churn/1"}
    assert two.ledger.deployment("growth.churn") == []
    (row,) = two.ledger.audit_page(AuditQuery(action="canary.withdraw")).items
    assert (row.subject, row.who, row.detail["version"]) == ("growth.churn", "predictor", 2)
    assert "failed where the champion answered" in row.detail["why"]


def test_a_canary_that_is_withdrawn_is_challenger_no_more_in_mlflow_either(
    two: Shelf, make_caller: MakePredictor, caplog: pytest.LogCaptureFixture
) -> None:
    def load(variant: Variant) -> Loaded:
        if variant.version == 2:
            raise StorageFault("The folder is broken.", hint="Mend it.")
        return two.load(variant)

    mirrored: list[tuple[Any, ...]] = []

    def mirror(*change: Any) -> None:
        mirrored.append(change)
        raise ServiceFault("MLflow is away.", hint="Start it.")

    two.ledger.set_alias("growth.churn", "challenger", 2, who="request r", why="Its gate.")
    caller = make_caller(two, load=load, mirror=mirror)

    async def crowd() -> None:
        async with caller.client() as client:
            for key in range(30):
                await client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)})
        await caller.app.core.tell()
        assert two.ledger.deployment("growth.churn") == []
        await asyncio.gather(*caller.app.core.traffic._mirroring)

    asyncio.run(crowd())
    assert two.ledger.alias("growth.churn", "challenger") is None
    assert mirrored == [("growth.churn", "challenger", None)]
    assert "MLflow does not hear that growth.churn has no challenger" in caplog.text


def test_canaries_that_hang_while_they_are_loaded_hold_up_no_other_load(
    own_shelf: Shelf, churn: Any, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("growth.a", "growth.b", "growth.c", "growth.churn"):
        own_shelf.put(name, churn)
        if name != "growth.churn":
            own_shelf.put(name, churn, champion=False)
            own_shelf.ledger.set_deployment(name, canary(99.9), version=2)
    over, hanging = Event(), []

    def load(variant: Variant) -> Loaded:
        if variant.version == 2:
            hanging.append(variant.name)
            over.wait()
        return own_shelf.load(variant)

    monkeypatch.setattr(module, "CANARY_PART", 0.01)
    caller = make_caller(own_shelf, load=load, deadline_s=60.0)
    try:
        for name in ("growth.a", "growth.b", "growth.c"):
            assert asked(caller, 1, f"/variants/{name}/invocations") == f"{name}/1"
        assert asked(caller, 1) == "growth.churn/1"
    finally:
        over.set()
    assert hanging == ["growth.a", "growth.b", "growth.c"]


def test_a_callers_fault_is_nothing_against_the_canary(two: Shelf, make_caller: MakePredictor) -> None:
    caller = make_caller(two)
    for key in range(60):
        wrong = caller.post(CHURN, json={"dataframe_records": [{"age": "old"}]}, headers={KEY_HEADER: str(key)})
        assert error_of(wrong, 422)
    assert [row.as_ for row in two.ledger.deployment("growth.churn")] == ["canary"]


def test_a_canary_that_takes_other_columns_leaves_the_callers_with_the_champion(
    own_shelf: Shelf, churn: Any, make_caller: MakePredictor
) -> None:
    own_shelf.put("growth.churn", churn)
    own_shelf.put("growth.churn", make_bundle(["age", "spend"], target="churned", task=Task.BINARY), champion=False)
    own_shelf.ledger.set_deployment("growth.churn", canary(50), version=2)
    caller = make_caller(own_shelf)
    assert {asked(caller, key) for key in range(20)} == {"growth.churn/1"}


def test_only_the_canary_of_that_version_and_share_is_withdrawn(two: Shelf) -> None:
    withdraw = partial(two.ledger.withdraw_canary, "growth.churn", evidence={"why": "x"}, by=SETUP)
    (old,) = two.ledger.deployment("growth.churn")
    assert not withdraw(1, old.updated)
    two.ledger.set_deployment("growth.churn", canary(40), version=2)
    (present,) = two.ledger.deployment("growth.churn")
    assert not withdraw(2, old.updated), "what it did in another share is no part of this one"
    assert two.ledger.deployment("growth.churn") == [present]
    assert withdraw(2, present.updated)
    assert two.ledger.deployment("growth.churn") == []


# --- planted: worse ones and a better one ------------------------------------------------------------


class Planted:
    """A model as another one, but for what it does before it predicts."""

    def __init__(self, bundle: Any, before: Callable[[], None]) -> None:
        self._bundle, self._before = bundle, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bundle, name)

    def predict_raw(self, inputs: Any) -> Any:
        self._before()
        return self._bundle.predict_raw(inputs)


def planting(
    shelf: Shelf, before: Callable[[], None], *, champion: Callable[[], None] = lambda: None
) -> Callable[[Variant], Loaded]:
    """Return what loads versions, of which the second one does something before it predicts; the first one may too."""

    def load(variant: Variant) -> Loaded:
        loaded = shelf.load(variant)
        planted: Any = Planted(loaded.bundle, before if variant.version == 2 else champion)
        return replace(loaded, bundle=planted)

    return load


def outcome(caller: Caller, shelf: Shelf, n_calls: int = 150) -> tuple[set[str], list[str]]:
    """Return who has answered, and how the name is served after some calls and what follows them."""

    async def crowd() -> set[str]:
        seen = set()
        async with caller.client() as client:
            for key in range(n_calls):
                answer = await client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)})
                seen.add(f"{answer.status_code} {answer.headers['x-variant']}")
                if key % 30 == 29:
                    await caller.app.core.tell()
        return seen

    return asyncio.run(crowd()), [row.as_ for row in shelf.ledger.deployment("growth.churn")]


def test_a_planted_version_that_fails_is_rolled_back_by_itself(two: Shelf, make_caller: MakePredictor) -> None:
    random = np.random.default_rng(0)

    def fail() -> None:
        if random.random() < 0.5:
            raise RuntimeError("planted")

    answers, served = outcome(make_caller(two, load=planting(two, fail)), two)
    assert served == []
    assert answers == {"200 growth.churn/1", "200 growth.churn/2"}, "no call has failed"


@pytest.mark.parametrize(("times", "stays"), [(4.0, []), (1.0, ["canary"]), (0.5, ["canary"])])
def test_a_planted_version_that_is_slow_is_rolled_back_by_itself_and_a_better_one_is_not(
    times: float, stays: list[str], two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they take is told to the predictor, since a test's machine may be busy."""
    random = np.random.default_rng(1)

    def predicted(payload: Any, loaded: Loaded) -> predictions_module.Prediction:
        made = real(payload, loaded)
        took = Took(len(made.raw), random.lognormal(0, 0.3) * (times if loaded.variant.version == 2 else 1.0))
        return replace(made, took=took)

    real = predictions_module.predicted
    monkeypatch.setattr(predictions_module, "predicted", predicted)
    answers, served = outcome(make_caller(two), two)
    assert served == stays
    assert answers == {"200 growth.churn/1", "200 growth.churn/2"}


def test_a_canary_that_hangs_keeps_nobody_waiting_for_long_and_is_withdrawn(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, over, asked_n = [100.0], Event(), []

    def hang() -> None:
        asked_n.append(1)
        over.wait()

    monkeypatch.setattr(module, "CANARY_PART", 0.01)
    monkeypatch.setattr(module, "clock", lambda: clock[0])
    caller = make_caller(two, load=planting(two, hang), deadline_s=60.0)
    keys = [key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3]

    async def scenario() -> None:
        traffic = caller.app.core.traffic

        async def ask(key: int) -> None:
            async with caller.client() as client:
                answer = await client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)})
            assert (answer.status_code, answer.headers["x-variant"]) == (200, "growth.churn/1")

        await caller.app.core.cache.get(two.ledger.variant("growth.churn", 2))
        await ask(keys[0])
        assert traffic._watched["growth.churn"].guard.counts == CanaryCounts(calls=1, failed=1)
        await ask(keys[1])
        assert len(asked_n) == 1, "it is not asked again at once"
        clock[0] += 60.0
        await ask(keys[2])
        clock[0] += 60.0
        await ask(keys[3])
        assert len(asked_n) == 2, "it is suspected, and asked no more"
        await caller.app.core.tell()
        assert two.ledger.deployment("growth.churn") == []
        await ask(keys[4])

    try:
        asyncio.run(scenario())
    finally:
        over.set()
    (row,) = two.ledger.audit_page(AuditQuery(action="canary.withdraw")).items
    assert (row.detail["calls"], row.detail["failed"]) == (2, 2)


def test_a_call_that_takes_the_champion_as_long_is_nothing_against_the_canary(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, over = [100.0], Event()

    def long() -> None:
        clock[0] += 5.0

    def hang() -> None:
        over.wait()

    monkeypatch.setattr(module, "CANARY_PART", 0.01)
    monkeypatch.setattr(module, "clock", lambda: clock[0])
    caller = make_caller(two, load=planting(two, hang, champion=long), deadline_s=60.0)
    key = next(key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3)
    try:
        assert asked(caller, key) == "growth.churn/1"
    finally:
        over.set()
    watched = caller.app.core.traffic._watched["growth.churn"]
    assert (watched.guard.counts, watched.rests_until) == (CanaryCounts(), 100.0 + 0.6 * RESTS_TIMES)


def test_a_canary_that_hangs_leaves_the_champion_time_within_a_callers_own_deadline(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = Event()

    def hang() -> None:
        over.wait()

    monkeypatch.setattr(module, "CANARY_PART", 0.01)
    monkeypatch.setattr(module, "clock", lambda: 100.0)
    caller = make_caller(two, load=planting(two, hang), deadline_s=6_000.0)
    key = next(key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3)

    async def scenario() -> None:
        core = caller.app.core
        for version in (1, 2):
            await core.cache.get(two.ledger.variant("growth.churn", version))
        async with caller.client() as client:
            headers = {KEY_HEADER: str(key), TIMEOUT_HEADER.decode(): "15000"}
            answer = await client.post(CHURN, **BODY, headers=headers)
        assert (answer.status_code, answer.headers["x-variant"]) == (200, "growth.churn/1"), answer.text
        assert core.traffic._watched["growth.churn"].guard.counts == CanaryCounts(calls=1, failed=1)

    try:
        asyncio.run(scenario())
    finally:
        over.set()


def test_a_canary_whose_caller_went_while_it_hung_rests(
    two: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over gRPC, where a caller's own deadline ends the call and no replica is told of it before."""
    clock, over, hangs = [100.0], Event(), Event()

    def hang() -> None:
        clock[0] += 1.5
        hangs.set()
        over.wait()

    monkeypatch.setattr(module, "clock", lambda: clock[0])
    caller = make_caller(two, load=planting(two, hang), deadline_s=600.0)
    key = next(key for key in range(100) if position("growth.churn", str(key).encode()) < 0.3)

    async def scenario() -> None:
        core = caller.app.core
        async with caller.client() as client:
            call = asyncio.create_task(client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)}))
            await asyncio.to_thread(hangs.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert core.traffic._watched["growth.churn"].rests_until == 101.5 + 1.5 * RESTS_TIMES
            answer = await client.post(CHURN, **BODY, headers={KEY_HEADER: str(key)})
        assert (answer.status_code, answer.headers["x-variant"]) == (200, "growth.churn/1"), answer.text

    try:
        asyncio.run(scenario())
    finally:
        over.set()
