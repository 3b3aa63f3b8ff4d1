"""What the controller makes of a request, and of every fault: with the real ledger and a simulated cluster."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.errors import Conflict, ServiceFault, StorageFault
from factory.ledger import Ledger
from factory.operate.admission import Capacity
from factory.operate.attending import LEDGER, LOST_S, REFUSED_S, log_path
from factory.operate.controller import AT_ONCE, LEAD, LEASE_S, MOST_PAUSE_S
from factory.operate.jobs import JobSpec
from factory.spec import RequestState
from factory.testing.controlled import Course
from factory.testing.jobs import SMALL
from tests.postgres import MISSING, server

from .conftest import LONG, Plant

# --- one request ------------------------------------------------------------------


def test_a_request_is_admitted_run_and_made(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    first = controller.reconcile()
    assert first.led
    assert first.admitted == ("r-1",)
    assert plant.ledger.attempt("r-1-1").state == "submitted"
    assert plant.until(controller, plant.runs) <= 3
    plant.passes(controller)
    assert plant.ledger.attempt("r-1-1").state == "running"
    plant.to_the_end(controller)
    assert plant.state() is RequestState.REGISTERED
    assert plant.outcomes() == ["done"]
    assert plant.jobs.starts == {"r-1-1": 1}
    assert not controller.reconcile().admitted
    assert plant.ledger.usage()[0].cpu_s == pytest.approx(13, abs=5)
    assert plant.ledger.verify_events("r-1") is None


def test_a_job_gets_what_it_needs_and_no_more(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.order(cpus=2)
    plant.controller().reconcile()
    spec = plant.jobs.specs["r-1-1"]
    assert Path(spec.entrypoint[0]).name == "factory"
    assert spec.entrypoint[1:] == ("run", "r-1")
    assert spec.env["FACTORY_ATTEMPT"] == "r-1-1"
    assert "FACTORY_TOKEN" not in spec.env, "its team was never made"
    assert spec.env["FACTORY_GRANTED_CPUS"] == "2"
    assert spec.env["FACTORY_HOME"] == str(plant.settings.root)
    assert spec.env["FACTORY_LEDGER_URL"] == plant.settings.ledger
    assert spec.folder == str(plant.settings.workspace("r-1"))
    assert (spec.cpus, spec.gpus, spec.memory_mb) == (0, 0, 0), "its trials could not start beside it"
    assert spec.metadata == {LEDGER: spec.metadata[LEDGER], "request": "r-1", "team": "growth"}


def test_who_waits_is_told_why_and_starts_when_there_is_room(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order("r-1", cpus=2)
    plant.advance(1)
    plant.order("r-2", cpus=1)
    assert controller.reconcile().held == 1
    held = plant.ledger.request("r-2").held
    assert held is not None
    assert held.sentence.startswith("waiting for 1 CPU: team growth holds 2 of 2")
    plant.to_the_end(controller, "r-1", "r-2")
    assert plant.state("r-2") is RequestState.REGISTERED
    assert plant.ledger.request("r-2").held is None


def test_the_log_of_a_job_is_kept_for_its_owner_only(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.order()
    plant.to_the_end(plant.controller())
    kept = log_path(plant.settings, "r-1", 1)
    assert kept.exists()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_no_more_is_begun_in_one_pass_than_others_can_wait_for(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=100, gpus=0, memory_gb=400))
    controller = plant.controller()
    for n in range(AT_ONCE + 3):
        plant.order(f"r-{n}")
    passes = plant.passes(controller, 2)
    assert [len(one.admitted) for one in passes] == [AT_ONCE, 3]
    assert [one.more for one in passes] == [True, False]


# --- faults -----------------------------------------------------------------------------


def test_what_the_user_can_mend_is_not_tried_again(make: Callable[..., Plant]) -> None:
    plant = make(Course("user_fault"))
    plant.order()
    plant.to_the_end(plant.controller())
    record = plant.ledger.request("r-1")
    assert (record.state, record.fault) == (RequestState.FAILED, "user")
    assert plant.outcomes() == ["user_fault"]
    assert plant.ledger.attempt("r-1-1").message == "The target has one class only."


def test_a_fault_of_ours_is_tried_again_later_each_time_and_given_up_after_three(make: Callable[..., Plant]) -> None:
    plant = make(Course("system_fault", trials=9))
    controller = plant.controller()
    plant.order()
    waits = []
    for number in (1, 2):
        plant.until(
            controller, lambda n=number: plant.outcomes()[-1:] == ["system_fault"] and len(plant.outcomes()) == n
        )
        waits.append(plant.until(controller, lambda n=number: len(plant.outcomes()) > n))
    assert waits == pytest.approx([10, 20], abs=2)
    plant.to_the_end(controller)
    record = plant.ledger.request("r-1")
    assert (record.state, record.fault) == (RequestState.FAILED, "system")
    assert record.error is not None
    assert (record.error.message, record.error.hint) == ("MLflow does not answer.", "Start it.")
    assert plant.outcomes() == ["system_fault"] * 3
    assert max(plant.drivers.fits.values()) == 1, "a finished trial was fitted again"


@pytest.mark.parametrize(("ending", "said"), [("crash", "exit code -9"), ("quits", "exit code 0")])
def test_a_driver_that_ends_without_a_word_is_a_fault_of_ours(
    make: Callable[..., Plant], ending: Any, said: str
) -> None:
    plant = make(lambda _id, number: Course(ending if number == 1 else "registered"))
    plant.order()
    plant.to_the_end(plant.controller())
    assert plant.outcomes() == ["system_fault", "done"]
    assert said in plant.ledger.attempt("r-1-1").message


@pytest.mark.parametrize("far", [False, True])
def test_a_job_whose_node_died_is_made_again_with_all_its_trials(make: Callable[..., Plant], far: bool) -> None:
    plant = make(Course(trials=4), far=far)
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: len(plant.ledger.trials("r-1")) == 2)
    plant.jobs.lose("r-1-1")
    plant.jobs.fail_next("logs", times=1000)  # its logs are gone with it
    plant.to_the_end(controller, step_s=3)
    assert plant.outcomes() == ["lost", "done"]
    assert plant.drivers.fits == {("r-1", number): 1 for number in range(4)}


def test_what_hangs_is_stopped_and_has_failed(make: Callable[..., Plant]) -> None:
    plant = make(Course("hangs"))
    plant.order()
    took_s = plant.to_the_end(plant.controller(), step_s=5)
    assert took_s == pytest.approx(2 * 60 + 300, abs=30)
    assert plant.state() is RequestState.FAILED
    assert plant.outcomes() == ["timed_out"]
    assert not plant.jobs.alive


def test_while_the_cluster_is_away_jobs_go_on_and_nothing_is_lost(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order("r-1", cpus=2)
    plant.order("r-2")
    plant.until(controller, plant.runs)
    plant.jobs.reachable = False
    for _ in range(60):
        with pytest.raises(ServiceFault):
            controller.reconcile()
        plant.advance(1)
    assert plant.state("r-1") is RequestState.REGISTERED
    assert plant.state("r-2") is RequestState.QUEUED
    plant.jobs.reachable = True
    plant.to_the_end(controller, "r-1", "r-2")
    assert plant.outcomes("r-1") == plant.outcomes("r-2") == ["done"]


def test_what_a_restarted_cluster_has_forgotten_is_made_again(make: Callable[..., Plant]) -> None:
    plant = make(LONG)
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: bool(plant.ledger.trials("r-1")), step_s=10)
    plant.jobs.restart()
    plant.advance(0)
    plant.to_the_end(controller, step_s=10)
    assert plant.outcomes() == ["lost", "done"]
    assert max(plant.drivers.fits.values()) == 1


def test_a_job_that_was_just_submitted_is_not_taken_for_lost(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    plant.order()
    controller.reconcile()
    shown = plant.jobs.list
    plant.jobs.list = dict  # type: ignore[method-assign]
    plant.passes(controller, int(LOST_S) - 1)
    assert plant.outcomes() == [None]
    plant.jobs.list = shown  # type: ignore[method-assign]
    plant.to_the_end(controller)
    assert plant.outcomes() == ["done"]


def test_where_the_cluster_refuses_one_job_the_others_go_on(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=3, gpus=0, memory_gb=12))
    controller = plant.controller()
    submit = plant.jobs.submit

    def picky(spec: JobSpec) -> None:
        if spec.metadata["request"] == "r-odd":
            raise ServiceFault("Ray did not take it.", hint="Ask Ray.")
        submit(spec)

    plant.jobs.submit = picky  # type: ignore[method-assign]
    plant.order("r-odd")
    plant.order("r-2")
    controller.reconcile()
    plant.order("r-3")
    plant.to_the_end(controller, "r-2", "r-3")
    assert plant.state("r-3") is RequestState.REGISTERED
    assert plant.outcomes("r-odd") == [None]
    assert plant.to_the_end(controller, "r-odd", step_s=5) == pytest.approx(3 * REFUSED_S + 30, abs=30)
    error = plant.ledger.request("r-odd").error
    assert plant.outcomes("r-odd") == ["system_fault"] * 3
    assert error is not None
    assert (error.message, error.hint) == ("Ray did not take it.", "Ask Ray.")


def test_where_the_cluster_takes_no_job_running_ones_are_still_attended_to(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=9, gpus=0, memory_gb=40))
    controller = plant.controller()
    plant.order("r-1")
    plant.until(controller, lambda: plant.runs("r-1-1"))
    plant.jobs.fail_next("submit", times=10_000)
    for n in range(2, 8):
        plant.order(f"r-{n}")
    for _ in range(20):
        with suppress(ServiceFault):
            controller.reconcile()
        plant.advance(1)
    assert plant.outcomes("r-1") == ["done"]


def test_a_setting_that_no_job_can_be_given_is_told(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.settings = plant.settings.model_copy(update={"recipes": Path("/srv/$TEAM")})
    plant.order()
    plant.to_the_end(plant.controller())
    error = plant.ledger.request("r-1").error
    assert error is not None
    assert "FACTORY_RECIPES" in error.message
    assert plant.outcomes() == ["system_fault"] * 3


def test_what_nobody_foresaw_about_one_request_stops_no_other(
    make: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant = make()
    controller = plant.controller()
    admit = plant.ledger.admit

    def broken(request_id: str, **more: Any) -> Any:
        if request_id == "r-odd":
            raise ZeroDivisionError("nobody foresaw this")
        return admit(request_id, **more)

    monkeypatch.setattr(plant.ledger, "admit", broken)
    plant.order("r-odd")
    plant.order("r-2")
    with caplog.at_level(logging.ERROR):
        plant.to_the_end(controller, "r-2")
    assert "nobody foresaw this" in caplog.text
    assert plant.state("r-odd") is RequestState.QUEUED


def test_a_clock_that_is_set_back_ends_nothing_and_blocks_nothing(make: Callable[..., Plant]) -> None:
    plant = make(LONG)
    controller = plant.controller()
    plant.order()
    plant.until(controller, lambda: bool(plant.ledger.trials("r-1")), step_s=10)
    plant.clock_off = -timedelta(hours=1)
    plant.order("r-2")
    plant.to_the_end(controller, "r-1", "r-2", step_s=10)
    assert plant.outcomes("r-1") == plant.outcomes("r-2") == ["done"]


def test_what_hangs_is_stopped_in_time_though_the_clock_was_set_back(make: Callable[..., Plant]) -> None:
    plant = make(Course("hangs"))
    controller = plant.controller()
    plant.order()
    plant.passes(controller, 30, step_s=10)
    plant.clock_off = -timedelta(hours=1)
    assert plant.to_the_end(controller, step_s=10) == pytest.approx(2 * 60 + 300, abs=30)
    assert plant.outcomes() == ["timed_out"]


# --- the process --------------------------------------------------------------------------------------------


class Moments(threading.Event):
    """Counts pauses instead of making them, and ends after some."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.pauses = n, []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        if len(self.pauses) == self.n:
            self.set()
        return self.is_set()


