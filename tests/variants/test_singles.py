"""Single trials on rows that the search did not have: who is asked, by which model, and for how long."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from factory.families.base import Deadline
from factory.search.engine import SearchResult, search
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.plan import family
from factory.search.splits import folds
from factory.settings import Settings
from factory.spec import AutoValidation, Task
from factory.variants.assembly import load_model, load_preparation
from factory.variants.singles import unseen_scores
from tests.search.conftest import make_dataset, make_test_plan

SEEN = 300


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialData, SearchResult]:
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 60, "trials": 3})
    dataset = make_dataset(n_rows=SEEN)
    data = TrialData(
        dataset=dataset,
        splits=folds(dataset, AutoValidation(), seed=0),
        metric=Metric("roc_auc", Task.BINARY),
        workspace=tmp_path_factory.mktemp("search"),
        seed=0,
    )
    settings = Settings(home=data.workspace)
    left = Deadline.after(15)
    return data, search(plan, data, ray=None, settings=settings, history=(), deadline=left, record=lambda _: None)


def scores(searched: tuple[TrialData, SearchResult], *, left_s: float = 60.0) -> dict[int, float]:
    data, result = searched
    unseen = make_dataset(n_rows=150)
    return unseen_scores(
        result, data=data, unseen=unseen, weights=result.blend.weights, deadline=Deadline.after(left_s)
    )


def test_every_trial_is_scored_by_the_model_of_its_first_fold(searched: tuple[TrialData, SearchResult]) -> None:
    data, result = searched
    found, unseen = scores(searched), make_dataset(n_rows=150)
    assert set(found) == {0, 1, 2}
    (constant,) = [t.number for t in result.trials if t.family == "constant"]
    assert found[constant] == 0.5
    for number, parts in result.parts.items():
        assert parts[0].fold == 0
        prediction = load_model(parts[0]).predict(load_preparation(parts[0]).transform(unseen.frame))
        assert found[number] == data.metric.score(unseen.y, prediction)
    assert next(iter(found)) == max(result.blend.weights, key=lambda n: result.blend.weights[n])


def test_time_that_is_up_leaves_trials_without_a_score(searched: tuple[TrialData, SearchResult]) -> None:
    assert scores(searched, left_s=-1) == {}


def test_a_trial_whose_model_cannot_be_read_costs_its_score_only(
    searched: tuple[TrialData, SearchResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, result = searched
    number = next(iter(result.blend.weights))
    folder = data.model_folder(number, 0)
    shutil.move(folder, tmp_path / "away")
    try:
        with caplog.at_level(logging.WARNING):
            found = scores(searched)
    finally:
        shutil.move(tmp_path / "away", folder)
    assert set(found) == {0, 1, 2} - {number}
    assert f"trial {number} has no score on unseen rows" in caplog.text
    assert family(result.trials[number].family).load(folder) is not None
