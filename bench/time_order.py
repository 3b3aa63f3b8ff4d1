"""Where rows have an order in time, the score of ``validation: time`` holds for the next ones; a random one's does not.

The earlier rows are learned from, the later ones are the future: they are
scored once the variant is made.  Only the kind of validation differs.  What is
promised is the next window, as long as the gate's; those after it are shown.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.claim import PATIENCE_S, parser, settle, tables
from bench.command import as_row
from bench.factory_run import bundle_of, newest, predictions, run
from bench.record import WORK
from bench.sets import SETS, BenchSet, score
from factory.search.splits import evaluation_share

FOLDER = WORK / "time_order"
TIMES = {"bike_hourly": "timestamp", "avocado": "date"}
"""Column by which the rows are ordered."""
FUTURE = 0.25
"""Share of the rows that come later."""
FOLDS = 5
KINDS = ("time", "cross_validation")

COLUMNS = {
    "data": "data",
    "kind": "validation",
    "rows": "rows",
    "later_rows": "later rows",
    "promised": "RMSE promised",
    "low": "95 % interval from",
    "high": "to",
    "window_rows": "window's rows",
    "next": "RMSE on the next window",
    "off": "next / promised",
    "covered": "within the interval",
    "farther": "further windows within it",
    "later": "RMSE on all later rows",
    "wall_s": "wall s",
    "met": "as expected",
}
NOTE = (
    f"`factory run` on the earlier {1 - FUTURE:.0%} of the time's rows, with `validation: time` and with "
    f"{FOLDS}-fold `cross_validation`. Promised: the variant's score on the rows set aside for its gate (the latest "
    "ones for `time`, random ones else), with its interval; this is what a requester is told. Next window: of the same "
    "variant on the rows just after them, as many as were set aside; the further windows and all later rows are for "
    "information, nothing was promised of them. As expected: the next window is within the interval for `time`, "
    "outside of it for `cross_validation`."
)


def main() -> int:
    """Make the variants; return 1 where an interval did not do as expected."""
    arguments = parser(__doc__, budget_s=60)
    arguments.add_argument("--sets", nargs="+", choices=TIMES, default=list(TIMES), metavar="NAME", help="(all)")
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.sets, chosen.budget = chosen.sets[:1], 10
    both = itertools.product(chosen.sets, KINDS)
    keys = [{"data": data, "kind": kind, "budget_s": chosen.budget, "seed": chosen.seed} for data, kind in both]
    return settle("time_order", keys, partial(promise, folder=folder), again=chosen.again, columns=COLUMNS, note=NOTE)


def promise(*, data: str, kind: str, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Make a variant of the earlier rows and hold its promised score against that of the later ones."""
    bench_set, place = SETS[data], FOLDER / f"{data}-{kind}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    earlier, later = by_time(pd.read_parquet(folder / f"{data}.parquet"), TIMES[data])
    # In random order, as tables come: nothing but the column tells the time.
    earlier.sample(frac=1, random_state=seed).to_parquet(place / "train.parquet", index=False)
    validation = {"kind": kind} | ({"column": TIMES[data]} if kind == "time" else {"folds": FOLDS})
    document = {
        "name": data.replace("_", "-"),
        "recipe": "tabular-auto",
        "dataset": {"path": str(place / "train.parquet"), "target": bench_set.target, "task": bench_set.task},
        "validation": validation,
        "budget": {"time_s": budget_s},
        "seed": seed,
    }
    taken = run(document, folder=place, home=place / "home", timeout_s=budget_s + PATIENCE_S)
    row: dict[str, Any] = {"rows": len(earlier), "later_rows": len(later), "met": False, **as_row(taken)}
    came = newest(place / "home")
    if came is None or not came.variants:
        return row
    variant = came.variants[0]
    # Scores are losses with their sign turned; so are the ends of the interval.
    promised, low, high = (0.0 - one for one in (variant.score, variant.score_high, variant.score_low))
    answer = predictions(bundle_of(variant, place / "home"), later)
    found = score(bench_set, later[bench_set.target], answer)
    n_rows = round(evaluation_share(len(earlier)) * len(earlier))
    coming, *further = blocks(bench_set, later, answer, n_rows=n_rows)
    shutil.rmtree(place / "home", ignore_errors=True)
    covered = bool(low <= coming <= high)
    row |= {"promised": promised, "low": low, "high": high, "window_rows": n_rows, "later": found}
    row |= {"next": coming, "off": round(coming / promised, 3), "windows": [coming, *further]}
    row |= {"farther": f"{sum(low <= one <= high for one in further)} of {len(further)}"}
    return row | {"covered": covered, "met": covered == (kind == "time")}


def blocks(bench_set: BenchSet, later: pd.DataFrame, answer: pd.DataFrame, *, n_rows: int) -> list[float]:
    """Return the score of each whole window of so many later rows, in the order of time."""
    truth = later[bench_set.target]
    starts = range(0, len(later) - n_rows + 1, n_rows)
    return [score(bench_set, truth.iloc[i : i + n_rows], answer.iloc[i : i + n_rows]) for i in starts]


def by_time(frame: pd.DataFrame, column: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the earlier and the later rows; rows of one moment stay together, with the later ones."""
    ordered = frame.sort_values(column, kind="stable")
    first = ordered[column].iloc[round(len(ordered) * (1 - FUTURE))]
    return ordered[ordered[column] < first], ordered[ordered[column] >= first]


if __name__ == "__main__":
    sys.exit(main())
