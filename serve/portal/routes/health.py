"""Whether the portal lives, whether it can answer, and its metrics."""

from __future__ import annotations

from functools import partial

import httpx
from anyio import to_thread
from fastapi import APIRouter
from starlette.responses import Response

from factory.errors import FactoryError, StorageFault
from factory.operate.controller import LEAD
from factory.settings import Settings
from serve.portal.context import Here, Portal
from serve.portal.documents import Alive, Check, Readiness
from serve.portal.identity import Operator
from serve.portal.metrics import CONTENT_TYPE
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import reply

router = APIRouter(tags=["health"])

MLFLOW_S = 2.0
"""For which MLflow's answer is waited for."""
_NOT_READY = {"model": Readiness, "description": "The ledger does not answer: no call can be answered."}
_METRICS = {"description": "In Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get("/healthz", response_model=Alive, responses=refusals(500))
async def show_health() -> Response:
    """Say that the process answers."""
    return reply(Alive())


@router.get("/readyz", response_model=Readiness, responses=refusals(500, also={503: _NOT_READY}))
async def show_readiness(portal: Here) -> Response:
    """Say whether calls can be answered, and what is missing: without anything but the ledger, most still can."""
    # In threads of its own: all others may be waiting for what is to be told of here.
    look = partial(portal.readiness, partial(_readiness, portal))
    found = await to_thread.run_sync(look, limiter=portal.health_threads)
    return reply(found, 200 if found.ready else 503, {} if found.ready else {"retry-after": "1"})


@router.get("/metrics", response_class=Response, responses=refusals(*ALWAYS, also={200: _METRICS}))
def show_metrics(portal: Here, caller: Operator) -> Response:  # noqa: ARG001
    """Tell queue, jobs, cost and calls in Prometheus' format; they name teams, so an operator's token is needed."""
    return Response(portal.metrics.text(), headers={"content-type": CONTENT_TYPE})


def _readiness(portal: Portal) -> Readiness:
    ledger = _ledger(portal)
    answers = portal.outlook.answers()
    checks = (
        ledger,
        _controller(portal) if ledger.ok else Check(name="controller", ok=False, message="Not known: see ledger."),
        Check(name="ray", ok=answers, message="The cluster answers." if answers else "The cluster does not answer."),
        _mlflow(portal.settings),
        _storage(portal),
    )
    return Readiness(ready=ledger.ok, checks=checks)


def _ledger(portal: Portal) -> Check:
    try:
        portal.ledger.ping()
    except FactoryError:
        return Check(name="ledger", ok=False, message="The ledger does not answer; the portal's log says why.")
    return Check(name="ledger", ok=True, message="The ledger answers.")


def _controller(portal: Portal) -> Check:
    try:
        leads = portal.ledger.leader(LEAD) is not None
    except FactoryError:
        leads = False
    message = "A controller leads." if leads else "No controller leads: requests are taken in, and wait."
    return Check(name="controller", ok=leads, message=message)


def _storage(portal: Portal) -> Check:
    try:
        portal.settings.prepare_home()
        portal.uploads.check_disk(0)
    except StorageFault:
        return Check(name="storage", ok=False, message="FACTORY_HOME cannot be written, or is full: no uploads.")
    return Check(name="storage", ok=True, message="FACTORY_HOME can be written.")


def _mlflow(settings: Settings) -> Check:
    uri = settings.tracking_uri
    if not uri.startswith(("http://", "https://")):
        return Check(name="mlflow", ok=True, message="MLflow is embedded.")
    try:
        ok = httpx.get(f"{uri.rstrip('/')}/health", timeout=MLFLOW_S).status_code == httpx.codes.OK
    except httpx.HTTPError:
        ok = False
    return Check(name="mlflow", ok=ok, message="MLflow answers." if ok else "MLflow does not answer.")
