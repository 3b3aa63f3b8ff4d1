"""Search spaces: a dimension per parameter, and narrowing.

A family declares its full space, a recipe narrows the family's, a request
narrows the recipe's.  Nobody widens: :func:`narrow` reports every attempt with
its path, its value and what is allowed.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from factory.errors import Detail, listing, suggest

Value = float | int | str | bool | None
Parameters = dict[str, Value]
Narrowing = Value | list[Value]
"""As written in YAML: a scalar fixes, two numbers are a range, a list is a choice."""


class FloatDimension(BaseModel):
    """A real interval, both ends included."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False


class IntDimension(BaseModel):
    """An integer interval, both ends included."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False


class ChoiceDimension(BaseModel):
    """A finite set of values."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["choice"] = "choice"
    choices: tuple[Value, ...] = Field(min_length=1)


Dimension = FloatDimension | IntDimension | ChoiceDimension
Space = dict[str, Dimension]


def narrow(space: Space, by: dict[str, Narrowing], *, path: str) -> tuple[Space, list[Detail]]:
    """Return the narrowed space and every problem found; a bad parameter keeps its old dimension.

    >>> space: Space = {"depth": IntDimension(low=2, high=8)}
    >>> narrow(space, {"depth": [3, 6]}, path="spaces.tree")[0]["depth"].high
    6
    >>> narrow(space, {"depth": [1, 6]}, path="spaces.tree")[1][0].message
    '[1, 6] is not within the allowed range 2 to 8.'
    """
    result, problems = dict(space), []
    for name, value in by.items():
        where = f"{path}.{name}"
        if name not in space:
            message = f"There is no parameter {name!r}.{suggest(name, space)} Allowed: {listing(space)}."
            problems.append(Detail(where, message))
            continue
        dimension = space[name]
        narrowed: Dimension | str
        if isinstance(dimension, ChoiceDimension):
            narrowed = _narrow_choice(dimension, value)
        else:
            narrowed = _narrow_interval(dimension, value)
        if isinstance(narrowed, str):
            problems.append(Detail(where, narrowed))
        else:
            result[name] = narrowed
    return result, problems


def _narrow_choice(dimension: ChoiceDimension, value: Narrowing) -> ChoiceDimension | str:
    chosen = tuple(value) if isinstance(value, list) else (value,)
    outside = [v for v in chosen if v not in dimension.choices]
    if outside or not chosen:
        return f"{value!r} is not among the allowed values {list(dimension.choices)!r}."
    return ChoiceDimension(choices=chosen)


def _narrow_interval(dimension: FloatDimension | IntDimension, value: Narrowing) -> FloatDimension | IntDimension | str:
    ends = value if isinstance(value, list) else [value, value]
    numbers = [v for v in ends if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != 2 or len(ends) != 2 or not all(math.isfinite(v) for v in numbers):
        return f"{value!r} is not a number or a pair [low, high]; allowed: {dimension.low} to {dimension.high}."
    low, high = numbers
    if isinstance(dimension, IntDimension) and (low != int(low) or high != int(high)):
        return f"{value!r} holds a fraction, but this parameter is a whole number."
    if low > high:
        return f"{value!r} has its low end above its high end."
    if low < dimension.low or high > dimension.high:
        return f"{value!r} is not within the allowed range {dimension.low} to {dimension.high}."
    if isinstance(dimension, IntDimension):
        return IntDimension(low=int(low), high=int(high), log=dimension.log)
    return FloatDimension(low=float(low), high=float(high), log=dimension.log)


def clip(space: Space, parameters: Parameters) -> Parameters:
    """Return parameters moved to the nearest point of the space; what it lacks is dropped, what it adds is filled.

    Used to bring a portfolio entry or another request's history into a narrowed space.
    """
    return {name: _nearest(dimension, parameters.get(name)) for name, dimension in space.items()}


def _nearest(dimension: Dimension, value: Value) -> Value:
    if isinstance(dimension, ChoiceDimension):
        return value if value in dimension.choices else dimension.choices[0]
    if not isinstance(value, int | float) or math.isnan(value):
        low, high = dimension.low, dimension.high
        value = math.sqrt(low) * math.sqrt(high) if dimension.log else low + (high - low) / 2
    nearest = min(max(value, dimension.low), dimension.high)
    return int(nearest) if isinstance(dimension, IntDimension) else float(nearest)
