"""A LightGBM variant of a few shallow trees, as a request makes it: what is measured with it is what is around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import make_regression

from bench.factory_run import newest, run
from factory.spec import RequestState

N_COLUMNS = 8
NAMES = tuple(f"x{i}" for i in range(N_COLUMNS))
SPACE = {"learning_rate": 0.3, "num_leaves": 8}
"""Fast learning stops early, and few leaves are few."""
SPACES = {"lightgbm": SPACE, "linear": {"splines": False}}
SIZE_MB = 0.05
"""At most: one model of LightGBM's bag, since eight of them are eight times as many trees; all eight linear ones. A
bound in time would now and then be missed by a model that is alone, or kept by all eight."""
ABOUT = f"LightGBM with learning rate {SPACE['learning_rate']} and {SPACE['num_leaves']} leaves on {N_COLUMNS} numbers"


def make_variant(home: Path, folder: Path, *, name: str, family: str = "lightgbm") -> str:
    """Make the variant, and return its name with its version.

    Args:
        home: FACTORY_HOME.
        folder: Gets the table, the request and the log.
        name: Of the variant.
        family: Of its one member.
    """
    x, y = make_regression(8_000, N_COLUMNS, n_informative=5, noise=100.0, random_state=0)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(x, columns=list(NAMES)).assign(y=y).to_parquet(folder / "train.parquet", index=False)
    document: dict[str, Any] = {
        "name": name,
        "recipe": "tabular-fast",
        "dataset": {"path": str(folder / "train.parquet"), "target": "y", "task": "regression"},
        "families": [family],
        "spaces": {family: SPACES[family]},
        "budget": {"time_s": 40, "trials": 1},
        "ceilings": {"size_mb": SIZE_MB},
    }
    run(document, folder=folder / "making", home=home, timeout_s=300)
    came = newest(home)
    if came is None or not came.variants or came.record.state is RequestState.REJECTED:
        raise SystemExit((folder / "making" / "run.log").read_text())
    return f"{came.variants[0].name}/{came.variants[0].version}"


def rows(n: int, *, seed: int) -> pd.DataFrame:
    """Return so many rows of normally distributed numbers."""
    random = np.random.default_rng(seed)
    return pd.DataFrame({name: random.normal(size=n) for name in NAMES})
