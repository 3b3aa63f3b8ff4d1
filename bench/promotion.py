"""A promotion under 100 calls a second: no call fails, and all replicas answer by the new version within a second.

Calls come at their moments, whether those before are answered or not.  Every
few seconds another version is made the champion, as ``factory variants
promote`` does it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import aiohttp
import numpy as np

from bench import small_variant
from bench.claim import bare_parser
from bench.record import WORK, save
from bench.served import one_row, predictor
from factory.ledger import Ledger
from factory.operate.inprocess import InProcess
from factory.settings import Settings
from factory.variants.registry import Registry

FOLDER = WORK / "promotion"
A_SECOND, PROMOTIONS, EVERY_S = 100, 20, 3.0
REPLICAS = 2
LIMIT_S = 1.0
NAME = "bench.served"

COLUMNS = {
    "calls": "calls",
    "promotions": "promotions",
    "failed": "failed calls",
    "old_s": "last answer by the old version, s after a promotion: median",
    "old_worst_s": "worst",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "met": "met",
}
NOTE = (
    f"{A_SECOND} calls of one row a second for {PROMOTIONS} promotions, {EVERY_S:g} s apart, to {REPLICAS} replicas; "
    f"the variant's two versions are the same model. Met: no call failed, and no answer by the old version later than "
    f"{LIMIT_S:g} s after a promotion was in the ledger."
)


def main() -> int:
    """Promote under load; return 1 where a call failed, or an answer came late by the old version."""
    arguments = bare_parser(__doc__, quick="three promotions")
    arguments.add_argument("--promotions", type=int, default=PROMOTIONS, metavar="N", help=f"(default: {PROMOTIONS})")
    chosen = arguments.parse_args()
    n = 3 if chosen.quick else chosen.promotions
    with predictor(FOLDER, replicas=REPLICAS) as (settings, url, token):
        second_version(settings)
        row = measured(settings, url, token, n)
    save("promotion", [row], columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    return 0 if row["met"] else 1


def second_version(settings: Settings) -> None:
    """Register the same model once more."""
    registry = Registry(settings)
    with Ledger.open(settings.ledger) as ledger:
        first = ledger.variant(NAME, 1)
        bundle, example = registry.local_bundle(NAME, 1), small_variant.rows(3, seed=0)
        # Of a request of its own: what one has registered is not registered again.
        request_id = ledger.create_request(ledger.request(first.request_id).request).id
        wanted = first.model_copy(update={"version": 0, "request_id": request_id})
        made = registry.register(bundle, variant=wanted, example=example, metrics={})
        ledger.record_variant(made)


def measured(settings: Settings, url: str, token: str, n: int) -> dict[str, Any]:
    """Call and promote."""
    moments: list[tuple[float, float, int]] = []
    over = threading.Event()

    def promote() -> None:
        with Ledger.open(settings.ledger) as ledger:
            factory = InProcess(ledger, settings)
            for i in range(n):
                if over.wait(EVERY_S):
                    return
                version, began = 2 if i % 2 == 0 else 1, time.monotonic()
                factory.promote(f"{NAME}/{version}", why="Measured.", override=True)
                moments.append((began, time.monotonic(), version))
            over.wait(EVERY_S)

    promoting = threading.Thread(target=promote)
    promoting.start()
    try:
        calls = asyncio.run(_called(url, token, promoting))
    finally:
        over.set()
        promoting.join()
    ok = [(sent, answered, version) for sent, answered, status, version in calls if status == 200]
    lags = []
    for i, (_, moment, version) in enumerate(moments):
        # The next promotion is followed as soon as the ledger has it, which is before it has ended.
        until = moments[i + 1][0] if i + 1 < len(moments) else float("inf")
        late = [sent - moment for sent, _, by in ok if moment <= sent < until and by != version]
        lags.append(max(late, default=0.0))
    took_ms = [1e3 * (answered - sent) for sent, answered, _ in ok]
    failed = len(calls) - len(ok)
    return {
        "calls": len(calls),
        "promotions": len(moments),
        "failed": failed,
        "old_s": round(float(np.median(lags)), 3),
        "old_worst_s": round(max(lags), 3),
        "p50_ms": round(float(np.percentile(took_ms, 50)), 2),
        "p99_ms": round(float(np.percentile(took_ms, 99)), 2),
        "met": failed == 0 and max(lags) <= LIMIT_S and len(moments) == n,
        "lags": [round(lag, 3) for lag in lags],
    }


async def _called(url: str, token: str, while_: threading.Thread) -> list[tuple[float, float, int, int]]:
    """Call at the moments until the thread has ended; return when each was sent and answered, status and version."""
    target = one_row(url, token)
    calls: list[tuple[float, float, int, int]] = []
    headers = {**target.headers, "content-type": "application/json"}

    async def call(session: aiohttp.ClientSession) -> None:
        sent = time.monotonic()
        try:
            async with session.post(target.url, data=target.body) as answer:
                await answer.read()
                version = int(answer.headers.get("x-variant", "/0").rpartition("/")[2])
                calls.append((sent, time.monotonic(), answer.status, version))
        except aiohttp.ClientError:
            calls.append((sent, time.monotonic(), 0, 0))

    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        at = time.monotonic()
        while while_.is_alive():
            group.create_task(call(session))
            at += 1 / A_SECOND
            await asyncio.sleep(max(0.0, at - time.monotonic()))
    return calls


if __name__ == "__main__":
    sys.exit(main())
