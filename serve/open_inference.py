"""KServe's Open Inference Protocol v2 over REST, with Triton's binary tensor extension.

Each column is a tensor of its name, of shape [n] or [n, 1]; a variant whose
columns are all numbers also takes one matrix [n, n_columns] of any other name.
Source: KServe, "Open Inference Protocol", ``rest_predict_v2``, and Triton's
"Binary Tensor Data Extension".  The extension is here because ``tritonclient``
sends and asks for binary tensors unless it is told not to.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from pydantic_core import to_json

from factory.errors import MOST_DETAILS, Detail, InvalidData, InvalidRequest, first_of, listing, suggest
from factory.spec import ColumnType
from factory.variants.bundle import Bundle
from serve.inputs import (
    MOST_COLUMNS,
    NamedColumns,
    NamelessColumns,
    Payload,
    Values,
    check_rows,
    column_types,
    repeated_in,
    too_large,
)
from serve.invocations import read_json
from serve.tensors import Tensor, checked, datatype_of, from_binary, from_json, to_binary

BINARY_HEADER = "inference-header-content-length"

_COLUMN_DATATYPES = {ColumnType.NUMERIC: "FP64", ColumnType.BOOLEAN: "BOOL"}
"""What a column is declared as; all other kinds are BYTES. Any number type is accepted for a number."""


class _Part(BaseModel):
    """Parts of the protocol may have fields that we do not know; they are ignored, as the protocol asks."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _TensorParameters(_Part):
    binary_data_size: StrictInt | None = Field(None, ge=0)
    binary_data: bool | None = None
    classification: int | None = None


class _Tensor(_Part):
    name: str
    shape: tuple[StrictInt, ...]
    datatype: str
    parameters: _TensorParameters = _TensorParameters()
    data: list[Any] | None = None


class _Wanted(_Part):
    name: str
    parameters: _TensorParameters = _TensorParameters()


class _RequestParameters(_Part):
    binary_data_output: bool = False


class _Request(_Part):
    id: str | None = None
    inputs: tuple[_Tensor, ...] = Field(min_length=1)
    outputs: tuple[_Wanted, ...] | None = None
    parameters: _RequestParameters = _RequestParameters()


@dataclass(frozen=True)
class Inference:
    """A request as it was read.

    Attributes:
        id: The caller's id, given back with the answer.
        payload: The columns.
        outputs: Outputs that are wanted and whether each is to be binary; None for all of them.
        binary: Whether an output is binary where ``outputs`` does not say.
    """

    id: str | None
    payload: NamedColumns | NamelessColumns
    outputs: tuple[tuple[str, bool], ...] | None
    binary: bool


def parse(body: bytes, *, header_length: str | None = None, max_rows: int) -> Inference:
    """Read the body of an ``/infer`` request.

    Args:
        body: JSON, or JSON followed by the binary tensors.
        header_length: Value of the header ``Inference-Header-Content-Length``: bytes of the JSON part.
        max_rows: Rows at most.

    Raises:
        InvalidRequest: it does not follow the protocol; the first problems that can be seen together are named.
        BodyTooLarge: it has too many rows, tensors or outputs.
    """
    length = _json_length(header_length, len(body))
    request = _document(body[:length])
    tensors, at = [], length
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        raw = None if size is None else body[at : at + size]
        at += size or 0
        tensors.append(Tensor(tensor.name, tensor.shape, tensor.datatype, partial(_values, tensor, raw)))
    problems = []
    if at != len(body):
        problems.append(
            Detail("body", f"The binary tensors take {at - length} bytes; the body has {len(body) - length}.")
        )
    classified = [wanted.name for wanted in request.outputs or () if wanted.parameters.classification]
    binary = request.parameters.binary_data_output
    outputs = None
    if request.outputs:
        outputs = tuple(
            (w.name, binary if w.parameters.binary_data is None else w.parameters.binary_data) for w in request.outputs
        )
    payload = payload_of(tensors, classified=classified, problems=problems)
    check_rows(payload, max_rows=max_rows)
    return Inference(id=request.id, payload=payload, outputs=outputs, binary=binary)


