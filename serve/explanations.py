"""``/explain``: what may be asked beside the rows, and the answer: what each column added, and counter-examples."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, JsonValue, WithJsonSchema
from pydantic_core import to_json

from factory.errors import Detail, InvalidRequest
from factory.parsing import parse
from factory.spec import Document
from factory.variants.attribution import Scale
from factory.variants.bundle import Bundle
from factory.variants.counterexamples import MOST_CHANGED, MOST_FOUND, CounterExamples, counterexamples
from factory.variants.explain import Explanation, explain
from factory.variants.inputs import Columns
from serve import invocations
from serve.inputs import MOST_COLUMNS, Payload

LIMIT_S = 1.0
"""Seconds after which no further walk begins: a person waits for it."""
SEARCH_S = 5.0
"""Seconds after which no further counter-example is looked for."""


class Wish(Document):
    """What may stand beside the rows."""

    scale: Scale = Field("prediction", description="`margin`: the sum that a variant of one model is the link of.")
    counterexamples: int = Field(0, ge=0, le=MOST_FOUND, description="Of each row, at most.")
    to: Annotated[JsonValue, WithJsonSchema({"type": ["string", "array", "null"]})] = Field(
        None, description="Class that is wanted, any other than the row's own without; of a regression `[low, high]`."
    )
    fixed: tuple[str, ...] = Field(
        (), max_length=MOST_COLUMNS, description="Columns that a counter-example may not change."
    )


def read_payload(body: bytes, content_type: str, *, max_rows: int) -> Payload:
    """Return the rows of a body, which are those of ``/invocations``; ``max_rows`` at most.

    Raises:
        FactoryError: as :func:`serve.invocations.parse`.
    """
    if invocations.media_type(content_type) not in invocations.JSON_TYPES:
        return invocations.parse(body, content_type, max_rows=max_rows)
    document = invocations.read_json(body)
    rows = {name: value for name, value in document.items() if name not in Wish.model_fields}
    return invocations.payload_of(rows, max_rows=max_rows)


def read_wish(body: bytes, content_type: str) -> Wish:
    """Return what stands beside the rows of a body that :func:`read_payload` has read; CSV has nothing.

    Raises:
        InvalidRequest: with one detail for each field that is wrong.
    """
    if invocations.media_type(content_type) not in invocations.JSON_TYPES:
        return Wish()
    document = invocations.read_json(body)
    wish = parse(Wish, {name: document[name] for name in Wish.model_fields if name in document}, what="body")
    if not wish.counterexamples and (idle := [name for name in ("to", "fixed") if name in wish.model_fields_set]):
        message = "It says which counter-examples are wanted; the body asks for none."
        raise InvalidRequest(
            " ".join(f"{name}: {message}" for name in idle),
            hint='Send "counterexamples": 1 beside it.',
            details=[Detail(name, message) for name in idle],
        )
    return wish


def answer(bundle: Bundle, columns: Columns, wish: Wish) -> bytes:
    """Return the answer of ``/explain`` for checked rows.

    Raises:
        FactoryError: as :func:`~factory.variants.explain.explain` and
            :func:`~factory.variants.counterexamples.counterexamples`.
    """
    found = None
    if wish.counterexamples:
        found = counterexamples(bundle, columns, n=wish.counterexamples, to=wish.to, fixed=wish.fixed, limit_s=SEARCH_S)
    document = described(explain(bundle, columns, scale=wish.scale, limit_s=LIMIT_S))
    for row, examples in zip(document["explanations"], found or (), strict=False):
        row["counterexamples"] = _told(examples, bundle)
    return to_json(document, inf_nan_mode="null")


def described(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as JSON has it, one object for each row; a standard error that is not known is NaN.

    For every output, ``base`` and the row's contributions add up to its prediction.
    """
    outputs = explanation.outputs

    def by_output(values: list[Any]) -> dict[str, Any]:
        return dict(zip(outputs, values, strict=True))

    def by_column(values: list[list[float]]) -> dict[str, dict[str, float]]:
        return {name: by_output(row) for name, row in zip(explanation.columns, values, strict=True)}

    parts = (explanation.predictions, explanation.contributions, explanation.errors)
    rows = [
        {"prediction": by_output(prediction), "contributions": by_column(added), "errors": by_column(errors)}
        for prediction, added, errors in zip(*(part.tolist() for part in parts), strict=True)
    ]
    return {
        "base": by_output(explanation.base.tolist()),
        "walks": explanation.walks,
        "scale": explanation.scale,
        "link": explanation.link,
        "method": by_output([explanation.method] * len(outputs)),
        "baseline": "interventional",
        "members": [
            {"family": share.family, "weight": share.weight, "method": share.method} for share in explanation.shares
        ],
        "explanations": rows,
    }


def _told(examples: CounterExamples, bundle: Bundle) -> dict[str, Any]:
    found = [
        {
            "changes": {name: {"from": before, "to": after} for name, (before, after) in example.changes.items()},
            "distance": example.distance,
            "prediction": invocations.prediction_rows(example.raw[None], bundle)[0],
        }
        for example in examples.found
    ]
    document = {"found": found, "tried": examples.tried, "complete": examples.complete}
    if examples.reached:
        document["message"] = "The row itself is predicted as wanted."
    elif not found:
        bound = "is one" if examples.complete else "was found"
        document["message"] = (
            f"None {bound} among the changes of up to {MOST_CHANGED} columns to values of the variant's background "
            f"rows; {examples.tried} were tried."
        )
    return document
