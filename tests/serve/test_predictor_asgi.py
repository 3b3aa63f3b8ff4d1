"""The ASGI application over a real ledger and real bundles, called in this process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from factory.errors import ServiceFault
from factory.settings import Settings
from factory.spec import DeploymentWish, Variant
from factory.variants.bundle import Bundle
from serve.loaded import Loaded
from serve.online import FeatureReaders

CHURN = "/variants/growth.churn/invocations"
ROW = {"age": 41, "income": 52_000.5, "city": "Bern", "member": True, "since": "2021-03-04"}
INFER = "/v2/models/growth.spend/infer"


def expected(bundle: Bundle, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    frame = pd.DataFrame(rows)
    return bundle.predict({name: frame[name].to_numpy(dtype=object) for name in frame}).to_dict("records")


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check the one error shape and return what is in it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "hint", "details"}
    assert error["message"]
    assert error["hint"]
    assert all(set(detail) == {"field", "message"} for detail in error["details"])
    return error


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
        assert answer.headers["server-timing"].startswith("predict;dur=")


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
        ("/", "Routes"),
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
        def columns(self, *_: Any, **__: Any) -> None:
            raise ServiceFault("Feast could not read online features.", hint="Check the store.")

    response = make_caller(shelf, features=Down()).post(CHURN, json={"entities": [{"customer": 7}]})
    assert error_of(response, 503)["code"] == "service_fault"
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-variant"] == "growth.churn/1"


# --- Open Inference Protocol -----------------------------------------------------


def tensor(name: str, data: list[Any], datatype: str = "FP64", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def test_server_and_model_metadata(caller):
    assert caller.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert caller.get("/v2/health/live").json() == {"live": True}
    assert caller.get("/v2/health/ready").json() == {"ready": True}
    assert caller("HEAD", "/v2/health/ready").status_code == 200
    for path in ("/v2/models/growth.churn", "/v2/models/growth.churn/versions/1"):
        document = caller.get(path).json()
        assert document["name"] == "growth.churn"
        assert document["versions"] == ["1"]
        datatypes = {entry["name"]: entry["datatype"] for entry in document["inputs"]}
        assert datatypes == {"age": "FP64", "income": "FP64", "city": "BYTES", "member": "BOOL", "since": "BYTES"}
        assert [(entry["name"], entry["datatype"], entry["shape"]) for entry in document["outputs"]] == [
            ("prediction", "BYTES", [-1]),
            ("probability_no", "FP64", [-1]),
            ("probability_yes", "FP64", [-1]),
        ]
        assert caller.get(f"{path}/ready").json() == {"name": "growth.churn", "ready": True}
    assert caller.get("/v2/models/growth.spend").json()["outputs"] == [
        {"name": "prediction", "datatype": "FP64", "shape": [-1]}
    ]


def test_infer_answers_what_invocations_answers(caller):
    inputs = [
        tensor("age", [41, 22], "INT64"),
        tensor("income", [52_000.5, None]),
        tensor("city", ["Bern", "Atlantis"], "BYTES", [2, 1]),
        tensor("member", [True, False], "BOOL"),
        tensor("since", ["2021-03-04", None], "BYTES"),
    ]
    answer = caller.post("/v2/models/growth.churn/infer", json={"id": "a-1", "inputs": inputs})
    document = answer.json()
    assert answer.headers["x-variant"] == "growth.churn/1"
    assert (document["model_name"], document["model_version"], document["id"]) == ("growth.churn", "1", "a-1")
    rows = [ROW, {"age": 22, "income": None, "city": "Atlantis", "member": False, "since": None}]
    predictions = caller.post(CHURN, json={"dataframe_records": rows}).json()["predictions"]
    for output in document["outputs"]:
        assert output["shape"] == [2]
        assert output["data"] == [row[output["name"]] for row in predictions]


def test_one_matrix_for_numbers_only(caller, spend):
    matrix = tensor("input", [[30, 1e4], [60, 2e4]], shape=[2, 2])
    answer = caller.post(INFER, json={"inputs": [matrix]}).json()
    rows = [{"age": 30, "income": 1e4}, {"age": 60, "income": 2e4}]
    assert answer["outputs"][0]["data"] == [row["prediction"] for row in expected(spend, rows)]
    flat = tensor("input", [30, 1e4, 60, 2e4], shape=[2, 2])
    assert caller.post(INFER, json={"inputs": [flat]}).json() == answer
    wide = tensor("input", [[1, 2, 3, 4, 5]], shape=[1, 5])
    error = error_of(caller.post("/v2/models/growth.churn/infer", json={"inputs": [wide]}), 422)
    assert {detail["field"] for detail in error["details"]} == {"city", "since"}
    assert "5 columns" in error_of(caller.post(INFER, json={"inputs": [wide]}), 422)["message"]


def test_wanted_outputs_only(caller):
    inputs = [tensor("age", [30], "INT32"), tensor("income", [1e4], "FP32")]
    answer = caller.post(INFER, json={"inputs": inputs, "outputs": [{"name": "prediction"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["prediction"]
    error = error_of(caller.post(INFER, json={"inputs": inputs, "outputs": [{"name": "predictions"}]}), 400)
    assert "Did you mean 'prediction'?" in error["details"][0]["message"]


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({}, 400, "inputs"),
        ({"inputs": []}, 400, "inputs"),
        ({"inputs": [{"name": "age"}]}, 400, "inputs.0.shape"),
        ({"inputs": [tensor("age", [1], "FP65")]}, 400, "Did you mean"),
        ({"inputs": [tensor("age", [1], shape=[3])]}, 400, "has 1 values; its shape [3] has 3"),
        ({"inputs": [tensor("age", [1], shape=[-1])]}, 400, "neither [n]"),
        ({"inputs": [tensor("age", [1], shape=[1, 1, 1])]}, 400, "neither [n]"),
        ({"inputs": [tensor("age", ["x"])]}, 400, "not of its datatype FP64"),
        ({"inputs": [tensor("age", [1.5], "INT64")]}, 400, "not of its datatype INT64"),
        ({"inputs": [tensor("age", [1]), tensor("age", [1])]}, 400, "more than once"),
        ({"inputs": [tensor("age", [1, 2], shape=[1, 2]), tensor("income", [1])]}, 400, "is not [n] or [n, 1]"),
        ({"inputs": [{"name": "age", "datatype": "FP64", "shape": [1]}]}, 400, "needs either"),
        ({"inputs": [tensor("age", [1])]}, 422, "income"),
        ({"inputs": [tensor("age", [1]), tensor("income", [1, 2])]}, 422, "1 values; another one has 2"),
        ({"inputs": [tensor("age", ["x"], "BYTES"), tensor("income", [1])]}, 422, "expected a number"),
        ({"inputs": [tensor("age", [0] * 51), tensor("income", [0] * 51)]}, 413, "51 rows"),
        (
            {"inputs": [tensor("age", [1])], "outputs": [{"name": "p", "parameters": {"classification": 2}}]},
            400,
            "class",
        ),
    ],
)
def test_inference_requests_that_are_wrong(caller, document, status, says):
    assert says in json.dumps(error_of(caller.post(INFER, json=document), status))


def binary_request(age: bytes, *, size: int | None = None) -> tuple[bytes, dict[str, str]]:
    tensors = [
        {"name": "age", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": size or len(age)}},
        {"name": "income", "datatype": "FP64", "shape": [1], "data": [1e4]},
    ]
    document = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(document)), "content-type": "application/octet-stream"}
    return document + age, headers


def test_binary_tensors_both_ways(caller, spend):
    content, headers = binary_request(np.array([30], dtype="<i8").tobytes())
    answer = caller.post(INFER, content=content, headers=headers)
    length = int(answer.headers["inference-header-content-length"])
    output = json.loads(answer.content[:length])["outputs"][0]
    assert output["parameters"] == {"binary_data_size": 8}
    (value,) = np.frombuffer(answer.content[length:], dtype="<f8")
    assert value == expected(spend, [{"age": 30, "income": 1e4}])[0]["prediction"]


@pytest.mark.parametrize(
    ("age", "size", "says"),
    [
        (b"1234567", None, "no multiple of 8"),
        (b"12345678", 16, "take 16 bytes; the body has 8"),
        (b"1" * 16, 8, "take 8 bytes; the body has 16"),
        (b"1" * 16, None, "has 2 values"),
    ],
)
def test_truncated_binary_tensors(caller, age, size, says):
    content, headers = binary_request(age, size=size)
    response = caller.post(INFER, content=content, headers=headers)
    assert says in error_of(response, 400)["message"]


def test_a_wrong_length_of_the_json_part(caller):
    for length in ("-1", "x", "100000"):
        response = caller.post(INFER, content=b"{}", headers={"inference-header-content-length": length})
        assert "Inference-Header-Content-Length" in error_of(response, 400)["message"]


def test_tritonclient_gets_the_sentence_where_it_looks_for_it(caller):
    agent = {"user-agent": "python/gevent-http-client-2.3.4"}
    body = caller.post("/v2/models/growth.chrun/infer", content=b"{}", headers=agent).json()
    assert body["error"].startswith("There is no variant 'growth.chrun'")
    assert body["code"] == "not_found"


# --- what the application does under way ------------------------------------------


async def together(caller: Any, calls: list[dict[str, Any]]) -> list[httpx.Response]:
    """Send several requests at one time."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(caller.app), base_url="http://test") as client:
        return list(await asyncio.gather(*(client.request("POST", **call) for call in calls)))


