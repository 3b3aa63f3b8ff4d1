"""What is served, and with which part of the traffic."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.operate.traffic import Traffic
from serve.portal.documents import DeploymentHistory, Deployments, NameDeployment, VariantName
from serve.portal.pages.aliases import before, spans_of
from serve.portal.pages.charts import calls_over_time, tones
from serve.portal.pages.forms import number, one, read_form
from serve.portal.pages.kit import SignedIn
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)


@router.get("/deployments")
async def show_deployments(visitor: SignedIn) -> Response:
    """Show what is served, by name."""
    found = await visitor.api.get(f"{API}/deployments", Deployments)
    return visitor.page("deployments.html", items=found.items, predictor=found.predictor)


@router.get("/deployments/{name}")
async def show_deployment(visitor: SignedIn, name: str, window: str = "hour") -> Response:
    """Show how a variant is served and called, and a form to change it."""
    found, answer, called, served, past = await asyncio.gather(
        visitor.api.get(f"{API}/variants/{name}", VariantName),
        visitor.api.answer(f"{API}/deployments/{name}"),
        visitor.api.get(f"{API}/deployments/{name}/traffic", Traffic, {"window": window}),
        visitor.api.get(f"{API}/deployments", Deployments),
        visitor.api.get(f"{API}/deployments/{name}/history", DeploymentHistory),
    )
    line = spans_of(found.alias_history)
    return visitor.page(
        "deployment.html",
        variant=found,
        traffic=called,
        calls=calls_over_time(called, words=visitor.words),
        tones=tones(called),
        line=line,
        back=before(line),
        lately=NameDeployment.model_validate_json(answer.content).lately,
        predictor=served.predictor,
        changes=past.changes,
        versions=sorted(found.versions, key=lambda version: -version.version),
        tag=answer.headers.get("etag", ""),
        may_deploy=visitor.may_change("deploy", found.team),
    )


@router.post("/deployments/{name}")
async def change(visitor: SignedIn, request: Request, name: str) -> Response:
    """Serve a version in another way; nothing is changed that somebody else has changed meanwhile."""
    form = await read_form(request)
    document: dict[str, object] = {
        "version": number(one(form, "version")),
        "as": one(form, "as"),
        "why": one(form, "why"),
    }
    if one(form, "as") == "canary":
        document["percent"] = number(one(form, "percent"), visitor.words)
    headers = {"if-match": one(form, "tag")} if one(form, "tag") else None
    await visitor.api.send("PUT", f"{API}/deployments/{name}", document, csrf=one(form, "csrf"), headers=headers)
    return visitor.go(f"/deployments/{name}", visitor.words("It is served so from now on."))
