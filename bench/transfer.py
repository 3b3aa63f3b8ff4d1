"""What a sibling's history is worth: ten siblings, each searched cold and warm, trials until both are as good.

Siblings are the parts of one table with the most rows.  Cold searches learn
from nobody.  Warm ones are made one after the other in a home of their own,
where the first part was searched cold, and learn from those before them.  Both
have the same rows, folds and seed; a quarter of the rows is kept from them, and
says how good is what they have found after so many trials.

A run that was stopped goes on with the next sibling, in the same home.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import AGAIN, Journal, bare_parser, report, tables
from bench.record import WORK
from bench.sets import SETS
from factory.client import Fitted, fit
from factory.data.dataset import from_frame
from factory.data.preparation import Preparation
from factory.families.base import Family, FitContext, Sample
from factory.plugins import load
from factory.search.jobs import first_fold_score
from factory.search.metric import Metric
from factory.settings import Settings
from factory.spec import FileDataset, Task, Trial

FOLDER = WORK / "transfer"
PARTS = {"avocado": "geography", "adult": "occupation", "superstore": "sub_category"}
"""Column by which a table is taken apart."""
LIMIT_S = 1_800
"""Of one search; it is counted by trials, and this is ample."""
FEW = 5
"""A warm search has a fifth of the cold one's trials."""
TEST_SHARE, STOP_SHARE = 0.25, 0.2
"""Of a sibling's rows that no search sees, and of the others that a configuration is stopped by when it is judged."""
AS_GOOD = 0.005
"""Of the loss, by which a configuration may be worse and be as good; the engine's own measure (search/transfer.py)."""

COLUMNS = {
    "data": "data",
    "sibling": "sibling",
    "rows": "rows",
    "seeded_by": "seeded by",
    "cold_all": "loss: cold, all trials",
    "cold_few": "cold, a fifth",
    "warm_few": "warm, a fifth",
    "warm_all": "warm, all",
    "ratio": "warm, a fifth / cold, all",
    "trials": "warm trials until as good",
    "recorded": "trials to parity, as the variant says",
    "cold_s": "cold s",
    "warm_s": "warm s",
    "met": "met",
}
NOTE = (
    "Searches of `tabular-fast` with counted trials, the constant not counted: networks would take most of the time "
    "for few of them. Loss: of the best configuration so far (by its first fold, as the search knows it), fitted again "
    "and held against a quarter of the sibling's rows that no search has seen; so neither search is favoured by its "
    "own choice. RMSE, or 1 - AUC. Until as good: as the cold search's best of all, within 0.5 % of the loss. Seconds: "
    "of fits on first folds until then. Seeded by: requests that the warm search learned from. As the variant says: "
    "its `trials_to_parity`, held against the nearest earlier search on other rows. Mean: geometric for the ratio. "
    "Met: with a fifth of the trials a warm search is on average as good as a cold one with all."
)


