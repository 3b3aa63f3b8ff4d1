"""Four kinds of making one after the other, in one home: cold, warm start, refit, incremental."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.client import Fitted, fit
from factory.errors import InvalidRequest
from factory.ledger import Ledger
from factory.settings import Settings
from factory.variants.bundle import Bundle

pytestmark = pytest.mark.slow

TRIALS = 3
"""Few enough that no search starts Ray."""


def rows(n_rows: int, *, seed: int) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=n_rows), generator.normal(size=n_rows)
    city = generator.choice(["Bern", "Genf", "Basel"], n_rows)
    signal = a + a * b + (city == "Bern") + 0.3 * generator.normal(size=n_rows)
    return pd.DataFrame({"a": a, "b": b, "city": city, "flag": np.where(signal > 0.3, "yes", "no")})


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("transfer"), cpus=1)


@pytest.fixture(scope="module")
def first(settings: Settings) -> Fitted:
    return make(rows(500, seed=0), settings, name="local.first", trials=TRIALS, making="cold")


def make(frame: pd.DataFrame, settings: Settings, **options: object) -> Fitted:
    return fit(frame, "flag", settings=settings, budget_s=60, **options)  # type: ignore[arg-type]


def notes(made: Fitted, settings: Settings) -> str:
    with Ledger.open(settings.ledger) as ledger:
        return " ".join(e.message for e in ledger.events(made.variant.request_id) if e.kind == "transfer")


def test_a_cold_variant_keeps_what_it_takes_to_make_it_again(first: Fitted, settings: Settings) -> None:
    variant, blueprint = first.variant, first.bundle.blueprint
    assert (variant.kind, variant.seeded_by, variant.trials_to_parity) == ("cold", (), None)
    assert blueprint is not None
    assert {m.number: m.weight for m in blueprint.members} == pytest.approx(variant.blend)
    assert len(blueprint.models) == len(first.bundle.members)
    with Ledger.open(settings.ledger) as ledger:
        found = ledger.past_search(variant.request_id)
    assert found.traits is not None
    assert (found.traits.constant_score, found.blend) == (0.5, variant.blend)


def test_a_sibling_starts_with_what_the_first_one_found(first: Fitted, settings: Settings) -> None:
    made = make(rows(450, seed=1), settings, name="local.warm", trials=TRIALS, making="warm_start")
    trials = made.outcome.made[0].trials
    best = max(first.variant.blend, key=lambda n: first.variant.blend[n])
    heaviest = next(t for t in first.outcome.made[0].trials if t.number == best)
    assert (made.variant.kind, made.variant.seeded_by) == ("warm_start", (first.variant.request_id,))
    assert (trials[0].origin, trials[0].family) == ("history", heaviest.family)
    assert trials[0].parameters == heaviest.parameters
    assert made.variant.trials_to_parity in (None, 1, 2, 3)
    assert "local.first" in notes(made, settings)
    assert "seeded by" in made.report().path.read_text()


def test_counted_trials_without_a_parent_stay_cold(first: Fitted, settings: Settings) -> None:
    made = make(rows(200, seed=2), settings, name="local.counted", trials=1)
    assert (made.variant.kind, made.variant.seeded_by) == ("cold", ())


def test_a_refit_searches_nothing_and_costs_less(first: Fitted, settings: Settings) -> None:
    more = pd.concat([rows(500, seed=0), rows(50, seed=3)], ignore_index=True)
    made = make(more, settings, name="local.first", making="refit", parent="local.first")
    assert (made.variant.kind, made.variant.parent, made.variant.version) == ("refit", "local.first/1", 2)
    trials = made.outcome.made[0].trials
    assert {t.origin for t in trials} == {"history"}
    # Of several members a refit fits those that a tenth of the parent's cost affords.
    assert 1 <= len(trials) <= len(first.variant.blend)
    assert made.variant.cost_s < first.variant.cost_s
    assert made.variant.score > first.variant.score - 0.05
    again = Bundle.load(made.folder, digest=made.variant.bundle_digest)
    assert again.calibration == first.bundle.calibration
    assert again.blueprint is not None
    assert sorted(m.family for m in again.blueprint.members) == sorted(t.family for t in trials)


def test_a_variant_that_is_trained_on_is_held_to_what_its_parent_knew(first: Fitted, settings: Settings) -> None:
    new = rows(200, seed=4).assign(extra=1.5)
    made = make(new, settings, name="local.more", making="incremental", parent="local.first/1")
    assert (made.variant.kind, made.variant.parent) == ("incremental", "local.first/1")
    [memory] = [c for c in made.outcome.verdicts[0].checks if c.name == "memory"]
    assert "set aside when the parent was made" in memory.sentence
    assert memory.passed
    assert [c.name for c in made.bundle.columns] == [c.name for c in first.bundle.columns]
    assert made.predict(new).shape == (200,)


def test_rows_that_contradict_make_it_forget_and_the_gate_says_so(first: Fitted, settings: Settings) -> None:
    wrong = rows(400, seed=5)
    wrong["flag"] = wrong["flag"].map({"yes": "no", "no": "yes"})
    made = make(wrong, settings, name="local.wrong", making="incremental", parent="local.first/1")
    [memory] = [c for c in made.outcome.verdicts[0].checks if c.name == "memory"]
    assert not memory.passed
    assert made.variant.state == "rejected"


def test_without_the_parents_rows_similar_ones_stand_in(first: Fitted, settings: Settings, tmp_path: Path) -> None:
    with Ledger.open(settings.ledger) as ledger:
        reference = ledger.request(first.variant.request_id).request.dataset
    stored = settings.uploads / f"{reference.upload}.parquet"  # type: ignore[union-attr]
    away = stored.rename(tmp_path / "away.parquet")
    try:
        made = make(rows(200, seed=6), settings, name="local.alone", making="incremental", parent="local.first/1")
    finally:
        away.rename(stored)
    assert "are gone" in notes(made, settings)
    assert any("most like those of the parent" in c.sentence for c in made.outcome.verdicts[0].checks)


def test_what_cannot_be_made_again_is_one_clear_error(first: Fitted, settings: Settings) -> None:
    with pytest.raises(InvalidRequest, match=r"dataset\.b.*dataset\.city") as caught:
        make(rows(60, seed=7)[["a", "flag"]], settings, making="incremental", parent="local.first/1")
    assert {d.field for d in caught.value.details} == {"dataset.b", "dataset.city"}
    with pytest.raises(InvalidRequest, match=r"parent: There is no variant 'local\.nobody'"):
        make(rows(60, seed=7), settings, making="refit", parent="local.nobody")
