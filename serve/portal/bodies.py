"""What is sent in the body of a call: read within a limit, understood, and checked against its model.

All that is wrong with a document is told at once, each problem with the JSON
pointer (RFC 6901) of its place.  A value has to be of the type that the model
declares: ``"5"`` is no number here, as the OpenAPI document says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from factory.errors import Detail, FactoryError, InvalidRequest, NotFound
from factory.parsing import parse
from factory.spec.texts import read_json, read_yaml
from serve.errors import BodyTooLarge, SlowRequest, UnsupportedMedia
from serve.portal.context import Portal, portal_of

M = TypeVar("M", bound=BaseModel)

BODY_S = 30.0
"""For which the rest of a body is waited for."""
_JSON, _YAML = "application/json", "application/yaml"
_KINDS = {
    "": _JSON,
    _JSON: _JSON,
    _YAML: _YAML,
    "application/x-yaml": _YAML,
    "text/yaml": _YAML,
    "text/x-yaml": _YAML,
}
_COERCED: dict[str, tuple[type, ...]] = {
    "int_type": (str, bool),
    "float_type": (str, bool),
    "bool_type": (str, int, float),
    "datetime_type": (int, float, bool),
}
"""Kinds of errors of a strict reading, with the types that a lenient one would have taken."""


@dataclass(frozen=True)
class Body:
    """A body as it came.

    Attributes:
        content: Its bytes.
        kind: Its language.
    """

    content: bytes
    kind: str

    def document(self) -> object:
        """Return what is in it.

        Raises:
            InvalidRequest: it cannot be read.
        """
        return read_yaml(self.content) if self.kind == _YAML else read_json(self.content)

    def fields(self) -> dict[str, Any]:
        """Return the object that is in it.

        Raises:
            InvalidRequest: it cannot be read, or is something else.
        """
        document = self.document()
        if isinstance(document, dict):
            return document
        raise InvalidRequest(
            "The body is no object: it holds fields, each as a name and a value.",
            hint="Send an object, as the OpenAPI document shows it.",
            details=[Detail("", "is no object")],
        )

    def read(self, model: type[M], *, what: str, optional: bool = False) -> M:
        """Return it as a document of a model.

        Args:
            model: Of the document.
            what: How messages call it.
            optional: Whether an empty body stands for a document without fields.

        Raises:
            InvalidRequest: with one detail for each problem.
        """
        document = {} if optional and not self.content.strip() else self.document()
        with pointing(document):
            coerced = strict_problems(model, document)
            try:
                found = parse(model, document, what=what)
            except InvalidRequest as refused:
                told = {detail.field for detail in refused.details}
                raise _several([*refused.details, *(d for d in coerced if d.field not in told)], what) from refused
            if coerced:
                raise _several(coerced, what)
        return found


async def _read(request: Request, portal: Annotated[Portal, Depends(portal_of)]) -> Body:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind = _JSON if media.startswith("application/") and media.endswith("+json") else _KINDS.get(media)
    if kind is None:
        raise UnsupportedMedia(
            f"The content type {media[:80]!r} is not read.",
            hint=f"Send {_JSON} or {_YAML}.",
            details=[Detail("content-type", f"received {media[:80]!r}")],
        )
    most = 1000 * portal.settings.max_body_kb
    check_length(request, most=most)
    parts, n_bytes = [], 0
    async for chunk in chunks(request, patience_s=BODY_S):
        n_bytes += len(chunk)
        if n_bytes > most:
            raise too_large(most)
        parts.append(chunk)
    return Body(b"".join(parts), kind)


Incoming = Annotated[Body, Depends(_read)]
"""The body of a call, for a handler."""


async def chunks(request: Request, *, patience_s: float) -> AsyncIterator[bytes]:
    """Yield a body as it comes.

    Raises:
        SlowRequest: no more of it came for so many seconds.
        InvalidRequest: its sender has gone.
    """
    stream = request.stream().__aiter__()
    try:
        while True:
            async with asyncio.timeout(patience_s):
                chunk = await anext(stream, None)
            if chunk is None:
                return
            yield chunk
    except TimeoutError as error:
        raise SlowRequest(
            f"No more of the body came within {patience_s:g} s.", hint="Send it without a pause."
        ) from error
    except ClientDisconnect as error:
        raise InvalidRequest("The sender has gone before the body was complete.", hint="Send it again.") from error


def check_length(request: Request, *, most: int) -> None:
    """Refuse a body before it is read: one that says that it is too large, or is compressed.

    Raises:
        BodyTooLarge: it has more than so many bytes.
        UnsupportedMedia: it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(
            f"The content encoding {encoding[:40]!r} is not read.",
            hint="Send the body uncompressed.",
            details=[Detail("content-encoding", f"received {encoding[:40]!r}")],
        )
    if (declared := length_of(request)) is not None and declared > most:
        raise too_large(most)


