"""What a caller sees while parts of the predictor are killed: replica, proxy, Serve's controller, each several times.

Calls of one row come 50 a second, at their moments.  A part is killed with
SIGKILL at a random moment; what follows is counted until five seconds have
passed without a fault.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from typing import Any

import aiohttp
import psutil

from bench.claim import bare_parser
from bench.record import WORK, save
from bench.served import Target, one_row, predictor
from factory.operate.deployments import MARK, running_predictor
from factory.settings import Settings

FOLDER = WORK / "serving_faults"
A_SECOND, TIMES, CALM_S, PATIENCE_S = 50, 5, 5.0, 120.0
REPLICAS = 2
PARTS = {
    "a replica": "ServeReplica",
    "the proxy (HAProxy)": "haproxy",
    "its actor": "HAProxyManager",
    "Serve's controller": "ServeController",
}
"""What is killed, by what its process is called."""

COLUMNS = {
    "part": "killed",
    "times": "times",
    "calls": "calls",
    "failed": "failed calls",
    "most_failed": "of one kill, most",
    "statuses": "what callers saw",
    "outage_s": "from the kill to the last failed call, s: median",
    "outage_worst_s": "worst",
    "p99_ms": "p99 ms of the others",
}
NOTE = (
    f"{REPLICAS} replicas, {A_SECOND} calls of one row a second. Failed: another status than 200, or no answer; calls "
    "that were under way on a killed replica are lost. 0: no answer."
)


def main() -> int:
    """Kill each part; return 1 where the predictor did not come back."""
    arguments = bare_parser(__doc__, seed="the moments")
    arguments.add_argument("--times", type=int, default=TIMES, metavar="N", help=f"each part (default: {TIMES})")
    chosen = arguments.parse_args()
    moments = random.Random(chosen.seed)
    rows = []
    with predictor(FOLDER, replicas=REPLICAS) as (settings, url, token):
        target = one_row(url, token)
        for part, called in PARTS.items():
            rows.append(killed(part, called, settings, target, times=chosen.times, moments=moments))
            print(rows[-1], flush=True)
    save("serving_faults", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    return 0 if all(row["back"] for row in rows) else 1


def killed(
    part: str, called: str, settings: Settings, target: Target, *, times: int, moments: random.Random
) -> dict[str, Any]:
    """Kill a part several times under load, and say what callers saw."""
    caller = Caller(target)
    kills, back = [], True
    with caller:
        for _ in range(times):
            time.sleep(2.0 + moments.uniform(0.0, 2.0))
            found = [p for p in processes(settings) if called in " ".join(p.cmdline()) or called in p.name()]
            if not found:
                back = False
                break
            moment = time.monotonic()
            moments.choice(sorted(found, key=lambda p: p.pid)).kill()
            back = caller.calm(after=moment) and back
            kills.append(moment)
    calls = caller.calls
    failed = [(sent, status) for sent, _, status in calls if status != 200]
    ends = [*kills[1:], float("inf")]
    outages = [
        max((sent - kill for sent, _ in failed if kill <= sent < end), default=0.0)
        for kill, end in zip(kills, ends, strict=True)
    ]
    counts = [sum(kill - 1 <= sent < end for sent, _ in failed) for kill, end in zip(kills, ends, strict=True)]
    statuses: dict[int, int] = {}
    for _, status in failed:
        statuses[status] = statuses.get(status, 0) + 1
    took = sorted(answered - sent for sent, answered, status in calls if status == 200)
    return {
        "part": part,
        "times": len(kills),
        "calls": len(calls),
        "failed": len(failed),
        "most_failed": max(counts, default=0),
        "statuses": ", ".join(f"{n} times {status}" for status, n in sorted(statuses.items())) or "nothing",
        "outage_s": round(sorted(outages)[len(outages) // 2], 2) if outages else None,
        "outage_worst_s": round(max(outages), 2) if outages else None,
        "p99_ms": round(1e3 * took[int(0.99 * (len(took) - 1))], 1) if took else None,
        "back": back,
    }


def processes(settings: Settings) -> list[psutil.Process]:
    """Return the processes of the predictor."""
    running = running_predictor(settings)
    if running is None:
        return []
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == running.mark and process.status() != psutil.STATUS_ZOMBIE:
                process.cmdline()
                found.append(process)
        except psutil.Error:
            continue
    return found


class Caller:
    """Calls at fixed moments in a thread of its own, whether calls before are answered or not.

    Args:
        target: What is called.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._over = threading.Event()
        self.calls: list[tuple[float, float, int]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def calm(self, *, after: float) -> bool:
        """Wait until no call that was sent for a while has failed; return whether that came."""
        while time.monotonic() - after < PATIENCE_S:
            time.sleep(0.2)
            since = max(after, time.monotonic() - CALM_S)
            lately = [status for sent, _, status in list(self.calls) if sent >= since]
            if time.monotonic() - after > CALM_S and lately and all(status == 200 for status in lately):
                return True
        return False

    async def _run(self) -> None:
        headers = {**self._target.headers, "content-type": "application/json"}
        patience = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=patience) as session,
            asyncio.TaskGroup() as group,
        ):
            at = time.monotonic()
            while not self._over.is_set():
                group.create_task(self._call(session))
                at += 1 / A_SECOND
                await asyncio.sleep(max(0.0, at - time.monotonic()))

    async def _call(self, session: aiohttp.ClientSession) -> None:
        sent = time.monotonic()
        try:
            async with session.post(self._target.url, data=self._target.body) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        self.calls.append((sent, time.monotonic(), status))


if __name__ == "__main__":
    sys.exit(main())
