"""The factory from Python: one call on a data frame, inline within seconds."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

import factory
from factory import client, pipeline
from factory.errors import Conflict, InvalidData, InvalidRequest
from factory.ledger import Ledger
from factory.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


def cancer() -> pd.DataFrame:
    data = load_breast_cancer(as_frame=True)
    return data.data.iloc[:, :6].assign(diagnosis=data.target.map({0: "malignant", 1: "benign"}))


@pytest.fixture(scope="module")
def parent(settings: Settings) -> str:
    """A variant of the cancer table, to be made again."""
    factory.fit(
        cancer(),
        "diagnosis",
        name="clinic.first",
        recipe="tabular-fast",
        families=["linear"],
        trials=1,
        settings=settings,
    )
    return "clinic.first"


def test_a_classifier_from_a_frame(settings: Settings, tmp_path: Path) -> None:
    frame = cancer()
    steps: list[str] = []
    fitted = factory.fit(
        frame,
        "diagnosis",
        name="clinic.tumour",
        recipe="tabular-fast",
        trials=3,
        settings=settings,
        listen=lambda progress: steps.append(progress.state),
    )
    assert fitted.variant.name == "clinic.tumour"
    assert fitted.variant.version == 1
    assert [*dict.fromkeys(steps)][:3] == ["preparing", "searching", "evaluating"]
    probabilities = fitted.predict_proba(frame)
    assert probabilities.shape == (len(frame), 2)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (fitted.predict(frame) == frame["diagnosis"]).mean() > 0.85
    assert list(fitted.leaderboard.columns[:3]) == ["number", "family", "framework"]
    assert {"folds", "train_score", "score", "test_score"} <= set(fitted.leaderboard.columns)
    assert "clinic.tumour" in Path(fitted.report()).read_text()
    assert "&lt;html" in fitted.report()._repr_html_()
    with pytest.raises(InvalidData, match="mean radius"):
        fitted.predict(frame.drop(columns="mean radius"))

    found = fitted.explain(frame, n=3, seed=1)
    assert found.frame("malignant").shape == (3, 6)
    assert np.allclose(found.base + found.contributions.sum(axis=1), probabilities[:3])
    with pytest.raises(InvalidRequest, match="0 rows cannot"):
        fitted.explain(frame, n=0)

    loaded = factory.load(fitted.save(tmp_path / "tumour"))
    assert np.array_equal(loaded.predict_proba(frame), probabilities)
    assert np.array_equal(loaded.explain(frame, n=3, seed=1).contributions, found.contributions)
    with pytest.raises(Conflict, match="exists already"):
        fitted.save(tmp_path / "tumour")


@pytest.mark.parametrize(
    ("labels", "kind"), [([0, 1], "i"), ([False, True], "b"), ([0.5, 1.5], "f"), (["10", "11"], "O")]
)
def test_labels_are_answered_as_the_table_had_them(
    settings: Settings, tmp_path: Path, labels: list[object], kind: str
) -> None:
    frame = pd.DataFrame({"x": np.arange(60.0), "y": pd.Series([labels[i >= 30] for i in range(60)])})
    fitted = factory.fit(
        frame, "y", recipe="tabular-fast", task="binary", families=["linear"], trials=1, settings=settings
    )
    for one in (fitted, factory.load(fitted.save(tmp_path / "bundle"))):
        assert one.predict(frame).dtype.kind == kind
        assert (one.predict(frame) == frame["y"]).mean() > 0.9
        assert one.classes.tolist() == labels


def test_a_regression_of_weighted_rows_has_no_probabilities(settings: Settings) -> None:
    right = load_diabetes(as_frame=True).frame
    wrong = right.assign(target=right["target"] + 1000, trust=1e-6)
    data = pd.concat([right.assign(trust=2.0), wrong], ignore_index=True)
    fitted = factory.fit(data, "target", recipe="tabular-fast", trials=2, weights="trust", settings=settings)
    assert fitted.predict(right).dtype == np.float64
    assert abs(fitted.predict(right).mean() - right["target"].mean()) < 20
    assert fitted.variant.score > -80  # over all rows alike it would be 700 off
    assert fitted.leaderboard["score"].max() > -80
    with pytest.raises(InvalidRequest, match="no probabilities"):
        fitted.predict_proba(right)


def counts(n_rows: int = 300) -> pd.DataFrame:
    """Visits, mostly none, whose straight line goes below 0."""
    generator = np.random.default_rng(0)
    x, z = generator.uniform(-2, 2, n_rows), generator.normal(size=n_rows)
    return pd.DataFrame({"x": x, "z": z, "visits": generator.poisson(np.exp(1.5 * x - 1))})


def test_counts_are_scored_by_their_deviance_and_answered_above_zero(settings: Settings) -> None:
    frame = counts()
    told: list[str] = []
    fitted = factory.fit(
        frame,
        "visits",
        task="regression",
        name="clinic.visits",
        metric="neg_mean_poisson_deviance",
        recipe="tabular-fast",
        families=["linear", "lightgbm"],
        trials=6,
        settings=settings,
        listen=lambda progress: told.append(progress.message),
    )
    assert fitted.leaderboard["score"].notna().all()
    assert {"linear", "lightgbm"} <= set(fitted.leaderboard["family"])
    assert any("Predictions below 0.00" in message for message in told)
    floor = fitted.bundle.calibration.floor
    assert floor is not None
    steep = frame.assign(x=-50.0)
    assert fitted.predict(steep).min() >= floor > 0
    assert "No answer is below" in Path(fitted.report()).read_text()
    unseen = fitted.outcome.made[0].card.evaluation
    assert -3 < unseen.score.low <= unseen.score.value <= unseen.score.high < 0
    assert factory.load(fitted.folder).bundle.calibration.floor == floor


def test_a_variant_that_is_trained_on_with_large_counts_goes_on_answering_small_ones(settings: Settings) -> None:
    options = {
        "task": "regression",
        "metric": "neg_mean_poisson_deviance",
        "recipe": "tabular-fast",
        "families": ["lightgbm"],
        "settings": settings,
    }
    first = factory.fit(counts(400), "visits", name="clinic.first", trials=1, **options)
    large = counts(900).query("visits >= 3")
    told: list[str] = []
    again = factory.fit(
        large, "visits", name="clinic.again", making="incremental", parent="clinic.first/1",
        listen=lambda progress: told.append(progress.message), **options,
    )  # fmt: skip
    floor = first.bundle.calibration.floor
    assert floor is not None
    assert floor < 1
    assert again.bundle.calibration.floor == floor
    assert any("only, as those of clinic.first/1 are" in message for message in told)
    assert again.predict(counts().assign(x=-2.0)).min() < 3


def test_targets_that_the_metric_is_not_defined_for_are_refused_before_the_search(settings: Settings) -> None:
    with pytest.raises(InvalidData, match=r"metric: 'neg_mean_gamma_deviance' needs targets above 0; 'visits' is not"):
        factory.fit(counts(), "visits", task="regression", metric="neg_mean_gamma_deviance", settings=settings)
    with pytest.raises(InvalidRequest, match="it judges numbers") as caught:
        factory.fit(counts(), "visits", metric="neg_mean_poisson_deviance", settings=settings)
    assert "task 'regression'" in caught.value.hint


def test_a_call_asks_for_what_a_request_can(settings: Settings) -> None:
    frame = cancer().assign(leak=cancer()["diagnosis"] == "benign", batch=np.arange(569) % 7)
    fitted = factory.fit(
        frame,
        "diagnosis",
        recipe="tabular-fast",
        trials=2,
        keep=["leak", "batch"],
        drop="mean area",
        types={"batch": "categorical"},
        families=["constant", "linear"],
        validation={"kind": "group", "column": "batch"},
        gates={"allow_leakage": True},
        ceilings={"size_mb": 50},
        memory_gb=3,
        settings=settings,
    )
    assert set(fitted.leaderboard["family"]) <= {"constant", "linear"}
    columns = {column.name: column.type for column in fitted.bundle.columns}
    assert columns["batch"] == "categorical", "a group's name is a feature where it is kept"
    assert "leak" in columns
    assert "mean area" not in columns
    with Ledger.open(settings.ledger) as ledger:
        request = ledger.request(fitted.outcome.request_id).request
    assert request.budget.memory_gb == 3
    assert request.ceilings.size_mb == 50
    assert request.validation.column == "batch"
    with pytest.raises(InvalidRequest, match="validation"):
        factory.fit(frame, "diagnosis", validation={"kind": "group"}, settings=settings)


def test_columns_without_names_of_their_own_are_refused(settings: Settings) -> None:
    frame = pd.DataFrame(np.zeros((30, 2)), columns=["a", "a"])
    with pytest.raises(InvalidData, match="told apart"):
        factory.fit(frame, "a", settings=settings)


def test_a_file_is_as_good_as_a_frame(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "cancer.csv"
    cancer().to_csv(path, index=False)
    fitted = factory.fit(path, "diagnosis", recipe="tabular-fast", trials=2, settings=settings)
    assert fitted.variant.task == "binary"


def test_the_time_of_the_budget_begins_with_the_call(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[float] = []

    def store(*_: object) -> str:
        began.append(time.time())
        raise InvalidData("It is enough that it was called.")

    moments = iter([1000.0, 1007.0])
    monkeypatch.setattr(time, "time", lambda: next(moments))
    monkeypatch.setattr(client, "store_table", store)
    with pytest.raises(InvalidData, match="it was called"):
        factory.fit(cancer(), "diagnosis", settings=settings)
    assert began == [1007.0], "the clock was read before the table was stored"


@pytest.mark.parametrize(("making", "beside_reading"), [("refit", True), ("cold", False)])
def test_mlflow_comes_up_beside_the_reading_where_nothing_is_searched(
    making: str, beside_reading: bool, parent: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def gathered(*_: object, **__: object) -> None:
        assert begun.wait(60 if beside_reading else 0) is beside_reading
        raise InvalidData("It was read.")

    monkeypatch.setattr(pipeline._Making, "warm_up_registry", lambda _: begun.set())
    monkeypatch.setattr(pipeline, "gather", gathered)
    with pytest.raises(InvalidData, match="was read"):
        factory.fit(cancer(), "diagnosis", making=making, parent=parent, settings=settings)


def test_the_package_offers_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        factory.fitt  # noqa: B018
