"""Segments: parts of the pooled folds, lent models, own ones only where they prove their worth, journals."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.preparation import Preparation
from factory.errors import InvalidData, TrainingFault
from factory.families.base import Deadline
from factory.ledger import Ledger
from factory.operate.intake import Intake
from factory.pipeline import produce
from factory.search.engine import SearchResult, search
from factory.search.ensemble import Candidates
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.plan import check_request, family, make_plan
from factory.settings import Settings
from factory.spec import Ceilings, RequestState, Task, Trial
from factory.variants import fanout
from factory.variants.appraisal import blueprint
from factory.variants.bundle import Bundle
from factory.variants.costs import Shop
from factory.variants.frontier import Chosen, choose
from factory.variants.making import Order, order_of
from factory.variants.material import Material, Unit, divide, gather, slugs_of
from factory.variants.origin import Origin
from factory.variants.registry import Registry
from factory.variants.segments import (
    LEAST_SHARED_ROWS,
    SURE,
    Lent,
    _read,
    _skipped,
    _with_lent,
    bounded,
    lend,
    seeds_of,
    surely_better,
)
from factory.variants.settled import LENT_FROM

from .conftest import Made as Variant

RMSE = Metric.of("neg_root_mean_squared_error", Task.REGRESSION)


def write_shops(folder: Path, *, n_rows: int = 760) -> Path:
    """Sales of four shops that depend on the price in different ways, and of a thin fifth one."""
    generator = np.random.default_rng(0)
    shop = generator.choice(["north", "south", "east", "Attic 1", "kiosk"], n_rows, p=[0.27, 0.26, 0.24, 0.2, 0.03])
    price, size = generator.uniform(1, 5, n_rows), generator.normal(size=n_rows)
    slopes = {"north": -3.0, "south": 2.0, "east": 0.0, "Attic 1": 1.0, "kiosk": 1.0}
    slope = pd.Series(shop).map(slopes).to_numpy()
    sold = 20 + slope * price + size + 0.3 * generator.normal(size=n_rows)
    path = folder / "shops.csv"
    pd.DataFrame({"shop": shop, "price": price, "size": size, "sold": sold}).to_csv(path, index=False)
    return path


def document(path: Path) -> dict[str, object]:
    return {
        "team": "retail",
        "name": "sold",
        "recipe": "tabular-fast",
        "dataset": {"path": str(path), "target": "sold"},
        "families": ["constant", "linear", "lightgbm"],
        "segments": {"by": "shop", "min_rows": 60},
        "budget": {"time_s": 300, "trials": 4},
        "seed": 1,  # by which the pooled models share all folds, so that segments have rows to weigh theirs by
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), cpus=2)


@pytest.fixture(scope="module")
def searched(settings: Settings, tmp_path_factory: pytest.TempPathFactory):
    """The pooled search of the shops, in this process, with the segments that are to follow."""
    path = write_shops(tmp_path_factory.mktemp("shops"))
    request, recipe = check_request(document(path), settings=settings)
    notes: list[str] = []
    material = gather(request, recipe.validation, settings=settings, note=lambda _, text: notes.append(text))
    plan = make_plan(request, recipe, material.dataset.task)
    workspace = tmp_path_factory.mktemp("work")
    pooled, units, thin = divide(material, plan, workspace=workspace, note=lambda _, text, *__: notes.append(text))
    result = search(
        plan, pooled.data, ray=None, settings=settings, history=[], deadline=Deadline.after(300), record=lambda _: None
    )
    return material, pooled, units, thin, result, notes


def test_segments_take_their_part_of_the_pooled_folds(searched: tuple[Material, Unit, list[Unit], *tuple]) -> None:
    _, pooled, units, thin, _, notes = searched
    assert [unit.segment for unit in units] == ["Attic 1", "east", "north", "south"]
    assert thin == ("kiosk",)
    assert any("'kiosk' is served by the pooled variant" in note for note in notes)
    assert [unit.name for unit in units] == [f"retail.sold.{slug}" for slug in ("attic-1", "east", "north", "south")]
    for unit in units:
        assert unit.rows is not None
        assert len(unit.data.splits) == len(pooled.data.splits)
        assert set(unit.data.dataset.frame["shop"]) == {unit.segment} == set(unit.unseen.frame["shop"])
        for mine, whole in zip(unit.data.splits, pooled.data.splits, strict=True):
            assert set(unit.rows[mine.validation]) == set(unit.rows) & set(whole.validation)
            assert set(unit.rows[mine.train]) == set(unit.rows) & set(whole.train)


def test_the_index_of_a_frame_is_found_by_the_pipelines_own_way(settings: Settings, tmp_path: Path) -> None:
    """The screening sees the search's rows only, of which the gate's are taken out: no difference is 1 there."""
    table = pd.read_csv(write_shops(tmp_path, n_rows=400))
    table["Unnamed: 0"] = table["position"] = np.arange(len(table))
    table["position"] += 1
    path = tmp_path / "indexed.csv"
    table.to_csv(path, index=False)
    request, recipe = check_request(document(path), settings=settings)
    material = gather(request, recipe.validation, settings=settings, note=lambda *_: None)
    assert len(material.unseen)
    assert {f.column: (f.kind, f.action) for f in material.findings} == {
        "Unnamed: 0": ("identifier", "drop"),
        "position": ("identifier", "drop"),
    }
    assert list(material.dataset.frame.columns) == ["shop", "price", "size"]


@pytest.mark.parametrize("step", ["load", "set_aside"])
def test_a_table_that_does_not_fit_is_refused_before_it_is_read_or_copied(
    step: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.search.cluster.SMALL_MB", 0.0)
    monkeypatch.setattr(f"factory.variants.material.{step}", lambda *_, **__: pytest.fail("it went on"))
    if step == "set_aside":  # of a file that does not tell
        monkeypatch.setattr("factory.variants.material.least_mb", lambda *_, **__: 0.0)
    request, recipe = check_request(document(write_shops(tmp_path, n_rows=400)), settings=settings)
    with pytest.raises(InvalidData, match=r"budget\.memory_gb: the table takes"):
        gather(request, recipe.validation, settings=settings, note=lambda *_: None, memory_mb=100)


def test_values_of_segments_are_the_text_that_all_else_knows_them_by(settings: Settings, tmp_path: Path) -> None:
    table = pd.read_csv(write_shops(tmp_path, n_rows=600))
    generator = np.random.default_rng(0)
    table["shop"] = np.where(generator.random(600) < 0.2, np.nan, generator.choice([1.0, 2.0], 600))
    path = tmp_path / "gaps.csv"
    table.to_csv(path, index=False)
    request, recipe = check_request(document(path), settings=settings)
    notes: list[str] = []
    material = gather(request, recipe.validation, settings=settings, note=lambda *_: None)
    plan = make_plan(request, recipe, material.dataset.task)
    _, units, thin = divide(material, plan, workspace=tmp_path, note=lambda _, text, *__: notes.append(text))
    assert [(unit.segment, unit.name) for unit in units] == [("1", "retail.sold.1"), ("2", "retail.sold.2")]
    assert thin == ()
    n_without = int(table["shop"].isna().sum())
    assert notes == [f"The pooled variant serves rows without a value of 'shop': {n_without} of 600."]


def test_a_segment_starts_with_the_learning_rate_that_was_fitted(searched) -> None:
    result = searched[4]
    raised = tuple(t.model_copy(update={"raised_rate": 0.37}) for t in result.trials)
    boosted = [parameters for name, parameters in seeds_of(replace(result, trials=raised)) if name == "lightgbm"]
    assert {parameters["learning_rate"] for parameters in boosted} <= {0.37}
    assert seeds_of(replace(result, trials=raised))[0][1]["learning_rate"] == 0.37


def chosen_of(result: SearchResult, pooled: Unit) -> Chosen:
    return choose(result, data=pooled.data, ceilings=Ceilings(), rows=pooled.unseen.frame)


def test_lent_predictions_are_those_of_the_segments_rows(searched, regression: Variant) -> None:
    _, pooled, units, _, result, _ = searched
    unit = units[0]
    lent = lend(pooled.data, result, chosen_of(result, pooled), unit.rows)
    assert {LENT_FROM + n for n in result.blend.weights} | set(lent.weights) == {t.number for t in lent.trials}
    assert sum(lent.weights.values()) == pytest.approx(1)
    for fold in result.folds:
        y = unit.data.dataset.y[unit.data.splits[fold].validation]
        for trial in lent.trials:
            assert len(lent.predictions[fold][trial.number]) == len(y)
            part = next(p for p in lent.parts[trial.number] if p.fold == fold)
            rows = unit.data.dataset.frame.iloc[unit.data.splits[fold].validation]
            table = Preparation.load(part.preparation).transform(rows)
            again = family(trial.family).load(part.folder).predict(table)
            np.testing.assert_allclose(lent.predictions[fold][trial.number], again, rtol=1e-4, atol=1e-3)
    assert seeds_of(result)[0][0] in ("linear", "lightgbm")
    # A refit of the segment scales a lent booster's rounds from the rows that they were found on: the pooled ones.
    plan = blueprint(
        regression.bundle, {t.number: 1.0 for t in lent.trials}, _with_lent(None, lent, unit.data), unit.data
    )
    assert {member.n_rows for member in plan.members} == {len(pooled.data.splits[0].train)}


def candidates(*predictions: np.ndarray, y: np.ndarray) -> Candidates:
    return Candidates(RMSE, (y,), {n: (p,) for n, p in enumerate(predictions)})


def test_cross_fitting_sees_through_luck_and_finds_what_helps() -> None:
    generator = np.random.default_rng(1)
    y = generator.normal(size=200)
    pooled = y + 0.3 * generator.normal(size=200)
    noise = [3 * generator.normal(size=200) for _ in range(5)]
    own = y + 0.3 * generator.normal(size=200)
    assert surely_better(candidates(pooled, own, y=y), {0: 1.0}) > 0.99
    assert surely_better(candidates(pooled, *noise, y=y), {0: 1.0}) < SURE
    assert surely_better(candidates(pooled, y=y), {0: 1.0}) == 0.0, "the same is no better"


def test_weights_of_a_segments_own_are_seldom_taken_for_better_by_luck() -> None:
    """Two pooled models whose best shares are the pooled ones: few rows would choose others."""
    generator = np.random.default_rng(2)
    taken = 0
    for _ in range(60):
        y = generator.normal(size=120)
        both = [y + 0.3 * generator.normal(size=120) for _ in range(2)]
        taken += surely_better(candidates(*both, y=y), {0: 0.5, 1: 0.5}) >= SURE
    assert taken <= 6


def fake_result(data: TrialData, predict, *, n_folds: int | None = None) -> SearchResult:
    targets = tuple(data.dataset.y[split.validation] for split in data.splits[:n_folds])
    predictions = {7: tuple(predict(y) for y in targets)}
    folds = tuple(range(len(targets)))
    trial = Trial(number=7, family="linear", parameters={}, state="succeeded", score=0.0, folds=folds)
    return SearchResult((trial,), Candidates(RMSE, targets, predictions), folds, None, {7: ()}, {})  # type: ignore[arg-type]


def test_own_models_are_used_only_if_they_help(searched) -> None:
    _, pooled, units, _, result, _ = searched
    data = units[0].data
    lent = lend(pooled.data, result, chosen_of(result, pooled), units[0].rows)
    generator = np.random.default_rng(0)
    good = _with_lent(fake_result(data, lambda y: y + 0.01 * generator.normal(size=len(y))), lent, data)
    assert 7 in good.blend.weights
    bad = _with_lent(fake_result(data, lambda y: 100 + 50 * generator.normal(size=len(y))), lent, data)
    assert set(bad.blend.weights) <= {t.number for t in lent.trials}
    assert {t.number for t in bad.trials} == {7, *(t.number for t in lent.trials)}
    assert (bad.blend.weights, bad.parts, bad.calibration) == (lent.weights, lent.chosen, lent.calibration)
    assert good.blend.weights[7] > 0.4
    assert sum(w for n, w in good.blend.weights.items() if n != 7) > 0.4, "half of it stays the pooled blend"
    assert set(good.parts) == set(good.blend.weights)
    without = _with_lent(None, lent, data)
    assert set(without.blend.weights) <= {t.number for t in lent.trials}
    with pytest.raises(TrainingFault, match="no model"):
        _with_lent(None, None, data)


def test_models_that_share_few_rows_with_the_pooled_ones_are_not_preferred(searched) -> None:
    _, pooled, units, _, result, _ = searched
    data = units[0].data
    lent = lend(pooled.data, result, chosen_of(result, pooled), units[0].rows)
    n_shared = len(data.splits[0].validation)
    assert n_shared < LEAST_SHARED_ROWS
    perfect = _with_lent(fake_result(data, lambda y: y, n_folds=1), lent, data)
    assert set(perfect.blend.weights) <= {t.number for t in lent.trials}
    assert perfect.folds == result.folds, "the pooled models are weighed by all that they have"
    reason = f"weighed against the pooled ones by {n_shared} rows, and {LEAST_SHARED_ROWS} are needed"
    assert reason in perfect.skipped["linear"]


def order(searched, settings: Settings, unit: Unit, **ceilings: float) -> Order:
    """What a segment is made by, under some ceilings."""
    material = searched[0]
    request, recipe = check_request(document(Path("shops.csv")), settings=settings)
    plan = replace(make_plan(request, recipe, material.dataset.task), ceilings=Ceilings(**ceilings))
    return order_of("r-1", unit, plan=plan, material=material, origin=Origin("warm_start"), champion=None)


def test_a_segment_of_the_pooled_blend_says_so_and_has_a_curve(searched, settings: Settings, monkeypatch) -> None:
    _, pooled, units, _, result, _ = searched
    chosen = chosen_of(result, pooled)
    lent = lend(pooled.data, result, chosen, units[0].rows)
    assert set(lent.prices.costs) == {t.number for t in lent.trials}
    monkeypatch.setattr(Shop, "_model", lambda *_: pytest.fail("a pooled model is timed once more"))
    made = bounded(_with_lent(None, lent, units[0].data), lent, order(searched, settings, units[0]))
    assert made.weights == pytest.approx(lent.weights)
    assert {n: len(parts) for n, parts in made.parts.items()} == {n: len(parts) for n, parts in lent.chosen.items()}
    assert made.frontier.sentence == (
        "Members and weights are those of the pooled variant, which was chosen under the default bound of 4 ms."
    )
    assert made.frontier.lost == 0
    assert sum(point.chosen for point in made.frontier.points) == 1
    latencies = [point.latency_ms for point in made.frontier.points]
    assert latencies == sorted(latencies)
    places = {(round(point.latency_ms, 9), round(point.score, 9)) for point in made.frontier.points}
    assert len(places) == len(made.frontier.points), "no point is there twice"


def own_and_lent(searched, *, own_ms: float) -> tuple[SearchResult, Lent, Unit]:
    """A segment whose own model, which takes so long for a row, is surely better than the pooled ones."""
    _, pooled, units, _, result, _ = searched
    unit = units[0]
    lent = lend(pooled.data, result, chosen_of(result, pooled), unit.rows)
    model = next(iter(lent.parts.values()))
    generator = np.random.default_rng(0)
    fake = fake_result(unit.data, lambda y: y + 0.01 * generator.normal(size=len(y)))
    both = _with_lent(replace(fake, parts={7: model}), lent, unit.data)
    assert both.blend.weights[7] > 0.4
    costs = lent.prices.costs
    costs = dict.fromkeys(costs, replace(next(iter(costs.values())), row_ms=0.1, size_mb=1.0))
    costs[7] = replace(costs[min(costs)], row_ms=own_ms, size_mb=2.0)
    free = dict.fromkeys(lent.prices.preparation_ms, 0.0)
    prices = replace(lent.prices, costs=costs, preparation_ms=free, preparation_mb=free, merges=False, ratio=1.0)
    return both, replace(lent, prices=prices), unit


def test_a_segments_own_blend_keeps_the_bound_or_is_cut_down_to_it(searched, settings: Settings) -> None:
    both, lent, unit = own_and_lent(searched, own_ms=0.1)
    whole = bounded(both, lent, order(searched, settings, unit))
    assert whole.weights == pytest.approx(both.blend.weights)
    assert whole.frontier.sentence == (
        "All members of the segment's own blend keep the default bound of 4 ms: nothing was given up."
    )
    n_models = sum(len(parts) for parts in whole.parts.values())

    limit_ms = 0.1 * n_models / 2
    cut = bounded(both, replace(lent, bound_ms=limit_ms), order(searched, settings, unit, latency_ms=limit_ms / 0.8))
    assert 7 in cut.weights
    assert sum(len(parts) for parts in cut.parts.values()) * 0.1 <= limit_ms + 1e-9
    assert sum(cut.weights.values()) == pytest.approx(1)
    assert "was cut down to keep the ceiling of" in cut.frontier.sentence
    assert cut.frontier.ceiling_ms == pytest.approx(limit_ms / 0.8)
    (point,) = [point for point in cut.frontier.points if point.chosen]
    assert point.latency_ms <= limit_ms + 1e-9
    assert _skipped(both, cut) == both.skipped


def test_a_ceiling_on_size_holds_for_segments(searched, settings: Settings) -> None:
    both, lent, unit = own_and_lent(searched, own_ms=0.1)
    size_mb = sum((2.0 if n == 7 else 1.0) * len(both.parts[n]) for n in both.blend.weights)
    cut = bounded(both, lent, order(searched, settings, unit, size_mb=size_mb * 0.6))
    taken = sum((2.0 if n == 7 else 1.0) * len(parts) for n, parts in cut.parts.items())
    assert taken <= 0.8 * 0.6 * size_mb + 1e-9


def test_own_models_that_are_too_slow_leave_the_pooled_blend(searched, settings: Settings) -> None:
    both, lent, unit = own_and_lent(searched, own_ms=50.0)
    made = bounded(both, lent, order(searched, settings, unit))
    assert 7 not in made.weights
    skipped = _skipped(both, made)
    assert skipped["linear"] == "the segment's own models would break the bound on latency or size"
    if set(made.weights) == set(lent.weights):
        assert "The pooled variant's blend stays: the segment's own would take" in made.frontier.sentence


def test_a_value_that_can_be_told_by_its_letters_is() -> None:
    told = {"north": "north", "store-00": "store-00", "New York": "new-york", "Zürich": "zurich", "x" * 40: "x" * 40}
    assert slugs_of(told) == told


def test_slugs_are_short_allowed_in_names_and_never_shared() -> None:
    values = ["North", "north", "NORTH", "north!", "", "-", "東京", "x" * 41, "x" * 400, "deadbeef", "1.0", "1 0"]
    values += slugs_of(values).values()
    slugs = slugs_of(dict.fromkeys(values))
    assert len(set(slugs.values())) == len(slugs)
    assert all(re.fullmatch(r"[a-z0-9-]{1,49}", slug) for slug in slugs.values())
    assert slugs["North"].startswith("north-")


def test_a_journal_holds_the_last_state_of_each_trial_and_survives_a_cut_line(tmp_path: Path) -> None:
    journal = tmp_path / "trials.jsonl"
    assert _read(journal) == []
    first = Trial(
        number=0, family="linear", parameters={}, state="succeeded", score=1.0, folds=(0,), fold_scores=(1.0,)
    )
    longer = first.model_copy(update={"folds": (0, 1), "fold_scores": (1.0, 2.0), "score": 1.5})
    other = first.model_copy(update={"number": 1})
    lines = [t.model_dump_json() for t in (first, other, longer)]
    journal.write_text("\n".join(lines) + "\n" + lines[0][:40])
    assert _read(journal) == [longer, other]


@pytest.mark.slow
def test_a_request_makes_all_its_segments_but_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home", cpus=2)
    settings.prepare_home()
    monkeypatch.setattr(fanout, "HANG_S", 8.0)
    monkeypatch.setattr(fanout, "share_of", lambda *_, **__: 5.0)
    with Ledger.open(settings.ledger) as ledger:
        record = Intake(ledger, settings).submit(document(write_shops(tmp_path)), door="library").record
        # A pipe that nobody writes to: its reader waits for ever, as on a file system that went away.
        stuck = settings.workspace(record.id) / "segment-attic-1"
        stuck.mkdir(parents=True)
        os.mkfifo(stuck / "trials.jsonl")
        outcome = produce(record.id, ledger=ledger, settings=settings)
        assert outcome.state is RequestState.REGISTERED
        assert set(outcome.pooled_segments) == {"kiosk", "Attic 1"}
        reasons = [e.message for e in ledger.events(record.id) if "'Attic 1' is served by the pooled" in e.message]
        assert len(reasons) == 1
        assert "it hung" in reasons[0]
        variants = {v.segment: v for v in ledger.variants(request_id=record.id)}
        assert set(variants) == {"", "east", "north", "south"}
        for segment in ("east", "north", "south"):
            variant = variants[segment]
            assert variant.parent == "retail.sold"
            assert variant.score >= variants[""].score - 0.3, "as good as the pooled one, or nearly so"
            assert all(t.number < LENT_FROM for t in ledger.trials(record.id, segment=segment))
            folder = Registry(settings).local_bundle(variant.name, variant.version)
            bundle = Bundle.load(folder, digest=variant.bundle_digest)
            rows = pd.DataFrame({"shop": [segment] * 2, "price": [1.0, 4.0], "size": [0.0, 0.0]})
            low, high = bundle.predict_raw(rows)
            slope = {"north": -3.0, "south": 2.0, "east": 0.0}[segment]
            assert (high - low) / 3 == pytest.approx(slope, abs=0.5)
