"""When a segment is ended; that it really is, with Ray, is tested with the segments."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.families.base import Deadline
from factory.search.cluster import DRIVER_MB, Cluster
from factory.settings import Settings
from factory.variants.fanout import (
    BEGUN,
    FINISH_S,
    HANG_S,
    LATE_S,
    LEAST_S,
    POOLED_LEAST,
    POOLED_SHARE,
    _Task,
    pooled_share,
    share_of,
    shares_of,
)
from tests.search.conftest import make_data, make_test_plan


def task(workspace: Path, *, begun_s_ago: float | None, share_s: float = 5.0) -> _Task:
    if begun_s_ago is not None:
        (workspace / BEGUN).write_text(str(time.time() - begun_s_ago))
    order = SimpleNamespace(order=SimpleNamespace(data=SimpleNamespace(workspace=workspace)))
    return _Task(order, share_s)  # type: ignore[arg-type] # only where it works is looked at


@pytest.mark.parametrize(
    ("begun_s_ago", "left_s", "why"),
    [
        (None, 5.0, ""),
        (None, -0.1, "before its turn came"),
        (1.0, 5.0, ""),
        (1.0, -0.1, ""),
        (1.0, -LATE_S - 1, "not done 10 s after the deadline"),
        (5.0 + FINISH_S + HANG_S - 1, 5.0, ""),
        (5.0 + FINISH_S + HANG_S + 1, 5.0, "it hung: 38 s were spent on it, and 5 s were its share"),
    ],
)
def test_a_segment_is_ended_when_it_hangs_or_time_is_up(
    tmp_path: Path, begun_s_ago: float | None, left_s: float, why: str
) -> None:
    reason = task(tmp_path, begun_s_ago=begun_s_ago).over(Deadline.after(left_s))
    assert why in reason
    assert bool(reason) is bool(why)


def test_a_half_written_start_is_none(tmp_path: Path) -> None:
    (tmp_path / BEGUN).write_text("")
    assert task(tmp_path, begun_s_ago=None).over(Deadline.after(1)) == ""


def test_the_pooled_search_leaves_the_segments_what_they_need() -> None:
    assert pooled_share(0, left_s=100, cpus=2) == 1.0
    assert pooled_share(10, left_s=130, cpus=2) == POOLED_SHARE
    assert POOLED_LEAST < pooled_share(54, left_s=130, cpus=2) < POOLED_SHARE
    assert pooled_share(54, left_s=130, cpus=16) == POOLED_SHARE
    assert pooled_share(1_000, left_s=130, cpus=2) == POOLED_LEAST
    assert pooled_share(5, left_s=-3, cpus=2) == POOLED_LEAST


def test_segments_share_the_time_and_the_last_ones_get_a_little() -> None:
    assert share_of(Deadline.after(60), 2, 10, beside_s=3.5) == pytest.approx(12 - 3.5, abs=0.1)
    assert share_of(Deadline.after(-5), 2, 10, beside_s=1.0) == LEAST_S


@pytest.mark.parametrize(
    ("cpus", "node_cpus", "memory_gb", "at_once", "in_flight", "reserved"),
    [(2, 2, 4, 2, 4, 1), (16, 16, 4, 2, 4, 6), (16, 16, 2, 1, 2, 16), (32, 8, 4, 3, 3, 8), (64, 4, 2, 1, 1, 4)],
)
def test_segments_at_once_keep_the_memory_budget(
    tmp_path: Path, cpus: int, node_cpus: int, memory_gb: float, at_once: int, in_flight: int, reserved: int
) -> None:
    """Rather fewer than memory would allow, since each reserves whole CPUs; and never more of these than a node has."""
    plan = make_test_plan("constant", "linear", "lightgbm", budget={"time_s": 60, "memory_gb": memory_gb})
    order = SimpleNamespace(plan=plan, data=make_data(tmp_path, plan=plan))
    cluster = Cluster(cpus=cpus, node_cpus=node_cpus, started_here=False)
    shares = shares_of(order, cluster=cluster, settings=Settings())  # type: ignore[arg-type] # no more is looked at
    assert (shares.at_once, shares.in_flight, shares.cpus) == (at_once, in_flight, reserved)
    own_mb = 1000 * (shares.settings.memory_gb or 0)
    assert own_mb >= 800
    assert at_once == 1 or at_once * own_mb + DRIVER_MB <= 1000 * memory_gb
