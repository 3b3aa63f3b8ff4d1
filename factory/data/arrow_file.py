"""What an Arrow IPC file says of its size, read from the headers of its messages.

pyarrow knows the number of rows only when it has read the record batches, and
to read a compressed batch is to unpack it: a file of some kilobytes may ask
for all the memory there is.  So the headers are read here, which are small.
They are FlatBuffers (``Message.fbs`` of the Arrow format, version 5); whatever
points outside of its header is refused.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"ARROW1"
_BEGIN = len(MAGIC) + 2
_CONTINUED = 0xFFFF_FFFF
_MOST_HEADER_BYTES = 16 * 2**20
"""A header has 16 bytes for each buffer; a million columns fit in."""
_DICTIONARY, _RECORDS = 2, 3
_BUFFERS, _COMPRESSION = 2, 3
_BUFFER_BYTES = 16
_AS_IT_IS = -1
"""Length before a buffer that was not worth compressing."""


@dataclass(frozen=True)
class ArrowSize:
    """What a file holds.

    Attributes:
        n_rows: In all record batches.
        unpacked_bytes: Of all batches and dictionaries when they are unpacked.
        largest_bytes: Memory that the largest compressed batch or dictionary takes when it is read; what is not
            compressed takes none, since the file can be mapped.
    """

    n_rows: int
    unpacked_bytes: int
    largest_bytes: int


def arrow_size(file: BinaryIO) -> ArrowSize:
    """Return how much an Arrow IPC file holds, from its headers; nothing is unpacked.

    Args:
        file: Can be sought in; its position changes.

    Raises:
        ValueError: it is no Arrow IPC file, or not a whole one.
    """
    n_bytes = file.seek(0, os.SEEK_END)
    end = n_bytes - len(MAGIC) - 4 - _footer_bytes(file, n_bytes)
    at, n_rows, unpacked, largest = _BEGIN, 0, 0, 0
    try:
        while at < end:
            marker, length = struct.unpack("<Ii", _read(file, at, 8))
            if marker != _CONTINUED:
                raise ValueError("it has no message where one should begin")
            if length == 0:
                break
            if not 0 < length <= min(_MOST_HEADER_BYTES, end - at - 8):
                raise ValueError(f"a message's header would have {length:,} bytes")
            message = _Table.root(_read(file, at + 8, length))
            kind, n_body, body_at = message.number("<B", 1), message.number("<q", 3), at + 8 + length
            if not 0 <= n_body <= end - body_at:
                raise ValueError(f"a message's body would have {n_body:,} bytes")
            if kind in (_DICTIONARY, _RECORDS):
                batch = message.table(2) if kind == _RECORDS else message.table(2).table(1)
                batch_bytes = _unpacked_bytes(file, batch, body_at, n_body)
                unpacked += batch_bytes
                largest = max(largest, batch_bytes if batch.has(_COMPRESSION) else 0)
                n_rows += _counted(batch.number("<q", 0)) if kind == _RECORDS else 0
            at = body_at + n_body
    except struct.error as error:
        raise ValueError(f"a message's header is damaged ({error})") from error
    return ArrowSize(n_rows, unpacked, largest)


def _footer_bytes(file: BinaryIO, n_bytes: int) -> int:
    """Return the length of the footer, which is the last thing in the file but for itself and the magic word."""
    most = n_bytes - _BEGIN - len(MAGIC) - 4
    if most < 0 or _read(file, 0, len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as one")
    length, magic = struct.unpack(f"<i{len(MAGIC)}s", _read(file, n_bytes - len(MAGIC) - 4, len(MAGIC) + 4))
    if magic != MAGIC:
        raise ValueError("its end is missing")
    if not 0 < length <= min(most, _MOST_HEADER_BYTES):
        raise ValueError(f"its footer would have {length:,} bytes")
    return int(length)


def _unpacked_bytes(file: BinaryIO, batch: _Table, body_at: int, n_body: int) -> int:
    """Return the bytes of a batch's buffers; a compressed one says before its content how long that becomes."""
    if not batch.has(_COMPRESSION):
        return n_body
    total = 0
    for offset, length in batch.structs("<qq", _BUFFERS, size=_BUFFER_BYTES):
        if length == 0:
            continue
        if not (offset >= 0 and length >= 8 and offset + length <= n_body):
            raise ValueError("a buffer lies outside of its message")
        (becomes,) = struct.unpack("<q", _read(file, body_at + offset, 8))
        total += length - 8 if becomes == _AS_IT_IS else _counted(becomes)
    return total


def _counted(number: int) -> int:
    if number < 0:
        raise ValueError(f"it counts {number:,} of something")
    return number


def _read(file: BinaryIO, at: int, n_bytes: int) -> bytes:
    file.seek(at)
    return file.read(n_bytes)


@dataclass(frozen=True)
class _Table:
    """A table of a FlatBuffer: what a field's number says lies at a position, or nothing (then it is 0)."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def has(self, field: int) -> bool:
        return self._position(field) is not None

    def number(self, form: str, field: int) -> int:
        position = self._position(field)
        return 0 if position is None else int(self._unpack(form, position))

    def table(self, field: int) -> _Table:
        position = self._position(field)
        if position is None:
            raise ValueError("a message's header lacks a part")
        return _Table(self.data, position + self._unpack("<I", position))

    def structs(self, form: str, field: int, *, size: int) -> list[tuple[int, ...]]:
        position = self._position(field)
        if position is None:
            return []
        vector = position + self._unpack("<I", position)
        count = self._unpack("<I", vector)
        if vector + 4 + count * size > len(self.data):
            raise ValueError("a message's header is shorter than it says")
        return [struct.unpack_from(form, self.data, vector + 4 + i * size) for i in range(count)]

    def _position(self, field: int) -> int | None:
        vtable = self.at - self._unpack("<i", self.at)
        slot = 4 + 2 * field
        offset = self._unpack("<H", vtable + slot) if slot < self._unpack("<H", vtable) else 0
        return self.at + offset if offset else None

    def _unpack(self, form: str, position: int) -> int:
        if position < 0:
            raise ValueError("a message's header points before itself")
        return int(struct.unpack_from(form, self.data, position)[0])
