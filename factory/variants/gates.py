"""Whether a variant may become champion: every check with its numbers in a sentence.

A gate never stops the making of a variant.  One that does not pass is
registered as rejected with this verdict as evidence, and whoever is champion
stays it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from factory.data.findings import LEAKS, Finding
from factory.errors import listing
from factory.search.metric import Metric
from factory.spec import Ceilings, Document, Gates
from factory.variants.multiplicity import stands
from factory.variants.resampling import Comparison
from factory.variants.slices import LEAST_ROWS, Slice, blamed

MIN_ROWS = 20
"""Held-out rows below which a bootstrap says nothing: its resamples repeat a handful of rows."""

CheckName = Literal["rows", "improvement", "slices", "latency", "size", "leakage", "memory"]


class Check(Document):
    """One condition.

    Attributes:
        name: Which one.
        passed: Whether it holds.
        value: What was measured; None where there is no number.
        limit: What was asked for; None where there is no number.
        sentence: Both, for a person.
    """

    name: CheckName
    passed: bool
    value: float | None = None
    limit: float | None = None
    sentence: str


class Verdict(Document):
    """What the gate says, and why."""

    passed: bool
    checks: tuple[Check, ...]

    def with_check(self, check: Check) -> Verdict:
        """Return the verdict with another outcome of one of its checks."""
        checks = tuple(check if one.name == check.name else one for one in self.checks)
        return Verdict(passed=all(one.passed for one in checks), checks=checks)

    @property
    def sentence(self) -> str:
        """The verdict in one paragraph: what failed, or what was proven."""
        telling = [check for check in self.checks if check.passed == self.passed]
        return ("Passed. " if self.passed else "Not passed. ") + " ".join(check.sentence for check in telling)


@dataclass(frozen=True)
class Evidence:
    """What a gate judges.

    Attributes:
        metric: The metric that was optimized.
        comparison: Candidate against baseline on rows that neither the search nor the blend was chosen on.
        baseline: What the baseline is: ``constant``, or the champion's name and version.
        latency_ms: Median one-row prediction.
        size_mb: Size of the bundle's folder.
        findings: Of the screening.
        slices: Of the same rows; compared with the same baseline, with the loss that the gates allow as margin.
        memory: Of a variant that was trained on: against its parent, on rows like those that the parent learned from.
        memory_of: What these rows are.
        promise: What the score holds for, where the rows have an order in time.
        by: What was judged in the variant's place, in a sentence; empty where that was the variant itself.
    """

    metric: Metric
    comparison: Comparison
    baseline: str
    latency_ms: float
    size_mb: float
    findings: Sequence[Finding] = ()
    slices: Sequence[Slice] = ()
    memory: Comparison | None = None
    memory_of: str = ""
    promise: str = ""
    by: str = ""


def judge(gates: Gates, ceilings: Ceilings, evidence: Evidence, *, sure: float | None = None) -> Verdict:
    """Check every condition, those that failed and those that hold.

    Args:
        gates: Margin and confidence of the comparison, and whether leakage is allowed.
        ceilings: Limits on latency and size.
        evidence: What was measured; its comparison was made with the gate's margin.
        sure: Confidence that the improvement has to reach, of one variant among many; the gates' if None. Slices are
            blamed with the gates' own: a greater one would let more of them pass.
    """
    checks = (
        _rows(evidence.comparison, f"{evidence.by} {evidence.promise}"),
        improvement(gates, evidence.metric, evidence.comparison, baseline=evidence.baseline, sure=sure),
        *_slices(gates, evidence),
        *_ceilings(ceilings, evidence),
        _leakage(gates, evidence.findings),
        *_memory(evidence),
    )
    return Verdict(passed=all(check.passed for check in checks), checks=checks)


def _rows(comparison: Comparison, remarks: str) -> Check:
    n = comparison.n_rows
    enough = n >= MIN_ROWS
    sentence = f"{n} held-out rows were judged" + ("." if enough else f"; at least {MIN_ROWS} are needed.")
    sentence = " ".join(f"{sentence} {remarks}".split())
    return Check(name="rows", passed=enough, value=n, limit=MIN_ROWS, sentence=sentence)


def improvement(
    gates: Gates, metric: Metric, comparison: Comparison, *, baseline: str, sure: float | None = None
) -> Check:
    """Ask that the improvement exceeds the margin, and is as probable as the gates want it (one-sided).

    Args:
        gates: Margin and confidence.
        metric: The metric that was optimized.
        comparison: Candidate against baseline, with the gates' margin.
        baseline: What the baseline is.
        sure: Confidence to reach instead of the gates'.
    """
    margin, sure = gates.min_improvement, gates.confidence if sure is None else sure
    passed = comparison.difference > margin and stands(comparison.probability, sure)
    needed = f"more than {margin:.4g}" if margin else "an improvement"
    counted = "" if comparison.tail == "counted" else ", by a normal tail"
    sentence = (
        f"{_capital(metric.label)} {metric.display(comparison.candidate)} against "
        f"{metric.display(comparison.baseline)} of {baseline}: {_better(comparison.difference)} "
        f"({comparison.confidence:.0%} interval {_signed(comparison.low)} to {_signed(comparison.high)}); "
        f"{needed} in {_sure(comparison.probability)} of {comparison.n_resamples} resamples{counted}, "
        f"{_sure(sure)} needed."
    )
    return Check(name="improvement", passed=passed, value=comparison.difference, limit=margin, sentence=sentence)


def _slices(gates: Gates, evidence: Evidence) -> tuple[Check, ...]:
    """Ask that no slice is surely worse than the baseline by more than is allowed; by Holm's rule over the slices."""
    if gates.slice_max_loss is None:
        return ()
    metric, judged = evidence.metric, [one for one in evidence.slices if one.comparison]
    columns = listing(dict.fromkeys(one.column for one in judged))
    worse = blamed(judged, confidence=gates.confidence)
    allowed = f"worse than {evidence.baseline}" + (
        f" by more than {gates.slice_max_loss:.4g}" if gates.slice_max_loss else ""
    )
    if worse:
        told = "; ".join(
            f"{one.column} = {one.value} ({metric.display(one.comparison.candidate)} against "
            f"{metric.display(one.comparison.baseline)}, {one.n_rows:,} rows)"
            for one in worse
            if one.comparison
        )
        sentence = f"{len(worse)} of {len(judged)} slices are {allowed}: {told}."
    elif judged:
        sentence = f"None of {len(judged)} slices ({columns}) is surely {allowed}; Holm's rule over the slices."
    else:
        sentence = f"No slice has the {LEAST_ROWS} rows that are needed to judge it."
    least = min((one.comparison.difference for one in judged if one.comparison), default=None)
    return (Check(name="slices", passed=not worse, value=least, limit=-gates.slice_max_loss, sentence=sentence),)


