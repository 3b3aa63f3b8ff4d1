"""What growing costs: twelve times the rows, ten times the columns; the time is kept and memory follows the data.

Rows are those of a table repeated, the numbers with noise, so that no row is
another's copy; columns are the table's own once more, ten times in all, with
more noise each time, as measurements of the same thing would be.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.claim import parser, settle, tables
from bench.command import as_row
from bench.factory_fit import LOG, Fit, limit_s
from bench.peers.job import PREDICTIONS
from bench.record import ROOT, WORK
from bench.sets import SETS, score, split

FOLDER = WORK / "scaling"
DATA = "diamonds"
FACTOR = 10
ROWS = 500_000
"""To learn from: twelve times the table's."""
NOISE = 0.02
"""Standard deviation of what is added to a number, as a share of its column's."""
MEMORY_FACTOR, MEMORY_BASE_MB = 6, 2000
"""Peak memory stays below this many times the data's, and a fixed part."""
PATIENCE_S = 600.0
"""Beyond the budget, after which a fit is killed."""

COLUMNS = {
    "shape": "shape",
    "rows": "rows",
    "columns": "columns",
    "data_mb": "data MB",
    "score": "RMSE",
    "constant": "a constant's",
    "wall_s": "wall s",
    "limit_s": "limit s",
    "peak_pss_mb": "peak PSS MB",
    "limit_mb": "limit MB",
    "others_cores": "cores used by others",
    "met": "met",
}
NOTE = (
    f"{DATA}, 75 % of the rows, as they are, repeated to {ROWS:,} (numbers with {NOISE:.0%} "
    f"noise), {FACTOR} times the columns. Data MB: of the training table as pandas holds it "
    f"(`memory_usage(deep=True)`). Limits: of the whole process, and {MEMORY_FACTOR} times the data and "
    f"{MEMORY_BASE_MB / 1000:g} GB for PSS summed over all its processes. RMSE: on the same unseen rows."
)
SHAPES = ("as it is", "rows", "columns")


def main() -> int:
    """Fit each shape; return 1 where one was late, too large or failed."""
    arguments = parser(__doc__, budget_s=60)
    arguments.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, help="(default: all)")
    chosen = arguments.parse_args()
    if (folder := tables()) is None:
        return 0
    if chosen.quick:
        chosen.shapes, chosen.budget = ["columns"], 15
    keys = [{"shape": shape, "budget_s": chosen.budget, "seed": chosen.seed} for shape in chosen.shapes]
    return settle("scaling", keys, partial(grow, folder=folder), again=chosen.again, columns=COLUMNS, note=NOTE)


def grow(*, shape: str, folder: Path, budget_s: int, seed: int) -> dict[str, Any]:
    """Fit one shape of the table and score it on the unseen rows."""
    bench_set = SETS[DATA]
    train, test = split(bench_set, folder, seed=seed)
    rng = np.random.default_rng(seed)
    if shape == "rows":
        train = more_rows(train, target=bench_set.target, n_rows=ROWS, rng=rng)
    elif shape == "columns":
        both = more_columns(pd.concat([train, test]), target=bench_set.target, factor=FACTOR, rng=rng)
        train, test = both.iloc[: len(train)], both.iloc[len(train) :]
    place = FOLDER / shape.replace(" ", "-")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    train.to_parquet(place / "train.parquet", index=False)
    test.drop(columns=bench_set.target).to_parquet(place / "test.parquet", index=False)
    data_mb = train.memory_usage(deep=True, index=False).sum() / 1e6
    call = Fit(
        train=place / "train.parquet",
        test=place / "test.parquet",
        target=bench_set.target,
        budget_s=budget_s,
        seed=seed,
        home=place / "home",
    )
    row = as_row(call.run(place / PREDICTIONS, timeout_s=budget_s + PATIENCE_S))
    call.clean()
    done = row["returncode"] == 0
    truth = test[bench_set.target]
    reached = score(bench_set, truth, pd.read_parquet(place / PREDICTIONS)) if done else None
    constant = float(np.sqrt(np.mean((truth - train[bench_set.target].mean()) ** 2)))
    kept = row["wall_s"] <= limit_s(budget_s) and row["peak_pss_mb"] <= MEMORY_FACTOR * data_mb + MEMORY_BASE_MB
    return {
        "rows": len(train),
        "columns": train.shape[1],
        "data_mb": round(data_mb, 1),
        "score": reached,
        "constant": constant,
        **row,
        "limit_s": limit_s(budget_s),
        "limit_mb": round(MEMORY_FACTOR * data_mb + MEMORY_BASE_MB),
        "log": str((place / LOG).relative_to(ROOT)),
        "met": bool(reached is not None and reached < constant and kept),
    }


def more_rows(frame: pd.DataFrame, *, target: str, n_rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return the rows repeated to ``n_rows``, numbers but the target's with noise from the first repetition on."""
    repeated = frame.iloc[np.arange(n_rows) % len(frame)].reset_index(drop=True)
    for name in _numeric(frame, target):
        noise = rng.normal(scale=NOISE * frame[name].std(), size=n_rows)
        noise[: len(frame)] = 0
        repeated[name] = repeated[name] + noise
    return repeated


def more_columns(frame: pd.DataFrame, *, target: str, factor: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return ``factor`` times the columns: numbers with more noise each time, of other columns more values shuffled."""
    numeric = set(_numeric(frame, target))
    copies = {}
    for time in range(1, factor):
        for name in frame.columns.drop(target):
            values = frame[name].to_numpy().copy()
            if name in numeric:
                values = values + rng.normal(scale=NOISE * time * frame[name].std(), size=len(frame))
            else:
                moved = rng.random(len(frame)) < NOISE * time
                values[moved] = rng.permutation(values[moved])
            copies[f"{name}_{time}"] = values
    return pd.concat([frame, pd.DataFrame(copies, index=frame.index)], axis=1)


def _numeric(frame: pd.DataFrame, target: str) -> list[str]:
    return [name for name in frame.columns.drop(target) if pd.api.types.is_numeric_dtype(frame[name])]


if __name__ == "__main__":
    sys.exit(main())
