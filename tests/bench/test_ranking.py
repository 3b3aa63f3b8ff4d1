"""Ranks weigh tables alike, put failures last and never compare what has not run everywhere."""

from __future__ import annotations

import pytest

from bench.ranking import average_ranks, cells, complete, mean_scores, ranks, standings, worse_than
from bench.runs import Run


def run(peer: str, data: str = "diamonds", seed: int = 0, *, loss: float | None = 1.0, wall_s: float = 50.0) -> Run:
    return Run(
        peer=peer,
        data=data,
        seed=seed,
        budget_s=60,
        score=loss,
        loss=loss,
        wall_s=wall_s,
        fit_s=None,
        latency_ms=2.0,
        peak_pss_mb=500,
        cpu_s=80,
        others_cores=0.1,
        returncode=0,
        timed_out=False,
        error=None,
        date="2026-01-02T03:04:05+00:00",
    )


PEERS = ("a", "b", "c")


def whole(losses: dict[tuple[str, int], tuple[float | None, ...]]) -> dict[tuple[str, int], dict[str, Run]]:
    return {
        (data, seed): {peer: run(peer, data, seed, loss=loss) for peer, loss in zip(PEERS, found, strict=True)}
        for (data, seed), found in losses.items()
    }


def test_equal_losses_share_their_places_and_failures_come_last() -> None:
    cell = whole({("diamonds", 0): (2.0, 2.0, None)})["diamonds", 0]
    assert ranks(cell, PEERS).tolist() == [1.5, 1.5, 3.0]
    cell = whole({("diamonds", 0): (None, 2.0, None)})["diamonds", 0]
    assert ranks(cell, PEERS).tolist() == [2.5, 1.0, 2.5]


def test_a_table_counts_once_however_many_seeds_it_has() -> None:
    found = average_ranks(
        whole({("x", 0): (1, 2, 3), ("y", 0): (3, 2, 1), ("y", 1): (3, 2, 1), ("y", 2): (3, 2, 1)}), PEERS
    )
    assert found["a"].mean == pytest.approx(2.0)
    assert found["a"].low == pytest.approx(1.0)
    assert found["a"].high == pytest.approx(3.0)
    assert (found["b"].low, found["b"].mean, found["b"].high) == (2.0, 2.0, 2.0)


def test_the_interval_is_the_same_again_and_shrinks_with_tables() -> None:
    few = whole({(f"t{i}", 0): (1, 2, 3) if i % 2 else (3, 2, 1) for i in range(4)})
    many = whole({(f"t{i}", 0): (1, 2, 3) if i % 2 else (3, 2, 1) for i in range(40)})
    assert average_ranks(few, PEERS) == average_ranks(few, PEERS)
    wide, narrow = average_ranks(few, PEERS)["a"], average_ranks(many, PEERS)["a"]
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2


def test_only_cells_that_each_system_has_are_compared() -> None:
    runs = [run("a"), run("b"), run("a", seed=1)]
    found = complete(cells(runs, budget_s=60), ("a", "b"))
    assert list(found) == [("diamonds", 0)]
    assert cells(runs, budget_s=300) == {}


def test_standings_tell_time_failures_and_firsts() -> None:
    runs = [
        run("a", "diamonds", loss=1, wall_s=60),
        run("a", "adult", loss=1, wall_s=100),
        run("b", "diamonds", loss=2, wall_s=60),
        run("b", "adult", loss=None, wall_s=60),
    ]
    best, last = standings(cells(runs, budget_s=60), ("b", "a"), limit_s=78)
    assert (best.peer, best.rank.mean, best.firsts, best.failed, best.kept) == ("a", 1.0, 2, 0, 0.5)
    assert best.wall_s == (80.0, 100.0)
    assert (last.peer, last.firsts, last.failed, last.kept) == ("b", 0, 1, 1.0)


def test_worse_than_the_reference_is_told_by_table() -> None:
    found = whole({("x", 0): (1, 2, 3), ("y", 0): (3, 2, 1), ("z", 0): (None, 1, 1), ("w", 0): (1, 1, None)})
    assert worse_than(found, "a", "b") == ["y", "z"]
    assert mean_scores(found, ["a"])["z"] == {"a": None}
