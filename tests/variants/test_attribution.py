"""Exact contributions: those of the definition, whatever a family makes of a column, and additive to the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from math import factorial

import numpy as np
import pandas as pd
import pytest

from factory.data.crosses import Cross
from factory.data.dataset import Dataset, from_frame
from factory.data.preparation import Preparation, Table
from factory.errors import Conflict, InvalidRequest
from factory.families import _ways
from factory.families._leaves import LeafTerms
from factory.families.base import FitContext, Model, Sample, Shape
from factory.search.calibration import Calibration
from factory.search.plan import family
from factory.spec import FileDataset, Task
from factory.variants.attribution import Allowance, Scene, exact
from factory.variants.background import Background, canonical
from factory.variants.bundle import Bundle, Member
from factory.variants.explain import Explanation, _rounded, explain
from factory.variants.inputs import input_columns

from .conftest import mixed_frame

N_BACKGROUND = 6
BOOSTERS = ("lightgbm", "xgboost", "catboost")
FORESTS = ("random_forest", "extra_trees")
CROSSES = (Cross(kind="product", left="age", right="income"), Cross(kind="ratio", left="income", right="until-since"))


def frame_of(n_rows: int = 240) -> pd.DataFrame:
    """The mixed table with a column of many levels, and a second date, so that days are counted between two columns."""
    frame, generator = mixed_frame(n_rows), np.random.default_rng(5)
    shop = generator.integers(0, 14, n_rows)
    until = frame["since"] + pd.to_timedelta(generator.integers(1, 900, n_rows), unit="D")
    raised = (
        5.0 * (shop % 3) + 0.02 * (until - frame["since"]).dt.days + 0.0004 * frame["age"] * frame["income"].fillna(0)
    )
    spend = frame["spend"] - frame["spend"].min() + raised
    return frame.drop(columns="member").assign(shop=[f"shop {k}" for k in shop], until=until, spend=spend)


class Data:
    """Rows of one task, prepared with crosses."""

    def __init__(self, task: Task) -> None:
        self.task = task
        target = {Task.BINARY: "churned", Task.REGRESSION: "spend", Task.MULTICLASS: "grade"}[task]
        self.inputs = ["age", "income", "city", "shop", "since", "until"]
        frame = frame_of()[[*self.inputs, target]]
        self.dataset: Dataset = from_frame(frame, FileDataset(path="mixed.parquet", target=target, task=task))
        self.train = np.arange(200)
        self.rows = self.dataset.frame[self.inputs].iloc[200:203].reset_index(drop=True)
        self.rows.loc[1, "income"] = np.nan
        self.rows.loc[2, "city"] = "Basel"
        self.preparation = Preparation.fit(
            self.dataset.frame[self.inputs].iloc[self.train], self.dataset.types, seed=0, crosses=CROSSES
        )

    def fit(self, name: str, *, rounds: int = 12, target_scale: str = "raw", **parameters: object) -> Model:
        """Fit a small model, by default as the family's first bet has it."""
        chosen = family(name)
        sample = Sample(
            self.preparation.transform(self.dataset.frame[self.inputs].iloc[self.train]), self.dataset.y[self.train]
        )
        bet = chosen.portfolio(self.task, shape=Shape(len(sample)))[0].parameters
        smaller = {"trees": 7} if name in FORESTS else {}
        context = FitContext(
            task=self.task,
            n_classes=len(self.dataset.classes),
            seed=0,
            rounds=rounds if chosen.iterative else None,
            target_scale=target_scale,  # type: ignore[arg-type]
        )
        return chosen.fit(sample, validation=None, parameters={**bet, **smaller, **parameters}, context=context)

    def bundle(self, *members: tuple[str, Model, float], calibration: Calibration | None = None) -> Bundle:
        """Blend models over the one preparation."""
        columns = input_columns(self.dataset.frame, self.dataset.types)
        background = self.dataset.frame[self.inputs].iloc[:N_BACKGROUND]
        return Bundle(
            task=self.task,
            classes=self.dataset.classes,
            columns=columns,
            preparations=(self.preparation,),
            members=tuple(Member(name, model, preparation=0, weight=weight) for name, model, weight in members),
            calibration=calibration or Calibration(),
            background=Background(canonical(background, columns)),
        )


@pytest.fixture(scope="module", params=[Task.REGRESSION, Task.BINARY, Task.MULTICLASS], ids=str)
def data(request: pytest.FixtureRequest) -> Data:
    return Data(request.param)


@pytest.fixture(scope="module")
def numbers() -> Data:
    return Data(Task.REGRESSION)


