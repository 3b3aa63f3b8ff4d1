"""From runs to a verdict: ranks with their uncertainty, time kept, nothing worse than the reference.

Ranks are taken on each table and seed by all systems that are compared, and
only where each of them has run; equal losses share the mean of their places,
and a system that failed comes last.  A table counts once, however many seeds
it has.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from bench.runs import Run

DRAWS = 2000
CONFIDENCE = 0.95

Cells = Mapping[tuple[str, int], Mapping[str, Run]]
"""Runs by table and seed, then by system."""


@dataclass(frozen=True)
class AverageRank:
    """An average of ranks with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """One system over all that was compared.

    Attributes:
        peer: The system.
        rank: Average over tables.
        firsts: Tables on which its mean loss was the smallest.
        failed: Runs without a score.
        kept: Share of the runs that ended in time.
        wall_s: Median and largest of the whole process.
        latency_ms: Median over runs of predicting one row.
        peak_pss_mb: Median and largest.
    """

    peer: str
    rank: AverageRank
    firsts: int
    failed: int
    kept: float
    wall_s: tuple[float, float]
    latency_ms: float | None
    peak_pss_mb: tuple[float, float]


def cells(runs: Iterable[Run], *, budget_s: int) -> Cells:
    """Return the runs of one budget by table and seed."""
    found: dict[tuple[str, int], dict[str, Run]] = {}
    for run in runs:
        if run.budget_s == budget_s:
            found.setdefault((run.data, run.seed), {})[run.peer] = run
    return found


def complete(all_cells: Cells, peers: Sequence[str]) -> Cells:
    """Return the cells in which each system has run."""
    return {key: cell for key, cell in all_cells.items() if all(peer in cell for peer in peers)}


def ranks(cell: Mapping[str, Run], peers: Sequence[str]) -> np.ndarray:
    """Return the place of each system in a cell, float64 (n_peers,), the best first."""
    losses = [cell[peer].loss for peer in peers]
    return np.asarray(rankdata([np.inf if loss is None else loss for loss in losses]))


def average_ranks(whole: Cells, peers: Sequence[str], *, seed: int = 0) -> dict[str, AverageRank]:
    """Return the average rank of each system, tables weighing alike, with a percentile bootstrap interval.

    Tables are drawn with replacement and, within each, its seeds (a two-stage
    bootstrap; Davison and Hinkley, 1997, section 3.8).

    Args:
        whole: Cells in which each system has run; at least one.
        peers: The systems.
        seed: Of the draws.
    """
    tables: dict[str, list[np.ndarray]] = {}
    for (data, _), cell in whole.items():
        tables.setdefault(data, []).append(ranks(cell, peers))
    stacked = [np.stack(rows) for rows in tables.values()]
    rng = np.random.default_rng(seed)
    drawn = np.empty((DRAWS, len(peers)))
    for draw in range(DRAWS):
        picked = [stacked[i] for i in rng.integers(len(stacked), size=len(stacked))]
        drawn[draw] = np.mean([rows[rng.integers(len(rows), size=len(rows))].mean(axis=0) for rows in picked], axis=0)
    means = np.mean([rows.mean(axis=0) for rows in stacked], axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return {peer: AverageRank(float(means[i]), float(low[i]), float(high[i])) for i, peer in enumerate(peers)}


def mean_losses(whole: Cells, peers: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return table → system → mean loss over the seeds; None where a run of it failed."""
    return _means(whole, peers, "loss")


def mean_scores(whole: Cells, peers: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return table → system → mean score over the seeds; None where a run of it failed."""
    return _means(whole, peers, "score")


def _means(whole: Cells, peers: Sequence[str], attribute: str) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for data in dict.fromkeys(data for data, _ in whole):
        found[data] = {}
        for peer in peers:
            values = [getattr(cell[peer], attribute) for (name, _), cell in whole.items() if name == data]
            found[data][peer] = None if None in values else statistics.fmean(values)
    return found


def standings(whole: Cells, peers: Sequence[str], *, limit_s: float) -> list[Standing]:
    """Return each system's standing, the best average rank first.

    Args:
        whole: Cells in which each system has run; at least one.
        peers: The systems.
        limit_s: Within which a whole process had to end.
    """
    average = average_ranks(whole, peers)
    losses = mean_losses(whole, peers)
    firsts = [min(peers, key=lambda peer: _or_worst(by_peer[peer])) for by_peer in losses.values()]
    found = []
    for peer in peers:
        runs = [cell[peer] for cell in whole.values()]
        walls = [run.wall_s for run in runs]
        peaks = [run.peak_pss_mb for run in runs]
        latencies = [run.latency_ms for run in runs if run.latency_ms is not None]
        found.append(
            Standing(
                peer=peer,
                rank=average[peer],
                firsts=firsts.count(peer),
                failed=sum(run.score is None for run in runs),
                kept=sum(wall <= limit_s for wall in walls) / len(walls),
                wall_s=(statistics.median(walls), max(walls)),
                latency_ms=statistics.median(latencies) if latencies else None,
                peak_pss_mb=(statistics.median(peaks), max(peaks)),
            )
        )
    return sorted(found, key=lambda standing: standing.rank.mean)


def worse_than(whole: Cells, peer: str, reference: str) -> list[str]:
    """Return the tables on which a system's mean loss is larger than the reference's."""
    losses = mean_losses(whole, [peer, reference])
    return [data for data, found in losses.items() if _or_worst(found[peer]) > _or_worst(found[reference])]


def _or_worst(loss: float | None) -> float:
    return np.inf if loss is None else loss
