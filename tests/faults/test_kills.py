"""Things are killed at random moments while requests are made: none is lost, none is made twice, all are registered.

Each run prints its seed; FACTORY_TEST_SEED repeats the choices, not the moments to the millisecond. By default each
kind of kill happens once, all of them in one run. FACTORY_TEST_FULL=1 adds a run of twenty for each kind, on one stack;
FACTORY_TEST_KILLS says how many of each instead.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from factory.operate.attending import FAULTS
from factory.spec import RequestState
from tests.postgres import MISSING, server

from .watching import Watch
from .works import Works

FULL = "FACTORY_TEST_FULL" in os.environ
KILLS = int(os.environ.get("FACTORY_TEST_KILLS", 20 if FULL else 1))
SEED = int(os.environ.get("FACTORY_TEST_SEED", time.time_ns() % 1_000_000))
LONGEST_OUTAGE_S = 40.0 if FULL else 8.0
"""A database or a server that is started by hand again; a driver waits for a minute."""
AT_ONCE = 3 if FULL else 2
"""Requests under way at a time: two have room, and the third waits."""
MOMENTS = (RequestState.QUEUED, RequestState.PREPARING, RequestState.SEARCHING, RequestState.EVALUATING)
COMES_S, SETTLES_S = 60.0 if FULL else 20.0, 3.0
"""For how long a request of the chosen state is waited for, and by how much the kill is put off then."""
END_S = 900.0
SHORT = {"families": ["constant", "linear", "lightgbm"], "budget": {"time_s": 12, "memory_gb": 3}}
LONG = {"families": ["constant", "linear", "lightgbm", "xgboost"], "budget": {"time_s": 35, "memory_gb": 3}}
"""Long enough that Ray's workers take over from the driver itself. Both have memory for one: two requests then run."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 180 * KILLS)]


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """A control plane, of which nothing is left afterwards."""
    postgres = server() or pytest.skip(MISSING)
    with pytest.MonkeyPatch.context() as patch, postgres.database() as database:
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        home = tmp_path_factory.mktemp("works") / "home"
        works = Works(home, postgres, database)
        try:
            works.up()
            write_tables(home)
            yield works
        finally:
            left = works.down()
        assert left == []


