"""Twenty submissions a second on SQLite, and fifty on PostgreSQL: 99 % of them are answered within 50 ms.

The portal as ``factory up`` starts it, in a process of its own, with 10,000
requests stored; half of them were made and tell quotes what to expect.  A
submission is validated, quoted and stored.  It is sent when it is due, whether
or not those before were answered (an open loop), and its time counts from then.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
from aiohttp import web
from sqlalchemy import select, update

from bench.admission_scale import N_TEAMS
from bench.claim import parser, report
from bench.controller_scale import BENCH, fill, ledger_url, put, rows_of
from bench.record import ROOT, clean_environment
from factory.data.dataset import from_frame
from factory.data.traits import traits_of
from factory.ledger import Ledger, moments, schema
from factory.ledger.records import document_json
from factory.operate.ports import free_port
from factory.spec import FileDataset, RequestState, Variant

RATES = {"SQLite": 20, "PostgreSQL": 50}
"""Submissions a second."""
N_STORED, N_LISTENERS = 10_000, 100
SUBMIT_MS, PAGE_MS, EVENT_MS = 50.0, 50.0, 1000.0
START_S, WARM_S = 120.0, 5
TARGET = "churned"

COLUMNS = {
    "database": "database",
    "what": "what",
    "n_calls": "calls",
    "n_failed": "failed",
    "median_ms": "median ms",
    "p99_ms": "99 % ms",
    "worst_ms": "worst ms",
    "limit_ms": "limit ms",
    "met": "met",
}
NOTE = (
    f"{N_STORED:,} requests of {N_TEAMS} teams are stored before. Submissions come at a steady rate over connections "
    "that stay open, by one token of each team in turn, each with an idempotency key, for a table that the team has "
    "uploaded; their time is from when one was due to its whole answer. Pages one after the other: lists of 50 (of all "
    "of a team, of a state, from the middle), a request, its events. An event: from before it is written until each of "
    f"{N_LISTENERS} listeners has it. Limits are for 99 %, of events for the last listener; nothing may fail. The "
    "cluster is one that answers at once and runs nothing. Client, portal and database share the machine; PostgreSQL "
    "flushes to disk at every commit, as SQLite does."
)


def main() -> int:
    """Measure on each database; return 1 where a limit is exceeded."""
    quick = parser(__doc__, budget_s=None).parse_args().quick
    n_stored, for_s, n_rounds = (500, 5, 3) if quick else (N_STORED, 60, 20)
    rows = []
    for database, a_second in RATES.items():
        with ledger_url(database, durable=True) as url, tempfile.TemporaryDirectory() as home:
            if url is None:
                print("PostgreSQL is not installed here: left out.")
                continue
            measure = measured(url, Path(home), n_stored=n_stored, a_second=a_second, for_s=for_s, n_rounds=n_rounds)
            rows += [{"database": database} | row for row in asyncio.run(measure)]
    report("submit", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


async def measured(
    url: str, home: Path, *, n_stored: int, a_second: int, for_s: int, n_rounds: int
) -> list[dict[str, Any]]:
    """Fill a ledger, start a portal on it, and measure one thing after the other."""
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(url))
        store(ledger, n_stored)
        cluster = await stack.enter_async_context(idle_cluster())
        address = (await stack.enter_async_context(portal(home, url, cluster))).address
        teams = [await stack.enter_async_context(caller(ledger, address, f"team{n:02d}")) for n in range(N_TEAMS)]
        orders = [order(team, await team.upload()) for team in teams]
        await submissions(teams, orders, a_second=a_second, for_s=WARM_S)  # imports, connections, statements
        submitted = await submissions(teams, orders, a_second=a_second, for_s=for_s)
        pages = await looks(teams, n_rounds=n_rounds)
        events = await heard(teams[0], ledger, n_rounds=n_rounds)
    return [
        submitted.row(f"submissions, {a_second} a second", limit_ms=SUBMIT_MS),
        pages.row("pages", limit_ms=PAGE_MS),
        events.row(f"an event, {N_LISTENERS} listeners", limit_ms=EVENT_MS, part=1.0),
    ]


@dataclass
class Times:
    """How long calls took, in milliseconds, and how many failed."""

    ms: list[float] = field(default_factory=list)
    n_failed: int = 0

    def row(self, what: str, *, limit_ms: float, part: float = 0.99) -> dict[str, Any]:
        """Return the row: met where that part of the calls kept the limit, and none failed."""
        ordered = sorted(self.ms) or [math.inf]

        def within(share: float) -> float:
            return ordered[math.ceil(share * len(ordered)) - 1]

        return {
            "what": what,
            "n_calls": len(self.ms) + self.n_failed,
            "n_failed": self.n_failed,
            "median_ms": round(statistics.median(ordered), 1),
            f"p{100 * min(part, 0.99):.0f}_ms": round(within(min(part, 0.99)), 1),
            "worst_ms": round(ordered[-1], 1),
            "limit_ms": limit_ms,
            "met": within(part) <= limit_ms and not self.n_failed,
        }


# --- what is measured ---------------------------------------------------------


@dataclass(frozen=True)
class Team:
    """Calls the portal with a team's token."""

    name: str
    session: aiohttp.ClientSession

    async def upload(self) -> str:
        """Upload the table; return its digest."""
        content = customers().to_csv(index=False).encode()
        query = {"filename": "customers.csv"}
        async with self.session.post("/api/v1/datasets", params=query, data=content) as answer:
            answer.raise_for_status()
            digest: str = (await answer.json())["dataset"]["digest"]
            return digest

    async def timed(self, times: Times, method: str, path: str, *, since: float | None = None, **sent: Any) -> Any:
        """Make a call and keep its time; return the answer's document, None where it failed."""
        since = time.perf_counter() if since is None else since
        try:
            async with self.session.request(method, path, **sent) as answer:
                document = await answer.json()
                answer.raise_for_status()
        except (aiohttp.ClientError, TimeoutError) as error:
            print(f"{method} {path}: {error}", file=sys.stderr)
            times.n_failed += 1
            return None
        times.ms.append(1000 * (time.perf_counter() - since))
        return document


