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
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil

from bench import online_features
from bench.caller import Caller
from bench.claim import bare_parser
from bench.record import WORK, save
from bench.served import WARM_S, Target, one_row, predictor
from bench.serving_around import MlflowServer, RedisServer, two_nodes
from bench.serving_chart import draw_faults
from factory.operate.deployments import MARK, running_predictor
from factory.settings import Settings

FOLDER = WORK / "serving_faults"
A_SECOND, TIMES, PATIENCE_S = 50, 5, 120.0
REPLICAS = 2
DOWN_S = 3.0
"""Until the operator of this bench has started again what nobody else does."""
HARMLESS = ("a replica", "Serve's controller", "the MLflow server")
"""Parts without which calls that come later are answered all the same."""
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
    "in_flight": "failed that were under way",
    "after": "failed that came later",
    "most_after": "of these, of one kill, most",
    "statuses": "what callers saw",
    "outage_s": "from the kill to the last failed call, s: median",
    "outage_worst_s": "worst",
    "p99_ms": "p99 ms of the others",
    "met": "met",
}
NOTE = (
    f"{A_SECOND} calls of one row a second; {REPLICAS} replicas, one where MLflow or Redis is killed. Failed: another "
    "status than 200, or no answer (0); under way: sent before the kill. Redis, MLflow and the node are started again "
    f"after {DOWN_S:g} s, and before the next kill all replicas are there again. Met: calls are answered again, and "
    f"without {', '.join(HARMLESS[:-1])} or {HARMLESS[-1]} none that was sent later has failed."
)


def main() -> int:
    """Kill each part; return 1 where a part was missed."""
    arguments = bare_parser(__doc__, seed="the moments")
    arguments.add_argument("--times", type=int, default=TIMES, metavar="N", help=f"each part (default: {TIMES})")
    chosen = arguments.parse_args()
    how = {"times": chosen.times, "moments": random.Random(chosen.seed)}
    rows = []
    for measured in (_of_the_predictor, _around_it, _of_two_nodes):
        for row in measured(**how):
            print(row, flush=True)
            rows.append(row)
    save("serving_faults", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1, draw=draw_faults)
    return 0 if all(row["met"] for row in rows) else 1


def _of_the_predictor(*, times: int, moments: random.Random) -> Iterator[dict[str, Any]]:
    with predictor(FOLDER / "own", replicas=REPLICAS) as (settings, url, token):
        for part, called in PARTS.items():

            def kill(called: str = called) -> bool:
                if found := _called(settings, called):
                    moments.choice(sorted(found, key=lambda p: p.pid)).kill()
                return bool(found)

            whole = partial(_is_whole, settings)
            yield killed(part, kill, one_row(url, token), ready=whole, times=times, moments=moments)


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
    with two_nodes() as nodes, predictor(FOLDER / "nodes", replicas=REPLICAS) as (settings, url, token):
        yield killed(
            "a node, with one of two replicas",
            nodes.kill,
            one_row(url, token),
            restore=nodes.restore,
            ready=partial(_is_whole, settings),
            times=times,
            moments=moments,
        )


def killed(
    part: str,
    kill: Callable[[], bool],
    target: Target,
    *,
    restore: Callable[[], None] | None = None,
    ready: Callable[[], bool] = lambda: True,
    times: int,
    moments: random.Random,
) -> dict[str, Any]:
    """Kill a part several times under load, and say what callers saw.

    Args:
        part: Its name in the table.
        kill: Kills it; returns whether there was one.
        target: What is called.
        restore: Starts it again where nobody else does.
        ready: Whether what stands in for it is there again; the next kill waits for that.
        times: How often.
        moments: Draws them.
    """
    caller = Caller(target, a_second=A_SECOND)
    kills, back = [], True
    with caller:
        for _ in range(times):
            time.sleep(2.0 + moments.uniform(0.0, 2.0))
            if not kill():
                back = False
                break
            moment = time.monotonic()
            if restore is not None:
                time.sleep(DOWN_S)
                restore()
            back = caller.calm(after=moment, patience_s=PATIENCE_S) and _within(ready, PATIENCE_S) and back
            kills.append(moment)
    failed = [call for call in caller.calls if call[2] != 200]
    spans = list(zip(kills, [*kills[1:], float("inf")], strict=True))
    after = [[sent - kill for sent, _, _ in failed if kill < sent < end] for kill, end in spans]
    outages = sorted(max(each, default=0.0) for each in after)
    in_flight = sum(sent <= kill <= answered for kill in kills for sent, answered, _ in failed)
    statuses = Counter(status for _, _, status in failed)
    took = sorted(answered - sent for sent, answered, status in caller.calls if status == 200)
    n_after = sum(map(len, after))
    return {
        "part": part,
        "times": len(kills),
        "calls": len(caller.calls),
        "in_flight": in_flight,
        "after": n_after,
        "most_after": max(map(len, after), default=0),
        "statuses": ", ".join(f"{n} times {status}" for status, n in sorted(statuses.items())) or "nothing",
        "outage_s": round(outages[len(outages) // 2], 2) if outages else None,
        "outage_worst_s": round(outages[-1], 2) if outages else None,
        "p99_ms": round(1e3 * took[int(0.99 * (len(took) - 1))], 1) if took else None,
        "met": back and len(kills) == times and not (part in HARMLESS and n_after),
    }


def _is_whole(settings: Settings) -> bool:
    """Whether all replicas are there, and answer."""
    ages = [time.time() - p.create_time() for p in _called(settings, PARTS["a replica"])]
    return len(ages) == REPLICAS and min(ages) > WARM_S


def _called(settings: Settings, name: str) -> list[psutil.Process]:
    return [p for p in processes(settings) if name in " ".join(p.cmdline()) or name in p.name()]


def _within(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


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