def length_of(request: Request) -> int | None:
    """Return how many bytes a body has, where its sender tells."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else None


def too_large(most: int) -> BodyTooLarge:
    """Return the error of a body that has more than so many bytes."""
    return BodyTooLarge(
        f"The body has more than {most / 1000:,.0f} KB.",
        hint="Send less, or ask an operator for a larger FACTORY_MAX_BODY_KB.",
        details=[Detail("", f"more than {most:,} bytes")],
    )


def strict_problems(model: type[BaseModel], document: object) -> list[Detail]:
    """Return where a document has a value of another type than its model declares, which would be converted."""
    try:
        model.model_validate_json(to_json(document), strict=True)
    except ValidationError as error:
        return [
            Detail(
                ".".join(_place(document, found["loc"], found["input"]) or ["(document)"]),
                f"{found['msg']}; received {found['input']!r}.",
            )
            for found in error.errors(include_url=False)
            if isinstance(found["input"], _COERCED.get(found["type"], ()))
        ]
    return []


def _place(node: Any, location: Sequence[int | str], value: object) -> list[str] | None:
    """Return the path to a value; a location also holds names of kinds, which pydantic puts in and no document has."""
    if not location:
        return [] if node == value else None
    step, rest = location[0], location[1:]
    inside = step in node if isinstance(node, Mapping) else isinstance(node, list) and step in range(len(node))
    if inside and (found := _place(node[step], rest, value)) is not None:
        return [str(step), *found]
    return _place(node, rest, value)


@contextmanager
def pointing(document: object) -> Iterator[None]:
    """Let errors about a document name its places by JSON pointers."""
    try:
        yield
    except (InvalidRequest, NotFound) as error:
        error.details = tuple(Detail(pointer(d.field, document), d.message) for d in error.details)
        raise


@contextmanager
def about(wish: BaseModel) -> Iterator[None]:
    """Let errors about fields of a document that was read name them by JSON pointers; other details stay."""
    try:
        yield
    except FactoryError as error:
        fields = type(wish).model_fields
        error.details = tuple(Detail(f"/{d.field}" if d.field in fields else d.field, d.message) for d in error.details)
        raise


def pointer(field: str, document: object) -> str:
    """Return the JSON pointer of a dotted path; names of a document may hold dots themselves.

    >>> pointer("dataset.types.a.b", {"dataset": {"types": {"a.b": "text"}}})
    '/dataset/types/a.b'
    >>> pointer("families.svm", {"families": ["linear", "svm"]}), pointer("budget.time_s", {})
    ('/families/1', '/budget/time_s')
    >>> pointer("(document)", {})
    ''
    """
    if field == "(document)":
        return ""
    parts = field.split(".")
    node: Any = document
    steps = []
    while parts:
        n_taken, step, node = _step(parts, node)
        steps.append(step.replace("~", "~0").replace("/", "~1"))
        parts = parts[n_taken:]
    return "/" + "/".join(steps)


def _step(parts: list[str], node: Any) -> tuple[int, str, Any]:
    """Return how many parts of a path name the next place, its name, and what is there."""
    if isinstance(node, Mapping):
        for n_taken in range(len(parts), 0, -1):
            if (name := ".".join(parts[:n_taken])) in node:
                return n_taken, name, node[name]
    if isinstance(node, list):
        name = ".".join(parts)
        if name in node:
            return len(parts), str(node.index(name)), name
        if parts[0].isdigit() and int(parts[0]) < len(node):
            return 1, parts[0], node[int(parts[0])]
    return 1, parts[0], None


def _several(details: Sequence[Detail], what: str) -> InvalidRequest:
    return InvalidRequest(
        f"The {what} is not valid: " + " ".join(f"{d.field}: {d.message}" for d in details),
        hint=f"Mend the named field{'s' if len(details) > 1 else ''} and try again.",
        details=details,
    )
