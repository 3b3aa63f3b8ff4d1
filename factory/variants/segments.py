"""Variants of segments: seeded by the pooled search, blended with the pooled models where that is better.

A segment's folds are its part of the pooled folds, so a pooled model of a fold
has seen none of the rows that this fold holds of the segment, and both sides'
out-of-fold predictions line up.  Whether the segment's own models are used at
all is decided by cross-fitting: weights chosen on one half of the rows have to
be better on the other half than weights over the pooled models alone (partial
pooling; thin segments gain from it, Gelman and Hill 2007, chapter 12).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factory.errors import InvalidData, TrainingFault
from factory.families.base import Deadline
from factory.search.engine import Part, SearchResult, search
from factory.search.ensemble import Candidates, greedy
from factory.search.jobs import TrialData
from factory.search.plan import family
from factory.search.study import Configuration
from factory.settings import Settings
from factory.spec import Trial
from factory.variants.making import Made, Order, finish
from factory.variants.slices import LEAST_ROWS

FINISH_S = 1.5
"""What a segment takes beside its search: bundle, scores, gate and model card (measured .8 to 2 s)."""
MOST_LENT = 6
"""Pooled trials that a segment may blend, the heaviest; each brings a model for every fold."""
LENT_FROM = 1_000_000
"""Numbers of the pooled trials on a segment's leaderboard start here."""
LEAST_SHARED_ROWS = 2 * LEAST_ROWS
"""Out-of-fold rows that own and pooled models need to share to be weighed: each half has what a slice needs as well."""
POOL = "trees"
"""Families that a segment's worker fits; it holds no heavy framework."""


@dataclass(frozen=True)
class Lent:
    """What the pooled search lends to one segment.

    Attributes:
        trials: Its heaviest trials, under new numbers.
        parts: Trial → its models.
        judges: Trial → its model of the first fold; empty where all of them are new to the gate's rows.
        predictions: Fold → trial → its predictions of the segment's validation rows of this fold.
    """

    trials: tuple[Trial, ...]
    parts: dict[int, tuple[Part, ...]]
    judges: dict[int, Part]
    predictions: dict[int, dict[int, np.ndarray]]


@dataclass(frozen=True)
class SegmentOrder:
    """A segment to be made, and what it is made with; goes to a worker as it is."""

    order: Order
    lent: Lent | None
    seeds: tuple[Configuration, ...]


def lend(pooled: TrialData, result: SearchResult, rows: np.ndarray) -> Lent:
    """Return the pooled blend's trials with their out-of-fold predictions of a segment's rows."""
    inside = np.zeros(len(pooled.dataset.y), dtype=bool)
    inside[rows] = True
    heaviest = sorted(result.blend.weights, key=lambda n: (-result.blend.weights[n], n))[:MOST_LENT]
    by_number = {trial.number: trial for trial in result.trials}
    predictions: dict[int, dict[int, np.ndarray]] = {}
    for position, fold in enumerate(result.folds):
        mine = inside[pooled.splits[fold].validation]
        predictions[fold] = {LENT_FROM + n: result.candidates.predictions[n][position][mine] for n in heaviest}
    return Lent(
        trials=tuple(
            by_number[n].model_copy(update={"number": LENT_FROM + n, "origin": "history", "cost_s": 0.0})
            for n in heaviest
        ),
        parts={LENT_FROM + n: result.parts[n] for n in heaviest},
        judges={LENT_FROM + n: result.judges[n] for n in heaviest if n in result.judges},
        predictions=predictions,
    )


def make_segment(given: SegmentOrder, settings: Settings, *, limit_s: float) -> Made:
    """Search, blend and judge one segment in this process.

    Its trials are written to ``trials.jsonl`` of its workspace as they end: an attempt that follows a killed one goes
    on from there.

    Raises:
        TrainingFault: neither the segment nor the pooled search has a usable model.
    """
    order, journal = given.order, given.order.data.workspace / "trials.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    known = _read(journal)

    def record(trial: Trial) -> None:
        if trial.finished:
            with journal.open("a", encoding="utf-8") as lines:
                lines.write("\n" + trial.model_dump_json() + "\n")  # whatever a killed attempt has left unended

    families = tuple(name for name in order.plan.families if family(name).pool == POOL)
    plan = replace(order.plan, families=families or order.plan.families)
    try:
        own = search(
            plan,
            order.data,
            ray=None,
            settings=settings,
            history=known,
            deadline=Deadline.after(limit_s),
            record=record,
            segment=order.lineage.segment,
            seeds=given.seeds,
        )
    except (InvalidData, TrainingFault):
        if given.lent is None:
            raise
        own = None
    return finish(order, _with_lent(own, given.lent, order.data), deadline=Deadline.after(FINISH_S))


