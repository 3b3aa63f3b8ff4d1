"""The search on a real Ray: repeatable, with workers that are reused, recycled, killed and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import plugins
from factory.families.base import Deadline
from factory.search.cluster import RaySession, session
from factory.search.engine import SearchResult, search
from factory.search.history import Proposer
from factory.search.jobs import TrialData
from factory.search.plan import Plan
from factory.search.tune import RECYCLE_SHARE, run_tune
from factory.search.watchdog import DIED, OVERRUN_S
from factory.settings import Settings
from factory.spec import Trial, TrialState

from .conftest import PROBE, make_data, make_dataset, make_test_plan

pytestmark = pytest.mark.slow
CPUS = 2


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray for this module, whose workers know the probe and write their notes into this folder."""
    folder = tmp_path_factory.mktemp("notes")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROBE))
        patch.setenv("PYTHONPATH", str(PROBE))
        patch.setenv("PROBE_NOTES", str(folder))
        plugins._registry.cache_clear()
        with session(Settings(home=tmp_path_factory.mktemp("home"), cpus=CPUS)):
            yield folder
    plugins._registry.cache_clear()


@pytest.fixture(autouse=True)
def _fresh(notes: Path) -> None:
    clear(notes)


def clear(notes: Path) -> None:
    for note in notes.iterdir():
        note.unlink()


def processes(notes: Path, family: str = "probe") -> list[int]:
    """Return the processes that fitted a family, in order, one for each fit."""
    found = [note.name.split("-") for note in notes.iterdir()]
    return [int(pid) for pid, name, _, _ in sorted(found, key=lambda parts: int(parts[3])) if name == family]


def run_in_workers(
    plan: Plan, data: TrialData, *, left_s: float = 60, parallel: int = CPUS, memory_limit_mb: float = 4000
) -> list[Trial]:
    """Run a plan's trials in Ray's workers only, without the inline thread."""
    proposer = Proposer(
        plan=plan,
        data=data,
        history=(),
        deadline=Deadline.after(left_s),
        parallel=parallel,
        record=lambda _: None,
    )
    run_tune(proposer, data, threads=1, memory_limit_mb=memory_limit_mb, name="test")
    trials = [proposer.trials[n] for n in sorted(proposer.trials)]
    assert all(t.finished for t in trials)
    return trials


def run(plan: Plan, data: TrialData, *, left_s: float) -> SearchResult:
    settings = Settings(home=data.workspace, cpus=CPUS)
    with RaySession(settings) as ray:
        return search(
            plan, data, ray=ray, settings=settings, history=(), deadline=Deadline.after(left_s), record=lambda _: None
        )


def test_ray_takes_the_factorys_own_token() -> None:
    import ray

    @ray.remote
    def token() -> str:
        return Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()

    own = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert own.name == "ray_token"
    assert own.stat().st_mode & 0o777 == 0o600
    assert ray.get(token.remote()) == own.read_text()


