"""Crafted bodies: what they may cost is bounded before it is spent, and so is what they are told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from factory.data.feature_service import KeyColumn
from factory.data.online import entity_columns
from factory.errors import MOST_DETAILS, FactoryError, InvalidData, InvalidRequest
from factory.variants import inputs as variant_inputs
from factory.variants.bundle import Bundle
from serve import inference_service, inputs, invocations, open_inference
from serve.errors import BodyTooLarge, bounded, status_of
from serve.inference_messages import message
from serve.inputs import EMPTY_FOR_ONE, MOST_COLUMNS, MOST_EMPTY, NamedColumns, arrays
from serve.predictions import INLINE_BYTES
from tests.answers import error_of

from .calls import CHURN, INFER
from .conftest import MakePredictor, Shelf

TOO_MANY = MOST_COLUMNS + 1
ROWS = 10_000


def parse(document: Any) -> Any:
    return invocations.parse(json.dumps(document).encode(), "application/json", max_rows=ROWS)


def csv(text: str) -> Any:
    return invocations.parse(text.encode(), "text/csv", max_rows=ROWS)


def infer(document: Any) -> Any:
    return open_inference.parse(json.dumps(document).encode(), max_rows=ROWS)


WIDE = [f"c{i}" for i in range(TOO_MANY)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: parse({"dataframe_records": [dict.fromkeys(WIDE, 1)]}),
        lambda: parse({"dataframe_records": [dict.fromkeys(WIDE[:6000], 1), dict.fromkeys(WIDE[5000:], 1)]}),
        lambda: parse({"dataframe_split": {"columns": WIDE, "data": []}}),
        lambda: parse({"dataframe_split": {"data": [[1] * TOO_MANY]}}),
        lambda: parse({"instances": [[1] * TOO_MANY]}),
        lambda: parse({"inputs": dict.fromkeys(WIDE, 1)}),
        lambda: parse({"inputs": {name: [1] for name in WIDE}}),
        lambda: parse({"entities": [dict.fromkeys(WIDE, 1)]}),
        lambda: csv(",".join(WIDE) + "\n"),
        lambda: infer({"inputs": [{}] * TOO_MANY}),
        lambda: infer({"inputs": [{}], "outputs": [{"name": "prediction"}] * TOO_MANY}),
        lambda: inference_service.read_request(
            message("ModelInferRequest")(inputs=[{"name": "a"}] * TOO_MANY), max_rows=ROWS
        ),
    ],
)
def test_too_many_columns_are_refused_by_their_number(call: Callable[[], Any]) -> None:
    with pytest.raises(BodyTooLarge, match=rf"{TOO_MANY:,} .*{MOST_COLUMNS:,} are allowed"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: parse({"dataframe_records": [{f"c{i}": 1} for i in range(ROWS + 1)]}),
        lambda: parse({"dataframe_split": {"data": [[1]] * (ROWS + 1)}}),
        lambda: parse({"inputs": {"age": [1] * (ROWS + 1)}}),
        lambda: parse({"entities": [{"a": 1}] * (ROWS + 1)}),
        lambda: csv("age\n" + "1\n" * (ROWS + 1)),
        lambda: infer({"inputs": [{"name": "a", "shape": [ROWS + 1], "datatype": "INT8", "data": [1] * (ROWS + 1)}]}),
    ],
)
def test_too_many_rows_are_refused_before_columns_are_made(
    call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(inputs, "NamedColumns", made.append)
    with pytest.raises(BodyTooLarge, match=f"{ROWS + 1} rows; {ROWS} are allowed"):
        call()
    assert not made


def test_rows_without_a_key_in_common_do_not_make_a_table_of_their_square() -> None:
    most = int(MOST_EMPTY**0.5)
    fits = parse({"dataframe_records": [{f"c{i}": 1} for i in range(most)]})
    assert len(fits.columns) * fits.n_rows <= MOST_EMPTY
    with pytest.raises(BodyTooLarge, match="nearly all of them empty"):
        parse({"dataframe_records": [{f"c{i}": 1} for i in range(most + 1)]})
    names = [f"c{i}" for i in range(4 * EMPTY_FOR_ONE)]
    rows = [dict.fromkeys(names[i % 4 :: 4], 1) for i in range(5000)]
    assert parse({"dataframe_records": rows}).n_rows == 5000, "a quarter of each row is no bomb"


def test_names_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Name(f"c{i}") for i in range(2000)]
    assert inputs.repeated_in([*names, "c7", "c7"]) == ["c7"]
    assert compared < 5 * len(names), "each name with a few others, not with all"


def test_of_thousands_of_unknown_columns_the_first_are_told_and_looked_for(
    churn: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    monkeypatch.setattr(variant_inputs, "suggest", lambda name, _: searched.append(name) or "")
    with pytest.raises(InvalidData) as raised:
        arrays(NamedColumns({f"agee{i}": (1,) for i in range(3000)}), churn)
    error = raised.value
    assert len(searched) == MOST_DETAILS
    assert len(error.details) == MOST_DETAILS + 1
    assert "more problems are not listed" in error.details[-1].message
    assert len(error.message) < 10_000


def test_of_thousands_of_unknown_keys_the_first_are_told() -> None:
    row = {f"k{i}": 1 for i in range(3000)}
    with pytest.raises(InvalidRequest) as raised:
        entity_columns([row], [KeyColumn(name="country", column="country", dtype="String")])
    assert len(raised.value.details) == MOST_DETAILS


def test_an_error_is_small_whatever_was_sent(caller: Any) -> None:
    long = "x" * 30_000
    tensor = {"shape": [1], "datatype": "FP99", "data": [1]}
    answers = [
        caller.post(INFER, json={"inputs": [{**tensor, "name": f"t{i}"} for i in range(1500)]}),
        caller.post(INFER, json={"inputs": [{} for _ in range(3000)]}),
        caller.post(INFER, json={"inputs": [{**tensor, "name": long, "datatype": long}]}),
        caller.post(CHURN, json={"dataframe_records": [{f"agee{i}": 1 for i in range(4000)}]}),
        caller.post(CHURN, json={f"k{i}": 1 for i in range(4000)}),
        caller.post(CHURN, json={long: []}),
        caller.post(CHURN, json={"dataframe_split": {"columns": [long, long], "data": []}}),
        caller.post(CHURN, json={"dataframe_records": [{long: 1}]}),
    ]
    for answer in answers:
        error_of(answer, answer.status_code)
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 40_000
        assert len(answer.json()["error"]["details"]) <= MOST_DETAILS + 1


def test_a_bounded_error_is_otherwise_the_same() -> None:
    error = BodyTooLarge("m" * 9000, hint="h", details=[])
    assert status_of(bounded(error)) == 413
    assert len(bounded(error).message) < 5000
    small = FactoryError("m", hint="h")
    assert bounded(small) is small


def test_an_output_is_asked_for_once(caller: Any) -> None:
    tensors = [{"name": n, "shape": [1], "datatype": "FP64", "data": [1.0]} for n in ("age", "income")]
    twice = [{"name": "prediction"}] * 2
    error = error_of(caller.post(INFER, json={"inputs": tensors, "outputs": twice}), 400)
    assert "more than once" in error["message"]


def test_a_large_grpc_message_is_read_in_a_thread(
    shelf: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[str] = []
    parsed, read = inference_service.parsed, inference_service.read_request

    def noted(of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            where.append(threading.current_thread().name.partition("_")[0])
            return of(*arguments, **named)

        return call

    monkeypatch.setattr(inference_service, "parsed", noted(parsed))
    monkeypatch.setattr(inference_service, "read_request", noted(read))
    core = make_caller(shelf, body_mb=1).app.core
    service = inference_service.InferenceService(core)

    class Context:
        def invocation_metadata(self) -> list[tuple[str, str]]:
            return [("authorization", f"Bearer {shelf.secret}")]

        def trailing_metadata(self) -> tuple[()]:
            return ()

        def peer(self) -> str:
            return "ipv4:10.0.0.7:40000"

        def __getattr__(self, _: str) -> Any:
            return lambda *_: None

    request = message("ModelInferRequest")(model_name="growth.spend", inputs=[{"name": "age"}])
    small = request.SerializeToString()
    request.raw_input_contents.append(b"x" * INLINE_BYTES)
    asyncio.run(service.model_infer(small, Context()))
    asyncio.run(service.model_infer(request.SerializeToString(), Context()))
    assert where == [threading.main_thread().name, threading.main_thread().name, "predict", "predict"]
