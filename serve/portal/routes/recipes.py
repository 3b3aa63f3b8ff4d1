"""Recipes: what can be ordered, and what a form to order it is made from."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import JsonValue, TypeAdapter
from starlette.responses import Response

from factory.errors import FactoryError
from factory.search.plan import family, load_recipe, recipe_files
from factory.spec import Recipe, VariantRequest
from serve.portal.context import Here
from serve.portal.documents import BrokenRecipe, RecipeForm, Recipes, RecipeView
from serve.portal.identity import Reader
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import reply, tag
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/recipes", tags=["recipes"], responses=refusals(*ALWAYS))

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
Name = Annotated[str, Path(max_length=130, description="Name of a recipe, or name@digest.")]


@router.get("", response_model=Recipes)
def list_recipes(portal: Here, caller: Reader) -> Response:  # noqa: ARG001
    """List the recipes; one that is not valid hides no other."""
    found, broken = [], []
    for name in recipe_files(portal.settings):
        try:
            found.append(_view(load_recipe(name, settings=portal.settings)))
        except FactoryError as error:
            broken.append(BrokenRecipe(name=name, message=error.message))
    return reply(Recipes(items=tuple(found), broken=tuple(broken)))


@router.get("/{name}", response_model=RecipeForm, responses=refusals(404))
def show_recipe(portal: Here, caller: Reader, name: Name) -> Response:  # noqa: ARG001
    """Show a recipe, the schema of a request for it, and the search spaces that a request may narrow."""
    recipe = load_recipe(name, settings=portal.settings)
    spaces = {
        task.value: {one: _plain(family(one).space(task)) for one in recipe.families if task in family(one).tasks}
        for task in recipe.tasks
    }
    form = RecipeForm(recipe=_view(recipe), request_schema=request_schema(recipe), family_spaces=spaces)
    return reply(form, headers={"etag": tag(recipe.digest)})


def request_schema(recipe: Recipe) -> dict[str, JsonValue]:
    """Return the JSON schema of a request for a recipe: its defaults, and no more than it allows."""
    schema: dict[str, Any] = VariantRequest.model_json_schema()
    fields, parts = schema["properties"], schema["$defs"]
    fields["recipe"] |= {"default": recipe.name, "const": recipe.name}
    fields["families"]["anyOf"][0]["items"] = {"type": "string", "enum": list(recipe.families)}
    fields["families"]["default"] = list(recipe.families)
    fields["spaces"]["propertyNames"] = {"enum": list(recipe.families)}
    budget = parts["Budget"]["properties"]
    ceiling = recipe.budget.ceiling.model_dump(mode="json")
    for name, default in recipe.budget.default.model_dump(mode="json").items():
        most = {"maximum": ceiling[name]} if ceiling[name] is not None else {}
        target = budget[name]["anyOf"][0] if "anyOf" in budget[name] else budget[name]
        target |= most
        budget[name]["default"] = default
    parts["Task"]["enum"] = [task.value for task in recipe.tasks]
    resources = parts["Resources"]["properties"]
    resources["workers"]["maximum"] = recipe.max_workers
    resources["gpus_per_worker"]["maximum"] = recipe.max_gpus_per_worker
    for name in ("validation", "gates", "ceilings"):
        fields[name]["default"] = getattr(recipe, name).model_dump(mode="json", by_alias=True)
    fields["metric"]["description"] = "Name of a scikit-learn scorer; by default " + ", ".join(
        f"{getattr(recipe.metric, task)} for {task}" for task in recipe.tasks
    )
    return schema


def _view(recipe: Recipe) -> RecipeView:
    return RecipeView.model_validate({**recipe.model_dump(), "digest": recipe.digest})


def _plain(value: object) -> JsonValue:
    plain: JsonValue = _ANY.dump_python(value, mode="json")
    return plain
