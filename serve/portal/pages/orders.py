"""Ordering a variant: the data, then the form with its live quote, then the request."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pprint import pformat
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from factory.errors import InvalidRequest
from factory.ledger import RequestRecord
from factory.operate.quotes import Quote
from serve.portal.documents import Datasets, DatasetView, ErrorContent, RecipeForm, Recipes, Teams, Variants
from serve.portal.pages.forms import (
    Field,
    Form,
    as_yaml,
    document_of,
    form_of,
    likely_target,
    one,
    read_form,
    request_fields,
)
from serve.portal.pages.inner import Refused, dotted, filled_in
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)

DEFAULT_RECIPE = "tabular-auto"
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("data", ("dataset.task", "dataset.drop", "dataset.keep", "dataset.weights", "dataset.drift")),
    ("search", ("metric", "families", "budget.trials", "budget.memory_gb", "making", "parent", "spaces", "seed")),
    ("validation", ("validation.kind", "validation.folds", "validation.share", "validation.column", "validation.gap")),
    ("segments", ("segments.by", "segments.min_rows")),
    ("gates", ("gates.baseline", "gates.min_improvement", "gates.confidence", "gates.slices", "gates.slice_max_loss",
               "gates.allow_leakage")),
    ("limits", ("ceilings.latency_ms", "ceilings.size_mb", "deployment.percent")),
    ("resources", ("resources.workers", "resources.gpus_per_worker", "priority")),
)  # fmt: skip
"""Folded parts of the form, with the paths of their fields."""


@router.get("/new")
async def show_data(visitor: SignedIn, team: str = "", features: str = "") -> Response:
    """Show where the data of a new variant may come from."""
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
        form = form_of(document)
        dataset = dataset or one(form, "dataset.upload")
        recipe, team = recipe or earlier.request.recipe.partition("@")[0], team or earlier.request.team
    for name in ("name", "parent", "making", "dataset.target"):
        if given := request.query_params.get(name):
            form[name] = [given]
    fresh = not form
    if features:
        form["dataset.feature_service"] = [features]
    sheet = await _sheet(visitor, dataset=dataset, recipe=recipe, team=team, form=form, fresh=fresh)
    return visitor.page("new_form.html", **sheet, error=None, wrong={})


@router.post("/new/form")
async def change_recipe(visitor: SignedIn, request: Request) -> Response:
    """Show the form for another recipe, with what was typed."""
    form = await read_form(request)
    return visitor.page("new_form.html", **await _sheet_of(visitor, form), error=None, wrong={})


@router.post("/new/quote")
async def quote(visitor: SignedIn, request: Request) -> Response:
    """Show what the request of a form would take, and what is wrong with it."""
    form = await read_form(request)
    try:
        document = await _document(visitor, form)
        answer = await visitor.api.send("POST", f"{API}/quotes", document, csrf=one(form, "csrf"))
    except Refused as refused:
        return visitor.page("quote.html", refused.status, quote=None, error=refused.error, wrong={}, document={})
    except InvalidRequest as error:
        return visitor.page("quote.html", 400, quote=None, error=told(error), wrong={}, document={})
    found = answer.read(Quote)
    wrong = {dotted(problem.field): problem.message for problem in found.problems}
    return visitor.page("quote.html", quote=found, error=None, wrong=wrong, **_copies(visitor, document))


@router.post("/new")
async def submit(visitor: SignedIn, request: Request) -> Response:
    """Submit the request of a form; sent twice, it is made once."""
    form = await read_form(request)
    try:
        document = await _document(visitor, form)
        headers = {"idempotency-key": one(form, "key") or token_hex(16)}
        answer = await visitor.api.send("POST", f"{API}/requests", document, csrf=one(form, "csrf"), headers=headers)
    except Refused as refused:
        if refused.status in (401, 403):
            raise
        return visitor.page("new_form.html", refused.status, **await _sheet_of(visitor, form), **_wrong(refused.error))
    except InvalidRequest as error:
        return visitor.page("new_form.html", 400, **await _sheet_of(visitor, form), **_wrong(told(error)))
    return visitor.go(f"/requests/{answer.read(RequestRecord).id}")


def _wrong(error: ErrorContent) -> dict[str, Any]:
    """Return an error for the form: as a whole, and by the paths of its fields."""
    return {"error": error, "wrong": {dotted(detail.field): detail.message for detail in error.details}}


def told(error: InvalidRequest) -> ErrorContent:
    """Return an error of the page's own as the API tells its own."""
    return ErrorContent(code=error.code, message=error.message, hint=error.hint, details=error.details)


