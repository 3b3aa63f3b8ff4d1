"""``GET /openapi.json``: what the predictor answers, as an OpenAPI 3.1 document made of its routes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

from factory.families._terms import Link
from factory.variants.attribution import Scale
from serve.errors import STATUS
from serve.explanations import Wish
from serve.outcomes import ToldOutcomes
from serve.release import release

Json = dict[str, Any]

_ANY_ROW: Json = {"type": "object", "description": "A value for each column; null is a missing one."}
_ROW_LIST: Json = {"type": "array", "items": _ANY_ROW}
_INVOCATIONS: Json = {
    "type": "object",
    "description": "Exactly one of the kinds of rows.",
    "properties": {
        "dataframe_records": _ROW_LIST,
        "dataframe_split": {
            "type": "object",
            "required": ["data"],
            "properties": {
                "columns": {"type": ["array", "null"], "items": {"type": "string"}},
                "data": {"type": "array", "items": {"type": "array"}},
                "index": {},
            },
            "additionalProperties": False,
        },
        "instances": {"type": ["array", "object"], "description": "Rows as objects, or in the order of the columns."},
        "inputs": {"type": ["array", "object"], "description": "Columns, each with a value for each row."},
        "entities": {"type": "array", "items": {"type": "object", "minProperties": 1}},
        "params": {"type": ["object", "null"], "description": "Accepted, and without effect."},
    },
    "additionalProperties": False,
    "minProperties": 1,
    "example": {"dataframe_records": [{"age": 41, "country": "Peru"}]},
}
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "datatype": {
            "enum": ["BOOL", "BYTES"]
            + [f"{kind}{8 * n}" for kind in ("UINT", "INT") for n in (1, 2, 4, 8)]
            + [f"FP{8 * n}" for n in (2, 4, 8)]
        },
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
_INFER: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {
            "type": ["array", "null"],
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
        "parameters": {"type": "object"},
    },
}
_PREDICTIONS: Json = {
    "type": "object",
    "required": ["predictions"],
    "properties": {"predictions": {"type": "array", "items": {"type": "object", "required": ["prediction"]}}},
}
_COUNTEREXAMPLES: Json = {
    "type": "object",
    "required": ["found", "tried", "complete"],
    "properties": {
        "found": {"type": "array", "items": {"type": "object", "required": ["changes", "distance", "prediction"]}},
        "tried": {"type": "integer"},
        "complete": {"type": "boolean", "description": "Whether nothing was left out: there are no nearer ones."},
        "message": {"type": "string", "description": "Where none was found."},
    },
}
_ANSWERS: dict[str, Json] = {
    "invoke": _PREDICTIONS,
    "explained": {
        "type": "object",
        "required": ["base", "walks", "scale", "link", "method", "baseline", "members", "explanations"],
        "properties": {
            "base": {"type": "object"},
            "walks": {"type": "integer", "description": "Of each row; 0 where all is exact."},
            "scale": {"enum": list(get_args(Scale))},
            "link": {"enum": list(get_args(Link)), "description": "What makes predictions of the explained sums."},
            "method": {
                "type": "object",
                "additionalProperties": {"enum": ["tree_shap", "linear", "constant", "exact", "sampled", "mixed"]},
            },
            "baseline": {"const": "interventional"},
            "members": {"type": "array", "items": {"type": "object", "required": ["family", "weight", "method"]}},
            "explanations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["prediction", "contributions", "errors"],
                    "properties": {"counterexamples": _COUNTEREXAMPLES},
                },
            },
        },
    },
    "infer": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
    "outcomes": {"type": "object", "required": ["written"], "properties": {"written": {"type": "integer"}}},
    "model": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {"name": {"type": "string"}, "versions": {"type": "array", "items": {"type": "string"}}},
    },
    "model_ready": {"type": "object", "required": ["name", "ready"], "properties": {"ready": {"const": True}}},
    "server": {"type": "object", "required": ["name", "version", "extensions"]},
    "alive": {"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}},
    "live": {"type": "object", "required": ["live"]},
    "ready": {"type": "object", "required": ["ready"]},
    "openapi": {"type": "object", "required": ["openapi", "paths"]},
}
"""Of each handler that answers JSON."""
_EXPLAIN = _INVOCATIONS | {"properties": _INVOCATIONS["properties"] | Wish.model_json_schema()["properties"]}
_BODIES = {"invoke": _INVOCATIONS, "explained": _EXPLAIN, "infer": _INFER}
_OPEN = frozenset({"server", "alive", "live", "ready", "openapi"})
"""Handlers that ask for no token."""
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "hint", "details"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "hint": {"type": "string"},
                "details": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["field", "message"],
                        "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                    },
                },
            },
        }
    },
}
_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": r"^[a-z][a-z0-9_-]*(\.[a-z0-9_-]+){1,2}(@(champion|challenger))?$"},
    "description": "`team.name`, or `team.name@challenger`.",
}
_VERSION: Json = {"name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}


def described(routes: Sequence[tuple[str, tuple[str, ...], Any]]) -> Json:
    """Return the document of routes.

    Args:
        routes: Method, path in parts, and handler of each; a handler's docstring tells what it does.
    """
    paths: dict[str, Json] = {}
    for method, parts, handler in routes:
        paths.setdefault("/" + "/".join(parts), {})[method.lower()] = _operation(parts, handler)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "model-variant-factory predictor",
            "version": release(),
            "description": "Predictions of variants. `/v2` is KServe's Open Inference Protocol.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR, "Outcomes": _outcomes()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(parts: tuple[str, ...], handler: Any) -> Json:
    name = handler.__name__
    protocol = "v1" if parts[:1] == ("v1",) else ""
    versioned = "of_version" if "{version}" in parts else ""
    operation: Json = {
        "operationId": "_".join(filter(None, (name, versioned, protocol))),
        "summary": (handler.__doc__ or "").partition("\n")[0].rpartition("``: ")[2],
        "parameters": [p for p in (_NAME, _VERSION) if any(f"{{{p['name']}}}" in part for part in parts)],
        "responses": {"200": _answer(name), "default": _error()},
    }
    if name not in _OPEN:
        operation["security"] = [{"token": []}]
    if name in _BODIES or name == "outcomes":
        operation["requestBody"] = {"required": True, "content": _content(name)}
    return operation


def _content(name: str) -> Json:
    if name == "outcomes":
        return {"application/json": {"schema": {"$ref": "#/components/schemas/Outcomes"}}}
    content: Json = {"application/json": {"schema": _BODIES[name]}}
    if name != "infer":
        content["text/csv"] = {"schema": {"type": "string"}, "example": "age,country\n41,Peru\n"}
    return content


def _answer(name: str) -> Json:
    if name == "metrics":
        return {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    content: Json = {"application/json": {"schema": _ANSWERS[name]}}
    if name == "infer":
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"description": "The answer.", "content": content}


@cache
def _error() -> Json:
    statuses = ", ".join(str(status) for status in sorted(set(STATUS.values())))
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": f"What went wrong: {statuses}.", "content": {"application/json": {"schema": schema}}}


def _outcomes() -> Json:
    return ToldOutcomes.model_json_schema(ref_template="#/components/schemas/Outcomes/$defs/{model}")
