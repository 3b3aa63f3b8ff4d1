"""Variants of segments: seeded by the pooled search, blended with the pooled models where that is better.

A segment's folds are its part of the pooled folds, so a pooled model of a fold
has seen none of the rows that this fold holds of the segment, and both sides'
out-of-fold predictions line up.  Whether weights of its own, and models of its
own, take the place of the pooled blend is decided by cross-fitting: chosen on
one half of the rows they have to be surely better on the other half (partial
pooling; thin segments gain from it, Gelman and Hill 2007, chapter 12).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factory.errors import InvalidData, TrainingFault
from factory.families.base import Deadline
from factory.search.calibration import Calibration
from factory.search.engine import Part, SearchResult, search
from factory.search.ensemble import Blend, Candidates, greedy
from factory.search.jobs import TrialData
from factory.search.plan import family
from factory.search.study import Configuration
from factory.search.transfer import fitted_parameters
from factory.settings import Settings
from factory.spec import Task, Trial
from factory.variants.assembly import keep_loaded
from factory.variants.costs import Prices
from factory.variants.frontier import Chosen
from factory.variants.making import Made, Order, finish
from factory.variants.settled import LENT_FROM, Bound, of_segment
from factory.variants.slices import LEAST_ROWS

FINISH_S = 1.5
"""What a segment is taken to need beside its search, until some have ended: bundle, scores, gate and model card."""
MOST_LENT = 6
"""Pooled trials that a segment may blend, the heaviest; each brings a model for every fold."""
LEAST_SHARED_ROWS = 2 * LEAST_ROWS
"""Out-of-fold rows that own and pooled models need to share to be weighed: each half has what a slice needs as well."""
SURE, RESAMPLES, NEGLIGIBLE = 0.95, 200, 0.02
"""How sure it has to be that other weights are better than the pooled ones, by how many resamples it is told, and the
share below which a trial is left out."""
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
        weights: Trial → its share in the pooled variant, summing to 1.
        chosen: Trial → its models in the pooled variant.
        calibration: Of the pooled variant.
        prices: What the pooled models cost, under the trials' new numbers.
        bound_ms: Latency that the pooled variant's choice aimed at.
    """

    trials: tuple[Trial, ...]
    parts: dict[int, tuple[Part, ...]]
    judges: dict[int, Part]
    predictions: dict[int, dict[int, np.ndarray]]
    weights: dict[int, float]
    chosen: dict[int, tuple[Part, ...]]
    calibration: Calibration
    prices: Prices
    bound_ms: float


@dataclass(frozen=True)
class SegmentOrder:
    """A segment to be made, and what it is made with; goes to a worker as it is."""

    order: Order
    lent: Lent | None
    seeds: tuple[Configuration, ...]


