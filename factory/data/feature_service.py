"""A feature service of the store as plain facts: views, keys, columns, and the digest of what decides its values.

What a service renames, and which view a column comes from, is settled once
here, for joins, online reads and checks alike.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from factory.errors import Detail, InvalidRequest, listing, suggest


@dataclass(frozen=True)
class KeyColumn:
    """A join key: its name in the store, its name in entity tables and rows, and its Feast type."""

    name: str
    column: str
    dtype: str


@dataclass(frozen=True)
class FeatureColumn:
    """A feature: its name in the view, the column it becomes, and its Feast type."""

    name: str
    column: str
    dtype: str


@dataclass(frozen=True)
class ViewDefinition:
    """One view as a feature service uses it.

    Attributes:
        name: Name of the view in the store.
        keys: Join keys of the view.
        features: The features that the service takes from it.
        ttl: Age beyond which a value no longer counts, or None.
        view: Feast's own object.
    """

    name: str
    keys: tuple[KeyColumn, ...]
    features: tuple[FeatureColumn, ...]
    ttl: timedelta | None
    view: Any

    def in_own_names(self) -> ViewDefinition:
        """Return the view without what a service renames in it."""
        return replace(
            self,
            keys=tuple(replace(key, column=key.name) for key in self.keys),
            features=tuple(replace(feature, column=feature.name) for feature in self.features),
        )


@dataclass(frozen=True)
class ServiceDefinition:
    """A feature service resolved against the registry.

    Attributes:
        name: Name of the service.
        views: Its views, in the service's order.
        full_names: Whether columns are called ``view__feature``, since two views share a feature's name.
        digest: SHA-256 of what decides its values: views, features, types, TTL, entities, source columns.
        service: Feast's own object; looking it up on each read would cost 7 to 29 ms.
    """

    name: str
    views: tuple[ViewDefinition, ...]
    full_names: bool
    digest: str
    service: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns."""
        return tuple(feature.column for view in self.views for feature in view.features)

    @property
    def keys(self) -> tuple[KeyColumn, ...]:
        """The join keys that an entity row must have, each once."""
        return tuple({key.column: key for view in self.views for key in view.keys}.values())


def resolve(store: Any, name: str) -> ServiceDefinition:
    """Return a feature service with its views, as the registry has them now.

    Raises:
        InvalidRequest: there is no such service, or it uses an on-demand view or one without an entity.
    """
    services = {service.name: service for service in store.list_feature_services()}
    if name not in services:
        raise InvalidRequest(
            f"There is no feature service {name!r}.{suggest(name, services)}",
            hint=f"Feature services of this store: {listing(services)}.",
            details=[Detail("feature_service", f"Received {name!r}; allowed: {listing(services)}.")],
        )
    service = services[name]
    projections = service.feature_view_projections
    counts = Counter(feature.name for projection in projections for feature in projection.features)
    full = max(counts.values(), default=0) > 1
    views = tuple(_view_definition(store, projection, service=name, full=full) for projection in projections)
    return ServiceDefinition(name=name, views=views, full_names=full, digest=_digest(views), service=service)


def _view_definition(store: Any, projection: Any, *, service: str, full: bool) -> ViewDefinition:
    from feast.feature_view import DUMMY_ENTITY_ID, FeatureView

    view = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
    if not isinstance(view, FeatureView) or any(c.name == DUMMY_ENTITY_ID for c in view.entity_columns):
        raise InvalidRequest(
            f"The feature service {service!r} uses the view {projection.name!r}, which is computed on demand or has no "
            "entity; such views cannot be joined point-in-time here.",
            hint="Use a feature service of plain feature views with an entity.",
            details=[Detail("feature_service", f"View {projection.name!r} is a {type(view).__name__}.")],
        )
    label = projection.name_alias or projection.name
    return ViewDefinition(
        name=projection.name,
        keys=tuple(
            KeyColumn(name=c.name, column=projection.join_key_map.get(c.name, c.name), dtype=str(c.dtype))
            for c in view.entity_columns
        ),
        features=tuple(
            FeatureColumn(name=f.name, column=f"{label}__{f.name}" if full else f.name, dtype=str(f.dtype))
            for f in projection.features
        ),
        # Feast takes a TTL of zero for none.
        ttl=view.ttl or None,
        view=view,
    )


def _digest(views: tuple[ViewDefinition, ...]) -> str:
    """Hash what decides a service's values; owners, tags, descriptions and file locations do not."""
    content = [
        {
            "view": v.name,
            "keys": [[k.name, k.column, k.dtype] for k in v.keys],
            "features": [[f.name, f.column, f.dtype] for f in v.features],
            "ttl_s": v.ttl.total_seconds() if v.ttl else None,
            "timestamp": v.view.batch_source.timestamp_field,
            "created": v.view.batch_source.created_timestamp_column,
            "mapping": dict(v.view.batch_source.field_mapping),
        }
        for v in views
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
