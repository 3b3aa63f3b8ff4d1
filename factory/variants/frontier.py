"""Quality against latency: the best blend under ceilings, and the curve that shows what a ceiling costs.

The search leaves candidates: trials with out-of-fold predictions and a model
for each fold.  Their costs are measured (:mod:`factory.variants.costs`).  For
rising allowances, a greedy blend that may only take members it can pay for
gives the points of the curve.  A bag may be served by some of its models only;
what that loses is not seen out of fold, where each row has one model's
prediction, so it is charged by a measured figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from factory.families.base import Deadline
from factory.search.engine import Part, SearchResult
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.spec import Ceilings, Document
from factory.variants.bundle import Bundle
from factory.variants.costs import Offer, Prices, Shop
from factory.variants.offers import best_within, lost_by, offers_of, undominated

DEFAULT_MS = 4.0
"""Bound where nobody set one, so that a row takes 5 ms at most (docs/decisions/frontier.md)."""
TOLERATED, MOST_MS = 0.02, 64.0
"""Part of the loss that a bound which nobody set may cost: it is doubled while it would cost more, up to that."""
MARGIN = 0.8
"""Part of a ceiling that is aimed at: the gate measures again, on a machine that others use too."""
NOISE = 0.001
"""Part of the loss that repeats of one search differ by anyway: 0.0001 to 0.003 (docs/decisions/frontier.md)."""
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
    """The blend under the ceilings.

    Attributes:
        bundle: The variant.
        weights: Share of each trial, by its number.
        frontier: The curve that it lies on.
        parts: Its models, by trial.
        prices: What the models cost, for segments that blend them anew.
    """

    bundle: Bundle
    weights: dict[int, float]
    frontier: Frontier
    parts: dict[int, tuple[Part, ...]]
    prices: Prices


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
    deadline = deadline or Deadline()
    shop = Shop(result, data, rows, deadline)
    metric = result.candidates.metric.chooser
    bound_ms = MARGIN * ceilings.latency_ms if ceilings.latency_ms is not None else DEFAULT_MS
    passes: list[_Pass] = []
    for shop.merges in (False, True):
        passes.append(one := _passed(result, shop, bound_ms=bound_ms, most_mb=limit_mb(ceilings), deadline=deadline))
        # Merging the models of a bag takes seconds and saves a third of a row's time: only where time is missing.
        content = one.keeps and lost_by(metric, one.taken.score, one.offers[-1].score) < NOISE
        if content or deadline.passed:
            break
    best = max(passes, key=lambda one: (one.keeps, one.taken.score))
    if ceilings.latency_ms is None:
        best, bound_ms = _loosened(best, shop, metric, deadline)
    frontier = _frontier(metric, best, shop, bound_ms=bound_ms, ceilings=ceilings)
    bundle = shop.calibrated(best.bundle, best.taken)
    shop.merges = best.merges
    prices = shop.prices(ratio=best.latency_ms / best.taken.latency_ms)
    return Chosen(bundle, best.taken.weights, frontier, shop.parts_of(best.taken), prices)


def _passed(result: SearchResult, shop: Shop, *, bound_ms: float, most_mb: float, deadline: Deadline) -> _Pass:
    weighed = offers_of(result, shop, most_mb, deadline)
    small_enough = [offer for offer in weighed if offer.size_mb <= most_mb]
    offers = undominated(small_enough or [min(weighed, key=lambda o: o.size_mb)])
    at, latency_ms, bundle = measured_within(offers, shop, bound_ms=bound_ms, deadline=deadline)
    return _Pass(weighed, offers, at, latency_ms, bundle, keeps=latency_ms <= bound_ms, merges=shop.merges)


def _loosened(found: _Pass, shop: Shop, metric: Metric, deadline: Deadline) -> tuple[_Pass, float]:
    """Return the best offer under a default bound that is raised while keeping it costs too much, and that bound.

    Of thousands of columns the preparation alone may take the bound's time: a constant would be left.
    """
    bound_ms, shop.merges = DEFAULT_MS, found.merges
    while lost_by(metric, found.taken.score, found.offers[-1].score) > TOLERATED and bound_ms < MOST_MS:
        bound_ms *= 2
        at, latency_ms, bundle = measured_within(found.offers, shop, bound_ms=bound_ms, deadline=deadline)
        found = replace(found, at=at, latency_ms=latency_ms, bundle=bundle, keeps=latency_ms <= bound_ms)
    return found, bound_ms


def _frontier(metric: Metric, found: _Pass, shop: Shop, *, bound_ms: float, ceilings: Ceilings) -> Frontier:
    """Return the curve of a pass, on the scale of the time that was measured on its bundle."""
    ratio = found.latency_ms / found.taken.latency_ms
    points = tuple(
        point_of(replace(offer, latency_ms=offer.latency_ms * ratio), shop, chosen=i == found.at)
        for i, offer in enumerate(found.offers)
    )
    best = max(found.weighed, key=lambda offer: (offer.score, -offer.latency_ms))
    lost = lost_by(metric, found.taken.score, best.score)
    return Frontier(
        metric=metric.name,
        points=points,
        bound_ms=bound_ms,
        ceiling_ms=ceilings.latency_ms,
        lost=lost,
        sentence=_sentence(metric, found.taken, best, lost=lost, ratio=ratio, ceilings=ceilings, bound_ms=bound_ms),
    )


def measured_within(
    offers: Sequence[Offer], shop: Shop, *, bound_ms: float, deadline: Deadline
) -> tuple[int, float, Bundle]:
    """Return the place, the measured time and the bundle of the best offer that keeps the bound, else of the fastest.

    Args:
        offers: The cheapest first, better ones later.
        shop: Makes their bundles.
        bound_ms: For one row.
        deadline: When the first one that keeps the bound is good enough.
    """
    at, kept, failed = best_within(offers, bound_ms), -1, len(offers)
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
            at = min(best_within(offers, reach_ms), failed - 1)
        else:
            break
    at = kept if kept >= 0 else min(tried, key=lambda i: tried[i][0])
    return at, *tried[at]


def _sentence(
    metric: Metric, taken: Offer, best: Offer, *, lost: float, ratio: float, ceilings: Ceilings, bound_ms: float
) -> str:
    named = named_bound(ceilings, bound_ms)
    if ceilings.latency_ms is None and bound_ms > DEFAULT_MS:
        named += f" (raised from {DEFAULT_MS:g} ms, which would cost more than {TOLERATED:.0%} of the loss)"
    if not lost:
        return f"The best blend keeps {named}: nothing was given up."
    return (
        f"Under {named}, {metric.label} out of fold is {metric.display(taken.score)} against "
        f"{metric.display(best.score)} of the best blend, which would take {best.latency_ms * ratio:.2g} ms a row "
        f"and {best.size_mb:.2g} MB: {lost:.2%} more loss."
    )


def limit_mb(ceilings: Ceilings) -> float:
    """Return the size that is aimed at."""
    return MARGIN * ceilings.size_mb if ceilings.size_mb is not None else np.inf


def point_of(offer: Offer, shop: Shop, *, chosen: bool) -> FrontierPoint:
    """Return a blend that was weighed as a point of the curve."""
    return FrontierPoint(
        latency_ms=offer.latency_ms,
        size_mb=offer.size_mb,
        score=offer.score,
        trials=tuple(sorted(offer.weights)),
        models=shop.models(offer),
        chosen=chosen,
    )


def named_bound(ceilings: Ceilings, bound_ms: float) -> str:
    """Return what was to be kept, for a person."""
    limits = [f"{v:g} {u}" for v, u in ((ceilings.latency_ms, "ms"), (ceilings.size_mb, "MB")) if v is not None]
    return f"the ceiling of {' and '.join(limits)}" if limits else f"the default bound of {bound_ms:g} ms"
