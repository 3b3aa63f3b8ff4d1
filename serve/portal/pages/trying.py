"""Trying a version: a form drawn from its signature, the prediction, and why it is what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.data.inspection import Preview
from factory.ledger import RequestRecord
from factory.operate.answers import InputColumn
from factory.spec import ColumnType, Task
from serve.portal.documents import DatasetView, Deployments, VersionDetail
from serve.portal.pages.forms import number, one, read_form, typed
from serve.portal.pages.inner import Refused
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.pages.words import Words
from serve.portal.routes import API
from serve.portal.trying import Contributions, CounterExample, Explanation, Predictions

router = APIRouter(include_in_schema=False)

PREFIX = "value."
"""Of the fields that hold a column's value."""
SHOWN = 12
"""Contributions that are drawn; the others are added up."""
SUGGESTED = 12
"""Values of a column that the form suggests."""
OTHERWISE = 3
"""Counter-examples that are shown."""
PROBABILITY = "probability_"


@dataclass(frozen=True)
class Inputs:
    """A column's field: its example, and values that the data have."""

    column: InputColumn
    value: str
    suggested: tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """What a column added to the prediction, drawn from the middle of -100 to 100."""

    column: str
    value: str
    added: float
    at: float
    width: float


@router.get("/variants/{name}/versions/{version}/try")
async def show_try(visitor: SignedIn, name: str, version: int) -> Response:
    """Show the form, filled with the first row of the data where they can be seen."""
    detail = await visitor.api.get(f"{API}/variants/{name}/versions/{version}", VersionDetail)
    return await _page(visitor, detail, None)


@router.post("/variants/{name}/versions/{version}/try")
async def try_it(visitor: SignedIn, request: Request, name: str, version: int) -> Response:
    """Predict the row that was typed, and explain the prediction."""
    form = await read_form(request)
    place = f"{API}/variants/{name}/versions/{version}"
    detail = await visitor.api.get(place, VersionDetail)
    given = {column.name: one(form, f"{PREFIX}{column.name}") for column in detail.columns}
    row = {column.name: read_value(given[column.name], column.type, visitor.words) for column in detail.columns}

    async def predicted(**more: bool | int) -> Predictions:
        sent = {"rows": [row], **more}
        return (await visitor.api.send("POST", f"{place}/predictions", sent, csrf=one(form, "csrf"))).read(Predictions)

    try:
        # Of a number nobody knows which other one would be wanted.
        found = await predicted(explain=True, counterexamples=0 if detail.task == Task.REGRESSION else OTHERWISE)
    except Refused as refused:
        if refused.status == 409:  # it predicts, and keeps nothing to explain by
            return await _page(visitor, detail, given, await predicted())
        if refused.status not in (400, 422, 503):
            raise
        return await _page(visitor, detail, given, refused=refused)
    return await _page(visitor, detail, given, found)


async def _page(
    visitor: Visitor,
    detail: VersionDetail,
    values: Mapping[str, str] | None,
    found: Predictions | None = None,
    refused: Refused | None = None,
) -> Response:
    told = None if found is None else outcome(found, values or {}, task=detail.task)
    status = refused.status if refused else 200
    if visitor.wants_part:
        return visitor.page("try_answer.html", status, told=told, refused=refused)
    deployments, preview = await asyncio.gather(
        visitor.api.get(f"{API}/deployments", Deployments), _preview(visitor, detail)
    )
    return visitor.page(
        "try.html",
        status,
        version=detail,
        inputs=fields_of(detail, preview, values, visitor.words),
        told=told,
        refused=refused,
        wrong={detail.field: detail.message for detail in refused.error.details} if refused else {},
        predictor=deployments.predictor,
    )


async def _preview(visitor: Visitor, detail: VersionDetail) -> Preview | None:
    """Return the first rows of the data that a version was made from, where the visitor may see them."""
    record = await visitor.api.find(f"{API}/requests/{detail.request_id}", RequestRecord, absent=(404, 503))
    digest = getattr(record.request.dataset, "upload", None) if record else None
    view = await visitor.api.find(f"{API}/datasets/{digest}", DatasetView, absent=(404, 503)) if digest else None
    return view.preview if view else None


