"""Reading and writing the protocols, without a predictor around them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

import factory.errors
import serve.errors
from factory.errors import FactoryError, InvalidRequest, NotFound
from serve import invocations, open_inference
from serve.errors import STATUS, answer, status_of
from serve.inputs import EntityRows, NamedColumns, arrays
from serve.store import Reference

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KINDS = st.sampled_from(["dataframe_records", "dataframe_split", "instances", "inputs", "entities", "params"])
COLUMNS = st.sampled_from(["age", "income", "city", "member", "since", "other"])
SPLIT = st.fixed_dictionaries(
    {"columns": st.lists(COLUMNS, max_size=6), "data": st.lists(st.lists(JSON, max_size=6), max_size=3)}
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": COLUMNS,
        "datatype": st.sampled_from(["FP64", "INT8", "BOOL", "BYTES", "FP99"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "data": st.lists(JSON, max_size=4) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "binary_data"]), JSON, max_size=2),
    },
)

CLIENT_SIDE = {200, *range(400, 500)}


def status(call: Callable[[], object]) -> int:
    """Return the status that a call would be answered with; an error that is none of ours goes through."""
    try:
        call()
    except FactoryError as error:
        return status_of(error)
    return 200


@given(st.dictionaries(KINDS, JSON | SPLIT | st.dictionaries(COLUMNS, JSON | st.lists(JSON, max_size=3)), max_size=2))
@settings(max_examples=300, deadline=None)
def test_any_invocation_is_predicted_or_refused(churn, document):
    def predict() -> None:
        payload = invocations.parse(json.dumps(document).encode(), "application/json", max_rows=50)
        if not isinstance(payload, EntityRows):
            raw = churn.predict_raw(arrays(payload, churn))
            invocations.format_predictions(raw, churn)

    assert status(predict) in CLIENT_SIDE


@given(st.lists(TENSOR, max_size=5), st.binary(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_inference_is_predicted_or_refused(churn, tensors, tail):
    document = json.dumps({"inputs": tensors}).encode()

    def predict() -> None:
        request = open_inference.parse(document + tail, header_length=str(len(document)), max_rows=50)
        payload = open_inference.resolve_matrix(request.payload, churn)
        raw = churn.predict_raw(arrays(payload, churn))
        open_inference.format_answer(raw, churn, name="a.b", version=1, request=request)

    assert status(predict) in CLIENT_SIDE


@given(st.binary(max_size=60), st.sampled_from(["application/json", "text/csv", "", "text/csv; charset=utf-8"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(body, content_type):
    assert status(lambda: invocations.parse(body, content_type, max_rows=50)) in CLIENT_SIDE


@given(st.lists(st.text(max_size=5).filter(lambda text: "\x00" not in text), max_size=5))
def test_text_tensors_are_those_of_tritonclient(values):
    packed = serialize_byte_tensor(np.array(values, dtype=object))
    raw = packed.item() if packed.size else b""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "city",
                    "datatype": "BYTES",
                    "shape": [len(values)],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ]
        }
    ).encode()
    payload = open_inference.parse(head + raw, header_length=str(len(head)), max_rows=50).payload
    assert isinstance(payload, NamedColumns)
    assert list(payload.columns["city"]) == values


def test_text_outputs_are_read_by_tritonclient(churn):
    request = open_inference.Inference(id=None, payload=NamedColumns({}), outputs=(("prediction", True),), binary=True)
    raw = np.array([[0.9, 0.1], [0.2, 0.8]])
    body, length = open_inference.format_answer(raw, churn, name="a.b", version=1, request=request)
    assert deserialize_bytes_tensor(body[length:]).tolist() == [b"no", b"yes"]


def test_a_text_tensor_that_ends_early():
    for raw in (b"\x01", struct.pack("<I", 9) + b"abc", struct.pack("<I", 1) + b"\xff"):
        tensor = {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        with pytest.raises(InvalidRequest, match=r"inputs\[0\]\.c"):
            open_inference.parse(head + raw, header_length=str(len(head)), max_rows=50)


def test_references():
    assert Reference.parse("a.b") == Reference("a.b", None, None)
    assert Reference.parse("a.b@challenger") == Reference("a.b", "challenger", None)
    assert Reference.parse("a.b", version="3").version == 3
    for text, version in (("a.b@", "x"), ("a.b@other", None), ("a.b", "²"), ("a.b", "1" * 30)):
        with pytest.raises(NotFound):
            Reference.parse(text, version=version)


def every_error(kind: type[FactoryError] = FactoryError) -> set[type[FactoryError]]:
    return {kind}.union(*(every_error(lower) for lower in kind.__subclasses__()))


def test_every_error_has_a_status_and_the_one_shape():
    known = {kind for kind in every_error() if kind.__module__ in (factory.errors.__name__, serve.errors.__name__)}
    assert set(STATUS) == known
    for kind in known:
        code, headers, body = answer(kind("Something.", hint="Do this."))
        assert code == STATUS[kind]
        assert json.loads(body) == {
            "error": {"code": kind.code, "message": "Something.", "hint": "Do this.", "details": []}
        }
        assert ("retry-after" in headers) == (code in (429, 503))
    codes = [kind.code for kind in known]
    assert len(codes) == len(set(codes)), "a code names one kind of error"


def test_an_error_that_serve_does_not_know_has_its_base_status():
    class Special(NotFound):
        code = "special"

    assert status_of(Special("x")) == 404
