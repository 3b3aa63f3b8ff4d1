"""The gate's rows teach all models but those of the first fold, which are judged in the variant's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.client import Fitted, fit
from factory.data.profile import profile
from factory.errors import InvalidData, UntrustedBundle
from factory.search.splits import set_aside
from factory.settings import Settings
from factory.spec import Task
from factory.variants.material import Material, Unit, divide
from factory.variants.registry import Registry
from tests.search.conftest import make_dataset, make_frame, make_test_plan


def units(folder: Path, *, frame: pd.DataFrame | None = None, **request: object) -> tuple[Unit, list[Unit], Material]:
    plan = make_test_plan("constant", **request)
    dataset = make_dataset(Task.BINARY, n_rows=400, frame=frame)
    rows = set_aside(dataset, plan.validation)
    material = Material(dataset, (), profile(dataset), rows.train, rows.validation, ())
    pooled, segments, _ = divide(material, plan, workspace=folder, note=lambda *_: None)
    return pooled, segments, material


def check(unit: Unit, n_gate: int) -> None:
    data = unit.data
    gate = np.arange(len(data.dataset) - n_gate, len(data.dataset))
    assert data.n_gate == n_gate == len(unit.unseen)
    pd.testing.assert_frame_equal(data.dataset.frame.iloc[gate].reset_index(drop=True), unit.unseen.frame)
    assert len(data.searched) == len(data.dataset) - n_gate
    first, *others = data.splits
    assert not np.isin(gate, first.train).any()
    for split in data.splits:
        assert not np.isin(gate, split.validation).any()
        assert not np.isin(split.train, split.validation).any()
    for split in others:
        assert np.isin(gate, split.train).all()


@pytest.mark.parametrize("validation", [{"kind": "auto"}, {"kind": "time", "column": "day"}, {"kind": "holdout"}])
def test_the_first_fold_alone_leaves_the_gates_rows_out(tmp_path: Path, validation: dict[str, object]) -> None:
    pooled, _, material = units(tmp_path, validation=validation)
    check(pooled, len(material.unseen))


def test_segments_have_their_part_of_it(tmp_path: Path) -> None:
    frame = make_frame(400)
    column = next(c for c in frame.columns if frame[c].nunique() in range(2, 6) and c != "flag")
    pooled, segments, material = units(tmp_path, segments={"by": column, "min_rows": 20})
    check(pooled, len(material.unseen))
    assert segments
    assert sum(len(one.unseen) for one in segments) <= len(material.unseen)
    for one in segments:
        check(one, len(one.unseen))


def test_a_segment_that_cannot_be_split_stays_with_the_pooled_variant(tmp_path: Path) -> None:
    """One of one group only, as all are by the column of groups itself."""
    frame = make_frame(600)
    frame["shop"] = np.where(frame["city"] == "Bern", "the one in Bern", frame["shop"])
    plan = make_test_plan(
        "constant", validation={"kind": "group", "column": "shop"}, segments={"by": "city", "min_rows": 20}
    )
    dataset = make_dataset(frame=frame)
    # Of each group every fifth row: that of Bern stands on both sides, which a gate by groups would not allow.
    unseen, notes = np.arange(0, 600, 5), []
    material = Material(dataset, (), profile(dataset), np.setdiff1d(np.arange(600), unseen), unseen, ())
    _, made, thin = divide(material, plan, workspace=tmp_path, note=lambda *told: notes.append(told[1]))
    assert sorted(one.segment for one in made) == ["Basel", "Genf"]
    assert thin == ("Bern",)
    assert any("'Bern' is served by the pooled variant" in told and "1 group in 'shop'" in told for told in notes)


def test_a_segment_that_lacks_a_class_in_a_fold_stays_with_the_pooled_variant(tmp_path: Path) -> None:
    frame = make_frame(800)
    unseen, there = np.arange(0, 800, 5), np.flatnonzero(frame["city"] == "Bern")
    few = [*np.intersect1d(there, unseen)[:2], *np.setdiff1d(there, unseen)[:6]]  # not one in each fold
    frame.loc[there, "flag"] = "no"
    frame.loc[few, "flag"] = "yes"
    plan = make_test_plan("constant", segments={"by": "city", "min_rows": 20})
    dataset, notes = make_dataset(frame=frame), []
    material = Material(dataset, (), profile(dataset), np.setdiff1d(np.arange(800), unseen), unseen, ())
    _, made, thin = divide(material, plan, workspace=tmp_path, note=lambda *told: notes.append(told[1]))
    assert sorted(one.segment for one in made) == ["Basel", "Genf"]
    assert thin == ("Bern",)
    assert any("'Bern' is served by the pooled variant: in one of 8 folds its rows lack a class" in n for n in notes)


def test_what_is_made_again_does_not_learn_from_them(tmp_path: Path) -> None:
    pooled, _, material = units(tmp_path, making="refit", parent="growth.churn")
    assert (pooled.data.n_gate, len(pooled.data.dataset)) == (0, len(material.seen))


@pytest.mark.parametrize("validation", [{"kind": "time", "column": "day"}, {"kind": "group", "column": "shop"}])
def test_a_gate_that_does_not_define_the_metric_is_told_before_the_search(
    tmp_path: Path, validation: dict[str, object]
) -> None:
    frame = make_frame(400)
    rows = set_aside(make_dataset(frame=frame), make_test_plan("constant", validation=validation).validation)
    kept = np.isin(np.arange(400), rows.validation)
    frame["flag"] = np.where(kept, "no", frame["flag"])
    n_rows, n_elsewhere = kept.sum(), (frame["flag"] == "yes").sum()
    message = (
        f"ROC AUC is not defined on the {n_rows} rows set aside for the gate: there is none of class 'yes' among "
        f"them. Elsewhere there are {n_elsewhere} rows of 'yes'."
    )
    with pytest.raises(InvalidData, match=message):
        units(tmp_path, frame=frame, validation=validation)
    pooled, _, _ = units(tmp_path, frame=frame, validation=validation, metric="neg_log_loss")
    assert set(pooled.unseen.y) == {0}, "a metric that needs no second class is judged by"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("judge"), cpus=1)


def made_of(settings: Settings) -> Fitted:
    generator = np.random.default_rng(0)
    columns = {name: generator.normal(size=400) for name in "abc"}
    flag = columns["a"] + columns["b"] ** 2 + generator.normal(size=400) > 1
    frame = pd.DataFrame({**columns, "flag": np.where(flag, "yes", "no")})
    return fit(frame, "flag", settings=settings, budget_s=600, trials=3, name="local.judged", making="cold")


@pytest.fixture(scope="module")
def made(settings: Settings) -> Fitted:
    return made_of(settings)


def test_a_challenger_meets_the_champions_judge(made: Fitted, settings: Settings) -> None:
    """Both have judged the same rows: a champion's own models know them."""
    variant, judge = made.variant, Registry(settings).judge(made.variant)
    assert variant.judge_digest not in ("", variant.bundle_digest)
    assert len(judge.members) == len(variant.blend) < len(made.bundle.members)
    assert judge.blueprint is not None
    assert "One model of each member was judged" in made.outcome.verdicts[0].sentence
    again = made_of(settings)
    first, second = made.outcome.made[0].comparison, again.outcome.made[0].comparison
    assert second.baseline == pytest.approx(first.candidate)
    assert second.difference == pytest.approx(0.0, abs=1e-9), "the same search, judged the same way"


def test_a_judge_is_checked_before_it_is_loaded(made: Fitted, settings: Settings) -> None:
    with pytest.raises(UntrustedBundle):
        Registry(settings).judge(made.variant.model_copy(update={"judge_digest": "0" * 64}))
