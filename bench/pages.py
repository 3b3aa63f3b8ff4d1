"""Pages are made within 100 ms with 10,000 requests stored, and fifty browsers see a trial within a second.

The portal as ``factory up`` starts it, in a process of its own, on SQLite, with
10,000 requests of 50 teams and 1,000 variants.  Each page is got as a browser
gets it, by a team's admin and by an operator, who sees all teams.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.claim import parser, report
from bench.controller_scale import BENCH, ledger_url
from bench.submit import COLUMNS, N_STORED, START_S, Times, customers, idle_cluster, portal, store
from factory.ledger import Ledger, RequestQuery, VariantQuery
from factory.spec import RequestState, Trial

N_NAMES, N_TRIALS = 20, 300
"""Names of variants of each team; trials of the request that is looked at."""
N_LISTENERS, TRIALS_A_SECOND = 50, 5
PAGE_MS, EVENT_MS, CORES = 100.0, 1000.0, 1.0
TEAM = "team00"
UNBOUNDED = {"FACTORY_REQUESTS_A_MINUTE": "1000000"}

NOTE = (
    f"{N_STORED:,} requests of 50 teams and {50 * N_NAMES:,} variants are stored before; the request that is looked at "
    f"has {N_TRIALS} trials. A page: from the call until the whole of it is there, one after the other, without what "
    "it loads afterwards (style, scripts and charts, which browsers keep). Limit: of each page, 95 % of the calls. A "
    f"trial: from before it is written until each of {N_LISTENERS} listeners has it, {TRIALS_A_SECOND} of them a "
    "second; the last listener counts. Client and portal share the machine."
)


def main() -> int:
    """Measure; return 1 where a limit is exceeded."""
    quick = parser(__doc__, budget_s=None).parse_args().quick
    n_stored, n_rounds, for_s = (500, 3, 3) if quick else (N_STORED, 40, 30)
    with ledger_url("SQLite") as url, tempfile.TemporaryDirectory() as home:
        assert url is not None
        rows = asyncio.run(measured(url, Path(home), n_stored=n_stored, n_rounds=n_rounds, for_s=for_s))
    columns = {"what": "what", "who": "who"} | {k: v for k, v in COLUMNS.items() if k not in ("database", "what")}
    columns = {"p95_ms" if name == "p99_ms" else name: title.replace("99 %", "95 %") for name, title in columns.items()}
    report("pages", rows, columns=columns, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


async def measured(url: str, home: Path, *, n_stored: int, n_rounds: int, for_s: int) -> list[dict[str, Any]]:
    """Fill a ledger, start a portal on it, get each page, and listen."""
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(url))
        store(ledger, n_stored, n_names=N_NAMES)
        cluster = await stack.enter_async_context(idle_cluster())
        running = await stack.enter_async_context(portal(home, url, cluster, **UNBOUNDED))
        rows = []
        for who, team in (("a team's admin", TEAM), ("an operator", None)):
            secret = ledger.issue_token("bench", team=team, scopes=("admin",), by=BENCH).secret
            visitor = await stack.enter_async_context(visiting(running.address, secret))
            paths = await places(visitor, ledger)
            await timed(visitor, paths, n_rounds=1)  # imports, templates, statements
            found = await timed(visitor, paths, n_rounds=n_rounds)
            rows += [{"who": who} | times.row(name, limit_ms=PAGE_MS, part=0.95) for name, times in found.items()]
            if team is not None:
                heard = await listened(visitor, ledger, psutil.Process(running.pid), for_s=for_s)
        return [*rows, {"who": f"{N_LISTENERS} browsers"} | heard]


@dataclass(frozen=True)
class Visitor:
    """A browser that has signed in."""

    session: aiohttp.ClientSession

    async def page(self, path: str) -> str:
        """Get a page."""
        async with self.session.get(path) as answer:
            text = await answer.text()
            answer.raise_for_status()
            return text


@asynccontextmanager
async def visiting(address: str, secret: str) -> AsyncIterator[Visitor]:
    """Yield a browser that has signed in with a token."""
    jar = aiohttp.CookieJar(unsafe=True)  # of an address without a name
    headers = {"accept": "text/html", "origin": address}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    async with aiohttp.ClientSession(address, headers=headers, cookie_jar=jar, connector=connector) as session:
        async with session.post("/sign-in", data={"token": secret, "next": "/"}) as answer:
            answer.raise_for_status()
            assert answer.url.path == "/", "it is signed in"
        yield Visitor(session)


async def places(visitor: Visitor, ledger: Ledger) -> dict[str, str]:
    """Return name → path of the pages, about things that there are; bring a table, and give a request its trials."""
    content = customers().to_csv(index=False).encode()
    csrf = (await visitor.page(f"/new?team={TEAM}")).split('data-csrf="')[1].split('"')[0]
    query, headers = {"filename": "customers.csv", "team": TEAM}, {"x-csrf-token": csrf}
    async with visitor.session.post("/api/v1/datasets", params=query, data=content, headers=headers) as answer:
        digest = (await answer.json())["dataset"]["digest"]
    (made,) = ledger.request_page(RequestQuery(team=TEAM, states=(RequestState.REGISTERED,)), limit=1).items
    if not ledger.trials(made.id):
        for number in range(N_TRIALS):
            ledger.record_trial(made.id, a_trial(number))
    own = ledger.variant_page(VariantQuery(team=TEAM), limit=1).items[0]
    variant = f"/variants/{own.name}"
    return {
        "home": "/",
        "requests": "/requests",
        "request": f"/requests/{made.id}",
        "queue": "/queue",
        "variants": "/variants",
        "variants, by name": "/variants?like=churn&sort=name&alias=champion",
        "variant": variant,
        "version": f"{variant}/versions/{own.version}",
        "compare": f"{variant}/compare?a={own.version}&b={own.version}",
        "try": f"{variant}/versions/{own.version}/try",
        "deployments": "/deployments",
        "deployment": f"/deployments/{own.name}",
        "recipes": "/recipes",
        "recipe": "/recipes/tabular-auto",
        "datasets": "/datasets",
        "dataset": f"/datasets/{digest}",
        "features": "/features",
        "feature service": "/features/country_v1",
        "new variant": f"/new?team={TEAM}",
        "form": f"/new/form?dataset={digest}&team={TEAM}",
        "team": f"/team?name={TEAM}",
        "teams": "/team",
        "changes": "/audit",
        "account": "/account",
        "sign-in": "/sign-in",
    }


async def timed(visitor: Visitor, paths: dict[str, str], *, n_rounds: int) -> dict[str, Times]:
    """Get each page some times."""
    found = {name: Times() for name in paths}
    for _ in range(n_rounds):
        for name, path in paths.items():
            began = time.perf_counter()
            try:
                await visitor.page(path)
            except aiohttp.ClientError as error:
                print(f"{path}: {error}", file=sys.stderr)
                found[name].n_failed += 1
            else:
                found[name].ms.append(1000 * (time.perf_counter() - began))
    return found


async def listened(visitor: Visitor, ledger: Ledger, process: psutil.Process, *, for_s: int) -> dict[str, Any]:
    """Record trials of a request that many look at; return how long each took to each of them, and the portal's CPU."""
    times = Times()
    (waiting,) = ledger.request_page(RequestQuery(team=TEAM, states=(RequestState.QUEUED,)), limit=1).items
    began: dict[int, float] = {}
    news: asyncio.Queue[float] = asyncio.Queue()
    ready = [asyncio.Event() for _ in range(N_LISTENERS)]

    async def listen(at: asyncio.Event) -> None:
        path = f"/api/v1/requests/{waiting.id}/events"
        sent: Any = {"params": {"trials": "true"}, "headers": {"accept": "text/event-stream"}}
        async with visitor.session.get(path, timeout=aiohttp.ClientTimeout(), **sent) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                moment = time.perf_counter()
                at.set()  # it has heard of what was before
                told = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if "number" in told and "family" in told:
                    await news.put(1000 * (moment - began[told["number"]]))

    listening = [asyncio.create_task(listen(at)) for at in ready]
    try:
        await asyncio.wait_for(asyncio.gather(*(at.wait() for at in ready)), START_S)
        used, since = cpu_s(process), time.perf_counter()
        n = for_s * TRIALS_A_SECOND
        for number in range(n):
            await asyncio.sleep(max(0.0, since + number / TRIALS_A_SECOND - time.perf_counter()))
            began[number] = time.perf_counter()
            await asyncio.to_thread(ledger.record_trial, waiting.id, a_trial(number))
        times.ms += [await asyncio.wait_for(news.get(), START_S) for _ in range(n * N_LISTENERS)]
        cores = (cpu_s(process) - used) / (time.perf_counter() - since)
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    row = times.row(f"a trial; the portal used {cores:.2f} cores", limit_ms=EVENT_MS, part=1.0)
    return row | {"cores": round(cores, 3), "met": row["met"] and cores <= CORES}


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time of a process."""
    used = process.cpu_times()
    return float(used.user + used.system)


def a_trial(number: int) -> Trial:
    """Return a trial as a search records it."""
    family = ("lightgbm", "catboost", "xgboost", "linear", "extra_trees")[number % 5]
    score = 0.7 + 0.1 * (number * 0.6180339887 % 1)
    made = {"state": "succeeded", "folds": (0,), "fold_scores": (score,), "score": score, "cost_s": 1.5}
    return Trial(number=number, family=family, parameters={"learning_rate": 0.1, "num_leaves": 31}, **made)


if __name__ == "__main__":
    sys.exit(main())
