"""A thousand variants behind one predictor, called as names are in the wild: few often, most hardly ever (Zipf).

The variants are made by a segment job, and each is registered under many
names.  Ten times as many names are in the ledger.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import psutil
from sklearn.datasets import make_regression

from bench.claim import bare_parser
from bench.factory_run import newest, run
from bench.record import WORK, save
from bench.served import BY
from bench.serving_chart import draw_names
from factory.ledger import Ledger
from factory.operate.deployments import start_predictor, stop_predictor
from factory.settings import Settings
from factory.variants.bundle import Bundle
from factory.variants.registry import Registry

FOLDER = WORK / "zipf"
SEGMENTS, NAMES, REGISTERED = 40, 1_000, 10_000
EXPONENT = 1.1
CLIENTS, SECONDS = 4, 60
CACHES_MB = (2_048, 300)
MOST_P99_MS, MOST_COLD_P95_MS = 50.0, 500.0
COLUMNS_ = [f"x{i}" for i in range(8)]

WINDOWS = ("first", "second", "third")
"""Of the measured time, each as long; nothing is in memory when the first begins."""

COLUMNS = {
    "cache_mb": "cache MB",
    "minute": "minute",
    "calls": "calls",
    "failed": "failed",
    "a_second": "a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "hit_rate": "in memory",
    "loads": "loads",
    "load_p50_ms": "a load: p50 ms",
    "load_p95_ms": "p95 ms",
    "cold_p95_ms": "first calls: p95 ms",
    "replica_mb": "replica RSS MB",
    "met": "met",
}
NOTE = (
    f"{NAMES:,} variants of {SEGMENTS} segments' models, {REGISTERED:,} names in the ledger; {CLIENTS} clients, each "
    f"of which calls again when it has its answer, names by Zipf's law with exponent {EXPONENT}, one row a call, "
    f"{len(WINDOWS)} times {SECONDS} s without a break; one replica. Nothing is in memory when the first minute "
    "begins, in which one call in seven is a variant's first: it is met where nothing failed and p95 of the calls "
    f"that had to load is at most {MOST_COLD_P95_MS:g} ms. The others are met where p99 of all calls is at most "
    f"{MOST_P99_MS:g} ms as well. {CACHES_MB[0]:,} MB have room for all; {CACHES_MB[1]} MB have to let some go."
)


def main() -> int:
    """Make, register and call; return 1 where a limit is not kept."""
    arguments = bare_parser(__doc__, seed="the calls", quick="20 names, 5 s")
    arguments.add_argument("--names", type=int, default=NAMES, metavar="N", help=f"called (default: {NAMES:,})")
    chosen = arguments.parse_args()
    n, seconds = (20, 5) if chosen.quick else (chosen.names, SECONDS)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    home = FOLDER / "home"
    names = registered(home, n)
    rows = []
    for cache_mb in CACHES_MB:
        settings = Settings(home=home, serve_port=0, serve_cache_mb=cache_mb, predictions_a_minute=10_000_000)
        with Ledger.open(settings.ledger) as ledger:
            token = ledger.issue_token("bench", team=None, scopes=("predict",), by=BY).secret
        running = start_predictor(settings)
        try:
            order = drawn(names, seed=chosen.seed)
            for window in WINDOWS:
                came = measured(running.url, token, order, seconds=seconds)
                rows.append({"cache_mb": cache_mb, "minute": window} | came | {"met": met(came, window)})
        finally:
            stop_predictor(settings)
    draw = partial(draw_names, most_p99_ms=MOST_P99_MS)
    save("zipf", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1, draw=draw)
    return 0 if all(row["met"] for row in rows) else 1


def registered(home: Path, n: int) -> list[str]:
    """Make the segments' variants, register them under n names, and return these."""
    x, y = make_regression(SEGMENTS * 400, len(COLUMNS_), n_informative=5, noise=20.0, random_state=0)
    frame = pd.DataFrame(x, columns=COLUMNS_).assign(y=y, region=[f"r{i % SEGMENTS:02d}" for i in range(len(y))])
    frame.to_parquet(FOLDER / "train.parquet", index=False)
    document = {
        "name": "region",
        "recipe": "tabular-fast",
        "dataset": {"path": str(FOLDER / "train.parquet"), "target": "y", "task": "regression"},
        "segments": {"by": "region", "min_rows": 100},
        "budget": {"time_s": 120},
    }
    run(document, folder=FOLDER / "making", home=home, timeout_s=600)
    came = newest(home)
    if came is None or len(came.variants) < 2:
        raise SystemExit((FOLDER / "making" / "run.log").read_text())
    made = [variant for variant in came.variants if variant.segment] or list(came.variants)
    settings = Settings(home=home)
    registry = Registry(settings)
    names = []
    with Ledger.open(settings.ledger) as ledger:
        for i in range(n):
            source = made[i % len(made)]
            bundle = registry.local_bundle(source.name, source.version)
            wanted = source.model_copy(update={"name": f"bench.copy-{i:04d}", "version": 0})
            # What the pooled variant's models answer for needs the region.
            example = frame[[column.name for column in Bundle.load(bundle).columns]].head(3)
            copy = registry.register(bundle, variant=wanted, example=example, metrics={})
            ledger.record_variant(copy)
            ledger.set_alias(copy.name, "champion", copy.version, who="bench", why="Measured.")
            names.append(copy.name)
            if i % 100 == 99:
                print(f"{i + 1:,} names are registered", flush=True)
        for i in range(n, min(REGISTERED, 10 * n)):
            ledger.record_variant(copy.model_copy(update={"name": f"bench.idle-{i:05d}"}))
    return names


