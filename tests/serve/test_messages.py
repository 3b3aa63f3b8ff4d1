"""Messages of topics: what is read, what is refused with which sentence, and what comes back of a dead letter."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from factory.errors import InvalidRequest, NotFound
from factory.topics.base import Received
from factory.variants.bundle import Bundle
from serve.inputs import EntityRows, NamedColumns
from serve.messages import answer_of, dead_letter, messages_of, original_of, question_for, read_message


def message(document: object) -> Received:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Received(body, "1-0")


@pytest.mark.parametrize(
    ("document", "columns"),
    [
        ({"record": {"age": 4}}, {"age": (4,)}),
        ({"dataframe_records": [{"age": 4}, {"age": 5}]}, {"age": [4, 5]}),
        ({"inputs": {"age": [4]}}, {"age": [4]}),
        ({"dataframe_split": {"columns": ["age"], "data": [[4]]}}, {"age": (4,)}),
    ],
)
def test_rows_are_read_as_record_or_as_a_body_of_invocations(document: dict[str, object], columns: object) -> None:
    read = read_message(message(document), name="growth.churn")
    assert isinstance(read.payload, NamedColumns)
    assert read.payload.columns == columns
    assert (read.id, read.name) == ("", "growth.churn")


def test_an_entity_and_its_id_and_variant_are_read() -> None:
    read = read_message(message({"id": 7, "variant": "growth.b", "entity": {"user": 1}}), name="growth.*")
    assert read.payload == EntityRows([{"user": 1}])
    assert (read.id, read.name) == ("7", "growth.b")


@pytest.mark.parametrize(
    ("document", "name", "field", "sentence"),
    [
        (b"\xff", "a.b", "body", "not JSON"),
        ([1], "a.b", "body", "Expected an object; received a list"),
        ({}, "a.b", "body", "exactly one of"),
        ({"record": {}}, "a.b", "record", "Expected an object with a value for each column"),
        ({"record": [1]}, "a.b", "record", "received a list"),
        ({"record": {"x": 1}, "entity": {"y": 1}}, "a.b", "record", "exactly one of"),
        ({"id": True, "record": {"x": 1}}, "a.b", "id", "a string or a whole number"),
        ({"id": "x" * 201, "record": {"x": 1}}, "a.b", "id", "201 characters"),
        ({"variant": 3, "record": {"x": 1}}, "a.b", "variant", "Expected a name"),
        ({"variant": "b.c", "record": {"x": 1}}, "a.b", "variant", "answers for 'a.b'"),
        ({"record": {"x": 1}}, "a.*", "variant", "names no variant"),
    ],
)
def test_what_is_no_message_is_one_clear_error(document: object, name: str, field: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as found:
        read_message(message(document), name=name)
    assert field in [d.field for d in found.value.details]


def test_an_answer_carries_id_variant_and_predictions() -> None:
    read = read_message(message({"id": 'a"b', "record": {"x": 1}}), name="a.b")
    told = json.loads(answer_of(read, by="a.b/3", predictions=b'{"predictions":[{"prediction":1.5}]}'))
    assert told == {"id": 'a"b', "variant": "a.b/3", "predictions": [{"prediction": 1.5}]}


@pytest.mark.parametrize("body", [b'{"id": 1}', b"", b"\xff\x00", '{"city": "Zürich"}'.encode()])
def test_a_dead_letter_keeps_the_message_as_it_was(body: bytes) -> None:
    letter = dead_letter(Received(body, "5-1", 3), NotFound("no such thing", hint="look"), topic="orders")
    told = json.loads(letter)
    assert (told["error"]["code"], told["deliveries"], told["message_id"]) == ("not_found", 3, "5-1")
    assert original_of(letter) == ("orders", body)


def test_a_letter_that_would_be_too_large_leaves_the_message_out() -> None:
    letter = dead_letter(Received(b"x" * 5_000, "5-1"), NotFound("no such thing"), topic="orders", most_bytes=1_000)
    assert len(letter) < 1_000
    assert json.loads(letter)["error"]["code"] == "not_found"
    with pytest.raises(InvalidRequest):
        original_of(letter)


@pytest.mark.parametrize("body", [b"{}", b"no", b"[]", b'{"topic": "x"}'])
def test_another_message_is_no_dead_letter(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="no dead letter"):
        original_of(body)


def test_rows_become_messages_that_are_read_back() -> None:
    rows = pd.DataFrame({"user": ["a", "b"], "age": [1.5, None], "since": pd.to_datetime(["2020-01-02", None])})
    made = messages_of(rows, key="user", as_="record")
    assert [id_ for id_, _ in made] == ["a", "b"]
    first, second = (read_message(Received(body, "1"), name="a.b") for _, body in made)
    assert (first.id, second.id) == ("a", "b")
    assert isinstance(first.payload, NamedColumns)
    assert isinstance(second.payload, NamedColumns)
    assert first.payload.columns["age"] == (1.5,)
    assert second.payload.columns == {"age": (None,), "since": (None,)}
    assert str(first.payload.columns["since"][0]).startswith("2020-01-02")
    assert messages_of(rows[["age"]], key=None, as_="entity")[0] == ("", b'{"entity":{"age":1.5}}')
    exact = pd.DataFrame({"x": [1e-12, 0.1 + 0.2]})
    assert [json.loads(body)["record"]["x"] for _, body in messages_of(exact, key=None, as_="record")] == exact[
        "x"
    ].tolist()
    gaps = pd.DataFrame({"user": [4711.0, None], "x": [1, 2]})
    assert [id_ for id_, _ in messages_of(gaps, key="user", as_="record")] == ["4711", ""]


def test_a_variants_columns_stand_in_the_description_of_its_messages(churn: Bundle) -> None:
    schema = question_for(churn).model_json_schema()
    row = schema["$defs"]["Row"]["properties"]
    assert sorted(row) == ["age", "city", "income", "member", "since"]
    assert row["age"]["anyOf"][0]["type"] == "number"
    assert row["member"]["anyOf"][0]["type"] == "boolean"
    assert row["city"]["anyOf"][0]["type"] == "string"
