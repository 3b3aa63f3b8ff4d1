"""The report fills its part of the page, and draws a chart that every page can show."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

import bench.automl_report as report
from bench.peers import OURS, REFERENCE
from bench.runs import Run

BASE = Run(
    peer=OURS, data="diamonds", seed=0, budget_s=60, score=500.0, loss=500.0, wall_s=60, fit_s=None, latency_ms=1.5,
    peak_pss_mb=900, cpu_s=90, others_cores=0.1, returncode=0, timed_out=False, error=None, commit="abc1234",
    date="2026-01-02T03:04:05+00:00", hardware={"cpu": "a processor", "memory_gib": 8, "system": "Linux"},
)  # fmt: skip


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "benchmark.md"
    path.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PAGE", path)
    return path


def runs() -> list[Run]:
    theirs = replace(BASE, peer=REFERENCE, score=600.0, loss=600.0, versions={"scikit-learn": "1.9.1"})
    failed = replace(BASE, peer="h2o", score=None, loss=None, latency_ms=None, returncode=1, error="no memory")
    return [BASE, theirs, failed]


def test_the_page_keeps_what_people_wrote(page: Path) -> None:
    assert report.write_report(runs(), journal=page) == 0
    told = page.read_text()
    assert told.startswith("# Before\n")
    assert told.endswith("\n\nAfter\n")
    assert "old" not in told
    assert "| diamonds | RMSE | **500** | 600 | failed |" in told
    assert "worse than hist-gradient-boosting on no table" in told
    assert "scikit-learn 1.9.1" in told
    first = told
    assert report.write_report(runs(), journal=page) == 0
    assert page.read_text() == first


def test_the_chart_is_described_and_the_same_again(page: Path) -> None:
    report.write_report(runs(), journal=page)
    chart = page.with_name("benchmark-60s.svg")
    assert {"title", "desc"} <= {child.tag.rpartition("}")[2] for child in ET.parse(chart).getroot()}
    assert "prefers-color-scheme: dark" in chart.read_text()
    first = chart.read_bytes()
    report.write_report(runs(), journal=page)
    assert chart.read_bytes() == first


def test_a_table_with_one_system_is_no_comparison(page: Path) -> None:
    before = page.read_text()
    assert report.write_report([BASE], journal=page) == 1
    assert page.read_text() == before