async def submissions(teams: Sequence[Team], orders: Sequence[Any], *, a_second: int, for_s: int) -> Times:
    """Submit at a steady rate, each when it is due; return once all are answered."""
    times = Times()
    first = time.perf_counter() + 0.1
    calls = []
    for number in range(a_second * for_s):
        due = first + number / a_second
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        key = {"idempotency-key": f"{first}-{number}"}
        which = number % len(teams)
        sent = teams[which].timed(times, "POST", "/api/v1/requests", since=due, json=orders[which], headers=key)
        calls.append(asyncio.create_task(sent))
    await asyncio.gather(*calls)
    return times


async def looks(teams: Sequence[Team], *, n_rounds: int) -> Times:
    """Look at lists and requests, one after the other."""
    times = Times()
    path = "/api/v1/requests"
    for team in itertools.islice(itertools.cycle(teams), 2 * n_rounds):
        found = await team.timed(times, "GET", path)
        await team.timed(times, "GET", path, params={"state": RequestState.QUEUED.value, "sort": "created"})
        await team.timed(times, "GET", path, params={"cursor": found["next"]} if found["next"] else {})
        one = found["items"][-1]["id"]
        await team.timed(times, "GET", f"{path}/{one}")
        await team.timed(times, "GET", f"{path}/{one}/events", headers={"accept": "application/json"})
    return times


async def heard(team: Team, ledger: Ledger, *, n_rounds: int) -> Times:
    """Write events of a request that many listen to; return how long each took to each of them."""
    times = Times()
    one = (await team.timed(Times(), "GET", "/api/v1/requests"))["items"][0]["id"]
    news: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    async def listen() -> None:
        async with team.session.get(f"/api/v1/requests/{one}/events", timeout=aiohttp.ClientTimeout()) as answer:
            async for line in answer.content:
                if line.startswith(b"data:"):
                    await news.put((line.decode(), time.perf_counter()))

    listening = [asyncio.create_task(listen()) for _ in range(N_LISTENERS)]
    try:
        known = 2  # that it was received, and that it waits
        for _ in range(known * N_LISTENERS):
            await asyncio.wait_for(news.get(), START_S)
        for number in range(n_rounds):
            await asyncio.sleep(random.Random(number).uniform(0.5, 1.5))
            began = time.perf_counter()
            await asyncio.to_thread(ledger.note, one, "bench", f"Round {number}.")
            for _ in range(N_LISTENERS):
                line, moment = await asyncio.wait_for(news.get(), START_S)
                times.n_failed += f"Round {number}." not in line
                times.ms.append(1000 * (moment - began))
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    return times


# --- what it stands on --------------------------------------------------------


@asynccontextmanager
async def caller(ledger: Ledger, address: str, team: str) -> AsyncIterator[Team]:
    """Yield a team that calls the portal over connections that stay open."""
    secret = ledger.issue_token("bench", team=team, scopes=("read", "submit"), by=BENCH).secret
    headers = {"authorization": f"Bearer {secret}"}
    # The portal closes connections that were not used for 5 s.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    async with aiohttp.ClientSession(address, headers=headers, connector=connector) as session:
        yield Team(team, session)