async def _document(visitor: Visitor, form: Form) -> dict[str, Any]:
    fields = request_fields(await _schema(visitor, one(form, "recipe")))
    document = document_of({name: values for name, values in form.items() if name != "recipe"}, fields)
    dataset = document.pop("dataset", {})
    digest = one(form, "dataset.upload")
    place = {"upload": digest} if digest else {}
    given = {"team": one(form, "team"), "name": document.pop("name", ""), "recipe": one(form, "recipe")}
    return {**given, "dataset": {**place, **dataset}, **document}


async def _schema(visitor: Visitor, recipe: str) -> Mapping[str, Any]:
    found = await visitor.api.get(f"{API}/recipes/{recipe.partition('@')[0]}", RecipeForm)
    return found.request_schema


async def _sheet_of(visitor: Visitor, form: dict[str, list[str]]) -> dict[str, Any]:
    return await _sheet(
        visitor,
        dataset=one(form, "dataset.upload"),
        recipe=one(form, "recipe"),
        team=one(form, "team"),
        form=form,
        fresh=False,
    )


async def _sheet(
    visitor: Visitor, *, dataset: str, recipe: str, team: str, form: dict[str, list[str]], fresh: bool
) -> dict[str, Any]:
    """Return what the form's page is made from."""
    recipes = await visitor.api.get(f"{API}/recipes", Recipes)
    names = [one.name for one in recipes.items]
    chosen = recipe if recipe in names else DEFAULT_RECIPE if DEFAULT_RECIPE in names else names[0]
    schema = await _schema(visitor, chosen)
    fields = request_fields(schema)
    data = await visitor.api.get(f"{API}/datasets/{dataset}", DatasetView) if dataset else None
    columns = [column.name for column in data.preview.columns] if data else []
    if fresh and data is not None:
        form["dataset.target"] = [likely_target(columns)]
        form["name"] = [_name_of(data.dataset.name)]
        moments = [column.name for column in data.preview.columns if column.type == "datetime"]
        form["dataset.timestamp"] = moments[:1]
    made = await visitor.api.get(f"{API}/variants", Variants, {"limit": 60})
    return {
        "team": visitor.team or team,
        "recipes": recipes.items,
        "recipe": chosen,
        "fields": fields,
        "sections": [(name, [fields[p] for p in paths if p in fields]) for name, paths in SECTIONS],
        "data": data,
        "columns": columns,
        "form": form,
        "values": _Values(form, fields),
        "parents": sorted({one.name for one in made.items}),
        "key": one(form, "key") or token_hex(16),
    }


class _Values:
    """What stands in a form's fields: what was typed, else the default."""

    def __init__(self, form: Form, fields: Mapping[str, Field]) -> None:
        self._form, self._fields = form, fields

    def of(self, path: str) -> str:
        """Return a field's text."""
        if path in self._form:
            return one(self._form, path)
        default = self._fields[path].default if path in self._fields else None
        return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)

    def all_of(self, path: str) -> list[str]:
        """Return a field's texts."""
        if path in self._form:
            return list(self._form[path])
        default = self._fields[path].default if path in self._fields else None
        return [str(value) for value in default] if isinstance(default, list | tuple) else []


def _name_of(file: str) -> str:
    """Return a variant's name made from a file's.

    >>> _name_of("Telco Churn (2024).csv"), _name_of("2024.csv")
    ('telco-churn-2024', 'v2024')
    """
    kept = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in file.partition(".")[0].lower())
    name = "-".join(part for part in kept.split("-") if part)[:63].rstrip("-")
    return name if name[:1].isalpha() else f"v{name}"[:63]


def _copies(visitor: Visitor, document: dict[str, Any]) -> dict[str, Any]:
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
    return {"copies": (("YAML", as_yaml(document)), ("curl", curl), ("Python", python))}
