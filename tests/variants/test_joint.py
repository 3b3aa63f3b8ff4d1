"""Segments are judged together: most at once, those in between when all are there."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from factory.search.metric import Metric
from factory.spec import Ceilings, Gates, Task
from factory.variants.gates import Evidence, judge
from factory.variants.joint import JointGate
from factory.variants.making import Made, Registration
from factory.variants.report import Card

from .conftest import Made as Fixture
from .test_gates import BETTER
from .test_report import card_of


@pytest.fixture(scope="module")
def card(binary: Fixture) -> Card:
    return card_of(binary)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def made(card: Card, gate: JointGate, probability: float, *, folder: Path = Path(), latency_ms: float = 1.0) -> Made:
    """A segment's variant as its worker judges it."""
    comparison = BETTER.model_copy(update={"probability": probability})
    evidence = Evidence(
        metric=Metric.of("roc_auc", Task.BINARY),
        comparison=comparison,
        baseline="a constant",
        latency_ms=latency_ms,
        size_mb=1.0,
    )
    verdict = judge(Gates(), Ceilings(latency_ms=5), evidence, sure=gate.sure)
    variant = card.variant.model_copy(update={"state": "registered" if verdict.passed else "rejected"})
    return Made(
        variant=variant,
        verdict=verdict,
        comparison=comparison,
        card=card.model_copy(update={"verdict": verdict, "comparison": comparison, "variant": variant}),
        trials=(),
        weights={},
        trade="",
        skipped={},
        folder=folder,
        judge=None,
        example=pd.DataFrame(),
        registration=Registration({}, {}, {}, {}),
    )


def test_only_those_in_between_wait_for_the_others(card: Card, folder: Path) -> None:
    gate = JointGate(Gates(), n_segments=5)
    assert gate.sure == pytest.approx(0.99)
    assert gate.settled(made(card, gate, 0.995))
    assert gate.settled(made(card, gate, 0.90))
    assert gate.settled(made(card, gate, 0.985, latency_ms=9.0)), "too slow, however sure it is"
    assert not gate.settled(made(card, gate, 0.9885, folder=folder))
    assert not gate.settled(made(card, gate, 0.96, folder=folder.with_name("other") / "bundle"))
    folder.with_name("other").mkdir()
    # By Holm: .995 >= .99, .9885 >= .9875, .985 >= .98333, .96 < .975.
    stood, fell = sorted(gate.rest(), key=lambda one: -one.comparison.probability)
    assert stood.verdict.passed
    assert stood.variant.state == "registered"
    assert json.loads(stood.registration.files["verdict.json"])["passed"] is True
    assert "98.8% needed" in stood.registration.files["card.html"]
    assert (folder.parent / "card.html").read_text(encoding="utf-8") == stood.registration.files["card.html"]
    assert not fell.verdict.passed
    assert fell.variant.state == "rejected"
    assert "97.5% needed" in fell.verdict.sentence


def test_segments_that_failed_or_were_made_earlier_are_counted(card: Card, folder: Path) -> None:
    earlier = [card.variant.model_copy(update={"state": state}) for state in ("registered", "rejected")]
    gate = JointGate(Gates(), n_segments=4, earlier=earlier)
    one = made(card, gate, 0.985, folder=folder)
    assert not gate.settled(one)
    # One stood earlier, one fell, one failed now: three are left for the one that waits.
    (judged,) = gate.rest()
    assert judged.verdict.passed
    assert "98.3% needed" in judged.verdict.sentence
    alone = JointGate(Gates(), n_segments=4)
    assert not alone.settled(one)
    assert not alone.rest()[0].verdict.passed


def test_one_segment_is_judged_like_any_variant(card: Card) -> None:
    gate = JointGate(Gates(), n_segments=1)
    assert gate.sure == pytest.approx(Gates().confidence)
    assert gate.settled(made(card, gate, 0.96))
    assert gate.rest() == []
