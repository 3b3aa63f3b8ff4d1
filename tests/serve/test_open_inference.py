"""The predictor's application by the Open Inference Protocol v2, called in this process."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.answers import error_of

from .calls import CHURN, INFER, ROW, expected


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


def test_a_matrix_without_rows_and_with_a_billion_columns_is_refused_at_once(caller):
    tensor = {"name": "rows", "shape": [0, 10**12], "datatype": "FP64", "data": []}
    error = error_of(caller.post(INFER, json={"inputs": [tensor]}), 400)
    assert "more than 10,000 columns" in error["message"]


def test_kserves_client_is_understood(caller, spend):
    """It names the model in the body too, sends JSON without a content type, and tensors behind it as triton does."""
    rows = [{"age": 30.0, "income": 1e4}]
    named = {"id": "k-1", "model_name": "growth.spend", "parameters": {"binary_data_output": False}}
    plain = {**named, "inputs": [tensor("age", [30.0]), tensor("income", [1e4])]}
    sent = caller.post(INFER, content=json.dumps(plain))
    raw = [
        {"name": name, "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
        for name in ("age", "income")
    ]
    head = json.dumps({**named, "inputs": raw}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    behind = caller.post(INFER, content=head + np.array([30.0, 1e4]).tobytes(), headers=headers)
    for answer in (sent, behind):
        document = answer.json()
        assert (document["model_name"], document["id"]) == ("growth.spend", "k-1")
        assert document["outputs"][0]["data"] == [row["prediction"] for row in expected(spend, rows)]
