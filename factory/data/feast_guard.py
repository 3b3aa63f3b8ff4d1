"""Feast without the functions of on-demand views that its registry holds.

The registry holds the function of an on-demand view as a pickle and as text,
and Feast runs one of the two whenever it reads the view, even for a join that
does not use it.  Who may write the registry could so run anything in every
trainer and replica.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def keep_shut() -> None:
    """Have Feast read on-demand views without their functions in this process, from now on.

    Their text is kept, so that Feast can tell whether one has changed, and so is what is stored of them, so that
    writing a view back changes nothing.
    """
    from feast.on_demand_feature_view import OnDemandFeatureView

    read = OnDemandFeatureView.from_proto.__func__

    def from_proto(cls: Any, on_demand_feature_view_proto: Any, skip_udf: bool = False) -> Any:
        view = read(cls, on_demand_feature_view_proto, skip_udf=True)
        if not skip_udf:
            view.feature_transformation = _without_function(on_demand_feature_view_proto.spec)
        return view

    OnDemandFeatureView.from_proto = classmethod(from_proto)


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
