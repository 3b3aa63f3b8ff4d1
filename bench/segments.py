"""A variant for each segment: twenty a minute, together as good as the pooled variant or better.

One request with ``segments`` makes the pooled variant and those of the
segments.  Held-out rows of each segment are then predicted twice: by what a
caller of the segment gets (its variant, or the pooled one where it is thin or
its gate said no), and by the pooled variant.  A pooled variant that has the
whole budget to itself is made as well.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import PATIENCE_S, Journal, parser, report, tables
from bench.command import as_row
from bench.factory_fit import limit_s
from bench.factory_run import Came, bundle_of, newest, predictions, run
from bench.record import WORK
from bench.sets import SETS, BenchSet, score, split
from factory.ledger.records import Event

FOLDER = WORK / "segments"
LEAST_PER_MINUTE = 20.0
SAME = 0.001
"""Share of the loss that nobody notices: repeats of a search with one seed differ by as much and more."""


@dataclass(frozen=True)
class Fan:
    """A table, the column that parts it, and seconds for all of its variants."""

    data: str
    by: str
    budget_s: int


FANS = {fan.data: fan for fan in (Fan("avocado", "geography", 150), Fan("adult", "occupation", 40))}
QUICK = Fan("adult", "occupation", 20)

COLUMNS = {
    "data": "data",
    "by": "by",
    "budget_s": "budget s",
    "variants": "variants",
    "thin": "pooled segments",
    "rejected": "turned down",
    "wall_s": "wall s",
    "per_minute": "variants a minute",
    "running_per_minute": "of it, once segments run",
    "metric": "metric",
    "own_mean": "segments' own, mean",
    "pooled_mean": "pooled, mean",
    "better": "segments better / worse",
    "own_total": "own, all rows",
    "pooled_total": "pooled, all rows",
    "alone_mean": "pooled with the whole budget, mean",
    "alone_total": "all rows",
    "peak_pss_mb": "peak PSS MB",
    "met": "met",
}
NOTE = (
    "`factory run` of one request with `segments`; 75 % of the rows to learn from, scores on the other 25 %, by "
    "segment and then averaged (mean), and of all rows together. Own: what a caller of the segment gets, its "
    "variant or the pooled one where the segment is thin or its gate said no. Pooled: the pooled variant of the "
    "same request. Variants a minute: all that were registered, by the wall time of the whole process. Met: "
    f"{LEAST_PER_MINUTE:g} a minute or more, and a mean loss that is not more than {SAME:.1%} above the pooled "
    "variant's."
)


def main() -> int:
    """Make the fans; return 1 where one was slow, worse than its pooled variant, or failed."""
    arguments = parser(__doc__, budget_s=None)
    arguments.add_argument("--sets", nargs="+", choices=FANS, default=list(FANS), metavar="NAME", help=", ".join(FANS))
    arguments.add_argument("--min-rows", type=int, metavar="N", help="of a segment (default: the factory's)")
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    journal = Journal.of("segments", again=chosen.again)
    fans = [QUICK] if chosen.quick else [FANS[name] for name in chosen.sets]
    rows = []
    for fan in fans:
        budget_s = chosen.budget or fan.budget_s
        known = {"data": fan.data, "by": fan.by, "budget_s": budget_s, "seed": chosen.seed, "min_rows": chosen.min_rows}
        rows.append(journal.row(known, partial(measure_fan, fan, folder, chosen, budget_s=budget_s)))
    report("segments", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


def measure_fan(fan: Fan, folder: Path, chosen: argparse.Namespace, *, budget_s: int) -> dict[str, Any]:
    """Make all variants of a fan, and score each segment's rows by its own variant and by the pooled one."""
    bench_set, place = SETS[fan.data], FOLDER / fan.data
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    train, test = split(bench_set, folder, seed=chosen.seed)
    train.to_parquet(place / "train.parquet", index=False)
    document = {
        "name": fan.data.replace("_", "-"),
        "recipe": "tabular-auto",
        "dataset": {"path": str(place / "train.parquet"), "target": bench_set.target, "task": bench_set.task},
        "budget": {"time_s": budget_s},
        "seed": chosen.seed,
    }
    segments = {"by": fan.by} | ({"min_rows": chosen.min_rows} if chosen.min_rows else {})
    taken = run({**document, "segments": segments}, folder=place, home=place / "home", timeout_s=budget_s + PATIENCE_S)
    came = newest(place / "home")
    row = {**as_row(taken), "metric": bench_set.metric, "limit_s": limit_s(budget_s), "met": False}
    if taken.returncode or came is None:
        return row
    row |= pace(came, wall_s=taken.wall_s) | compare(bench_set, fan.by, test, came, place / "home")
    row["met"] = row["per_minute"] >= LEAST_PER_MINUTE and row["worse_by"] <= SAME
    alone = place / "alone"
    if not run(document, folder=alone, home=alone / "home", timeout_s=budget_s + PATIENCE_S).returncode:
        one = newest(alone / "home")
        if one is not None:
            answer = predictions(bundle_of(one.variants[0], alone / "home"), test)
            row["alone_total"] = score(bench_set, test[bench_set.target], answer)
            parts = by_segment(bench_set, test, labels(test[fan.by]), answer)
            row["alone_mean"] = float(np.mean(list(parts.values())))
    shutil.rmtree(alone / "home", ignore_errors=True)
    return row


