"""Forms: what a browser sends, and the form of a request, drawn from the schema of its recipe.

A form holds strings by the dotted paths of the document's fields.  What is no
number where one is asked for goes into the document as it was typed: the API
says what is wrong with it, and the page shows that beside the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

import yaml
from fastapi import Request

from factory.errors import Detail, InvalidRequest
from factory.spec import VariantRequest
from factory.spec.texts import read_yaml
from serve.portal.bodies import BODY_S, check_length, chunks
from serve.portal.pages.words import Words

MOST_BYTES = 1_000_000
MOST_FIELDS = 5_000
"""A form of a table with many columns has a type for each of them."""
COLUMN_FIELDS = frozenset(
    {"dataset.target", "dataset.weights", "dataset.timestamp", "validation.column", "segments.by"}
)
COLUMNS_FIELDS = frozenset({"dataset.drop", "dataset.keep", "gates.slices"})
"""Fields that name columns of the data: one, or several."""
_UNITS = {"_s": "s", "_gb": "GB", "_ms": "ms", "_mb": "MB", "percent": "%"}
_TYPES = "dataset.types."

Kind = Literal["text", "number", "integer", "flag", "choice", "many", "column", "columns", "yaml"]
Form = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Field:
    """A field of a form.

    Attributes:
        path: Of its value in the document, with dots.
        title: As people read it.
        help: What it is for.
        kind: How it is drawn and read.
        default: What holds where it is left empty.
        choices: Of a choice, or of several.
        low: Least number.
        high: Greatest number.
        above: Whether it has to be more than the least number.
        below: Whether it has to be less than the greatest one.
        unit: Of its number.
        required: Whether it has to be filled.
    """

    path: str
    title: str
    help: str
    kind: Kind
    default: Any = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    unit: str = ""
    required: bool = False

    @property
    def id(self) -> str:
        """Of its element."""
        return "f-" + re.sub(r"[^a-z0-9]+", "-", self.path.lower())

    def bounds(self, words: Words) -> str:
        """Return for people which numbers are allowed; empty where all are."""
        if self.low is not None and self.high is not None and not self.above and not self.below:
            return words("{low} to {high}", low=words.number(self.low), high=words.number(self.high))
        told = []
        if self.low is not None:
            low = words.number(self.low)
            told.append(words("more than {low}", low=low) if self.above else words("at least {low}", low=low))
        if self.high is not None:
            high = words.number(self.high)
            told.append(words("less than {high}", high=high) if self.below else words("at most {high}", high=high))
        return ", ".join(told)


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return what a form has sent, value by value.

    Raises:
        BodyTooLarge, SlowRequest: it is larger than a form may be, or does not come.
        InvalidRequest: it is no form.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    check_length(request, most=MOST_BYTES)
    content = b""
    async for chunk in chunks(request, patience_s=BODY_S):
        content += chunk
        if len(content) > MOST_BYTES:
            raise _no_form(f"it has more than {MOST_BYTES:,} bytes")
    if content and media != "application/x-www-form-urlencoded":
        raise _no_form(f"its content type is {media[:80]!r}")
    try:
        pairs = parse_qsl(content.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except (ValueError, UnicodeError) as error:
        raise _no_form(str(error)) from error
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value.replace("\r\n", "\n"))
    request.state.form = form  # a page that tells what is wrong with it shows it again
    return form


def _no_form(problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"The form cannot be read: {problem}.", hint="Send it again from the page.", details=[Detail("", problem)]
    )


def one(form: Form, name: str) -> str:
    """Return a field's text without blanks around it; empty where there is none."""
    values = form.get(name, ())
    return values[-1].strip() if values else ""


# --- the form of a request -----------------------------------------------------


def request_fields(schema: Mapping[str, Any]) -> dict[str, Field]:
    """Return the fields of a request's form by path, from the JSON schema of a recipe."""
    found: dict[str, Field] = {}
    for name, part in schema["properties"].items():
        if name == "dataset":
            _add_parts(found, schema, "dataset", schema["$defs"]["UploadDataset"])
        elif name != "team":
            _add(found, schema, name, part, required=name in schema.get("required", ()))
    return found


def _add(found: dict[str, Field], schema: Mapping[str, Any], path: str, part: Any, *, required: bool) -> None:
    core, default = _core(schema, part)
    if path == "validation":
        _add_validation(found, schema, core, default)
    elif "properties" in core:
        _add_parts(found, schema, path, core, default=default)
    elif (field := _field(schema, path, part, core, default, required=required)) is not None:
        found[path] = field


