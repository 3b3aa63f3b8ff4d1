"""``factory fit --budget 60s`` keeps its time and memory, and beats scikit-learn's default gradient boosting.

Five public tables, 75 % of the rows to learn from and 25 % to be scored on.
Both sides get the same rows; :mod:`bench.peers.baselines` says how the
reference reads text.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from bench.claim import bare_parser
from bench.command import as_row
from bench.factory_fit import LOG, Fit, limit_s
from bench.peers.baselines import hist_gradient_boosting
from bench.peers.job import PREDICTIONS
from bench.record import ROOT, WORK, save
from bench.sets import SETS, SOURCE_VARIABLE, BenchSet, score, source, write_split

FOLDER = WORK / "fit_minute"
PATIENCE_S = 300.0
"""Beyond the budget, after which the command is killed."""
MEMORY_LIMIT_MB = 3000

COLUMNS = {
    "data": "data",
    "metric": "metric",
    "seed": "seed",
    "score": "factory",
    "reference": "HistGradientBoosting",
    "gain": "better by %",
    "wall_s": "wall s",
    "limit_s": "limit s",
    "peak_pss_mb": "peak PSS MB",
    "cpu_s": "CPU s",
    "others_cores": "cores used by others",
    "met": "met",
}
NOTE = (
    "75/25 split, stratified by class; whole process, reading and start-up included; PSS summed over all processes "
    "(Ray's too), sampled every 0.5 s, below 3 GB. The reference is scikit-learn's HistGradientBoosting with its "
    "defaults on the same rows. Better by: fall of the loss, for AUC of 1 - AUC."
)

NAMES = ("telco_churn", "wine_quality", "california_housing", "adult", "diamonds")


def main() -> int:
    """Run the chosen tables and seeds; return 1 where one was late, too large, worse than the reference, or failed."""
    parser = bare_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--budget", type=int, default=60, metavar="SECONDS", help="of each fit (default: 60)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of split and fit (default: 0)")
    chosen = parser.parse_args()
    folder = source()
    if folder is None:
        print(f"Skipped: {SOURCE_VARIABLE} names no folder with the tables.")
        return 0
    rows = [
        compare(SETS[name], folder=folder, budget_s=chosen.budget, seed=seed)
        for name in NAMES
        if name in chosen.sets
        for seed in chosen.seeds
    ]
    save("fit_minute", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    for row in rows:
        if not row["met"]:
            print(f"{row['data']}, seed {row['seed']}: {row['missed']}; see {row['log']}")
    return 0 if all(row["met"] for row in rows) else 1


def compare(bench_set: BenchSet, *, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Fit both sides on the same split and score them on the same rows."""
    place = FOLDER / f"{bench_set.data}-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    truth = write_split(bench_set, folder, place, seed=seed)
    row = _factory(bench_set, place, budget_s=budget_s, seed=seed)
    out = place / PREDICTIONS
    row["score"] = score(bench_set, truth, pd.read_parquet(out)) if out.exists() else None
    started = time.perf_counter()
    train, test = pd.read_parquet(place / "train.parquet"), pd.read_parquet(place / "test.parquet")
    regression = bench_set.task == "regression"
    y = train[bench_set.target] if regression else train[bench_set.target].astype(str)
    reference = hist_gradient_boosting(train.drop(columns=bench_set.target), y, regression=regression, seed=seed)
    row["reference"] = score(bench_set, truth, reference(test))
    row["reference_s"] = round(time.perf_counter() - started, 2)
    told = {"data": bench_set.data, "metric": bench_set.metric, "seed": seed, "budget_s": budget_s}
    return told | row | _judged(bench_set, row)


def _factory(bench_set: BenchSet, folder: Path, *, budget_s: int, seed: int) -> dict[str, Any]:
    """Run ``factory fit`` with a FACTORY_HOME of its own, which is kept only where it failed."""
    fit = Fit(
        train=folder / "train.parquet",
        test=folder / "test.parquet",
        target=bench_set.target,
        budget_s=budget_s,
        seed=seed,
        home=folder / "home",
    )
    taken = fit.run(folder / PREDICTIONS, timeout_s=budget_s + PATIENCE_S)
    if taken.returncode == 0:
        fit.clean()
    return {**as_row(taken), "limit_s": limit_s(budget_s), "log": str((folder / LOG).relative_to(ROOT))}


def _judged(bench_set: BenchSet, row: dict[str, Any]) -> dict[str, Any]:
    """Return whether everything was met, what was not, and the relative gain in percent (of 1 - AUC, or the loss)."""
    missed = []
    gain = None
    if row["returncode"] or row["score"] is None:
        missed.append(f"exit code {row['returncode']}")
    else:
        ours, theirs = bench_set.loss(row["score"]), bench_set.loss(row["reference"])
        gain = round(100 * (theirs - ours) / theirs, 2)
        if gain <= 0:
            missed.append("not better than the reference")
    if row["wall_s"] > row["limit_s"]:
        missed.append("late")
    if row["peak_pss_mb"] > MEMORY_LIMIT_MB:
        missed.append("too much memory")
    if row["left_behind"]:
        missed.append("left processes behind")
    return {"gain": gain, "met": not missed, "missed": ", ".join(missed)}


if __name__ == "__main__":
    sys.exit(main())
