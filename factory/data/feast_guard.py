"""Feast without the functions of feature views that its registry holds.

The registry holds the function of an on-demand, batch or stream view as a
pickle and as text, and Feast runs one of the two whenever it reads the view,
even for a join that does not use it.  Who may write the registry could so run
anything in every trainer and replica.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def keep_shut() -> None:
    """Have Feast read views without their functions in this process, from now on.

    The text of on-demand views is kept, so that Feast can tell whether one has changed, and what is stored of a view
    is, so that writing it back changes nothing.
    """
    from feast.feature_view import FeatureView
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.stream_feature_view import StreamFeatureView

    for kind in (FeatureView, OnDemandFeatureView, StreamFeatureView):
        kind.from_proto = _reading_without(kind.from_proto)


def has_function(view: Any) -> bool:
    """Return whether rows of a stored view come from its source through a function, which is not run here."""
    return bool(getattr(view, "feature_transformation", None) or getattr(view, "_raw_udf_proto", None))


def _reading_without(method: Any) -> classmethod[Any, Any, Any]:
    from feast.on_demand_feature_view import OnDemandFeatureView

    read = method.__func__

    def from_proto(cls: Any, proto: Any, skip_udf: bool = False) -> Any:
        view = read(cls, proto, skip_udf=True)
        if isinstance(view, OnDemandFeatureView) and not skip_udf:
            view.feature_transformation = _without_function(proto.spec)
        return view

    return classmethod(from_proto)


def _without_function(spec: Any) -> Any:
    from feast.transformation.base import Transformation

    text = spec.feature_transformation.user_defined_function.body_text
    mode = spec.mode or "pandas"
    if not text or mode not in ("pandas", "python"):
        return None
    return Transformation(mode=mode, udf=_unknown, udf_string=text)


def _unknown(_: Any) -> Any:
    raise RuntimeError("the registry's function is not run")


# Feast wants a function of pandas mode to return a data frame, or to say nothing of it.
_unknown.__annotations__.clear()
