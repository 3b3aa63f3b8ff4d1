"""What a recipe was before: each version that was published, as the audit log has it, and the one that came first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field, JsonValue

from factory.errors import Detail, FactoryError, NotFound
from factory.ledger import AuditQuery, Ledger
from factory.search.plan import check_recipe, load_recipe, read_document, recipe_files
from factory.settings import Settings
from factory.spec import Document, Recipe

PUBLISH = "recipe.publish"
"""The action of the audit log."""
MOST = 50
"""Versions that are told, the newest of them."""


class RecipeVersion(Document):
    """A recipe as it was at a time.

    Attributes:
        digest_: Of its content.
        published: When; None of one that comes with FACTORY_RECIPES.
        document: What it says, without what is usual.
        current: Whether requests are made by it now.
    """

    digest_: str = Field(alias="digest", description="Of its content.")
    published: datetime | None = None
    document: dict[str, JsonValue] = Field(description="What it says, without what is usual.")
    current: bool = False


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says, without what is usual."""
    return {"name": recipe.name, **recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


def history(name: str, *, ledger: Ledger, settings: Settings) -> tuple[RecipeVersion, ...]:
    """Return the versions of a recipe, the newest first; of a recipe that was withdrawn too.

    Raises:
        NotFound: there never was a recipe of that name.
    """
    rows = ledger.audit_page(AuditQuery(action=PUBLISH, subject=name), limit=MOST).items
    found: list[tuple[str, datetime | None, dict[str, Any]]] = [
        (row.detail["digest"], row.time, row.detail["document"]) for row in rows if "document" in row.detail
    ]
    shipped = _shipped(name, settings)
    if shipped is not None and shipped.digest not in {digest for digest, _, _ in found}:
        found.append((shipped.digest, None, recipe_document(shipped)))
    now = _now(name, settings)
    if now is not None and now.digest not in {digest for digest, _, _ in found}:
        found.insert(0, (now.digest, None, recipe_document(now)))
    if not found:
        raise NotFound(
            f"There is no recipe {name[:80]!r}, and none was published.",
            hint="GET /api/v1/recipes lists those that there are.",
            details=[Detail("name", f"{name[:80]!r} is not known")],
        )
    current = now.digest if now is not None else None
    last = next((k for k, (digest, _, _) in enumerate(found) if digest == current), None)
    return tuple(
        RecipeVersion(digest=digest, published=time, document=document, current=k == last)
        for k, (digest, time, document) in enumerate(found)
    )


def _now(name: str, settings: Settings) -> Recipe | None:
    try:
        return load_recipe(name, settings=settings) if name in recipe_files(settings) else None
    except FactoryError:  # broken, which the list of recipes tells
        return None


def _shipped(name: str, settings: Settings) -> Recipe | None:
    """Return the recipe of that name in FACTORY_RECIPES, hidden or not."""
    # A name from outside is only ever compared with those of files.
    file = next((path for path in settings.recipes_folder.glob("*.yaml") if path.stem == name), None)
    try:
        return check_recipe(read_document(file, what="recipe")) if file is not None else None
    except FactoryError:
        return None
