"""Recipes: what can be ordered, and what a form to order it is made from."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field, JsonValue, TypeAdapter
from starlette.responses import Response

from factory.errors import Detail, FactoryError, InvalidRequest, NotFound
from factory.operate.publishing import publish, withdraw
from factory.operate.recipe_history import history
from factory.search.plan import family, load_recipe, recipe_files
from factory.spec import NAME, Document, GroupSplit, Recipe, TimeSplit, VariantRequest
from serve.portal.bodies import Incoming, pointing, strict_problems
from serve.portal.context import Here, Portal
from serve.portal.documents import BrokenRecipe, RecipeForm, Recipes, RecipeVersions, RecipeView
from serve.portal.identity import Publisher, Reader
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import IfMatch, matching, reply, tag
from serve.portal.routes import API
from serve.portal.routes.requests import intake_of

router = APIRouter(prefix=f"{API}/recipes", tags=["recipes"], responses=refusals(*ALWAYS))

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
Name = Annotated[str, Path(max_length=130, description="Name of a recipe, or name@digest.")]
NewName = Annotated[str, Path(pattern=NAME, description="Name of the recipe, as it calls itself.")]
_ETAG = {"ETag": {"description": "For If-Match of a change.", "schema": {"type": "string"}, "required": True}}
_TAGGED = {"description": "The recipe.", "headers": _ETAG}


class RecipeFilters(Document):
    """What is told of recipes."""

    usual: bool = Field(False, description="Also what a request of each usually takes and costs.")
    team: str | None = Field(None, max_length=63, description="Whose requests tell; the token's own where empty.")


@router.get("", response_model=Recipes, responses=refusals(404))
def list_recipes(portal: Here, caller: Reader, filters: Annotated[RecipeFilters, Query()]) -> Response:
    """List the recipes; one that is not valid hides no other."""
    found, broken = [], []
    for name in recipe_files(portal.settings):
        try:
            found.append(load_recipe(name, settings=portal.settings))
        except FactoryError as error:
            broken.append(BrokenRecipe(name=name, message=error.message))
    usual = {}
    if filters.usual:
        intake, team = intake_of(portal, caller), caller.own_team(filters.team)
        usual = {recipe.name: intake.usual(recipe, team) for recipe in found}
    return reply(Recipes(items=tuple(map(_view, found)), broken=tuple(broken), usual=usual))


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


@router.get("/{name}/versions", response_model=RecipeVersions, responses=refusals(404))
def list_recipe_versions(portal: Here, caller: Reader, name: Name) -> Response:  # noqa: ARG001
    """List what a recipe was before: each version that was published, the newest first."""
    return reply(RecipeVersions(items=history(name, ledger=portal.ledger, settings=portal.settings)))


@router.put(
    "/{name}",
    response_model=RecipeView,
    responses=refusals(404, 409, 412, *BODY, also={200: _TAGGED}),
    openapi_extra=takes(
        Recipe, {"name": "churn-linear", "title": "Churn, explained by a line", "families": ["constant", "linear"]}
    ),
)
def publish_recipe(
    portal: Here, caller: Publisher, name: NewName, body: Incoming, if_match: IfMatch = None
) -> Response:
    """Publish a recipe for all teams, in place of the one of the same name if that is the team's own.

    All problems of its document are told at once. It belongs to the team of whoever publishes it.
    """
    document = body.document()
    with pointing(document):
        if problems := strict_problems(Recipe, document):
            raise InvalidRequest(
                "The recipe is not valid: " + " ".join(f"{d.field}: {d.message}" for d in problems),
                hint="Mend the named fields and try again.",
                details=problems,
            )
        if not isinstance(document, dict) or document.get("name") != name:
            raise InvalidRequest(
                f"name: the recipe does not call itself {name!r}.",
                hint="Let the name in the path and in the document be the same.",
                details=[Detail("name", f"is not {name!r}")],
            )
        with matching(if_match, _digest(name, portal), f"Recipe {name}") as seen:
            recipe = publish(
                document,
                team=caller.team,
                ledger=portal.ledger,
                settings=portal.settings,
                by=caller.actor,
                if_digest=seen,
            )
    return reply(_view(recipe), headers={"etag": tag(recipe.digest)})


@router.delete("/{name}", status_code=204, responses=refusals(404, 409))
def withdraw_recipe(portal: Here, caller: Publisher, name: Name) -> Response:
    """Take a published recipe back; nobody can order it any more, and what was made by it stays."""
    withdraw(name, team=caller.team, ledger=portal.ledger, settings=portal.settings, by=caller.actor)
    return Response(status_code=204)


def _digest(name: str, portal: Portal) -> str:
    """Return the digest of a recipe; empty where there is none or it is broken, which no tag is of."""
    try:
        return load_recipe(name, settings=portal.settings).digest
    except (NotFound, InvalidRequest):
        return ""


@cache
def _any_request() -> str:
    """Return the JSON schema of a request for any recipe, which takes long to make."""
    return json.dumps(VariantRequest.model_json_schema())


def request_schema(recipe: Recipe) -> dict[str, JsonValue]:
    """Return the JSON schema of a request for a recipe: its defaults, and no more than it allows."""
    schema: dict[str, Any] = json.loads(_any_request())
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
    if isinstance(recipe.validation, TimeSplit | GroupSplit):
        _keep_apart(fields["validation"]["anyOf"][0], parts, recipe.validation)
    for name in ("validation", "gates", "ceilings"):
        fields[name]["default"] = getattr(recipe, name).model_dump(mode="json", by_alias=True)
    fields["metric"]["description"] = "Name of a scikit-learn scorer; by default " + ", ".join(
        f"{getattr(recipe.metric, task)} for {task}" for task in recipe.tasks
    )
    return schema


def _keep_apart(core: dict[str, Any], parts: dict[str, Any], validation: TimeSplit | GroupSplit) -> None:
    """Leave only the kind of validation by which the recipe keeps rows apart, with its column and a gap as large."""
    kind = core["discriminator"]["mapping"][validation.kind]
    core["discriminator"]["mapping"], core["oneOf"] = {validation.kind: kind}, [{"$ref": kind}]
    own = parts[kind.rpartition("/")[2]]["properties"]
    own["column"] |= {"const": validation.column, "default": validation.column}
    if isinstance(validation, TimeSplit):
        own["gap"] |= {"minimum": validation.gap, "default": validation.gap}


def _view(recipe: Recipe) -> RecipeView:
    return RecipeView.model_validate({**recipe.model_dump(), "digest": recipe.digest})


def _plain(value: object) -> JsonValue:
    plain: JsonValue = _ANY.dump_python(value, mode="json")
    return plain
