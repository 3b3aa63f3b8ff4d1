"""The best ensemble under ceilings, from real models of three families on scikit-learn's diabetes and cancer data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from factory.data.dataset import Dataset, from_frame
from factory.data.preparation import Preparation
from factory.errors import StorageFault
from factory.families.base import Deadline, FitContext, Sample, Shape
from factory.search.calibration import Calibration
from factory.search.engine import Part, SearchResult
from factory.search.ensemble import Blend, Candidates, greedy
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.plan import family
from factory.search.samples import preparation_folder
from factory.search.splits import Split
from factory.spec import Ceilings, FileDataset, Task, Trial, TrialState
from factory.variants import assembly, costs
from factory.variants import frontier as module
from factory.variants.assembly import assemble, keep_loaded, load_model
from factory.variants.contents import folder_size_mb
from factory.variants.evaluation import one_row_latency_ms
from factory.variants.frontier import Chosen, choose
from factory.variants.settled import of_parent

FAMILIES = ("linear", "lightgbm", "extra_trees")
N_FOLDS = 4


def searched(frame: pd.DataFrame, task: Task, metric: str, workspace: Path) -> tuple[SearchResult, TrialData, Dataset]:
    """Fit every family on every fold, as a search leaves it; the last fifth of the rows is not used."""
    dataset = from_frame(frame, FileDataset(path="x.parquet", target="target", task=task))
    n = len(dataset.y) * 4 // 5
    train, unseen = dataset.take(np.arange(n)), dataset.take(np.arange(n, len(dataset.y)))
    fold = np.arange(n) % N_FOLDS
    splits = tuple(Split(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(N_FOLDS))
    data = TrialData(train, splits, Metric.of(metric, task), workspace, 0)
    shape = Shape(n_rows=n, n_columns=len(train.types), n_classes=len(train.classes))
    predictions: dict[int, tuple[np.ndarray, ...]] = {}
    trials = tuple(
        Trial(number=i, family=name, parameters={}, state=TrialState.SUCCEEDED) for i, name in enumerate(FAMILIES)
    )
    for k, split in enumerate(splits):
        preparation = Preparation.fit(train.frame.iloc[split.train], train.types, seed=0)
        folder = preparation_folder(data, k)
        folder.mkdir(parents=True)
        preparation.save(folder)
        rows, held = (preparation.transform(train.frame.iloc[r]) for r in (split.train, split.validation))
        for trial in trials:
            parameters = dict(family(trial.family).portfolio(task, shape=shape)[0].parameters)
            if "trees" in parameters:
                parameters["trees"] = 50
            context = FitContext(task=task, n_classes=len(train.classes), seed=k)
            model = family(trial.family).fit(
                Sample(rows, train.y[split.train]),
                validation=Sample(held, train.y[split.validation]),
                parameters=parameters,
                context=context,
            )
            path = data.model_folder(trial.number, k)
            path.mkdir(parents=True)
            model.save(path)
            predictions[trial.number] = (*predictions.get(trial.number, ()), model.predict(held))
    targets = tuple(train.y[s.validation] for s in splits)
    parts = {
        t.number: tuple(
            Part(t, data.model_folder(t.number, k), k, preparation_folder(data, k), 1 / N_FOLDS) for k in range(N_FOLDS)
        )
        for t in trials
    }
    candidates = Candidates(data.metric, targets, predictions)
    return (
        SearchResult(trials, candidates, tuple(range(N_FOLDS)), greedy(data.metric, targets, predictions), parts, {}),
        data,
        unseen,
    )


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    frame = load_diabetes(as_frame=True).frame
    return searched(frame, Task.REGRESSION, "neg_root_mean_squared_error", tmp_path_factory.mktemp("diabetes"))


@pytest.fixture(scope="module")
def cancer(tmp_path_factory):
    frame = load_breast_cancer(as_frame=True).frame.iloc[:, -12:]
    frame["target"] = np.where(frame["target"] == 1, "good", "ill")
    return searched(frame, Task.BINARY, "balanced_accuracy", tmp_path_factory.mktemp("cancer"))


def under(searched, *, left_s: float = float("inf"), **ceilings: float) -> Chosen:
    result, data, unseen = searched
    until = Deadline.after(left_s)
    return choose(result, data=data, ceilings=Ceilings(**ceilings), rows=unseen.frame, deadline=until)


def test_without_ceilings_nothing_noticeable_is_lost_and_a_row_is_fast(diabetes):
    chosen = under(diabetes)
    _, data, unseen = diabetes
    assert chosen.frontier.lost < 0.005
    assert sum(chosen.weights.values()) == pytest.approx(1)
    assert one_row_latency_ms(chosen.bundle, unseen.frame) < 50
    # All columns are numbers, so that the folds' preparations are equal and run once.
    assert len(chosen.bundle.preparations) == 1
    prediction = chosen.bundle.predict_raw(unseen.frame)
    assert data.metric.score(unseen.y, prediction) > data.metric.score(
        unseen.y, np.full(len(unseen.y), data.dataset.y.mean())
    )


def test_the_curve_rises_and_marks_one_point(diabetes):
    curve = under(diabetes).frontier
    latencies, scores = [p.latency_ms for p in curve.points], [p.score for p in curve.points]
    assert latencies == sorted(latencies)
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores) > 2
    assert sum(p.chosen for p in curve.points) == 1


def test_a_latency_ceiling_is_kept_and_its_price_told(diabetes):
    points = under(diabetes).frontier.points
    ceiling = (points[0].latency_ms + points[1].latency_ms) / 2 / module.MARGIN
    chosen = under(diabetes, latency_ms=ceiling)
    assert len(chosen.bundle.members) < sum(p.models for p in points[-1:])
    assert chosen.frontier.lost > 0
    assert f"Under the ceiling of {ceiling:g} ms, root mean squared error" in chosen.frontier.sentence
    assert "more loss" in chosen.frontier.sentence


def test_an_impossible_ceiling_gives_the_cheapest(diabetes):
    chosen = under(diabetes, latency_ms=1e-4)
    assert chosen.frontier.points[0].chosen
    assert len(chosen.bundle.members) == 1


def test_a_size_ceiling_is_kept(diabetes, tmp_path):
    free = under(diabetes)
    largest = free.frontier.points[-1].size_mb
    chosen = under(diabetes, size_mb=largest / 3)
    chosen.bundle.save(tmp_path / "bundle")
    assert folder_size_mb(tmp_path / "bundle") <= largest / 3
    assert "MB" in chosen.frontier.sentence
    tiny = under(diabetes, size_mb=1e-5)
    assert len(tiny.bundle.members) == 1


def test_a_smaller_bag_of_the_same_members_is_offered_at_a_lower_score(diabetes):
    points = under(diabetes).frontier.points
    bags = [(a, b) for a in points for b in points if a.trials == b.trials and a.models < b.models]
    assert bags
    assert all(a.score < b.score and a.latency_ms < b.latency_ms for a, b in bags)


def test_a_metric_of_labels_gets_a_bundle_that_decides_for_it(cancer):
    chosen = under(cancer)
    _, data, unseen = cancer
    raw = chosen.bundle.predict_raw(unseen.frame)
    answered = chosen.bundle.predict(unseen.frame)["prediction"]
    assert list(answered) == [data.dataset.classes[int(p > chosen.bundle.calibration.threshold)] for p in raw[:, 1]]
    score = data.metric.score(unseen.y, chosen.bundle.judged(raw, data.metric))
    truth = np.asarray(data.dataset.classes)[unseen.y]
    hits = [(answered[truth == label] == label).mean() for label in data.dataset.classes]
    assert score == pytest.approx(np.mean(hits))


def again(searched, monkeypatch, *, model_ms: float, **ceilings: float) -> Chosen:
    """What is left of a variant that was made again; each of its models and its preparation take so long for a row."""
    result, data, unseen = searched
    parts = {n: some[:1] for n, some in result.parts.items()}
    remade = replace(result, blend=Blend({0: 0.5, 1: 0.3, 2: 0.2}, float("nan")), parts=parts)
    monkeypatch.setattr(costs, "_call_ms", lambda *_: model_ms)
    monkeypatch.setattr(costs.Shop, "row_ms", lambda _, bundle: model_ms * (1 + len(bundle.members)))
    calibration = Calibration(method="temperature", temperature=1.25)
    given = {"data": data, "calibration": calibration, "rows": unseen.frame, "deadline": Deadline()}
    chosen = of_parent(remade, ceilings=Ceilings(**ceilings), **given)
    assert chosen.bundle.calibration == calibration
    assert sum(chosen.weights.values()) == pytest.approx(1)
    assert set(chosen.parts) == set(chosen.weights)
    return chosen


def test_what_is_made_again_keeps_its_parents_blend_where_that_is_fast(diabetes, monkeypatch):
    chosen = again(diabetes, monkeypatch, model_ms=0.5)
    assert chosen.weights == {0: 0.5, 1: 0.3, 2: 0.2}
    assert chosen.frontier.sentence == (
        "Members and weights are those of its parent; a row takes 2 ms, and the default bound of 4 ms was to be kept."
    )


def test_a_ceiling_cuts_what_is_made_again_down_to_its_heaviest_members(diabetes, monkeypatch):
    chosen = again(diabetes, monkeypatch, model_ms=1.0, latency_ms=3.0 / module.MARGIN)
    assert chosen.weights == pytest.approx({0: 0.625, 1: 0.375})
    assert len(chosen.bundle.members) == 2
    assert "2 of 3 members of its parent are left, with 80% of the weights" in chosen.frontier.sentence
    size_mb = folder_size_mb(diabetes[0].parts[0][0].folder) + folder_size_mb(diabetes[0].parts[0][0].preparation)
    smallest = again(diabetes, monkeypatch, model_ms=0.1, size_mb=size_mb * 1.01 / module.MARGIN)
    assert len(smallest.weights) == 1


def test_a_default_bound_leaves_most_of_what_is_made_again(diabetes, monkeypatch):
    chosen = again(diabetes, monkeypatch, model_ms=5.0)
    assert set(chosen.weights) == {0, 1}
    assert chosen.frontier.bound_ms == 16.0


def test_when_time_is_up_the_blend_is_cut_down_until_it_keeps_the_bound(diabetes, monkeypatch):
    # Real times differ from one measurement to the next, on a busy machine by more than half.
    monkeypatch.setattr(costs, "_call_ms", lambda *_: 0.1)
    monkeypatch.setattr(costs.Shop, "row_ms", lambda _, bundle: 0.1 * len(bundle.members))
    result, _, _ = diabetes
    late = under(diabetes, left_s=-1.0)
    assert set(late.weights) <= set(result.blend.weights)
    assert all(set(point.trials) <= set(result.blend.weights) for point in late.frontier.points)
    points = under(diabetes).frontier.points
    ceiling = points[0].latency_ms * 1.5 / module.MARGIN
    tight = under(diabetes, left_s=-1.0, latency_ms=ceiling)
    chosen = next(point for point in tight.frontier.points if point.chosen)
    assert chosen.latency_ms <= ceiling
    assert len(tight.bundle.members) < sum(p.models for p in points[-1:])


def test_a_bound_that_nobody_set_gives_way_where_it_costs_much(diabetes, monkeypatch):
    monkeypatch.setattr(module, "DEFAULT_MS", 0.02)
    chosen = under(diabetes)
    assert chosen.frontier.lost <= module.TOLERATED
    assert chosen.frontier.bound_ms > 0.02
    assert "(raised from 0.02 ms" in chosen.frontier.sentence
    kept = under(diabetes, latency_ms=0.02 / module.MARGIN)
    assert kept.frontier.lost > module.TOLERATED, "a ceiling that somebody set is kept"


def test_the_calibration_is_learned_once(cancer, monkeypatch):
    learned = []
    real = costs.learned_calibration
    monkeypatch.setattr(costs, "learned_calibration", lambda *given: learned.append(given) or real(*given))
    chosen = under(cancer)
    assert len(learned) == 1
    assert chosen.bundle.calibration != costs.STAND_IN


def test_files_that_are_gone_are_named(cancer, tmp_path):
    result, data, unseen = cancer
    parts = {
        n: tuple(replace(part, folder=tmp_path / "gone") for part in some) if n == max(result.parts) else some
        for n, some in result.parts.items()
    }
    with pytest.raises(StorageFault, match="files of trial 2"):
        choose(replace(result, parts=parts), data=data, ceilings=Ceilings(), rows=unseen.frame)


def test_models_that_were_lent_under_other_numbers_are_priced_as_their_own(diabetes):
    result, data, unseen = diabetes
    lent = {1_000_000 + n: parts for n, parts in result.parts.items()}
    predictions = {1_000_000 + n: each for n, each in result.candidates.predictions.items()}
    both = replace(result, parts=lent, candidates=replace(result.candidates, predictions=predictions))
    shop = costs.Shop(both, data, unseen.frame)
    shop.merges = True
    assert shop.latency_ms(frozenset([1_000_001]), 4) < 4 * shop.cost(1_000_001).row_ms + 1


def test_files_of_a_model_are_copied_into_the_bundle_as_they_are(diabetes, tmp_path):
    result, data, _ = diabetes
    bundle = assemble({2: 1.0}, {2: result.parts[2][:1]}, data=data, calibration=Calibration())
    bundle.save(tmp_path)
    written = {path.name: path.read_bytes() for path in data.model_folder(2, 0).iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "members" / "0").iterdir()} == written


def test_models_that_are_kept_are_loaded_once(diabetes, monkeypatch):
    result = diabetes[0]
    one, other = result.parts[0][:2]
    keep_loaded([one])
    assert load_model(one) is load_model(one)
    assert load_model(other) is not load_model(other)
    known = load_model(one)
    keep_loaded([one, other])
    assert load_model(one) is known
    monkeypatch.setattr(assembly, "MOST_KEPT_MB", 0.0)
    keep_loaded([one, other])
    assert load_model(one) is not load_model(one)
