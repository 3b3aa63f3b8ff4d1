"""Quality against latency: the best blend under ceilings, and the curve that shows what a ceiling costs.

The search leaves candidates: trials with out-of-fold predictions and a model
for each fold.  Their costs are measured (:mod:`factory.variants.costs`).  For
rising allowances, a greedy blend that may only take members it can pay for
gives the points of the curve.  A bag may be served by some of its models only;
what that loses is not seen out of fold, where each row has one model's
prediction, so it is charged by a measured figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from factory.families.base import Deadline
from factory.search.calibration import Calibration
from factory.search.engine import Part, SearchResult
from factory.search.ensemble import Arena
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.race import BAG_GAIN, relative_loss
from factory.spec import Ceilings, Document
from factory.variants.assembly import assemble
from factory.variants.bundle import Bundle
from factory.variants.costs import Offer, Shop

DEFAULT_MS = 4.0
"""Bound where nobody set one, so that a row takes 5 ms at most (docs/decisions/frontier.md)."""
TOLERATED, MOST_MS = 0.02, 64.0
"""Part of the loss that a bound which nobody set may cost: it is doubled while it would cost more, up to that."""
MARGIN = 0.8
"""Part of a ceiling that is aimed at: the gate measures again, on a machine that others use too."""
NOISE = 0.001
"""Part of the loss that repeats of one search differ by anyway: 0.0001 to 0.003 (docs/decisions/frontier.md)."""
NEGLIGIBLE = 0.04
"""A trial with less weight than this is left out: one addition of the greedy 25 is noise."""
MEASURED = 12
"""Candidates whose cost is measured, the blend's and the best ones; loading a model takes up to 0.1 s."""
LEVELS = 7
STEPS = 15
ROWS = 5_000
"""A level is chosen with fewer steps and rows than the final weights: it only says who is in."""
TRIES = 6


