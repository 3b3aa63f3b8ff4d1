"""The catalogue of features: what the store offers, who owns it, who uses it, and how fresh it is."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from factory.data.features import ServiceEntry
from serve.portal.catalogue import FeatureServices
from serve.portal.documents import Variants
from serve.portal.pages.kit import SignedIn
from serve.portal.routes import API

router = APIRouter(include_in_schema=False)


@router.get("/features")
async def show_features(visitor: SignedIn, like: str = "") -> Response:
    """Show the feature services that have a word somewhere: in a name, a description, a tag, or of a feature."""
    found = await visitor.api.get(f"{API}/feature-services", FeatureServices)
    items = [one for one in found.items if matches(one, like)]
    return visitor.page("features.html", items=items, n_all=len(found.items), looked=found.looked, like=like.strip())


@router.get("/features/choice")
async def show_choice(
    visitor: SignedIn, chosen: Annotated[str, Query(alias="dataset.feature_service")] = ""
) -> Response:
    """Show the feature services as a choice of the form of a request."""
    found = await visitor.api.get(f"{API}/feature-services", FeatureServices)
    return visitor.page("features_choice.html", items=found.items, chosen=chosen)


@router.get("/features/{name}")
async def show_service(visitor: SignedIn, name: str) -> Response:
    """Show a feature service: its keys, its views with their features, and the variants that use it."""
    service, used = await asyncio.gather(
        visitor.api.get(f"{API}/feature-services/{name}", ServiceEntry),
        visitor.api.get(f"{API}/variants", Variants, {"feature_service": name, "limit": 100}),
    )
    return visitor.page("feature_service.html", service=service, used=used.items, more=used.next is not None)


def matches(service: ServiceEntry, like: str) -> bool:
    """Whether each word that is looked for stands somewhere in what the catalogue says of a service."""
    said = [service.name, service.description, service.owner, *service.entities, *service.tags.values()]
    for view in service.views:
        said += [view.name, view.description, view.owner, *view.features, *view.tags.values()]
    text = " ".join(said).lower()
    return all(word in text for word in like.lower().split())
