"""Blends whose calibration is known, under bounds on latency and size: of segments, and of what is made again.

A segment's blend was weighed against the pooled one by evidence; only where it
breaks a bound that the pooled one keeps is it cut down.  That takes
milliseconds: the pooled models were timed with the pooled variant.  What is
made again has no out-of-fold predictions, so that its members' shares are all
that says what one of them is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from factory.families.base import Deadline
from factory.search.calibration import Calibration
from factory.search.engine import SearchResult
from factory.search.ensemble import Arena
from factory.search.jobs import TrialData
from factory.spec import Ceilings
from factory.variants.assembly import assemble, merge_by_family, unmerged
from factory.variants.costs import Offer, Prices, Shop
from factory.variants.frontier import (
    DEFAULT_MS,
    MARGIN,
    MOST_MS,
    Chosen,
    Frontier,
    limit_mb,
    measured_within,
    named_bound,
    point_of,
)
from factory.variants.offers import ROWS, cuts, lost_by, undominated, weighed

LENT_FROM = 1_000_000
"""Numbers of the pooled trials on a segment's leaderboard start here."""
KEPT = 0.8
"""Part of the shares that a bound which nobody set leaves of a variant that is made again: it is doubled while it would
leave less, since nothing says out of fold what a member is worth."""


@dataclass(frozen=True)
class Bound:
    """What a blend has to keep.

    Attributes:
        ceilings: Of the request.
        latency_ms: That is aimed at, as the pooled variant's choice found it.
    """

    ceilings: Ceilings
    latency_ms: float

    @property
    def named(self) -> str:
        """What was to be kept, for a person."""
        return named_bound(self.ceilings, self.latency_ms)


def of_segment(
    result: SearchResult,
    pooled: Mapping[int, float],
    *,
    data: TrialData,
    calibration: Calibration,
    rows: pd.DataFrame,
    bound: Bound,
    prices: Prices,
) -> Chosen:
    """Return a segment's blend, cut down to what keeps the bound, or the pooled one where that scores as well.

    The pooled blend is not cut: it was chosen under the same bound.

    Args:
        result: The segment's blend, with own and pooled trials as candidates and parts of all that it or the pooled
            blend is made of.
        pooled: Shares of the pooled blend.
        data: Of the segment.
        calibration: Of the pooled variant, which is the segment's.
        rows: To time the segment's own models with, (n_rows, n_columns).
        bound: What is to be kept.
        prices: What the pooled models cost.

    Raises:
        StorageFault: a model or preparation is gone.
    """
    candidates, own = result.candidates, result.blend.weights
    metric = candidates.metric.chooser
    shown = {n: candidates.predictions[n] for n in {**own, **pooled}}
    arena = Arena(metric, candidates.targets, shown, weights=candidates.weights, most_rows=ROWS)
    shop = Shop(result, data, rows, known=prices)
    fullest = max(len(result.parts[n]) for n in shown)

    def offer(shares: Mapping[int, float], bag: int) -> Offer:
        found = weighed(shares, bag, shop=shop, arena=arena, metric=metric)
        return replace(found, latency_ms=found.latency_ms * prices.ratio)

    def keeps(one: Offer) -> bool:
        return one.latency_ms <= bound.latency_ms and one.size_mb <= limit_mb(bound.ceilings)

    standing = whole = taken = offer(pooled, fullest)
    if stands := dict(own) == dict(pooled):
        sentence = f"Members and weights are those of the pooled variant, which was chosen under {bound.named}."
    elif keeps(whole := offer(own, fullest)):
        taken, sentence = whole, f"All members of the segment's own blend keep {bound.named}: nothing was given up."
    bags = sorted({b for b in (1, 2, 4, fullest) if b <= fullest}, reverse=True)
    offers = [offer(some, bag) for bag in bags for some in cuts(pooled if stands else own, shop=shop, bag=bag)]
    if taken is standing and not stands:
        best = max(filter(keeps, offers), key=lambda one: one.score, default=standing)
        taken = best if best.score > standing.score else standing
        costs = f"would take {whole.latency_ms:.2g} ms a row and {whole.size_mb:.2g} MB"
        sentence = (
            f"The pooled variant's blend stays: the segment's own {costs}, and no part of it that keeps {bound.named} "
            "scores higher."
            if taken is standing
            else f"The segment's own blend was cut down to keep {bound.named}: {metric.label} out of fold is "
            f"{metric.display(taken.score)} against {metric.display(whole.score)} of all of it, which {costs}."
        )
    told = [one for one in (*offers, standing, whole) if np.isfinite(one.score)]
    others = [one for one in undominated(told) if not np.allclose(_place(one), _place(taken), rtol=1e-9, atol=0)]
    curve = sorted((*others, taken), key=lambda one: one.latency_ms)
    frontier = Frontier(
        metric=metric.name,
        points=tuple(point_of(one, shop, chosen=one is taken) for one in curve if np.isfinite(one.score)),
        bound_ms=bound.latency_ms,
        ceiling_ms=bound.ceilings.latency_ms,
        lost=lost_by(metric, taken.score, whole.score),
        sentence=sentence,
    )
    parts = shop.parts_of(taken)
    # Merging takes up to seconds: only where the pooled variant needed it.
    merge = merge_by_family if prices.merges else unmerged
    bundle = assemble(taken.weights, parts, data=data, calibration=calibration, merge=merge)
    return Chosen(bundle, taken.weights, frontier, parts, prices)