def lend(pooled: TrialData, result: SearchResult, chosen: Chosen, rows: np.ndarray) -> Lent:
    """Return the pooled variant's trials, and further ones of its search, with their predictions of a segment's rows.

    Args:
        pooled: The data of the pooled search.
        result: What it found.
        chosen: The blend that the pooled variant is.
        rows: The segment's.
    """
    inside = np.zeros(len(pooled.dataset.y), dtype=bool)
    inside[rows] = True
    shares = result.blend.weights
    members = sorted(chosen.weights, key=lambda n: (-chosen.weights[n], n))
    further = sorted(shares, key=lambda n: (-shares[n], n))
    lent = list(dict.fromkeys((*members, *further)))[: max(MOST_LENT, len(members))]
    by_number = {trial.number: trial for trial in result.trials}
    predictions: dict[int, dict[int, np.ndarray]] = {}
    for position, fold in enumerate(result.folds):
        mine = inside[pooled.splits[fold].validation]
        predictions[fold] = {LENT_FROM + n: result.candidates.predictions[n][position][mine] for n in lent}
    return Lent(
        trials=tuple(
            by_number[n].model_copy(update={"number": LENT_FROM + n, "origin": "history", "cost_s": 0.0}) for n in lent
        ),
        parts={LENT_FROM + n: result.parts[n] for n in lent},
        judges={LENT_FROM + n: result.judges[n] for n in lent if n in result.judges},
        predictions=predictions,
        weights={LENT_FROM + n: weight for n, weight in chosen.weights.items()},
        chosen={LENT_FROM + n: parts for n, parts in chosen.parts.items()},
        calibration=chosen.bundle.calibration,
        prices=chosen.prices.renumbered({n: LENT_FROM + n for n in lent}),
        bound_ms=chosen.frontier.bound_ms,
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

    if given.lent is not None:
        keep_loaded(part for parts in given.lent.parts.values() for part in parts)
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
    result, until = _with_lent(own, given.lent, order.data), Deadline.after(FINISH_S)
    if given.lent is None:
        return finish(order, result, deadline=until)
    chosen = bounded(result, given.lent, order)
    return finish(order, replace(result, skipped=_skipped(result, chosen)), deadline=until, chosen=chosen)


def bounded(result: SearchResult, lent: Lent, order: Order) -> Chosen:
    """Return a segment's blend under the ceilings of its request, and under the bound that the pooled variant kept.

    Args:
        result: The segment's blend.
        lent: What the pooled search lends.
        order: With the ceilings, and rows to time the segment's own models with.
    """
    return of_segment(
        result,
        lent.weights,
        data=order.data,
        calibration=lent.calibration,
        rows=order.unseen.frame,
        bound=Bound(order.plan.ceilings, lent.bound_ms),
        prices=lent.prices,
    )


def _skipped(result: SearchResult, chosen: Chosen) -> dict[str, str]:
    """Return why families are left out, those among them whose members the bound has cost."""
    by_number = {trial.number: trial.family for trial in result.trials}
    lost = {by_number[n] for n in result.blend.weights if n < LENT_FROM}
    lost -= {by_number[n] for n in chosen.weights if n < LENT_FROM}
    reason = "the segment's own models would break the bound on latency or size"
    return {**result.skipped, **dict.fromkeys(sorted(lost), reason)}


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
    """Return a segment's search with the pooled trials as candidates; what proves its worth is blended.

    The pooled variant's own blend stands unless weights of the segment's own, over the pooled models alone or with the
    segment's models among them, are surely better on rows that they were not chosen on.
    """
    if lent is None:
        if own is None:
            raise TrainingFault("The segment has no model.", hint="Give it more time, or a larger segments.min_rows.")
        return own
    folds = tuple(lent.predictions)
    pooled = _of_lent(lent, data, folds)
    skipped = dict(own.skipped) if own else {}
    if own is not None:
        both, shared = _with_own(own, lent, data)
        n_shared = sum(len(y) for y in both.targets)
        if n_shared < LEAST_SHARED_ROWS:
            reason = f"weighed against the pooled ones by {n_shared} rows, and {LEAST_SHARED_ROWS} are needed"
        elif surely_better(both, lent.weights) >= SURE:
            return _as_lent(both, lent, shared, own=own, weights=partly_pooled(both, lent.weights))
        else:
            reason = "no better on rows that the weights were not chosen on"
        skipped |= {trial.family: f"the segment's own models are {reason}" for trial in own.trials if trial.folds}
    again = len(lent.trials) > 1 and surely_better(pooled, lent.weights) >= SURE
    weights = partly_pooled(pooled, lent.weights) if again else lent.weights
    return replace(_as_lent(pooled, lent, folds, own=own, weights=weights), skipped=skipped)


def _with_own(own: SearchResult, lent: Lent, data: TrialData) -> tuple[Candidates, tuple[int, ...]]:
    """Return own and pooled trials as candidates on the folds that both have, and these folds."""
    shared = tuple(k for k in own.folds if k in lent.predictions)
    places = [own.folds.index(k) for k in shared]
    mine = {n: tuple(p[i] for i in places) for n, p in own.candidates.predictions.items()}
    pooled = _of_lent(lent, data, shared)
    return replace(pooled, predictions={**mine, **pooled.predictions}), shared


def _of_lent(lent: Lent, data: TrialData, folds: tuple[int, ...]) -> Candidates:
    """Return the pooled trials as candidates on a segment's rows of some folds."""
    return Candidates(
        metric=data.metric,
        targets=tuple(data.dataset.y[data.splits[k].validation] for k in folds),
        predictions={t.number: tuple(lent.predictions[k][t.number] for k in folds) for t in lent.trials},
        weights=data.weights_of(folds),
    )


def _as_lent(
    candidates: Candidates,
    lent: Lent,
    folds: tuple[int, ...],
    *,
    own: SearchResult | None,
    weights: Mapping[int, float],
) -> SearchResult:
    """Return a blend as a search's result of which nothing is chosen, with the pooled variant's models and calibration.

    Args:
        candidates: Own and lent trials.
        lent: What the pooled search lends.
        folds: That the candidates have predictions of.
        own: The segment's search.
        weights: Of the blend.
    """
    parts = {**(own.parts if own else {}), **lent.parts, **lent.chosen}
    return SearchResult(
        trials=(*(own.trials if own else ()), *lent.trials),
        candidates=candidates,
        folds=folds,
        blend=Blend(dict(weights), candidates.score(candidates.blended(weights), candidates.metric.chooser)),
        parts={n: parts[n] for n in {**weights, **lent.weights}},
        skipped=dict(own.skipped) if own else {},
        calibration=lent.calibration,
        judges={**(own.judges if own else {}), **lent.judges},
    )


def told(made: Made) -> str:
    """Return in a few words what a segment's variant is made of."""
    if any(number < LENT_FROM for number in made.weights):
        return "with models of its own"
    reasons = "; ".join(dict.fromkeys(made.skipped.values())) or "it has no models of its own"
    return f"of the pooled models ({reasons})"


def partly_pooled(candidates: Candidates, weights: Mapping[int, float]) -> dict[int, float]:
    """Return the mean of the best weights on these rows and given ones, without negligible shares; {} if none is best.

    Few rows choose among what they cannot tell apart, and half of the way to it loses little where they were right.
    """
    metric = candidates.metric.chooser
    best = greedy(metric, candidates.targets, candidates.predictions, weights=candidates.weights).weights
    if not best:
        return {}
    mean = {n: (best.get(n, 0.0) + weights.get(n, 0.0)) / 2 for n in {**best, **weights}}
    kept = {n: share for n, share in mean.items() if share > NEGLIGIBLE}
    total = sum(kept.values())
    return {n: share / total for n, share in kept.items()}


def surely_better(candidates: Candidates, weights: Mapping[int, float]) -> float:
    """Return how sure it is that weights partly chosen on these rows beat given ones, from 0 to 1.

    They are judged on rows that they were not chosen on: the folds are put together, since half a fold of a small
    segment may lack a class, and each half is predicted by the blend that the other one chooses.  It is the part of
    resamples of the rows in which they score higher (Efron and Tibshirani, 1993).

    Args:
        candidates: That may be blended.
        weights: Of some of them, that stand if nothing else is better.
    """
    halves = _half(candidates, 0), _half(candidates, 1)
    chosen, given = [], []
    for chosen_on, judged_on in (halves, halves[::-1]):
        found = partly_pooled(chosen_on, weights)
        if not found:
            return 0.0
        chosen.append(judged_on.blended(found)[0])
        given.append(judged_on.blended(weights)[0])
    y = np.concatenate([half.targets[0] for half in halves[::-1]])
    row_weights = [half.weights[0] for half in halves[::-1] if half.weights is not None]
    weight = np.concatenate(row_weights) if row_weights else None
    better, other = np.concatenate(chosen), np.concatenate(given)
    metric, random = candidates.metric.chooser, np.random.default_rng(0)
    # Within the classes, so that none of them is missing.
    groups = [np.arange(len(y))] if metric.task is Task.REGRESSION else [np.flatnonzero(y == k) for k in np.unique(y)]
    draws, wins = RESAMPLES if metric.quick else RESAMPLES // 4, 0
    for _ in range(draws):
        rows = np.concatenate([group[random.integers(0, len(group), len(group))] for group in groups])
        w = None if weight is None else weight[rows]
        wins += int(metric.score(y[rows], better[rows], weight=w) > metric.score(y[rows], other[rows], weight=w))
    return wins / draws


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
    return tuple((t.family, fitted_parameters(t)) for t in members if family(t.family).pool == POOL)
