"""One row in process: 5 ms by the default recipe, 1 ms by ``tabular-fast`` under a ceiling, and what the ceiling costs.

The same rows are given to three requests; each variant is then timed in a
process of its own, held to the cores of the fit, as the predictor hands rows
over (:mod:`bench.one_row` measures the way through the predictor's HTTP
application).
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.claim import PATIENCE_S, Journal, parser, report, tables
from bench.command import as_row
from bench.factory_fit import latency_ms
from bench.factory_run import bundle_of, newest, predictions, run
from bench.record import WORK
from bench.sets import SETS, score, split

FOLDER = WORK / "one_latency"
NAMES = ("telco_churn", "adult", "wine_quality", "california_housing")
ARMS: Mapping[str, tuple[Mapping[str, Any], float | None]] = {
    "tabular-auto": ({"recipe": "tabular-auto"}, 5.0),
    "tabular-fast": ({"recipe": "tabular-fast"}, None),
    "tabular-fast, 1 ms": ({"recipe": "tabular-fast", "ceilings": {"latency_ms": 1}}, 1.0),
}
"""What the request says, and the median that is promised, in ms."""
FREE = "tabular-fast"
"""Run that tells what the ceiling costs."""

COLUMNS = {
    "data": "data",
    "arm": "recipe",
    "metric": "metric",
    "score": "score",
    "lost": "loss added by the ceiling, %",
    "latency_ms": "one row, median ms",
    "limit_ms": "limit ms",
    "members": "models",
    "trade": "what the variant says itself",
    "wall_s": "wall s",
    "met": "met",
}
NOTE = (
    "75 % of the rows to learn from, scores on the other 25 %. One row: median of 30 after 3 to warm up, in "
    "process, arrays by column name. Loss added by the ceiling: against `tabular-fast` as it is, of the loss, for "
    "AUC of 1 - AUC; negative where the variant under the ceiling happened to be better."
)


def main() -> int:
    """Make and time the variants; return 1 where one was too slow or failed."""
    arguments = parser(__doc__, budget_s=60)
    arguments.add_argument("--sets", nargs="+", choices=SETS, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.sets, chosen.budget = chosen.sets[:1], 8
    journal = Journal.of("one_latency", again=chosen.again)
    rows = []
    for data in chosen.sets:
        made = {}
        for arm in ARMS:
            key = {"data": data, "arm": arm, "budget_s": chosen.budget, "seed": chosen.seed}
            made[arm] = journal.row(key, partial(make, folder=folder, **key))
        rows += [row | {"lost": lost(row, made[FREE])} for row in made.values()]
    report("one_latency", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


def make(*, data: str, arm: str, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Make one variant, score it and time it."""
    bench_set, place = SETS[data], FOLDER / f"{data}-{re.sub('[^a-z0-9]+', '-', arm)}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    train, test = split(bench_set, folder, seed=seed)
    train.to_parquet(place / "train.parquet", index=False)
    test.drop(columns=bench_set.target).to_parquet(place / "test.parquet", index=False)
    asked, limit_ms = ARMS[arm]
    document = {
        "name": data.replace("_", "-"),
        "dataset": {"path": str(place / "train.parquet"), "target": bench_set.target, "task": bench_set.task},
        "budget": {"time_s": budget_s},
        "seed": seed,
        **asked,
    }
    home = place / "home"
    row = as_row(run(document, folder=place, home=home, timeout_s=budget_s + PATIENCE_S))
    row |= {"metric": bench_set.metric, "limit_ms": limit_ms, "score": None, "met": False}
    came = newest(home)
    if came is None or not came.variants:
        return row
    variant = came.variants[0]
    bundle = bundle_of(variant, home)
    taken_ms = latency_ms(place / "test.parquet", variant.name, version=variant.version, home=home)
    row |= {
        "score": score(bench_set, test[bench_set.target], predictions(bundle, test)),
        "latency_ms": taken_ms,
        "members": len(bundle.members),
        "trade": re.sub(r"^[\w.-]+/\d+: ", "", came.told("frontier")[-1]),
        "met": limit_ms is None or taken_ms <= limit_ms,
    }
    shutil.rmtree(home, ignore_errors=True)
    return row


def lost(row: Mapping[str, Any], free: Mapping[str, Any]) -> float | None:
    """Return the loss that the ceiling added, in percent; None where there is none or a run failed."""
    limited = "ceilings" in ARMS[row["arm"]][0]
    if not limited or row["score"] is None or free["score"] is None:
        return None
    bench_set = SETS[row["data"]]
    return round(100 * (bench_set.loss(row["score"]) / bench_set.loss(free["score"]) - 1), 2)


if __name__ == "__main__":
    sys.exit(main())
