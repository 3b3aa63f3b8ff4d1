"""Quality against latency: the best ensemble under ceilings, and the curve that shows what a ceiling costs.

The search leaves candidates: trials with out-of-fold predictions and a model
for each fold.  Their costs are measured here, one row through each native
path.  For rising allowances, a greedy blend that may only take members it can
pay for gives the points of the curve.  A bag may be served by some of its
models only; what that loses is not seen out of fold, where each row has one
model's prediction, so it is charged by a measured figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from factory.data.preparation import Preparation, Table
from factory.families.base import Model
from factory.search.engine import Part, SearchResult
from factory.search.ensemble import Arena, Blend
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.plan import family
from factory.search.race import relative_loss
from factory.spec import Ceilings, Document, Task
from factory.variants.assembly import assemble
from factory.variants.bundle import Bundle, folder_size_mb, merge_by_family

DEFAULT_MS = 4.0
"""Bound where nobody set one, so that a row takes 5 ms at most (docs/decisions/frontier.md)."""
MARGIN = 0.8
"""Part of a ceiling that is aimed at: the gate measures again, on a machine that others use too."""
BAG_GAIN = {Task.BINARY: 0.006, Task.MULTICLASS: 0.04, Task.REGRESSION: 0.03}
"""Part of its loss that one model has above a large bag of its kind; a bag of b models has a b-th of it."""
NOISE = 0.001
"""Part of the loss that repeats of one search differ by anyway: 0.0001 to 0.003 (docs/decisions/frontier.md)."""
REFIT_AS = 2.6
"""One model of all rows is worth a bag of about so many: 75 to 80 % of what five folds gain."""
NEGLIGIBLE = 0.04
"""A trial with less weight than this is left out: one addition of the greedy 25 is noise."""
MEASURED = 12
"""Candidates whose cost is measured, the blend's and the best ones; loading a model takes up to 0.1 s."""
LEVELS = 7
STEPS = 15
ROWS = 5_000
"""A level is chosen with fewer steps and rows than the final weights: it only says who is in."""
RUNS = 11
"""Timed predictions of one row in each of three medians."""
TRIES = 6


T = TypeVar("T")


class FrontierPoint(Document):
    """An ensemble that was weighed: what a row costs with it, and what it scores out of fold.

    Attributes:
        latency_ms: One row, median.
        size_mb: Of the models and preparations.
        score: Out of fold, greater is better, with the charge for a smaller bag.
        trials: Members, by their trial's number.
        models: Fitted models behind them.
        chosen: Whether it is the variant.
    """

    latency_ms: float
    size_mb: float
    score: float
    trials: tuple[int, ...]
    models: int
    chosen: bool = False


class Frontier(Document):
    """The points that none other beats in both, cheapest first, and what the bound cost.

    Attributes:
        metric: What the scores are of: the optimized metric, or the ranking where that one judges two classes' labels.
        points: By rising latency and score.
        bound_ms: Latency that was aimed at.
        ceiling_ms: Latency that the request or recipe allows; None where it sets none.
        lost: Part of the best ensemble's loss that the chosen one adds; 0 where it is the best.
        sentence: The trade, for a person.
    """

    metric: str
    points: tuple[FrontierPoint, ...]
    bound_ms: float
    ceiling_ms: float | None = None
    lost: float = 0.0
    sentence: str = ""


@dataclass(frozen=True)
class Chosen:
    """The ensemble under the ceilings: its bundle, the share of each trial by number, and the curve it lies on."""

    bundle: Bundle
    weights: dict[int, float]
    frontier: Frontier


@dataclass(frozen=True)
class _Cost:
    """Of one model of a trial."""

    row_ms: float
    size_mb: float


@dataclass(frozen=True)
class _Offer:
    """A blend that could be delivered: weights, models of a bag at most, estimated cost, charged score."""

    weights: dict[int, float]
    bag: int
    latency_ms: float
    size_mb: float
    score: float


