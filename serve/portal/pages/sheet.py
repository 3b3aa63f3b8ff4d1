"""What the form of a request is made from: recipes with their cost, the data, and what stands in its fields."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

from serve.portal.documents import DatasetView, RecipeForm, Recipes, RecipeVersions, Variants
from serve.portal.pages.differences import differing
from serve.portal.pages.forms import Field, Form, likely_target, one, request_fields, typed
from serve.portal.pages.inner import filled_in
from serve.portal.pages.kit import Visitor
from serve.portal.pages.words import Words
from serve.portal.routes import API

DEFAULT_RECIPE = "tabular-auto"
PARENTS = 60
"""Versions, the newest, whose names are suggested as parents."""
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


async def recipe_of(visitor: Visitor, name: str) -> RecipeForm:
    """Return a recipe of today, with the schema of a request for it."""
    return await visitor.api.get(f"{API}/recipes/{name.partition('@')[0] or DEFAULT_RECIPE}", RecipeForm)


async def sheet_of(visitor: Visitor, form: dict[str, list[str]], *, stale: bool = False) -> dict[str, Any]:
    """Return what the page of a form is made from that was sent.

    Args:
        visitor: Who has sent it.
        form: What was sent.
        stale: Whether its recipe was changed since, which the page tells.
    """
    dataset, recipe = one(form, "dataset.upload"), one(form, "recipe")
    like = visitor.request.query_params.get("like", "")
    sheet = await sheet_for(visitor, dataset=dataset, recipe=recipe, team=one(form, "team"), form=form, like=like)
    return sheet | {"changed": await _changed(visitor, recipe, one(form, "recipe_digest")) if stale else None}


async def sheet_for(
    visitor: Visitor,
    *,
    dataset: str,
    recipe: str,
    team: str,
    form: dict[str, list[str]],
    like: str = "",
    fresh: bool = False,
) -> dict[str, Any]:
    """Return what the page of a form is made from.

    Args:
        visitor: Who looks at it.
        dataset: Digest of the upload; empty of data that lie elsewhere.
        recipe: Name of the recipe.
        team: Whose variant it will be, where an operator says so.
        form: What stands in its fields.
        like: Request whose document the form began with.
        fresh: Whether nothing was chosen yet: target and name are guessed from the data then.
    """
    team = visitor.team or team
    recipes, data, made = await asyncio.gather(
        visitor.api.get(f"{API}/recipes", Recipes, {"usual": True, "team": team}),
        _data(visitor, dataset),
        visitor.api.get(f"{API}/variants", Variants, {"limit": PARENTS}),
    )
    names = [one.name for one in recipes.items]
    chosen = recipe if recipe in names else DEFAULT_RECIPE if DEFAULT_RECIPE in names else names[0]
    found = await recipe_of(visitor, chosen)
    fields = request_fields(found.request_schema)
    columns = [column.name for column in data.preview.columns] if data else []
    if fresh and data is not None:
        form["dataset.target"] = [likely_target(columns)]
        form["name"] = [_name_of(data.dataset.name)]
        moments = [column.name for column in data.preview.columns if column.type == "datetime"]
        form["dataset.timestamp"] = moments[:1]
    return {
        "team": team,
        "recipes": recipes.items,
        "usual": recipes.usual,
        "recipe": chosen,
        "recipe_digest": found.recipe.digest_,
        "fields": fields,
        "sections": [(name, [fields[p] for p in paths if p in fields]) for name, paths in SECTIONS],
        "data": data,
        "columns": columns,
        "form": form,
        "values": Values(form, fields, visitor.words),
        "parents": sorted({one.name for one in made.items}),
        "key": one(form, "key") or token_hex(16),
        "here": urlencode(filled_in({"dataset": dataset, "team": team, "recipe": chosen, "like": like})),
        "like": like,
        "changed": None,
    }


async def _data(visitor: Visitor, dataset: str) -> DatasetView | None:
    return await visitor.api.get(f"{API}/datasets/{dataset}", DatasetView) if dataset else None


async def _changed(visitor: Visitor, recipe: str, since: str) -> list[tuple[str, str, str]]:
    """Return what of a recipe is not as it was: field, before and now; nothing where nobody knows what it was."""
    versions = await visitor.api.get(f"{API}/recipes/{recipe}/versions", RecipeVersions)
    before = next((one.document for one in versions.items if one.digest_ == since), None)
    now = next((one.document for one in versions.items if one.current), None)
    return differing(before, now) if before is not None and now is not None else []


class Values:
    """What stands in a form's fields: what was typed, else the default."""

    def __init__(self, form: Form, fields: Mapping[str, Field], words: Words) -> None:
        self._form, self._fields, self._words = form, fields, words

    def of(self, path: str) -> str:
        """Return a field's text."""
        if path in self._form:
            return one(self._form, path)
        default = self._fields[path].default if path in self._fields else None
        return "" if default is None else typed(default, self._words)

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
