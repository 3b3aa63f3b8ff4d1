"""Uploads as they arrive: the body itself, or one file of a form, handed on in chunks and never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from factory.data.uploads import Incoming, Received, UploadStore, UploadTooLarge
from factory.errors import Detail, InvalidRequest
from serve.errors import BodyTooLarge
from serve.portal.bodies import check_length, chunks, length_of

IDLE_S = 60.0
"""For which the next part of an upload is waited for."""
AT_ONCE = 2**20
"""Bytes that are handed on at a time; servers read 64 KB, and each hand-over is a change of threads."""
MOST_FIELD = 1024
"""Bytes of a field of a form, beside its file."""
MOST_PARTS = 16
_AROUND = 64 * 1024
"""Bytes of a form around its file, at most."""


async def receive(
    request: Request, store: UploadStore, name: str | None, *, check: Callable[[dict[str, str]], object]
) -> tuple[Received, str]:
    """Receive an upload; return what was kept, and its name.

    Args:
        request: The call.
        store: Keeps it.
        name: As its sender calls it; a form tells it itself.
        check: Called with the other fields of its form; what it raises refuses the upload before it is kept.

    Raises:
        BodyTooLarge: it has more bytes than an upload may have.
        InvalidData: it is no table, or was cut off.
        InvalidRequest: the form is none, or holds no file, or the file has no name.
        StorageFault: it cannot be stored.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    is_form = kind == b"multipart/form-data"
    check_length(request, most=store.limit_bytes + (_AROUND if is_form else 0))
    try:
        if is_form:
            form = _Form(options.get(b"boundary", b""), store, name)
            try:
                await _pour(request, form.write)
                check(form.fields)
                received = await run_in_threadpool(form.keep)
            finally:
                await run_in_threadpool(form.close)
            return received, form.name
        name = file_name(name)
        check({})
        incoming = await run_in_threadpool(lambda: store.receive(name, n_bytes=length_of(request)))
        with incoming:
            await _pour(request, incoming.write)
            return await run_in_threadpool(incoming.keep), name
    except UploadTooLarge as error:
        raise BodyTooLarge(error.message, hint=error.hint, details=error.details) from error


async def _pour(request: Request, write: Callable[[bytes], object]) -> None:
    """Hand a body on, in pieces that are worth a change of threads."""
    held, n_held = [], 0
    async for chunk in chunks(request, patience_s=IDLE_S):
        held.append(chunk)
        n_held += len(chunk)
        if n_held >= AT_ONCE:
            await run_in_threadpool(write, b"".join(held))
            held, n_held = [], 0
    if held:
        await run_in_threadpool(write, b"".join(held))


class _Form:
    """A form that is being received: its file goes to the store as it comes, its fields are kept."""

    def __init__(self, boundary: bytes, store: UploadStore, name: str | None) -> None:
        self.name = name or ""
        self.fields: dict[str, str] = {}
        self._store = store
        self._incoming: Incoming | None = None
        self._header: list[bytes] = [b"", b""]
        self._disposition: dict[bytes, bytes] = {}
        self._field = ""
        self._value = bytearray()
        self._is_file = self._ended = False
        self._n_parts = 0
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._take_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._take_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": lambda data, start, end: self._take(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        if not boundary:
            raise _no_form("its content type names no boundary")
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except (FormParserError, ValueError) as error:
            raise _no_form(str(error)) from error

    def write(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _no_form(str(error)) from error

    def keep(self) -> Received:
        """Keep the file, once all has come."""
        if not self._ended:
            raise _no_form("it was cut off")
        if self._incoming is None:
            raise _no_form("it holds no file")
        return self._incoming.keep()

    def close(self) -> None:
        """Remove what was not kept."""
        if self._incoming is not None:
            self._incoming.__exit__(None, None, None)

    def _begin_part(self) -> None:
        self._n_parts += 1
        if self._n_parts > MOST_PARTS:
            raise _no_form(f"it has more than {MOST_PARTS} parts")
        self._disposition = {}

    def _take_header(self, part: int, data: bytes) -> None:
        self._header[part] += data

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(value)
        self._header = [b"", b""]

    def _begin_content(self) -> None:
        self._field = self._disposition.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in self._disposition
        self._value.clear()
        if not self._is_file:
            return
        if self._incoming is not None:
            raise _no_form("it holds more than one file")
        self.name = file_name(self.name or self._disposition[b"filename"].decode("utf-8", "replace"))
        self._incoming = self._store.receive(self.name)

    def _take(self, data: bytes) -> None:
        if self._is_file:
            assert self._incoming is not None
            self._incoming.write(data)
            return
        self._value += data
        if len(self._value) > MOST_FIELD:
            raise _no_form(f"the field {self._field[:80]!r} has more than {MOST_FIELD} bytes")

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._field] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def file_name(name: str | None) -> str:
    """Return the last part of a file's name, as its sender calls it.

    Raises:
        InvalidRequest: there is none, or none that can be shown.

    >>> file_name("C:\\\\data\\\\customers.csv"), file_name("/data/customers.csv")
    ('customers.csv', 'customers.csv')
    """
    last = PurePosixPath(PureWindowsPath((name or "").strip()).name).name
    if last and last.isprintable() and len(last) <= 255:
        return last
    raise InvalidRequest(
        "filename: the file needs a name of 1 to 255 characters that can be printed.",
        hint="Name it in the query: POST /api/v1/datasets?filename=customers.csv.",
        details=[Detail("filename", "is missing" if not last else "cannot be used")],
    )


def only_known(fields: dict[str, str], allowed: Iterable[str]) -> None:
    """Refuse fields of a form that mean nothing here.

    Raises:
        InvalidRequest: names them.
    """
    if unknown := sorted(set(fields) - set(allowed)):
        details = [Detail(field[:80], "There is no such field.") for field in unknown]
        raise InvalidRequest(
            f"The form has unknown fields: {', '.join(d.field for d in details)}.",
            hint=f"It has a file and {' and '.join(allowed)}.",
            details=details,
        )


def _no_form(problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"The form cannot be read: {problem}.",
        hint="Send multipart/form-data with one file, or the file itself as the body.",
        details=[Detail("", problem)],
    )