def choose(result: SearchResult, *, data: TrialData, ceilings: Ceilings, rows: pd.DataFrame) -> Chosen:
    """Return the best ensemble under the ceilings, measured as it will be served.

    Args:
        result: Candidates with their parts.
        data: Where preparations lie, and what the bundle says of its columns.
        ceilings: Limits; without one on latency, DEFAULT_MS.
        rows: Rows to time predictions with, (n_rows, n_columns); nothing is chosen by their targets.
    """
    if result.calibration is not None:
        return _as_made(result, data)
    shop = _Shop(result, data, rows)
    limit_mb = MARGIN * ceilings.size_mb if ceilings.size_mb is not None else np.inf
    metric = result.candidates.metric.chooser
    bound_ms = MARGIN * ceilings.latency_ms if ceilings.latency_ms is not None else DEFAULT_MS
    passes: list[tuple[bool, float, list[_Offer], list[_Offer], tuple[int, float, Bundle]]] = []
    for shop.merges in (False, True):
        weighed = _offers(result, shop, limit_mb)
        small_enough = [offer for offer in weighed if offer.size_mb <= limit_mb]
        offers = _undominated(small_enough or [min(weighed, key=lambda o: o.size_mb)])
        found = _tried(offers, shop, bound_ms=bound_ms)
        passes.append((found[1] <= bound_ms, offers[found[0]].score, weighed, offers, found))
        # Merging the models of a bag takes seconds and saves a third of a row's time: only where time is missing.
        if found[1] <= bound_ms and _lost(metric, offers[found[0]].score, offers[-1].score) < NOISE:
            break
    *_, weighed, offers, (at, latency_ms, bundle) = max(passes, key=lambda one: one[:2])
    ratio = latency_ms / offers[at].latency_ms
    points = tuple(
        FrontierPoint(
            latency_ms=offer.latency_ms * ratio,
            size_mb=offer.size_mb,
            score=offer.score,
            trials=tuple(sorted(offer.weights)),
            models=shop.models(offer),
            chosen=i == at,
        )
        for i, offer in enumerate(offers)
    )
    best = max(weighed, key=lambda offer: (offer.score, -offer.latency_ms))
    lost = _lost(metric, offers[at].score, best.score)
    frontier = Frontier(
        metric=metric.name,
        points=points,
        bound_ms=bound_ms,
        ceiling_ms=ceilings.latency_ms,
        lost=lost,
        sentence=_sentence(metric, offers[at], best, lost=lost, ratio=ratio, ceilings=ceilings),
    )
    return Chosen(bundle, offers[at].weights, frontier)


def _as_made(result: SearchResult, data: TrialData) -> Chosen:
    """Return the ensemble of a variant that was made again: there is nothing to choose by."""
    weights, candidates = dict(result.blend.weights), result.candidates
    bundle = assemble(weights, result.parts, candidates=candidates, data=data, calibration=result.calibration)
    sentence = "Made again with the members and weights of its parent: no ensemble was chosen."
    frontier = Frontier(metric=candidates.metric.chooser.name, points=(), bound_ms=DEFAULT_MS, sentence=sentence)
    return Chosen(bundle, weights, frontier)


def _tried(offers: Sequence[_Offer], shop: _Shop, *, bound_ms: float) -> tuple[int, float, Bundle]:
    """Return the place, the measured time and the bundle of the best offer that keeps the bound, else of the fastest.

    Args:
        offers: The cheapest first, better ones later.
        shop: Makes their bundles.
        bound_ms: For one row.
    """
    at, kept, failed = _best_within(offers, bound_ms), -1, len(offers)
    tried: dict[int, tuple[float, Bundle]] = {}
    for _ in range(TRIES):
        bundle = shop.bundle(offers[at])
        measured_ms = shop.row_ms(bundle)
        tried[at] = (measured_ms, bundle)
        kept, failed = (max(kept, at), failed) if measured_ms <= bound_ms else (kept, min(failed, at))
        # Models that follow each other push their trees out of the cache: together they take longer than one by one.
        reach_ms = bound_ms * offers[at].latency_ms / measured_ms
        better = [i for i in range(kept + 1, failed) if offers[i].latency_ms <= reach_ms]
        if better:
            at = better[-1]
        elif kept < 0 < failed:
            at = min(_best_within(offers, reach_ms), failed - 1)
        else:
            break
    at = kept if kept >= 0 else min(tried, key=lambda i: tried[i][0])
    return at, *tried[at]