def one(path: str = CHURN, **change: Any) -> dict[str, Any]:
    return {"url": path, "json": {"dataframe_records": [ROW | change]}}


def test_a_promotion_is_followed_within_a_second(own_shelf, churn, make_caller):
    caller = make_caller(own_shelf)
    own_shelf.put("growth.churn", churn)
    assert caller.post(**one()).headers["x-variant"] == "growth.churn/1"
    own_shelf.put("growth.churn", churn)
    time.sleep(1.01)
    assert caller.post(**one()).headers["x-variant"] == "growth.churn/2"
    old = caller.post(**one("/variants/growth.churn/versions/1/invocations"))
    assert old.headers["x-variant"] == "growth.churn/1"


def test_a_name_without_a_champion(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn, champion=False)
    error = error_of(make_caller(own_shelf).post(**one()), 404)
    assert "has no champion" in error["message"]
    assert "factory variants promote" in error["hint"]


def test_callers_who_wait_share_one_load(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.version)
        time.sleep(0.05)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load)
    answers = asyncio.run(together(caller, [one()] * 8))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert loads == [1]


def test_the_least_recently_used_goes_first(own_shelf, churn, spend, make_caller):
    for name in ("growth.a", "growth.b", "growth.c"):
        own_shelf.put(name, spend)
    loads = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    caller = make_caller(own_shelf, load=load, bundles=2)
    row = {"json": {"dataframe_records": [{"age": 1, "income": 1}]}}
    for name in ("a", "b", "a", "c", "a", "b"):
        assert caller.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads == ["growth.a", "growth.b", "growth.c", "growth.b"]
    tight = make_caller(own_shelf, load=load, bundles_mb=1e-9)
    for name in ("a", "b"):
        assert tight.post(f"/variants/growth.{name}/invocations", **row).status_code == 200
    assert loads[-2:] == ["growth.a", "growth.b"]


