"""How many workers a memory budget allows, and what the fits get whose number is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import from_frame
from factory.errors import InvalidData
from factory.families.base import Deadline
from factory.search.cluster import DRIVER_MB, HELD, LEAST_WORKER_MB, SMALL_MB, Cluster, Crew, RaySession, require_room
from factory.search.ensemble import Blend
from factory.search.executor import Executor, usual_fit_mb
from factory.search.jobs import FitJob, FitResult
from factory.search.refit import RefitProposer
from factory.search.trial import TrialRunner
from factory.settings import Settings
from factory.spec import FileDataset, Trial, TrialState

from .conftest import make_data, make_dataset, make_test_plan


def test_a_budget_bounds_the_workers_and_what_each_may_take() -> None:
    assert Crew.of(cpus=2, memory_mb=4000) == Crew(2, 1250.0)
    crew = Crew.of(cpus=16, memory_mb=4000)
    assert (crew.workers, crew.worker_mb) == (3, pytest.approx(833.3, abs=0.1))
    assert crew.reason == (
        "3 of 16 CPUs are used at a time: of 4,000 MB, 2,500 are left beside the driver, and a worker needs 800."
    )


@pytest.mark.parametrize("cpus", [1, 2, 16, 200])
@pytest.mark.parametrize("memory_mb", [500, 2000, 4000, 64_000])
@pytest.mark.parametrize("fit_mb", [0, 1200])
def test_driver_and_workers_together_keep_the_budget(cpus: int, memory_mb: float, fit_mb: float) -> None:
    crew = Crew.of(cpus=cpus, memory_mb=memory_mb, fit_mb=fit_mb)
    assert crew.workers <= cpus
    assert crew.workers * crew.worker_mb <= max(memory_mb - DRIVER_MB, 0) + 1e-6
    assert crew.worker_mb >= LEAST_WORKER_MB
    assert (crew.reason == "") == (crew.workers == cpus)


def test_larger_fits_have_fewer_workers() -> None:
    assert Crew.of(cpus=8, memory_mb=8000, fit_mb=900).workers == 5
    assert Crew.of(cpus=8, memory_mb=8000).workers == 8


def test_a_large_table_leaves_room_for_fewer_workers_and_none_is_started_where_it_has_none() -> None:
    assert Crew.of(cpus=2, memory_mb=4000, data_mb=SMALL_MB) == Crew.of(cpus=2, memory_mb=4000)
    large = Crew.of(cpus=4, memory_mb=8000, data_mb=600)
    assert (large.workers, Crew.of(cpus=4, memory_mb=8000).workers) == (2, 4)
    assert large.worker_mb * large.workers <= 8000 - DRIVER_MB - HELD * 500
    assert Crew.of(cpus=4, memory_mb=8000, data_mb=2000).workers == 0
    assert Crew.of(cpus=4, memory_mb=8000, data_mb=600, sent_mb=20).workers == 4, "a worker gets a segment only"


def test_a_table_that_cannot_fit_is_refused_with_what_would_do() -> None:
    require_room(SMALL_MB, 500)  # as ever: its copies are within what a driver takes
    require_room(900, 4000)
    with pytest.raises(InvalidData, match=r"takes 1,500 MB in memory and is held 3 times.* needs 5,700 MB") as caught:
        require_room(1500, 4000)
    assert "budget.memory_gb 5.7" in caught.value.hint
    require_room(1500, 5700)


def test_the_size_of_a_table_is_told_from_its_columns() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=5000), "few": rng.choice(["a", "b"], 5000), "target": [0, 1] * 2500})
    few = from_frame(frame, FileDataset(path="-", target="target")).memory_mb
    assert few == pytest.approx(0.08, rel=0.1), "equal texts are one object"
    frame["text"] = [f"{i} " + "word " * 20 for i in range(5000)]
    many = from_frame(frame, FileDataset(path="-", target="target")).memory_mb
    assert many - few == pytest.approx(5000 * (8 + 150) / 1e6, rel=0.1)


def test_a_usual_fit_is_the_median_of_the_families_first_bets(tmp_path: Path) -> None:
    plan = make_test_plan("constant", "lightgbm", "extra_trees", "linear")
    few = usual_fit_mb(plan, make_data(tmp_path / "few", plan=plan))
    many = usual_fit_mb(plan, make_data(tmp_path / "many", dataset=make_dataset(n_rows=4000), plan=plan))
    assert 10 < few < many < 1000
    alone = make_test_plan("constant")
    assert usual_fit_mb(alone, make_data(tmp_path / "alone", plan=alone)) == 0.0


def test_without_room_for_a_worker_ray_is_not_started(tmp_path: Path) -> None:
    plan = make_test_plan("constant", budget={"time_s": 3600, "memory_gb": 2})
    data, settings = make_data(tmp_path, plan=plan), Settings(cpus=4)
    with RaySession(settings) as ray:
        executor = Executor(plan, data, ray=ray, settings=settings, usable=lambda: True)
        jobs = Few()
        executor.run(jobs, small=False)
        assert not ray.connected
    assert (executor.crew.workers, jobs.n_done) == (0, 1)
    assert executor.crew.reason.startswith("All fits run in the driver, one at a time: of 2,000 MB, 500 are left")


class Few:
    """One job that fits nothing."""

    parallel = 1
    deadline = Deadline()

    def __init__(self) -> None:
        self.n_done = 0

    @property
    def exhausted(self) -> bool:
        return self.n_done > 0

    def next(self, *, quick: bool = False) -> FitJob | None:
        return FitJob(trial=Trial(number=0, family="constant", parameters={}))

    def done(self, job: FitJob, result: FitResult) -> None:
        self.n_done += 1

    def lost(self, job: FitJob, reason: str) -> None:
        raise AssertionError(reason)


@pytest.mark.parametrize(("counted", "granted"), [(False, 3), (True, 1)])
def test_refits_here_take_the_cpus_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool, granted: int
) -> None:
    """Where trials are counted they take one, so that the same seed gives the same model on every machine."""
    budget = {"time_s": 60} | ({"trials": 1} if counted else {})
    plan = make_test_plan("linear", budget=budget, validation={"kind": "holdout"})
    data = make_data(tmp_path, plan=plan)
    trial = Trial(number=0, family="linear", parameters={}, state=TrialState.SUCCEEDED, folds=(0,), cost_s=0.1)
    used: list[int] = []
    monkeypatch.setattr("factory.search.executor.local_cpus", lambda _: 3)
    monkeypatch.setattr(TrialRunner, "run", lambda self, job: used.append(self.threads) or FitResult(number=0))
    refits = RefitProposer(data, {0: trial}, Blend({0: 1.0}, 0.9), Deadline.after(60))
    with RaySession(Settings()) as ray:
        executor = Executor(plan, data, ray=ray, settings=Settings(), usable=lambda: True)
        assert refits.count == 1
        executor.run_few(refits, count=refits.count, expected_s=refits.expected_s, name="refit")
    assert used == [granted]


def test_a_refit_takes_no_more_cpus_than_a_node_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_test_plan("linear", validation={"kind": "holdout"})
    ray, granted = RaySession(Settings()), list[object]()
    ray._cluster = Cluster(cpus=32, node_cpus=8, started_here=False)
    monkeypatch.setattr("factory.search.executor.run_tune", lambda *_, **given: granted.append(given["threads"]))
    executor = Executor(plan, make_data(tmp_path, plan=plan), ray=ray, settings=Settings(), usable=lambda: True)
    executor.crew = Crew(32, 800.0)
    for count in (2, 8):
        executor.run_few(Few(), count=count, expected_s=60, name="refit")
    assert granted == [8, 4]


FORKS = """
import os, threading, time
import numpy as np
from factory.search.executor import one_blas_thread

a, done = np.random.default_rng(0).random((400, 400)), [0]

def multiply():
    while True:
        a @ a
        done[0] += 1

with one_blas_thread():
    threading.Thread(target=multiply, daemon=True).start()
    for _ in range(100):
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
    before = done[0]
    time.sleep(0.5)
    assert done[0] > before
"""


def test_a_fit_goes_on_while_ray_forks() -> None:
    """OpenBLAS ends its threads at a fork: a product that waits for one waits for ever, and the fork with it."""
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60)
