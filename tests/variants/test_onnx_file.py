"""A variant as one ONNX file says what the variant says, or is not written."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from factory.data.crosses import Cross
from factory.data.dataset import from_frame
from factory.data.preparation import Preparation
from factory.errors import Conflict, SystemFault
from factory.families.base import Family, FitContext, Sample, Shape
from factory.plugins import load
from factory.search.calibration import Calibration
from factory.space import Parameters
from factory.spec import FileDataset, Task
from factory.variants import onnx_file
from factory.variants.bundle import Bundle, Member
from factory.variants.inputs import input_columns
from factory.variants.onnx_file import EXACT, PREDICTION, PROBABILITIES, as_inputs, compared, drawn, write

N = 400
TARGETS = {Task.BINARY: "churned", Task.MULTICLASS: "kind", Task.REGRESSION: "spend"}
CROSSES = (
    Cross(kind="ratio", left="income", right="age"),
    Cross(kind="product", left="age", right="signed:year"),
)
WAYS: dict[str, tuple[str, Parameters]] = {
    "constant": ("constant", {}),
    "linear": ("linear", {"splines": False}),
    "linear with splines": ("linear", {"splines": True, "knots": 6, "degree": 3}),
    "lightgbm": ("lightgbm", {"learning_rate": 0.2}),
    "lightgbm on target means": ("lightgbm", {"learning_rate": 0.2, "categoricals": "target", "crosses": False}),
    "xgboost": ("xgboost", {"learning_rate": 0.2}),
    "catboost on levels": ("catboost", {"learning_rate": 0.2, "one_hot_max_size": 255}),
    "catboost on target means": ("catboost", {"learning_rate": 0.2, "categoricals": "target", "one_hot_max_size": 64}),
    "random_forest": ("random_forest", {"trees": 50}),
    "extra_trees": ("extra_trees", {"trees": 50}),
    "extra_trees on target means": ("extra_trees", {"trees": 50, "categoricals": "target"}),
    "kernel": ("kernel", {}),
    "neighbours": ("neighbours", {"k": 7, "votes": "distance"}),
    "neighbours alike": ("neighbours", {"k": 20, "votes": "equal"}),
    "torch_network": ("torch_network", {"layers": 2, "width": 16, "activation": "elu"}),
    "tabm": ("tabm", {"layers": 2, "width": 16}),
    "tabm on target means": ("tabm", {"layers": 2, "width": 16, "categoricals": "target"}),
}
UNKNOWN: dict[str, tuple[str, Parameters]] = {
    "catboost on target statistics": ("catboost", {"learning_rate": 0.2, "one_hot_max_size": 2}),
}


@cache
def people() -> pd.DataFrame:
    """Rows of every type but text, with missing values in each, and effects of all of them."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 90, N).astype(float),
            "income": random.lognormal(8, 1.5, N),
            "member": random.random(N) < 0.5,
            "city": random.choice(["Bonn", "Köln", "Ulm"], N),
            "street": np.char.add("s", random.integers(0, 90, N).astype(str)),
            "signed": pd.Timestamp("1999-12-25") + pd.to_timedelta(random.integers(0, 9 * 10**7, N), unit="s"),
            "left": pd.Timestamp("2003-03-01") + pd.to_timedelta(random.integers(0, 9 * 10**7, N), unit="s"),
        }
    )
    effect = frame["age"] / 40 + 2 * frame["member"] + 1.5 * (frame["city"] == "Ulm") + frame["signed"].dt.hour / 12
    effect += frame["street"].str.len() + (frame["left"] - frame["signed"]).dt.days / 800
    effect += random.normal(0, 0.3, N)
    frame["spend"] = np.expm1(effect / 2)
    frame["churned"] = np.where(effect > effect.median(), "yes", "no")
    frame["kind"] = pd.cut(effect, 3, labels=["a", "b", "c"]).astype(str)
    for column in ("age", "income", "city", "street", "signed"):
        frame.loc[random.random(N) < 0.1, column] = None
    return frame


def parts(task: Task, *, drop: tuple[str, ...] = ()) -> tuple[Any, Preparation, Any]:
    target = TARGETS[task]
    frame = people().drop(columns=[*(set(TARGETS.values()) - {target}), *drop])
    data = from_frame(frame, FileDataset(path="people.parquet", target=target, task=task))
    return data, Preparation.fit(data.frame, data.types, crosses=CROSSES), input_columns(data.frame, data.types)


def member(way: str, task: Task, data: Any, preparation: Preparation, **context: Any) -> Member:
    name, parameters = (WAYS | UNKNOWN)[way]
    family = load("families", name)
    assert isinstance(family, Family)
    chosen = {**family.portfolio(task, shape=Shape(N))[0].parameters, **parameters}
    rounds = 60 if name in ("lightgbm", "xgboost", "catboost") else 3 if "tabm" in name or "torch" in name else None
    fitting = FitContext(task=task, n_classes=len(data.classes), seed=0, rounds=rounds, **context)
    sample = Sample(preparation.transform(data.frame), data.y)
    return Member(name, family.fit(sample, validation=None, parameters=chosen, context=fitting), 0, 1.0)


