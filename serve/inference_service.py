"""The Open Inference Protocol over gRPC: the same steps as over REST, tensors as bytes or as typed contents."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from factory.errors import Detail, FactoryError
from serve import open_inference
from serve.call import Call, Message
from serve.core import Core
from serve.errors import BodyTooLarge, status_of, unexpected
from serve.handlers import model_metadata, require_model, require_ready
from serve.inference_messages import message
from serve.inputs import Values, check_rows
from serve.open_inference import Inference
from serve.predictions import Asked, Prediction, is_small
from serve.release import release
from serve.tensors import Tensor, datatype_of, from_binary, to_binary

logger = logging.getLogger(__name__)

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's code for each HTTP status of an error."""
ERROR_KEY = "factory-error"
"""Of the trailing metadata: the error in the one shape, as JSON of ASCII."""
MOST_TEXT, MOST_ERROR = 1_000, 4_000
"""Characters of a sentence, and of the whole error: clients refuse more than 8 KB beside an answer."""
_CONTENTS: dict[str, tuple[str, type]] = {
    "BOOL": ("bool_contents", np.bool_),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", np.int64)),
    "INT64": ("int64_contents", np.int64),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", np.uint64)),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float64),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", object),
}
"""Where a datatype's values are, and as what they are held; FP16 comes as bytes only."""