class _Shop:
    """What the parts cost, and bundles made of them; each part is loaded, measured and merged once.

    Attributes:
        merges: Whether the models of a bag are merged where their family can.
    """

    def __init__(self, result: SearchResult, data: TrialData, rows: pd.DataFrame) -> None:
        self.merges = False
        self._result, self._data = result, data
        self._loaded: dict[Path, Model] = {}
        self._costs: dict[int, _Cost] = {}
        self._further: dict[str, float] = {}
        self._merged: dict[tuple[int, ...], Model | None] = {}
        self._preparations: dict[Path, Preparation] = {}
        self._preparation_ms: dict[str, float] = {}
        self._preparation_mb: dict[str, float] = {}
        arrays = {str(name): rows[name].to_numpy() for name in rows.columns}
        self._rows = [{name: a[i : i + 1] for name, a in arrays.items()} for i in range(min(len(rows), RUNS))]

    def parts(self, number: int, bag: int) -> tuple[Part, ...]:
        """Return at most so many of a trial's parts, the lowest folds first, so that members share preparations."""
        ordered = sorted(self._result.parts[number], key=lambda part: -1 if part.fold is None else part.fold)
        return tuple(ordered[:bag])

    def models(self, offer: _Offer) -> int:
        """Return the number of fitted models behind an offer."""
        return sum(len(self.parts(n, offer.bag)) for n in offer.weights)

    def effective_bag(self, number: int, bag: int) -> float:
        """Return how many models a trial's bag is worth."""
        parts = self.parts(number, bag)
        return REFIT_AS if parts[0].fold is None else len(parts)

    def latency_ms(self, members: frozenset[int], bag: int) -> float:
        """Estimate one row's time: each distinct preparation once, then every model."""
        total = 0.0
        digests: set[str] = set()
        for number in members:
            cost = self.cost(number)
            groups: dict[str, int] = {}
            for part in self.parts(number, bag):
                digest = self.preparation(part).digest
                groups[digest] = groups.get(digest, 0) + 1
            digests |= groups.keys()
            further = self._further_share(self.parts(number, 1)[0].trial.family) if self.merges and bag > 1 else 1.0
            total += sum(cost.row_ms * (1 + (n - 1) * further) for n in groups.values())
        return total + sum(self._preparation_ms[d] for d in digests)

    def size_mb(self, members: frozenset[int], bag: int) -> float:
        """Return the size of the models and of each distinct preparation."""
        digests = {self.preparation(p).digest for n in members for p in self.parts(n, bag)}
        models = sum(len(self.parts(n, bag)) * self.cost(n).size_mb for n in members)
        return models + sum(self._preparation_mb[d] for d in digests)

    def cost(self, number: int) -> _Cost:
        """Return what one of a trial's models costs, measured on its first part."""
        if number not in self._costs:
            part = self.parts(number, 1)[0]
            row_ms = _call_ms(self._model(part).predict, self._tables(part))
            self._costs[number] = _Cost(row_ms, folder_size_mb(part.folder))
        return self._costs[number]

    def _further_share(self, name: str) -> float:
        """Return what a further merged model takes of the first one's time, measured on the family's smallest pair."""
        if name not in self._further:
            pairs = [self.parts(n, 2) for n, parts in self._result.parts.items() if parts[0].trial.family == name]
            pairs = [pair for pair in pairs if len({self.preparation(p).digest for p in pair}) < len(pair)]
            self._further[name] = 1.0
            if pairs:
                pair = min(pairs, key=lambda pair: folder_size_mb(pair[0].folder))
                both = self._merge(name, [self._model(part) for part in pair])
                if both is not None:
                    alone_ms = self.cost(pair[0].trial.number).row_ms
                    self._further[name] = max(_call_ms(both.predict, self._tables(pair[0])) / alone_ms - 1, 0.1)
        return self._further[name]

    def _merge(self, name: str, models: Sequence[Model]) -> Model | None:
        """Merge once; models are kept for as long as the shop is, so that their ids tell them apart."""
        key = tuple(map(id, models))
        if key not in self._merged:
            self._merged[key] = merge_by_family(name, models) if self.merges else None
        return self._merged[key]

    def preparation(self, part: Part) -> Preparation:
        """Return the preparation that a part needs; its cost is measured when it is first asked for."""
        folder = part.preparation
        if folder not in self._preparations:
            loaded = Preparation.load(folder)
            self._preparations[folder] = loaded
            if loaded.digest not in self._preparation_ms:
                self._preparation_ms[loaded.digest] = _call_ms(lambda row: loaded.transform(row).matrix, self._rows)
                self._preparation_mb[loaded.digest] = folder_size_mb(folder)
        return self._preparations[folder]

    def bundle(self, offer: _Offer) -> Bundle:
        """Assemble what would be served."""
        return assemble(
            offer.weights,
            {number: self.parts(number, offer.bag) for number in offer.weights},
            candidates=self._result.candidates,
            data=self._data,
            model=self._model,
            preparation=self.preparation,
            merge=self._merge,
        )

    def row_ms(self, bundle: Bundle) -> float:
        """Return the processor time that one row takes a whole bundle."""
        return _call_ms(bundle.predict_raw, self._rows)

    def _model(self, part: Part) -> Model:
        if part.folder not in self._loaded:
            self._loaded[part.folder] = family(part.trial.family).load(part.folder)
        return self._loaded[part.folder]

    def _tables(self, part: Part) -> list[Table]:
        """Return one-row tables whose shared arrays are made already: their cost is the preparation's."""
        tables = [self.preparation(part).transform(row) for row in self._rows]
        for table in tables:
            _ = table.matrix
        return tables