class FrontierPoint(Document):
    """A blend that was weighed: what a row costs with it, and what it scores out of fold.

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
        lost: Part of the best blend's loss that the chosen one adds; 0 where it is the best.
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
    """The blend under the ceilings: its bundle, the share of each trial by number, the curve it lies on, its models."""

    bundle: Bundle
    weights: dict[int, float]
    frontier: Frontier
    parts: dict[int, tuple[Part, ...]]


@dataclass(frozen=True)
class _Pass:
    """What one way of serving bags came to: all that was weighed, the worthwhile ones, and the best of these.

    Attributes:
        weighed: Offers of any size and time.
        offers: Those that none other beats in both, the cheapest first.
        at: Place of the best one among them.
        latency_ms: Of its bundle, measured.
        bundle: With a calibration that stands in for the one to be learned.
        keeps: Whether that is within the bound.
        merges: Whether the models of a bag were merged.
    """

    weighed: list[Offer]
    offers: list[Offer]
    at: int
    latency_ms: float
    bundle: Bundle
    keeps: bool
    merges: bool

    @property
    def taken(self) -> Offer:
        return self.offers[self.at]


def choose(
    result: SearchResult, *, data: TrialData, ceilings: Ceilings, rows: pd.DataFrame, deadline: Deadline | None = None
) -> Chosen:
    """Return the best blend under the ceilings, measured as it will be served.

    Args:
        result: Candidates with their parts.
        data: Where preparations lie, and what the bundle says of its columns.
        ceilings: Limits; without one on latency, DEFAULT_MS.
        rows: Rows to time predictions with, (n_rows, n_columns); nothing is chosen by their targets.
        deadline: When no further blend is weighed. The search's own blend always is, with members left out until
            the bound is kept.

    Raises:
        StorageFault: a model or preparation of the search is gone.
    """
    if result.calibration is not None:
        return _as_made(result, data, result.calibration)
    deadline = deadline or Deadline()
    shop = Shop(result, data, rows, deadline)
    limit_mb = MARGIN * ceilings.size_mb if ceilings.size_mb is not None else np.inf
    metric = result.candidates.metric.chooser
    bound_ms = MARGIN * ceilings.latency_ms if ceilings.latency_ms is not None else DEFAULT_MS
    passes: list[_Pass] = []
    for shop.merges in (False, True):
        passes.append(one := _passed(result, shop, bound_ms=bound_ms, limit_mb=limit_mb, deadline=deadline))
        # Merging the models of a bag takes seconds and saves a third of a row's time: only where time is missing.
        content = one.keeps and _lost(metric, one.taken.score, one.offers[-1].score) < NOISE
        if content or deadline.passed:
            break
    best = max(passes, key=lambda one: (one.keeps, one.taken.score))
    if ceilings.latency_ms is None:
        best, bound_ms = _loosened(best, shop, metric, deadline)
    frontier = _frontier(metric, best, shop, bound_ms=bound_ms, ceilings=ceilings)
    bundle = shop.calibrated(best.bundle, best.taken)
    return Chosen(bundle, best.taken.weights, frontier, shop.parts_of(best.taken))


def _passed(result: SearchResult, shop: Shop, *, bound_ms: float, limit_mb: float, deadline: Deadline) -> _Pass:
    weighed = _offers(result, shop, limit_mb, deadline)
    small_enough = [offer for offer in weighed if offer.size_mb <= limit_mb]
    offers = _undominated(small_enough or [min(weighed, key=lambda o: o.size_mb)])
    at, latency_ms, bundle = _tried(offers, shop, bound_ms=bound_ms, deadline=deadline)
    return _Pass(weighed, offers, at, latency_ms, bundle, keeps=latency_ms <= bound_ms, merges=shop.merges)


def _loosened(found: _Pass, shop: Shop, metric: Metric, deadline: Deadline) -> tuple[_Pass, float]:
    """Return the best offer under a default bound that is raised while keeping it costs too much, and that bound.

    Of thousands of columns the preparation alone may take the bound's time: a constant would be left.
    """
    bound_ms, shop.merges = DEFAULT_MS, found.merges
    while _lost(metric, found.taken.score, found.offers[-1].score) > TOLERATED and bound_ms < MOST_MS:
        bound_ms *= 2
        at, latency_ms, bundle = _tried(found.offers, shop, bound_ms=bound_ms, deadline=deadline)
        found = replace(found, at=at, latency_ms=latency_ms, bundle=bundle, keeps=latency_ms <= bound_ms)
    return found, bound_ms


def _frontier(metric: Metric, found: _Pass, shop: Shop, *, bound_ms: float, ceilings: Ceilings) -> Frontier:
    """Return the curve of a pass, on the scale of the time that was measured on its bundle."""
    ratio = found.latency_ms / found.taken.latency_ms
    points = tuple(
        FrontierPoint(
            latency_ms=offer.latency_ms * ratio,
            size_mb=offer.size_mb,
            score=offer.score,
            trials=tuple(sorted(offer.weights)),
            models=shop.models(offer),
            chosen=i == found.at,
        )
        for i, offer in enumerate(found.offers)
    )
    best = max(found.weighed, key=lambda offer: (offer.score, -offer.latency_ms))
    lost = _lost(metric, found.taken.score, best.score)
    return Frontier(
        metric=metric.name,
        points=points,
        bound_ms=bound_ms,
        ceiling_ms=ceilings.latency_ms,
        lost=lost,
        sentence=_sentence(metric, found.taken, best, lost=lost, ratio=ratio, ceilings=ceilings, bound_ms=bound_ms),
    )


def _as_made(result: SearchResult, data: TrialData, calibration: Calibration) -> Chosen:
    """Return the blend of a variant that was made again: there is nothing to choose by."""
    weights, candidates = dict(result.blend.weights), result.candidates
    bundle = assemble(weights, result.parts, data=data, calibration=calibration)
    sentence = "Members and weights are those of its parent: no blend was chosen."
    frontier = Frontier(metric=candidates.metric.chooser.name, points=(), bound_ms=DEFAULT_MS, sentence=sentence)
    return Chosen(bundle, weights, frontier, {n: result.parts[n] for n in weights})


def _tried(offers: Sequence[Offer], shop: Shop, *, bound_ms: float, deadline: Deadline) -> tuple[int, float, Bundle]:
    """Return the place, the measured time and the bundle of the best offer that keeps the bound, else of the fastest.

    Args:
        offers: The cheapest first, better ones later.
        shop: Makes their bundles.
        bound_ms: For one row.
        deadline: When the first one that keeps the bound is good enough.
    """
    at, kept, failed = _best_within(offers, bound_ms), -1, len(offers)
    tried: dict[int, tuple[float, Bundle]] = {}
    for _ in range(TRIES):
        bundle = shop.bundle(offers[at])
        measured_ms = shop.row_ms(bundle)
        tried[at] = (measured_ms, bundle)
        kept, failed = (max(kept, at), failed) if measured_ms <= bound_ms else (kept, min(failed, at))
        if kept >= 0 and deadline.passed:
            break
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


def _offers(result: SearchResult, shop: Shop, limit_mb: float, deadline: Deadline) -> list[Offer]:
    """Return the blends worth weighing: the best ones for bags and allowances of every size, and those without.

    When time is up, the search's blend is there with its largest bags, and is cut down to its heaviest members.
    """
    scales = _Scales(result, shop, limit_mb, deadline)
    for bag in sorted({b for b in (1, 2, 4, scales.fullest) if b <= scales.fullest}, reverse=True):
        if deadline.passed:
            scales.weigh_cuts(bag)
        else:
            scales.weigh_levels(bag)
    return scales.offers


class _Scales:
    """Weighs blends, none of them twice."""

    def __init__(self, result: SearchResult, shop: Shop, limit_mb: float, deadline: Deadline) -> None:
        candidates, weights = result.candidates, result.blend.weights
        whole = {n: w for n, w in weights.items() if w > NEGLIGIBLE} or dict(weights)
        self._metric = candidates.metric.chooser
        self._measured = _measured(result, whole, shop, deadline)
        self._whole = {n: w for n, w in whole.items() if n in self._measured}
        self._n_parts = {n: len(result.parts[n]) for n in self._measured}
        self._shop, self._limit_mb, self._deadline = shop, limit_mb, deadline
        self._offers: dict[tuple[frozenset[int], int], Offer] = {}
        shown = {n: candidates.predictions[n] for n in self._measured}
        self._arena = Arena(self._metric, candidates.targets, shown, weights=candidates.weights, most_rows=ROWS)

    @property
    def fullest(self) -> int:
        """Models of the largest bag."""
        return max(self._n_parts.values())

    @property
    def offers(self) -> list[Offer]:
        """All that was weighed, and the smallest that there is."""
        smallest = min(self._measured, key=lambda n: self._shop.size_mb(frozenset({n}), 1))
        self._add({smallest: 1.0}, 1)
        return list(self._offers.values())

    def weigh_levels(self, bag: int) -> None:
        """Weigh the search's blend, the best one within the size, and the best ones for rising allowances of time."""
        if self._whole:
            self._add(self._whole, bag)
        free = self._arena.greedy(steps=STEPS, affords=self._within(np.inf, bag))
        if not free.weights:
            return
        self._add(free.weights, bag)
        alone = [self._shop.latency_ms(frozenset({n}), bag) for n in self._measured]
        most = self._shop.latency_ms(frozenset(free.weights), bag)
        for limit_ms in np.geomspace(min(alone) * 1.001, max(most, min(alone) * 1.01), LEVELS)[:-1]:
            if self._deadline.passed:
                return
            blend = self._arena.greedy(steps=STEPS, affords=self._within(float(limit_ms), bag))
            if blend.weights:
                self._add(blend.weights, bag)

    def weigh_cuts(self, bag: int) -> None:
        """Weigh the search's blend with fewer and fewer members, those left out first that bring least, or least for
        the time that they take: quick, and never far off."""
        shares = self._whole
        alone = {n: self._shop.latency_ms(frozenset({n}), bag) for n in shares}
        for worth in (shares, {n: share / max(alone[n], 1e-6) for n, share in shares.items()}):
            best = sorted(shares, key=lambda n: -worth[n])
            for n_members in range(len(best), 0, -1):
                self._add({n: shares[n] for n in best[:n_members]}, bag)

    def _within(self, limit_ms: float, bag: int) -> Callable[[frozenset[int]], bool]:
        shop, limit_mb = self._shop, self._limit_mb
        return lambda members: shop.latency_ms(members, bag) <= limit_ms and shop.size_mb(members, bag) <= limit_mb

    def _add(self, blend: Mapping[int, float], bag: int) -> None:
        weights = {n: w for n, w in blend.items() if w > NEGLIGIBLE} or blend
        members = frozenset(weights)
        # Small bags of all members are equal to larger ones where no trial has more models.
        key = (members, min(bag, max(self._n_parts[n] for n in members)))
        if key in self._offers:
            return
        total = sum(weights.values())
        weights = {n: w / total for n, w in weights.items()}
        charge = sum(w / self._shop.effective_bag(n, bag) for n, w in weights.items()) * BAG_GAIN[self._metric.task]
        score = self._arena.score(weights)
        self._offers[key] = Offer(
            weights,
            bag,
            self._shop.latency_ms(members, bag),
            self._shop.size_mb(members, bag),
            score - charge * relative_loss(self._metric, score),
        )


