"""The OpenAPI document: what each route takes, every answer that it may give, and examples.

Bodies are read by the portal itself (all problems at once, JSON or YAML), so
the framework does not know them: a route says by :func:`takes` what it reads,
and the document is completed with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.portal.documents import ErrorBody

Responses = dict[int | str, dict[str, Any]]

DESCRIPTION = """\
Order model variants, follow how they are made, and decide what is served.

Every error has one shape, `{"error": {"code", "message", "hint", "details"}}`; where `details[].field` begins with a
slash it is a JSON pointer into the body. Lists come in pages: `next` is the `cursor` of the page that follows.
`X-Request-Id` of an answer finds a call in the portal's log.
"""
_REF = "#/components/schemas/{model}"
_PLACES = re.compile(r"\{[^}]+\}")
_REFUSALS = {
    400: "Something of the call is not valid; every problem is named with its place.",
    401: "No token was sent, or one that opens nothing.",
    403: "The token may not do this; the scope that is missing is named.",
    404: "It does not exist, or belongs to another team.",
    405: "Not for this method.",
    408: "The body did not arrive in time.",
    409: "Its state forbids this, or the idempotency key was used for something else.",
    412: "It was changed since it was read (`If-Match`).",
    413: "The body is too large.",
    415: "The body is of a content type that is not read.",
    422: "The data cannot be used.",
    429: "Too many calls; come again after `Retry-After` seconds.",
    500: "An unexpected fault; the message names the call in the log.",
    503: "The ledger, or what else is needed, does not answer; come again after `Retry-After` seconds.",
}
_RETRY_AFTER = {"description": "Seconds to wait.", "schema": {"type": "integer"}, "required": True}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "How to sign in.", "schema": {"type": "string"}, "required": True}},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
}
ALWAYS = (400, 401, 403, 429, 500, 503)
"""Refusals of every route that asks for a token."""
BODY = (408, 413, 415)
"""Further refusals of a route that reads a body."""

_bodies: dict[str, type[BaseModel]] = {ErrorBody.__name__: ErrorBody}
"""Models that the framework does not know."""


def refusals(*statuses: int, also: Responses | None = None) -> Responses:
    """Return the documentation of refusals, and of other answers, for a route or a router."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=ErrorBody.__name__)}}}
    return (also or {}) | {
        status: {"content": content, "description": _REFUSALS[status]}
        | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
        for status in statuses
    }


def takes(
    model: type[BaseModel],
    example: Mapping[str, object],
    *,
    anything: bool = False,
    optional: bool = False,
) -> dict[str, Any]:
    """Return what documents the body of a route.

    Args:
        model: Of the document.
        example: Of it.
        anything: Whether any other object is taken as well, and judged.
        optional: Whether the body may be left out.
    """
    _bodies[model.__name__] = model
    reference = {"$ref": _REF.format(model=model.__name__)}
    schema: dict[str, Any] = {"anyOf": [reference, {"type": "object"}]} if anything else reference
    content = {kind: {"schema": schema, "example": example} for kind in ("application/json", "application/yaml")}
    return {"requestBody": {"content": content, "required": not optional}}


def described(app: FastAPI) -> dict[str, Any]:
    """Return an application's OpenAPI document, made at the first call."""
    if app.openapi_schema is not None:
        return dict(app.openapi_schema)
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        summary="The JSON API of the model-variant factory.",
        description=DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    _complete(document)
    app.openapi_schema = document
    return document


def methods_at(app: FastAPI, path: str) -> list[str]:
    """Return the methods that are allowed on a path.

    >>> methods_at(FastAPI(openapi_url=None), "/nothing")
    []
    """
    found = set()
    for template, operations in described(app)["paths"].items():
        pattern = "[^/]+".join(re.escape(part) for part in _PLACES.split(template))
        if re.fullmatch(pattern, path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def _complete(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _, ours = models_json_schema([(model, "validation") for model in _bodies.values()], ref_template=_REF)
    for name, schema in ours["$defs"].items():
        schemas.setdefault(name, schema)
    for operations in document["paths"].values():
        for operation in operations.values():
            unexpected = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(unexpected):  # the framework's own; ours are 400
                del operation["responses"]["422"]
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out; there is no null in a URL or a header."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) != 1:
        return schema
    plain: dict[str, Any] = {name: value for name, value in schema.items() if name != "anyOf"} | options[0]
    return plain
