"""Blends that are worth weighing: what a row costs with them, and what they score out of fold.

A bag may be served by some of its models only; what that loses is not seen out
of fold, where each row has one model's prediction, so it is charged by a
measured figure (docs/decisions/frontier.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from factory.families.base import Deadline
from factory.search.engine import SearchResult
from factory.search.ensemble import Arena
from factory.search.metric import Metric
from factory.search.race import BAG_GAIN, relative_loss
from factory.variants.costs import Offer, Shop

NEGLIGIBLE = 0.04
"""A trial with less weight than this is left out: one addition of the greedy 25 is noise."""
MEASURED = 12
"""Candidates whose cost is measured, the blend's and the best ones; loading a model takes up to 0.1 s."""
LEVELS = 7
STEPS = 15
ROWS = 5_000
"""A level is chosen with fewer steps and rows than the final weights: it only says who is in."""


def offers_of(result: SearchResult, shop: Shop, limit_mb: float, deadline: Deadline) -> list[Offer]:
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
        for shares in cuts(self._whole, shop=self._shop, bag=bag):
            self._add(shares, bag)

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
        self._offers[key] = weighed(weights, bag, shop=self._shop, arena=self._arena, metric=self._metric)


def cuts(shares: Mapping[int, float], *, shop: Shop, bag: int) -> Iterator[dict[int, float]]:
    """Yield a blend with fewer and fewer members, those left out first that bring least, or least for their time."""
    alone = {n: shop.latency_ms(frozenset({n}), bag) for n in shares}
    for worth in (shares, {n: share / max(alone[n], 1e-6) for n, share in shares.items()}):
        best = sorted(shares, key=lambda n: -worth[n])
        for n_members in range(len(best), 0, -1):
            yield {n: shares[n] for n in best[:n_members]}


def weighed(weights: Mapping[int, float], bag: int, *, shop: Shop, arena: Arena, metric: Metric) -> Offer:
    """Return what a blend costs and scores, its shares made to sum to 1.

    Args:
        weights: Share of each trial, of any scale.
        bag: Models of each trial at most.
        shop: Knows the costs.
        arena: Has the trials' predictions.
        metric: That it scores by.
    """
    total = sum(weights.values())
    shares = {n: w / total for n, w in weights.items()}
    members = frozenset(shares)
    charge = sum(w / shop.effective_bag(n, bag) for n, w in shares.items()) * BAG_GAIN[metric.task]
    score = arena.score(shares)
    charged = score - charge * relative_loss(metric, score)
    return Offer(shares, bag, shop.latency_ms(members, bag), shop.size_mb(members, bag), charged)


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


def undominated(offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers that none other beats in both time and score, the cheapest first."""
    kept: list[Offer] = []
    for offer in sorted(offers, key=lambda o: (o.latency_ms, -o.score)):
        if not kept or offer.score > kept[-1].score:
            kept.append(offer)
    return kept


def best_within(offers: Sequence[Offer], limit_ms: float) -> int:
    """Return the place of the best offer within a limit, of the cheapest if there is none."""
    return max((i for i, offer in enumerate(offers) if offer.latency_ms <= limit_ms), default=0)


def lost_by(metric: Metric, taken: float, best: float) -> float:
    """Return the part of the best blend's loss that the taken one adds."""
    loss = relative_loss(metric, best)
    return max((best - taken) / loss, 0.0) if loss > 0 else 0.0