def _place(offer: Offer) -> tuple[float, float]:
    return offer.latency_ms, offer.score


def of_parent(
    result: SearchResult,
    *,
    data: TrialData,
    calibration: Calibration,
    ceilings: Ceilings,
    rows: pd.DataFrame,
    deadline: Deadline,
) -> Chosen:
    """Return the blend of a variant that was made again: its parent's, or as much of that as keeps the bound.

    Args:
        result: Its models, without candidates.
        data: Of the request.
        calibration: Of its parent.
        ceilings: Limits; without one on latency, DEFAULT_MS, which is doubled while it would leave less than KEPT.
        rows: To time predictions with, (n_rows, n_columns).
        deadline: When the first part that keeps the bound is good enough.

    Raises:
        StorageFault: a model or preparation is gone.
    """
    shares, shop = dict(result.blend.weights), Shop(result, data, rows)
    fullest = max(len(parts) for parts in result.parts.values())

    def offer(some: Mapping[int, float]) -> Offer:
        left, kept = frozenset(some), sum(some.values())
        ms, mb = shop.latency_ms(left, fullest), shop.size_mb(left, fullest)
        return Offer({n: w / kept for n, w in some.items()}, fullest, ms, mb, kept)

    bound_ms = MARGIN * ceilings.latency_ms if ceilings.latency_ms is not None else DEFAULT_MS
    members = frozenset(shares)
    taken = Offer(shares, fullest, 0.0, 0.0, sum(shares.values()))
    bundle = shop.bundle(taken)
    whole_ms = taken_ms = shop.row_ms(bundle)
    too_large = ceilings.size_mb is not None and shop.size_mb(members, fullest) > limit_mb(ceilings)
    if too_large or whole_ms > bound_ms:
        fewer = [offer(some) for some in cuts(shares, shop=shop, bag=fullest)]
        small = [one for one in fewer if one.size_mb <= limit_mb(ceilings)]
        offers = undominated(small or [min(fewer, key=lambda one: one.size_mb)])
        while True:
            at, taken_ms, bundle = measured_within(offers, shop, bound_ms=bound_ms, deadline=deadline)
            taken = offers[at]
            if ceilings.latency_ms is not None or taken.score >= KEPT * offers[-1].score or bound_ms >= MOST_MS:
                break
            bound_ms *= 2
    named = named_bound(ceilings, bound_ms)
    sentence = (
        f"Members and weights are those of its parent; a row takes {taken_ms:.2g} ms, and {named} was to be kept."
        if len(taken.weights) == len(shares)
        else f"Under {named}, {len(taken.weights)} of {len(shares)} members of its parent are left, with "
        f"{taken.score / sum(shares.values()):.0%} of the weights: all of them would take {whole_ms:.2g} ms a row and "
        f"{shop.size_mb(members, fullest):.2g} MB."
    )
    metric = result.candidates.metric.chooser.name
    frontier = Frontier(metric=metric, points=(), bound_ms=bound_ms, ceiling_ms=ceilings.latency_ms, sentence=sentence)
    bundle = replace(bundle, calibration=calibration)
    return Chosen(bundle, taken.weights, frontier, shop.parts_of(taken), shop.prices(ratio=1.0))
