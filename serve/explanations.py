"""The answer of ``/explain``: what each column added to each prediction."""

from __future__ import annotations

from pydantic_core import to_json

from factory.variants.explain import Explanation

LIMIT_S = 1.0
"""Seconds after which no further walk begins: a person waits for it."""


def format_explanation(explanation: Explanation) -> bytes:
    """Return an explanation as JSON, one object for each row; a standard error that is not known is ``null``.

    For every output, ``base`` and the row's contributions add up to its prediction.
    """
    outputs = explanation.outputs

    def by_output(values: list[float]) -> dict[str, float]:
        return dict(zip(outputs, values, strict=True))

    def by_column(values: list[list[float]]) -> dict[str, dict[str, float]]:
        return {name: by_output(row) for name, row in zip(explanation.columns, values, strict=True)}

    parts = (explanation.predictions, explanation.contributions, explanation.errors)
    rows = [
        {"prediction": by_output(prediction), "contributions": by_column(added), "errors": by_column(errors)}
        for prediction, added, errors in zip(*(part.tolist() for part in parts), strict=True)
    ]
    document = {"base": by_output(explanation.base.tolist()), "walks": explanation.walks, "explanations": rows}
    return to_json(document, inf_nan_mode="null")