def test_a_changed_bundle_is_not_loaded_and_is_tried_again(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    manifest = own_shelf.path("growth.churn", 1) / "variant.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good + b" ")
    caller = make_caller(own_shelf)
    response = caller.post(**one())
    assert error_of(response, 500)["code"] == "untrusted_bundle"
    assert response.headers["x-variant"] == "growth.churn/1"
    manifest.write_bytes(good)
    assert caller.post(**one()).status_code == 200


def test_what_is_loaded_is_served_while_the_ledger_is_gone(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    caller = make_caller(own_shelf)
    assert caller.post(**one()).status_code == 200
    time.sleep(1.01)
    own_shelf.ledger.close()
    database = own_shelf.folder.parent / "ledger.db"
    for path in database.parent.glob("ledger.db*"):
        path.unlink()
    database.write_bytes(b"this is not a database, and long enough to be none" * 100)
    assert caller.post(**one()).headers["x-variant"] == "growth.churn/1"
    assert error_of(caller.post(**one("/variants/growth.other/invocations")), 503)["code"] == "storage_fault"
    assert caller.get("/v2/health/ready").json() == {"ready": True}
    assert caller.get("/v2/health/live").status_code == 200
    empty = make_caller(own_shelf)
    assert error_of(empty.get("/v2/health/ready"), 503)["code"] == "storage_fault"
    assert empty.get("/v2/health/live").status_code == 200


def test_more_requests_than_places_are_told_to_come_again(shelf, make_caller):
    release = threading.Event()

    def load(variant: Variant) -> Loaded:
        release.wait(5)
        return shelf.load(variant)

    caller = make_caller(shelf, load=load, ongoing=2)

    async def crowd() -> list[httpx.Response]:
        waiting = asyncio.create_task(together(caller, [one(), one()]))
        await asyncio.sleep(0.05)
        refused = await together(caller, [one()])
        release.set()
        return [*refused, *await waiting]

    refused, *served = asyncio.run(crowd())
    assert error_of(refused, 503)["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    assert [answer.status_code for answer in served] == [200, 200]


def test_the_deadline(shelf, make_caller):
    def load(variant: Variant) -> Loaded:
        time.sleep(0.3)
        return shelf.load(variant)

    caller = make_caller(shelf, load=load, deadline_s=0.1)

    async def twice() -> list[httpx.Response]:
        late = await together(caller, [one()])
        await asyncio.sleep(0.4)
        return late + await together(caller, [one()])

    late, again = asyncio.run(twice())
    assert error_of(late, 504)["code"] == "deadline_exceeded"
    assert again.status_code == 200, "the load went on although nobody waited for it"


def test_a_body_that_does_not_arrive(shelf, make_caller):
    async def slow():
        yield b"{"
        await asyncio.sleep(0.5)
        yield b"}"

    response = make_caller(shelf, deadline_s=0.1).post(CHURN, content=slow())
    assert error_of(response, 408)["code"] == "slow_request"


def test_a_prediction_that_fails_is_ours_and_the_predictor_lives(shelf, make_caller, caplog):
    class Broken(Bundle):
        def predict_raw(self, columns: Any) -> np.ndarray:
            raise MemoryError("no more")

    def load(variant: Variant) -> Loaded:
        loaded = shelf.load(variant)
        broken = Broken(**{f: getattr(loaded.bundle, f) for f in Bundle.__dataclass_fields__})
        return Loaded(variant, broken if variant.name == "growth.churn" else loaded.bundle, 1.0, 0.1)

    caller = make_caller(shelf, load=load)
    error = error_of(caller.post(**one()), 500)
    assert "MemoryError" in error["message"]
    assert "no more" not in error["message"], "details of our process are for the log"
    assert "no more" in caplog.text
    row = {"dataframe_records": [{"age": 1, "income": 1}]}
    assert caller.post("/variants/growth.spend/invocations", json=row).status_code == 200


def test_a_large_body_is_predicted_in_a_thread(shelf, make_caller, churn):
    rows = [ROW | {"age": age % 60} for age in range(400)]
    answer = make_caller(shelf, rows=400, body_mb=1).post(CHURN, json={"dataframe_records": rows})
    assert answer.json()["predictions"] == expected(churn, rows)


def lifespan(app: Any, *, between: float) -> list[str]:
    """Start the application and end it as a server does; return what it says."""
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.sleep(between)
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    asyncio.run(app({"type": "lifespan"}, receive, send))
    return sent


def test_champions_are_loaded_when_the_server_starts(own_shelf, churn, make_caller):
    own_shelf.put("growth.churn", churn)
    own_shelf.put("growth.idle", churn)
    own_shelf.ledger.set_deployment("growth.churn", DeploymentWish(), version=1)
    loads: list[str] = []

    def load(variant: Variant) -> Loaded:
        loads.append(variant.name)
        return own_shelf.load(variant)

    app = make_caller(own_shelf, load=load).app
    assert lifespan(app, between=0.3) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert loads == ["growth.churn"]


def test_a_failing_warm_up_does_not_stop_the_server(shelf, make_caller, caplog):
    def warm_up() -> None:
        raise ServiceFault("MLflow could not answer.")

    app = make_caller(shelf, warm_up=warm_up).app
    assert len(lifespan(app, between=0.1)) == 2
    assert "MLflow could not answer" in caplog.text


def test_websockets_are_refused(caller):
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(dict(message))

    asyncio.run(caller.app({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1003}]
