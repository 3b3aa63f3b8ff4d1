"""Whatever stops a comparison, what has run is kept and not run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.runs import Key, Run, append, missing, read

A = Run(
    peer="a", data="diamonds", seed=0, budget_s=60, score=1.0, loss=1.0, wall_s=60, fit_s=None, latency_ms=1.5,
    peak_pss_mb=900, cpu_s=90, others_cores=0.1, returncode=0, timed_out=False, error=None,
    versions={"pandas": "2.3.3"},
)  # fmt: skip
B, C = replace(A, peer="b"), replace(A, peer="c", score=None)


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = tmp_path / "below" / "runs.jsonl"
    assert read(journal) == []
    append(journal, A)
    append(journal, B)
    assert read(journal) == [A, B]


def test_the_newest_run_of_a_key_counts(tmp_path: Path) -> None:
    for made in (replace(A, loss=2), B, A):
        append(tmp_path / "runs.jsonl", made)
    assert read(tmp_path / "runs.jsonl") == [A, B]


def test_half_a_line_of_a_killed_process_costs_nothing_else(tmp_path: Path) -> None:
    journal = tmp_path / "runs.jsonl"
    append(journal, A)
    with journal.open("a") as file:
        file.write('{"peer": "b", "da')
    append(journal, C)
    assert read(journal) == [A, C]


def test_what_has_run_is_not_missing() -> None:
    wanted = [Key(peer, "diamonds", 0, budget_s) for budget_s in (60, 300) for peer in ("a", "b")]
    assert missing(wanted, [A, replace(B, seed=1)]) == [wanted[1], *wanted[2:]]
