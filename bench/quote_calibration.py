"""A quote is what a request comes to: wall time, processor time and score lie within its 80 % intervals as often.

More than thirty small requests of one team are quoted and then made, one after
the other in one home: each quote knows what came before it and nothing else
(prequential, as Dawid, 1984, calls it).  Tables, budgets, validations and
kinds of making differ, so that most requests are unlike the one before.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import PATIENCE_S, QUICK, Journal, parser, report, tables
from bench.command import as_row
from bench.factory_run import TEAM, newest, run
from bench.record import WORK
from bench.sets import SETS, BenchSet
from factory.ledger import Ledger
from factory.operate.quotes import COVERAGE, Interval, Quote, quote_document
from factory.settings import Settings

FOLDER = WORK / "quote_calibration"
PARTS = 3
"""Of a table's rows, at random: a part is a sibling of the others."""
CHANCE = 0.05
"""A share within the intervals is too small if so many at most would come by chance were the intervals right."""
MEASURES = ("wall", "cpu", "score")
MADE = (0, 3)
"""Exit codes of a request that was made; 3 where its gate said no."""


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        name: Of the variant.
        data: The table.
        parts: Of its rows.
        budget_s: Of the request.
        trials: Of its budget, where it counts them.
        recipe: By name.
        making: Kind.
        parent: Name of an earlier one's variant, whose first version is the parent.
        by: Column of the segments, where it makes them.
        validation: As a request has it; the recipe's if None.
        suffix: Of the file.
    """

    name: str
    data: str
    parts: tuple[int, ...] = (0, 1, 2)
    budget_s: int = 15
    trials: int | None = None
    recipe: str = "tabular-auto"
    making: str = "auto"
    parent: str | None = None
    by: str | None = None
    validation: Mapping[str, Any] | None = None
    suffix: str = "parquet"


_PLAIN = ("telco_churn", "wine_quality", "california_housing", "mammography")
ASKS: tuple[Ask, ...] = (
    *(Ask(f"{data}-a", data, (0,), 10, making="cold") for data in _PLAIN),
    Ask("digits-a", "digits", budget_s=15, suffix="csv"),
    *(Ask(f"{data}-b", data, (1,), 20) for data in _PLAIN),
    Ask("adult-a", "adult", (0,), 20),
    *(Ask(f"{data}-refit", data, (0, 1), 30, making="refit", parent=f"{data}-a") for data in _PLAIN),
    Ask("bike_hourly-time", "bike_hourly", budget_s=20, validation={"kind": "time", "column": "timestamp"}),
    *(Ask(f"{data}-counted", data, (2,), 120, trials=12) for data in _PLAIN),
    Ask("digits-counted", "digits", budget_s=60, trials=8),
    Ask("diamonds-a", "diamonds", (0,), 15, suffix="csv"),
    *(Ask(f"{data}-c", data, (2,), 45) for data in _PLAIN),
    Ask("telco_churn-segments", "telco_churn", budget_s=40, by="Contract"),
    Ask("superstore-fast", "superstore", budget_s=12, recipe="tabular-fast"),
    Ask("adult-segments", "adult", budget_s=60, by="occupation"),
    Ask("bike_hourly-holdout", "bike_hourly", budget_s=30, validation={"kind": "holdout"}),
    Ask("adult-minute", "adult", (1, 2), 60),
    Ask("digits-few", "digits", budget_s=60, trials=3),
    Ask("telco_churn-fast", "telco_churn", (1,), 10, recipe="tabular-fast", suffix="csv"),
    Ask("avocado-segments", "avocado", budget_s=60, by="geography"),
    Ask("diamonds-on", "diamonds", (1,), 30, making="incremental", parent="diamonds-a"),
    Ask("wine_quality-on", "wine_quality", (2,), 30, making="incremental", parent="wine_quality-a"),
)
QUICK_ASKS = (ASKS[0], Ask("telco_churn-refit", "telco_churn", (0, 1), 30, making="refit", parent="telco_churn-a"))

COLUMNS = {
    "request": "request",
    "rows": "rows",
    "asked": "asked for",
    "n_past": "past",
    "wall": "wall s: quoted",
    "wall_came": "came",
    "wall_within": "within",
    "cpu": "CPU s: quoted",
    "cpu_came": "came",
    "cpu_within": "within",
    "score": "score: quoted",
    "score_came": "came",
    "score_within": "within",
    "others_cores": "cores used by others",
    "promised": "promise kept",
}
NOTE = (
    "Each request is quoted, then made by `factory run`; all in one home, so a quote knows the requests above it. "
    f"Quoted: expected (ends of the {COVERAGE:.0%} interval). Wall and CPU: of the whole process and all that it "
    "starts. Score: of the variant on rows that its search has not seen; none is quoted where no earlier request had "
    "like data. Past: earlier requests of the same kind. Last line: how many lay within, and the median of |came / "
    "expected - 1|. Met: no share within is so small that it would come by chance in one of twenty such runs, and "
    "every process ended when the engine promises it (budget x 1.05 + 15 s)."
)


def main() -> int:
    """Quote and make the requests; return 1 where one failed, or the intervals held too seldom."""
    arguments = parser(__doc__, budget_s=None)
    chosen = arguments.parse_args()
    if chosen.budget is not None:
        arguments.error("--budget: each request has its own")
    if (folder := tables()) is None:
        return 0
    asks, path = (QUICK_ASKS, FOLDER / "quick.jsonl") if chosen.quick else (ASKS, FOLDER / "rows.jsonl")
    home = FOLDER / path.stem
    if chosen.again or chosen.quick or not path.exists():
        shutil.rmtree(home, ignore_errors=True)  # its history would be one that no quote of the journal knew
    journal = Journal(path, again=chosen.again or chosen.quick)
    rows = [
        journal.row({"request": ask.name, "seed": chosen.seed}, partial(measure, ask, folder, home, seed=chosen.seed))
        for ask in asks
    ]
    met, summary = summed(rows)
    report("quote_calibration", [*rows, summary], columns=COLUMNS, note=NOTE)
    return 0 if met or QUICK in sys.argv else 1


def measure(ask: Ask, folder: Path, home: Path, *, seed: int) -> dict[str, Any]:
    """Quote one request, make it, and hold one against the other."""
    bench_set, place = SETS[ask.data], FOLDER / ask.name
    path, n_rows = put_table(ask, folder, seed=seed)
    if ask.parent is not None:  # whose models may need its rows again
        put_table(next(one for one in ASKS if one.name == ask.parent), folder, seed=seed)
    request = document(ask, bench_set, path, seed=seed)
    settings = Settings(home=home)
    settings.prepare_home()
    with Ledger.open(settings.ledger) as ledger:
        quoted = quote_document({"team": TEAM, **request}, ledger=ledger, settings=settings)
    taken = as_row(run(request, folder=place, home=home, timeout_s=ask.budget_s + PATIENCE_S))
    came = newest(home) if taken["returncode"] in MADE else None
    score = came.variants[0].score if came is not None and came.variants else None
    return {
        "rows": n_rows,
        "asked": told(ask),
        "problems": [f"{p.field}: {p.message}" for p in quoted.problems],
        "state": None if came is None else came.record.state.value,
        "n_past": quoted.n_past,
        **compared(quoted, wall_s=taken["wall_s"], cpu_s=taken["cpu_s"], score=score),
        **taken,
    }


def put_table(ask: Ask, folder: Path, *, seed: int) -> tuple[Path, int]:
    """Write a request's table, the same each time, and return where it lies and its number of rows."""
    bench_set, place = SETS[ask.data], FOLDER / ask.name
    rows = part(pd.read_parquet(folder / f"{ask.data}.parquet"), ask.parts, seed=seed)
    if bench_set.task == "multiclass":  # of a class with one row nothing can be learned
        rows = rows[rows.groupby(bench_set.target)[bench_set.target].transform("size") > 1]
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"table.{ask.suffix}"
    rows.to_csv(path, index=False) if ask.suffix == "csv" else rows.to_parquet(path, index=False)
    return path, len(rows)


