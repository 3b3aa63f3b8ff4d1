"""Ordering a variant: the data, then the form with its live quote, then the request."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from factory.data.first_look import FirstLook
from factory.errors import InvalidRequest
from factory.ledger import RequestRecord
from factory.operate.quotes import Quote
from serve.portal.documents import Datasets, DatasetView, ErrorContent, RecipeForm, Teams
from serve.portal.pages.forms import Form, as_yaml, document_of, form_of, one, read_form, request_fields
from serve.portal.pages.inner import Refused, dotted, filled_in
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.pages.sheet import recipe_of, sheet_for, sheet_of
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)


@router.get("/new")
async def show_data(
    visitor: SignedIn, request: Request, team: str = "", features: str = "", dataset: str = "", like: str = ""
) -> Response:
    """Show where the data of a new variant may come from."""
    if dataset or like:  # the address of a form that was sent, and is looked at again
        return RedirectResponse(f"/new/form?{request.url.query}", status_code=303)
    owner = visitor.team or team
    if not owner:
        teams = await visitor.api.get(f"{API}/teams", Teams)
        return visitor.page("new_team.html", teams=[one for one in teams.items if one.archived_at is None])
    return await _data_page(visitor, {"team": owner, "features": features})


@router.post("/new/upload")
async def upload(visitor: SignedIn, request: Request, csrf: str = "", team: str = "", features: str = "") -> Response:
    """Take a file from a browser that may not run the page's script."""
    carried = {"team": visitor.team or team, "features": features}
    try:
        answer = await visitor.api.pass_on(f"{API}/datasets?team={carried['team']}", request, csrf=csrf)
    except Refused as refused:
        return await _data_page(visitor, carried, refused)
    query = {"dataset": answer.read(DatasetView).dataset.digest, **filled_in(carried)}
    return RedirectResponse(f"/new/form?{urlencode(query)}", status_code=303)


async def _data_page(visitor: Visitor, carried: dict[str, str], refused: Refused | None = None) -> Response:
    """Return the page on which data are brought; what is carried goes on with whatever is chosen there."""
    datasets = await visitor.api.get(f"{API}/datasets", Datasets, {"team": carried["team"], "limit": 12})
    return visitor.page(
        "new.html",
        refused.status if refused else 200,
        team=carried["team"],
        carried=filled_in(carried),
        datasets=datasets.items,
        limit=visitor.request.app.state.portal.uploads.limit_bytes,
        error=refused.error if refused else None,
    )


@router.get("/new/form")
async def show_form(
    visitor: SignedIn,
    request: Request,
    dataset: str = "",
    recipe: str = "",
    team: str = "",
    like: str = "",
    features: str = "",
) -> Response:
    """Show the form of a request: for an upload, or like an earlier request."""
    form: dict[str, list[str]] = {}
    if like:
        earlier = await visitor.api.get(f"{API}/requests/{like}", RequestRecord)
        document = earlier.request.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        form = form_of(document, visitor.words)
        dataset = dataset or one(form, "dataset.upload")
        recipe, team = recipe or earlier.request.recipe.partition("@")[0], team or earlier.request.team
    for name in ("name", "parent", "making", "dataset.target"):
        if given := request.query_params.get(name):
            form[name] = [given]
    fresh = not form
    if features:
        form["dataset.feature_service"] = [features]
    sheet = await sheet_for(visitor, dataset=dataset, recipe=recipe, team=team, form=form, like=like, fresh=fresh)
    return visitor.page("new_form.html", **sheet, error=None, wrong={})


@router.post("/new/form")
async def change_recipe(visitor: SignedIn, request: Request) -> Response:
    """Show the form for another recipe, with what was typed; its families are its own."""
    form = await read_form(request)
    form.pop("families", None)
    return visitor.page("new_form.html", **await sheet_of(visitor, form), error=None, wrong={})


@router.get("/new/findings")
async def show_findings(visitor: SignedIn, request: Request) -> Response:
    """Show what the screening finds in the first rows of the data, as a part of the form."""
    query = request.query_params
    layout = "part.html" if visitor.wants_part else "base.html"
    digest, target = query.get("dataset.upload", ""), query.get("dataset.target", "")
    try:
        found = await visitor.api.get(f"{API}/datasets/{digest}/findings", FirstLook, {"target": target})
    except Refused as refused:
        if refused.status == 401:
            raise
        return visitor.page("findings.html", layout=layout, found=None, problem=refused.error)
    return visitor.page("findings.html", layout=layout, found=found, problem=None)


