"""What a request's end does with a variant that passed: served as wished, or proposed where its recipe asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.ledger import Ledger
from factory.spec import Actor, Variant, VariantRequest
from factory.variants.release import Release

ANN = Actor(who="token:ci/t-1")


class Mirror:
    """MLflow's aliases; it takes seconds to import, and nothing here is about it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self.told.append((name, alias, version))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as opened:
        yield opened


def release(ledger: Ledger, **deployment: Any) -> tuple[Release, Variant, Mirror, list[str]]:
    document = {"team": "growth", "name": "churn", "recipe": "careful", "dataset": {"path": "a.csv", "target": "y"}}
    request = VariantRequest.model_validate(document | {"deployment": deployment})
    request_id = ledger.create_request(request, by=ANN).id
    digests = {f"{name}_digest": "a" * 64 for name in ("recipe", "dataset", "bundle")}
    variant = Variant(
        name="growth.churn", version=1, request_id=request_id, task="binary", metric="roc_auc", recipe="careful",
        score=0.8, score_low=0.7, score_high=0.9, approval=True, **digests,
    )  # fmt: skip
    mirror, notes = Mirror(), list[str]()
    made = Release(request_id, request, ledger=ledger, registry=mirror, note=lambda _, text: notes.append(text))  # type: ignore[arg-type]
    return made, ledger.record_variant(variant), mirror, notes


@pytest.mark.parametrize("wish", [{"as": "champion"}, {"as": "canary", "percent": 10}], ids=str)
def test_what_callers_would_get_is_proposed_by_whoever_submitted_it(wish: dict[str, Any], ledger: Ledger) -> None:
    made, variant, mirror, notes = release(ledger, **wish)
    made.promote(variant, why="Better than the constant.", evidence={"improvement": 0.1})
    (proposal,) = ledger.proposals("growth.churn")
    assert (proposal.proposed_by, proposal.wish.as_, proposal.state) == (ANN.who, wish["as"], "open")
    assert (proposal.why, proposal.evidence) == ("Better than the constant.", {"improvement": 0.1})
    assert (mirror.told, ledger.deployment("growth.churn")) == ([], [])
    assert proposal.id in notes[0]
    ledger.decide(proposal.id, approve=False, why="No.", by=ANN)
    made.catch_up(variant)
    assert [p.state for p in ledger.proposals("growth.churn")] == ["rejected"]


def test_what_they_ask_for_by_name_is_served_at_once(ledger: Ledger) -> None:
    made, variant, mirror, _ = release(ledger, **{"as": "challenger"})
    made.promote(variant, why="x", evidence={})
    assert mirror.told == [("growth.churn", "challenger", 1)]
    assert ledger.proposals("growth.churn") == []


def test_without_that_wish_it_is_champion_as_ever(ledger: Ledger) -> None:
    made, variant, mirror, _ = release(ledger)
    made.promote(variant.model_copy(update={"approval": False}), why="x", evidence={})
    assert mirror.told == [("growth.churn", "champion", 1)]
    made.catch_up(variant)
    assert ledger.proposals("growth.churn") == []