def _measured(result: SearchResult, whole: Mapping[int, float], shop: Shop, deadline: Deadline) -> list[int]:
    """Return the candidates to weigh, their cost measured: the blend's, and until time is up the best of the others."""
    own = [n for n in sorted(whole, key=lambda n: -whole[n]) if result.parts.get(n)][:MEASURED]
    measured: list[int] = []
    for number in own if own and deadline.passed else dict.fromkeys((*own, *_best(result))):
        if len(measured) == MEASURED or (measured and len(measured) >= len(own) and deadline.passed):
            break
        shop.cost(number)
        measured.append(number)
    return measured


def _best(result: SearchResult) -> list[int]:
    """Return the candidates that have models: the best of each family, then the best of the others."""
    candidates = result.candidates
    families = {trial.number: trial.family for trial in result.trials}
    metric = candidates.metric.chooser
    scores = {n: candidates.score(parts, metric) for n, parts in candidates.predictions.items() if result.parts.get(n)}
    ordered = sorted(scores, key=lambda n: (-scores[n], n))
    firsts = {families[n]: n for n in reversed(ordered)}
    return list(dict.fromkeys([*sorted(firsts.values(), key=ordered.index), *ordered]))


def _undominated(offers: Sequence[Offer]) -> list[Offer]:
    kept: list[Offer] = []
    for offer in sorted(offers, key=lambda o: (o.latency_ms, -o.score)):
        if not kept or offer.score > kept[-1].score:
            kept.append(offer)
    return kept