def bundle_of(ways: list[str], task: Task, **context: Any) -> Bundle:
    data, preparation, columns = parts(task)
    members = tuple(replace(member(way, task, data, preparation, **context), weight=1 / len(ways)) for way in ways)
    return Bundle(task, data.classes, columns, (preparation,), members)


def answers(path: Path, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    fed = as_inputs(rows, {one.name: one.type for one in session.get_inputs()})
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, fed), strict=True))


def same(bundle: Bundle, folder: Path, rows: pd.DataFrame) -> None:
    told = write(bundle, folder, about={"variant": "t.n/1"})
    assert told.difference <= EXACT
    got, raw = answers(folder / onnx_file.FILE, rows), bundle.predict_raw(rows)
    if bundle.classes:
        np.testing.assert_allclose(got[PROBABILITIES], raw, rtol=0, atol=EXACT)
        assert got[PREDICTION].tolist() == bundle.predict(rows)["prediction"].tolist()
    else:
        np.testing.assert_allclose(got[PREDICTION], raw, rtol=0, atol=EXACT * np.abs(raw).max())


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("way", WAYS)
def test_it_says_what_the_variant_says(way: str, task: Task, tmp_path: Path) -> None:
    same(bundle_of([way], task), tmp_path, people())


@pytest.mark.parametrize("scale", ["sqrt", "log"])
def test_bent_targets_are_bent_back(scale: str, tmp_path: Path) -> None:
    same(bundle_of(["lightgbm", "linear"], Task.REGRESSION, target_scale=scale), tmp_path, people())


def test_answers_are_raised_to_a_floor(tmp_path: Path) -> None:
    bundle = bundle_of(["linear"], Task.REGRESSION)
    floor = float(np.median(bundle.predict_raw(people())))
    raised = replace(bundle, calibration=Calibration(floor=floor))
    same(raised, tmp_path, people())
    assert raised.predict_raw(people()).min() == floor


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(method="temperature", temperature=0.7, threshold=0.3),
        Calibration(method="isotonic", knots=(0.1, 0.4, 0.8), levels=(0.05, 0.5, 0.9), threshold=0.62),
    ],
)
def test_blends_are_calibrated_and_decided_alike(calibration: Calibration, tmp_path: Path) -> None:
    bundle = bundle_of(["lightgbm", "xgboost", "extra_trees"], Task.BINARY)
    same(replace(bundle, calibration=calibration), tmp_path, people())


def test_rows_without_numbers_or_without_categories_are_drawn_too(tmp_path: Path) -> None:
    for drop in (("city", "street"), ("age", "income", "member", "signed", "left")):
        data, preparation, columns = parts(Task.BINARY, drop=drop)
        (folder := tmp_path / drop[0]).mkdir()
        for way in ("lightgbm", "linear with splines", "extra_trees"):
            bundle = Bundle(
                Task.BINARY, data.classes, columns, (preparation,), (member(way, Task.BINARY, data, preparation),)
            )
            same(bundle, folder, people())


def test_what_onnx_does_not_have_is_named() -> None:
    with pytest.raises(Conflict, match="target statistics of categories") as caught:
        drawn(bundle_of(["linear", *UNKNOWN], Task.BINARY))
    assert [detail.field for detail in caught.value.details] == ["members.1.catboost"]


def test_a_text_column_is_named() -> None:
    frame = pd.DataFrame({"review": [f"good number {i % 7} and long enough" for i in range(60)], "y": [0.0, 1.0] * 30})
    frame["review"] += [f" word{i}" for i in range(60)]
    data = from_frame(frame, FileDataset(path="r.parquet", target="y", task=Task.REGRESSION))
    preparation = Preparation.fit(data.frame, data.types)
    constant = member("constant", Task.REGRESSION, data, preparation)
    columns = input_columns(data.frame, data.types)
    with pytest.raises(Conflict, match="the text column 'review'"):
        drawn(Bundle(Task.REGRESSION, (), columns, (preparation,), (constant,)))


def test_an_answer_that_differs_is_no_file(tmp_path: Path) -> None:
    right, other = (bundle_of([way], Task.BINARY) for way in ("lightgbm", "extra_trees"))
    write(right, tmp_path, about={})
    with pytest.raises(Conflict, match="answers differ by"):
        compared((tmp_path / onnx_file.FILE).read_bytes(), other)


def test_without_onnx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemFault, match="onnx is not installed") as caught:
        write(bundle_of(["constant"], Task.BINARY), tmp_path, about={})
    assert "model-variant-factory[onnx]" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())
