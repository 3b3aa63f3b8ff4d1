"""Batches: those of a team with their last runs, and each with its runs."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.ledger import Batch
from serve.portal.documents import Batches, BatchRuns, DatasetView
from serve.portal.pages.forms import one, read_form
from serve.portal.pages.kit import SignedIn
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)

MOST = 200
"""Runs among which one is looked for."""


@router.get("/batches")
async def show_batches(visitor: SignedIn, cursor: str = "") -> Response:
    """Show the batches, by name."""
    found = await visitor.api.get(f"{API}/batches", Batches, {"cursor": cursor})
    return visitor.page("batches.html", items=found.items, next=found.next, may=visitor.may("submit"))


@router.get("/batches/{name}")
async def show_batch(visitor: SignedIn, name: str) -> Response:
    """Show a batch with its runs."""
    batch, runs = await asyncio.gather(
        visitor.api.get(f"{API}/batches/{name}", Batch),
        visitor.api.get(f"{API}/batches/{name}/runs", BatchRuns),
    )
    upload = batch.wish.upload if batch.wish else None
    table = await visitor.api.find(f"{API}/datasets/{upload}", DatasetView, absent=(404, 503)) if upload else None
    may = visitor.may_change("submit", batch.team)
    return visitor.page("batch.html", batch=batch, runs=runs.items, table=table, may=may)


@router.get("/batches/{name}/runs/{number}")
async def show_run(visitor: SignedIn, name: str, number: int) -> Response:
    """Show a run of a batch: what it came to, and what its job has printed."""
    runs = await visitor.api.get(f"{API}/batches/{name}/runs", BatchRuns, {"limit": MOST})
    log = await visitor.api.text(f"{API}/batches/{name}/runs/{number}/log")
    run = next((run for run in runs.items if run.number == number), None)
    return visitor.page("batch_run.html", batch=name, number=number, run=run, text=log, problem=None)


@router.post("/batches/{name}/delete")
async def delete(visitor: SignedIn, request: Request, name: str) -> Response:
    """Forget a batch and its runs."""
    form = await read_form(request)
    await visitor.api.send("DELETE", f"{API}/batches/{name}", csrf=one(form, "csrf"))
    return visitor.go("/batches", visitor.words("The batch is deleted; the files of its runs stay."))


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
