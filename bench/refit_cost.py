"""``making: refit`` on ten per cent more rows costs a tenth of what its parent cost, at most: of its whole making.

Reading, gate and registration take seconds in both, so that the share depends on the parent's budget. That of the fits
alone, and that of the whole processes with their imports, stand beside it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.claim import PATIENCE_S, parser, settle, tables
from bench.command import as_row
from bench.factory_run import bundle_of, newest, predictions, run
from bench.record import WORK
from bench.sets import SETS, score, split

FOLDER = WORK / "refit_cost"
NAMES = ("telco_churn", "california_housing")
MORE = 0.1
LIMIT = 0.1
"""Of the parent's cost."""

COLUMNS = {
    "data": "data",
    "rows": "rows of the parent",
    "parent_cost_s": "its fits s",
    "parent_made_s": "made in s",
    "refit_cost_s": "refit: its fits s",
    "refit_made_s": "made in s",
    "cost_share": "fits, share",
    "made_share": "making, share",
    "parent_wall_s": "its process s",
    "refit_wall_s": "refit: its process s",
    "wall_share": "whole process, share",
    "metric": "metric",
    "before": "score before",
    "after": "after",
    "verdict": "gate's verdict on the refit",
    "met": "met",
}
NOTE = (
    f"75 % of the rows to learn from; the parent has all but the last of them, the refit {MORE:.0%} more. Fits: "
    "seconds of all trials, as the variant's `cost_s`. Made in: from the request's receipt to its end, reading, "
    "gate and registration included; the budget decides the parent's. Whole process: imports as well. Met: the making "
    f"of the refit costs {LIMIT} of the parent's at most. Scores on the same unseen rows."
)


def main() -> int:
    """Make parents and refits; return 1 where a refit was dear or failed."""
    arguments = parser(__doc__, budget_s=60)
    arguments.add_argument("--sets", nargs="+", choices=SETS, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.sets, chosen.budget = chosen.sets[:1], 15
    keys = [{"data": data, "budget_s": chosen.budget, "seed": chosen.seed} for data in chosen.sets]
    return settle("refit_cost", keys, partial(remake, folder=folder), again=chosen.again, columns=COLUMNS, note=NOTE)


def remake(*, data: str, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Make a variant, refit it on more rows, and compare cost and score."""
    bench_set, place = SETS[data], FOLDER / data
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    home = place / "home"
    train, test = split(bench_set, folder, seed=seed)
    fewer = train.iloc[: round(len(train) / (1 + MORE))]
    row: dict[str, Any] = {"metric": bench_set.metric, "rows": len(fewer), "met": False}
    for side, rows, making in (("parent", fewer, "cold"), ("refit", train, "refit")):
        rows.to_parquet(place / f"{side}.parquet", index=False)
        document = {
            "name": data.replace("_", "-"),
            "recipe": "tabular-auto",
            "dataset": {"path": str(place / f"{side}.parquet"), "target": bench_set.target, "task": bench_set.task},
            "budget": {"time_s": budget_s},
            "making": making,
            "seed": seed,
        }
        document |= {"parent": f"bench.{document['name']}/1"} if making == "refit" else {}
        taken = run(document, folder=place / side, home=home, timeout_s=budget_s + PATIENCE_S)
        came = newest(home)
        row |= {f"{side}_{name}": value for name, value in as_row(taken).items()}
        if came is None or not came.variants:
            return row
        variant = came.variants[0]
        row |= {f"{side}_cost_s": variant.cost_s, f"{side}_made_s": round(came.made_s, 2)}
        row["before" if side == "parent" else "after"] = _score(bench_set.data, bundle_of(variant, home), test)
        row["verdict"] = "passed" if variant.state == "registered" else "turned down"
    shutil.rmtree(home, ignore_errors=True)
    return row | shares(row)


def shares(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a refit took of its parent's fits, making and process; the making says whether the claim is met."""
    found = {f"{what}_share": row[f"refit_{what}_s"] / row[f"parent_{what}_s"] for what in ("cost", "made", "wall")}
    return {**found, "met": found["made_share"] <= LIMIT}


def _score(data: str, bundle: Any, test: pd.DataFrame) -> float:
    return score(SETS[data], test[SETS[data].target], predictions(bundle, test))


if __name__ == "__main__":
    sys.exit(main())
