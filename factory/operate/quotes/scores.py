"""What the history says of the score to expect: what variants of like data reached.

Losses are compared as ratios, since twenty per cent more of a small loss is as
likely as twenty per cent more of a large one.  Scores of different targets
have no common scale; requests count as alike only where at least most of
their columns have the same names (:mod:`factory.data.traits`), so that a team's
region, store or month teaches the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from factory.data.metadata import TableMetadata
from factory.data.traits import column_hashes, distance_by_shape
from factory.operate.quotes.documents import COVERAGE, ExpectedScore, Interval
from factory.operate.quotes.history import PastMaking
from factory.search.metric import Metric
from factory.search.race import relative_loss
from factory.search.transfer import NEAR, UNKNOWN
from factory.spec import Task

USUAL_SPREAD, USUAL_CASES = 0.12, 3.0
"""How much the logarithms of siblings' losses differ where nothing was seen (standard deviation), and as how many past
requests that counts."""
_Z95, _Z = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf((1 + COVERAGE) / 2)


@dataclass(frozen=True)
class Alike:
    """A past request whose data are like those of a new one."""

    making: PastMaking
    distance: float


def alike(
    past: Sequence[PastMaking], table: TableMetadata | None, *, features: Collection[str], variants: Collection[str]
) -> tuple[Alike, ...]:
    """Return the past requests whose data are like a table, the nearest and newest first.

    Of the table only names and size are known: what its values are is taken to be like each past request's.

    Args:
        past: The newest first.
        table: None where it could not be looked at; then only requests for ``variants`` are alike.
        features: Its columns without target and what is left out.
        variants: Names of the new variant and of its parent.
    """
    if table is None:
        return tuple(Alike(making, UNKNOWN) for making in past if making.variant in variants)
    columns, n_rows, n_columns = column_hashes(features), table.n_rows, len(features)
    found = [
        Alike(making, distance_by_shape(columns, n_rows=n_rows, n_columns=n_columns, other=making.traits))
        for making in past
    ]
    return tuple(sorted((one for one in found if one.distance <= NEAR), key=lambda one: one.distance))


def task_of(past: Sequence[Alike], tasks: Collection[Task]) -> Task | None:
    """Return the task that a request turns out to be, as far as that is known: the only one, or the nearest's."""
    if len(tasks) == 1:
        return next(iter(tasks))
    return next((one.making.traits.task for one in past if one.making.traits.task in tasks), None)


def expected_score(past: Sequence[Alike], metric: Metric) -> ExpectedScore | None:
    """Return the score to expect by a metric; None where no request with like data was scored by it.

    The mean of the losses' logarithms, nearer requests counting more; its interval has their spread, of which the usual
    one is a part as long as they are few, and for a single gate's chance the intervals of their own scores.
    """
    known = [
        one
        for one in past
        if (one.making.metric, one.making.traits.task) == (metric.name, metric.task) and np.isfinite(one.making.score)
    ]
    if not known:
        return None
    scale = _Scale(metric, ratios=all(relative_loss(metric, one.making.score) > 0 for one in known))
    values = np.array([scale.of(one.making.score) for one in known])
    mean = float(np.average(values, weights=[1 - one.distance for one in known]))
    usual = np.hypot(scale.usual(values), np.median([scale.chance(one.making) for one in known]))
    spread = np.sqrt((USUAL_CASES * usual**2 + np.square(values - mean).sum()) / (USUAL_CASES + len(values)))
    half = _Z * float(spread) * np.sqrt(1 + 1 / len(values))
    nearest = known[0]
    return ExpectedScore(
        metric=metric.name,
        score=Interval(low=scale.score(mean + half), expected=scale.score(mean), high=scale.score(mean - half)),
        n_requests=len(known),
        nearest=nearest.making.variant,
        distance=round(nearest.distance, 3),
    )


@dataclass(frozen=True)
class _Scale:
    """On which losses are compared: their logarithms, or they themselves where one is not above zero."""

    metric: Metric
    ratios: bool

    def of(self, score: float) -> float:
        loss = relative_loss(self.metric, score)
        return float(np.log(loss)) if self.ratios else loss

    def score(self, value: float) -> float:
        loss = float(np.exp(value)) if self.ratios else value
        return -loss if self.metric.name.startswith("neg_") else 1 - loss

    def usual(self, values: np.ndarray) -> float:
        return USUAL_SPREAD if self.ratios else USUAL_SPREAD * float(np.abs(values).mean())

    def chance(self, was: PastMaking) -> float:
        """Return the standard deviation that a score has by the chance of its gate's rows."""
        ends = [end for end in (was.low, was.high) if np.isfinite(end)]
        if self.ratios:
            ends = [end for end in ends if relative_loss(self.metric, end) > 0]
        return max((abs(self.of(end) - self.of(was.score)) / _Z95 for end in ends), default=0.0)
