"""Trying a version: rows are handed to the predictor, and what it answers is passed on with its explanation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from factory.errors import Detail, FactoryError, ServiceFault
from factory.ledger import IssuedToken, Ledger
from factory.operate.deployments import running_predictor
from factory.settings import Settings
from factory.spec import Actor, Document, Variant
from factory.variants.counterexamples import MOST_FOUND
from serve.errors import STATUS
from serve.portal.documents import ErrorBody
from serve.tracing import carried

M = TypeVar("M", bound=BaseModel)

MOST_ROWS = 100
"""More are predicted through the predictor itself, or as a file."""
OWN_TOKEN = timedelta(hours=1)
"""For which a token of the portal's own is good."""
_BEYOND_S = 2.0
"""For which the predictor's answer is waited for beyond its own deadline."""
_KINDS = {kind.code: kind for kind in STATUS if STATUS[kind] < 500}


class Rows(Document):
    """Rows to predict."""

    rows: tuple[dict[str, bool | int | float | str | None], ...] = Field(
        min_length=1, max_length=MOST_ROWS, description="Column → value; one that is null, or left out, is missing."
    )
    explain: bool = Field(False, description="Whether to say what each column added to each prediction.")
    counterexamples: int = Field(
        0,
        ge=0,
        le=MOST_FOUND,
        description="Nearest rows of another class, for each of 20 rows at most; with `explain`.",
    )

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if self.counterexamples and not self.explain:
            raise ValueError("counterexamples are part of an explanation: send explain as well, or 0 of them")
        return self


class Move(Document):
    """What a column was, and what it is in a counter-example."""

    before: JsonValue = Field(alias="from")
    after: JsonValue = Field(alias="to")


class CounterExample(Document):
    """A row that is predicted otherwise, by the columns that it changes."""

    changes: dict[str, Move]
    distance: float
    prediction: dict[str, JsonValue]


class CounterExamples(Document):
    """The nearest counter-examples of a row that were found."""

    found: tuple[CounterExample, ...]
    tried: int
    complete: bool = Field(description="Whether nothing was left out: there are no nearer ones.")
    message: str = ""


class Contributions(Document):
    """What each column added to a prediction: ``base`` and all of them add up to it, output by output."""

    prediction: dict[str, float]
    contributions: dict[str, dict[str, float]] = Field(description="Column → output → what it added.")
    errors: dict[str, dict[str, float | None]] = Field(description="Their standard errors; null where not known.")
    counterexamples: CounterExamples | None = None


class Share(Document):
    """How a member of the blend was explained."""

    family: str
    weight: float
    method: str


class Explanation(Document):
    """Why the predictions are as they are: Shapley values, exact where the models allow it, else sampled."""

    base: dict[str, float] = Field(description="Output → mean prediction of the rows that it is compared with.")
    walks: int
    scale: str = "prediction"
    link: str = "identity"
    method: dict[str, str] = Field(default={}, description="Output → how its contributions were found.")
    baseline: str = "interventional"
    members: tuple[Share, ...] = ()
    explanations: tuple[Contributions, ...]


class Predictions(Document):
    """A version's predictions, one for each row, as the predictor gives them."""

    predictions: tuple[dict[str, JsonValue], ...]
    explanation: Explanation | None = None


class OwnToken:
    """A token of the portal's own, by which it calls the predictor for whoever the API has let in; safe to share.

    Args:
        ledger: Returns the state.
    """

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._issued: IssuedToken | None = None

    def secret(self) -> str:
        """Return its secret; another one is made when the hour is nearly over.

        Raises:
            StorageFault: the ledger cannot be written.
        """
        with self._lock:
            moment = datetime.now(UTC)
            known = self._issued.record.expires if self._issued is not None else None
            if self._issued is None or known is None or known < moment + OWN_TOKEN / 6:
                self._issued = self._ledger().issue_token(
                    "portal", team=None, scopes=("predict",), expires=moment + OWN_TOKEN, by=Actor(who="portal")
                )
            return self._issued.secret


def tried(variant: Variant, wish: Rows, *, settings: Settings, token: OwnToken) -> Predictions:
    """Return what a version predicts.

    Raises:
        FactoryError: what the predictor says against the rows, or the version.
        ServiceFault: no predictor runs here, or it does not answer.
    """
    running = running_predictor(settings)
    if running is None:
        raise ServiceFault("No predictor runs here, so nothing can be tried.", hint="`factory up` starts one.")
    place = f"{running.url}/variants/{quote(variant.name, safe='')}/versions/{variant.version}"
    body: dict[str, Any] = {"dataframe_records": list(wish.rows)}
    headers = carried({"authorization": f"Bearer {token.secret()}"})
    patience_s = settings.serve_deadline_s + _BEYOND_S
    with httpx.Client(trust_env=False, timeout=patience_s, headers=headers) as client:
        found = _asked(client, f"{place}/invocations", body, Predictions)
        if not wish.explain:
            return found
        body |= {"counterexamples": wish.counterexamples}
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
