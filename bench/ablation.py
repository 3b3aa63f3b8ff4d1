"""What each part of the engine is worth: ``factory fit`` with the part switched off, on six tables.

The engine reads ``FACTORY_ENGINE_WITHOUT``, a list such as
``portfolio,bagging``.  What a sibling's history is worth shows only where there
is a history: two arms start in a home that already holds a request on another
split of the same table, one of them without transfer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.command import as_row
from bench.factory_fit import LOG, Fit, limit_s
from bench.peers.job import PREDICTIONS
from bench.record import ROOT, WORK, save
from bench.sets import SETS, SOURCE_VARIABLE, BenchSet, score, source, write_split

FOLDER = WORK / "ablation"
NAMES = ("telco_churn", "adult", "wine_quality", "california_housing", "diamonds", "superstore")
"""Two of each task, small and large, with and without categories of many levels."""
SIBLING_SEED = 1000
"""Added to the seed of the split that the history comes from."""
PATIENCE_S = 300.0
"""Beyond the budget, after which a fit is killed."""

COLUMNS = {
    "data": "data",
    "metric": "metric",
    "arm": "arm",
    "seeds": "seeds",
    "score": "score",
    "worse": "loss against its full engine, %",
    "wall_s": "wall s",
    "peak_pss_mb": "peak PSS MB",
    "failed": "failed",
}
NOTE = (
    "`factory fit` with one part of the engine switched off; mean over the seeds of split and fit. Loss against its "
    "full engine: of the loss, for AUC of 1 - AUC; positive where the part helps. The full engine of an arm with a "
    "history is `history`, of the others `full`. Wall time and PSS: the largest."
)


@dataclass(frozen=True)
class Arm:
    """A way to run the engine: what is switched off, and whether a sibling was made before in the same home."""

    name: str
    without: tuple[str, ...] = ()
    history: bool = False

    @property
    def full(self) -> str:
        """Name of the arm with nothing switched off that it is held against."""
        return "history" if self.history else "full"


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("full"),
        Arm("without portfolio", ("portfolio",)),
        Arm("without bagging", ("bagging",)),
        Arm("without ensemble", ("ensemble",)),
        Arm("without search", ("search",)),
        Arm("history", history=True),
        Arm("history, without transfer", ("transfer",), history=True),
    )
}


def main() -> int:
    """Run the chosen arms; return 1 where a fit failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--budget", type=int, default=60, metavar="SECONDS", help="of each fit (default: 60)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of split and fit (default: 0)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--without", metavar="PARTS", help="one arm of your own instead, as portfolio,bagging")
    chosen = parser.parse_args()
    folder = source()
    if folder is None:
        print(f"Skipped: {SOURCE_VARIABLE} names no folder with the tables.")
        return 0
    arms = [ARMS[name] for name in chosen.arms]
    if chosen.without:
        arms = [ARMS["full"], Arm(f"without {chosen.without}", tuple(chosen.without.split(",")))]
    runs = []
    for data in chosen.sets:
        for arm in arms:
            for seed in chosen.seeds:
                run = fit(SETS[data], arm, folder=folder, budget_s=chosen.budget, seed=seed)
                print(f"{data}, {arm.name}, seed {seed}: {run['score']}, {run['wall_s']:.0f} s", flush=True)
                runs.append(run)
    rows = summary(runs, arms)
    save("ablation", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    return 1 if any(row["failed"] for row in rows) else 0


def fit(bench_set: BenchSet, arm: Arm, *, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Run one fit, after its sibling's where the arm has a history; the home is deleted."""
    place = FOLDER / f"{bench_set.data}-{seed}-{arm.name.replace(' ', '-').replace(',', '')}"
    shutil.rmtree(place, ignore_errors=True)
    home = place / "home"
    if arm.history:
        sibling = place / "sibling"
        write_split(bench_set, folder, sibling, seed=seed + SIBLING_SEED)
        _fit(bench_set, sibling, home, seed=seed, budget_s=budget_s, name="bench.sibling")
    truth = write_split(bench_set, folder, place, seed=seed)
    row = _fit(bench_set, place, home, seed=seed, budget_s=budget_s, name="bench.fit", without=arm.without)
    shutil.rmtree(home, ignore_errors=True)
    out = place / PREDICTIONS
    result = score(bench_set, truth, pd.read_parquet(out)) if row["returncode"] == 0 and out.exists() else None
    told = {"data": bench_set.data, "metric": bench_set.metric, "arm": arm.name, "seed": seed, "score": result}
    return told | row | {"limit_s": limit_s(budget_s), "log": str((place / LOG).relative_to(ROOT))}


def _fit(
    bench_set: BenchSet,
    place: Path,
    home: Path,
    *,
    seed: int,
    budget_s: int,
    name: str,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    call = Fit(
        train=place / "train.parquet",
        test=place / "test.parquet",
        target=bench_set.target,
        budget_s=budget_s,
        seed=seed,
        home=home,
        without=without,
        name=name,
    )
    return as_row(call.run(place / PREDICTIONS, timeout_s=budget_s + PATIENCE_S))


def summary(runs: Sequence[dict[str, Any]], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return a row for each table and arm: means over the seeds, and the loss against the arm's full engine."""
    rows = []
    for data in dict.fromkeys(run["data"] for run in runs):
        means = {arm.name: _mean([r for r in runs if r["data"] == data and r["arm"] == arm.name]) for arm in arms}
        for arm in arms:
            mine = [run for run in runs if run["data"] == data and run["arm"] == arm.name]
            ours, full = means[arm.name], means.get(arm.full)
            worse = None
            if ours is not None and full is not None and arm.name != arm.full:
                loss, base = SETS[data].loss(ours), SETS[data].loss(full)
                worse = round(100 * (loss - base) / base, 2)
            rows.append(
                {
                    "data": data,
                    "metric": SETS[data].metric,
                    "arm": arm.name,
                    "seeds": len(mine),
                    "score": ours,
                    "worse": worse,
                    "wall_s": max(run["wall_s"] for run in mine),
                    "peak_pss_mb": max(run["peak_pss_mb"] for run in mine),
                    "failed": sum(run["score"] is None for run in mine),
                    "runs": mine,
                }
            )
    return rows


def _mean(runs: Sequence[dict[str, Any]]) -> float | None:
    scores = [run["score"] for run in runs]
    return sum(scores) / len(scores) if scores and None not in scores else None


if __name__ == "__main__":
    sys.exit(main())
