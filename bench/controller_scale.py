"""One pass of the controller over 10,000 queued requests of 50 teams takes a second at most, and looking at one 50 ms.

The real controller on the real ledger, SQLite and PostgreSQL; the cluster is
simulated (factory/testing/jobs.py) and always as full as its teams can make
it, jobs end and others start.  As many requests as wait have ended before.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import Table, insert, select

from bench.admission_scale import CAPACITY, N_TEAMS, PRIORITIES
from bench.claim import QUICK, parser, report
from factory.ledger import Ledger, RequestQuery, moments, schema
from factory.operate import controller as controlling
from factory.operate.admission import decide
from factory.operate.controller import AT_ONCE, Controller
from factory.operate.jobs import JobSpec
from factory.settings import Settings
from factory.spec import Actor, Quota, RequestState, VariantRequest
from factory.testing.jobs import FakeJobs, Script
from tests.postgres import server

SIZES = (1_000, 10_000, 100_000)
LIMIT_SIZE = 10_000
PASS_MS, LOOK_MS = 1000.0, 50.0
N_PASSES = 40
BENCH = Actor(who="bench")

COLUMNS = {
    "database": "database",
    "n_queued": "queued",
    "n_running": "running",
    "n_started": "started",
    "pass_ms": "pass ms",
    "worst_pass_ms": "worst pass",
    "worst_filling_ms": "filling",
    "decision_ms": "decision ms",
    "worst_decision_ms": "worst decision",
    "list_ms": "list ms",
    "worst_list_ms": "worst list",
    "detail_ms": "detail ms",
    "worst_detail_ms": "worst detail",
    "limit_ms": "pass limit",
    "met": "met",
}
NOTE = (
    f"{N_TEAMS} teams on {CAPACITY.cpus:g} CPUs and {CAPACITY.gpus:g} GPUs; as many requests have ended as wait. "
    f"{N_PASSES} passes, a second apart, on the full cluster; filling: the worst pass before it was full, with "
    f"{AT_ONCE} jobs to start. A list is a page of 50: of all requests, of a team, of a state, or from the middle; a "
    f"detail is a request with its events and attempts. Limits: the median pass {PASS_MS:g} ms, the median decision, "
    f"list and detail {LOOK_MS:g} ms, up to {LIMIT_SIZE:,} requests; a pass over more of them n log n of what "
    f"{LIMIT_SIZE:,} take. Drivers and cluster cost nothing. One process, wall time."
)


def main() -> int:
    """Time passes over each size on each database; return 1 where one takes too long."""
    arguments = parser(__doc__, budget_s=None)
    chosen = arguments.parse_args()
    sizes = SIZES[:1] if QUICK in sys.argv else SIZES
    rows = []
    for database in ("SQLite", "PostgreSQL"):
        of_limit: float | None = None
        for n in sizes:
            with ledger_url(database) as url:
                if url is None:
                    print("PostgreSQL is not installed here: left out.")
                    continue
                row = {"database": database} | measured(url, n, seed=chosen.seed)
            row["limit_ms"] = PASS_MS if of_limit is None or n <= LIMIT_SIZE else of_limit * growth(n)
            if n == LIMIT_SIZE:
                of_limit = row["pass_ms"]
            looks = (row["decision_ms"], row["list_ms"], row["detail_ms"])
            row["met"] = row["pass_ms"] <= row["limit_ms"] and (n > LIMIT_SIZE or max(looks) <= LOOK_MS)
            rows.append(row)
    report("controller_scale", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


def growth(n: int) -> float:
    """Return by what n log n grows from the size that the limit is for."""
    return n * math.log(n) / (LIMIT_SIZE * math.log(LIMIT_SIZE))


@contextmanager
def ledger_url(database: str, *, durable: bool = False) -> Iterator[str | None]:
    """Yield where an empty ledger may be made; None where this machine has no such database.

    Args:
        database: SQLite or PostgreSQL.
        durable: Whether PostgreSQL flushes to disk at every commit.
    """
    if database == "SQLite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/ledger.db"
    elif (postgres := server(durable=durable)) is None:
        yield None
    else:
        with postgres.database() as name:
            yield postgres.url(name)


def measured(url: str, n: int, *, seed: int) -> dict[str, Any]:
    """Fill a ledger, let the controller fill the cluster, and time what follows."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as home, Ledger.open(url) as ledger:
        jobs = FakeJobs(lambda spec: ending(spec, ledger, rng), capacity=CAPACITY)
        with mock.patch.object(moments, "clock", partial(getattr, jobs, "now")):
            fill(ledger, n, rng, jobs.now)
            controller = Controller(ledger, jobs, Settings(home=Path(home), ledger_url=url))
            filling = Times()
            while filling.of(controller.reconcile)().more:
                jobs.advance(1)
            return passes(controller, jobs) | filling.row("filling") | looks(ledger, rng)


def ending(spec: JobSpec, ledger: Ledger, rng: random.Random) -> Script:
    """Return a job that makes its request after a while."""
    run_s = rng.expovariate(1 / 300) + 5

    def made() -> None:
        ledger.reach(spec.metadata["request"], RequestState.REGISTERED, "Made.")

    return Script(run_s=run_s, steps=((run_s - 1, made),))


