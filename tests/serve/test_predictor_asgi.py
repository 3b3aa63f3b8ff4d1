"""The predictor's application over a real ledger and real bundles, called in this process: invocations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from factory.errors import ServiceFault
from factory.settings import Settings
from serve.online import FeatureReaders
from tests.answers import error_of

from .calls import CHURN, INFER, ROW, expected


def test_every_payload_kind_predicts_the_same(caller, churn):
    names = list(ROW)
    values = list(ROW.values())
    bodies = [
        {"dataframe_records": [ROW]},
        {"dataframe_split": {"columns": names, "data": [values]}},
        {"dataframe_split": {"columns": names, "index": [7], "data": [values]}},
        {"dataframe_split": {"data": [values]}},
        {"instances": [ROW]},
        {"instances": [values]},
        {"inputs": {name: [value] for name, value in ROW.items()}},
        {"inputs": ROW},
        {"inputs": [ROW]},
        {"dataframe_records": [ROW], "params": {"temperature": 1}},
    ]
    answers = [caller.post(CHURN, json=body) for body in bodies]
    csv = ",".join(names) + "\n" + ",".join(map(str, values)) + "\n"
    answers.append(caller.post(CHURN, content=csv, headers={"content-type": "text/csv; charset=utf-8"}))
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    (row,) = expected(churn, [ROW])
    assert row["prediction"] in ("yes", "no")
    for answer in answers:
        assert answer.json() == {"predictions": [row]}
        assert answer.headers["x-variant"] == "growth.churn/1"
        assert answer.headers["server-timing"].rpartition(", ")[2].startswith("predict;dur=")


def test_kserves_first_protocol(caller, churn):
    answer = caller.post("/v1/models/growth.churn:predict", json={"instances": [ROW, ROW]})
    assert answer.json() == {"predictions": expected(churn, [ROW, ROW])}
    named = caller.post("/v1/models/growth.churn@champion:predict", json={"instances": [list(ROW.values())]})
    assert named.json() == {"predictions": expected(churn, [ROW])}
    assert caller.get("/v1/models/growth.churn").json() == {"name": "growth.churn", "ready": True}
    error_of(caller.post("/v1/models/growth.nobody:predict", json={"instances": [ROW]}), 404)
    error_of(caller.post("/v1/models/growth.nobody:explain", json={"instances": [ROW]}), 404)
    assert caller.get("/").json() == {"status": "alive"}
    error_of(caller.get("/v1/models/growth.churn:predict"), 404)


def test_regression_answers_numbers(caller, spend):
    rows = [{"age": 30, "income": 1e4}, {"age": 60, "income": None}]
    answer = caller.post("/variants/growth.spend/invocations", json={"dataframe_records": rows})
    assert answer.json() == {"predictions": expected(spend, rows)}


def test_missing_values_and_unknown_categories_are_predicted_as_in_training(caller, churn):
    rows = [ROW | {"city": "Atlantis"}, ROW | {"city": None, "income": None, "since": None, "age": None}]
    answer = caller.post(CHURN, json={"dataframe_records": rows})
    assert answer.json()["predictions"] == expected(churn, rows)
    csv = "age,income,city,member,since\n41,52000.5,Atlantis,true,2021-03-04\n,NA,,True,\n"
    assert caller.post(CHURN, content=csv, headers={"content-type": "text/csv"}).json() == answer.json()


def test_a_column_that_was_not_used_is_accepted_and_no_rows_are_no_predictions(caller):
    assert caller.post(CHURN, json={"dataframe_records": [ROW | {"churned": "yes"}]}).status_code == 200
    empty = {"dataframe_split": {"columns": list(ROW), "data": []}}
    assert caller.post(CHURN, json=empty).json() == {"predictions": []}


def test_a_version_and_an_alias_can_be_named(caller):
    for path in ("/variants/growth.churn/versions/1/invocations", "/variants/growth.churn@champion/invocations"):
        assert caller.post(path, json={"dataframe_records": [ROW]}).headers["x-variant"] == "growth.churn/1"


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"agee": 3}, "agee", "Did you mean 'age'?"),
        ({"age": "old"}, "age", "expected a number"),
        ({"age": {"years": 3}}, "age", "Row 0"),
        ({"age": [1, 2]}, "age", "Row 0"),
        ({"member": "perhaps"}, "member", "true, false, 1 or 0"),
        ({"since": "yesterday"}, "since", "a date"),
        ({"since": 17}, "since", "a date"),
        ({"city": ["Bern"]}, "city", "Row 0"),
        ({"age": 10**400}, "age", "infinite"),
    ],
)
def test_values_that_do_not_fit(caller, change, field, says):
    error = error_of(caller.post(CHURN, json={"dataframe_records": [ROW | change]}), 422)
    assert error["code"] == "invalid_data"
    assert [detail["field"] for detail in error["details"]] == [field]
    assert says in error["details"][0]["message"]


def test_all_problems_are_reported_together(caller):
    row = {"agee": 1, "income": "much", "city": "Bern", "member": True}
    response = caller.post(CHURN, json={"dataframe_records": [row]})
    error = error_of(response, 422)
    assert {detail["field"] for detail in error["details"]} == {"agee", "age", "income", "since"}
    assert response.headers["x-variant"] == "growth.churn/1"


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "EOF"),
        (b'{"dataframe_records": [', 400, "EOF"),
        (b'{"dataframe_records": [{"age": NaN}]}', 400, "send null"),
        (b'{"dataframe_records": [{"age": -Infinity}]}', 400, "send null"),
        (b'{"dataframe_records": [{"age": 1e999}]}', 422, "infinite"),
        (b'"\xff"', 400, "not JSON"),
        (b"[1, 2]", 400, "an object"),
        (b"{}", 400, "exactly one of"),
        (b'{"dataframe_record": []}', 400, "Did you mean 'dataframe_records'?"),
        (b'{"dataframe_records": [], "inputs": []}', 400, "exactly one of"),
        (b'{"dataframe_records": {"age": 1}}', 400, "a list"),
        (b'{"dataframe_records": [{"age": 1}, 5]}', 400, "dataframe_records[1]"),
        (b'{"dataframe_records": []}', 422, "missing"),
        (b'{"dataframe_split": {"columns": ["age"], "data": [[1, 2]]}}', 400, "1 names"),
        (b'{"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}}', 400, "more than once"),
        (b'{"dataframe_split": {"columns": ["age"], "rows": [[1]]}}', 400, "unknown fields"),
        (b'{"dataframe_split": {"columns": [1], "data": [[1]]}}', 400, "column names"),
        (b'{"dataframe_split": {"data": 3}}', 400, "a list of rows"),
        (b'{"dataframe_split": 3}', 400, "an object"),
        (b'{"instances": [[1, 2]]}', 422, "2 columns without names"),
        (b'{"instances": [[1, 2], [1]]}', 400, "instances[1]"),
        (b'{"inputs": {"age": [1, 2], "income": [1], "city": ["x"], "member": [1], "since": [null]}}', 422, "1 values"),
        (b'{"inputs": {"age": [1], "income": 1}}', 400, "inputs.income"),
        (b'{"inputs": 3}', 400, "inputs"),
        (b'{"dataframe_records": [], "params": 3}', 400, "params"),
        (b'{"entities": 3}', 400, "entities"),
        (b'{"entities": [{}]}', 400, "entities[0]"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, 400, "recursion"),
    ],
)
def test_bodies_that_are_wrong(caller, content, status, says):
    response = caller.post(CHURN, content=content, headers={"content-type": "application/json"})
    assert says in json.dumps(error_of(response, status))


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 422, "no header"),
        (b"age,income\n1\n", 422, "Row 1"),
        (b"age,age\n1,2\n", 400, "more than once"),
        (b'age\n"1\n', 422, "cannot be read"),
        (b"age\n\xff\n", 400, "UTF-8"),
        (b"age,income,city,member,since\nold,1,Bern,true,2020-01-01\n", 422, "expected a number"),
    ],
)
def test_csv_that_is_wrong(caller, content, status, says):
    response = caller.post(CHURN, content=content, headers={"content-type": "text/csv"})
    assert says in json.dumps(error_of(response, status))


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/xml"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_content_types_that_are_not_read(caller, headers):
    response = caller.post(CHURN, content=b"{}", headers=headers)
    assert error_of(response, 415)["code"] == "unsupported_media_type"


def test_too_many_rows_and_too_many_bytes(caller):
    error = error_of(caller.post(CHURN, json={"dataframe_records": [ROW] * 51}), 413)
    assert "51 rows; 50 are allowed" in error["message"]
    assert "0.1 MB" in error_of(caller.post(CHURN, content=b" " * 200_000), 413)["message"]

    async def pieces():
        for _ in range(20):
            yield b" " * 10_000

    assert "0.1 MB" in error_of(caller.post(CHURN, content=pieces()), 413)["message"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/variants/growth.chrun/invocations", "Did you mean 'growth.churn'?"),
        ("/variants/growth.churn/versions/9/invocations", "Versions: 1."),
        ("/variants/growth.churn/versions/one/invocations", "whole number"),
        ("/variants/growth.churn@champion/versions/1/invocations", "exclude"),
        ("/variants/growth.churn@champoin/invocations", "Did you mean 'champion'?"),
        ("/variants/growth.churn@challenger/invocations", "has no challenger"),
        ("/v2/models/growth.chrun/infer", "Did you mean 'growth.churn'?"),
        ("/nothing", "POST /variants/{name}/invocations"),
        ("/variants", "Routes"),
    ],
)
def test_names_that_do_not_exist(caller, path, says):
    response = caller.post(path, json={"dataframe_records": [ROW]})
    assert says in json.dumps(error_of(response, 404))
    assert "x-variant" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", CHURN, "POST"), ("POST", "/v2", "GET"), ("DELETE", INFER, "POST")]
)
def test_methods_that_are_not_allowed(caller, method, path, allowed):
    response = caller(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


def test_entities_need_a_variant_with_features(shelf, make_caller, tmp_path):
    with_store = make_caller(shelf, features=FeatureReaders(Settings(home=tmp_path)))
    error = error_of(with_store.post(CHURN, json={"entities": [{"customer": 7}]}), 400)
    assert "was not trained on a feature service" in error["message"]


def test_feature_store_down_is_a_503_with_retry_after(shelf, make_caller):
    class Down:
        def read(self, *_: Any, **__: Any) -> None:
            raise ServiceFault("Feast could not read online features.", hint="Check the store.")

    response = make_caller(shelf, features=Down()).post(CHURN, json={"entities": [{"customer": 7}]})
    assert error_of(response, 503)["code"] == "service_fault"
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-variant"] == "growth.churn/1"
