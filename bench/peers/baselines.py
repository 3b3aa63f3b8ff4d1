"""LightGBM and scikit-learn's HistGradientBoosting with their defaults: no search, only what they need to read a table.

Text becomes pandas categories (a level that was not seen: missing), dates
become seconds.  HistGradientBoosting takes 255 levels at most; the number of
the sorted level stands for those of a column with more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from bench.peers import REFERENCE
from bench.peers.job import Job, Predict, run

MAX_LEVELS = 255

Encode = Callable[[pd.DataFrame], pd.DataFrame]


def encoder(frame: pd.DataFrame, *, max_levels: int | None) -> Encode:
    """Return what makes a table of text and dates one of categories and numbers.

    Args:
        frame: Rows to learn the levels from.
        max_levels: Most levels of a category; columns with more become numbers.
    """
    levels = {
        name: pd.CategoricalDtype(sorted(frame[name].dropna().unique()))
        for name in frame.columns
        if not pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_datetime64_any_dtype(frame[name])
    }

    def encode(rows: pd.DataFrame) -> pd.DataFrame:
        columns = {}
        for name in rows.columns:
            column = rows[name]
            if name in levels:
                column = column.astype(levels[name])
                if max_levels is not None and len(levels[name].categories) > max_levels:
                    column = column.cat.codes.where(column.notna(), np.nan)
            elif pd.api.types.is_datetime64_any_dtype(column):
                column = (column - pd.Timestamp(0)).dt.total_seconds()
            columns[name] = column
        return pd.DataFrame(columns, index=rows.index)

    return encode


def hist_gradient_boosting(X: pd.DataFrame, y: pd.Series, *, regression: bool, seed: int) -> Predict:
    """Fit scikit-learn's HistGradientBoosting with its defaults."""
    encode = encoder(X, max_levels=MAX_LEVELS)
    kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    model = kind(categorical_features="from_dtype", random_state=seed).fit(encode(X), y)
    return _predict(model, encode, regression=regression)


def lightgbm(X: pd.DataFrame, y: pd.Series, *, regression: bool, seed: int, cores: int) -> Predict:
    """Fit LightGBM with its defaults."""
    # Only its environment has to have it; the reference is also fitted where it is not installed.
    from lightgbm import LGBMClassifier, LGBMRegressor

    encode = encoder(X, max_levels=None)
    kind = LGBMRegressor if regression else LGBMClassifier
    model = kind(random_state=seed, n_jobs=cores, verbose=-1).fit(encode(X), y)
    return _predict(model, encode, regression=regression)


def _predict(model: Any, encode: Encode, *, regression: bool) -> Predict:
    def predict(rows: pd.DataFrame) -> pd.DataFrame:
        if regression:
            return pd.DataFrame({"prediction": model.predict(encode(rows))})
        return pd.DataFrame(model.predict_proba(encode(rows)), columns=list(model.classes_))

    return predict


def fit(train: pd.DataFrame, job: Job) -> Predict:
    """Fit the one that the job's option names."""
    X, y = train.drop(columns=job.target), train[job.target]
    regression = job.task == "regression"
    if job.option == REFERENCE:
        return hist_gradient_boosting(X, y, regression=regression, seed=job.seed)
    return lightgbm(X, y, regression=regression, seed=job.seed, cores=job.cores)


if __name__ == "__main__":
    run(fit, packages=["scikit-learn", "lightgbm", "pandas"])
