"""A decision over 10,000 requests of 50 teams takes 50 ms at most, and no more than n log n of it for more of them.

The cluster is as full as its teams can make it, which is when a queue is long;
then it stands empty, so that hundreds start at once.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.claim import parser, report
from factory.operate.admission import Capacity, Decision, Priority, Running, TeamLoad, Waiting, decide
from factory.spec import Quota

SIZES = (1_000, 10_000, 100_000)
N_TEAMS = 50
CAPACITY = Capacity(cpus=512, gpus=64, memory_gb=4096)
LIMIT_MS, LIMIT_SIZE = 50.0, 10_000
NOW = 1_800_000_000.0
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")

COLUMNS = {
    "n_waiting": "requests",
    "cluster": "cluster",
    "running": "running",
    "admitted": "start",
    "median_ms": "median ms",
    "best_ms": "best ms",
    "worst_ms": "worst ms",
    "limit_ms": "limit ms",
    "worded_ms": "with all reasons in words, best ms",
    "met": "met",
}
NOTE = (
    f"{N_TEAMS} teams on {CAPACITY.cpus:g} CPUs and {CAPACITY.gpus:g} GPUs, a third of them with a guarantee. Limit: "
    f"{LIMIT_MS:g} ms for the median up to {LIMIT_SIZE:,} requests; for more, n log n of the best time of "
    f"{LIMIT_SIZE:,} for the best time. Sizes take turns, so that whatever else the machine does slows all of them. "
    "One thread, wall time."
)
WORDED = 3
"""Decisions of which all reasons are put into words as well."""


def main() -> int:
    """Time decisions of each size; return 1 where one takes too long."""
    arguments = parser(__doc__, budget_s=None)
    arguments.add_argument("--repeats", type=int, default=15, help="decisions of each size (default: 15)")
    chosen = arguments.parse_args()
    sizes = SIZES[:2] if chosen.quick else SIZES
    rows = [row for full in (True, False) for row in timed(sizes, seed=chosen.seed, repeats=chosen.repeats, full=full)]
    report("admission_scale", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


def timed(sizes: Sequence[int], *, seed: int, repeats: int, full: bool) -> list[dict[str, Any]]:
    """Time decisions over queues of some sizes and return their rows."""
    queues = {n: queue(n, seed=seed, full=full) for n in sizes}
    times_ms: dict[int, list[float]] = {n: [] for n in sizes}
    worded_ms: dict[int, list[float]] = {n: [] for n in sizes}
    decisions = {}
    for repeat in range(repeats):
        for n, (teams, waiting, running) in queues.items():
            started = time.perf_counter()
            decisions[n] = decide(CAPACITY, waiting, running, teams, NOW)
            times_ms[n].append(1000 * (time.perf_counter() - started))
            if repeat < WORDED:
                assert len(dict(decisions[n].held)) + len(decisions[n].admit) == n
                worded_ms[n].append(1000 * (time.perf_counter() - started))
    rows = []
    for n in sizes:
        median_ms, best_ms = statistics.median(times_ms[n]), min(times_ms[n])
        growth = n * math.log(n) / (LIMIT_SIZE * math.log(LIMIT_SIZE))
        small = n <= LIMIT_SIZE
        limit_ms = LIMIT_MS if small else growth * min(times_ms[LIMIT_SIZE])
        rows.append(
            {
                "n_waiting": n,
                "cluster": "full" if full else "empty",
                "running": len(queues[n][2]),
                "admitted": len(decisions[n].admit),
                "median_ms": round(median_ms, 2),
                "best_ms": round(best_ms, 2),
                "worst_ms": round(max(times_ms[n]), 2),
                "worded_ms": round(min(worded_ms[n]), 2),
                "limit_ms": round(limit_ms, 1),
                "met": (median_ms if small else best_ms) <= limit_ms,
            }
        )
    return rows


def queue(n_waiting: int, *, seed: int, full: bool) -> tuple[list[TeamLoad], list[Waiting], list[Running]]:
    """Return teams and their requests; of a full cluster also what runs, as earlier decisions let it start."""
    rng = random.Random(seed)
    teams = [
        TeamLoad(f"team{n:02d}", Quota(cpus=8 if n % 3 == 0 else None, requests=20 if n % 5 == 0 else None))
        for n in range(N_TEAMS)
    ]
    waiting = [request(rng, n, since=NOW - rng.uniform(0, 40_000)) for n in range(n_waiting)]
    if not full:
        return teams, waiting, []
    earlier = [request(rng, n, since=NOW - 40_000) for n in range(n_waiting, n_waiting + 1000)]
    return teams, waiting, started(earlier, decide(CAPACITY, earlier, [], teams, NOW - 600), rng)


def request(rng: random.Random, n: int, *, since: float) -> Waiting:
    """Return one request: mostly small, a tenth of them with GPUs."""
    cpus = float(rng.choices((1, 2, 4, 8, 16), (8, 8, 4, 2, 1))[0])
    return Waiting(
        id=f"r{n:06d}",
        team=f"team{rng.randrange(N_TEAMS):02d}",
        cpus=cpus,
        gpus=float(rng.choice((1, 2, 4))) if rng.random() < 0.1 else 0.0,
        memory_gb=cpus * rng.choice((2, 4)),
        priority=rng.choice(PRIORITIES),
        since=since,
        expected_s=rng.choice((60.0, 300.0, 900.0, 3600.0)),
    )


def started(requests: list[Waiting], decision: Decision, rng: random.Random) -> list[Running]:
    """Return what a decision has let start, at different times of the last hour."""
    chosen = set(decision.admit)
    return [
        Running(
            *r[:6], since=(since := NOW - rng.uniform(0, 3600)), expected_end=max(since + (r.expected_s or 0), NOW + 1)
        )
        for r in requests
        if r.id in chosen
    ]


if __name__ == "__main__":
    sys.exit(main())
