"""What a sibling's history is worth: ten siblings, each searched cold and warm, trials until both are as good.

Siblings are the parts of one table with the most rows.  Cold searches learn
from nobody.  Warm ones are made one after the other in a home of their own,
where the first part was searched cold, and learn from those before them.  Both
have the same rows, folds and seed, so first folds compare: parity is the cold
search's best one, within 0.5 % of its loss.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.record import WORK, save
from bench.sets import SETS, SOURCE_VARIABLE, source
from factory.client import Fitted, fit
from factory.search.metric import Metric
from factory.search.transfer import first_fold_score, trials_to_parity
from factory.settings import Settings
from factory.spec import Trial

FOLDER = WORK / "transfer"
PARTS = {"avocado": "geography", "adult": "occupation", "superstore": "sub_category"}
"""Column by which a table is taken apart."""
LIMIT_S = 1_800
"""Of one search; it is counted by trials, and this is ample."""

COLUMNS = {
    "data": "data",
    "sibling": "sibling",
    "rows": "rows",
    "cold_trials": "cold: trials to its best",
    "warm_trials": "warm: trials to the same",
    "share": "share",
    "cold_s": "cold s",
    "warm_s": "warm s",
    "seeded_by": "seeded by",
}
NOTE = (
    "First folds until a score within 0.5 % of the cold search's best loss, and the fitting seconds of these trials; "
    "the constant is not counted. Share: warm against cold. Seeded by: requests that the warm search learned from. "
    "The last line is the median."
)


def main() -> int:
    """Make the siblings; return 1 where one warm search did not reach parity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=PARTS, default=["avocado"], metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--siblings", type=int, default=10, metavar="N", help="parts of each table (default: 10)")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="of each search (default: 40)")
    parser.add_argument("--recipe", default="tabular-auto", help="how they are made (default: tabular-auto)")
    parser.add_argument("--seed", type=int, default=0, help="of rows, folds and searches (default: 0)")
    chosen = parser.parse_args()
    folder = source()
    if folder is None:
        print(f"Skipped: {SOURCE_VARIABLE} names no folder with the tables.")
        return 0
    rows = [row for data in chosen.sets for row in compare(data, folder, chosen)]
    save("transfer", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    return 1 if any(row.get("warm_trials") is None for row in rows) else 0


def compare(data: str, folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Search the siblings of one table both ways; a line for each but the first, and the median."""
    bench_set, rows = SETS[data], []
    for n, (name, part) in enumerate(parts(pd.read_parquet(folder / f"{data}.parquet"), PARTS[data], chosen.siblings)):
        found = {}
        for home, making in (("cold", "cold"), ("warm", "warm_start" if n else "cold")):
            place = FOLDER / data / home
            if not n:
                shutil.rmtree(place, ignore_errors=True)
            if home == "cold" and not n:
                continue
            found[home] = fit(
                part,
                bench_set.target,
                name=f"bench.part-{n}",
                task=bench_set.task,
                recipe=chosen.recipe,
                budget_s=LIMIT_S,
                trials=chosen.trials,
                making=making,
                seed=chosen.seed,
                settings=Settings(home=place),
            )
        if n:
            rows.append({"data": data, "sibling": name, "rows": len(part)} | line(found["cold"], found["warm"]))
            print(rows[-1], flush=True)
    known = [row for row in rows if row["share"] is not None]
    medians = {key: float(np.median([row[key] for row in known])) for key in _NUMBERS} if known else {}
    return [*rows, {"data": data, "sibling": "median", **medians}] if known else rows


_NUMBERS = ("rows", "cold_trials", "warm_trials", "share", "cold_s", "warm_s")


def parts(frame: pd.DataFrame, column: str, n: int) -> list[tuple[str, pd.DataFrame]]:
    """Return the parts of a table with the most rows, without the column that tells them apart."""
    names = frame[column].value_counts().head(n).index
    return [(str(name), frame[frame[column] == name].drop(columns=column).reset_index(drop=True)) for name in names]


def line(cold: Fitted, warm: Fitted) -> dict[str, Any]:
    """Return trials and seconds that both searches took to the cold one's best first fold."""
    metric = Metric(cold.variant.metric, cold.variant.task)
    tried = {"cold": _counted(cold.outcome.made[0].trials), "warm": _counted(warm.outcome.made[0].trials)}
    target = max(s for s in map(first_fold_score, tried["cold"]) if s is not None)
    row: dict[str, Any] = {"seeded_by": len(warm.variant.seeded_by)}
    for name, trials in tried.items():
        count = trials_to_parity([first_fold_score(t) for t in trials], target, metric=metric)
        row[f"{name}_trials"] = count
        row[f"{name}_s"] = None if count is None else round(sum(_fold_s(t) for t in trials[:count]), 2)
    reached = row["warm_trials"] is not None
    return row | {"share": row["warm_trials"] / row["cold_trials"] if reached else None, "target": target}


def _counted(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in sorted(trials, key=lambda t: t.number) if t.family != "constant"]


def _fold_s(trial: Trial) -> float:
    return trial.cost_s / max(len(trial.folds), 1)


if __name__ == "__main__":
    sys.exit(main())
