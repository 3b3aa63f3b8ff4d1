"""The Open Inference Protocol over gRPC, as tritonclient speaks it; each test calls a real server in this process."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from factory.spec import DeploymentWish, Variant
from factory.variants.bundle import Bundle
from serve.core import Core
from serve.inference_messages import METHODS, SERVICE, add_to_server, message
from serve.inference_service import ERROR_KEY, InferenceService
from serve.limits import Limits
from serve.loaded import Loaded
from serve.traffic import KEY_HEADER, position
from tests.serving import NoFeatures

from .conftest import Shelf

CHURN = "growth.churn"


@contextmanager
def serving(shelf: Shelf, load: Callable[[Variant], Loaded]) -> Iterator[tuple[str, Core]]:
    """Run a gRPC server with the service in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, Core, int]:
        core = Core(shelf.ledger, load=load, features=NoFeatures(), limits=Limits(rows=50, body_mb=0.1))
        service = InferenceService(core)
        servicer = type("Servicer", (), {name: staticmethod(getattr(service, ours)) for name, ours in METHODS.items()})
        server = grpc.aio.server()
        add_to_server(servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, core, port

    server, core, port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield f"127.0.0.1:{port}", core
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(30)
    core.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture(scope="module")
def address(shelf: Shelf) -> Iterator[str]:
    with serving(shelf, shelf.load) as (address, _):
        yield address


@pytest.fixture
def token(shelf: Shelf) -> dict[str, str]:
    return {"authorization": f"Bearer {shelf.secret}"}


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


def tensors(n: int = 3) -> list[triton.InferInput]:
    columns: dict[str, tuple[np.ndarray, str]] = {
        "age": (np.linspace(20, 70, n), "FP64"),
        "income": (np.linspace(1e4, 9e4, n).astype(np.float32), "FP32"),
        "city": (np.array(["Bern", "Zürich", "Genf"][:n], dtype=object), "BYTES"),
        "member": (np.array([True, False, True][:n]), "BOOL"),
        "since": (np.array(["2020-01-02"] * n, dtype=object), "BYTES"),
    }
    made = []
    for name, (values, kind) in columns.items():
        tensor = triton.InferInput(name, [n], kind)
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def expected(churn: Bundle) -> np.ndarray:
    columns = {
        "age": np.linspace(20, 70, 3),
        "income": np.linspace(1e4, 9e4, 3).astype(np.float32),
        "city": np.array(["Bern", "Zürich", "Genf"], dtype=object),
        "member": np.array([True, False, True]),
        "since": np.array(["2020-01-02"] * 3, dtype=object),
    }
    return churn.predict_raw(columns)


def test_our_messages_are_those_of_the_protocol() -> None:
    """By the field: each name, number, type and repetition as tritonclient's generated code has it."""
    for name in ("Request", "Response"):
        for method in METHODS:
            compare(message(f"{method}{name}").DESCRIPTOR, getattr(service_pb2, f"{method}{name}").DESCRIPTOR)


def compare(ours: Any, theirs: Any) -> None:
    assert ours.full_name == theirs.full_name
    told = {f.name: (f.number, f.type, f.is_repeated) for f in ours.fields}
    assert told == {f.name: (f.number, f.type, f.is_repeated) for f in theirs.fields if f.name in told}
    assert set(told) == {f.name for f in theirs.fields}
    for field in ours.fields:
        if field.message_type is not None:
            compare(field.message_type, theirs.fields_by_name[field.name].message_type)


def test_an_untouched_client_predicts(client: Any, token: dict[str, str], churn: Bundle) -> None:
    answer = client.infer(CHURN, tensors(), headers=token, request_id="42")
    right = expected(churn)
    np.testing.assert_allclose(answer.as_numpy("probability_yes"), right[:, 1], rtol=0, atol=1e-12)
    labels = [churn.classes[i] for i in churn.labels(right)]
    assert [text.decode() for text in answer.as_numpy("prediction")] == labels
    told = answer.get_response()
    assert (told.model_name, told.model_version, told.id) == (CHURN, "1", "42")


def test_outputs_and_versions_are_chosen(client: Any, token: dict[str, str], churn: Bundle) -> None:
    wanted = [triton.InferRequestedOutput("probability_no")]
    answer = client.infer(CHURN, tensors(), model_version="1", outputs=wanted, headers=token)
    assert [output.name for output in answer.get_response().outputs] == ["probability_no"]
    np.testing.assert_allclose(answer.as_numpy("probability_no"), expected(churn)[:, 0], atol=1e-12)
    with pytest.raises(InferenceServerException, match="There are no outputs odds") as found:
        client.infer(CHURN, tensors(), outputs=[triton.InferRequestedOutput("odds")], headers=token)
    assert found.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_callers_own_deadline_ends_a_call_and_frees_its_place(shelf: Shelf, token: dict[str, str]) -> None:
    release, begun = threading.Event(), threading.Event()

    def load(variant: Variant) -> Loaded:
        begun.set()
        assert release.wait(30)
        return shelf.load(variant)

    with serving(shelf, load) as (address, core), triton.InferenceServerClient(address) as client:
        try:
            with pytest.raises(InferenceServerException) as raised:
                client.infer(CHURN, tensors(), headers=token, client_timeout=1.0)
            assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            with pytest.raises(InferenceServerException, match=r"within 0\.05 s"):
                client.infer(CHURN, tensors(), headers=token | {"x-envoy-expected-rq-timeout-ms": "50"})
            assert begun.wait(30)
            while core.places._taken:
                time.sleep(0.01)
        finally:
            release.set()
        assert client.infer(CHURN, tensors(), headers=token).as_numpy("prediction") is not None


def test_a_canary_that_hangs_rests_after_a_callers_own_deadline(own_shelf: Shelf, churn: Bundle) -> None:
    release = threading.Event()

    def load(variant: Variant) -> Loaded:
        assert variant.version == 1 or release.wait(60)
        return own_shelf.load(variant)

    for champion in (True, False):
        own_shelf.put(CHURN, churn, champion=champion)
    canary = DeploymentWish.model_validate({"as": "canary", "percent": 50})
    own_shelf.ledger.set_deployment(CHURN, canary, version=2)
    key = next(str(n) for n in range(100) if position(CHURN, str(n).encode()) < 0.5)
    headers = {"authorization": f"Bearer {own_shelf.secret}", KEY_HEADER: key}
    with serving(own_shelf, load) as (address, core), triton.InferenceServerClient(address) as client:
        try:
            with pytest.raises(InferenceServerException) as raised:
                client.infer(CHURN, tensors(), headers=headers, client_timeout=3.0)
            assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            while core.places._taken:
                time.sleep(0.01)
            answer = client.infer(CHURN, tensors(), headers=headers)
            assert answer.get_response().model_version == "1"
        finally:
            release.set()


def test_health_and_metadata(client: Any, token: dict[str, str]) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "model-variant-factory"
    assert client.is_model_ready(CHURN, headers=token)
    about = client.get_model_metadata(CHURN, headers=token)
    assert {tensor.name: tensor.datatype for tensor in about.inputs}["age"] == "FP64"
    assert list(about.versions) == ["1"]


@pytest.mark.parametrize(
    ("name", "headers", "code", "sentence"),
    [
        (CHURN, {}, "UNAUTHENTICATED", "No token was sent"),
        (CHURN, {"authorization": "Bearer mvf_wrong"}, "UNAUTHENTICATED", "token"),
        ("growth.chern", None, "NOT_FOUND", "Did you mean 'growth.churn'"),
    ],
)
def test_a_refused_call_has_the_code_that_fits(
    client: Any, token: dict[str, str], name: str, headers: dict[str, str] | None, code: str, sentence: str
) -> None:
    with pytest.raises(InferenceServerException, match=sentence) as found:
        client.infer(name, tensors(), headers=token if headers is None else headers)
    assert found.value.status() == f"StatusCode.{code}"


def call(address: str, request: Any, token: dict[str, str]) -> tuple[Any, grpc.StatusCode, str, dict[str, str]]:
    """Call ModelInfer with a message of our own; return the answer, code, details and trailing metadata."""
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        try:
            answer, about = method.with_call(request, metadata=tuple(token.items()), timeout=30)
        except grpc.RpcError as error:
            return None, error.code(), error.details(), dict(error.trailing_metadata())
        return answer, about.code(), about.details(), dict(about.trailing_metadata())


def typed(**changes: Any) -> Any:
    request = message("ModelInferRequest")(model_name=CHURN)
    contents = {
        "age": ("INT32", {"int_contents": [41]}),
        "income": ("FP32", {"fp32_contents": [52000.5]}),
        "city": ("BYTES", {"bytes_contents": [b"Bern"]}),
        "member": ("BOOL", {"bool_contents": [True]}),
        "since": ("BYTES", {"bytes_contents": [b"2021-03-04"]}),
    } | changes
    for name, (kind, values) in contents.items():
        request.inputs.add(name=name, datatype=kind, shape=[1], contents=message("InferTensorContents")(**values))
    return request


def test_typed_contents_are_read_and_answered_in_kind(address: str, token: dict[str, str], churn: Bundle) -> None:
    answer, code, _, trailing = call(address, typed(), token)
    assert code is grpc.StatusCode.OK
    row = {"age": 41, "income": 52000.5, "city": "Bern", "member": True, "since": "2021-03-04"}
    right = churn.predict_raw({name: np.array([value], dtype=object) for name, value in row.items()})
    by_name = {output.name: output for output in answer.outputs}
    assert list(by_name["probability_yes"].contents.fp64_contents) == pytest.approx(right[:, 1].tolist(), abs=1e-9)
    assert len(answer.raw_output_contents) == 0
    assert trailing["x-variant"] == f"{CHURN}/1"


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"age": ("INT33", {"int_contents": [1]})}, "inputs[0].age", "datatype 'INT33' is not known"),
        ({"age": ("FP16", {})}, "inputs[0].age", "no typed contents"),
        ({"age": ("INT32", {"fp64_contents": [1.0]})}, "inputs[0].age", "has 0 values"),
        ({"city": ("BYTES", {"bytes_contents": [b"\xff"]})}, "inputs[2].city", "not UTF-8"),
        ({"height": ("FP64", {"fp64_contents": [1.0]})}, "height", ""),
        ({"age": ("BYTES", {"bytes_contents": [b"old"]})}, "age", ""),
    ],
)
def test_wrong_tensors_are_one_clear_error(
    address: str, token: dict[str, str], change: dict[str, Any], field: str, sentence: str
) -> None:
    _, code, details, trailing = call(address, typed(**change), token)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in details
    error = json.loads(trailing[ERROR_KEY])["error"]
    assert field in [each["field"] for each in error["details"]]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (message("ModelInferRequest")(model_name=CHURN), "At least one is needed"),
        (message("ModelInferRequest")(), "There is no variant ''"),
        (message("ModelInferRequest")(model_name=CHURN, model_version="one"), "has no version 'one'"),
        (message("ModelInferRequest")(model_name=CHURN, raw_input_contents=[b"x" * 200_000]), "200,0|has 2000"),
    ],
)
def test_other_wrong_messages_leave_the_server_as_it_was(
    address: str, token: dict[str, str], request_: Any, sentence: str
) -> None:
    _, code, details, _ = call(address, request_, token)
    assert code is not grpc.StatusCode.OK
    assert code is not grpc.StatusCode.INTERNAL
    assert re.search(sentence, details), details
    assert call(address, typed(), token)[1] is grpc.StatusCode.OK


def test_raw_contents_have_to_be_one_for_each_input(address: str, token: dict[str, str]) -> None:
    request = typed()
    request.raw_input_contents.append(b"\x00" * 8)
    _, code, details, _ = call(address, request, token)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "There are 1 of them for 5 inputs" in details


def test_too_many_rows_are_refused(client: Any, token: dict[str, str]) -> None:
    tensor = triton.InferInput("age", [60], "FP64")
    tensor.set_data_from_numpy(np.zeros(60))
    with pytest.raises(InferenceServerException, match="60 rows; 50 are allowed") as found:
        client.infer(CHURN, [tensor], headers=token)
    assert found.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_an_error_with_many_problems_still_arrives(address: str, token: dict[str, str]) -> None:
    request = typed(**{f"column_with_a_rather_long_name_{i}": ("FP64", {"fp64_contents": [1.0]}) for i in range(200)})
    _, code, details, trailing = call(address, request, token)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(details) <= 2_100
    assert json.loads(trailing[ERROR_KEY])["error"]["code"] == "invalid_data"