class InferenceService:
    """The methods of the service; Ray Serve calls them by their names on the deployment.

    Args:
        core: What a replica answers with.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def server_live(self, _: Any, context: Any) -> Any:
        """Return that the process answers."""
        return await self._answer("live", context, lambda _: _ready_made("ServerLiveResponse", live=True))

    async def server_ready(self, _: Any, context: Any) -> Any:
        """Return whether requests can be answered."""

        async def made(_: Call) -> Any:
            await require_ready(self._core)
            return message("ServerReadyResponse")(ready=True)

        return await self._answer("ready", context, made)

    async def server_metadata(self, _: Any, context: Any) -> Any:
        """Return name and version of the server."""
        answer = partial(_ready_made, "ServerMetadataResponse", name="model-variant-factory", version=release())
        return await self._answer("server", context, lambda _: answer())

    async def model_ready(self, request: Any, context: Any) -> Any:
        """Return that a variant is in memory."""

        async def made(call: Call) -> Any:
            await require_model(self._core, call, _values(request.name, request.version))
            return message("ModelReadyResponse")(ready=True)

        return await self._answer("model_ready", context, made)

    async def model_metadata(self, request: Any, context: Any) -> Any:
        """Return inputs and outputs of a variant."""

        async def made(call: Call) -> Any:
            about = await model_metadata(self._core, call, _values(request.name, request.version))
            return message("ModelMetadataResponse")(**about)

        return await self._answer("model", context, made)

    async def model_infer(self, body: bytes, context: Any) -> Any:
        """Return predictions.

        Args:
            body: The message; a large one is read in a thread, so that nobody else waits for it.
            context: Of the call.
        """

        async def made(call: Call) -> Any:
            core = self._core
            if len(body) > core.limits.body_mb * 1e6:
                raise BodyTooLarge(
                    f"The message has {len(body)} bytes; {core.limits.body_mb:g} MB are allowed.",
                    hint="Send several smaller requests.",
                    details=[Detail("message", f"is larger than FACTORY_MAX_REQUEST_MB={core.limits.body_mb:g}")],
                )
            async with core.places.take(call):
                if not is_small(body):
                    # The name is in the message; what nobody known sends is not read.
                    await core.knows(call)
                request = await core.run(is_small(body), lambda: parsed(body))
                reference, variant = await core.resolve(call, _values(request.model_name, request.model_version))
                read = partial(read_request, request, max_rows=core.limits.rows)
                inference = await core.run(is_small(body), read)
                asked = Asked(reference, variant, inference.payload, body)
                form = partial(_formed, request=inference)
                return await core.answered(call, asked, form, adapt=open_inference.resolve_matrix)

        return await self._answer("infer", context, made)

    async def _answer(self, route: str, context: Any, make: Callable[[Call], Awaitable[Any]]) -> Any:
        """Return what is made, or an empty message with the code and the sentence of the error."""
        metadata = [(key.lower().encode(), _bytes(value)) for key, value in context.invocation_metadata()]
        connection = {"peer": context.peer, "headers": metadata}
        call = Call(method="POST", parts=(), headers=dict(metadata), receive=_nothing, connection=connection)
        began, status, error = time.perf_counter(), 200, None
        try:
            answer = await make(call)
        except FactoryError as raised:
            error = raised
        except Exception as raised:
            logger.exception("%s over gRPC failed", route)
            error = unexpected(raised)
        told = [(key, value) for key, value in call.answer_headers.items() if value.isascii()]
        if error is not None:
            # Of whatever type: with an error no message is sent.
            answer, status = message("ModelInferResponse")(), status_of(error)
            told.append((ERROR_KEY, _shortened(error)))
            context.set_code(CODES.get(status, grpc.StatusCode.INTERNAL))
            context.set_details(f"{error.message} {error.hint}".strip()[:MOST_TEXT])
        context.set_trailing_metadata([*context.trailing_metadata(), *told])
        self._core.note(call, route, status=status, took_s=time.perf_counter() - began)
        return answer


def parsed(body: bytes) -> Any:
    """Return the ``ModelInferRequest`` of some bytes.

    Raises:
        InvalidRequest: they are none.
    """
    try:
        return message("ModelInferRequest").FromString(body)
    except DecodeError as error:
        raise open_inference.not_protocol([Detail("message", "It is no ModelInferRequest.")]) from error


def read_request(request: Any, *, max_rows: int) -> Inference:
    """Read a ``ModelInferRequest``.

    Raises:
        InvalidRequest: it does not follow the protocol; the first problems that can be seen together are named.
        BodyTooLarge: it has too many rows, tensors or outputs.
    """
    open_inference.require_number(request.inputs, "inputs")
    open_inference.require_number(request.outputs, "outputs")
    raw = list(request.raw_input_contents)
    problems = []
    if raw and len(raw) != len(request.inputs):
        problems.append(Detail("raw_input_contents", f"There are {len(raw)} of them for {len(request.inputs)} inputs."))
        raise open_inference.not_protocol(problems)
    if not request.inputs:
        raise open_inference.not_protocol([Detail("inputs", "At least one is needed.")])
    tensors = [
        Tensor(
            each.name,
            tuple(each.shape),
            each.datatype,
            partial(from_binary, each.datatype, raw[i]) if raw else partial(_contents, each),
        )
        for i, each in enumerate(request.inputs)
    ]
    classified = [wanted.name for wanted in request.outputs if "classification" in wanted.parameters]
    outputs = tuple((wanted.name, bool(raw)) for wanted in request.outputs) or None
    payload = open_inference.payload_of(tensors, classified=classified)
    check_rows(payload, max_rows=max_rows)
    return Inference(id=request.id or None, payload=payload, outputs=outputs, binary=bool(raw))


def _contents(tensor: Any) -> Values:
    if tensor.datatype not in _CONTENTS:
        raise ValueError(f"datatype {tensor.datatype} has no typed contents; send raw_input_contents")
    field, held_as = _CONTENTS[tensor.datatype]
    values = getattr(tensor.contents, field)
    if tensor.datatype != "BYTES":
        return np.array(values, dtype=held_as)
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise ValueError("holds an element that is not UTF-8") from error


def _formed(prediction: Prediction, *, request: Inference) -> Any:
    """Return a ``ModelInferResponse``: raw where the request was, else typed contents."""
    by = prediction.loaded.variant
    answer = message("ModelInferResponse")(model_name=by.name, model_version=str(by.version), id=request.id or "")
    for name, values, binary in open_inference.chosen_outputs(prediction.raw, prediction.loaded.bundle, request):
        output = answer.outputs.add(name=name, datatype=datatype_of(values), shape=[len(values)])
        if binary:
            answer.raw_output_contents.append(to_binary(values))
        elif isinstance(values, np.ndarray):
            output.contents.fp64_contents.extend(values.tolist())
        else:
            output.contents.bytes_contents.extend(value.encode() for value in values)
    return answer


def _shortened(error: FactoryError) -> str:
    """Return an error's JSON within what gRPC carries beside an answer: some problems instead of all, if need be."""
    details = error.details
    while True:
        told = type(error)(error.message[:MOST_TEXT], hint=error.hint[:MOST_TEXT], details=details)
        text = json.dumps(told.as_dict())
        if len(text) <= MOST_ERROR or not details:
            return text
        details = details[: len(details) // 2]


def _values(name: str, version: str) -> dict[str, str]:
    return {"name": name} | ({"version": version} if version else {})


async def _ready_made(kind: str, /, **fields: object) -> Any:
    return message(kind)(**fields)


async def _nothing() -> Message:
    raise AssertionError("a gRPC message has no body to read")


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")
