"""What a part is worth is the loss that is added without it."""

from __future__ import annotations

from bench.ablation import ARMS, summary


def test_a_part_that_helps_makes_the_loss_larger_when_it_is_off() -> None:
    told = {"metric": "AUC", "wall_s": 60.0, "peak_pss_mb": 900}
    runs = [
        {"data": "adult", "arm": "full", "score": 0.9, **told},
        {"data": "adult", "arm": "without bagging", "score": 0.89, **told},
        {"data": "adult", "arm": "without search", "score": None, **told},
    ]
    rows = summary(runs, [ARMS[name] for name in ("full", "without bagging", "without search")])
    assert [(row["worse"], row["failed"]) for row in rows] == [(None, 0), (10.0, 0), (None, 1)]
