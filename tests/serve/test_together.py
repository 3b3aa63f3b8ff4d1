"""Questions that are answered together get the answers that each would get alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import numpy as np
import pytest

from factory.errors import FactoryError, InvalidData, NotFound, ServiceFault
from factory.ledger import CanaryCounts
from factory.spec import DeploymentWish
from factory.variants.bundle import Bundle
from serve import traffic
from serve.core import Core
from serve.inputs import EntityRows, NamedColumns, NamelessColumns
from serve.invocations import format_predictions
from serve.limits import Limits
from serve.online import FeatureRead
from serve.predictions import Prediction
from serve.together import Question, Told, answer_together
from serve.traffic import position
from tests.serving import NoFeatures

from .conftest import Shelf, customers
from .test_traffic import planting

NAME = "growth.churn"


def formed(prediction: Prediction) -> bytes:
    return format_predictions(prediction.raw, prediction.loaded.bundle)


def answers(shelf: Shelf, questions: Sequence[Question], **changes: Any) -> list[Told | FactoryError]:
    async def scenario() -> list[Told | FactoryError]:
        core = Core(
            shelf.ledger,
            load=changes.get("load", shelf.load),
            features=changes.get("features", NoFeatures()),
            limits=Limits(rows=changes.get("rows", 1_000), body_mb=1),
        )
        try:
            return await answer_together(core, questions, formed)
        finally:
            core.close()

    return asyncio.run(scenario())


def rows(n: int) -> list[dict[str, Any]]:
    frame = customers(n).drop(columns=["churned", "spend"])
    frame["since"] = frame["since"].dt.strftime("%Y-%m-%d")
    found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return found


def one(row: dict[str, Any], *, name: str = NAME, key: str = "") -> Question:
    return Question(name, key, NamedColumns({column: (value,) for column, value in row.items()}))


def predictions(told: Told | FactoryError) -> list[dict[str, Any]]:
    """Return an answer's predictions; numbers of many rows and of one differ in the last bit."""
    assert isinstance(told, Told), told
    found: list[dict[str, Any]] = json.loads(told.body)["predictions"]
    return [{k: round(v, 12) if isinstance(v, float) else v for k, v in each.items()} for each in found]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of a bundle had."""
    seen: list[int] = []
    before: Callable[..., np.ndarray] = Bundle.predict_raw

    def predict_raw(self: Bundle, inputs: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(len(next(iter(inputs.values()))))
        return before(self, inputs)

    monkeypatch.setattr(Bundle, "predict_raw", predict_raw)
    return seen


def test_one_prediction_answers_all(own_shelf: Shelf, churn: Bundle, counted: list[int]) -> None:
    own_shelf.put(NAME, churn)
    asked = rows(30)
    told = answers(own_shelf, [one(row) for row in asked])
    assert counted[-1] == 30
    alone = [answers(own_shelf, [one(row)])[0] for row in asked]
    assert [predictions(t) for t in told] == [predictions(t) for t in alone]
    assert {t.by for t in told if isinstance(t, Told)} == {f"{NAME}/1"}


def test_what_is_wrong_is_told_to_its_own_question_only(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    good = rows(3)
    bad = good[1] | {"age": "old"}
    unknown = {**good[1], "height": 3}
    told = answers(own_shelf, [one(good[0]), one(bad), one(unknown), one(good[2]), one(good[0], name="growth.chern")])
    assert [type(t) for t in told] == [Told, InvalidData, InvalidData, Told, NotFound]
    assert predictions(told[0]) == predictions(answers(own_shelf, [one(good[0])])[0])


def test_payloads_of_several_rows_and_kinds_keep_their_order(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    asked = rows(9)
    names = list(asked[0])
    several = NamedColumns({c: [row[c] for row in asked[1:4]] for c in names})
    nameless = NamelessColumns([[row[c] for row in asked[4:6]] for c in ("age", "income", "city", "member", "since")])
    uneven = NamedColumns({"age": [1, 2], "income": [1]})
    questions = [one(asked[0]), Question(NAME, "", several), Question(NAME, "", nameless), one(asked[6])]
    told = answers(own_shelf, [*questions, Question(NAME, "", nameless), Question(NAME, "", uneven)])
    assert [len(predictions(t)) for t in told[:5]] == [1, 3, 2, 1, 2]
    flat = [p for t in told[:4] for p in predictions(t)]
    assert flat == [predictions(answers(own_shelf, [one(row)])[0])[0] for row in asked[:7]]
    assert isinstance(told[5], InvalidData)


def test_a_batch_never_has_more_rows_than_a_request(own_shelf: Shelf, churn: Bundle, counted: list[int]) -> None:
    own_shelf.put(NAME, churn)
    told = answers(own_shelf, [one(row) for row in rows(25)], rows=10)
    assert all(isinstance(t, Told) for t in told)
    assert counted[-3:] == [10, 10, 5]


def test_versions_and_names_are_predicted_apart(own_shelf: Shelf, churn: Bundle, spend: Bundle) -> None:
    own_shelf.put(NAME, churn)
    own_shelf.put("growth.spend", spend)
    [row] = rows(1)
    small = {name: row[name] for name in [column.name for column in spend.columns]}
    asked = ((row, NAME), (small, "growth.spend"), (row, f"{NAME}/1"), (small, "growth.spend@champion"))
    told = answers(own_shelf, [one(values, name=name) for values, name in asked])
    assert [t.by for t in told if isinstance(t, Told)] == [f"{NAME}/1", "growth.spend/1", f"{NAME}/1", "growth.spend/1"]


def test_a_canary_gets_its_share_by_the_key(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    own_shelf.put(NAME, churn, champion=False)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish(), version=1)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish.model_validate({"as": "canary", "percent": 50}), version=2)
    [row] = rows(1)
    asked = [one(row, key=f"{i}") for i in range(60)]
    by = [t.by for t in answers(own_shelf, asked) if isinstance(t, Told)]
    assert 15 <= by.count(f"{NAME}/2") <= 45
    assert by == [t.by for t in answers(own_shelf, asked) if isinstance(t, Told)]


def test_a_canary_that_fails_on_a_batch_leaves_it_to_the_champion(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    own_shelf.put(NAME, churn, champion=False)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish(), version=1)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish.model_validate({"as": "canary", "percent": 99.9}), version=2)

    def load(variant: Any) -> Any:
        if variant.version == 2:
            raise ServiceFault("its files are gone")
        return own_shelf.load(variant)

    told = answers(own_shelf, [one(row) for row in rows(4)], load=load)
    assert [t.by for t in told if isinstance(t, Told)] == [f"{NAME}/1"] * 4


@pytest.mark.parametrize("alike", [True, False], ids=["one shape", "several shapes"])
def test_a_canary_that_hangs_is_asked_once_for_a_batch(
    alike: bool, own_shelf: Shelf, churn: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_shelf.put(NAME, churn)
    own_shelf.put(NAME, churn, champion=False)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish.model_validate({"as": "canary", "percent": 99.9}), version=2)
    monkeypatch.setattr(traffic, "CANARY_PART", 0.01)
    over, asked_n = Event(), []

    def hang() -> None:
        asked_n.append(1)
        over.wait()

    given = rows(6)
    for k, row in enumerate(given):
        if k % 2 and not alike:
            row["churned"] = "yes"  # which no model reads
    questions = [one(row, key=str(key)) for key, row in enumerate(given)]

    async def scenario() -> None:
        limits = Limits(rows=100, body_mb=1, deadline_s=60.0)
        core = Core(own_shelf.ledger, load=planting(own_shelf, hang), features=NoFeatures(), limits=limits)
        await core.cache.get(own_shelf.ledger.variant(NAME, 2))
        told = await answer_together(core, questions, formed)
        assert [t.by for t in told if isinstance(t, Told)] == [f"{NAME}/1"] * 6
        assert core.traffic._watched[NAME].guard.counts == CanaryCounts(calls=1, failed=1)
        assert len(asked_n) == 1
        core.close()

    try:
        asyncio.run(scenario())
    finally:
        over.set()


def test_what_is_predicted_together_is_compared_once(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    own_shelf.put(NAME, churn, champion=False)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish.model_validate({"as": "canary", "percent": 50}), version=2)
    by_key = [position(NAME, str(key).encode()) < 0.5 for key in range(100)]
    champions = [key for key, of_canary in enumerate(by_key) if not of_canary][:10]
    canaries = [key for key, of_canary in enumerate(by_key) if of_canary][:10]
    questions = [one(row, key=str(key)) for row, key in zip(rows(20), [*champions, *canaries], strict=True)]

    async def scenario() -> None:
        core = Core(own_shelf.ledger, load=own_shelf.load, features=NoFeatures(), limits=Limits(rows=100, body_mb=1))
        await answer_together(core, questions, formed)
        counts = core.traffic._watched[NAME].guard.counts
        assert (counts.calls, counts.compared) == (10, 1)
        core.close()

    asyncio.run(scenario())


def test_features_of_all_entities_are_read_at_once(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    asked = rows(5)
    reads: list[int] = []

    class Features(NoFeatures):
        def read(self, entities: EntityRows, **_: Any) -> FeatureRead:
            reads.append(len(entities.rows))
            found = [asked[int(str(row["id"]))] for row in entities.rows]
            return FeatureRead(NamedColumns({c: [row[c] for row in found] for c in asked[0]}))

    questions = [Question(NAME, "", EntityRows([{"id": i}])) for i in range(5)]
    told = answers(own_shelf, questions, features=Features())
    assert reads == [5]
    assert [predictions(t) for t in told] == [predictions(t) for t in answers(own_shelf, [one(row) for row in asked])]


def test_without_a_key_the_body_says_who_gets_the_canary(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)
    own_shelf.put(NAME, churn, champion=False)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish(), version=1)
    own_shelf.ledger.set_deployment(NAME, DeploymentWish.model_validate({"as": "canary", "percent": 50}), version=2)
    [row] = rows(1)
    asked = [replace(one(row), body=f"{i}".encode()) for i in range(60)]
    by = [t.by for t in answers(own_shelf, asked) if isinstance(t, Told)]
    assert 15 <= by.count(f"{NAME}/2") <= 45


def test_a_store_that_is_away_is_told_to_each(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)

    asked: list[int] = []

    class Away(NoFeatures):
        def read(self, entities: EntityRows, **_: Any) -> FeatureRead:
            asked.append(len(entities.rows))
            raise ServiceFault("the store is away")

    told = answers(own_shelf, [Question(NAME, "", EntityRows([{"id": i}])) for i in range(3)], features=Away())
    assert [type(t) for t in told] == [ServiceFault] * 3
    assert asked == [3]


def test_calls_are_counted_as_those_of_the_predictor_are(own_shelf: Shelf, churn: Bundle) -> None:
    own_shelf.put(NAME, churn)

    async def scenario() -> None:
        core = Core(own_shelf.ledger, load=own_shelf.load, features=NoFeatures(), limits=Limits(rows=100, body_mb=1))
        await answer_together(core, [one(row) for row in rows(7)], formed)
        await core.tell()
        core.close()

    asyncio.run(scenario())
    counted = own_shelf.ledger.served("minute", since=datetime.now(UTC) - timedelta(minutes=5), names=[NAME])
    assert sum(each.calls for each in counted) == 7
