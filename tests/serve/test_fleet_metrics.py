"""Metrics of all replicas in one answer."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve import upkeep
from serve.fleet_metrics import FRESH_S, FleetMetrics, merged
from serve.telemetry import Telemetry

from .calls import one
from .conftest import SETUP, Caller, MakePredictor, Shelf


def told(n: int, *, replica: str) -> bytes:
    """Return the metrics of a replica that has answered some calls."""
    telemetry = Telemetry()
    for _ in range(n):
        telemetry.call("invoke", "growth.churn/1", 200, 0.001)
    return telemetry.text(bundles=n, bundles_mb=1.5, dropped=0, replica=replica)


def counts(text: bytes) -> dict[str, float]:
    """Return the calls by replica, of a text that Prometheus' own parser reads."""
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families), "each metric is told of once"
    calls = next(family for family in families if family.name == "factory_predictor_calls")
    return {s.labels["replica"]: s.value for s in calls.samples if s.name.endswith("_total")}


def test_whichever_replica_is_asked_tells_of_all(tmp_path: Path) -> None:
    first, second = FleetMetrics(tmp_path / "m", lambda: 0), FleetMetrics(tmp_path / "m", lambda: 1)
    assert counts(first.exchange(told(3, replica="0"))) == {"0": 3}
    assert counts(second.exchange(told(5, replica="1"))) == {"0": 3, "1": 5}
    assert counts(first.exchange(told(4, replica="0"))) == {"0": 4, "1": 5}
    assert counts(second.exchange(told(5, replica="1"))) == {"0": 4, "1": 5}, "as the first has told of itself"
    second.close()
    assert counts(first.exchange(told(4, replica="0"))) == {"0": 4}


def test_a_replica_that_has_ended_is_missing_after_a_minute(tmp_path: Path) -> None:
    first, ended = FleetMetrics(tmp_path, lambda: 0), FleetMetrics(tmp_path, lambda: 1)
    ended.write(told(5, replica="1"))
    assert counts(first.exchange(told(1, replica="0"))) == {"0": 1, "1": 5}
    before = time.time() - FRESH_S - 5
    os.utime(tmp_path / "1.prom", (before, before))
    assert counts(first.exchange(told(1, replica="0"))) == {"0": 1}


def test_a_replica_that_gets_another_number_leaves_nothing_under_the_old_one(tmp_path: Path) -> None:
    numbers = iter([1, 0])
    fleet = FleetMetrics(tmp_path, lambda: next(numbers))
    fleet.write(told(1, replica="1"))
    fleet.write(told(1, replica="0"))
    assert [path.name for path in tmp_path.iterdir()] == ["0.prom"]


def test_replicas_that_swap_their_numbers_leave_each_others_metrics_alone(tmp_path: Path) -> None:
    numbers = {"a": 0, "b": 1}
    first, second = FleetMetrics(tmp_path, lambda: numbers["a"]), FleetMetrics(tmp_path, lambda: numbers["b"])
    first.write(told(1, replica="0"))
    second.write(told(2, replica="1"))
    numbers |= {"a": 1, "b": 0}
    first.write(told(3, replica="1"))
    assert counts(second.exchange(told(4, replica="0"))) == {"0": 4, "1": 3}
    second.close()
    assert counts(first.exchange(told(3, replica="1"))) == {"1": 3}


def test_where_the_folder_cannot_be_used_a_replica_tells_of_itself(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("in the way")
    assert counts(FleetMetrics(tmp_path / "m", lambda: 0).exchange(told(2, replica="0"))) == {"0": 2}


def test_metrics_of_one_replica_are_as_they_were() -> None:
    text = told(2, replica="0")
    assert merged([text]) == text


def test_the_route_tells_of_the_fleet_and_each_replica_writes_by_itself(
    own_shelf: Shelf, churn: Any, make_caller: MakePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WRITTEN_EVERY_S", 0.001)
    own_shelf.put("growth.churn", churn)
    operator = own_shelf.ledger.issue_token("o", team=None, scopes=["read", "predict"], by=SETUP).secret
    callers = []
    for rank in (0, 1):
        app = make_caller(own_shelf).app
        app.core.fleet = FleetMetrics(tmp_path, lambda rank=rank: rank)
        callers.append(Caller(app, operator))
    for caller in callers:
        assert caller.post(**one()).status_code == 200

    async def written() -> None:
        over = asyncio.Event()
        task = asyncio.create_task(upkeep.keep_writing_metrics(callers[1].app.core, over))
        while not (tmp_path / "1.prom").exists():
            await asyncio.sleep(0.001)
        over.set()
        await task

    asyncio.run(written())
    assert counts(callers[0].get("/metrics").content) == {"0": 1, "1": 1}
