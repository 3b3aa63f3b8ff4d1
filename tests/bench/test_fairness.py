"""The chart of a day shows what its rows say, and a day is judged by what its teams got."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import fairness
from bench.admission_scale import CAPACITY, NOW, queue
from factory.testing.cluster_day import Course, busy_day


def test_a_spread_is_between_teams_with_the_same_kind_of_work() -> None:
    day = busy_day(n_teams=8, n_busy=6, hours=1)
    shares = {"busy00": 0.2, "busy03": 0.25, "busy01": 0.1, "busy04": 0.1, "busy02": 0.5, "busy05": 0.49}
    course = Course(times=[0.0], shares={team: [share] for team, share in shares.items()}, used=[1.0])
    assert fairness.spread(course, day, window_s=3600) == pytest.approx(0.05)


def test_the_chart_is_described_and_the_same_rows_give_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "CHART", tmp_path / "chart.svg")
    row = {"hourly_spread": 0.012, "utilisation": 0.9, "shares": {"a": [0.1] * 48}, "mixes": {"a": "cpus"}}
    rows = {fairness.OURS: row, fairness.PEER: row | {"hourly_spread": 0.4}}
    fairness.draw(rows)
    drawn = fairness.CHART.read_text()
    fairness.draw(rows)
    assert drawn == fairness.CHART.read_text()
    assert "first come, first served: hourly shares differ by up to 40.0%" in drawn
    assert "prefers-color-scheme: dark" in drawn


def test_the_full_cluster_of_the_measurement_is_full_and_fits() -> None:
    _, waiting, running = queue(500, seed=0, full=True)
    cpus = sum(job.cpus for job in running)
    assert 0.9 * CAPACITY.cpus <= cpus <= CAPACITY.cpus
    assert len(waiting) == 500
    assert all(job.expected_end is not None and job.expected_end > NOW for job in running)
