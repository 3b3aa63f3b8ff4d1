"""What measurements of serving share: a predictor with a small variant, and wrk, which calls it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import small_variant
from factory.ledger import Ledger
from factory.operate.deployments import start_predictor, stop_predictor
from factory.settings import Settings
from factory.spec import Actor

BY = Actor(who="bench")
_POST = """
wrk.method = "POST"
wrk.body = {body}
wrk.headers["Content-Type"] = "application/json"
{headers}
"""
_PAUSE = """
function delay() return math.floor(0.5 - {mean} * math.log(1 - math.random())) end
"""
WARM_S = 15.0
"""In which a new replica imports MLflow, Feast and the frameworks; it answers meanwhile, but not evenly."""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Target:
    """Where calls go.

    Attributes:
        url: Of the route.
        body: Sent each time.
        headers: Sent each time.
    """

    url: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Load:
    """What a number of calls came to.

    Attributes:
        a_second: Answers a second.
        good_a_second: Of them with a 2xx.
        p50_ms: Median; ``p99_ms`` and ``worst_ms`` likewise.
        failed: Answers that were no 2xx, and calls without an answer.
    """

    a_second: float
    good_a_second: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    failed: int


@contextmanager
def predictor(
    folder: Path, *, replicas: int = 1, home: Path | None = None, **settings: Any
) -> Iterator[tuple[Settings, str, str]]:
    """Run a predictor with a small variant; yield its settings, its URL and a token.

    Args:
        folder: Emptied, and used for the home.
        replicas: Of the predictor.
        home: That has the variant ``bench.served`` already.
        settings: Other settings.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = Settings(home=home or folder / "home", serve_port=0, serve_replicas=replicas, **settings)
    if home is None:
        small_variant.make_variant(chosen.home, folder, name="served")
    with Ledger.open(chosen.ledger) as ledger:
        token = ledger.issue_token("bench", team=None, scopes=("predict",), by=BY).secret
    running = start_predictor(chosen)
    try:
        time.sleep(WARM_S)
        yield chosen, running.url, token
    finally:
        stop_predictor(chosen)


def one_row(url: str, token: str, name: str = "bench.served") -> Target:
    """Return the call of one row."""
    record = {column: 0.25 * i - 1 for i, column in enumerate(small_variant.NAMES)}
    body = json.dumps({"dataframe_records": [record]}).encode()
    return Target(f"{url}/variants/{name}/invocations", body, {"Authorization": f"Bearer {token}"})


def measured(
    system: str, target: Target, folder: Path, *, clients: Sequence[int], seconds: int
) -> list[dict[str, Any]]:
    """Return a row for each number of clients, after a warm-up.

    Args:
        system: Name of what answers.
        target: Where calls go.
        folder: For wrk's script.
        clients: Numbers of them.
        seconds: Of each run.
    """
    wrk(target, folder, clients=1, seconds=3)
    rows = []
    for n in clients:
        rows.append(row_of(system, wrk(target, folder, clients=n, seconds=seconds), clients=n))
    return rows


def row_of(system: str, load: Load, *, clients: int) -> dict[str, Any]:
    """Return a row of a table, and print it."""
    row = {"system": system, "clients": clients, **{k: round(v, 2) for k, v in asdict(load).items()}}
    print(row, flush=True)
    return row


def wrk(target: Target, folder: Path, *, clients: int, seconds: int, pause_ms: float = 0.0) -> Load:
    """Let wrk call a target with so many clients, each of which waits for its answer before it calls again.

    Args:
        target: What is called.
        folder: For wrk's script.
        clients: So many.
        seconds: For so long.
        pause_ms: Mean of the time between an answer and a client's next call, exponentially distributed; 0 for none.

    Raises:
        SystemExit: wrk is not installed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk).")
    script = folder / "post.lua"
    headers = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in target.headers.items())
    pause = _PAUSE.format(mean=pause_ms) if pause_ms else ""
    script.write_text(_POST.format(body=json.dumps(target.body.decode()), headers=headers) + pause)
    threads = min(clients, 2)
    command = [program, f"-t{threads}", f"-c{clients}", f"-d{seconds}s", "--latency", "--timeout", "10s"]
    done = subprocess.run([*command, "-s", str(script), target.url], capture_output=True, text=True, check=True)
    return read_wrk(done.stdout)


def read_wrk(text: str) -> Load:
    """Read what wrk prints."""

    def ms(pattern: str) -> float:
        found = re.search(pattern + r"\s+([\d.]+)(us|ms|s)", text)
        return float(found[1]) * _UNITS[found[2]] if found else float("nan")

    total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = (int(bad[1]) if bad else 0) + (sum(map(int, errors.groups())) if errors else 0)
    seconds = float(total[2]) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[total[3]] if total else 1.0
    good = int(total[1]) - (int(bad[1]) if bad else 0) if total else 0
    worst = re.search(r"Latency\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", text)
    return Load(
        a_second=float(rate[1]) if rate else 0.0,
        good_a_second=good / seconds,
        p50_ms=ms(r"50%"),
        p99_ms=ms(r"99%"),
        worst_ms=float(worst[1]) * _UNITS[worst[2]] if worst else float("nan"),
        failed=failed,
    )