def drawn(names: list[str], *, seed: int) -> Iterator[str]:
    """Yield names as they are called."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(names) + 1) ** EXPONENT
    while True:
        yield from (names[i] for i in random.choice(len(names), size=10_000, p=weights / weights.sum()))


def measured(url: str, token: str, names: Iterator[str], *, seconds: int) -> dict[str, Any]:
    """Call for a while, and say how it went."""
    calls = asyncio.run(_called(url, token, names, seconds))
    took = np.array([ms for ms, _, status in calls if status == 200])
    loads = np.array([load for _, load, status in calls if status == 200 and load is not None])
    cold = np.array([ms for ms, load, status in calls if status == 200 and load is not None])
    return {
        "calls": len(calls),
        "failed": sum(status != 200 for _, _, status in calls),
        "a_second": round(len(took) / seconds),
        "p50_ms": round(float(np.percentile(took, 50)), 2),
        "p99_ms": round(float(np.percentile(took, 99)), 2),
        "hit_rate": f"{1 - len(loads) / len(took):.2%}",
        "loads": len(loads),
        "load_p50_ms": round(float(np.percentile(loads, 50)), 1) if len(loads) else None,
        "load_p95_ms": round(float(np.percentile(loads, 95)), 1) if len(loads) else None,
        "cold_p95_ms": round(float(np.percentile(cold, 95)), 1) if len(cold) else None,
        "replica_mb": _replica_mb(),
    }


def met(row: dict[str, Any], window: str) -> bool:
    """Whether a window kept its limits."""
    cold_met = row["cold_p95_ms"] is None or row["cold_p95_ms"] <= MOST_COLD_P95_MS
    return not row["failed"] and cold_met and (window == WINDOWS[0] or row["p99_ms"] <= MOST_P99_MS)


async def _called(url: str, token: str, names: Iterator[str], seconds: int) -> list[tuple[float, float | None, int]]:
    """Call names in their order by several clients; return ms, ms of a load if there was one, and status of each."""
    calls: list[tuple[float, float | None, int]] = []
    body = json.dumps({"dataframe_records": [{**dict.fromkeys(COLUMNS_, 0.5), "region": "r00"}]}).encode()
    deadline = time.monotonic() + seconds
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < deadline:
            began = time.perf_counter()
            async with session.post(f"{url}/variants/{next(names)}/invocations", data=body) as answer:
                await answer.read()
                timing = answer.headers.get("server-timing", "")
                status = answer.status
            calls.append((1e3 * (time.perf_counter() - began), _load_ms(timing), status))

    async with aiohttp.ClientSession(headers=headers) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return calls


def _load_ms(timing: str) -> float | None:
    for part in timing.split(", "):
        name, _, duration = part.partition(";dur=")
        if name == "load":
            return float(duration)
    return None


def _replica_mb() -> float:
    found = [p.info["memory_info"].rss for p in psutil.process_iter(["name", "memory_info"])
             if "ServeReplica" in (p.info["name"] or "")]  # fmt: skip
    return round(max(found, default=0) / 1e6)


if __name__ == "__main__":
    sys.exit(main())
