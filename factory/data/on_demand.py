"""On-demand views: features that a function of the operator's computes from stored features and from the row itself.

The same function gets the same values for a training row and for a call: only
what its view declares, in one form (:mod:`factory.data.feature_columns`),
whatever store they come from.  The registry holds the function as a pickle;
that is never read (:mod:`factory.data.feature_functions`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from factory.data.feature_columns import NUMBERS, WHOLE, FeatureColumn, canonical
from factory.errors import Detail, SystemFault

logger = logging.getLogger(__name__)

MOST_SAID = 200
"""Characters of what a function says when it fails."""


@dataclass(frozen=True)
class RequestField:
    """A value that the row itself brings: of an entity row when served, of the entity table when trained."""

    name: str
    dtype: str
    views: tuple[str, ...]


@dataclass(frozen=True)
class InputColumn:
    """What a function is given: the column that holds it, the names it is given under, and its Feast type."""

    column: str
    names: tuple[str, ...]
    dtype: str
    is_request: bool = False
    """Whether the row itself brings it."""


@dataclass(frozen=True)
class OnDemandView:
    """An on-demand view as a feature service uses it.

    Attributes:
        name: Name of the view in the store.
        mode: Whether the function takes a data frame, a dictionary of lists, or one row's dictionary of values.
        inputs: What the function is given; values of the row itself among them.
        features: The features that the service takes from it.
        text_digest: SHA-256 of the function's text, as it was applied.
        function: The operator's function.
        view: Feast's own object, without a function.
    """

    name: str
    mode: Literal["pandas", "python", "python row"]
    inputs: tuple[InputColumn, ...]
    features: tuple[FeatureColumn, ...]
    text_digest: str
    function: Callable[[Any], Any]
    view: Any


def compute(views: Iterable[OnDemandView], columns: Mapping[str, np.ndarray], n_rows: int) -> dict[str, np.ndarray]:
    """Return the features of on-demand views by column, each (n_rows,) in its one form.

    Args:
        views: The views.
        columns: What they are computed from, in its one form, each (n_rows,).
        n_rows: Rows.

    Raises:
        SystemFault: a function fails, or does not give what its view says; the view is named.
    """
    computed: dict[str, np.ndarray] = {}
    for view in views:
        given = {name: (columns[item.column], item.dtype) for item in view.inputs for name in item.names}
        try:
            answer = _called(view, given, n_rows)
        except Exception as error:
            logger.exception("the on-demand feature view %s failed", view.name)
            said = f"{type(error).__name__}: {error}"
            raise _fault(view, f"its function failed: {said[:MOST_SAID]}") from error
        for feature in view.features:
            computed[feature.column] = _feature(view, feature, answer, n_rows)
    return computed


def _called(view: OnDemandView, given: Mapping[str, tuple[np.ndarray, str]], n_rows: int) -> Any:
    """Call the function of a view; a copy of everything is given, since it may change what it gets."""
    if view.mode == "pandas":
        import pandas as pd

        return view.function(pd.DataFrame({name: _series(*column) for name, column in given.items()}))
    lists = {name: _list(*column) for name, column in given.items()}
    if view.mode == "python":
        return view.function(lists)
    rows = [view.function({name: column[i] for name, column in lists.items()}) for i in range(n_rows)]
    if wrong := [row for row in rows if not isinstance(row, Mapping)]:
        return wrong[0]
    return {f.name: [row[f.name] for row in rows] for f in view.features if all(f.name in row for row in rows)}


def _series(column: np.ndarray, dtype: str) -> Any:
    import pandas as pd

    if dtype == "UnixTimestamp":
        return pd.Series(pd.to_datetime(column.tolist(), utc=True), dtype="datetime64[us, UTC]")
    return pd.Series(column.copy())


def _list(column: np.ndarray, dtype: str) -> list[Any]:
    if dtype not in NUMBERS:
        return list(column.tolist())
    kind: type = int if dtype in WHOLE else bool if dtype == "Bool" else float
    return [None if number != number else kind(number) for number in column.tolist()]


def _feature(view: OnDemandView, feature: FeatureColumn, answer: Any, n_rows: int) -> np.ndarray:
    expected = "a data frame" if view.mode == "pandas" else "a dictionary"
    if not (hasattr(answer, "columns") if view.mode == "pandas" else isinstance(answer, Mapping)):
        raise _fault(view, f"its function gave a {type(answer).__name__}, not {expected}")
    if feature.name not in answer:
        raise _fault(view, f"its function gave no {feature.name!r}, which is in its schema")
    values: Any = answer[feature.name]
    one_each = isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) == 1
    if not one_each:
        raise _fault(view, f"its function gave a {type(values).__name__} for {feature.name!r}, not one value a row")
    if len(values) != n_rows:
        raise _fault(view, f"its function gave {len(values)} values of {feature.name!r} for {n_rows} rows")
    try:
        return canonical(values, feature.dtype)
    except ValueError as error:
        problem = f"its function gave {str(error)[:MOST_SAID]} for {feature.name!r}, which is of type {feature.dtype}"
        raise _fault(view, problem) from error


def _fault(view: OnDemandView, problem: str) -> SystemFault:
    return SystemFault(
        f"The on-demand feature view {view.name!r} could not be computed: {problem}.",
        hint="This is for whoever owns the feature repository to mend; missing inputs are None (python) or NaN "
        "(pandas).",
        details=[Detail(view.name, problem)],
    )
