"""Feature services: what the store offers to be joined to an entity table, and how fresh it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from factory.data.features import ServiceEntry
from serve.portal.catalogue import FeatureServices
from serve.portal.context import Here
from serve.portal.identity import Reader
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import reply
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/feature-services", tags=["features"], responses=refusals(*ALWAYS, 409))

Name = Annotated[str, Path(max_length=200, description="Name of a feature service.")]


@router.get("", response_model=FeatureServices)
def list_feature_services(portal: Here, caller: Reader) -> Response:  # noqa: ARG001
    """List the feature services with their views, owners, tags and freshness, as they were within the last minute."""
    return reply(portal.features.services())


@router.get("/{name}", response_model=ServiceEntry, responses=refusals(404))
def show_feature_service(portal: Here, caller: Reader, name: Name) -> Response:  # noqa: ARG001
    """Show a feature service: its entity keys, and the features that each of its views brings."""
    return reply(portal.features.services().named(name))
