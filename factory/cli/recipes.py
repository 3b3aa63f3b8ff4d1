"""List, show, validate and publish recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from factory.cli._backend import Local, opened
from factory.cli._console import Json, out, plain, print_json, table
from factory.operate.answers import RecipeDetail
from factory.search.plan import check_recipe, read_document
from factory.spec import duration

PLUGIN = typer.Typer(no_args_is_help=True, help="List, show, validate and publish recipes.")


@PLUGIN.command("list")
def list_recipes(json: Json = False, local: Local = False) -> None:
    """List the recipes that can be ordered."""
    with opened(local) as factory:
        found = factory.recipes()
    if json:
        print_json([_document(one) for one in found])
        return
    rows = [
        (r.name, r.title, ", ".join(r.families), f"{duration(r.budget.default.time_s)}", r.owner, one.digest[:12])
        for one in found
        for r in (one.recipe,)
    ]
    table("Recipes", ("name", "title", "families", "time by default.", "owner", "digest"), rows)


@PLUGIN.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or name@digest.")],
    json: Json = False,
    local: Local = False,
) -> None:
    """Show a recipe and the search spaces that a request may narrow."""
    with opened(local) as factory:
        found = factory.recipe(name)
    if json:
        print_json({**_document(found), "family_spaces": found.family_spaces})
        return
    out.print(yaml.safe_dump(plain(found.recipe), sort_keys=False, allow_unicode=True), markup=False)
    out.print(f"digest: {found.digest}")


@PLUGIN.command()
def validate(file: Annotated[Path, typer.Argument(help="A recipe's YAML file.")]) -> None:
    """Check a recipe's file and report every problem at once."""
    recipe = check_recipe(read_document(file, what="recipe"))
    out.print(f"{file} is a valid recipe: {recipe.name}, digest {recipe.digest[:12]}.")


@PLUGIN.command()
def publish(
    file: Annotated[Path, typer.Argument(help="A recipe's YAML file.")], json: Json = False, local: Local = False
) -> None:
    """Publish a recipe for all teams; needs the scope publish."""
    document = read_document(file, what="recipe")
    with opened(local) as factory:
        found = factory.publish_recipe(document)
    if json:
        print_json(_document(found))
        return
    out.print(f"{found.recipe.name} is published, digest {found.digest[:12]}.")
    out.print(f"Order it with 'recipe: {found.recipe.name}', or pinned: {found.recipe.name}@{found.digest[:12]}.")


@PLUGIN.command("withdraw")
def withdraw_recipe(
    name: Annotated[str, typer.Argument(help="Name of a published recipe.")], local: Local = False
) -> None:
    """Take a published recipe back; what was made by it stays."""
    with opened(local) as factory:
        factory.withdraw_recipe(name)
    out.print(f"{name} is withdrawn.", markup=False)


def _document(detail: RecipeDetail) -> dict[str, object]:
    return {**plain(detail.recipe), "digest": detail.digest}