def payload_of(
    tensors: Sequence[Tensor], *, classified: Sequence[str] = (), problems: Sequence[Detail] = ()
) -> NamedColumns | NamelessColumns:
    """Return the columns of a request's tensors, whichever way they came.

    Args:
        tensors: Of the request.
        classified: Outputs for which it asks the classification extension.
        problems: That were found before, told where the tensors themselves have none.

    Raises:
        InvalidRequest: they do not follow the protocol; the first problems that can be seen together are named.
    """
    found, read = [], []
    for i, tensor in enumerate(tensors):
        try:
            read.append((tensor, checked(tensor)))
        except ValueError as error:
            found.append(Detail(f"inputs[{i}].{tensor.name}", f"{error}."))
            if len(found) > MOST_DETAILS:
                break
    found = found or list(problems)
    repeated = repeated_in(tensor.name for tensor in tensors)
    found += [Detail(f"inputs.{name}", f"{name!r} stands more than once.") for name in repeated]
    found += [
        Detail(f"outputs.{name}", "The classification extension is not supported; ask for the output itself.")
        for name in classified
    ]
    if found:
        raise not_protocol(found)
    return _payload(read)


def resolve_matrix(payload: Payload, bundle: Bundle) -> Payload:
    """Refuse a matrix where a column of the variant is not a number; it could not have carried it.

    Raises:
        InvalidData: the columns that are not numbers are named.
    """
    if isinstance(payload, NamelessColumns):
        types = column_types(bundle)
        others = [name for name, kind in types.items() if kind not in _COLUMN_DATATYPES]
        if others:
            raise InvalidData(
                "One matrix can be sent only for a variant whose columns are all numbers.",
                hint="Send one tensor of shape [n] for each column.",
                details=first_of([Detail(name, f"This column holds {types[name]} values.") for name in others]),
            )
    return payload