@dataclass
class Times:
    """How long calls took, in milliseconds."""

    ms: list[float] = field(default_factory=list)

    def of(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call that is timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            answer = call(*arguments, **named)
            self.ms.append(1000 * (time.perf_counter() - began))
            return answer

        return timed

    def row(self, name: str) -> dict[str, float]:
        """Return median and worst."""
        return {f"{name}_ms": round(statistics.median(self.ms), 2), f"worst_{name}_ms": round(max(self.ms), 2)}


def passes(controller: Controller, jobs: FakeJobs) -> dict[str, Any]:
    """Time passes on a cluster on which jobs end and others start."""
    whole, deciding = Times(), Times()
    n_started = 0
    with mock.patch.object(controlling, "decide", deciding.of(decide)):
        for _ in range(N_PASSES):
            jobs.advance(1)
            n_started += len(whole.of(controller.reconcile)().admitted)
    ledger = controller.ledger
    counts = {"n_queued": len(ledger.waiting()), "n_running": len(ledger.open_attempts()), "n_started": n_started}
    return counts | whole.row("pass") | deciding.row("decision")


def looks(ledger: Ledger, rng: random.Random) -> dict[str, float]:
    """Time what a person looks at: lists and one request."""
    listing, detail = Times(), Times()
    page = listing.of(ledger.request_page)
    middle = page().next
    for n in range(10):
        page()
        page(RequestQuery(team=f"team{n:02d}"))
        page(RequestQuery(states=(RequestState.QUEUED,)), sort="created")
        middle = page(cursor=middle).next
    for queued in rng.sample(ledger.waiting(), 30):
        detail.of(lambda one: (ledger.request(one), ledger.events(one), ledger.attempts(one)))(queued.id)
    return listing.row("list") | detail.row("detail")


def fill(ledger: Ledger, n: int, rng: random.Random, now: datetime) -> None:
    """Put teams into a ledger, n requests that wait and n that have ended; rows like those that requests leave."""
    for number in range(N_TEAMS):
        quota = Quota(cpus=8 if number % 3 == 0 else None, requests=20 if number % 5 == 0 else None)
        ledger.create_team(f"team{number:02d}", quota=quota, by=BENCH)
    order = {"name": "churn", "recipe": "tabular-auto", "dataset": {"path": "customers.parquet", "target": "churned"}}
    ledger.create_request(
        VariantRequest.model_validate({"team": "team00", **order}), request_id="r-first", queued="It waits.", by=BENCH
    )
    request, *events = rows_of(ledger, "r-first")
    waiting: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    noted: list[dict[str, Any]] = []
    attempts: list[dict[str, Any]] = []
    for number in range(2 * n):
        is_over = number < n
        made = now - timedelta(seconds=rng.uniform(0, 40_000) + 50_000 * is_over)
        changed = a_request(rng, f"r-{number:06d}", made)
        (ended if is_over else waiting).append(request | changed)
        noted += [event | {"request_id": changed["id"], "time": made} for event in events]
        if is_over:
            ended[-1]["state"] = RequestState.REGISTERED.value
            attempts.append(an_attempt(changed, made))
    put(ledger, schema.requests, [*ended, *waiting])
    put(ledger, schema.events, noted)
    put(ledger, schema.attempts, attempts)
    with ledger._write() as connection:
        connection.exec_driver_sql("ANALYZE")


def a_request(rng: random.Random, request_id: str, made: datetime) -> dict[str, Any]:
    """Return what is of its own in the row of a request: mostly small, a tenth of them with GPUs."""
    cpus = float(rng.choices((1, 2, 4, 8, 16), (8, 8, 4, 2, 1))[0])
    return {
        "id": request_id,
        "team": f"team{rng.randrange(N_TEAMS):02d}",
        "created": made,
        "updated": made,
        "cpus": cpus,
        "gpus": float(rng.choice((1, 2, 4))) if rng.random() < 0.1 else 0.0,
        "memory_gb": cpus * rng.choice((2, 4)),
        "priority": rng.choice(PRIORITIES),
        "expected_s": rng.choice((60.0, 300.0, 900.0, 3600.0)),
    }


def an_attempt(of: dict[str, Any], made: datetime) -> dict[str, Any]:
    """Return the row of an attempt that made a request."""
    held = {name: of[name] for name in ("team", "cpus", "gpus", "memory_gb")}
    times = {"admitted_at": made, "submitted_at": made, "running_at": made, "ended_at": made + timedelta(minutes=5)}
    name = {"request_id": of["id"], "number": 1, "submission_id": f"{of['id']}-1", "kind": "controller"}
    return held | times | name | {"state": "ended", "outcome": "done", "message": ""}


def rows_of(ledger: Ledger, request_id: str) -> list[dict[str, Any]]:
    """Return the row of a request and those of its events."""
    with ledger._read() as connection:
        one = connection.execute(select(schema.requests).where(schema.requests.c.id == request_id)).one()
        events = connection.execute(select(schema.events).where(schema.events.c.request_id == request_id)).all()
    return [dict(one._mapping), *(dict(event._mapping) for event in events)]


def put(ledger: Ledger, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, some thousands at a time."""
    for first in range(0, len(rows), 5_000):
        with ledger._write() as connection:
            connection.execute(insert(table), rows[first : first + 5_000])


if __name__ == "__main__":
    sys.exit(main())