def _add_parts(
    found: dict[str, Field],
    schema: Mapping[str, Any],
    path: str,
    core: Mapping[str, Any],
    *,
    default: Any = None,
) -> None:
    for name, part in core["properties"].items():
        given = default.get(name) if isinstance(default, Mapping) else None
        shown = {**part, "default": given} if given is not None else part
        _add(found, schema, f"{path}.{name}", shown, required=path == "dataset" and name in core.get("required", ()))


def _add_validation(found: dict[str, Field], schema: Mapping[str, Any], core: Mapping[str, Any], default: Any) -> None:
    """Add the kinds of validation, and the fields of each; a field of several kinds stands once."""
    kinds = core["discriminator"]["mapping"]
    usual = default if isinstance(default, Mapping) else {"kind": "auto"}
    found["validation.kind"] = Field("validation.kind", "Validation", "", "choice", usual["kind"], tuple(kinds))
    for kind, reference in kinds.items():
        for name, part in _resolved(schema, {"$ref": reference})["properties"].items():
            path = f"validation.{name}"
            if name != "kind" and path not in found:
                given = usual.get(name) if usual["kind"] == kind else part.get("default")
                _add(found, schema, path, {**part, "default": given}, required=False)


def _field(
    schema: Mapping[str, Any],
    path: str,
    part: Mapping[str, Any],
    core: Mapping[str, Any],
    default: Any,
    *,
    required: bool,
) -> Field | None:
    kind, choices = _kind(schema, path, core)
    if kind is None:
        return None
    low, high = core.get("minimum", core.get("exclusiveMinimum")), core.get("maximum", core.get("exclusiveMaximum"))
    unit = next((unit for suffix, unit in _UNITS.items() if path.endswith(suffix)), "")
    title = part.get("title") or core.get("title") or path.rpartition(".")[2].replace("_", " ").capitalize()
    told = part.get("description") or core.get("description") or ""
    above, below = "minimum" not in core and low is not None, "maximum" not in core and high is not None
    return Field(path, title, told, kind, default, choices, low, high, above, below, unit, required)


def _kind(schema: Mapping[str, Any], path: str, core: Mapping[str, Any]) -> tuple[Kind | None, tuple[str, ...]]:
    if path in COLUMN_FIELDS:
        return "column", ()
    if path in COLUMNS_FIELDS:
        return "columns", ()
    if path == "spaces":
        return "yaml", ()
    if "enum" in core:
        return "choice", tuple(str(one) for one in core["enum"])
    if core.get("type") == "array":
        items = _resolved(schema, core.get("items", {}))
        return ("many", tuple(items["enum"])) if "enum" in items else (None, ())
    kinds: dict[str, Kind] = {"integer": "integer", "number": "number", "boolean": "flag", "string": "text"}
    return (kinds.get(core.get("type", "")), ()) if "const" not in core else (None, ())


def _core(schema: Mapping[str, Any], part: Any) -> tuple[Mapping[str, Any], Any]:
    """Return a part without null and references, and its default."""
    core = part
    if "anyOf" in core:
        core = next(one for one in core["anyOf"] if one.get("type") != "null")
    core = _resolved(schema, core)
    return core, part.get("default", core.get("default"))