def _offers(result: SearchResult, shop: _Shop, limit_mb: float) -> list[_Offer]:
    """Return the blends worth weighing: the best ones for bags and allowances of every size, and those without."""
    candidates = result.candidates
    metric = candidates.metric.chooser
    whole = {n: w for n, w in result.blend.weights.items() if w > NEGLIGIBLE} or dict(result.blend.weights)
    measured = _worth_measuring(result, whole)
    whole = {n: w for n, w in whole.items() if n in measured}
    arena = Arena(metric, candidates.targets, {n: candidates.predictions[n] for n in measured}, most_rows=ROWS)
    fullest = max(len(result.parts[n]) for n in measured)
    offers: dict[tuple[frozenset[int], int], _Offer] = {}

    def add(blend: Blend, bag: int) -> None:
        weights = {n: w for n, w in blend.weights.items() if w > NEGLIGIBLE} or blend.weights
        members = frozenset(weights)
        # Small bags of all members are equal to larger ones where no trial has more models.
        key = (members, min(bag, max(len(result.parts[n]) for n in members)))
        if key in offers:
            return
        total = sum(weights.values())
        weights = {n: w / total for n, w in weights.items()}
        charge = sum(w / shop.effective_bag(n, bag) for n, w in weights.items()) * BAG_GAIN[metric.task]
        score = arena.score(weights)
        offers[key] = _Offer(
            weights,
            bag,
            shop.latency_ms(members, bag),
            shop.size_mb(members, bag),
            score - charge * relative_loss(metric, score),
        )

    for bag in sorted({b for b in (1, 2, 4, fullest) if b <= fullest}):

        def within(limit_ms: float, *, bag: int = bag) -> Callable[[frozenset[int]], bool]:
            return lambda members: shop.latency_ms(members, bag) <= limit_ms and shop.size_mb(members, bag) <= limit_mb

        if whole:
            add(Blend(whole, result.blend.score), bag)
        free = arena.greedy(steps=STEPS, affords=within(np.inf))
        if not free.weights:
            continue
        add(free, bag)
        alone = [shop.latency_ms(frozenset({n}), bag) for n in measured]
        most = shop.latency_ms(frozenset(free.weights), bag)
        for limit_ms in np.geomspace(min(alone) * 1.001, max(most, min(alone) * 1.01), LEVELS)[:-1]:
            blend = arena.greedy(steps=STEPS, affords=within(float(limit_ms)))
            if blend.weights:
                add(blend, bag)
    smallest = min(measured, key=lambda n: shop.size_mb(frozenset({n}), 1))
    add(Blend({smallest: 1.0}, arena.score({smallest: 1.0})), 1)
    return list(offers.values())


