"""The model that every server answers with: rows of numbers in, numbers out. Runs in a peer's own environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

PATH = "SERVED_MODEL"
"""Variable with the file: LightGBM's text, or a pipeline of scikit-learn."""


def load() -> Callable[[Any], Any]:
    """Return a function of rows (n_rows, n_columns)."""
    import numpy as np

    path = os.environ[PATH]
    if path.endswith(".txt"):
        import lightgbm

        booster = lightgbm.Booster(model_file=path)
        return lambda rows: booster.predict(np.asarray(rows, dtype=np.float64), num_threads=1)
    import joblib

    pipeline = joblib.load(path)
    return lambda rows: pipeline.predict(np.asarray(rows, dtype=np.float64))
