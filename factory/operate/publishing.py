"""Publishing recipes: who may, where they lie, and what the audit log has of it.

A published recipe is a file in ``FACTORY_HOME/recipes``, written from the
checked document and not from the author's text, and hides a recipe of the same
name in FACTORY_RECIPES.  A team's author answers for the team's recipes only.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml

from factory.errors import Conflict, Detail, FactoryError, NotFound, StorageFault
from factory.ledger import Ledger
from factory.operate.recipe_history import PUBLISH, recipe_document
from factory.search.plan import check_recipe, load_recipe, read_document, recipe_files
from factory.settings import Settings
from factory.spec import Actor, Recipe


def publish(
    document: object,
    *,
    team: str | None,
    ledger: Ledger,
    settings: Settings,
    by: Actor,
    if_digest: str | None = None,
) -> Recipe:
    """Publish a recipe; where the same one is there already, nothing changes.

    Args:
        document: Of the recipe, unchecked.
        team: Of whoever publishes, which becomes its owner; None for operators, who may say any owner.
        ledger: Keeps who published what.
        settings: Name the folders.
        by: Who publishes.
        if_digest: Of the recipe that it replaces, as the caller knows it; nothing is published where it is another.

    Returns:
        The recipe as it was published.

    Raises:
        Conflict: a recipe of that name is another team's, or not as the caller knows it.
        InvalidRequest: the document is no valid recipe; all problems are reported.
        StorageFault: FACTORY_HOME cannot be written.
    """
    recipe = check_recipe(document)
    if team is not None:
        _require_owner(recipe.owner or team, team, recipe.name)
        recipe = recipe.model_copy(update={"owner": team})
    before = _present(recipe.name, team=team, settings=settings)
    if if_digest is not None and (before is None or before.digest != if_digest):
        raise Conflict(
            f"Recipe {recipe.name} was changed since it was read.",
            hint="Read it again, and make the change to what it is now.",
            details=[Detail("if_digest", "is not the digest of the recipe of today")],
        )
    if before is not None and before.digest == recipe.digest:
        return before
    # The log comes first: rather a row too many than a recipe without one.
    detail = {
        "digest": recipe.digest,
        "before": None if before is None else before.digest,
        "owner": recipe.owner,
        "approval": recipe.approval,
        "document": recipe_document(recipe),
    }
    ledger.record_audit(PUBLISH, recipe.name, by=by, team=team, detail=detail)
    _write(recipe, settings.published_recipes)
    return recipe


def withdraw(name: str, *, team: str | None, ledger: Ledger, settings: Settings, by: Actor) -> None:
    """Take a published recipe back; one of the same name in FACTORY_RECIPES is there again. Arguments as above.

    Raises:
        Conflict: it is another team's, or was not published here.
        NotFound: there is none of that name.
    """
    files = recipe_files(settings)
    if name not in files:
        raise NotFound(
            f"There is no recipe {name[:80]!r}.",
            hint="`factory recipes list` shows them all.",
            details=[Detail("name", f"{name[:80]!r} is not known")],
        )
    if files[name].parent != settings.published_recipes:
        raise Conflict(
            f"Recipe {name} was not published here, but comes with FACTORY_RECIPES.",
            hint="An operator takes its file away.",
            details=[Detail("name", "was not published here")],
        )
    before = _present(name, team=team, settings=settings)
    detail = {"digest": None if before is None else before.digest}
    ledger.record_audit("recipe.withdraw", name, by=by, team=team, detail=detail)
    try:
        files[name].unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(settings.published_recipes, error) from error


def _present(name: str, *, team: str | None, settings: Settings) -> Recipe | None:
    """Return the recipe of that name that there is, if it may be replaced; None also where it is broken."""
    if name not in recipe_files(settings):
        return None
    try:
        present = load_recipe(name, settings=settings)
    except FactoryError:
        if team is None:
            return None
        raise
    if team is not None:
        _require_owner(present.owner, team, name)
    return present


def _require_owner(owner: str, team: str, name: str) -> None:
    if owner == team:
        return
    whose = f"of {owner!r}" if owner else "an operator's"
    raise Conflict(
        f"Recipe {name} is {whose}, not team {team}'s.",
        hint=f"Publish it under another name, with 'owner: {team}' or without an owner.",
        details=[Detail("owner", f"is {owner!r}; allowed: {team!r}")],
    )


def _write(recipe: Recipe, folder: Path) -> None:
    """Write a recipe in one step, once what was written reads as the same recipe."""
    text = yaml.safe_dump(recipe_document(recipe), sort_keys=False, allow_unicode=True)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, place = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            written = check_recipe(read_document(Path(place), what="recipe"))
            assert written.digest == recipe.digest
            Path(place).replace(folder / f"{recipe.name}.yaml")
        finally:
            Path(place).unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: OSError) -> StorageFault:
    return StorageFault(
        f"The folder of published recipes {str(folder)!r} cannot be written: {error.strerror or error}.",
        hint="Free some space, or check the rights on FACTORY_HOME.",
        details=[Detail("FACTORY_HOME", str(error))],
    )
