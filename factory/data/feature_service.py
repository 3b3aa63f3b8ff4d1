"""A feature service of the store as plain facts: views, keys, columns, and the digest of what decides its values.

What a service renames, and which view a column comes from, is settled once
here, for joins, online reads and checks alike.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from factory.data.feature_columns import FeatureColumn, KeyColumn
from factory.data.on_demand import OnDemandView, RequestField
from factory.data.on_demand_definition import (
    is_on_demand,
    label_of,
    on_demand_view,
    request_fields,
    stored_sources,
)
from factory.errors import Detail, InvalidRequest, listing, suggest
from factory.settings import Settings


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
class StoredRead:
    """What Feast is asked for in one call.

    Attributes:
        features: A feature service, or a list of ``view:feature``.
        views: The views that are read, with the columns that their features become.
        full_names: Whether Feast is to call features ``view__feature``.
        references: Whether ``features`` is a list: keys and features have their own names in the answer then.
    """

    features: Any
    views: tuple[ViewDefinition, ...]
    full_names: bool
    references: bool = False

    @classmethod
    def by_reference(cls, views: Sequence[ViewDefinition]) -> StoredRead:
        """Return the read of views under their own names."""
        named = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
        return cls(named, tuple(views), full_names=True, references=True)

    @property
    def keys(self) -> dict[str, str]:
        """The column of an entity row by the name of the key that Feast is given."""
        return {key.name if self.references else key.column: key.column for view in self.views for key in view.keys}

    def answered(self, view: ViewDefinition, feature: FeatureColumn) -> str:
        """Return what Feast calls a feature in its answer."""
        return f"{view.name}__{feature.name}" if self.references else feature.column


@dataclass(frozen=True)
class ServiceDefinition:
    """A feature service resolved against the registry.

    Attributes:
        name: Name of the service.
        views: Its views, in the service's order.
        full_names: Whether columns are called ``view__feature``, since two views share a feature's name.
        digest: SHA-256 of what decides its values: views, features, types, TTL, entities, source columns.
        service: Feast's own object; looking it up on each read would cost 7 to 29 ms.
        reads: How its stored features are read, of one view or more at a time.
        on_demand: Its views that are computed, in the service's order.
        request: Values that the row itself brings, for the views that are computed.
    """

    name: str
    views: tuple[ViewDefinition, ...]
    full_names: bool
    digest: str
    service: Any
    reads: tuple[StoredRead, ...]
    on_demand: tuple[OnDemandView, ...] = ()
    request: tuple[RequestField, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns: stored ones, then those that are computed."""
        stored = tuple(feature.column for view in self.views for feature in view.features)
        return (*stored, *(feature.column for view in self.on_demand for feature in view.features))

    @property
    def stored(self) -> tuple[ViewDefinition, ...]:
        """The views that are read, those among them that others are computed from."""
        return tuple(view for read in self.reads for view in read.views)

    @property
    def keys(self) -> tuple[KeyColumn, ...]:
        """The join keys that an entity row must have, each once."""
        return tuple({key.column: key for view in self.stored for key in view.keys}.values())