def pace(came: Came, *, wall_s: float) -> dict[str, Any]:
    """Return how many variants there are and how many came in a minute."""
    gates = [event for event in came.events if event.kind == "gate"]
    return {
        "variants": len(came.variants),
        "rejected": sum(v.state != "registered" for v in came.variants),
        "per_minute": round(60 * len(came.variants) / wall_s, 1),
        "running_per_minute": rate(gates[:-1]),  # the pooled variant's comes last
    }


def rate(events: Sequence[Event]) -> float | None:
    """Return the events a minute from the first of them to the last; None where there are not three."""
    if len(events) < 3:
        return None
    took_s = (events[-1].time - events[0].time).total_seconds()
    return round(60 * (len(events) - 1) / took_s, 1) if took_s else None


def compare(bench_set: BenchSet, by: str, test: pd.DataFrame, came: Came, home: Path) -> dict[str, Any]:
    """Score the test rows of each segment by what its caller gets and by the pooled variant."""
    named = labels(test[by])
    pooled = predictions(bundle_of(came.variants[0], home), test)
    own = pooled.copy()
    served = {labels(pd.Series([v.segment], dtype=object))[0]: v for v in came.variants[1:] if v.state == "registered"}
    for segment, variant in served.items():
        rows = named == segment
        if rows.any():
            own[rows] = predictions(bundle_of(variant, home), test[rows])[own.columns]
    parts = {"own": by_segment(bench_set, test, named, own), "pooled": by_segment(bench_set, test, named, pooled)}
    told = [
        {"segment": s, "rows": int((named == s).sum()), "variant": s in served, "own": parts["own"][s], "pooled": known}
        for s, known in parts["pooled"].items()
    ]
    own_loss, pooled_loss = (np.array([bench_set.loss(parts[side][s]) for s in parts["pooled"]]) for side in parts)
    better, worse = int((own_loss < pooled_loss).sum()), int((own_loss > pooled_loss).sum())
    truth = test[bench_set.target]
    return {
        "thin": len(parts["pooled"]) - len(served.keys() & parts["pooled"].keys()),
        "own_mean": float(np.mean(list(parts["own"].values()))),
        "pooled_mean": float(np.mean(list(parts["pooled"].values()))),
        "better": f"{better} / {worse}",
        "worse_by": float(own_loss.mean() / pooled_loss.mean() - 1),
        "own_total": score(bench_set, truth, own),
        "pooled_total": score(bench_set, truth, pooled),
        "segments": told,
    }


def labels(values: pd.Series) -> np.ndarray:
    """Return values as the names of segments, object (n_rows,); all ways to write a missing one are one."""
    written = values.astype(str)
    return np.asarray(written.where(~written.isin(["nan", "None", "<NA>", "NaT"]), "(missing)"), dtype=object)


def by_segment(bench_set: BenchSet, test: pd.DataFrame, named: np.ndarray, answer: pd.DataFrame) -> Mapping[str, float]:
    """Return the score of each segment's rows, of those segments that have rows of every class."""
    truth = test[bench_set.target]
    n_classes = truth.nunique() if bench_set.task != "regression" else 0
    found = {}
    for segment in sorted(set(named)):
        rows = named == segment
        if not n_classes or truth[rows].nunique() == n_classes:
            found[segment] = score(bench_set, truth[rows], answer[rows])
    return found


if __name__ == "__main__":
    sys.exit(main())
