"""What a part is worth is the loss that is added without it."""

from __future__ import annotations

from bench.ablation import ARMS, overall, summary


def test_a_part_that_helps_makes_the_loss_larger_when_it_is_off() -> None:
    told = {"metric": "AUC", "wall_s": 60.0, "peak_pss_mb": 900}
    runs = [
        {"data": "adult", "arm": "full", "score": 0.9, **told},
        {"data": "adult", "arm": "without bagging", "score": 0.89, **told},
        {"data": "adult", "arm": "without search", "score": None, **told},
    ]
    rows = summary(runs, [ARMS[name] for name in ("full", "without bagging", "without search")])
    assert [(row["worse"], row["failed"]) for row in rows] == [(None, 0), (10.0, 0), (None, 1)]


def test_the_mean_over_tables_says_on_how_many_a_part_helps() -> None:
    told = {"arm": "without bagging", "wall_s": 60.0, "peak_pss_mb": 900, "failed": 0}
    rows = [{"data": d, "worse": w, **told} for d, w in (("adult", 3.0), ("diamonds", -1.0), ("wine_quality", None))]
    (found,) = overall(rows)
    assert (found["worse"], found["helps"]) == (1.0, "1 of 2")
