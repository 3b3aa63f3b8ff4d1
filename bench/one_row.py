"""The predictor answers one row of a tabular-fast variant within 5 ms, HTTP left out.

Two variants are made of tables that scikit-learn brings, by ``factory fit`` as
a user would; then the application that Ray Serve runs in each replica is
called in this process: routing, JSON, checks, prediction, JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes

from bench.claim import bare_parser
from bench.record import WORK, clean_environment, factory_command, save
from bench.sampler import busy_s
from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import Actor
from factory.variants.manifest import read_manifest
from factory.variants.registry import Registry
from serve.app import Predictor
from serve.replica import build

FOLDER = WORK / "one_row"
LIMIT_MS = 5.0
WARM_UP = 200
TABLES: Mapping[str, Callable[..., Any]] = {"breast_cancer": load_breast_cancer, "diabetes": load_diabetes}


def main() -> int:
    """Make the variants, measure, and return 1 where a median is too slow."""
    parser = bare_parser(__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="of each variant (default: 2000)")
    parser.add_argument("--budget", type=int, default=30, metavar="SECONDS", help="of each fit (default: 30)")
    chosen = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    home = FOLDER / "home"
    made = [(name, _make(name, home, budget_s=chosen.budget)) for name in TABLES]
    settings = Settings(home=home)
    registry = Registry(settings)
    members = {name: _members(registry, name) for name in TABLES}
    with Ledger.open(settings.ledger) as ledger:
        token = ledger.issue_token("bench", team=None, scopes=("predict",), by=Actor(who="bench")).secret
    timed = asyncio.run(_measure(build(settings), made, token, calls=chosen.calls))
    rows = [{**row, "members": members[row["data"]]} for row in timed]
    columns = {
        "data": "variant of",
        "members": "members",
        "median_ms": "median ms",
        "p99_ms": "p99 ms",
        "predict_ms": "of it, prediction ms",
        "others_cores": "cores used by others",
        "limit_ms": "limit ms",
        "met": "met",
    }
    note = (
        f"One row as `dataframe_split`, {chosen.calls} calls one after the other in one process, through the replica's "
        "ASGI application; a different row at each call. Members: models that the blend averages."
    )
    save("one_row", rows, columns=columns, note=note, documented=len(sys.argv) == 1)
    return 0 if all(row["met"] for row in rows) else 1


def _make(name: str, home: Path, *, budget_s: int) -> pd.DataFrame:
    """Make the variant ``bench.NAME`` and return the rows to be predicted."""
    frame: pd.DataFrame = TABLES[name](as_frame=True).frame
    train = FOLDER / f"{name}.parquet"
    frame.to_parquet(train, index=False)
    with (FOLDER / f"{name}.log").open("w") as log:
        subprocess.run(
            [
                factory_command(), "fit", "--train", str(train), "--target", "target", "--recipe", "tabular-fast",
                "--budget", f"{budget_s}s", "--name", f"bench.{name}",
            ],
            env=clean_environment(home),
            cwd=FOLDER,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )  # fmt: skip
    return frame.drop(columns="target")


async def _measure(
    predictor: Predictor, made: list[tuple[str, pd.DataFrame]], token: str, *, calls: int
) -> list[dict[str, Any]]:
    rows = []
    for name, frame in made:
        bodies = [json.dumps({"dataframe_split": _split(frame.iloc[[i]])}).encode() for i in range(len(frame))]
        path = f"/variants/bench.{name}/invocations"
        total, predict = np.empty(calls), np.empty(calls)
        begun, others = time.perf_counter(), busy_s() - time.process_time()
        for i in range(-WARM_UP, calls):
            started = time.perf_counter()
            headers = await _post(predictor, path, bodies[i % len(bodies)], token)
            if i >= 0:
                total[i] = (time.perf_counter() - started) * 1e3
                predict[i] = _predict_ms(headers)
        others = max(0.0, busy_s() - time.process_time() - others) / (time.perf_counter() - begun)
        median, p99 = np.percentile(total, [50, 99])
        rows.append(
            {
                "data": name,
                "columns": frame.shape[1],
                "calls": calls,
                "median_ms": round(float(median), 3),
                "p99_ms": round(float(p99), 3),
                "predict_ms": round(float(np.median(predict)), 3),
                "others_cores": round(others, 2),
                "limit_ms": LIMIT_MS,
                "met": bool(median < LIMIT_MS),
            }
        )
    return rows


def _split(row: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(row.columns), "data": row.to_numpy().tolist()}


async def _post(predictor: Predictor, path: str, body: bytes, token: str) -> dict[str, str]:
    """Call the application as an ASGI server does; return the answer's headers."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"authorization", f"Bearer {token}".encode()),
    ]
    await predictor({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    if sent[0]["status"] != 200:
        raise RuntimeError(f"{path} answered {sent[0]['status']}: {sent[1]['body'].decode()}")
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def _predict_ms(headers: Mapping[str, str]) -> float:
    """Read the prediction's part of the time from the header ``Server-Timing``."""
    found = re.search(r"predict;dur=([\d.]+)", headers["server-timing"])
    return float(found[1]) if found else float("nan")


def _members(registry: Registry, name: str) -> str:
    """Return how many models of each family the variant's blend averages."""
    families = Counter(m.family for m in read_manifest(registry.local_bundle(f"bench.{name}", 1)).members)
    return ", ".join(f"{n} {family}" for family, n in sorted(families.items()))


if __name__ == "__main__":
    sys.exit(main())
