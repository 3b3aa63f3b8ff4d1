"""Search spaces: whatever is asked for, the result lies within what was allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.space import ChoiceDimension, Dimension, FloatDimension, IntDimension, Space, Value, clip, narrow

numbers = st.floats(-1e6, 1e6, allow_nan=False)
names = st.sampled_from(["a", "b", "c", "d"])
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-20, 20), st.floats(), st.text(max_size=2)
)
wishes: st.SearchStrategy[Any] = st.one_of(scalars, st.lists(scalars, max_size=4))


@st.composite
def dimensions(draw: st.DrawFn) -> Dimension:
    kind = draw(st.sampled_from(["float", "int", "choice"]))
    if kind == "choice":
        values = st.one_of(st.text(max_size=2), st.integers(-3, 3), st.none(), st.booleans())
        return ChoiceDimension(choices=tuple(draw(st.lists(values, min_size=1, max_size=5))))
    if kind == "float":
        low, high = sorted((draw(numbers), draw(numbers)))
        return FloatDimension(low=low, high=high, log=low > 0 and draw(st.booleans()))
    whole_low, whole_high = sorted((draw(st.integers(-50, 50)), draw(st.integers(-50, 50))))
    return IntDimension(low=whole_low, high=whole_high, log=whole_low > 0 and draw(st.booleans()))


spaces = st.dictionaries(names, dimensions(), max_size=4)


def within(inner: Dimension, outer: Dimension) -> bool:
    if isinstance(outer, ChoiceDimension):
        return isinstance(inner, ChoiceDimension) and all(value in outer.choices for value in inner.choices)
    if isinstance(inner, ChoiceDimension):
        return False
    same_kind = type(inner) is type(outer) and inner.log == outer.log
    return same_kind and outer.low <= inner.low <= inner.high <= outer.high


def holds(dimension: Dimension, value: Value) -> bool:
    if isinstance(dimension, ChoiceDimension):
        return value in dimension.choices
    kind = int if isinstance(dimension, IntDimension) else float
    return isinstance(value, kind) and dimension.low <= float(value) <= dimension.high


@given(spaces, st.dictionaries(names, wishes, max_size=4))
def test_narrowing_never_widens(space: Space, wanted: dict[str, Any]) -> None:
    narrowed, problems = narrow(space, wanted, path="spaces.x")
    assert set(narrowed) == set(space)
    assert all(within(narrowed[name], space[name]) for name in space)
    refused = {problem.field.removeprefix("spaces.x.") for problem in problems}
    assert refused <= set(wanted)
    assert len(refused) == len(problems), "one problem for each parameter"
    assert {name for name in wanted if name not in space} <= refused
    assert all(narrowed[name] == space[name] for name in space if name in refused or name not in wanted)


@given(spaces, st.dictionaries(names, wishes, max_size=4))
def test_narrowing_twice_is_narrowing_once(space: Space, wanted: dict[str, Any]) -> None:
    once, problems = narrow(space, wanted, path="s")
    accepted = {name: value for name, value in wanted.items() if f"s.{name}" not in {p.field for p in problems}}
    assert narrow(once, accepted, path="s") == (once, [])


@given(dimensions(), st.data())
def test_every_sub_range_is_accepted(dimension: Dimension, data: st.DataObject) -> None:
    wanted: Any
    if isinstance(dimension, ChoiceDimension):
        wanted = data.draw(st.lists(st.sampled_from(dimension.choices), min_size=1))
    else:
        ends = st.integers if isinstance(dimension, IntDimension) else st.floats
        inside = ends(dimension.low, dimension.high)  # type: ignore[operator]
        wanted = sorted([data.draw(inside), data.draw(inside)])
    narrowed, problems = narrow({"a": dimension}, {"a": wanted}, path="s")
    assert problems == []
    ends_now = (
        narrowed["a"].choices if isinstance(narrowed["a"], ChoiceDimension) else (narrowed["a"].low, narrowed["a"].high)
    )
    assert list(ends_now) == wanted


@given(spaces, st.dictionaries(names, scalars, max_size=4))
def test_a_clipped_configuration_lies_in_the_space(space: Space, parameters: dict[str, Any]) -> None:
    clipped = clip(space, parameters)
    assert set(clipped) == set(space)
    assert all(holds(space[name], value) for name, value in clipped.items())


@given(spaces, st.dictionaries(names, scalars, max_size=4))
def test_clipping_leaves_what_lies_in_the_space(space: Space, parameters: dict[str, Any]) -> None:
    clipped = clip(space, parameters)
    assert clip(space, clipped) == clipped


DEPTH = IntDimension(low=2, high=8)
RATE = FloatDimension(low=0.01, high=0.3, log=True)
LOSS = ChoiceDimension(choices=("log", "exp", None))


@pytest.mark.parametrize(
    ("dimension", "wanted", "expected"),
    [
        (DEPTH, 5, IntDimension(low=5, high=5)),
        (DEPTH, [3, 6], IntDimension(low=3, high=6)),
        (DEPTH, [3.0, 6], IntDimension(low=3, high=6)),
        (RATE, 0.1, FloatDimension(low=0.1, high=0.1, log=True)),
        (RATE, [0.01, 0.3], RATE),
        (LOSS, "exp", ChoiceDimension(choices=("exp",))),
        (LOSS, ["exp", None], ChoiceDimension(choices=("exp", None))),
    ],
)
def test_what_yaml_says(dimension: Dimension, wanted: Any, expected: Dimension) -> None:
    assert narrow({"p": dimension}, {"p": wanted}, path="s") == ({"p": expected}, [])


@pytest.mark.parametrize(
    ("dimension", "wanted", "parts"),
    [
        (DEPTH, 9, ["9", "range 2 to 8"]),
        (DEPTH, [1, 6], ["[1, 6]", "range 2 to 8"]),
        (DEPTH, [6, 3], ["[6, 3]", "low end above its high end"]),
        (DEPTH, 2.5, ["2.5", "whole number"]),
        (DEPTH, [2, 3, 4], ["[2, 3, 4]", "pair [low, high]", "2 to 8"]),
        (DEPTH, "deep", ["'deep'", "2 to 8"]),
        (DEPTH, True, ["True", "2 to 8"]),
        (RATE, math.nan, ["nan", "0.01 to 0.3"]),
        (RATE, [0.01, math.inf], ["inf", "0.01 to 0.3"]),
        (LOSS, "mse", ["'mse'", "'log', 'exp', None"]),
        (LOSS, [], ["[]", "'log', 'exp', None"]),
    ],
)
def test_what_is_refused_names_value_and_allowed(dimension: Dimension, wanted: Any, parts: list[str]) -> None:
    _, [problem] = narrow({"p": dimension}, {"p": wanted}, path="spaces.tree")
    assert problem.field == "spaces.tree.p"
    assert [part for part in parts if part not in problem.message] == []


def test_an_unknown_parameter_names_the_nearest() -> None:
    _, [problem] = narrow({"depth": DEPTH}, {"dpeth": 3}, path="s")
    assert "Did you mean 'depth'?" in problem.message
    assert "Allowed: depth." in problem.message