def format_answer(
    raw: np.ndarray, bundle: Bundle, *, name: str, version: int, request: Inference
) -> tuple[bytes, int | None]:
    """Return the answer's body, and the length of its JSON part if binary tensors follow it.

    Args:
        raw: What :meth:`~factory.variants.bundle.Bundle.predict_raw` returned.
        bundle: The bundle that predicted.
        name: Name of the variant.
        version: Its version.
        request: What was asked.

    Raises:
        InvalidRequest: an output is wanted that there is not.
    """
    outputs, blobs = [], []
    for output, values, binary in chosen_outputs(raw, bundle, request):
        entry: dict[str, object] = {"name": output, "datatype": datatype_of(values), "shape": [len(values)]}
        if binary:
            blob = to_binary(values)
            blobs.append(blob)
            entry["parameters"] = {"binary_data_size": len(blob)}
        else:
            entry["data"] = values.tolist() if isinstance(values, np.ndarray) else values
        outputs.append(entry)
    answer: dict[str, object] = {"model_name": name, "model_version": str(version), "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    document = to_json(answer, inf_nan_mode="null")
    return b"".join((document, *blobs)), len(document) if blobs else None


def chosen_outputs(
    raw: np.ndarray, bundle: Bundle, request: Inference
) -> list[tuple[str, np.ndarray | list[str], bool]]:
    """Return the outputs that are wanted: name, values (n_rows,), and whether they are to be binary.

    Raises:
        InvalidRequest: an output is wanted that there is not.
    """
    columns = _output_columns(raw, bundle)
    wanted = request.outputs
    if wanted is None:
        wanted = tuple((output, request.binary) for output in columns)
    if unknown := [output for output, _ in wanted if output not in columns]:
        near = {n: suggest(n, columns) for n in unknown[:MOST_DETAILS]}
        details = [Detail(f"outputs.{n}", f"There is no such output.{near.get(n, '')}") for n in unknown]
        raise InvalidRequest(
            f"There are no outputs {listing(unknown)}.",
            hint=f"Outputs: {listing(columns, most=40)}.",
            details=first_of(details),
        )
    if repeated := repeated_in(output for output, _ in wanted):
        raise InvalidRequest(
            f"Outputs are asked for more than once: {listing(repeated)}.",
            hint="Ask for each output once.",
            details=first_of([Detail(f"outputs.{n}", f"{n!r} stands more than once.") for n in repeated]),
        )
    return [(output, columns[output], binary) for output, binary in wanted]


def metadata(bundle: Bundle, *, name: str, versions: Sequence[int]) -> dict[str, object]:
    """Return the protocol's model metadata: inputs and outputs with datatype and shape."""
    return {
        "name": name,
        "versions": [str(version) for version in versions],
        "platform": "model-variant-factory",
        "inputs": [
            {"name": column.name, "datatype": _COLUMN_DATATYPES.get(column.type, "BYTES"), "shape": [-1]}
            for column in bundle.columns
        ],
        "outputs": [
            {
                "name": output,
                "datatype": "BYTES" if bundle.classes and output == "prediction" else "FP64",
                "shape": [-1],
            }
            for output in bundle.output_names
        ],
    }


def _document(body: bytes) -> _Request:
    document = read_json(body)
    for part in ("inputs", "outputs"):
        require_number(document.get(part), part)
    try:
        return _Request.model_validate(document)
    except ValidationError as error:
        details = [Detail(".".join(map(str, e["loc"])), f"{e['msg']}.") for e in error.errors()]
        raise not_protocol(details) from error


def require_number(parts: object, field: str) -> None:
    """Refuse more inputs or outputs than a request may have, before they are looked at.

    Raises:
        BodyTooLarge: there are more.
    """
    if isinstance(parts, Sized) and not isinstance(parts, str) and len(parts) > MOST_COLUMNS:
        raise too_large(field, len(parts), field, most=MOST_COLUMNS)


def not_protocol(details: Sequence[Detail]) -> InvalidRequest:
    """Return the error for a request that does not follow the protocol."""
    details = first_of(details)
    return InvalidRequest(
        "The request does not follow the Open Inference Protocol: "
        + " ".join(f"{d.field}: {d.message}" for d in details),
        hint='Each input needs "name", "shape", "datatype" and "data"; GET /v2/models/NAME tells the inputs.',
        details=details,
    )


def _json_length(header_length: str | None, most: int) -> int:
    if header_length is None:
        return most
    if not header_length.isascii() or not header_length.isdigit() or int(header_length) > most:
        message = f"Received {header_length!r}; expected a number of bytes up to the body's {most}."
        raise InvalidRequest(
            f"The header Inference-Header-Content-Length is wrong. {message}",
            hint="It is the length in bytes of the JSON part that precedes the binary tensors.",
            details=[Detail(BINARY_HEADER, message)],
        )
    return int(header_length)


def _values(tensor: _Tensor, raw: bytes | None) -> Values:
    if (raw is None) == (tensor.data is None):
        raise ValueError('needs either "data" or the parameter "binary_data_size"')
    return (
        from_binary(tensor.datatype, raw)
        if raw is not None
        else from_json(tensor.data or [], shape=tensor.shape, datatype=tensor.datatype)
    )


def _payload(tensors: Sequence[tuple[Tensor, Values]]) -> NamedColumns | NamelessColumns:
    """One matrix of several columns is taken by position; everything else by name."""
    if len(tensors) == 1 and len(tensors[0][0].shape) == 2 and tensors[0][0].shape[1] != 1:
        tensor, values = tensors[0]
        width = tensor.shape[1]
        return NamelessColumns([values[column::width] for column in range(width)])
    wide = [
        Detail(f"inputs.{tensor.name}", f"shape {list(tensor.shape)} is not [n] or [n, 1].")
        for tensor, _ in tensors
        if tensor.shape[1:] not in ((), (1,))
    ]
    if wide:
        raise not_protocol(wide)
    return NamedColumns({tensor.name: values for tensor, values in tensors})


def _output_columns(raw: np.ndarray, bundle: Bundle) -> dict[str, np.ndarray | list[str]]:
    if not bundle.classes:
        return {"prediction": raw}
    labels = [bundle.classes[i] for i in bundle.labels(raw).tolist()]
    return dict(zip(bundle.output_names, (labels, *raw.T), strict=True))
