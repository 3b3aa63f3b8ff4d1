"""What the doors answer with where that is more than one document of the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field

from factory.ledger import AliasChange, Deployment, Ledger
from factory.spec import ALIAS, Document, Recipe, Variant
from factory.variants.bundle import Member
from factory.variants.inputs import BundleColumn
from factory.variants.manifest import MemberEntry


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


def listed(variants: Iterable[Variant], *, ledger: Ledger) -> tuple[ListedVariant, ...]:
    """Return versions with the aliases that point at them."""
    shown = tuple(variants)
    aliases = ledger.aliases({variant.name for variant in shown})

    def pointing_at(variant: Variant) -> tuple[ALIAS, ...]:
        return tuple(alias for alias, version in aliases[variant.name].items() if version == variant.version)

    return tuple(ListedVariant(**variant.model_dump(), aliases=pointing_at(variant)) for variant in shown)


class InputColumn(Document):
    """A column that a variant needs to predict."""

    name: str
    type: str


class MemberShare(Document):
    """A model of a variant's blend."""

    family: str
    weight: float


Inside = tuple[tuple[InputColumn, ...], tuple[MemberShare, ...]]
"""Columns that a variant needs, and the models of its blend."""


def inside(columns: Iterable[BundleColumn], members: Iterable[Member | MemberEntry]) -> Inside:
    """Return what is in a bundle, as its manifest or the bundle itself says."""
    return (
        tuple(InputColumn(name=column.name, type=column.type.value) for column in columns),
        tuple(MemberShare(family=member.family, weight=round(member.weight, 4)) for member in members),
    )


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
