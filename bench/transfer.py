"""What a sibling's history is worth: ten siblings, each searched cold and warm, trials until both are as good.

Siblings are the parts of one table with the most rows.  Cold searches learn
from nobody.  Warm ones are made one after the other in a home of their own,
where the first part was searched cold, and learn from those before them.  Both
have the same rows, folds and seed, so first folds compare: parity is the cold
search's best one, within 0.5 % of its loss.

A run that was stopped goes on with the next sibling, in the same home.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import AGAIN, QUICK, Journal, report, tables
from bench.record import WORK
from bench.sets import SETS
from factory.client import Fitted, fit
from factory.search.jobs import first_fold_score
from factory.search.metric import Metric
from factory.search.transfer import trials_to_parity
from factory.settings import Settings
from factory.spec import Trial

FOLDER = WORK / "transfer"
PARTS = {"avocado": "geography", "adult": "occupation", "superstore": "sub_category"}
"""Column by which a table is taken apart."""
LIMIT_S = 1_800
"""Of one search; it is counted by trials, and this is ample."""
LIMIT = 0.2
"""Of the cold search's trials."""

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
    "recorded": "trials to parity, as the variant says",
    "met": "met",
}
NOTE = (
    "First folds until a score within 0.5 % of the cold search's best loss, and the fitting seconds of these "
    "trials; the constant is not counted. Share: warm against cold. Seeded by: requests that the warm search "
    "learned from. As the variant says: its `trials_to_parity`, held against the nearest earlier search on other "
    f"rows. The last lines are the median and the sum. Met: a share of {LIMIT} at most."
)


def main() -> int:
    """Make the siblings; return 1 where a table's median share is too large, or one warm search reached no parity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=PARTS, default=["avocado"], metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--siblings", type=int, default=10, metavar="N", help="parts of each table (default: 10)")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="of each search (default: 40)")
    parser.add_argument("--recipe", default="tabular-auto", help="how they are made (default: tabular-auto)")
    parser.add_argument("--seed", type=int, default=0, help="of rows, folds and searches (default: 0)")
    parser.add_argument(AGAIN, action="store_true", help="make again what an earlier run has made")
    parser.add_argument(QUICK, action="store_true", help="two siblings, six trials of tabular-fast; proves nothing")
    chosen = parser.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.siblings, chosen.trials, chosen.recipe = 2, 6, "tabular-fast"
    journal = Journal.of("transfer", again=chosen.again)
    rows = [row for data in chosen.sets for row in compare(data, folder, chosen, journal)]
    report("transfer", rows, columns=COLUMNS, note=NOTE)
    reached = all(row["warm_trials"] is not None for row in rows)
    return 0 if reached and all(row["met"] for row in rows if row["sibling"] == MEDIAN) else 1


def compare(data: str, folder: Path, chosen: argparse.Namespace, journal: Journal) -> list[dict[str, Any]]:
    """Search the siblings of one table both ways; a line for each but the first, and the median."""
    rows = []
    known = {"data": data, "trials": chosen.trials, "recipe": chosen.recipe, "seed": chosen.seed}
    place = FOLDER / "-".join(map(str, known.values()))
    frame = pd.read_parquet(folder / f"{data}.parquet")
    for n, (name, part) in enumerate(parts(frame, PARTS[data], chosen.siblings)):
        make = partial(sibling, n, part, place=place, data=data, chosen=chosen)
        rows.append(journal.row({**known, "sibling": name, "number": n}, make))
    later = [row for row in rows if row["number"]]
    reached = [row for row in later if row["share"] is not None]
    if not reached:
        return later
    medians = {key: float(np.median([row[key] for row in reached])) for key in _NUMBERS}
    sums = {key: sum(row[key] for row in reached) for key in _SUMMED}
    sums["share"] = sums["warm_trials"] / sums["cold_trials"]
    told = ((MEDIAN, medians), (TOTAL, sums))
    return [*later, *({"data": data, "sibling": name, **of, "met": of["share"] <= LIMIT} for name, of in told)]


MEDIAN, TOTAL = "median", "total"
_SUMMED = ("cold_trials", "warm_trials", "cold_s", "warm_s")
_NUMBERS = ("rows", "share", *_SUMMED)


def sibling(number: int, part: pd.DataFrame, *, place: Path, data: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Search one sibling: the first cold, where the others learn from it; the others in both ways."""
    if not number:
        shutil.rmtree(place, ignore_errors=True)
    make = partial(
        fit,
        part,
        SETS[data].target,
        name=f"bench.part-{number}",
        task=SETS[data].task,
        recipe=chosen.recipe,
        budget_s=LIMIT_S,
        trials=chosen.trials,
        seed=chosen.seed,
    )
    if not number:
        first = make(making="cold", settings=Settings(home=place / "warm"))
        return {"rows": len(part), "cost_s": first.variant.cost_s}
    cold = make(making="cold", settings=Settings(home=place / "cold"))
    warm = make(making="warm_start", settings=Settings(home=place / "warm"))
    return {"rows": len(part)} | line(cold, warm)


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
    share = row["warm_trials"] / row["cold_trials"] if reached else None
    met = share is not None and share <= LIMIT
    return row | {"share": share, "target": target, "recorded": warm.variant.trials_to_parity, "met": met}


def _counted(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in sorted(trials, key=lambda t: t.number) if t.family != "constant"]


def _fold_s(trial: Trial) -> float:
    return trial.cost_s / max(len(trial.folds), 1)


if __name__ == "__main__":
    sys.exit(main())