@asynccontextmanager
async def idle_cluster() -> AsyncIterator[int]:
    """Yield the port of what answers as Ray's dashboard does when it is asked for its nodes."""

    async def nodes(_: web.Request) -> web.Response:
        node = {"state": "ALIVE", "resources_total": {"CPU": 64.0, "memory": 256e9}}
        return web.json_response({"data": {"result": {"result": [node]}}})

    app = web.Application()
    app.router.add_get("/api/v0/nodes", nodes)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port(0)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Running:
    """A portal that answers."""

    address: str
    pid: int


@asynccontextmanager
async def portal(home: Path, url: str, cluster: int, **more: str) -> AsyncIterator[Running]:
    """Start a portal as the stack does, with more in its environment; yield it once it is ready."""
    port = free_port(0)
    ours = {"FACTORY_LEDGER_URL": url, "FACTORY_PORTAL_PORT": str(port), "FACTORY_DASHBOARD_PORT": str(cluster)}
    command = [sys.executable, "-m", "serve.portal"]
    with (home / "portal.log").open("wb") as log:
        process = subprocess.Popen(command, env=clean_environment(home) | ours | more, cwd=ROOT, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + START_S
        async with aiohttp.ClientSession(address) as session:
            while not await _answers(session):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"The portal does not answer:\n{(home / 'portal.log').read_text()[-2000:]}")
                await asyncio.sleep(0.2)
        yield Running(address, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


async def _answers(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/healthz") as answer:
            return answer.ok
    except aiohttp.ClientError:
        return False


def order(team: Team, upload: str) -> dict[str, Any]:
    """Return a team's request for the table that it has uploaded."""
    dataset = {"upload": upload, "target": TARGET}
    name = {"team": team.name, "name": "churn", "recipe": "tabular-auto"}
    return name | {"dataset": dataset, "budget": {"time_s": 60}, "priority": "high"}


def customers() -> pd.DataFrame:
    """Return the table: 2,000 rows."""
    rng = np.random.default_rng(0)
    numbers = {f"x{n}": rng.normal(size=2_000).round(3) for n in range(10)}
    return pd.DataFrame(numbers | {"city": rng.choice(["Bern", "Genf"], 2_000), TARGET: rng.integers(0, 2, 2_000)})


def store(ledger: Ledger, n: int, *, n_names: int = 1) -> None:
    """Put n requests of many teams into a ledger: half of them wait, half were made, with what quotes learn from.

    Args:
        ledger: An empty one.
        n: Requests.
        n_names: Of the variants of a team.
    """
    fill(ledger, n // 2, random.Random(0), moments.now())
    of = schema.requests.c
    made = (of.state == RequestState.REGISTERED.value, of.id != "r-first")
    with ledger._write() as connection:
        connection.execute(update(schema.requests).where(*made).values(attempt=1))
        rows = connection.execute(select(of.id, of.team, of.created, of.variant).where(*made)).all()
    traits = document_json(traits_of(from_frame(customers(), FileDataset(path="customers.csv", target=TARGET))))
    _, event = rows_of(ledger, "r-first")[:2]
    steps = ((RequestState.PREPARING, 0), (RequestState.REGISTERED, 55))
    events, profiles, variants = [], [], []
    for version, (request_id, team, created, first) in enumerate(rows, start=1):
        name = first if n_names == 1 else f"{team}.churn-{version % n_names:02d}"
        at = {"request_id": request_id}
        profiles.append(at | {"task": "binary", "recorded": created, "document": traits})
        variants.append(at | _variant(name, version, request_id) | {"created": created, "team": team})
        for sequence, (state, after_s) in enumerate(steps, start=3):
            moment = {"sequence": sequence, "state": state.value, "time": created + timedelta(seconds=after_s)}
            events.append(event | at | moment)
    put(ledger, schema.profiles, profiles)
    put(ledger, schema.variants, variants)
    put(ledger, schema.events, events)


def _variant(name: str, version: int, request_id: str) -> dict[str, Any]:
    digests = {f"{what}_digest": "a" * 64 for what in ("recipe", "dataset", "bundle")}
    scores = {"metric": "roc_auc", "score": 0.8, "score_low": 0.78, "score_high": 0.82, "cost_s": 30.0}
    made = Variant(
        name=name, version=version, request_id=request_id, task="binary", recipe="tabular-auto", **scores, **digests
    )
    return {"name": name, "version": version, "state": made.state, "document": document_json(made)}


if __name__ == "__main__":
    sys.exit(main())
