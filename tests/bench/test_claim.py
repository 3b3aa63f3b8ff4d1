"""What was measured is not measured again, and every measurement can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.claim import Journal, report, settle
from bench.record import ROOT

MEASURES = re.compile(r"^    (?:save|report|return settle)\(", flags=re.MULTILINE)
CLAIMS = sorted(
    path.stem for path in (ROOT / "bench").glob("*.py") if MEASURES.search(path.read_text()) and path.stem != "claim"
)


def test_a_row_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert Journal(path).row({"data": "x"}, lambda: {"score": 1})["score"] == 1
    assert Journal(path).row({"data": "x"}, lambda: {"score": 2})["score"] == 1
    assert Journal(path).row({"data": "y"}, lambda: {"score": 3})["score"] == 3
    assert Journal(path, again=True).row({"data": "x"}, lambda: {"score": 4})["score"] == 4


def test_half_a_line_of_a_killed_process_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).row({"data": "x"}, lambda: {"score": 1})
    with path.open("a") as file:
        file.write('{"key": "{')
    assert Journal(path).row({"data": "y"}, lambda: {"score": 2})["score"] == 2
    assert Journal(path).row({"data": "y"}, lambda: {"score": 3})["score"] == 2


def test_a_quick_run_leaves_no_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.record.RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "--quick"])
    report("any", [{"x": 1}], columns={"x": "x"}, note="")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.argv", ["bench", "--again"])
    report("any", [{"x": 1}], columns={"x": "x"}, note="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any.json", "any.md"]


def test_a_claim_is_settled_by_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.claim.WORK", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "--quick"])
    keys = [{"x": 1}, {"x": 2}]

    def settled(least: int) -> int:
        def make(*, x: int) -> dict[str, bool]:
            return {"met": x >= least}

        return settle("any", keys, make, again=True, columns={"x": "x", "met": "met"}, note="")

    assert settled(1) == 0
    assert settled(2) == 1
    assert len((tmp_path / "any" / "rows.jsonl").read_text().split("\n\n")) == len(keys)


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_measurement_is_documented(claim: str) -> None:
    assert f"`python -m bench.{claim}" in (ROOT / "docs" / "benchmark.md").read_text()


def test_make_bench_runs_every_claim() -> None:
    """But for ``bench.command``, which measures whatever it is given."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    listed = next(line.partition("=")[2].split() for line in lines if line.startswith("CLAIMS ?="))
    assert sorted(listed) == [claim for claim in CLAIMS if claim != "command"]
