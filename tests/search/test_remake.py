"""Variants made again: members fitted on all rows, models trained on with new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.data.preparation import Preparation
from factory.errors import TrainingFault, UntrustedBundle
from factory.families.base import Deadline, FitContext, Loss, Sample
from factory.search.blueprint import Blueprint, MemberPlan
from factory.search.calibration import Calibration
from factory.search.engine import SearchResult
from factory.search.jobs import TrialData
from factory.search.plan import family
from factory.search.remake import Fitted, go_on, refit
from factory.search.watchdog import LEFT_BEHIND
from factory.space import Parameters, clip
from factory.spec import Task, Trial, TrialState

from .conftest import make_data, make_dataset, make_frame

BOOSTER = {"learning_rate": 0.1, "num_leaves": 8, "min_data_in_leaf": 5}
KEPT = Calibration(threshold=0.4)


def plan_of(number: int, name: str, *, weight: float, rounds: int = 0, n_rows: int = 120) -> MemberPlan:
    space = family(name).space(Task.BINARY)
    return MemberPlan(
        number=number,
        family=name,
        parameters=clip(space, dict(BOOSTER) if name == "lightgbm" else {}),
        weight=weight,
        rounds=rounds,
        n_rows=n_rows,
        seed=7,
    )


BLUEPRINT = Blueprint(
    members=(plan_of(4, "lightgbm", weight=0.7, rounds=20), plan_of(2, "linear", weight=0.3)), models=(4, 4, 2)
)


def again(
    data: TrialData, *, history: tuple[Trial, ...] = (), blueprint: Blueprint = BLUEPRINT, left_s: float = 60
) -> tuple[SearchResult, list[Trial]]:
    recorded: list[Trial] = []
    result = refit(
        blueprint,
        data,
        calibration=KEPT,
        deadline=Deadline.after(left_s),
        threads=1,
        memory_limit_mb=float("inf"),
        record=recorded.append,
        history=history,
    )
    return result, recorded


def test_a_blueprint_survives_its_file(tmp_path: Path) -> None:
    assert Blueprint.load(tmp_path) is None
    BLUEPRINT.save(tmp_path)
    assert Blueprint.load(tmp_path) == BLUEPRINT
    assert BLUEPRINT.of_model(2).family == "linear"
    (tmp_path / "blueprint.json").write_text('{"format": 9}')
    with pytest.raises(UntrustedBundle, match="unknown format"):
        Blueprint.load(tmp_path)


def test_a_refit_fits_each_member_once_on_all_rows_with_rounds_scaled(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    result, recorded = again(data)
    assert [(t.number, t.finished) for t in recorded] == [(n, end) for n in (0, 1) for end in (False, True)]
    assert [(t.family, t.origin, t.folds) for t in result.trials] == [
        ("lightgbm", "history", ()),
        ("linear", "history", ()),
    ]
    assert result.blend.weights == pytest.approx({0: 0.7, 1: 0.3})
    assert result.calibration == KEPT
    [part] = result.parts[0]
    model = family("lightgbm").load(part.folder)
    assert model.rounds == 20 * len(data.dataset) // 120
    table = Preparation.load(part.preparation).transform(data.dataset.frame)
    assert data.metric.score(data.dataset.y, model.predict(table)) > 0.9


def test_an_interrupted_refit_goes_on_under_new_numbers(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    whole, _ = again(data)
    first = whole.trials[0]
    killed = whole.trials[1].model_copy(update={"state": TrialState.KILLED})
    result, recorded = again(data, history=(first, killed))
    assert [t.number for t in result.trials] == [0, 3]
    assert {t.number for t in recorded} == {3}
    assert result.blend.weights == pytest.approx({0: 0.7, 3: 0.3})


def test_a_member_that_cannot_be_fitted_is_left_out(tmp_path: Path) -> None:
    broken = BLUEPRINT.members[0].model_copy(update={"parameters": {"num_leaves": "many", "learning_rate": 0.1}})
    members = (broken, BLUEPRINT.members[1])
    result, _ = again(make_data(tmp_path / "one"), blueprint=BLUEPRINT.model_copy(update={"members": members}))
    assert result.blend.weights == {1: 1.0}
    assert result.trials[0].state is TrialState.FAILED
    with pytest.raises(TrainingFault, match="lightgbm"):
        again(make_data(tmp_path / "none"), blueprint=BLUEPRINT.model_copy(update={"members": members[:1]}))


def test_a_refit_that_does_not_end_is_left_behind(tmp_path: Path, probe: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.search.watchdog.LEFT_BEHIND_S", 0.3)
    stalls = BLUEPRINT.members[1].model_copy(update={"family": "probe", "parameters": {"does": "stall"}})
    members = (BLUEPRINT.members[0], stalls)
    blueprint = BLUEPRINT.model_copy(update={"members": members})
    result, _ = again(make_data(tmp_path), blueprint=blueprint, left_s=3.0)
    assert result.blend.weights == {0: 1.0}
    assert (result.trials[1].state, result.trials[1].reason) == (TrialState.KILLED, LEFT_BEHIND)


def test_rounds_grow_with_the_rows_they_were_found_on() -> None:
    booster, linear = BLUEPRINT.members
    assert booster.rounds_for(240) == 40
    assert booster.rounds_for(2) == 1, "none would mean as many as the family likes"
    assert linear.model_copy(update={"rounds": 5}).rounds_for(240) == 5
    assert booster.model_copy(update={"n_rows": 0}).rounds_for(240) == 20, "not known: as they are"


def fitted(data: TrialData, plan: MemberPlan) -> Fitted:
    preparation = Preparation.fit(data.dataset.frame, data.dataset.types)
    train = Sample(preparation.transform(data.dataset.frame), data.dataset.y)
    context = FitContext(task=Task.BINARY, n_classes=2, seed=1, rounds=plan.rounds or None)
    model = family(plan.family).fit(train, validation=None, parameters=plan.parameters, context=context)
    return Fitted(plan, model, preparation, plan.weight)


def gone_on(models: Sequence[Fitted], data: TrialData, **others: Any) -> SearchResult:
    given: dict[str, Any] = {"old": None, "record": lambda _: None} | others
    until = Deadline.after(60)
    return go_on(models, data, calibration=KEPT, target_scale="raw", deadline=until, threads=1, **given)


def test_a_booster_of_medians_goes_on_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Parameters, Loss]] = []

    def resume(*_: Any, parameters: Parameters, context: FitContext, **__: Any) -> None:
        asked.append((parameters, context.loss))

    monkeypatch.setattr(type(family("lightgbm")), "resume", resume)
    plan, data = BLUEPRINT.members[0], make_data(tmp_path)
    of_medians = plan.model_copy(update={"parameters": plan.parameters | {"loss": "absolute"}})
    for one in (plan, of_medians):
        with pytest.raises(TrainingFault):
            gone_on([replace(fitted(data, plan), plan=one)], data)
    assert asked == [(plan.parameters, "squared"), (plan.parameters, "absolute")]


def test_boosters_go_on_and_others_are_fitted_on_old_and_new_rows(tmp_path: Path) -> None:
    old = make_data(tmp_path / "old")
    new = make_data(tmp_path / "new", dataset=make_dataset(frame=make_frame(160, seed=5)))
    models = [fitted(old, plan) for plan in BLUEPRINT.members]

    result = gone_on(models, new, old=old.dataset)
    assert result.trials[0].rounds > 20
    assert result.trials[1].reason == "Fitted on the old and new rows."
    # The rounds of both are of old and new rows; a refit that scales them by the new rows alone would double them.
    n_old, n_train = len(old.dataset.y), len(new.splits[0].train)
    assert [t.n_rows for t in result.trials] == [120 + n_train, n_old + len(new.dataset.y)]
    assert result.parts[0][0].preparation == result.parts[1][0].preparation
    alone = gone_on(models, replace(new, workspace=tmp_path / "alone"))
    assert "stays as it was" in alone.trials[1].reason
    assert alone.trials[1].n_rows == 120
    kept = family("linear").load(alone.parts[1][0].folder)
    table = models[1].preparation.transform(new.dataset.frame)
    assert np.array_equal(kept.predict(table), models[1].model.predict(table))


def test_models_that_learn_nothing_are_no_variant(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    recorded: list[Trial] = []
    for attempt in ("first", "gone on with"):
        with pytest.raises(TrainingFault, match="linear cannot go on") as caught:
            gone_on(
                [fitted(data, BLUEPRINT.members[1])],
                data,
                record=recorded.append,
                history=[trial for trial in recorded if trial.state is TrialState.SUCCEEDED],
            )
        assert "refit" in caught.value.hint, attempt
    assert [trial.state for trial in recorded] == [TrialState.RUNNING, TrialState.SUCCEEDED], "it was not made again"
