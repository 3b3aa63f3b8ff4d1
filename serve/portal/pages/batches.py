"""Batches: those of a team with their last runs, and each with its runs."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.ledger import Batch
from serve.portal.documents import Batches, BatchRuns
from serve.portal.pages.forms import one, read_form
from serve.portal.pages.kit import SignedIn
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)


@router.get("/batches")
async def show_batches(visitor: SignedIn, cursor: str = "") -> Response:
    """Show the batches, by name."""
    found = await visitor.api.get(f"{API}/batches", Batches, {"cursor": cursor})
    return visitor.page("batches.html", items=found.items, next=found.next)


@router.get("/batches/{name}")
async def show_batch(visitor: SignedIn, name: str) -> Response:
    """Show a batch with its runs."""
    batch, runs = await asyncio.gather(
        visitor.api.get(f"{API}/batches/{name}", Batch),
        visitor.api.get(f"{API}/batches/{name}/runs", BatchRuns),
    )
    return visitor.page("batch.html", batch=batch, runs=runs.items, may=visitor.may_change("submit", batch.team))


@router.post("/batches/{name}/run")
async def run(visitor: SignedIn, request: Request, name: str) -> Response:
    """Start a run now."""
    form = await read_form(request)
    await visitor.api.send("POST", f"{API}/batches/{name}/runs", csrf=one(form, "csrf"))
    return visitor.go(f"/batches/{name}", visitor.words("A run begins."))


@router.post("/batches/{name}/pause")
async def pause(visitor: SignedIn, request: Request, name: str) -> Response:
    """Let the schedule rest."""
    form = await read_form(request)
    await visitor.api.send("POST", f"{API}/batches/{name}/pause", csrf=one(form, "csrf"))
    return visitor.go(f"/batches/{name}", visitor.words("The schedule rests."))


@router.post("/batches/{name}/resume")
async def resume(visitor: SignedIn, request: Request, name: str) -> Response:
    """Let the schedule count again."""
    form = await read_form(request)
    await visitor.api.send("POST", f"{API}/batches/{name}/resume", csrf=one(form, "csrf"))
    return visitor.go(f"/batches/{name}", visitor.words("The schedule counts again."))
