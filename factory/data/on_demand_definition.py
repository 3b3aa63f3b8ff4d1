"""An on-demand view of the registry as the factory computes it; what it cannot compute is refused here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from factory.data.feature_columns import COMPUTED_FROM, FeatureColumn
from factory.data.feature_functions import applied_function
from factory.data.on_demand import InputColumn, OnDemandView, RequestField
from factory.errors import Detail, InvalidRequest, listing
from factory.settings import Settings

_MODES = ("pandas", "python")
_GIVEN = COMPUTED_FROM - {"UnixTimestamp"}


def is_on_demand(view: Any) -> bool:
    """Whether a view of Feast's is computed on demand."""
    from feast import OnDemandFeatureView

    return isinstance(view, OnDemandFeatureView)


def label_of(projection: Any) -> str:
    """Return what a service calls a view."""
    return str(projection.name_alias or projection.name)


def stored_sources(view: Any) -> list[Any]:
    """Return the projections of stored views that a view is computed from; the registry keeps no order of them."""
    return sorted(view.source_feature_view_projections.values(), key=label_of)


def on_demand_view(
    view: Any, projection: Any, stored: Mapping[tuple[str, str], str], *, service: str, full: bool, settings: Settings
) -> OnDemandView:
    """Return an on-demand view as a service uses it, with its function.

    Args:
        view: Feast's own object.
        projection: What the service takes of it.
        stored: By view (as it is called where it is used) and feature, the column that holds a stored feature.
        service: Name of the service.
        full: Whether columns are called ``view__feature``.
        settings: Where the repository is.

    Raises:
        InvalidRequest: it is of another mode, or computed from or gives types that are not known here.
        Conflict: the repository does not hold its function as it was applied.
    """
    label, inputs = label_of(projection), _inputs(view, stored)
    features = tuple(
        FeatureColumn(name=f.name, column=f"{label}__{f.name}" if full else f.name, dtype=str(f.dtype))
        for f in projection.features
    )
    _require_supported(view, inputs, features, service=service)
    function, digest = applied_function(settings, view)
    mode: Literal["pandas", "python", "python row"] = "pandas"
    if view.mode == "python":
        mode = "python row" if view.singleton else "python"
    return OnDemandView(
        name=view.name,
        mode=mode,
        inputs=inputs,
        features=features,
        text_digest=digest,
        function=function,
        view=view,
    )


def request_fields(views: Iterable[OnDemandView], *, taken: set[str]) -> tuple[RequestField, ...]:
    """Return the values that rows themselves bring, each once.

    Raises:
        InvalidRequest: two views give one of them different types, or it is called as a feature is.
    """
    found: dict[str, RequestField] = {}
    for view in views:
        for item in (item for item in view.inputs if item.is_request):
            known = found.get(item.column, RequestField(item.column, item.dtype, ()))
            if known.dtype != item.dtype or item.column in taken:
                why = "is called as a feature is" if item.column in taken else f"is {known.dtype} and {item.dtype}"
                raise InvalidRequest(
                    f"The request value {item.column!r} of the on-demand view {view.name!r} {why}.",
                    hint="Give it a name of its own, and one type.",
                    details=[Detail(item.column, f"It {why}.")],
                )
            found[item.column] = RequestField(item.column, item.dtype, (*known.views, view.name))
    return tuple(found.values())


def _inputs(view: Any, stored: Mapping[tuple[str, str], str]) -> tuple[InputColumn, ...]:
    """Return what a view's function is given, as Feast names it: ``feature`` and ``view__feature``."""
    requests = view.source_request_sources
    fields = [field for name in sorted(requests) for field in requests[name].schema]
    own = {field.name for field in fields}
    sources = stored_sources(view)
    counts = Counter(feature.name for source in sources for feature in source.features)
    inputs = [
        InputColumn(
            column=stored[(label_of(source), feature.name)],
            # A short name that two sources share would be the one's or the other's.
            names=(f"{source.name}__{feature.name}",)
            + ((feature.name,) if counts[feature.name] == 1 and feature.name not in own else ()),
            dtype=str(feature.dtype),
        )
        for source in sources
        for feature in source.features
    ]
    return (*inputs, *(InputColumn(f.name, (f.name,), str(f.dtype), is_request=True) for f in fields))


def _require_supported(
    view: Any, inputs: tuple[InputColumn, ...], features: tuple[FeatureColumn, ...], *, service: str
) -> None:
    problems = []
    if view.mode not in _MODES:
        problems.append(f"it is of mode {view.mode!r}; allowed: {listing(_MODES)}")
    if view.aggregations:
        problems.append("it aggregates rows; a row is computed by itself here")
    if not view.enabled:
        problems.append("it is disabled")
    problems += [
        f"{item.names[-1]!r}, which it is computed from, is of type {item.dtype}; allowed: {listing(COMPUTED_FROM)}"
        for item in inputs
        if item.dtype not in COMPUTED_FROM
    ]
    problems += [
        f"{feature.name!r} is of type {feature.dtype}; allowed: {listing(_GIVEN)}"
        for feature in features
        if feature.dtype not in _GIVEN
    ]
    if problems:
        raise InvalidRequest(
            f"The feature service {service!r} uses the on-demand view {view.name!r}, which cannot be computed here: "
            f"{'; '.join(problems)}.",
            hint="Change the view, or use a feature service without it.",
            details=[Detail(view.name, f"{problem[:1].upper()}{problem[1:]}.") for problem in problems],
        )