def _ceilings(ceilings: Ceilings, evidence: Evidence) -> tuple[Check, ...]:
    latency = _ceiling("latency", "One row takes", evidence.latency_ms, ceilings.latency_ms, "ms")
    size = _ceiling("size", "The variant takes", evidence.size_mb, ceilings.size_mb, "MB")
    return tuple(check for check in (latency, size) if check)


def _ceiling(name: CheckName, subject: str, value: float, limit: float | None, unit: str) -> Check | None:
    if limit is None:
        return None
    passed = value <= limit
    sentence = f"{subject} {value:.3g} {unit}; {'at most' if passed else 'only'} {limit:.3g} {unit} are allowed."
    return Check(name=name, passed=passed, value=value, limit=limit, sentence=sentence)


def _leakage(gates: Gates, findings: Sequence[Finding]) -> Check:
    """A column that was left out cannot leak any more; one that was kept still does."""
    used = [f.column for f in findings if f.kind in LEAKS and f.action != "drop"]
    left_out = [f.column for f in findings if f.kind in LEAKS and f.action == "drop"]
    if used:
        allowed = "and the request allows it" if gates.allow_leakage else "drop it, or set gates.allow_leakage"
        sentence = f"A column that alone gives the target away is used ({listing(used)}): {allowed}."
    elif left_out:
        sentence = f"Columns that alone give the target away were left out ({listing(left_out)})."
    else:
        sentence = "No column alone gives the target away."
    return Check(name="leakage", passed=not used or gates.allow_leakage, value=len(used), limit=0, sentence=sentence)


def _memory(evidence: Evidence) -> tuple[Check, ...]:
    """Ask that a variant that was trained on is not surely worse than its parent on what the parent knew."""
    memory, metric = evidence.memory, evidence.metric
    if memory is None:
        return ()
    kept = memory.high >= 0
    sentence = (
        f"On {memory.n_rows:,} {evidence.memory_of}, {metric.label} is {metric.display(memory.candidate)} against "
        f"{metric.display(memory.baseline)} of the parent ({memory.confidence:.0%} interval {_signed(memory.low)} to "
        f"{_signed(memory.high)}): {'nothing was forgotten' if kept else 'the new rows made it forget'}."
    )
    return (Check(name="memory", passed=kept, value=memory.difference, limit=0, sentence=sentence),)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sure(probability: float) -> str:
    """Return a probability with as many digits as tell it from certainty, three at most."""
    if probability <= 0.999:
        return f"{probability:.1%}"
    return f"{math.floor(probability * 1e5) / 1e5:.3%}" if probability < 0.99999 else "over 99.999%"


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _better(difference: float) -> str:
    if difference == 0:
        return "no difference"
    return f"{'better' if difference > 0 else 'worse'} by {abs(difference):.4g}"