def part(frame: pd.DataFrame, parts: Sequence[int], *, seed: int) -> pd.DataFrame:
    """Return the rows of some parts of a table, which are the same parts for all requests."""
    which = np.random.default_rng(seed).integers(0, PARTS, len(frame))
    return frame[np.isin(which, parts)].reset_index(drop=True)


def document(ask: Ask, bench_set: BenchSet, path: Path, *, seed: int) -> dict[str, Any]:
    """Return the request without its team."""
    budget = {"time_s": ask.budget_s} | ({} if ask.trials is None else {"trials": ask.trials})
    return {
        "name": ask.name.replace("_", "-"),
        "recipe": ask.recipe,
        "dataset": {"path": str(path), "target": bench_set.target, "task": bench_set.task},
        "budget": budget,
        "making": ask.making,
        "seed": seed,
        **({"parent": f"{TEAM}.{ask.parent.replace('_', '-')}/1"} if ask.parent else {}),
        **({"segments": {"by": ask.by}} if ask.by else {}),
        **({"validation": dict(ask.validation)} if ask.validation else {}),
    }


def told(ask: Ask) -> str:
    """Return what was asked for, for a line of the table."""
    parts = [f"{ask.budget_s} s"]
    parts += [f"{ask.trials} trials"] if ask.trials is not None else []
    parts += [ask.making] if ask.making != "auto" else []
    parts += [f"by {ask.by}"] if ask.by else []
    parts += [str(ask.validation["kind"])] if ask.validation else []
    return ", ".join(parts)