def fields_of(
    detail: VersionDetail, preview: Preview | None, values: Mapping[str, str] | None, words: Words
) -> list[Inputs]:
    """Return the fields of a version's columns, with what was typed, or with the data's first row."""
    shown = {} if preview is None else {column.name: k for k, column in enumerate(preview.columns)}
    found = []
    for column in detail.columns:
        place = shown.get(column.name)
        rows = preview.rows if preview is not None and place is not None else ()
        told = partial(typed, words=words) if column.type == ColumnType.NUMERIC else str
        cells = ["" if row[place] is None else told(row[place]) for row in rows] if place is not None else []
        value = (cells[0] if cells else "") if values is None else values[column.name]
        suggests = column.type == ColumnType.CATEGORICAL
        suggested = tuple(dict.fromkeys(cell for cell in cells if cell))[:SUGGESTED] if suggests else ()
        found.append(Inputs(column, value, suggested))
    return found


def read_value(text: str, kind: str, words: Words) -> object:
    """Return a typed value as the predictor takes it; what is no number goes along as it was typed, and is refused.

    >>> german = Words.of("de")
    >>> [read_value(*typed, german) for typed in (("1,5", "numeric"), ("", "text"), ("old", "numeric"))]
    [1.5, None, 'old']
    """
    if not text:
        return None
    if kind == ColumnType.BOOLEAN:
        return {"true": True, "false": False}.get(text.lower(), text)
    return number(text, words) if kind == ColumnType.NUMERIC else text


@dataclass(frozen=True)
class Outcome:
    """A prediction as the page shows it.

    Attributes:
        prediction: Class label, or number.
        probabilities: Label and probability, the likeliest first; empty for a number.
        output: That the bars explain.
        base: Mean prediction that they begin at; None without an explanation.
        bars: The largest contributions first.
        others: What the columns that are not drawn added together.
        n_others: How many these are.
        exact: Whether the contributions are exact rather than sampled.
        otherwise: Counter-examples, the nearest first; None where none were looked for.
    """

    prediction: object
    probabilities: tuple[tuple[str, float], ...] = ()
    output: str = ""
    base: float | None = None
    bars: tuple[Bar, ...] = ()
    others: float = 0.0
    n_others: int = 0
    exact: bool = False
    otherwise: tuple[CounterExample, ...] | None = None


def outcome(found: Predictions, values: Mapping[str, str], *, task: Task) -> Outcome:
    """Return the first prediction, and what each column added to it: of classes, to that of the likeliest."""
    row = found.predictions[0]
    label = row["prediction"]
    if task == Task.REGRESSION:
        return _explained(Outcome(label), "prediction", found.explanation, values)
    named = {
        name.removeprefix(PROBABILITY): float(value)
        for name, value in row.items()
        if name.startswith(PROBABILITY) and isinstance(value, int | float)
    }
    likeliest = sorted(named.items(), key=lambda pair: -pair[1])
    return _explained(Outcome(label, tuple(likeliest)), str(label), found.explanation, values)


def _explained(plain: Outcome, output: str, explanation: Explanation | None, values: Mapping[str, str]) -> Outcome:
    if explanation is None or output not in explanation.base:
        return plain
    row: Contributions = explanation.explanations[0]
    added = {column: by_output[output] for column, by_output in row.contributions.items()}
    order = sorted(added, key=lambda column: -abs(added[column]))
    largest = max((abs(value) for value in added.values()), default=0.0) or 1.0
    bars = []
    for column in order[:SHOWN]:
        width = 100 * abs(added[column]) / largest
        at = 0.0 if added[column] >= 0 else -width
        bars.append(Bar(column, values.get(column, ""), added[column], round(at, 2), round(width, 2)))
    rest = order[SHOWN:]
    examples = row.counterexamples
    return replace(
        plain,
        exact=explanation.walks == 0,
        otherwise=None if examples is None else examples.found,
        output=output,
        base=explanation.base[output],
        bars=tuple(bars),
        others=sum(added[column] for column in rest),
        n_others=len(rest),
    )