def by_definition(
    predict: Callable[[Mapping[str, np.ndarray]], np.ndarray], bundle: Bundle, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Return base and contributions by the definition: over all subsets of the columns and all background rows."""
    assert bundle.background is not None
    values, background = canonical(rows, bundle.columns), bundle.background.columns
    names, n = list(background), len(bundle.background)
    worth = {}
    for inside in product((False, True), repeat=len(names)):
        mixed = {
            name: np.repeat(values[name], n) if own else np.tile(background[name], len(rows))
            for name, own in zip(names, inside, strict=True)
        }
        worth[inside] = predict(mixed).reshape(len(rows), n, -1).mean(axis=1)
    added = np.zeros((len(rows), len(names), next(iter(worth.values())).shape[1]))
    for inside, without in worth.items():
        for j, own in enumerate(inside):
            if not own:
                k = sum(inside)
                weight = factorial(k) * factorial(len(names) - k - 1) / factorial(len(names))
                added[:, j] += weight * (worth[(*inside[:j], True, *inside[j + 1 :])] - without)
    return worth[(False,) * len(names)][0], added


def assert_as_defined(bundle: Bundle, rows: pd.DataFrame, found: Explanation) -> None:
    """Assert that contributions are exact to 1e-6 of the largest prediction, and add up to 1e-9 of it."""

    def predict(columns: Mapping[str, np.ndarray]) -> np.ndarray:
        if found.scale == "prediction":
            return bundle.predict_raw(columns)
        terms = bundle.members[0].model.terms()
        assert terms is not None
        return terms.margins(bundle.preparations[0].transform(dict(columns))) / bundle.calibration.temperature

    base, added = by_definition(predict, bundle, rows)
    size = max(1.0, np.abs(found.predictions).max())
    assert found.walks == 0
    assert not found.errors.any()
    assert np.allclose(found.base, base, rtol=0, atol=1e-6 * size)
    assert np.allclose(found.contributions, added, rtol=0, atol=1e-6 * size)
    assert np.abs(added).max() > 1e-3, "a model that learned nothing proves nothing"
    assert np.allclose(found.base + found.contributions.sum(axis=1), found.predictions, rtol=0, atol=1e-9 * size)


LINKS = {Task.REGRESSION: "identity", Task.BINARY: "logistic", Task.MULTICLASS: "softmax"}


@pytest.mark.parametrize("name", [*BOOSTERS, "linear"])
def test_the_margin_is_explained_as_defined(name: str, data: Data) -> None:
    """Gaps, dates, categories, crosses, days between dates: a prepared column of several inputs included."""
    model = data.fit(name)
    bundle = data.bundle((name, model, 1.0))
    found = explain(bundle, data.rows, scale="margin", limit_s=30)
    assert (found.scale, found.link) == ("margin", LINKS[data.task])
    assert found.method == ("linear" if name == "linear" else "tree_shap")
    assert found.outputs == {Task.REGRESSION: ("prediction",), Task.BINARY: ("yes",)}.get(
        data.task, data.dataset.classes
    )
    assert_as_defined(bundle, data.rows, found)
    terms = model.terms()
    assert terms is not None
    told = terms.answers(found.base + found.contributions.sum(axis=1))
    assert told == pytest.approx(bundle.predict_raw(data.rows).reshape(told.shape), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", FORESTS)
def test_a_forests_probabilities_and_numbers_are_explained_as_defined(name: str, data: Data) -> None:
    bundle = data.bundle((name, data.fit(name), 0.75), ("constant", data.fit("constant"), 0.25))
    found = explain(bundle, data.rows, limit_s=30)
    assert found.method == "tree_shap"
    assert [share.method for share in found.shares] == ["tree_shap", "constant"]
    assert_as_defined(bundle, data.rows, found)


@pytest.mark.parametrize("name", BOOSTERS)
@pytest.mark.parametrize("parameters", [{"categoricals": "target"}, {"crosses": False}], ids=str)
def test_encoded_columns_and_left_out_crosses_belong_to_their_inputs(
    name: str, parameters: dict[str, object], numbers: Data
) -> None:
    bundle = numbers.bundle((name, numbers.fit(name, **parameters), 1.0))
    assert_as_defined(bundle, numbers.rows, explain(bundle, numbers.rows, limit_s=30))


@pytest.mark.parametrize("splines", [True, False])
def test_the_means_of_a_linear_models_levels_belong_to_their_column(
    splines: bool, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.families.linear._one_hot_levels", lambda _: 8)
    model = data.fit("linear", splines=splines)
    bundle = data.bundle(("linear", model, 1.0))
    assert_as_defined(bundle, data.rows, explain(bundle, data.rows, scale="margin", limit_s=30))


@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("categoricals", ["native", "target"])
def test_the_means_that_a_forest_sees_belong_to_their_column(name: str, categoricals: str, data: Data) -> None:
    bundle = data.bundle((name, data.fit(name, categoricals=categoricals), 1.0))
    assert_as_defined(bundle, data.rows, explain(bundle, data.rows, limit_s=30))


def test_a_blend_of_sums_is_exact_and_merged_models_too(numbers: Data) -> None:
    first, second = (numbers.fit("lightgbm", num_leaves=leaves) for leaves in (8, 12))
    merged = family("lightgbm").merge([first, second])
    assert merged is not None
    bundle = numbers.bundle(
        ("lightgbm", merged, 0.5), ("xgboost", numbers.fit("xgboost"), 0.2), ("linear", numbers.fit("linear"), 0.3)
    )
    found = explain(bundle, numbers.rows, limit_s=30)
    assert found.method == "exact"
    assert_as_defined(bundle, numbers.rows, found)


@pytest.mark.parametrize(("target_scale", "link"), [("sqrt", "square"), ("log", "exponential")])
def test_a_bent_target_is_explained_on_its_scale(target_scale: str, link: str, numbers: Data) -> None:
    bundle = numbers.bundle(("lightgbm", numbers.fit("lightgbm", target_scale=target_scale), 1.0))
    assert explain(bundle, numbers.rows, walks=2).method == "sampled"
    found = explain(bundle, numbers.rows, scale="margin", limit_s=30)
    assert found.link == link
    assert_as_defined(bundle, numbers.rows, found)


def test_a_part_that_is_no_sum_is_sampled_and_the_rest_stays_exact(numbers: Data) -> None:
    bent = numbers.fit("lightgbm", target_scale="log")
    bundle = numbers.bundle(("linear", numbers.fit("linear"), 0.6), ("lightgbm", bent, 0.4))
    found = explain(bundle, numbers.rows, limit_s=30, walks=16)
    assert found.method == "mixed"
    assert [(share.family, share.method) for share in found.shares] == [("linear", "linear"), ("lightgbm", "sampled")]
    assert found.walks == 16
    assert np.allclose(found.base + found.contributions.sum(axis=1), found.predictions, rtol=0, atol=1e-9)
    _, added = by_definition(bundle.predict_raw, bundle, numbers.rows)
    alone = explain(replace(bundle, members=(replace(bundle.members[1], weight=1.0),)), numbers.rows, walks=16)
    assert found.errors.max() == pytest.approx(0.4 * alone.errors.max()), "only the sampled part has an error"
    assert np.abs(found.contributions - added).max() < 6 * found.errors.max()


def test_temperature_divides_the_margin_and_a_curve_has_none() -> None:
    data = Data(Task.BINARY)
    model = data.fit("lightgbm")
    hot = data.bundle(("lightgbm", model, 1.0), calibration=Calibration(method="temperature", temperature=2.0))
    found = explain(hot, data.rows, scale="margin", limit_s=30)
    assert_as_defined(hot, data.rows, found)
    second = 1 / (1 + np.exp(-found.predictions[:, 0]))
    assert second == pytest.approx(hot.predict_raw(data.rows)[:, 1])
    curve = Calibration(method="isotonic", knots=(0.0, 1.0), levels=(0.1, 0.9))
    with pytest.raises(Conflict, match="follow a curve"):
        explain(data.bundle(("lightgbm", model, 1.0), calibration=curve), data.rows, scale="margin")
    with pytest.raises(Conflict, match="blends 2 models"):
        explain(data.bundle(("lightgbm", model, 0.5), ("lightgbm", model, 0.5)), data.rows, scale="margin")


def test_what_is_too_large_for_the_time_or_not_what_it_seems_is_sampled(
    numbers: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = numbers.fit("lightgbm")
    bundle = numbers.bundle(("lightgbm", model, 1.0))
    assert explain(bundle, numbers.rows, limit_s=0.0).method == "sampled"
    terms = model.terms()
    assert terms is not None
    monkeypatch.setattr(model, "terms", lambda: replace(terms, values=terms.values * 1.01))  # type: ignore[type-var]
    found = explain(bundle, numbers.rows, limit_s=30, walks=4)
    assert found.method == "sampled"
    assert np.allclose(found.base + found.contributions.sum(axis=1), found.predictions, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "lightgbm"])
def test_a_number_that_is_raised_to_a_floor_is_sampled_and_has_no_margin(name: str, numbers: Data) -> None:
    model = numbers.fit(name)
    known = model.predict(numbers.preparation.transform(numbers.dataset.frame[numbers.inputs]))
    calibration = Calibration(floor=float(np.quantile(known, 0.7)))
    bundle = numbers.bundle((name, model, 1.0), calibration=calibration)
    found = explain(bundle, numbers.rows, limit_s=30, walks=400)
    assert found.method == "sampled"
    base, added = by_definition(bundle.predict_raw, bundle, numbers.rows)
    assert found.base == pytest.approx(base, abs=0.2 * np.abs(added).max())
    assert np.abs(found.contributions - added).max() < 0.3 * np.abs(added).max()
    with pytest.raises(Conflict, match=r"are raised to .* where they are lower"):
        explain(bundle, numbers.rows, scale="margin")


@pytest.mark.parametrize(("floor", "has_one"), [(0.0, True), (1.0, False)])
def test_a_bent_target_has_a_margin_unless_its_floor_is_above_what_the_link_answers(
    floor: float, has_one: bool, numbers: Data
) -> None:
    model = numbers.fit("lightgbm", target_scale="log")
    bundle = numbers.bundle(("lightgbm", model, 1.0), calibration=Calibration(floor=floor))
    if has_one:
        assert explain(bundle, numbers.rows, scale="margin", limit_s=30).link == "exponential"
        return
    with pytest.raises(Conflict, match="are raised to 1 where they are lower"):
        explain(bundle, numbers.rows, scale="margin")


def test_only_rounding_is_divided_among_contributions() -> None:
    base, added, told = np.array([1.0]), np.array([[[2.0], [1.0]]] * 2), np.array([[4.00001], [4.5]])
    found = _rounded(base, added, told)
    assert found[0, :, 0] == pytest.approx([2 + 2e-5 / 3, 1 + 1e-5 / 3], abs=1e-12)
    assert np.array_equal(found[1], added[1])


@pytest.mark.parametrize("name", ["random_forest", "linear", "lightgbm"])
def test_an_explanation_that_takes_too_long_is_given_up(
    name: str, numbers: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock, where its size promised less."""
    bundle = numbers.bundle((name, numbers.fit(name), 1.0))
    scene = Scene(bundle, canonical(numbers.rows, bundle.columns), bundle.background.columns)  # type: ignore[union-attr]
    with pytest.raises(TimeoutError):
        exact(bundle, scene, allowance=Allowance(ends=float("inf"), until=0.0))
    monkeypatch.setattr("factory.variants.explain.Allowance", lambda *_: Allowance(ends=float("inf"), until=0.0))
    with pytest.raises(InvalidRequest, match="3 rows take more than 30 s to explain"):
        explain(bundle, numbers.rows)


def test_members_have_the_time_that_the_others_have_left(numbers: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they really took counts, not what their sizes promised."""
    clock = [0.0]
    monkeypatch.setattr("factory.variants.attribution.time.monotonic", lambda: clock[0])
    first, second = numbers.fit("random_forest"), numbers.fit("linear")
    terms = first.terms()
    assert isinstance(terms, LeafTerms)

    def seen(table: Table) -> np.ndarray:
        clock[0] = 20.0
        return terms.view(table)

    monkeypatch.setattr(first, "terms", lambda: replace(terms, view=seen))
    bundle = numbers.bundle(("random_forest", first, 0.5), ("linear", second, 0.5))
    scene = Scene(bundle, canonical(numbers.rows, bundle.columns), bundle.background.columns)  # type: ignore[union-attr]
    found = exact(bundle, scene, allowance=Allowance(ends=10.0, until=30.0))
    assert [share.method for share in found.shares] == ["tree_shap", "sampled"]


def test_that_a_booster_has_no_sum_is_found_once(numbers: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = numbers.fit("lightgbm"), []
    monkeypatch.setattr(type(model), "_leaves", lambda _: calls.append(1))
    assert model.terms() is None
    assert model.terms() is None
    assert len(calls) == 1


def test_a_leaf_behind_too_many_shared_inputs_is_left_to_walks(numbers: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trees of these tests do ask products and days between dates."""
    model = numbers.fit("lightgbm")
    terms = model.terms()
    assert isinstance(terms, LeafTerms)
    asked = {column for columns in terms.questions.columns for column in columns}
    assert {len(numbers.preparation.sources[column]) for column in asked} >= {1, 2}
    monkeypatch.setattr(_ways, "MOST_SHARED", 1)
    assert explain(numbers.bundle(("lightgbm", model, 1.0)), numbers.rows, limit_s=30, walks=2).method == "sampled"