def write_tables(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, n_rows in (("short", 400), ("long", 4_000)):
        columns = {f"x{i}": generator.normal(size=n_rows) for i in range(5)}
        signal = columns["x0"] + columns["x1"] * columns["x2"] + 0.3 * generator.normal(size=n_rows)
        frame = pd.DataFrame(columns | {"bought": np.where(signal > 0, "yes", "no")})
        frame.to_csv(folder / f"{name}.csv", index=False)


class Run:
    """Requests that are made, and things that are killed meanwhile.

    Args:
        works: Where.
        watch: Sees it.
        kinds: That are going to be killed; trial workers and their nodes need requests that last.
    """

    def __init__(self, works: Works, watch: Watch, kinds: tuple[str, ...]) -> None:
        self.works, self.watch = works, watch
        self.random = random.Random(f"{SEED} {kinds}")
        self._began = time.monotonic()
        self._struck = ""
        self._long = {"worker", "node"} & set(kinds)
        self._only_long = self._long == set(kinds)

    def feed(self) -> None:
        """Order as many requests as are to be under way."""
        while len(self.watch.under_way()) < AT_ONCE:
            n_ordered = len(self.watch.requests)
            lasts = self._only_long or (bool(self._long) and n_ordered % AT_ONCE == 0)
            document = {
                "team": ("growth", "retail")[n_ordered % 2],
                "name": f"bought-{n_ordered % 4}",
                "recipe": "tabular-fast",
                "dataset": {"path": str(self.works.home / ("long.csv" if lasts else "short.csv")), "target": "bought"},
                "gates": {"baseline": "constant"},
                "seed": n_ordered,
                **(LONG if lasts else SHORT),
            }
            self.watch.requests.append(self.works.factory.submit(document).id)

    def kill(self, kind: str) -> None:
        """Kill something of a kind at a random moment, and start again what nothing else starts."""
        self.feed()
        moment = self.random.choice(MOMENTS)
        self.works.wait(lambda: moment in self.watch.under_way().values(), within_s=COMES_S)
        time.sleep(self.random.uniform(0, SETTLES_S))
        told = KINDS[kind](self)
        print(f"{self._struck}: {kind} {told}", flush=True)

    def strike(self) -> None:
        """Keep how everything is just before a kill."""
        self.watch.note_finished()
        states = ", ".join(self.watch.under_way().values())
        self._struck = f"{time.monotonic() - self._began:6.1f} s, while {states}"

    def some(self, there_are: Callable[[], list[str]]) -> list[str]:
        """Wait until there is something to be killed, and order requests for it meanwhile."""
        found: list[str] = []

        def come() -> bool:
            self.feed()
            found[:] = there_are()
            return bool(found)

        assert self.works.wait(come, within_s=END_S), "nothing to be killed came"
        return found

    def to_the_end(self) -> None:
        """Wait until all requests have ended, and their jobs with them."""

        def over() -> bool:
            return not self.watch.under_way() and not self.works.ledger.open_attempts() and not self.works.drivers()

        assert self.works.wait(over, within_s=END_S), "\n".join(map(self.watch.story, self.watch.under_way()))
        assert self.works.wait(lambda: not self.works.workers(), within_s=30.0), "trials go on"

    def outage(self, *names: str) -> float:
        """Let a while pass, start services again in their order, and return how long it was."""
        outage_s = self.random.uniform(0, LONGEST_OUTAGE_S)
        time.sleep(outage_s)
        for name in names:
            self.works.start(name)
            self.works.wait_for(name)
        return outage_s


def kill_controller(run: Run) -> str:
    name = run.works.leading()
    run.strike()
    run.works.kill(name)
    time.sleep(run.random.uniform(0, 3))
    run.works.start(name)
    return name


def spared(run: Run, name: str) -> bool:
    """Whether a request has been tried so often that it would fail by one fault more."""
    return run.works.ledger.faults_in_a_row(name) >= FAULTS - 1


def kill_driver(run: Run) -> str:
    def attempts() -> list[str]:
        return sorted(one for one in run.works.drivers().values() if not spared(run, one.rpartition("-")[0]))

    while True:
        victim = run.random.choice(run.some(attempts))
        run.strike()
        for process, attempt in run.works.drivers().items():
            if attempt == victim and killed(process):
                return victim


def kill_worker(run: Run) -> str:
    while True:
        run.some(lambda: [str(process.pid) for process in run.works.workers()])
        time.sleep(run.random.uniform(0, 1))
        run.strike()
        workers = run.works.workers()
        if workers and killed(victim := run.random.choice(workers)):
            return f"{victim.pid} of {len(workers)}"


def killed(process: psutil.Process) -> bool:
    """Kill a process; return whether it had not ended before."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        return True
    return False


def kill_node(run: Run) -> str:
    """Kill the second node, where that comes soon while it fits trials."""
    run.works.wait(lambda: bool(run.works.workers(of="node")), within_s=COMES_S)
    n_trials = len(run.works.workers(of="node"))
    run.strike()
    run.works.kill("node")
    return f"with {n_trials} trials for {run.outage('node'):.0f} s and its start"


def kill_head(run: Run) -> str:
    """Kill the head with all jobs, and the node that cannot be without it: Ray comes back and knows nothing."""

    def all_may_fail() -> bool:
        run.feed()
        return not any(spared(run, name) for name in run.watch.under_way())

    assert run.works.wait(all_may_fail, within_s=END_S), "no request could be tried again"
    run.strike()
    for name in ("node", "ray"):
        run.works.kill(name)
    return f"for {run.outage('ray', 'node'):.0f} s and its start"


def kill_postgresql(run: Run) -> str:
    run.strike()
    run.works.server.kill()
    outage_s = run.outage()
    run.works.server.start()
    return f"for {outage_s:.0f} s"


def kill_mlflow(run: Run) -> str:
    run.strike()
    run.works.kill("mlflow")
    return f"for {run.outage('mlflow'):.0f} s and its start"


KINDS: dict[str, Callable[[Run], str]] = {
    "controller": kill_controller,
    "driver": kill_driver,
    "worker": kill_worker,
    "node": kill_node,
    "postgresql": kill_postgresql,
    "mlflow": kill_mlflow,
    "head": kill_head,
}
CHEAP = tuple(kind for kind in KINDS if kind != "head")
RUNS = [CHEAP, *([(kind,) for kind in KINDS] if FULL else [])]


@pytest.mark.parametrize("kinds", RUNS, ids=lambda kinds: "all" if len(kinds) > 1 else kinds[0])
def test_killed_at_random_moments(works: Works, kinds: tuple[str, ...]) -> None:
    print(f"\nFACTORY_TEST_SEED={SEED}", flush=True)
    with Watch(works) as watch:
        run = Run(works, watch, kinds)
        plan = [kind for kind in kinds for _ in range(1 if len(kinds) > 1 else KILLS)]
        run.random.shuffle(plan)
        for kind in plan:
            run.kill(kind)
        run.to_the_end()
    watch.check()
