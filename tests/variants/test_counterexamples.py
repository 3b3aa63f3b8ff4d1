"""Counter-examples: the fewest columns, then the smallest change, of values that occur, predicted as alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.preparation import Preparation, Table
from factory.errors import Conflict, InvalidRequest
from factory.families.base import Model
from factory.spec import ColumnType, Task
from factory.variants import counterexamples as module
from factory.variants.background import Background
from factory.variants.bundle import Bundle, Member
from factory.variants.counterexamples import CounterExamples, counterexamples
from factory.variants.inputs import BundleColumn

from .conftest import Made


@dataclass
class Formula(Model):
    """Yes where a + b + c is 10 or more; or the sum itself."""

    classes: bool

    def predict(self, table: Table) -> np.ndarray:
        total = table.numeric[:, :3].astype(np.float64).sum(axis=1)
        if not self.classes:
            return total
        yes = np.clip(0.5 + (total - 9.5) / 100, 0, 1)
        return np.stack([1 - yes, yes], axis=1)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def bundle_of(*, classes: bool) -> Bundle:
    frame = pd.DataFrame({"a": [0.0, 2, 6, 10], "b": [0.0, 1, 3, 5], "c": [0.0, 1, 2, 4], "d": [0.0, 1, 2, 3]})
    types = dict.fromkeys(frame, ColumnType.NUMERIC)
    columns = tuple(BundleColumn(name=name, type=kind) for name, kind in types.items())
    return Bundle(
        task=Task.BINARY if classes else Task.REGRESSION,
        classes=("no", "yes") if classes else (),
        columns=columns,
        preparations=(Preparation.fit(frame, types),),
        members=(Member(family="formula", model=Formula(classes), preparation=0, weight=1.0),),
        background=Background.of(frame, columns, seed=0),
    )


def of(a: float, b: float, c: float, d: float = 0.0) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in zip("abcd", (a, b, c, d), strict=True)}


def changed(found: CounterExamples) -> list[dict[str, object]]:
    return [{name: after for name, (_, after) in example.changes.items()} for example in found.found]


def test_one_column_goes_before_two_and_the_smaller_change_before_the_larger() -> None:
    bundle = bundle_of(classes=True)
    (found,) = counterexamples(bundle, of(2, 3, 1), n=10)
    # a = 6 is enough and moves by 4 of 10; a = 10 is no nearer; b and c alone are too small, and together: 2 + 5 + 4.
    assert changed(found) == [{"a": 6.0}, {"b": 5.0, "c": 4.0}]
    assert found.found[0].changes == {"a": (2.0, 6.0)}
    assert found.found[0].distance == pytest.approx(0.4)
    assert found.found[1].distance == pytest.approx(2 / 5 + 3 / 4)
    assert found.complete
    assert found.tried > 9
    (first,) = counterexamples(bundle, of(2, 3, 1), n=1)
    assert changed(first) == [{"a": 6.0}]
    assert first.tried == 12, "nobody looks at two columns where one is enough"


def test_columns_that_may_not_change_stay_and_what_is_not_there_is_said() -> None:
    bundle = bundle_of(classes=True)
    (found,) = counterexamples(bundle, of(2, 3, 1), n=10, fixed=["a"])
    assert changed(found) == [{"b": 5.0, "c": 4.0}]
    (none,) = counterexamples(bundle, of(2, 3, 1), fixed=["a", "b"])
    assert none.found == ()
    assert none.complete
    assert not none.reached


def test_a_wanted_class_and_range_are_reached_or_are_there_already() -> None:
    (there,) = counterexamples(bundle_of(classes=True), of(2, 3, 1), to="no")
    assert (there.found, there.reached, there.tried) == ((), True, 0)
    numbers = bundle_of(classes=False)
    (found,) = counterexamples(numbers, of(2, 3, 1), n=2, to=[9, 10])
    assert changed(found) == [{"a": 6.0}, {"c": 4.0}]
    assert all(9 <= example.raw[0] <= 10 for example in found.found)
    (open_,) = counterexamples(numbers, of(2, 3, 1), to=[None, 4])
    assert changed(open_) == [{"a": 0.0}]


@pytest.mark.parametrize(
    ("classes", "wish", "fields"),
    [
        (True, {"to": "maybe", "fixed": ["aa"]}, ["fixed", "to"]),
        (True, {"to": 3}, ["to"]),
        (True, {"n": 11}, ["counterexamples"]),
        (True, {"fixed": ["a", *(f"x{n}" for n in range(5_000))]}, [*["fixed"] * 20, "details"]),
        (False, {"to": [10**400, None]}, ["to"]),
        (False, {}, ["to"]),
        (False, {"to": [3, 1]}, ["to"]),
        (False, {"to": [None, None]}, ["to"]),
        (False, {"to": ["low", 1]}, ["to"]),
    ],
)
def test_wishes_that_mean_nothing_are_refused_by_name(
    classes: bool, wish: dict[str, object], fields: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        counterexamples(bundle_of(classes=classes), of(2, 3, 1), **wish)  # type: ignore[arg-type]
    assert [detail.field for detail in caught.value.details] == fields


def test_too_many_rows_and_no_background_are_refused() -> None:
    bundle = bundle_of(classes=True)
    many = {name: np.repeat(values, 21) for name, values in of(2, 3, 1).items()}
    with pytest.raises(InvalidRequest, match="21 rows"):
        counterexamples(bundle, many)
    with pytest.raises(Conflict, match="no background rows"):
        counterexamples(replace(bundle, background=None), of(2, 3, 1))


def test_a_bound_is_told_and_time_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(classes=True)
    (late,) = counterexamples(bundle, of(2, 3, 1), limit_s=0)
    assert (late.found, late.tried, late.complete) == ((), 0, False)
    monkeypatch.setattr(module, "BEAM", 2)
    (narrow,) = counterexamples(bundle, of(0, 0, 0, 3), n=5, fixed=["a"])
    assert not narrow.complete


def test_examples_of_a_real_variant_are_predicted_as_told(made: Made) -> None:
    """Numbers with gaps, a flag, categories, dates: what is told can be sent as it is, and is predicted as told."""
    bundle = replace(made.bundle, background=Background.of(made.dataset.frame, made.bundle.columns, seed=0))
    rows = made.test.frame.head(4)
    wanted = None if bundle.classes else [None, float(made.dataset.y.mean() - 0.1 * made.dataset.y.std())]
    found = counterexamples(bundle, rows, n=3, to=wanted)
    assert [*map(changed, found)] == [*map(changed, counterexamples(bundle, rows, n=3, to=wanted))]
    assert any(examples.found for examples in found)
    for k, examples in enumerate(found):
        for example in examples.found:
            row = {name: np.array([rows[name].iloc[k]], dtype=object) for name in rows}
            for name, (_, after) in example.changes.items():
                row[name] = np.array([after], dtype=object)
            alone = bundle.predict_raw(row)
            assert np.array_equal(np.atleast_1d(alone[0]), example.raw)
            if bundle.classes:
                assert bundle.labels(alone)[0] != bundle.labels(bundle.predict_raw(rows.iloc[[k]]))[0]
            else:
                assert alone[0] <= wanted[1]