def _resolved(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return part


# --- from a form to a document and back ------------------------------------------


def document_of(form: Form, fields: Mapping[str, Field], words: Words) -> dict[str, Any]:
    """Return the document that a form says; what is left empty is not in it.

    Raises:
        InvalidRequest: numbers are written so that they may be others; or a search space is no YAML.
    """
    document: dict[str, Any] = {}
    unclear: list[Detail] = []
    for path, field in fields.items():
        given = [value for value in form.get(path, ()) if value.strip()]
        if field.kind == "flag":
            if given and given[-1] == "true":
                _put(document, path, True)
        elif field.kind in ("many", "columns"):
            if given and not (field.kind == "many" and set(given) == set(field.choices)):
                _put(document, path, given)
        elif given:
            text = given[-1].strip()
            if field.kind in ("number", "integer") and (problem := _unclear(text, field, words)):
                unclear.append(Detail(path, problem))
            _put(document, path, _value(text, field, words))
    if unclear:
        message = words("It is not clear which numbers are meant.")
        raise InvalidRequest(message, hint=unclear[0].message, details=unclear)
    types = {name.removeprefix(_TYPES): one(form, name) for name in form if name.startswith(_TYPES) and one(form, name)}
    if types:
        _put(document, "dataset.types", types)
    _drop_unused(document)
    return document


def _value(text: str, field: Field, words: Words) -> Any:
    if field.kind == "yaml":
        return _yaml(text)
    return number(text, words) if field.kind in ("number", "integer") else text


def number(text: str, words: Words | None = None) -> int | float | str:
    """Return the number that was typed; the text where it is none, or may be another one, for the API to refuse.

    Args:
        text: What was typed.
        words: The language in which it was typed; English if not given.

    >>> number("12"), number("12,5"), number("14,400"), number("soon"), number("nan")
    (12, 12.5, 14400, 'soon', 'nan')
    """
    found = (words or Words.of("en")).read(text)
    return text if found is None else found


def typed(value: object, words: Words) -> str:
    """Return a value as it stands in a field: :func:`number` reads what was a number."""
    return words.typed(value) if isinstance(value, float) else str(value)


def _unclear(text: str, field: Field, words: Words) -> str:
    """Return what is wrong with a number that may be another one; empty where it is clear, or no number at all."""
    if not re.fullmatch(r"[-+\d.,'\s]*\d[-+\d.,'\s]*", text):
        return ""
    found = words.read(text)
    if found is None:
        example = words.number(14400.5, 1)
        return words(
            "{text} may be read in several ways. Write it as {plain} or {example}.",
            text=text,
            plain=words.typed(14400.5),
            example=example,
        )
    if field.kind == "integer" and not isinstance(found, int):
        return words(
            "{text} is no whole number. Write it as {plain} or {example}.",
            text=text,
            plain=words.typed(14400),
            example=words.number(14400),
        )
    return ""


def _yaml(text: str) -> Any:
    try:
        return read_yaml(text.encode())
    except InvalidRequest as error:
        raise InvalidRequest(error.message, hint=error.hint, details=[Detail("spaces", error.message)]) from error


def _drop_unused(document: dict[str, Any]) -> None:
    """Leave out what is of another kind of validation, and parts of which only a default was sent."""
    validation = document.get("validation")
    if isinstance(validation, dict):
        used = {"cross_validation": {"folds"}, "holdout": {"share"}, "time": {"column", "gap"}, "group": {"column"}}
        kept = {"kind", *used.get(str(validation.get("kind")), set())}
        document["validation"] = {name: value for name, value in validation.items() if name in kept}
    dataset = document.get("dataset")
    if isinstance(dataset, dict) and "feature_service" not in dataset:
        dataset.pop("timestamp", None)
    deployment = document.get("deployment")
    if isinstance(deployment, dict) and deployment.get("as") != "canary":
        deployment.pop("percent", None)
    if "segments" in document and "by" not in document["segments"]:
        del document["segments"]


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *steps, last = path.split(".")
    place = document
    for step in steps:
        place = place.setdefault(step, {})
    place[last] = value


def form_of(document: Mapping[str, Any], words: Words) -> dict[str, list[str]]:
    """Return a document as the form that says it."""
    form: dict[str, list[str]] = {}
    _flatten(form, document, "", words)
    return form


def _flatten(form: dict[str, list[str]], value: Any, path: str, words: Words) -> None:
    if path == "spaces":
        if value:
            form[path] = [as_yaml(value)]
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _flatten(form, inner, f"{path}.{name}" if path else str(name), words)
    elif isinstance(value, list | tuple):
        form[path] = [str(one) for one in value]
    elif value is not None:
        form[path] = [str(value).lower() if isinstance(value, bool) else typed(value, words)]


def asked_yaml(request: VariantRequest) -> str:
    """Return what a request asks for as YAML, without what is usual."""
    return as_yaml(_pruned(request.model_dump(mode="json", by_alias=True, exclude_defaults=True)))


def _pruned(value: Any) -> Any:
    """Return a document without parts that say nothing."""
    if not isinstance(value, dict):
        return value
    kept = {name: _pruned(inner) for name, inner in value.items()}
    return {name: inner for name, inner in kept.items() if inner not in ({}, [], None)}


def as_yaml(document: object) -> str:
    """Return a document as YAML, in its own order."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=False).rstrip()


def likely_target(columns: Iterable[str]) -> str:
    """Return the column that is most likely to be predicted: by its name, else the last one.

    >>> likely_target(["age", "churned", "plan"]), likely_target(["a", "b"])
    ('churned', 'b')
    """
    names = list(columns)
    for pattern in (r"target|label|class|y|outcome", r".*(target|label|churn|outcome|class|price|sold|default).*"):
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return name
    return names[-1] if names else ""
