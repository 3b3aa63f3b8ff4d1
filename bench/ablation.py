"""What each part of the engine is worth: ``factory fit`` with the part switched off, on six tables.

The engine reads ``FACTORY_ENGINE_WITHOUT``, a list such as
``portfolio,bagging``.  What a sibling's history is worth shows only where there
is a history: two arms start in a home that already holds a request on another
split of the same table, one of them without transfer.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.claim import PATIENCE_S, Journal, parser, report, tables
from bench.command import as_row
from bench.factory_fit import LOG, RECIPE, Fit, limit_s
from bench.peers.job import PREDICTIONS
from bench.record import ROOT, WORK
from bench.sets import SETS, BenchSet, score, write_split

FOLDER = WORK / "ablation"
NAMES = ("telco_churn", "adult", "wine_quality", "california_housing", "diamonds", "superstore")
"""Two of each task, small and large, with and without categories of many levels."""
SEEDS = (0, 1)
SIBLING_SEED = 1000
"""Added to the seed of the split that the history comes from."""
SIBLINGS = FOLDER / "siblings"
"""Homes with nothing but a sibling, made once for each table, recipe, budget and seed; an arm starts in a copy."""

COLUMNS = {
    "data": "data",
    "metric": "metric",
    "arm": "arm",
    "seeds": "seeds",
    "score": "score",
    "worse": "loss against its full engine, %",
    "helps": "helps on",
    "wall_s": "wall s",
    "peak_pss_mb": "peak PSS MB",
    "failed": "failed",
}
NOTE = (
    "`factory fit` with one part of the engine switched off; mean over the seeds of split and fit. Loss against its "
    "full engine: of the loss, for AUC of 1 - AUC; positive where the part helps. The full engine of an arm with a "
    "history is `history`, of the others `full`. All: the mean of these losses. Wall time and PSS: the largest."
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
        Arm("without race", ("race",)),
        Arm("without bagging", ("bagging",)),
        Arm("without ensemble", ("ensemble",)),
        Arm("without search", ("search",)),
        Arm("history", history=True),
        Arm("history, without transfer", ("transfer",), history=True),
    )
}


def main() -> int:
    """Run the chosen arms; return 1 where a fit failed."""
    arguments = parser(__doc__, budget_s=60, seed="")
    arguments.add_argument("--sets", nargs="+", choices=SETS, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    arguments.add_argument(
        "--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="of split and fit (default: 0 1)"
    )
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    arguments.add_argument("--recipe", default=RECIPE, metavar="NAME", help=f"of all fits (default: {RECIPE})")
    arguments.add_argument("--without", metavar="PARTS", help="one arm of your own instead, as portfolio,bagging")
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    arms = [ARMS[name] for name in chosen.arms]
    if chosen.without:
        arms = [ARMS["full"], Arm(f"without {chosen.without}", tuple(chosen.without.split(",")))]
    if chosen.quick:
        chosen.sets, chosen.seeds, chosen.budget = chosen.sets[:1], [0], 10
        arms = [ARMS["full"], ARMS["without bagging"]]
    journal = Journal.of("ablation", again=chosen.again)
    if chosen.again:
        shutil.rmtree(SIBLINGS, ignore_errors=True)
    runs = []
    for data in chosen.sets:
        for arm in arms:
            for seed in chosen.seeds:
                how = {"budget_s": chosen.budget, "seed": seed, "recipe": chosen.recipe}
                run = Run(SETS[data], folder, **how)
                runs.append(journal.row({"data": data, "arm": arm.name, **how}, partial(run.fit, arm)))
    rows = summary(runs, arms)
    rows += overall(rows)
    report("ablation", rows, columns=COLUMNS, note=NOTE)
    return 1 if any(row["failed"] for row in rows) else 0


@dataclass(frozen=True)
class Run:
    """Fits of one split of a table, each with one seed, budget and recipe."""

    bench_set: BenchSet
    tables: Path
    budget_s: int
    seed: int
    recipe: str

    def fit(self, arm: Arm) -> dict[str, Any]:
        """Run one arm, in the home of a sibling where it has a history; the home is deleted."""
        place = FOLDER / f"{self._name}-{arm.name.replace(' ', '-').replace(',', '')}"
        shutil.rmtree(place, ignore_errors=True)
        home = self._home_with_sibling() if arm.history else place / "home"
        truth = write_split(self.bench_set, self.tables, place, seed=self.seed)
        making = "warm_start" if arm.history else "cold"
        row = self._measured(place, home, without=arm.without, making=making)
        shutil.rmtree(home, ignore_errors=True)
        out = place / PREDICTIONS
        result = score(self.bench_set, truth, pd.read_parquet(out)) if row["returncode"] == 0 and out.exists() else None
        told = {"metric": self.bench_set.metric, "score": result}
        return told | row | {"limit_s": limit_s(self.budget_s), "log": str((place / LOG).relative_to(ROOT))}

    def _home_with_sibling(self) -> Path:
        """Return a FACTORY_HOME that holds a request on another split, and nothing that an arm has added."""
        place = SIBLINGS / self._name
        home, kept = place / "home", place / "kept"
        shutil.rmtree(home, ignore_errors=True)
        if not kept.exists():
            write_split(self.bench_set, self.tables, place, seed=self.seed + SIBLING_SEED)
            self._measured(place, home, name="bench.sibling")
            home.rename(kept)
        # To the same place: what a home stores may hold its own path.
        shutil.copytree(kept, home, symlinks=True)
        return home

    @property
    def _name(self) -> str:
        return f"{self.bench_set.data}-{self.recipe}-{self.budget_s}-{self.seed}"

    def _measured(self, place: Path, home: Path, **how: Any) -> dict[str, Any]:
        call = Fit(
            train=place / "train.parquet",
            test=place / "test.parquet",
            target=self.bench_set.target,
            budget_s=self.budget_s,
            seed=self.seed,
            home=home,
            recipe=self.recipe,
            **how,
        )
        return as_row(call.run(place / PREDICTIONS, timeout_s=self.budget_s + PATIENCE_S))


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


def overall(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each arm with a part switched off: the mean over the tables, and on how many the part helps."""
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows if row["worse"] is not None):
        mine = [row for row in rows if row["arm"] == arm]
        known = [row["worse"] for row in mine if row["worse"] is not None]
        found.append(
            {
                "data": "all",
                "arm": arm,
                "worse": round(sum(known) / len(known), 2),
                "helps": f"{sum(w > 0 for w in known)} of {len(known)}",
                "wall_s": max(row["wall_s"] for row in mine),
                "peak_pss_mb": max(row["peak_pss_mb"] for row in mine),
                "failed": sum(row["failed"] for row in mine),
            }
        )
    return found


def _mean(runs: Sequence[dict[str, Any]]) -> float | None:
    scores = [run["score"] for run in runs]
    return sum(scores) / len(scores) if scores and None not in scores else None


if __name__ == "__main__":
    sys.exit(main())
