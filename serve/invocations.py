"""MLflow's ``/invocations``: its payload kinds and the form of its answer.

Reads what ``mlflow models serve`` reads (``dataframe_split``,
``dataframe_records``, ``instances``, ``inputs``, CSV), and ``entities``, whose
features come from the online store.  ``params`` is accepted, since MLflow's
clients send it; variants have none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import numpy as np
from pydantic_core import from_json, to_json

from factory.errors import Detail, InvalidData, InvalidRequest, listing, suggest
from factory.variants.bundle import Bundle
from serve.errors import UnsupportedMedia
from serve.inputs import (
    EntityRows,
    NamedColumns,
    NamelessColumns,
    Payload,
    columns_of_records,
    columns_of_rows,
    shape_error,
)

JSON_TYPES = frozenset({"application/json", ""})
CSV_TYPE = "text/csv"


def read_json(body: bytes) -> dict[str, object]:
    """Read a JSON object by the letter of RFC 8259, which has no NaN and no Infinity.

    Raises:
        InvalidRequest: with the position of what is wrong.
    """
    try:
        document = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        lost = b"NaN" in body or b"Infinity" in body
        raise InvalidRequest(
            f"The body is not JSON: {error}.",
            hint="JSON has no NaN or Infinity; send null where a value is missing." if lost else "Send a JSON object.",
            details=[Detail("body", str(error))],
        ) from error
    if not isinstance(document, dict):
        raise shape_error("body", "an object", document)
    return document


def media_type(content_type: str) -> str:
    """Return a content type's media type in lower case.

    Raises:
        UnsupportedMedia: the text is in another encoding than UTF-8.
    """
    kind, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMedia(f"The charset {value!r} is not read.", hint="Send the body in UTF-8.")
    return kind.strip().lower()


def parse(body: bytes, content_type: str) -> Payload:
    """Read the body of an ``/invocations`` request.

    Raises:
        UnsupportedMedia: it is neither JSON nor CSV.
        InvalidRequest: it is not what its content type says, or of no known kind.
        InvalidData: it is CSV that has no table.
    """
    kind = media_type(content_type)
    if kind == CSV_TYPE:
        return _csv(body)
    if kind not in JSON_TYPES:
        raise UnsupportedMedia(
            f"The content type {kind!r} is not read.",
            hint="Send application/json or text/csv.",
            details=[Detail("content-type", f"received {kind!r}; allowed: application/json, text/csv")],
        )
    return payload_of(read_json(body))


def payload_of(document: dict[str, object]) -> Payload:
    """Return the rows of a JSON document of one of the kinds.

    Raises:
        InvalidRequest: it is of none of them.
    """
    if not isinstance(params := document.pop("params", None), dict | None):
        raise shape_error("params", "an object", params)
    if len(document) != 1 or next(iter(document)) not in _KINDS:
        raise _unknown_kind(list(document))
    name, content = next(iter(document.items()))
    return _KINDS[name](content, name)


def _unknown_kind(names: list[str]) -> InvalidRequest:
    known = listing(_KINDS)
    near = "".join(suggest(name, _KINDS) for name in names if name not in _KINDS)
    received = ", ".join(map(repr, names)) or "none"
    return InvalidRequest(
        f"The body needs exactly one of: {known}. Received: {received}.{near}",
        hint='For example {"dataframe_records": [{"age": 31, "country": "Peru"}]}.',
        details=[Detail(name, f"There is no such kind of body.{near}") for name in names if name not in _KINDS]
        or [Detail("body", f"needs exactly one of: {known}")],
    )


def _records(content: object, where: str) -> NamedColumns:
    if not isinstance(content, list):
        raise shape_error(where, "a list of objects", content)
    return columns_of_records(content, where=where)


def _split(content: object, where: str) -> Payload:
    if not isinstance(content, dict):
        raise shape_error(where, "an object with 'columns' and 'data'", content)
    if unknown := [key for key in content if key not in ("columns", "data", "index")]:
        allowed = "There is no such field. Allowed: columns, data, index."
        details = [Detail(f"{where}.{key}", allowed) for key in unknown]
        raise InvalidRequest(
            f"{where} has unknown fields: {listing(unknown)}.", hint="Send 'columns' and 'data'.", details=details
        )
    data, names = content.get("data"), content.get("columns")
    if not isinstance(data, list):
        raise shape_error(f"{where}.data", "a list of rows", data)
    columns = columns_of_rows(data, where=f"{where}.data")
    if names is None:
        return NamelessColumns(columns)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise shape_error(f"{where}.columns", "a list of column names", names)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise _repeated(f"{where}.columns", repeated)
    if data and len(names) != len(columns):
        message = f"{len(names)} names stand over rows of {len(columns)} values."
        raise InvalidRequest(
            f"{where}: {message}",
            hint="Give every row a value for each of the columns.",
            details=[Detail(f"{where}.columns", message)],
        )
    return NamedColumns(dict(zip(names, columns, strict=True)) if data else dict.fromkeys(names, ()))


def _instances(content: object, where: str) -> Payload:
    if isinstance(content, dict):
        return _named(content, where)
    if not isinstance(content, list):
        raise shape_error(where, "a list of objects or of rows", content)
    if content and isinstance(content[0], list):
        return NamelessColumns(columns_of_rows(content, where=where))
    return columns_of_records(content, where=where)


def _named(content: dict[str, object], where: str) -> NamedColumns:
    """Columns by name; values that are all single ones make one row."""
    lone = [name for name, values in content.items() if not isinstance(values, list)]
    if len(lone) == len(content):
        return NamedColumns({name: (value,) for name, value in content.items()})
    if lone:
        raise shape_error(f"{where}.{lone[0]}", "a list of values, as for the other columns", content[lone[0]])
    return NamedColumns(content)  # type: ignore[arg-type]


def _entities(content: object, where: str) -> EntityRows:
    if not isinstance(content, list):
        raise shape_error(where, "a list of objects", content)
    for i, row in enumerate(content):
        if not isinstance(row, dict) or not row:
            raise shape_error(f"{where}[{i}]", "an object with the entity's keys", row)
    return EntityRows(content)


_KINDS: dict[str, Callable[[object, str], Payload]] = {
    "dataframe_records": _records,
    "dataframe_split": _split,
    "instances": _instances,
    "inputs": _instances,
    "entities": _entities,
}


def _repeated(field: str, names: list[str]) -> InvalidRequest:
    return InvalidRequest(
        f"Column names stand more than once: {listing(names)}.",
        hint="Send each column once.",
        details=[Detail(field, f"{name!r} stands more than once") for name in names],
    )


def _csv(body: bytes) -> NamedColumns:
    """Read CSV with a header line. Cells stay text: the bundle reads them as the training data was read."""
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig")), strict=True))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The CSV is not in UTF-8: {error}.", hint="Send the body in UTF-8.") from error
    except csv.Error as error:
        raise _not_csv(f"The CSV cannot be read: {error}.") from error
    if not lines or not lines[0]:
        raise _not_csv("The CSV has no header line.")
    header, rows = lines[0], [line for line in lines[1:] if line]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise _repeated("body", repeated)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise _not_csv(f"Row {number} of the CSV has {len(row)} cells; the header has {len(header)}.")
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    return NamedColumns(dict(zip(header, columns, strict=True)))


def _not_csv(message: str) -> InvalidData:
    hint = "Send a header line with the column names, then one line with as many cells for each row."
    return InvalidData(message, hint=hint, details=[Detail("body", message)])


def format_predictions(raw: np.ndarray, bundle: Bundle) -> bytes:
    """Return MLflow's answer, ``{"predictions": [{...}, ...]}``, one object for each row.

    Args:
        raw: What :meth:`~factory.variants.bundle.Bundle.predict_raw` returned.
        bundle: The bundle that predicted.
    """
    return to_json({"predictions": prediction_rows(raw, bundle)}, inf_nan_mode="null")


def prediction_rows(raw: np.ndarray, bundle: Bundle) -> list[dict[str, object]]:
    """Return what stands in that answer for each row of :meth:`~factory.variants.bundle.Bundle.predict_raw`."""
    if not bundle.classes:
        return [{"prediction": value} for value in raw.tolist()]
    names, classes = bundle.output_names, bundle.classes
    best = bundle.labels(raw).tolist()
    return [
        dict(zip(names, (classes[label], *row), strict=True)) for label, row in zip(best, raw.tolist(), strict=True)
    ]
