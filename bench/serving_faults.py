"""What callers see while something is killed: replica, proxy, Serve's controller, a node, MLflow, Redis.

Calls of one row come 50 a second, at their moments.  A part is killed with
SIGKILL several times, each at a random moment; what follows is counted until five seconds have
passed without a fault.  What nobody else starts again, as Redis, is started
again by the operator (here after three seconds).
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from bench import online_features
from bench.caller import Caller
from bench.claim import bare_parser
from bench.record import WORK, save
from bench.served import Target, one_row, predictor
from bench.serving_around import MlflowServer, RedisServer, two_nodes
from factory.operate.deployments import MARK, running_predictor
from factory.settings import Settings

FOLDER = WORK / "serving_faults"
A_SECOND, TIMES, PATIENCE_S = 50, 5, 120.0
REPLICAS = 2
DOWN_S = 3.0
"""Until the operator of this bench has started again what nobody else does."""
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
    f"{A_SECOND} calls of one row a second; {REPLICAS} replicas, one where MLflow or Redis is killed. Failed: another "
    "status than 200, or no answer; calls that were under way on a killed replica are lost. 0: no answer. Redis, "
    f"MLflow and the node are started again after {DOWN_S:g} s."
)


def main() -> int:
    """Kill each part; return 1 where the predictor did not come back."""
    arguments = bare_parser(__doc__, seed="the moments")
    arguments.add_argument("--times", type=int, default=TIMES, metavar="N", help=f"each part (default: {TIMES})")
    chosen = arguments.parse_args()
    how = {"times": chosen.times, "moments": random.Random(chosen.seed)}
    rows = []
    for measured in (_of_the_predictor, _around_it, _of_two_nodes):
        for row in measured(**how):
            print(row, flush=True)
            rows.append(row)
    save("serving_faults", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    return 0 if all(row["back"] for row in rows) else 1


def _of_the_predictor(*, times: int, moments: random.Random) -> Iterator[dict[str, Any]]:
    with predictor(FOLDER / "own", replicas=REPLICAS) as (settings, url, token):
        for part, called in PARTS.items():

            def kill(called: str = called) -> bool:
                found = [p for p in processes(settings) if called in " ".join(p.cmdline()) or called in p.name()]
                if found:
                    moments.choice(sorted(found, key=lambda p: p.pid)).kill()
                return bool(found)

            yield killed(part, kill, one_row(url, token), times=times, moments=moments)


def _around_it(*, times: int, moments: random.Random) -> Iterator[dict[str, Any]]:
    folder = FOLDER / "around"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store, repository, home = RedisServer(folder), folder / "repository", folder / "home"
    values = online_features.make(repository, home, port=store.port)
    registry = MlflowServer(Settings(home=home), folder)
    os.environ["MLFLOW_TRACKING_URI"] = registry.url
    try:
        with predictor(folder / "predictor", home=home, feature_repo=repository) as (_, url, token):
            calls = online_features.targets(url, token, values)
            for part, server, asked in (
                ("the MLflow server", registry, "columns"),
                ("Redis, for calls with columns", store, "columns"),
                ("Redis, for calls with entities", store, "entity"),
            ):
                yield killed(part, server.kill, calls[asked], restore=server.restore, times=times, moments=moments)
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        registry.kill()
        store.close()


def _of_two_nodes(*, times: int, moments: random.Random) -> Iterator[dict[str, Any]]:
    with two_nodes() as nodes, predictor(FOLDER / "nodes", replicas=REPLICAS) as (_, url, token):
        yield killed(
            "a node, with one of two replicas",
            nodes.kill,
            one_row(url, token),
            restore=nodes.restore,
            times=times,
            moments=moments,
        )


def killed(
    part: str,
    kill: Callable[[], bool],
    target: Target,
    *,
    restore: Callable[[], None] | None = None,
    times: int,
    moments: random.Random,
) -> dict[str, Any]:
    """Kill a part several times under load, and say what callers saw.

    Args:
        part: Its name in the table.
        kill: Kills it; returns whether there was one.
        target: What is called.
        restore: Starts it again where nobody else does.
        times: How often.
        moments: Draws them.
    """
    caller = Caller(target, a_second=A_SECOND)
    kills, back = [], True
    with caller:
        for _ in range(times):
            time.sleep(2.0 + moments.uniform(0.0, 2.0))
            moment = time.monotonic()
            if not kill():
                back = False
                break
            if restore is not None:
                time.sleep(DOWN_S)
                restore()
            back = caller.calm(after=moment, patience_s=PATIENCE_S) and back
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


if __name__ == "__main__":
    sys.exit(main())
