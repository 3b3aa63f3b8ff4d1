"""Columns that should not be there, planted into real tables: found, named, and left out or kept as asked.

Four columns are added to a table: ``leak`` (the target with a little noise),
``copy`` (the target renamed or rescaled), ``ticket`` (an identifier) and
``drifted`` (honest when learning; in the rows to be predicted on another scale).  In the
rows to be predicted, leak and copy hold another row's values: nobody knows the
outcome then.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import PATIENCE_S, Journal, parser, report, tables
from bench.command import as_row
from bench.factory_run import Came, bundle_of, newest, predictions, run
from bench.record import WORK
from bench.sets import SETS, BenchSet, score, split
from factory.search.metric import Metric

FOLDER = WORK / "planted"
NAMES = ("telco_churn", "adult", "california_housing")
PLANTED = ("leak", "copy", "ticket", "drifted")
NOISE = 1e-3
"""Of the leak, in standard deviations of the target."""
HONESTY = 1.0
"""Of the drifted column: noise in standard deviations of the target, which it tells something of."""
DRIFT = 10.0
"""How far it moves in the rows to be predicted, in its own standard deviations."""

COLUMNS = {
    "data": "data",
    "column": "planted",
    "found": "what the factory says",
    "left_out": "left out by itself",
    "kept": "used with `keep`",
    "dropped": "left out with `drop`",
    "metric": "metric",
    "promised_with": "promised with it",
    "score_with": "true with it",
    "promised": "promised without",
    "score": "true without",
    "met": "met",
}
NOTE = (
    "`factory run` with `scoring` and `drift: drop`; 75 % of the rows to learn from. Promised: on the rows set "
    "aside for the gate, what a requester is told. True: on the other 25 %, with the planted columns as they are "
    "when predicting. Without: all four are left out, as the factory does by itself. With: this column is named in "
    "`keep`, the others in `drop`. Left out and used are read from the variant's own columns."
)


def main() -> int:
    """Plant and make; return 1 where a column was not found, or not treated as asked."""
    arguments = parser(__doc__, budget_s=20)
    arguments.add_argument("--sets", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.sets, chosen.budget = chosen.sets[:1], 6
    journal = Journal.of("planted", again=chosen.again)
    rows: list[dict[str, Any]] = []
    for data in chosen.sets:
        of = {"data": data, "budget_s": chosen.budget, "seed": chosen.seed}
        made = {}
        for arm in ARMS:
            key = {**of, "arm": arm}
            made[arm] = journal.row(key, partial(make, folder=folder, **key))
        rows += [line(column, made) for column in PLANTED]
    report("planted", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows) else 1


ARMS: Mapping[str, Mapping[str, Any]] = {
    "as it comes": {"drift": "drop"},
    "drop": {"drop": list(PLANTED)},
    **{f"keep {c}": {"drift": "drop", "keep": [c], "drop": [o for o in PLANTED if o != c]} for c in PLANTED},
}
"""What the request says about the columns, by the name of the run."""


def make(*, data: str, arm: str, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Make one variant; return what was said of the columns, which of them it uses, and both scores."""
    bench_set, place = SETS[data], FOLDER / f"{data}-{arm.replace(' ', '-')}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    train, test = split(bench_set, folder, seed=seed)
    train, test = plant(bench_set, train, test, seed=seed)
    train.to_parquet(place / "train.parquet", index=False)
    test.drop(columns=bench_set.target).to_parquet(place / "scoring.parquet", index=False)
    document = {
        "name": data.replace("_", "-"),
        "recipe": "tabular-fast",
        "dataset": {
            "path": str(place / "train.parquet"),
            "scoring": str(place / "scoring.parquet"),
            "target": bench_set.target,
            "task": bench_set.task,
            **ARMS[arm],
        },
        "gates": {"allow_leakage": True},
        "budget": {"time_s": budget_s},
        "seed": seed,
    }
    taken = run(document, folder=place, home=place / "home", timeout_s=budget_s + PATIENCE_S)
    came = newest(place / "home")
    row = as_row(taken) | {"metric": bench_set.metric}
    if came is None or not came.variants:
        return row
    variant = came.variants[0]
    bundle = bundle_of(variant, place / "home")
    shutil.rmtree(place / "home", ignore_errors=True)
    return row | {
        "said": {column: said_of(column, came) for column in PLANTED},
        "used": [c.name for c in bundle.columns if c.name in PLANTED],
        "promised": float(Metric(variant.metric, variant.task).display(variant.score).replace(",", "")),
        "score": score(bench_set, test[bench_set.target], predictions(bundle, test)),
    }


def plant(
    bench_set: BenchSet, train: pd.DataFrame, test: pd.DataFrame, *, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to learn from and those to be predicted with the planted columns."""
    rng = np.random.default_rng(seed)
    whole = pd.concat([train, test])
    y = whole[bench_set.target]
    number = y.astype(float) if bench_set.task == "regression" else y.astype(str).rank(method="dense")
    later = np.arange(len(whole)) >= len(train)
    scale, n_rows = float(number.std()), len(whole)
    leak = number + NOISE * scale * rng.normal(size=n_rows)
    copy = 2 * number + 7 if bench_set.task == "regression" else "group " + number.astype(int).astype(str)
    drifted = number + HONESTY * scale * rng.normal(size=n_rows)
    drifted += np.where(later, DRIFT * float(drifted.std()), 0.0)
    whole = whole.assign(
        leak=leak, copy=copy, ticket=[f"T{n:08}" for n in rng.permutation(10 * n_rows)[:n_rows]], drifted=drifted
    )
    learned, predicted = whole[~later], whole[later]
    unknown = {name: rng.permutation(predicted[name].to_numpy()) for name in ("leak", "copy")}
    return learned, predicted.assign(**unknown)


def said_of(column: str, came: Came) -> list[str]:
    """Return the findings of the screening that name a column."""
    return [message for message in came.told("screening") if message.startswith(f"'{column}'")]


def line(column: str, made: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what became of one planted column in all runs of a table."""
    free, kept, dropped = made["as it comes"], made[f"keep {column}"], made["drop"]
    said = free.get("said", {}).get(column, [])
    told = {
        "data": free["data"],
        "column": column,
        "metric": free["metric"],
        "found": said[0].partition("; ")[0].partition(" ")[2] if said else "nothing",
        "left_out": column not in free.get("used", [column]),
        "kept": column in kept.get("used", []),
        "dropped": column not in dropped.get("used", [column]),
        "promised_with": kept.get("promised"),
        "score_with": kept.get("score"),
        "promised": free.get("promised"),
        "score": free.get("score"),
    }
    met = bool(said) and told["left_out"] and told["kept"] and told["dropped"]
    return {**told, "met": met, "runs": dict(made)}


if __name__ == "__main__":
    sys.exit(main())
