"""What the doors answer with where that is more than one document of the ledger."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from factory.ledger import AliasChange, Deployment
from factory.spec import ALIAS, Document, Recipe, Variant


class RecipeDetail(BaseModel):
    """A recipe with what a request may choose from. Not a Document, since its digest is the recipe's.

    Attributes:
        family_spaces: Task → family → parameter → its space, as the families have it.
    """

    model_config = Document.model_config

    recipe: Recipe
    digest: str
    family_spaces: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)


class ListedVariant(Variant):
    """A version of a variant, with the aliases that point at it."""

    aliases: tuple[ALIAS, ...] = ()


class InputColumn(Document):
    """A column that a variant needs to predict."""

    name: str
    type: str


class MemberShare(Document):
    """A model of a variant's blend."""

    family: str
    weight: float


class VariantDetail(Document):
    """A version of a variant with what is in it and what became of its name.

    Attributes:
        columns: That it needs to predict; empty where its files were not looked at.
        alias_history: Of its name, the oldest change first.
        cards: Where its model cards are: files or addresses.
    """

    variant: Variant
    columns: tuple[InputColumn, ...] = ()
    members: tuple[MemberShare, ...] = ()
    alias_history: tuple[AliasChange, ...] = ()
    cards: tuple[str, ...] = ()


class Serving(Document):
    """What is served, and where.

    Attributes:
        predictor: Its address; None where none runs, or nobody told.
    """

    predictor: str | None
    deployments: tuple[Deployment, ...]
