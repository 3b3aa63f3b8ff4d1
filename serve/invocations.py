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

from factory.errors import Detail, InvalidData, InvalidRequest, first_of, listing, suggest
from factory.variants.bundle import Bundle
from serve.errors import UnsupportedMedia
from serve.inputs import (
    EntityRows,
    NamedColumns,
    NamelessColumns,
    Payload,
    check_rows,
    columns_of_records,
    columns_of_rows,
    repeated_in,
    require_size,
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


def parse(body: bytes, content_type: str, *, max_rows: int) -> Payload:
    """Read the body of an ``/invocations`` request.

    Args:
        body: As it was sent.
        content_type: Of the body.
        max_rows: Rows at most; looked at before columns are made of them.

    Raises:
        UnsupportedMedia: it is neither JSON nor CSV.
        BodyTooLarge: it has too many rows or columns.
        InvalidRequest: it is not what its content type says, or of no known kind.
        InvalidData: it is CSV that has no table.
    """
    kind = media_type(content_type)
    if kind == CSV_TYPE:
        return _csv(body, max_rows)
    if kind not in JSON_TYPES:
        raise UnsupportedMedia(
            f"The content type {kind!r} is not read.",
            hint="Send application/json or text/csv.",
            details=[Detail("content-type", f"received {kind!r}; allowed: application/json, text/csv")],
        )
    return payload_of(read_json(body), max_rows=max_rows)


def payload_of(document: dict[str, object], *, max_rows: int) -> Payload:
    """Return the rows of a JSON document of one of the kinds.

    Raises:
        InvalidRequest: it is of none of them.
        BodyTooLarge: it has too many rows or columns.
    """
    if not isinstance(params := document.pop("params", None), dict | None):
        raise shape_error("params", "an object", params)
    if len(document) != 1 or next(iter(document)) not in _KINDS:
        raise _unknown_kind(list(document))
    name, content = next(iter(document.items()))
    payload = _KINDS[name](content, name, max_rows)
    check_rows(payload, max_rows=max_rows)
    return payload


def _unknown_kind(names: list[str]) -> InvalidRequest:
    known = listing(_KINDS)
    unknown = [name for name in names if name not in _KINDS]
    near = "".join(suggest(name, _KINDS) for name in unknown[:3])
    received = listing(map(repr, names)) if names else "none"
    return InvalidRequest(
        f"The body needs exactly one of: {known}. Received: {received}.{near}",
        hint='For example {"dataframe_records": [{"age": 31, "country": "Peru"}]}.',
        details=first_of([Detail(name, f"There is no such kind of body.{near}") for name in unknown])
        or [Detail("body", f"needs exactly one of: {known}")],
    )


def _records(content: object, where: str, max_rows: int) -> NamedColumns:
    if not isinstance(content, list):
        raise shape_error(where, "a list of objects", content)
    return columns_of_records(content, where=where, max_rows=max_rows)


def _split(content: object, where: str, max_rows: int) -> Payload:
    if not isinstance(content, dict):
        raise shape_error(where, "an object with 'columns' and 'data'", content)
    if unknown := [key for key in content if key not in ("columns", "data", "index")]:
        allowed = "There is no such field. Allowed: columns, data, index."
        details = [Detail(f"{where}.{key}", allowed) for key in unknown]
        raise InvalidRequest(
            f"{where} has unknown fields: {listing(unknown)}.",
            hint="Send 'columns' and 'data'.",
            details=first_of(details),
        )
    data, names = content.get("data"), content.get("columns")
    if not isinstance(data, list):
        raise shape_error(f"{where}.data", "a list of rows", data)
    columns = columns_of_rows(data, where=f"{where}.data", max_rows=max_rows)
    if names is None:
        return NamelessColumns(columns)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise shape_error(f"{where}.columns", "a list of column names", names)
    require_size(len(data), len(names), max_rows=max_rows)
    if repeated := repeated_in(names):
        raise _repeated(f"{where}.columns", repeated)
    if data and len(names) != len(columns):
        message = f"{len(names)} names stand over rows of {len(columns)} values."
        raise InvalidRequest(
            f"{where}: {message}",
            hint="Give every row a value for each of the columns.",
            details=[Detail(f"{where}.columns", message)],
        )
    return NamedColumns(dict(zip(names, columns, strict=True)) if data else dict.fromkeys(names, ()))


def _instances(content: object, where: str, max_rows: int) -> Payload:
    if isinstance(content, dict):
        return _named(content, where, max_rows)
    if not isinstance(content, list):
        raise shape_error(where, "a list of objects or of rows", content)
    if content and isinstance(content[0], list):
        return NamelessColumns(columns_of_rows(content, where=where, max_rows=max_rows))
    return columns_of_records(content, where=where, max_rows=max_rows)


def _named(content: dict[str, object], where: str, max_rows: int) -> NamedColumns:
    """Columns by name; values that are all single ones make one row."""
    require_size(0, len(content), max_rows=max_rows)
    lone = [name for name, values in content.items() if not isinstance(values, list)]
    if len(lone) == len(content):
        return NamedColumns({name: (value,) for name, value in content.items()})
    if lone:
        raise shape_error(f"{where}.{lone[0]}", "a list of values, as for the other columns", content[lone[0]])
    return NamedColumns(content)  # type: ignore[arg-type]


def _entities(content: object, where: str, max_rows: int) -> EntityRows:
    if not isinstance(content, list):
        raise shape_error(where, "a list of objects", content)
    require_size(len(content), max_rows=max_rows)
    for i, row in enumerate(content):
        if not isinstance(row, dict) or not row:
            raise shape_error(f"{where}[{i}]", "an object with the entity's keys", row)
        require_size(len(content), len(row), max_rows=max_rows)
    return EntityRows(content)


_KINDS: dict[str, Callable[[object, str, int], Payload]] = {
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
        details=first_of([Detail(field, f"{name!r} stands more than once") for name in names]),
    )


def _csv(body: bytes, max_rows: int) -> NamedColumns:
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
    require_size(len(rows), len(header), max_rows=max_rows)
    if repeated := repeated_in(header):
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
