"""Trying a version: rows are handed to the predictor, and what it answers is passed on with its explanation."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, JsonValue, ValidationError

from factory.errors import Detail, FactoryError, ServiceFault
from factory.operate.deployments import running_predictor
from factory.settings import Settings
from factory.spec import Document, Variant
from serve.errors import STATUS
from serve.portal.documents import ErrorBody

M = TypeVar("M", bound=BaseModel)

MOST_ROWS = 100
"""More are predicted through the predictor itself, or as a file."""
_BEYOND_S = 2.0
"""For which the predictor's answer is waited for beyond its own deadline."""
_KINDS = {kind.code: kind for kind in STATUS if STATUS[kind] < 500}


class Rows(Document):
    """Rows to predict."""

    rows: tuple[dict[str, bool | int | float | str | None], ...] = Field(
        min_length=1, max_length=MOST_ROWS, description="Column → value; one that is null, or left out, is missing."
    )
    explain: bool = Field(False, description="Whether to say what each column added to each prediction.")


class Contributions(Document):
    """What each column added to a prediction: ``base`` and all of them add up to it, output by output."""

    prediction: dict[str, float]
    contributions: dict[str, dict[str, float]] = Field(description="Column → output → what it added.")
    errors: dict[str, dict[str, float | None]] = Field(description="Their standard errors; null where not known.")


class Explanation(Document):
    """Why the predictions are as they are: sampled Shapley values."""

    base: dict[str, float] = Field(description="Output → mean prediction of the rows that it is compared with.")
    walks: int
    explanations: tuple[Contributions, ...]


class Predictions(Document):
    """A version's predictions, one for each row, as the predictor gives them."""

    predictions: tuple[dict[str, JsonValue], ...]
    explanation: Explanation | None = None


def tried(variant: Variant, wish: Rows, *, settings: Settings) -> Predictions:
    """Return what a version predicts.

    Raises:
        FactoryError: what the predictor says against the rows, or the version.
        ServiceFault: no predictor runs here, or it does not answer.
    """
    running = running_predictor(settings)
    if running is None:
        raise ServiceFault("No predictor runs here, so nothing can be tried.", hint="`factory up` starts one.")
    place = f"{running.url}/variants/{quote(variant.name, safe='')}/versions/{variant.version}"
    body = {"dataframe_records": list(wish.rows)}
    with httpx.Client(trust_env=False, timeout=settings.serve_deadline_s + _BEYOND_S) as client:
        found = _asked(client, f"{place}/invocations", body, Predictions)
        if not wish.explain:
            return found
        return found.model_copy(update={"explanation": _asked(client, f"{place}/explain", body, Explanation)})


def _asked(client: httpx.Client, url: str, body: dict[str, Any], model: type[M]) -> M:
    try:
        answer = client.post(url, json=body)
    except httpx.HTTPError as error:
        raise _silent(type(error).__name__) from error
    try:
        if answer.is_success:
            return model.model_validate_json(answer.content)
        told = ErrorBody.model_validate_json(answer.content).error
    except ValidationError as error:
        raise _silent(f"it has answered {answer.status_code}") from error
    details = [Detail(detail.field, detail.message) for detail in told.details]
    raise _KINDS.get(told.code, ServiceFault)(told.message, hint=told.hint, details=details)


def _silent(why: str) -> FactoryError:
    return ServiceFault(f"The predictor does not answer as it should: {why}.", hint="Try again in a moment.")