def _read(journal: Path) -> list[Trial]:
    """Return the last state of each trial in a journal; a line that was cut off is none."""
    trials: dict[int, Trial] = {}
    for line in journal.read_text(encoding="utf-8").split("\n") if journal.exists() else []:
        try:
            trial = Trial.model_validate(json.loads(line))
        except ValueError:
            continue
        trials[trial.number] = trial
    return list(trials.values())


def _with_lent(own: SearchResult | None, lent: Lent | None, data: TrialData) -> SearchResult:
    """Return a segment's search with the pooled trials as candidates, its own ones only if they prove their worth."""
    if lent is None:
        if own is None:
            raise TrainingFault("The segment has no model.", hint="Give it more time, or a larger segments.min_rows.")
        return own
    if own is None:
        return _blended(_of_lent(lent, data, tuple(lent.predictions)), lent, tuple(lent.predictions))
    shared = tuple(k for k in own.folds if k in lent.predictions)
    pooled = _of_lent(lent, data, shared)
    n_shared = sum(len(y) for y in pooled.targets)
    skipped = dict(own.skipped)
    if n_shared >= LEAST_SHARED_ROWS:
        places = [own.folds.index(k) for k in shared]
        mine = {n: tuple(p[i] for i in places) for n, p in own.candidates.predictions.items()}
        both = replace(pooled, predictions={**mine, **pooled.predictions})
        if cross_fitted(both) > cross_fitted(pooled):
            return _blended(both, lent, shared, own=own)
        reason = "no better on rows that the weights were not chosen on"
    else:
        reason = f"weighed against the pooled ones by {n_shared} rows, and {LEAST_SHARED_ROWS} are needed"
    skipped |= {trial.family: f"the segment's own models are {reason}" for trial in own.trials if trial.folds}
    folds = tuple(lent.predictions)
    return replace(_blended(_of_lent(lent, data, folds), lent, folds, own=own), skipped=skipped)


def _of_lent(lent: Lent, data: TrialData, folds: tuple[int, ...]) -> Candidates:
    """Return the pooled trials as candidates on a segment's rows of some folds."""
    return Candidates(
        metric=data.metric,
        targets=tuple(data.dataset.y[data.splits[k].validation] for k in folds),
        predictions={t.number: tuple(lent.predictions[k][t.number] for k in folds) for t in lent.trials},
        weights=data.weights_of(folds),
    )


def _blended(
    candidates: Candidates, lent: Lent, folds: tuple[int, ...], *, own: SearchResult | None = None
) -> SearchResult:
    return SearchResult(
        trials=(*(own.trials if own else ()), *lent.trials),
        candidates=candidates,
        folds=folds,
        blend=greedy(candidates.metric.chooser, candidates.targets, candidates.predictions, weights=candidates.weights),
        parts={**(own.parts if own else {}), **lent.parts},
        skipped=dict(own.skipped) if own else {},
        judges={**(own.judges if own else {}), **lent.judges},
    )


def told(made: Made) -> str:
    """Return in a few words what a segment's variant is made of."""
    if any(number < LENT_FROM for number in made.weights):
        return "with models of its own"
    reasons = "; ".join(dict.fromkeys(made.skipped.values())) or "it has no models of its own"
    return f"of the pooled models ({reasons})"


def cross_fitted(candidates: Candidates) -> float:
    """Return the score of a greedy blend on rows that its weights were not chosen on, mean over both halves.

    The folds are put together, since half a fold of a small segment may lack a class.
    """
    halves = _half(candidates, 0), _half(candidates, 1)
    scores = []
    for chosen_on, judged_on in (halves, halves[::-1]):
        weights = greedy(chosen_on.metric, chosen_on.targets, chosen_on.predictions, weights=chosen_on.weights).weights
        if not weights:
            return -np.inf
        scores.append(judged_on.score(judged_on.blended(weights), judged_on.metric))
    return float(np.mean(scores))


def _half(candidates: Candidates, half: int) -> Candidates:
    """Return every second out-of-fold row, as one fold."""
    return Candidates(
        candidates.metric.chooser,
        (np.concatenate(candidates.targets)[half::2],),
        {n: (np.concatenate(parts)[half::2],) for n, parts in candidates.predictions.items()},
        None if candidates.weights is None else (np.concatenate(candidates.weights)[half::2],),
    )


def seeds_of(result: SearchResult) -> tuple[Configuration, ...]:
    """Return the configurations of a blend that a segment's worker can fit, the heaviest first."""
    by_number = {trial.number: trial for trial in result.trials}
    heaviest = sorted(result.blend.weights, key=lambda n: (-result.blend.weights[n], n))
    members = [by_number[n] for n in heaviest]
    return tuple((t.family, dict(t.parameters)) for t in members if family(t.family).pool == POOL)