def _worth_measuring(result: SearchResult, whole: Mapping[int, float]) -> list[int]:
    """Return the blend's members, the best of each family, then the best of the others."""
    candidates = result.candidates
    families = {trial.number: trial.family for trial in result.trials}
    metric = candidates.metric.chooser
    scores = {
        n: float(np.mean([metric.score(y, p) for y, p in zip(candidates.targets, parts, strict=True)]))
        for n, parts in candidates.predictions.items()
    }
    ordered = sorted(scores, key=lambda n: (-scores[n], n))
    firsts = {families[n]: n for n in reversed(ordered)}
    wanted = [*sorted(whole, key=lambda n: -whole[n]), *sorted(firsts.values(), key=ordered.index), *ordered]
    return list(dict.fromkeys(n for n in wanted if result.parts.get(n)))[:MEASURED]


def _undominated(offers: Sequence[_Offer]) -> list[_Offer]:
    kept: list[_Offer] = []
    for offer in sorted(offers, key=lambda o: (o.latency_ms, -o.score)):
        if not kept or offer.score > kept[-1].score:
            kept.append(offer)
    return kept


def _best_within(offers: Sequence[_Offer], limit_ms: float) -> int:
    """Return the place of the best offer within a limit, of the cheapest if there is none."""
    return max((i for i, offer in enumerate(offers) if offer.latency_ms <= limit_ms), default=0)


def _lost(metric: Metric, taken: float, best: float) -> float:
    """Return the part of the best ensemble's loss that the taken one adds."""
    loss = relative_loss(metric, best)
    return max((best - taken) / loss, 0.0) if loss > 0 else 0.0


def _sentence(metric: Metric, taken: _Offer, best: _Offer, *, lost: float, ratio: float, ceilings: Ceilings) -> str:
    limits = [f"{v:g} {u}" for v, u in ((ceilings.latency_ms, "ms"), (ceilings.size_mb, "MB")) if v is not None]
    named = f"the ceiling of {' and '.join(limits)}" if limits else f"the default bound of {DEFAULT_MS:g} ms"
    if not lost:
        return f"The best ensemble keeps {named}: nothing was given up."
    return (
        f"Under {named}, {metric.label} out of fold is {metric.display(taken.score)} against "
        f"{metric.display(best.score)} of the best ensemble, which would take {best.latency_ms * ratio:.2g} ms a row "
        f"and {best.size_mb:.2g} MB: {lost:.2%} more loss."
    )


def _call_ms(call: Callable[[T], object], rows: Sequence[T]) -> float:
    """Return the time of one call after four to warm up: the lowest of three medians.

    Of this thread's processor time: models predict a row in the calling thread, and what else the machine does while
    a variant is made is not the variant's cost.
    """
    for row in rows[:4]:
        call(row)
    medians = []
    for _ in range(3):
        moments = [time.thread_time()]
        for i in range(RUNS):
            call(rows[i % len(rows)])
            moments.append(time.thread_time())
        medians.append(np.median([after - before for before, after in pairwise(moments)]))
    return float(min(medians)) * 1e3
