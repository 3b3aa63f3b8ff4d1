"""Check a document against its model, and say what is wrong with it in sentences.

A document is checked as a whole: its problems are reported at once, the first
twenty of them each with its path, the value received, what is allowed and the
nearest name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from factory.errors import MOST_DETAILS, Detail, InvalidRequest, first_of, listing, suggest

M = TypeVar("M", bound=BaseModel)
_MAPPING = "This holds fields, each as 'name: value'"


def parse(model: type[M], document: object, *, what: str) -> M:
    """Check a document and return it, or report its problems at once.

    Raises:
        InvalidRequest: with one detail for each of the first :data:`~factory.errors.MOST_DETAILS` problems, and with
            how many more there are: a large body may have a million.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        told = [_explain(model, problem) for problem in problems[:MOST_DETAILS]]
        details = first_of(told, n=len(problems))
        raise InvalidRequest(
            f"The {what} is not valid: " + " ".join(f"{d.field}: {d.message}" for d in details),
            hint=f"Mend the named field{'s' if len(details) > 1 else ''} and try again.",
            details=details,
        ) from error


def _explain(model: type[BaseModel], error: Any) -> Detail:
    """Turn pydantic's error into a sentence with the value and what is allowed."""
    tags = {"path", "entities", "upload", "auto", "cross_validation", "holdout", "time", "group"}
    location = [
        str(p)
        for i, p in enumerate(error["loc"])
        if not (i and p in tags and error["loc"][i - 1] in ("dataset", "validation"))
    ]
    path = ".".join(location) or "(document)"
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, tuple(location[:-1]))
        return Detail(
            path, f"There is no such field.{suggest(location[-1], fields)} Allowed: {listing(fields, most=40)}."
        )
    if error["type"] == "missing":
        return Detail(path, "This field is required.")
    shown = repr(error["input"])
    message = _MAPPING if error["type"] in ("model_type", "dict_type") else error["msg"].removeprefix("Value error, ")
    return Detail(path, f"{message}; received {shown if len(shown) <= 80 else shown[:77] + '...'}.")


@lru_cache(100)
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _fields_at(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    """Field names of the (possibly nested) model that an error's path leads to."""
    schema = _schema(model)
    definitions, nodes = schema.get("$defs", {}), [schema]
    for step in [*location, None]:
        following: list[dict[str, Any]] = []
        while nodes:
            node = nodes.pop()
            if "$ref" in node:
                nodes.append(definitions[node["$ref"].rsplit("/", 1)[-1]])
            elif options := node.get("anyOf") or node.get("oneOf"):
                nodes.extend(options)
            elif step is None or step in node.get("properties", {}):
                following.append(node if step is None else node["properties"][step])
        nodes = following
    return sorted({name for node in nodes for name in node.get("properties", {})})
