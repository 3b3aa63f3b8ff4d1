"""One row over HTTP: little more than Ray Serve with nothing in it, 1 to 64 clients, and three times too many.

The same closed-loop client (wrk) calls a Serve application that does nothing
and the predictor with a small variant, both behind Serve's HAProxy.  Then the
predictor gets half of the calls that it can answer, from clients who pause.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.claim import bare_parser
from bench.record import ROOT, WORK, save
from bench.served import Target, measured, one_row, predictor, row_of, wrk
from bench.serving_chart import draw_load

FOLDER = WORK / "serving"
CLIENTS = (1, 4, 16, 64)
SECONDS = 15
MOST_P50, MOST_P99 = 2.0, 3.0
"""Times what nothing takes, for one client."""
OVERLOAD = 3
LEAST_GOODPUT = 0.9
START_S = 120.0

COLUMNS = {
    "system": "system",
    "clients": "clients",
    "good_a_second": "answers a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "worst_ms": "worst ms",
    "failed": "refused or failed",
    "of_nothing": "p50, p99 against nothing",
    "met": "met",
}
NOTE = (
    f"wrk, {SECONDS} s each after a warm-up; a client calls again when it has its answer. One replica, which takes 32 "
    f"calls at a time; overload: {OVERLOAD * 64} clients, most of whom are told to come again, and do so at once. "
    "The last row: half as many calls a second as it answered at most, from clients with exponential pauses. Met: "
    f"for one client p50 at most {MOST_P50:g} and p99 at most {MOST_P99:g} times those of nothing; up to 64 clients no "
    f"call fails; in overload {LEAST_GOODPUT:.0%} of the best number of answers a second or more."
)


def main() -> int:
    """Measure both; return 1 where a limit is not kept."""
    arguments = bare_parser(__doc__, quick="two seconds each")
    chosen = arguments.parse_args()
    seconds = 2 if chosen.quick else SECONDS
    with nothing(FOLDER / "nothing") as url:
        target = Target(url, b'{"dataframe_records": [{"x0": 1.0}]}', {})
        idle = measured("nothing", target, FOLDER, clients=(1, 64), seconds=seconds)
    with predictor(FOLDER / "ours") as (_, url, token):
        target = one_row(url, token)
        ours = measured("predictor", target, FOLDER, clients=(*CLIENTS, OVERLOAD * 64), seconds=seconds)
        half = max(row["good_a_second"] for row in ours) / 2
        # Of calls that take a millisecond, nearly all of a client's time is its pause.
        eased = wrk(target, FOLDER, clients=CLIENTS[-1], seconds=seconds, pause_ms=1e3 * CLIENTS[-1] / half)
    judge(idle, ours)
    eased_row = {**row_of("predictor, half of the most", eased, clients=CLIENTS[-1]), "met": not eased.failed}
    rows = [*idle, *ours, eased_row]
    save("serving", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1, draw=draw_load)
    return 0 if all(row["met"] for row in rows) else 1


@contextmanager
def nothing(folder: Path) -> Iterator[str]:
    """Run the application that does nothing; yield its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "port"
    told.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.noop_serve", str(told)], stdout=log, stderr=log, env=environment
        )
    try:
        deadline = time.monotonic() + START_S
        while not told.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.2)
        time.sleep(2.0)
        yield f"http://127.0.0.1:{told.read_text()}/"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def judge(idle: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """Say of our rows which limits they keep."""
    for row in (*idle, *ours):
        row["met"] = True
    first, best = ours[0], max(row["good_a_second"] for row in ours)
    ratios = [first[key] / idle[0][key] for key in ("p50_ms", "p99_ms")]
    first["of_nothing"] = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    first["met"] = ratios[0] <= MOST_P50 and ratios[1] <= MOST_P99
    for row in ours[:-1]:
        row["met"] = bool(row["met"] and not row["failed"])
    ours[-1]["met"] = bool(ours[-1]["good_a_second"] >= LEAST_GOODPUT * best)


if __name__ == "__main__":
    sys.exit(main())
