"""What the ledger keeps of how a version was judged: what its gate found, and which segments stayed with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from factory.ledger import Ledger
from factory.spec import Document, Variant
from factory.variants.gates import Check
from factory.variants.resampling import Comparison


class GateReport(Document):
    """What a gate found.

    Attributes:
        passed: Whether the version may become champion by it.
        sentence: The same for a person.
    """

    passed: bool
    sentence: str
    baseline: str = Field("", description="What the version was compared with; empty where that is not known.")
    comparison: Comparison | None = Field(None, description="With the baseline, on rows that its search has not seen.")
    checks: tuple[Check, ...] = ()


def gate_report(variant: Variant, *, ledger: Ledger) -> GateReport | None:
    """Return what a version's gate found; None where nothing of it is kept.

    Its request's event has all of it. Of versions of older releases the alias ledger, or a proposal, has the
    comparison, and the sentence.
    """
    named = f"{variant.name}/{variant.version}: "
    event = ledger.last_event_of(variant.request_id, "gate", beginning=named)
    told = event.message.removeprefix(named) if event else ""
    passed = variant.state == "registered"
    if event is not None and (found := _found(event.payload, passed=passed, sentence=told)) is not None:
        return found
    changes = [(one.version, one.evidence, one.why) for one in ledger.alias_history(variant.name)]
    changes += [(one.version, one.evidence, one.why) for one in ledger.proposals(variant.name)]
    kept = [(found, why) for version, found, why in changes if version == variant.version and "difference" in found]
    if not (kept or told):
        return None
    evidence, why = kept[0] if kept else ({}, told)
    return GateReport(passed=passed, sentence=told or why, comparison=_comparison(evidence))


class PooledSegment(Document):
    """A segment without a variant of its own, which the pooled one answers for."""

    segment: str
    reason: str


def pooled_segments(request_id: str, *, ledger: Ledger, most: int = 1000) -> tuple[PooledSegment, ...]:
    """Return the segments that a request left to its pooled variant, in the order in which that was found."""
    told = [event.payload for event in ledger.events_of(request_id, "segment", limit=most)]
    found = {one["segment"]: one["reason"] for one in told if one.keys() == {"segment", "reason"}}
    return tuple(PooledSegment(segment=segment, reason=reason) for segment, reason in found.items())


def _found(payload: Mapping[str, Any], *, passed: bool, sentence: str) -> GateReport | None:
    try:
        return GateReport.model_validate({**payload, "passed": passed, "sentence": sentence}) if payload else None
    except ValidationError:  # of a release that kept something else
        return None


def _comparison(evidence: Mapping[str, Any]) -> Comparison | None:
    try:
        return Comparison.model_validate(evidence)
    except ValidationError:  # of a release that kept something else
        return None