def test_after_a_fault_it_looks_again_later_and_later(make: Callable[..., Plant]) -> None:
    plant = make()
    plant.jobs.reachable = False
    moments = Moments(8)
    plant.controller().run(moments)
    assert moments.pauses == [2, 4, 8, 16, MOST_PAUSE_S, MOST_PAUSE_S, MOST_PAUSE_S, MOST_PAUSE_S]
    assert plant.ledger.leader(LEAD) is None


def test_it_goes_on_at_once_where_there_is_more_to_do(make: Callable[..., Plant]) -> None:
    plant = make(capacity=Capacity(cpus=100, gpus=0, memory_gb=400))
    for n in range(AT_ONCE + 3):
        plant.order(f"r-{n}")
    moments = Moments(3)
    plant.controller().run(moments)
    assert moments.pauses == [0, 1, 1]


def test_a_ledger_that_is_gone_at_the_end_does_not_keep_it_from_ending(make: Callable[..., Plant]) -> None:
    plant = make()

    def gone(name: str, done: bool) -> None:
        if name == "resign":
            raise StorageFault("The ledger is gone.")

    plant.controller(gone).run(Moments(1))


@pytest.mark.slow
def test_the_process_leads_without_a_cluster_and_ends_when_it_is_told_to(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path / "ledger.db")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FACTORY_", "RAY_"))}
    environment |= {"FACTORY_HOME": str(tmp_path), "FACTORY_DASHBOARD_PORT": "9"}
    command = [sys.executable, "-W", "error", "-m", "factory.operate.controller"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
            until = time.monotonic() + 60
            while ledger.leader(LEAD) is None:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            lines = process.communicate(timeout=60)[1].splitlines()
            assert process.returncode == 0, lines
            assert all(json.loads(line)["level"] == "warning" for line in lines)
            assert lines, "it says that there is no cluster"
            assert ledger.leader(LEAD) is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_same_on_postgresql(tmp_path: Path) -> None:
    postgres = server() or pytest.skip(MISSING)
    with postgres.database() as name, Plant(postgres.url(name), tmp_path, capacity=SMALL) as plant:
        first, second = plant.controller(), plant.controller()
        for n in (1, 2, 3):
            plant.order(f"r-{n}")
        plant.passes(first, 3)
        assert not second.reconcile().led
        plant.advance(LEASE_S + 1)
        assert second.reconcile().led
        with pytest.raises(Conflict), plant.ledger.fenced(LEAD, 1):
            plant.ledger.note("r-3", "note", "This one leads no more.")
        plant.to_the_end(second, "r-1", "r-2", "r-3")
        assert [plant.outcomes(f"r-{n}") for n in (1, 2, 3)] == [["done"]] * 3
        assert max(plant.jobs.starts.values()) == 1
