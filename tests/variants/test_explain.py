"""Explanations: additive to the last digit, right where the answer is known, bounded in time, from a stored bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.preparation import Preparation, Table
from factory.errors import Conflict, InvalidRequest, UntrustedBundle
from factory.families.base import Model
from factory.spec import ColumnType, Task
from factory.variants.background import BACKGROUND, ROWS, Background
from factory.variants.bundle import Bundle, Member
from factory.variants.explain import MOST_ROWS, MOST_S, Explanation, explain
from factory.variants.inputs import BundleColumn

from .conftest import Made


def with_background(made: Made) -> Bundle:
    return replace(made.bundle, background=Background.of(made.dataset.frame, made.bundle.columns, seed=0))


def is_additive(found: Explanation) -> bool:
    return np.allclose(found.base + found.contributions.sum(axis=1), found.predictions, rtol=0, atol=1e-9)


@dataclass
class Formula(Model):
    """A model whose Shapley values can be computed by hand: 3a + 2b + ab of two numbers."""

    def predict(self, table: Table) -> np.ndarray:
        a, b = table.numeric.astype(np.float64).T
        return 3 * a + 2 * b + a * b

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def test_contributions_and_base_sum_to_the_prediction(made: Made) -> None:
    bundle, rows = with_background(made), made.test.frame.head(7).set_axis([f"row {i}" for i in range(7)])
    found = explain(bundle, rows, walks=8)
    assert found.contributions.shape == (7, 5, max(len(bundle.classes), 1))
    assert is_additive(found)
    assert found.predictions == pytest.approx(bundle.predict_raw(rows).reshape(7, -1))
    assert list(found.frame().index) == list(rows.index)
    assert found.outputs == (bundle.classes or ("prediction",))
    if bundle.classes:
        assert np.allclose(found.contributions.sum(axis=2), 0, atol=1e-9)


def test_the_values_are_those_of_the_definition() -> None:
    """For two columns: φ_a = E_z[½(f(a,z_b) - f(z) + f(a,b) - f(z_a,b))] over the background's rows z."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"a": generator.normal(size=ROWS), "b": generator.normal(size=ROWS)})
    types = {"a": ColumnType.NUMERIC, "b": ColumnType.NUMERIC}
    columns = tuple(BundleColumn(name=name, type=kind) for name, kind in types.items())
    bundle = Bundle(
        task=Task.REGRESSION,
        classes=(),
        columns=columns,
        preparations=(Preparation.fit(frame, types),),
        members=(Member(family="formula", model=Formula(), preparation=0, weight=1.0),),
        background=Background.of(frame, columns, seed=0),
    )
    # Each of the 32 background rows is walked from once, with both orders of two columns.
    found = explain(bundle, {"a": np.array([2.0]), "b": np.array([-1.0])}, walks=2 * ROWS)
    z_a, z_b = frame["a"].to_numpy(), frame["b"].to_numpy()
    f = lambda a, b: 3 * a + 2 * b + a * b  # noqa: E731
    phi_a = np.mean(f(2, z_b) - f(z_a, z_b) + f(2, -1) - f(z_a, -1)) / 2
    assert found.walks == 2 * ROWS
    assert found.base[0] == pytest.approx(np.mean(f(z_a, z_b)), abs=1e-5)
    assert found.contributions[0, 0, 0] == pytest.approx(phi_a, abs=1e-5)


def test_the_column_that_matters_is_found_and_the_seed_repeats_it(binary: Made) -> None:
    bundle = with_background(binary)
    first, again = (explain(bundle, binary.test.frame.head(20), walks=16, seed=3) for _ in range(2))
    assert np.array_equal(first.contributions, again.contributions)
    shown = first.frame("yes")
    assert shown.columns[0] in ("age", "city", "member")
    assert shown.columns[-1] in ("income", "since")
    assert np.array_equal(first.frame("no")["age"], -shown["age"]) or np.allclose(
        first.frame("no")["age"], -shown["age"]
    )
    assert first.errors.max() < 0.2
    assert "walks" in first._repr_html_()


def test_time_bounds_the_walks_and_one_pair_is_always_made(binary: Made) -> None:
    started = time.monotonic()
    found = explain(with_background(binary), binary.test.frame, limit_s=0.0)
    assert time.monotonic() - started < 5
    assert found.walks == 2
    assert np.isnan(found.errors).all()
    assert is_additive(found)


def test_too_many_rows_and_too_much_time_are_refused_together(binary: Made) -> None:
    rows = binary.test.frame.iloc[np.arange(MOST_ROWS + 1) % len(binary.test.frame)]
    with pytest.raises(InvalidRequest, match=r"1001 rows .* 1 to 1000 .*limit_s: 60 s") as caught:
        explain(with_background(binary), rows, limit_s=60)
    assert [detail.field for detail in caught.value.details] == ["rows", "limit_s"]
    with pytest.raises(InvalidRequest, match="0 rows"):
        explain(with_background(binary), rows.head(0))


def test_a_first_pair_that_takes_too_long_is_given_up_with_a_reason(
    binary: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.variants.explain.MOST_S", 0.0)
    with pytest.raises(InvalidRequest, match="20 rows take more than 0 s"):
        explain(with_background(binary), binary.test.frame.head(20), limit_s=0.0)
    assert MOST_S > 0


def test_the_background_travels_with_the_bundle(made: Made, tmp_path: Path) -> None:
    bundle = with_background(made)
    digest = bundle.save(tmp_path)
    loaded = Bundle.load(tmp_path, digest=digest)
    assert loaded.background is not None
    assert len(loaded.background) == ROWS
    for name, values in with_background(made).background.columns.items():  # type: ignore[union-attr]
        assert loaded.background.columns[name].dtype == values.dtype
        assert pd.Series(values).equals(pd.Series(loaded.background.columns[name]))
    rows = made.test.frame.head(3)
    assert np.array_equal(explain(loaded, rows, walks=4).contributions, explain(bundle, rows, walks=4).contributions)
    (tmp_path / BACKGROUND).write_text('{"format": 1, "columns": {"age": ["x"]}}')
    with pytest.raises(UntrustedBundle, match=BACKGROUND):
        Bundle.load(tmp_path)


def test_rows_as_text_are_explained_as_numbers_and_dates(binary: Made) -> None:
    bundle, rows = with_background(binary), binary.test.frame.head(4)
    as_text = rows.astype({"age": str, "since": str, "member": str})
    assert np.array_equal(explain(bundle, as_text, walks=4).contributions, explain(bundle, rows, walks=4).contributions)


def test_an_old_bundle_without_background_says_so(binary: Made) -> None:
    with pytest.raises(Conflict, match="no background rows"):
        explain(binary.bundle, binary.test.frame)
