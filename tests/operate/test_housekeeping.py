"""What the controller does beside its requests: it forgets old idempotency keys, and logs lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from factory.errors import Conflict, StorageFault
from factory.ledger import Idempotency
from factory.operate.controller import KEYS_KEPT, KEYS_LOOKED_AT
from factory.operate.json_logs import JsonLines

from .conftest import Plant, document

KEY = Idempotency("t-1", "order-17", "a" * 64)


def test_keys_are_forgotten_after_a_week_and_looked_at_once_a_day(make: Callable[..., Plant]) -> None:
    looked = []
    plant = make()
    controller = plant.controller(lambda name, done: looked.append(name) if name == "forget_keys" and done else None)
    first = plant.ledger.create_request(document(), idempotency=KEY).id
    plant.passes(controller, 3)
    assert len(looked) == 1
    plant.passes(controller, 8, step_s=KEYS_LOOKED_AT.total_seconds())
    assert len(looked) == 8
    assert plant.ledger.replayed(KEY) is None
    again = plant.ledger.create_request(document(), idempotency=KEY)
    assert again.id != first


def test_keys_of_less_than_a_week_stay_whatever_the_clock_does(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    first = plant.ledger.create_request(document(), idempotency=KEY).id
    for off in (timedelta(), -KEYS_KEPT, timedelta(), KEYS_KEPT - timedelta(minutes=1)):
        plant.clock_off = off
        controller.reconcile()
        assert plant.ledger.replayed(KEY) == first


def test_one_that_leads_no_more_forgets_nothing(make: Callable[..., Plant]) -> None:
    plant = make()

    def overtaken(name: str, done: bool) -> None:
        if name == "forget_keys" and not done:
            plant.advance(60)
            assert plant.ledger.lead("controller", "another") == 2

    with pytest.raises(Conflict, match="epoch 1 is over"):
        plant.controller(overtaken).reconcile()


def test_what_is_logged_of_a_request_carries_its_id(
    make: Callable[..., Plant], caplog: pytest.LogCaptureFixture
) -> None:
    plant = make()
    controller = plant.controller()
    lines: list[dict[str, object]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLines().format(record)))

    handler = Handler()
    logger = logging.getLogger("factory.operate")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger.name)
    try:
        plant.order()
        plant.to_the_end(controller)
    finally:
        logger.removeHandler(handler)
    assert [(line["request"], line["message"]) for line in lines] == [
        ("r-1", "attempt r-1-1 is admitted"),
        ("r-1", "attempt r-1-1 has ended"),
    ]


def test_what_requests_leave_behind_is_removed_long_after_their_end(make: Callable[..., Plant]) -> None:
    plant = make()
    controller = plant.controller()
    root = plant.settings.root
    plant.order("r-1")
    plant.to_the_end(controller)
    for name in ("r-1", "somebodys"):
        for place in ("requests", "logs"):
            (root / place / name / "deep").mkdir(parents=True, exist_ok=True)
            (root / place / name / "deep" / "file").write_text("x")
    plant.order("r-2")
    (root / "requests" / "r-2").mkdir(exist_ok=True)
    linked = root / "requests" / "linked"
    linked.symlink_to(root / "logs")

    def left(place: str) -> list[str]:
        return sorted(folder.name for folder in (root / place).iterdir())

    for folder in (*(root / "requests").iterdir(), *(root / "logs").iterdir()):
        os.utime(folder, (0, 0))
    plant.passes(controller, 3)
    assert left("requests") == ["linked", "r-1", "r-2", "somebodys"], "its end was just now"
    plant.advance(timedelta(days=plant.settings.working_files_days, hours=1).total_seconds())
    plant.jobs.reachable = True
    plant.passes(controller, 3)
    assert "r-1" not in left("requests")
    assert {"linked", "somebodys"} <= set(left("requests"))
    assert {"r-1", "somebodys"} <= set(left("logs"))
    plant.advance(timedelta(days=plant.settings.job_logs_days).total_seconds())
    plant.passes(controller, 4)
    assert "r-1" not in left("logs")
    assert (root / "logs" / "somebodys" / "deep" / "file").is_file()


@pytest.mark.slow
def test_a_process_that_cannot_start_says_why_in_one_line_of_json(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FACTORY_", "RAY_"))}
    (tmp_path / "ledger.db").write_text("this is no ledger " * 100)
    command = [sys.executable, "-W", "error", "-m", "factory.operate.controller"]
    process = subprocess.run(
        command, env=environment | {"FACTORY_HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert process.returncode == StorageFault.exit_code
    (line,) = process.stderr.splitlines()
    told = json.loads(line)
    assert told["level"] == "error"
    assert "not a database" in told["message"]
