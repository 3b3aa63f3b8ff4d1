"""List, show and validate recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from factory.cli._console import Json, out, plain, print_json, table
from factory.search.plan import check_recipe, family, load_recipe, read_document, recipe_files
from factory.settings import load_settings
from factory.spec import duration

PLUGIN = typer.Typer(no_args_is_help=True, help="List, show and validate recipes.")


@PLUGIN.command("list")
def list_recipes(json: Json = False) -> None:
    """List the recipes that can be ordered."""
    settings = load_settings()
    recipes = [load_recipe(name, settings=settings) for name in recipe_files(settings)]
    if json:
        print_json([{**plain(recipe), "digest": recipe.digest} for recipe in recipes])
        return
    rows = [
        (r.name, r.title, ", ".join(r.families), f"{duration(r.budget.default.time_s)}", r.owner, r.digest[:12])
        for r in recipes
    ]
    table("Recipes", ("name", "title", "families", "time by default.", "owner", "digest"), rows)


@PLUGIN.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or name@digest.")],
    json: Json = False,
) -> None:
    """Show a recipe and the search spaces that a request may narrow."""
    recipe = load_recipe(name, settings=load_settings())
    spaces = {
        task.value: {f: plain(family(f).space(task)) for f in recipe.families if task in family(f).tasks}
        for task in recipe.tasks
    }
    if json:
        print_json({**plain(recipe), "digest": recipe.digest, "family_spaces": spaces})
        return
    out.print(yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True), markup=False)
    out.print(f"digest: {recipe.digest}")


@PLUGIN.command()
def validate(file: Annotated[Path, typer.Argument(help="A recipe's YAML file.")]) -> None:
    """Check a recipe's file and report every problem at once."""
    recipe = check_recipe(read_document(file, what="recipe"))
    out.print(f"{file} is a valid recipe: {recipe.name}, digest {recipe.digest[:12]}.")
