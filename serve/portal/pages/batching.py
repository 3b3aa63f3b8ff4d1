"""Declaring a batch: whose rows a variant predicts, and when, with the times that come of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from zoneinfo import available_timezones

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from factory.errors import InvalidRequest
from factory.ledger import Batch
from factory.spec import BatchWish
from serve.portal.documents import Datasets, DatasetView, DueTimes, ErrorContent, Teams, Variants
from serve.portal.pages.forms import Form, number, one, read_form
from serve.portal.pages.inner import Refused, dotted, filled_in
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.pages.orders import told
from serve.portal.pages.schedules import FIELDS, USUAL, field_of, left_open, schedule_of, weekdays
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)

TABLES = 50
"""Uploaded tables that are offered, the newest."""
VARIANTS = 200
"""Versions, the newest, whose names are offered."""
_FIELDS = frozenset({*FIELDS, "name", "variant", "upload", "path", "keep", "schedule", "keep_runs", "hours"})
ZONES = tuple(sorted(zone for zone in available_timezones() if "/" in zone and not zone.startswith("Etc/")))


@router.get("/batches/new")
async def show_form(visitor: SignedIn, team: str = "", variant: str = "", upload: str = "") -> Response:
    """Show the form of a batch; who acts for all teams says first whose it will be."""
    owner = visitor.team or team or variant.partition(".")[0]
    if not owner:
        teams = await visitor.api.get(f"{API}/teams", Teams)
        return visitor.page("batch_team.html", teams=[one for one in teams.items if one.archived_at is None])
    form = {
        "team": [owner],
        "name": ["-".join(variant.partition("@")[0].partition("/")[0].split(".")[1:]).lower()],
        "variant": [variant],
        "upload": [upload],
        "rows": ["upload" if upload else ""],
        "keep_runs": [str(BatchWish.model_fields["keep_runs"].default)],
        "hours": [str(round(BatchWish.model_fields["hours"].default))],
        "time_zone": [visitor.zone.key if visitor.zone else "UTC"],
    }
    return await _page(visitor, USUAL | form)


@router.post("/batches/new/upload")
async def upload_rows(
    visitor: SignedIn, request: Request, csrf: str = "", team: str = "", variant: str = ""
) -> Response:
    """Take a file from a browser that may not run the page's script, and show the form with it."""
    answer = await visitor.api.pass_on(f"{API}/datasets?{urlencode({'team': team})}", request, csrf=csrf)
    query = {"team": team, "variant": variant, "upload": answer.read(DatasetView).dataset.digest}
    return RedirectResponse(f"/batches/new?{urlencode(filled_in(query))}", status_code=303)


@router.get("/batches/due")
async def show_due(visitor: SignedIn, request: Request) -> Response:
    """Show when a schedule is due next, as a part of the form, while it is typed."""
    form = {name: request.query_params.getlist(name) for name in FIELDS}
    return visitor.page("due.html", **await _due(visitor, form))


@router.post("/batches")
async def declare(visitor: SignedIn, request: Request) -> Response:
    """Declare the batch of a form; sent twice, it is declared once."""
    form = await read_form(request)
    if one(form, "look"):
        return await _page(visitor, form)
    try:
        document = _document(form, visitor)
        answer = await visitor.api.send("POST", f"{API}/batches", document, csrf=one(form, "csrf"))
        batch = answer.read(Batch)
    except InvalidRequest as error:
        return await _page(visitor, form, 400, told(error))
    except Refused as refused:
        if refused.status in (401, 403):
            raise
        twin = await _twin(visitor, document) if refused.status == 409 else None
        if twin is None:
            return await _page(visitor, form, refused.status, refused.error)
        batch = twin
    return visitor.go(f"/batches/{batch.name}", visitor.words("The batch is declared."))


def _document(form: Form, visitor: Visitor) -> dict[str, Any]:
    """Return the batch that a form says, for the API to check.

    Raises:
        InvalidRequest: something of it is left open.
    """
    source = "upload" if one(form, "rows") == "upload" else "path"
    if not one(form, source):
        words = visitor.words
        problem = words("Choose a table.") if source == "upload" else words("Write where the rows are.")
        raise left_open(source, problem)
    numbers = {name: number(one(form, name), visitor.words) for name in ("keep_runs", "hours") if one(form, name)}
    return {
        **{name: one(form, name) for name in ("team", "name", "variant")},
        source: one(form, source),
        "keep": [line.strip() for line in one(form, "keep").splitlines() if line.strip()],
        "schedule": schedule_of(form, visitor.words),
        **numbers,
    }


async def _twin(visitor: Visitor, document: Mapping[str, Any]) -> Batch | None:
    """Return the batch that a form has declared already, where it was sent twice; None where the name is another's."""
    name = f"{document['team']}.{document['name']}"
    there = await visitor.api.find(f"{API}/batches/{name}", Batch)
    same = there is not None and there.last is None and there.wish == BatchWish.model_validate(document)
    return there if same else None


async def _due(visitor: Visitor, form: Form) -> dict[str, Any]:
    """Return the next times of the schedule that a form says, or what is wrong with it by field."""
    try:
        schedule = schedule_of(form, visitor.words)
        if schedule is None:
            return {"due": (), "unclear": {}}
        found = await visitor.api.get(f"{API}/schedules/due", DueTimes, schedule)
    except InvalidRequest as error:
        return {"due": (), "unclear": {detail.field: detail.message for detail in error.details}}
    except Refused as refused:
        if refused.status != 400:
            raise
        return {"due": (), "unclear": _wrong(form, refused.error)}
    return {"due": found.items, "unclear": {}}


def _wrong(form: Form, error: ErrorContent | None) -> dict[str, str]:
    """Return what is wrong by the fields of a form."""
    wrong: dict[str, str] = {}
    for detail in error.details if error else ():
        field, problem = dotted(detail.field).removeprefix("schedule."), detail.message.partition("; received ")[0]
        if field == "schedule":
            field, _, problem = problem.partition(": ")
        wrong[field_of(form, field.partition(".")[0])] = problem
    return wrong


async def _page(visitor: Visitor, form: Form, status: int = 200, error: ErrorContent | None = None) -> Response:
    team = one(form, "team")
    tables, found, due = await asyncio.gather(
        visitor.api.get(f"{API}/datasets", Datasets, {"team": team, "limit": TABLES}),
        visitor.api.get(f"{API}/variants", Variants, {"team": team, "limit": VARIANTS}),
        _due(visitor, form),
    )
    offered = {one.name for one in found.items}
    offered |= {f"{one.name}@{alias}" for one in found.items for alias in one.aliases if alias != "champion"}
    wrong = _wrong(form, error)
    rows = one(form, "rows") or ("upload" if tables.items else "path")
    return visitor.page(
        "new_batch.html",
        status,
        team=team,
        values=defaultdict(str, {name: values[-1] for name, values in form.items() if values} | {"rows": rows}),
        days=form.get("weekday", ()),
        weekdays=weekdays(visitor.words),
        tables=tables.items,
        offered=sorted(offered),
        zones=ZONES,
        limit=visitor.request.app.state.portal.uploads.limit_bytes,
        error=error,
        wrong=defaultdict(str, wrong),
        told_at=len(wrong) if wrong.keys() <= _FIELDS else 0,
        **due,
    )
