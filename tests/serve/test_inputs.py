"""The short way of plain numbers comes to what the long way comes to; answers of the ledger are renewed meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import FactoryError
from factory.variants.bundle import Bundle
from serve import inputs
from serve.inputs import NamedColumns, arrays

NUMBER = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, "41", "", "x", [1]])
TEXT = st.none() | st.sampled_from(["Bern", "2021-03-04", "x"]) | st.integers(0, 3) | st.just([1])


def columns(n: int) -> st.SearchStrategy[dict[str, list[Any]]]:
    def values(of: Any) -> Any:
        return st.lists(of, min_size=n, max_size=n) | st.lists(of, max_size=3)

    numbers = {name: values(NUMBER) for name in ("age", "income", "member")}
    texts = {name: values(TEXT) for name in ("city", "since")}
    return st.fixed_dictionaries(numbers | texts) | st.fixed_dictionaries(
        numbers, optional=texts | {"other": values(NUMBER)}
    )


def told(payload: NamedColumns, bundle: Bundle) -> Any:
    """Return what an input comes to: its arrays, or the error."""
    try:
        found = arrays(payload, bundle)
    except FactoryError as error:
        return error.as_dict()
    return {name: (values.dtype.kind, values.tolist()) for name, values in sorted(found.items())}


@given(st.integers(0, 3).flatmap(columns))
@settings(max_examples=400)
def test_the_short_way_comes_to_what_the_long_way_comes_to(churn: Bundle, given_columns: dict[str, list[Any]]) -> None:
    payload = NamedColumns(given_columns)
    short = told(payload, churn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "_plain_numbers", lambda *_: None)
        assert repr(told(payload, churn)) == repr(short)


def test_most_calls_go_the_short_way(churn: Bundle, spend: Bundle) -> None:
    row = {"age": 41, "income": None, "city": "Bern", "member": True, "since": "2021-03-04"}
    found = inputs._plain_numbers(NamedColumns({name: (value,) for name, value in row.items()}), churn)
    assert found is not None
    assert found["age"].dtype == np.float64
    assert inputs._plain_numbers(NamedColumns({"age": [1, 2], "income": [0.5, 2]}), spend) is not None
    assert inputs._plain_numbers(NamedColumns({"age": [1, 2], "income": [0.5]}), spend) is None