def resolve(store: Any, name: str, *, settings: Settings) -> ServiceDefinition:
    """Return a feature service with its views, as the registry has them now.

    Args:
        store: Feast's store.
        name: Of the service.
        settings: Where the repository is, which holds the functions of on-demand views.

    Raises:
        InvalidRequest: there is no such service, or it uses a view that cannot be joined or computed here.
        Conflict: the repository does not hold an on-demand view's function as it was applied.
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
    stored, computed = [], []
    for projection in projections:
        view = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        if is_on_demand(view):
            computed.append((projection, view))
        else:
            stored.append((projection, _view_definition(view, projection, service=name, full=full)))
    views = tuple(view for _, view in stored)
    if not computed:
        read = StoredRead(service, views, full_names=full)
        return ServiceDefinition(
            name=name, views=views, full_names=full, digest=_digest(views), service=service, reads=(read,)
        )
    reads, columns = _reads(store, stored, [view for _, view in computed], service=name)
    on_demand = tuple(
        on_demand_view(view, projection, columns, service=name, full=full, settings=settings)
        for projection, view in computed
    )
    request = request_fields(on_demand, taken={feature.column for view in views for feature in view.features})
    return ServiceDefinition(
        name=name,
        views=views,
        full_names=full,
        digest=_digest(views, tuple(view for read in reads for view in read.views), on_demand),
        service=service,
        reads=reads,
        on_demand=on_demand,
        request=request,
    )


def _reads(
    store: Any, stored: list[tuple[Any, ViewDefinition]], computed: list[Any], *, service: str
) -> tuple[tuple[StoredRead, ...], dict[tuple[str, str], str]]:
    """Return how stored features are read that a service has or computes from, and their columns by view and feature.

    Feast would compute the on-demand views of a service that it is asked for, so features are asked for by reference.
    A reference knows no renamed keys; a view with such keys is read by itself, under its own names.
    """
    found: dict[str, ViewDefinition] = {}
    columns: dict[tuple[str, str], str] = {}
    for projection, view in stored:
        label = label_of(projection)
        found[label] = view
        columns |= {(label, feature.name): feature.column for feature in view.features}
    for projection in (source for view in computed for source in stored_sources(view)):
        label = label_of(projection)
        view = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        asked = _view_definition(view, projection, service=service, full=True)
        known = found.get(label, replace(asked, features=()))
        if (known.name, known.keys) != (asked.name, asked.keys):
            raise InvalidRequest(
                f"The feature service {service!r} uses {label!r} with two sets of keys.",
                hint="Name one of them anew (`with_name`).",
                details=[Detail("feature_service", f"View {label!r} has two sets of keys.")],
            )
        names = {feature.name for feature in known.features}
        # No column can be called so: what is only computed from is no feature of the service.
        hidden = tuple(
            replace(f, column=columns.setdefault((label, f.name), f"{label}:{f.name}"))
            for f in asked.features
            if f.name not in names
        )
        found[label] = replace(known, features=(*known.features, *hidden))
    if not found:
        raise InvalidRequest(
            f"The feature service {service!r} has on-demand views only, and none is computed from a stored one.",
            hint="Compute from the columns themselves where the data is made, or add a view with an entity.",
            details=[Detail("feature_service", "No stored view.")],
        )
    together: list[ViewDefinition] = []
    alone: list[ViewDefinition] = []
    for label, view in found.items():
        plain = label == view.name and all(key.name == key.column for key in view.keys)
        (together if plain else alone).append(view)
    groups = [*([together] if together else []), *([view] for view in alone)]
    return tuple(StoredRead.by_reference(views) for views in groups), columns


def _view_definition(view: Any, projection: Any, *, service: str, full: bool) -> ViewDefinition:
    from feast.feature_view import DUMMY_ENTITY_ID, FeatureView

    if not isinstance(view, FeatureView) or any(c.name == DUMMY_ENTITY_ID for c in view.entity_columns):
        raise InvalidRequest(
            f"The feature service {service!r} uses the view {projection.name!r}, which has no entity or is no plain "
            "view; such views cannot be joined point-in-time here.",
            hint="Use a feature service of plain feature views with an entity, and of what is computed from them.",
            details=[Detail("feature_service", f"View {projection.name!r} is a {type(view).__name__}.")],
        )
    label = label_of(projection)
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


def _digest(
    views: tuple[ViewDefinition, ...],
    stored: tuple[ViewDefinition, ...] = (),
    on_demand: tuple[OnDemandView, ...] = (),
) -> str:
    """Hash what decides a service's values; owners, tags, descriptions and file locations do not."""
    content: list[dict[str, Any]] = [
        {
            "view": v.name,
            "keys": [[k.name, k.column, k.dtype] for k in v.keys],
            "features": [[f.name, f.column, f.dtype] for f in v.features],
            "ttl_s": v.ttl.total_seconds() if v.ttl else None,
            "timestamp": v.view.batch_source.timestamp_field,
            "created": v.view.batch_source.created_timestamp_column,
            "mapping": dict(v.view.batch_source.field_mapping),
        }
        for v in (*views, *stored)
    ]
    content += [
        {
            "on_demand": v.name,
            "mode": v.mode,
            "inputs": [[i.column, list(i.names), i.dtype] for i in v.inputs],
            "features": [[f.name, f.column, f.dtype] for f in v.features],
            "text": v.text_digest,
        }
        for v in on_demand
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
