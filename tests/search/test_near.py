"""Workers that need no Ray: forks of one process, replaced when they die or grow, and gone with the search."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from factory.families.base import Deadline
from factory.search.cluster import RaySession
from factory.search.engine import NEAR_S, near_suffices, search
from factory.search.history import Proposer
from factory.search.near import NearWorkers, frameworks
from factory.search.plan import Plan
from factory.search.tune import RECYCLE_SHARE
from factory.search.watchdog import DIED, OVERRUN_S
from factory.settings import Settings
from factory.spec import Trial, TrialState

from .conftest import make_data, make_test_plan
from .test_tune import clear, killing, processes

CPUS = 2


@pytest.fixture
def notes(probe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("PROBE_NOTES", str(folder))
    return folder


@pytest.fixture
def near() -> Iterator[NearWorkers]:
    with NearWorkers() as workers:
        yield workers
    assert [
        child for child in psutil.Process().children(recursive=True) if "factory.search.near" in command(child)
    ] == []


def nurseries() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "factory.search.near" in command(child)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def run_near(
    near: NearWorkers, plan: Plan, folder: Path, *, left_s: float = 3600, memory_limit_mb: float = 4000
) -> list[Trial]:
    proposer = Proposer(
        plan=plan,
        data=make_data(folder, plan=plan),
        history=(),
        deadline=Deadline.after(left_s),
        parallel=CPUS,
        record=lambda _: None,
    )
    assert near.run(proposer, proposer.data, memory_limit_mb=memory_limit_mb)
    trials = [proposer.trials[n] for n in sorted(proposer.trials)]
    assert all(trial.finished for trial in trials)
    return trials


def counted(n: int, *, does: str = "fit", families: tuple[str, ...] = ("probe",), skill: float | None = None) -> Plan:
    narrow = {"does": does} if skill is None else {"does": does, "skill": skill}
    return make_test_plan(
        *families,
        spaces={"probe": narrow},
        budget={"time_s": 3600, "trials": n},
        validation={"kind": "cross_validation", "folds": 3},
    )


def test_a_search_needs_no_ray(near: NearWorkers, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.search.engine.INLINE_S", 2.0)
    plan = make_test_plan("constant", "linear", "lightgbm", "probe", budget={"time_s": 60})
    settings = Settings(home=tmp_path, cpus=CPUS)
    data = make_data(tmp_path / "work", plan=plan)
    with RaySession(settings) as ray:
        result = search(
            plan,
            data,
            ray=ray,
            settings=settings,
            history=(),
            deadline=Deadline.after(10),
            record=lambda _: None,
            near=near,
        )
        assert not ray.connected
    assert {trial.family for trial in result.trials} == {"constant", "linear", "lightgbm", "probe"}
    assert any(len(trial.folds) == len(data.splits) for trial in result.trials)
    used = set(processes(notes))
    assert used
    assert psutil.Process().pid not in used, "the driver fits nothing"


def test_workers_share_the_jobs_and_are_reused(near: NearWorkers, notes: Path, tmp_path: Path) -> None:
    trials = run_near(near, counted(12), tmp_path / "work")
    assert [trial.state for trial in trials] == [TrialState.SUCCEEDED] * 12
    assert len(set(processes(notes))) == CPUS


def test_a_killed_worker_costs_its_trial_only(near: NearWorkers, notes: Path, tmp_path: Path) -> None:
    plan = counted(5, does="hang_once", families=("probe", "constant", "linear"), skill=0.2)
    with killing(notes, "hang_once") as killed:
        trials = run_near(near, plan, tmp_path / "work")
    assert len(killed) == 1
    lost, again = [trial for trial in trials if trial.family == "probe"]
    assert (lost.state, lost.folds, lost.reason) == (TrialState.KILLED, (), DIED)
    assert again.parameters == lost.parameters
    assert {trial.state for trial in trials if trial != lost} == {TrialState.SUCCEEDED}


def test_a_worker_that_has_grown_is_replaced(near: NearWorkers, notes: Path, tmp_path: Path) -> None:
    roomy = run_near(near, counted(4), tmp_path / "roomy")
    assert len(set(processes(notes))) <= CPUS
    clear(notes)
    tight_mb = max(trial.memory_mb for trial in roomy) / RECYCLE_SHARE * 0.95
    tight = run_near(near, counted(4), tmp_path / "tight", memory_limit_mb=tight_mb)
    assert [trial.state for trial in tight] == [TrialState.SUCCEEDED] * 4
    assert len(set(processes(notes))) > 4, "one for each job"


def test_a_worker_that_hangs_ends_itself_with_the_search(near: NearWorkers, notes: Path, tmp_path: Path) -> None:
    plan = make_test_plan("probe", spaces={"probe": {"does": "seize", "skill": 0.2}}, budget={"time_s": 60})
    until = time.time() + 4
    trials = run_near(near, plan, tmp_path / "work", left_s=4)
    assert {trial.state for trial in trials} == {TrialState.KILLED}
    assert time.time() < until + OVERRUN_S + 30


def test_without_a_nursery_others_do_the_work(near: NearWorkers, notes: Path, tmp_path: Path) -> None:
    near.start()
    (nursery,) = nurseries()
    nursery.kill()
    nursery.wait()
    proposer = Proposer(
        plan=counted(3),
        data=make_data(tmp_path / "work", plan=counted(3)),
        history=(),
        deadline=Deadline.after(60),
        parallel=CPUS,
        record=lambda _: None,
    )
    assert not near.run(proposer, proposer.data, memory_limit_mb=4000)
    assert proposer.trials == {}, "no job is lost"


def test_ray_is_used_where_it_is_there_or_worth_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan, trees = make_test_plan("linear", "lightgbm"), ("linear", "lightgbm")
    with RaySession(Settings(home=tmp_path)) as ray:
        assert near_suffices(plan, trees, left_s=50, ray=ray)
        assert not near_suffices(plan, trees, left_s=NEAR_S + 1, ray=ray)
        assert not near_suffices(plan, (*trees, "torch_network"), left_s=50, ray=ray)
        assert not near_suffices(plan, trees, left_s=50, ray=None)
        several = make_test_plan("torch_network", resources={"workers": 2}, recipe={"max_workers": 2})
        assert not near_suffices(several, ("torch_network",), left_s=50, ray=ray)
        divided = make_test_plan("linear", "lightgbm", segments={"by": "city"})
        assert not near_suffices(divided, trees, left_s=50, ray=ray)
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
        assert not near_suffices(plan, trees, left_s=50, ray=ray)


def test_the_nursery_imports_what_the_families_do() -> None:
    assert {"lightgbm", "xgboost", "catboost"} <= {name.partition(".")[0] for name in frameworks()}
    assert not {"torch", "tensorflow", "keras"} & {name.partition(".")[0] for name in frameworks()}
