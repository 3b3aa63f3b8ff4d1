"""JSON and YAML that came from anywhere become plain values, or one error that says what is wrong.

What is returned has only what every database can keep and every level can
handle: objects with names as text, lists, text, finite numbers of 64 bits,
booleans and null, not nested deeply.  YAML may hold no anchors and no aliases,
by which few bytes become many, and nothing that YAML could execute.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from factory.errors import Detail, InvalidRequest

MOST_DEPTH = 24
"""A request is six levels deep."""
MOST_VALUES = 50_000
YAML_KB = 256
"""YAML is read at a few MB a second."""
_WHOLE = 2**63


def read_json(text: bytes, *, what: str = "The body") -> object:
    """Return the value of a JSON text; an error names it as ``what``.

    Raises:
        InvalidRequest: it is none, by RFC 8259 as of I-JSON (RFC 7493): names are not repeated, numbers are finite.
    """
    try:
        return checked(json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant))
    except UnicodeDecodeError as error:
        raise _refused(what, "JSON", f"byte {error.start} is not of UTF-8") from error
    except RecursionError as error:
        raise _refused(what, "JSON", f"it is nested more than {MOST_DEPTH} levels deep") from error
    except ValueError as error:
        raise _refused(what, "JSON", str(error)) from error


def read_yaml(text: bytes, *, what: str = "The body") -> object:
    """Return the value of one YAML document; an error names it as ``what``.

    Raises:
        InvalidRequest: it is none, is larger than it may be, or uses anchors, tags or names that are no text.
    """
    if len(text) > 1000 * YAML_KB:
        raise _refused(what, "YAML", f"it has more than {YAML_KB} KB; send large documents as JSON")
    try:
        decoded = text.decode("utf-8")
        _check_events(decoded)
        loader = _Loader(decoded)
        try:
            return checked(loader.get_single_data())
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise _refused(what, "YAML", f"byte {error.start} is not of UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _refused(what, "YAML", " ".join(str(error).split())[:300]) from error


def checked(value: object) -> object:
    """Return a value that is fit for every level below.

    Raises:
        ValueError: it is nested too deeply, has too many values, or one that cannot be stored.
    """
    left: list[tuple[object, int]] = [(value, 0)]
    n_values = 0
    while left:
        node, depth = left.pop()
        n_values += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep")
        if n_values > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        if isinstance(node, Mapping):
            left += ((part, depth + 1) for pair in node.items() for part in pair)
        elif isinstance(node, list):
            left += ((part, depth + 1) for part in node)
        else:
            _check_scalar(node)
    return value


def _check_scalar(value: object) -> None:
    if isinstance(value, str):
        if "\0" in value or not _is_whole(value):
            raise ValueError(f"the text {value[:40]!r} holds a character that cannot be stored")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int) and not -_WHOLE <= value < _WHOLE:
        raise ValueError("a whole number has more than 64 bits")


def _is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can write and nothing can store."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, with libyaml where it is there; names are text, each stands once, and dates stay text as in JSON."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    pairs = [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
    for name, _ in pairs:
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} is no text; write it in quotes")
    return _object(pairs)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
for _kind in ("timestamp", "value", "merge"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar)
for _kind in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_undefined)


def _check_events(text: str) -> None:
    """Refuse what can become large or strange before anything is made of it."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("it uses anchors or aliases; write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep")


def _refused(what: str, language: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what} is not {language} as it is read here: {problem}.",
        hint="Write one JSON object, or one YAML document without anchors and tags (to the API, as application/yaml).",
        details=[Detail("", problem)],
    )