def compared(quoted: Quote, *, wall_s: float, cpu_s: float, score: float | None) -> dict[str, Any]:
    """Return what was quoted and what came, measure by measure."""
    scored = quoted.score.score if quoted.score is not None and score is not None else None
    row: dict[str, Any] = {"promised": quoted.promise_s is not None and wall_s <= quoted.promise_s}
    for name, interval, came in (
        ("wall", quoted.wall_s, wall_s),
        ("cpu", quoted.used_cpu_s, cpu_s),
        ("score", scored, score),
    ):
        row[f"{name}_came"] = came
        row[name] = "" if interval is None else shown(interval)
        row[f"{name}_interval"] = None if interval is None else [interval.low, interval.expected, interval.high]
        row[f"{name}_within"] = None if interval is None or came is None else interval.low <= came <= interval.high
    return row


def shown(interval: Interval) -> str:
    """Return an interval for a line of the table."""
    return f"{interval.expected:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def summed(rows: Sequence[Mapping[str, Any]]) -> tuple[bool, dict[str, Any]]:
    """Return whether the quotes held, and the last line of the table."""
    line: dict[str, Any] = {"request": "all", "promised": all(row["promised"] for row in rows)}
    met = bool(line["promised"]) and all(row["returncode"] in MADE for row in rows)
    for name in MEASURES:
        judged = [row for row in rows if row[f"{name}_within"] is not None]
        n_within = sum(row[f"{name}_within"] for row in judged)
        off = [abs(row[f"{name}_came"] / row[f"{name}_interval"][1] - 1) for row in judged]
        line[name] = f"off by {np.median([o for o in off if isfinite(o)]):.1%}" if off else ""
        line[f"{name}_within"] = f"{n_within} of {len(judged)}"
        met = met and too_few(len(judged)) < n_within
    return met, line


def too_few(n: int) -> int:
    """Return the largest number of cases within their intervals that would be too small for chance; -1 where none is.

    >>> too_few(34), too_few(3)
    (22, 0)
    """
    from scipy.stats import binom

    return int(binom.ppf(CHANCE, n, COVERAGE)) - 1


if __name__ == "__main__":
    sys.exit(main())