@router.post("/new/quote")
async def quote(visitor: SignedIn, request: Request) -> Response:
    """Show what the request of a form would take, and what is wrong with it."""
    form = await read_form(request)
    nothing: dict[str, Any] = {"quote": None, "wrong": {}, "copies": (), "stale": False}
    try:
        recipe = await recipe_of(visitor, one(form, "recipe"))
        document = _document(visitor, form, recipe)
        answer = await visitor.api.send("POST", f"{API}/quotes", document, csrf=one(form, "csrf"))
    except Refused as refused:
        return visitor.page("quote.html", refused.status, **nothing, error=refused.error)
    except InvalidRequest as error:
        return visitor.page("quote.html", **{**nothing, **_wrong(told(error)), "error": None})
    found = answer.read(Quote)
    wrong = {dotted(problem.field): problem.message for problem in found.problems}
    stale = _is_stale(form, recipe)
    return visitor.page(
        "quote.html", quote=found, error=None, wrong=wrong, stale=stale, copies=_copies(visitor, document)
    )


@router.post("/new")
async def submit(visitor: SignedIn, request: Request) -> Response:
    """Submit the request of a form; sent twice, it is made once."""
    form = await read_form(request)
    try:
        recipe = await recipe_of(visitor, one(form, "recipe"))
        if _is_stale(form, recipe):
            sheet = await sheet_of(visitor, form, stale=True)
            return visitor.page("new_form.html", 409, **sheet, error=None, wrong={})
        document = _document(visitor, form, recipe)
        headers = {"idempotency-key": one(form, "key") or token_hex(16)}
        answer = await visitor.api.send("POST", f"{API}/requests", document, csrf=one(form, "csrf"), headers=headers)
    except Refused as refused:
        if refused.status in (401, 403):
            raise
        return visitor.page("new_form.html", refused.status, **await sheet_of(visitor, form), **_wrong(refused.error))
    except InvalidRequest as error:
        return visitor.page("new_form.html", 400, **await sheet_of(visitor, form), **_wrong(told(error)))
    return visitor.go(f"/requests/{answer.read(RequestRecord).id}")


def _is_stale(form: Form, recipe: RecipeForm) -> bool:
    """Whether the recipe of a form was changed since the form was made."""
    return one(form, "recipe_digest") not in ("", recipe.recipe.digest_)


def _wrong(error: ErrorContent) -> dict[str, Any]:
    """Return an error for the form: as a whole, and by the paths of its fields."""
    return {"error": error, "wrong": {dotted(detail.field): detail.message for detail in error.details}}


def told(error: InvalidRequest) -> ErrorContent:
    """Return an error of the page's own as the API tells its own."""
    return ErrorContent(code=error.code, message=error.message, hint=error.hint, details=error.details)


def _document(visitor: Visitor, form: Form, recipe: RecipeForm) -> dict[str, Any]:
    fields = request_fields(recipe.request_schema)
    typed = {name: values for name, values in form.items() if name != "recipe"}
    document = document_of(typed, fields, visitor.words)
    dataset = document.pop("dataset", {})
    digest = one(form, "dataset.upload")
    place = {"upload": digest} if digest else {}
    given = {"team": one(form, "team"), "name": document.pop("name", ""), "recipe": one(form, "recipe")}
    return {**given, "dataset": {**place, **dataset}, **document}


def _copies(visitor: Visitor, document: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return a request as one writes it in YAML, for curl, and in Python."""
    url = str(visitor.request.base_url).rstrip("/")
    body = json.dumps(document, ensure_ascii=False)
    curl = (
        f'curl -X POST {url}{API}/requests \\\n  -H "Authorization: Bearer $FACTORY_TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"
    )
    python = (
        "import factory\n\n"
        f"order = {pformat(document, sort_dicts=False, width=100)}\n"
        f"with factory.Client({url!r}) as client:  # the token comes from FACTORY_TOKEN\n"
        "    request = client.submit(order)\n"
        "    print(client.wait(request.id).state)"
    )
    return (("YAML", as_yaml(document)), ("curl", curl), ("Python", python))
