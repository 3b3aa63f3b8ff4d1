"""Quotes: what a request would take, cost and come to; nothing is started."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from factory.errors import Detail
from factory.operate.quotes import Problem, Quote
from factory.spec import VariantRequest
from serve.portal.bodies import Incoming, pointer, pointing, strict_problems
from serve.portal.context import Here
from serve.portal.identity import Reader
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import reply
from serve.portal.routes import API
from serve.portal.routes.requests import EXAMPLE, intake_of

router = APIRouter(prefix=f"{API}/quotes", tags=["requests"], responses=refusals(*ALWAYS))


@router.post(
    "",
    response_model=Quote,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(VariantRequest, EXAMPLE, anything=True),
)
def quote_request(portal: Here, caller: Reader, body: Incoming) -> Response:
    """Quote a request: expected time, cost, score and place in the queue, and every check that it would fail.

    What is wrong with its document is in `problems`, not refused, so that a form can ask while it is filled in.
    """
    document = body.fields()
    known: list[Detail] = strict_problems(VariantRequest, document)
    with pointing(document), portal.turn():
        told = intake_of(portal, caller).quote(document, problems=known, place=portal.outlook.place_of())
    problems = tuple(Problem(field=pointer(p.field, document), message=p.message) for p in told.problems)
    return reply(told.model_copy(update={"problems": problems}))