def _best_within(offers: Sequence[Offer], limit_ms: float) -> int:
    """Return the place of the best offer within a limit, of the cheapest if there is none."""
    return max((i for i, offer in enumerate(offers) if offer.latency_ms <= limit_ms), default=0)


def _lost(metric: Metric, taken: float, best: float) -> float:
    """Return the part of the best blend's loss that the taken one adds."""
    loss = relative_loss(metric, best)
    return max((best - taken) / loss, 0.0) if loss > 0 else 0.0


def _sentence(
    metric: Metric, taken: Offer, best: Offer, *, lost: float, ratio: float, ceilings: Ceilings, bound_ms: float
) -> str:
    limits = [f"{v:g} {u}" for v, u in ((ceilings.latency_ms, "ms"), (ceilings.size_mb, "MB")) if v is not None]
    named = f"the ceiling of {' and '.join(limits)}" if limits else f"the default bound of {bound_ms:g} ms"
    if ceilings.latency_ms is None and bound_ms > DEFAULT_MS:
        named += f" (raised from {DEFAULT_MS:g} ms, which would cost more than {TOLERATED:.0%} of the loss)"
    if not lost:
        return f"The best blend keeps {named}: nothing was given up."
    return (
        f"Under {named}, {metric.label} out of fold is {metric.display(taken.score)} against "
        f"{metric.display(best.score)} of the best blend, which would take {best.latency_ms * ratio:.2g} ms a row "
        f"and {best.size_mb:.2g} MB: {lost:.2%} more loss."
    )