def main() -> int:
    """Make the siblings; return 1 where a fifth of the trials is not as good on average."""
    parser = bare_parser(__doc__, seed="rows, folds and searches", quick="two siblings, six trials of tabular-fast")
    parser.add_argument("--sets", nargs="+", choices=PARTS, default=["avocado"], metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--siblings", type=int, default=10, metavar="N", help="parts of each table (default: 10)")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="of each search (default: 40)")
    parser.add_argument("--recipe", default="tabular-fast", help="how they are made (default: tabular-fast)")
    parser.add_argument(AGAIN, action="store_true", help="make again what an earlier run has made")
    chosen = parser.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.siblings, chosen.trials, chosen.recipe = 2, 6, "tabular-fast"
    journal = Journal.of("transfer", again=chosen.again)
    rows = [row for data in chosen.sets for row in compare(data, folder, chosen, journal)]
    report("transfer", rows, columns=COLUMNS, note=NOTE)
    return 0 if all(row["met"] for row in rows if row["sibling"] == MEAN) else 1


def compare(data: str, folder: Path, chosen: argparse.Namespace, journal: Journal) -> list[dict[str, Any]]:
    """Search the siblings of one table both ways; a line for each but the first, and the mean."""
    rows = []
    known = {"data": data, "trials": chosen.trials, "recipe": chosen.recipe, "seed": chosen.seed}
    place = FOLDER / "-".join(map(str, known.values()))
    frame = pd.read_parquet(folder / f"{data}.parquet")
    for n, (name, part) in enumerate(parts(frame, PARTS[data], chosen.siblings)):
        make = partial(sibling, n, part, place=place, data=data, chosen=chosen)
        rows.append(journal.row({**known, "sibling": name, "number": n}, make))
    later = [row for row in rows if row["number"]]
    means: dict[str, Any] = {key: float(np.mean([row[key] for row in later])) for key in _AVERAGED}
    ratio = float(np.exp(np.mean(np.log([row["ratio"] for row in later]))))
    reached = [row["trials"] for row in later if row["trials"] is not None]
    told = f"{len(reached)} of {len(later)} reach it, median {np.median(reached):.0f}" if reached else "none reaches it"
    mean = {"data": data, "sibling": MEAN, **means, "ratio": ratio, "trials": told, "met": ratio <= 1 + AS_GOOD}
    return [*later, mean]


MEAN = "mean"
_AVERAGED = ("rows", "cold_all", "cold_few", "warm_few", "warm_all", "cold_s", "warm_s")


def sibling(number: int, part: pd.DataFrame, *, place: Path, data: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Search one sibling: the first cold, where the others learn from it; the others in both ways."""
    if not number:
        shutil.rmtree(place, ignore_errors=True)
    order = np.random.default_rng(chosen.seed).permutation(len(part))
    n_test = round(TEST_SHARE * len(part))
    seen, unseen = part.iloc[order[n_test:]], part.iloc[order[:n_test]]
    make = partial(
        fit,
        seen.reset_index(drop=True),
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
        return {"rows": len(seen), "cost_s": first.variant.cost_s}
    cold = make(making="cold", settings=Settings(home=place / "cold"))
    warm = make(making="warm_start", settings=Settings(home=place / "warm"))
    metric = Metric(cold.variant.metric, cold.variant.task)
    judge = Judge(seen, unseen, data=data, metric=metric, seed=chosen.seed)
    return {"rows": len(seen), "seeded_by": len(warm.variant.seeded_by)} | line(cold, warm, judge=judge)


def parts(frame: pd.DataFrame, column: str, n: int) -> list[tuple[str, pd.DataFrame]]:
    """Return the parts of a table with the most rows, without the column that tells them apart."""
    names = frame[column].value_counts().head(n).index
    return [(str(name), frame[frame[column] == name].drop(columns=column).reset_index(drop=True)) for name in names]


class Judge:
    """Fits configurations again, and holds them against rows that no search has seen.

    Args:
        seen: Rows that the searches had.
        unseen: Rows to judge by.
        data: Name of the table.
        metric: Of the searches.
        seed: Of the rows that a fit is stopped by.
    """

    def __init__(self, seen: pd.DataFrame, unseen: pd.DataFrame, *, data: str, metric: Metric, seed: int) -> None:
        self._set, self._metric, self._seed = SETS[data], metric, seed
        frame = pd.concat([seen, unseen], ignore_index=True)
        self._data = from_frame(
            frame, FileDataset(path="part.parquet", target=self._set.target, task=Task(self._set.task))
        )
        preparation = Preparation.fit(self._data.frame.iloc[: len(seen)], self._data.types)
        self._table = preparation.transform(self._data.frame)
        order = np.random.default_rng(seed).permutation(len(seen))
        n_stop = round(STOP_SHARE * len(seen))
        self._rows = order[n_stop:], order[:n_stop], np.arange(len(seen), len(frame))
        self._known: dict[str, float] = {}

    def loss(self, trial: Trial) -> float:
        """Return a configuration's loss on the unseen rows."""
        key = json.dumps([trial.family, trial.parameters], sort_keys=True)
        if key not in self._known:
            family, data = load("families", trial.family), self._data
            assert isinstance(family, Family)
            train, stop, test = (Sample(self._table.rows(rows), data.y[rows]) for rows in self._rows)
            context = FitContext(task=data.task, n_classes=len(data.classes), seed=self._seed)
            model = family.fit(train, validation=stop, parameters=trial.parameters, context=context)
            score = self._metric.score(test.y, model.predict(test.table))
            self._known[key] = self._set.loss(abs(score))
        return self._known[key]


def line(cold: Fitted, warm: Fitted, *, judge: Judge) -> dict[str, Any]:
    """Return the losses of both searches' best configurations after a fifth of the trials, and after all."""
    row: dict[str, Any] = {}
    curves = {}
    for name, made in (("cold", cold), ("warm", warm)):
        trials = [t for t in sorted(made.outcome.made[0].trials, key=lambda t: t.number) if t.family != "constant"]
        curves[name] = curve = [judge.loss(t) for t in _best_so_far(trials)]
        few = max(1, len(trials) // FEW)
        row |= {f"{name}_few": curve[few - 1], f"{name}_all": curve[-1]}
        until = _reached(curve, curves["cold"][-1])
        row[f"{name}_s"] = round(sum(_fold_s(t) for t in trials[: until or len(trials)]), 2)
        row["trials"] = until
    row["ratio"] = row["warm_few"] / row["cold_all"]
    return row | {"recorded": warm.variant.trials_to_parity, "met": bool(row["ratio"] <= 1 + AS_GOOD)}


def _best_so_far(trials: Sequence[Trial]) -> list[Trial]:
    """Return after each trial the best one, as the search has seen it."""
    best, found = trials[0], []
    for trial in trials:
        mine, its = first_fold_score(trial), first_fold_score(best)
        if mine is not None and (its is None or mine > its):
            best = trial
        found.append(best)
    return found


def _reached(curve: Sequence[float], target: float) -> int | None:
    return next((i for i, loss in enumerate(curve, start=1) if loss <= target * (1 + AS_GOOD)), None)


def _fold_s(trial: Trial) -> float:
    return trial.cost_s / max(len(trial.folds), 1)


if __name__ == "__main__":
    sys.exit(main())
