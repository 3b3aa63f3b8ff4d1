"""The Open Inference Protocol's tensors: their datatypes, and their values in JSON and in bytes.

Source: KServe, "Open Inference Protocol", and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from factory.errors import listing, suggest
from serve.inputs import MOST_COLUMNS, Values

_DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
}
_DATATYPES = (*_DTYPES, "BYTES")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a request.

    Attributes:
        name: Its name.
        shape: Its shape.
        datatype: Its datatype, as it was sent.
        read: Returns its values in row-major order, (n_elements,), once the datatype is known to be one; raises
            ValueError with what is wrong.
    """

    name: str
    shape: tuple[int, ...]
    datatype: str
    read: Callable[[], Values]


def checked(tensor: Tensor) -> Values:
    """Return a tensor's values in row-major order, (n_elements,).

    Raises:
        ValueError: with what is wrong with it.
    """
    if tensor.datatype not in _DATATYPES:
        told = tensor.datatype[:40]
        raise ValueError(
            f"datatype {told!r} is not known.{suggest(told, _DATATYPES)} Allowed: {listing(_DATATYPES, most=20)}"
        )
    if not 1 <= len(tensor.shape) <= 2 or any(length < 0 for length in tensor.shape):
        raise ValueError(f"shape {list(tensor.shape[:4])} is neither [n], [n, 1] nor [n, n_columns]")
    # One without rows may name any number of them in a few bytes.
    if len(tensor.shape) == 2 and tensor.shape[1] > MOST_COLUMNS:
        raise ValueError(f"shape {list(tensor.shape)} has more than {MOST_COLUMNS:,} columns")
    values = tensor.read()
    expected = math.prod(tensor.shape)
    if len(values) != expected:
        raise ValueError(f"has {len(values)} values; its shape {list(tensor.shape)} has {expected}")
    return values


def from_json(values: list[object], *, shape: tuple[int, ...], datatype: str) -> list[object]:
    """Return the values of a tensor in JSON, flat or by row; raises ValueError where they are none of it."""
    if len(shape) == 2 and values and isinstance(values[0], list):
        if not all(isinstance(row, list) and len(row) == shape[1] for row in values):
            raise ValueError(f"is not a list of rows of {shape[1]} values")
        values = [value for row in values if isinstance(row, list) for value in row]
    allowed: tuple[type, ...] = (str,) if datatype == "BYTES" else (bool,)
    if datatype in _DTYPES and datatype != "BOOL":
        allowed = (float, int) if datatype.startswith("FP") else (int,)
    # A null is no value of the protocol, but the only way to say in JSON that one is missing.
    wrong = [v for v in values if v is not None and type(v) not in allowed]
    if wrong:
        shown = repr(wrong[0])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ValueError(f"holds {shown}, which is not of its datatype {datatype}")
    return values


def from_binary(datatype: str, raw: bytes) -> Values:
    """Return the values of a binary tensor; raises ValueError where it is none."""
    if datatype == "BYTES":
        return _unpack(raw)
    dtype = _DTYPES[datatype]
    if len(raw) % dtype.itemsize:
        raise ValueError(f"has {len(raw)} bytes, which is no multiple of {dtype.itemsize}")
    return np.frombuffer(raw, dtype=dtype)


def _unpack(raw: bytes) -> list[object]:
    """Read BYTES elements: each a 4-byte little-endian length and its UTF-8 text."""
    values: list[object] = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("ends within the length of an element")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise ValueError("ends within an element")
        try:
            values.append(raw[at - length : at].decode())
        except UnicodeDecodeError as error:
            raise ValueError("holds an element that is not UTF-8") from error
    return values


def _pack(values: Sequence[str]) -> bytes:
    encoded = [value.encode() for value in values]
    return b"".join(part for text in encoded for part in (struct.pack("<I", len(text)), text))


def datatype_of(values: np.ndarray | Sequence[str]) -> str:
    """Return the datatype of an output."""
    return "FP64" if isinstance(values, np.ndarray) else "BYTES"


def to_binary(values: np.ndarray | Sequence[str]) -> bytes:
    """Return an output as a binary tensor."""
    return values.astype("<f8").tobytes() if isinstance(values, np.ndarray) else _pack(values)