@contextlib.contextmanager
def killing(notes: Path, what: str) -> Iterator[list[int]]:
    """Kill the first process that notes it does that; yields the list that its id is put into."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            for note in notes.glob(f"*-{what}-*"):
                killed.append(int(note.name.split("-")[0]))
                os.kill(killed[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def configurations(result: SearchResult) -> list[tuple[Any, ...]]:
    return [
        (t.number, t.family, t.parameters, t.seed, t.origin, t.state, t.folds, t.fold_scores) for t in result.trials
    ]


def leaderboard(result: SearchResult) -> list[int]:
    scored = [t for t in result.trials if t.score is not None]
    return [t.number for t in sorted(scored, key=lambda t: (-(t.score or 0), t.number))]


def test_the_same_seed_and_number_of_trials_give_the_same_search_twice(tmp_path: Path) -> None:
    families = ("constant", "linear", "lightgbm", "xgboost", "extra_trees")
    counted = {"time_s": 3600, "trials": 20}
    folds = {"kind": "cross_validation", "folds": 3}
    plan = make_test_plan(*families, budget=counted, validation=folds, seed=11)
    results = []
    for name in ("one", "two"):
        data = make_data(tmp_path / name, dataset=make_dataset(n_rows=500), plan=plan, seed=11)
        results.append(run(plan, data, left_s=3600))
    one, two = results
    assert len(one.trials) == 20
    assert sum(t.origin == "search" for t in one.trials) >= 7
    assert {t.state for t in one.trials} == {TrialState.SUCCEEDED}
    assert {t.folds for t in one.trials} == {(0,), (0, 1, 2)}, "the chosen get all folds, the others none"
    assert configurations(one) == configurations(two)
    assert leaderboard(one) == leaderboard(two)
    assert one.blend == two.blend


def test_a_killed_worker_costs_its_trial_only(notes: Path, tmp_path: Path) -> None:
    spaces, counted = {"probe": {"does": "hang_once", "skill": 0.2}}, {"time_s": 3600, "trials": 5}
    plan = make_test_plan(
        "probe",
        "constant",
        "linear",
        spaces=spaces,
        budget=counted,
        validation={"kind": "cross_validation", "folds": 3},
    )
    with killing(notes, "hang_once") as killed:
        trials = run_in_workers(plan, make_data(tmp_path, plan=plan), left_s=3600)
    assert len(killed) == 1
    lost, again = [t for t in trials if t.family == "probe"]
    assert (lost.state, lost.folds, lost.reason) == (TrialState.KILLED, (), DIED)
    assert (again.state, again.parameters) == (TrialState.SUCCEEDED, lost.parameters)
    others = [t for t in trials if t != lost]
    assert [t.state for t in others] == [TrialState.SUCCEEDED] * 5, "and nobody's place"
    assert {t.folds for t in others} == {(0,), (0, 1, 2)}


def test_a_worker_killed_on_a_further_fold_costs_that_only(notes: Path, tmp_path: Path) -> None:
    spaces, counted = {"probe": {"does": "stall_later", "skill": 0.9}}, {"time_s": 3600, "trials": 2}
    folds = {"kind": "cross_validation", "folds": 3}
    plan = make_test_plan("probe", "constant", spaces=spaces, budget=counted, validation=folds)
    with killing(notes, "stall") as killed:
        trials = run_in_workers(plan, make_data(tmp_path, plan=plan), left_s=3600, parallel=1)
    assert len(killed) == 1
    assert [(t.family, t.state, t.folds) for t in trials] == [
        ("constant", TrialState.SUCCEEDED, (0,)),
        ("probe", TrialState.SUCCEEDED, (0,)),
    ]


def test_workers_are_reused_and_kept_by_pool(notes: Path, tmp_path: Path) -> None:
    """Tune keeps no idle worker of another shape, so a worker is reused until its pool's turn is over."""
    spaces = {"probe": {"does": "fit"}, "probe_other_pool": {"does": "fit", "skill": 0.2}}
    counted = {"time_s": 3600, "trials": 14}
    plan = make_test_plan("probe", "probe_other_pool", spaces=spaces, budget=counted, validation={"kind": "holdout"})
    trials = run_in_workers(plan, make_data(tmp_path, plan=plan))
    assert [t.state for t in trials] == [TrialState.SUCCEEDED] * 14
    mine, others = processes(notes), processes(notes, "probe_other_pool")
    assert (len(mine), len(others)) == (13, 1)
    assert not set(mine) & set(others), "a worker holds one heavy framework"
    assert os.getpid() not in {*mine, *others}
    assert len(set(mine[:2])) <= CPUS
    assert len(set(mine[2:])) <= CPUS


def test_a_worker_that_has_grown_is_replaced(notes: Path, tmp_path: Path) -> None:
    def plan(trials: int) -> Plan:
        counted = {"time_s": 3600, "trials": trials}
        return make_test_plan(
            "probe", spaces={"probe": {"does": "fit"}}, budget=counted, validation={"kind": "holdout"}
        )

    data = make_data(tmp_path, plan=plan(3))
    roomy = run_in_workers(plan(3), data, parallel=1)
    assert len(set(processes(notes))) == 1
    clear(notes)
    tight_mb = max(t.memory_mb for t in roomy) / RECYCLE_SHARE * 0.95
    tight = run_in_workers(plan(3), data, parallel=1, memory_limit_mb=tight_mb)
    assert [t.state for t in tight] == [TrialState.SUCCEEDED] * 3
    assert len(set(processes(notes))) == 3


def test_a_worker_that_hangs_ends_itself_with_the_search(notes: Path, tmp_path: Path) -> None:
    """Even where nothing else can run in its process."""
    plan = make_test_plan("probe", spaces={"probe": {"does": "seize", "skill": 0.2}}, budget={"time_s": 60})
    started = time.monotonic()
    trials = run_in_workers(plan, make_data(tmp_path, plan=plan), left_s=6)
    assert time.monotonic() - started < 6 + OVERRUN_S + 20
    assert {t.state for t in trials} == {TrialState.KILLED}


def test_the_inline_trial_is_not_given_up_when_tune_ends_first(notes: Path, tmp_path: Path) -> None:
    """The first job is slow: Tune, which is up before it is through, does all others and ends before it."""
    slow, portfolio = {"probe": {"does": "hang", "skill": 0.2}}, {"time_s": 40, "trials": 6}
    folds = {"kind": "cross_validation", "folds": 2}
    plan = make_test_plan("probe", "linear", "lightgbm", spaces=slow, budget=portfolio, validation=folds)
    result = run(plan, make_data(tmp_path, plan=plan), left_s=35)
    assert set(processes(notes)) == {os.getpid()}
    assert [t.state for t in result.trials] == [TrialState.SUCCEEDED] * 6
    (probed,) = [t for t in result.trials if t.family == "probe"]
    assert probed.cost_s > max(t.cost_s for t in result.trials if t != probed)
