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
from typing import Any

from bench.claim import QUICK, parser, report
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
    "preempted": "make room",
    "median_ms": "median ms",
    "worst_ms": "worst ms",
    "worded_ms": "worded ms",
    "limit_ms": "limit ms",
    "met": "met",
}
NOTE = (
    f"{N_TEAMS} teams on {CAPACITY.cpus:g} CPUs and {CAPACITY.gpus:g} GPUs, a third of them with a guarantee. Worded: "
    f"with all reasons put into words. Limit: {LIMIT_MS:g} ms up to {LIMIT_SIZE:,} requests, and n log n of what "
    f"{LIMIT_SIZE:,} take beyond that; the median is held against it. One thread, wall time."
)


def main() -> int:
    """Time decisions of each size; return 1 where one takes too long."""
    arguments = parser(__doc__, budget_s=None)
    arguments.add_argument("--repeats", type=int, default=15, help="decisions of each size (default: 15)")
    chosen = arguments.parse_args()
    sizes = SIZES[:2] if QUICK in sys.argv else SIZES
    rows = []
    for full in (True, False):
        limits_ms = {n: LIMIT_MS for n in sizes if n <= LIMIT_SIZE}
        for n in sizes:
            row = timed(n, seed=chosen.seed, repeats=chosen.repeats, full=full)
            if n == LIMIT_SIZE:
                growth = {m: m * math.log(m) / (n * math.log(n)) for m in sizes if m > n}
                limits_ms |= {m: factor * row["median_ms"] for m, factor in growth.items()}
            rows.append(row | {"limit_ms": round(limits_ms[n], 1), "met": row["median_ms"] <= limits_ms[n]})
    report("admission_scale", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


def timed(n_waiting: int, *, seed: int, repeats: int, full: bool) -> dict[str, Any]:
    """Time decisions over a queue and return the row."""
    teams, waiting, running = queue(n_waiting, seed=seed, full=full)
    times: list[float] = []
    worded: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        decision = decide(CAPACITY, waiting, running, teams, NOW)
        times.append(1000 * (time.perf_counter() - started))
        dict(decision.held)
        worded.append(1000 * (time.perf_counter() - started))
    assert len(decision.held) + len(decision.admit) == n_waiting
    return {
        "n_waiting": n_waiting,
        "cluster": "full" if full else "empty",
        "running": len(running),
        "admitted": len(decision.admit),
        "preempted": len(decision.preempt),
        "median_ms": round(statistics.median(times), 2),
        "worst_ms": round(max(times), 2),
        "worded_ms": round(statistics.median(worded), 2),
    }


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
