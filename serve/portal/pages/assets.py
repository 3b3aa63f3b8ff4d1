"""What variants are made from: recipes and data."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.portal.documents import Datasets, DatasetView, RecipeForm, Recipes, RecipeVersions, Shares
from serve.portal.pages.differences import changes
from serve.portal.pages.forms import as_yaml, one, read_form
from serve.portal.pages.inner import Query
from serve.portal.pages.kit import SignedIn
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)


@router.get("/recipes")
async def show_recipes(visitor: SignedIn) -> Response:
    """Show the recipes."""
    found = await visitor.api.get(f"{API}/recipes", Recipes)
    return visitor.page("recipes.html", recipes=found.items, broken=found.broken)


@router.get("/recipes/{name}")
async def show_recipe(visitor: SignedIn, name: str) -> Response:
    """Show a recipe: what it is for, what it tries, what it costs, what a variant must prove."""
    found, earlier = await asyncio.gather(
        visitor.api.get(f"{API}/recipes/{name}", RecipeForm),
        visitor.api.get(f"{API}/recipes/{name.partition('@')[0]}/versions", RecipeVersions),
    )
    document = found.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"digest_"})
    return visitor.page("recipe.html", recipe=found.recipe, document=as_yaml(document), changes=changes(earlier.items))


@router.get("/datasets")
async def show_datasets(visitor: SignedIn, cursor: str = "", sort: str = "-created") -> Response:
    """Show the tables that were uploaded."""
    query: Query = {"cursor": cursor, "sort": sort, "limit": 50}
    found = await visitor.api.get(f"{API}/datasets", Datasets, query)
    return visitor.page("datasets.html", items=found.items, next=found.next, filters={"sort": sort})


@router.get("/datasets/{digest}")
async def show_dataset(visitor: SignedIn, digest: str) -> Response:
    """Show a table: its columns, its first rows, and who may see it."""
    found = await visitor.api.get(f"{API}/datasets/{digest}", DatasetView)
    mine = visitor.may_change("submit", found.dataset.team)
    query = {"kind": "dataset", "subject": digest, "team": found.dataset.team}
    shares = (await visitor.api.get(f"{API}/shares", Shares, query)).items if mine else ()
    return visitor.page("dataset.html", data=found, shares=shares, mine=mine)


@router.post("/datasets/{digest}/forget")
async def forget(visitor: SignedIn, request: Request, digest: str) -> Response:
    """Forget a table."""
    form = await read_form(request)
    await visitor.api.send("DELETE", f"{API}/datasets/{digest}?team={one(form, 'team')}", csrf=one(form, "csrf"))
    return visitor.go("/datasets", visitor.words("The table is forgotten."))


@router.post("/datasets/{digest}/share")
async def share(visitor: SignedIn, request: Request, digest: str) -> Response:
    """Let another team see a table, or no more."""
    form = await read_form(request)
    with_team, team = one(form, "with_team"), one(form, "team")
    named = {"kind": "dataset", "subject": digest, "team": team, "with_team": with_team}
    if one(form, "end") == "true":
        query = "&".join(f"{name}={value.replace('*', '%2A')}" for name, value in named.items())
        await visitor.api.send("DELETE", f"{API}/shares?{query}", csrf=one(form, "csrf"))
    else:
        await visitor.api.send("POST", f"{API}/shares", named, csrf=one(form, "csrf"))
    return visitor.go(f"/datasets/{digest}")
