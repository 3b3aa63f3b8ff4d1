"""One row's native prediction: each family's fold models one after the other, and merged into one.

Run: ``python -m bench.merged_row`` (``--rows``, ``--columns``, ``--folds``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from factory import plugins
from factory.data.preparation import Table
from factory.families.base import Family, FitContext, Model, Sample, Shape
from factory.spec import Task

FAMILIES = ("lightgbm", "xgboost", "catboost", "extra_trees", "linear", "neighbours")
ROUNDS = 300
REPEATS = 200


def generated(*, n_rows: int, n_columns: int, seed: int) -> Sample:
    """Return numbers whose first four bend the target, float32 (n_rows, n_columns)."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n_rows, n_columns)).astype(np.float32)
    y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + np.abs(X[:, 3]) + 0.3 * random.normal(size=n_rows)
    names = tuple(f"x{j}" for j in range(n_columns))
    return Sample(Table(X, np.empty((n_rows, 0), np.int32), (), names, ()), y.astype(np.float64))


def median_ms(call: Callable[[Table], object], table: Table) -> float:
    """Return the median time of a call with a table of one row that it has not seen, in milliseconds."""
    times = []
    for i in range(REPEATS):
        row = replace(table.rows(np.array([i % len(table)])))
        began = time.perf_counter()
        call(row)
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def answer_each(models: Sequence[Model], table: Table) -> list[np.ndarray]:
    """Return every model's answer, one after the other."""
    return [model.predict(table) for model in models]


def main() -> None:
    """Print a line for each family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--folds", type=int, default=8)
    asked = parser.parse_args()
    whole = generated(n_rows=asked.rows, n_columns=asked.columns, seed=0)
    fresh = generated(n_rows=100, n_columns=asked.columns, seed=1).table
    fold = np.random.default_rng(2).integers(0, asked.folds, len(whole))
    print(f"{'family':12} {'one fold ms':>12} {f'{asked.folds} folds ms':>12} {'merged ms':>10} {'merge s':>8}")
    for name in FAMILIES:
        family = plugins.load("families", name)
        assert isinstance(family, Family)
        parameters = family.portfolio(Task.REGRESSION, shape=Shape(len(whole)))[0].parameters
        rounds = ROUNDS if family.iterative else None
        context = FitContext(task=Task.REGRESSION, n_classes=0, seed=0, rounds=rounds)
        models = [
            family.fit(
                Sample(whole.table.rows(fold != k), whole.y[fold != k]),
                validation=None,
                parameters=parameters,
                context=context,
            )
            for k in range(asked.folds)
        ]
        began = time.perf_counter()
        merged = family.merge(models)
        merge_s = time.perf_counter() - began
        one = median_ms(models[0].predict, fresh)
        each = median_ms(partial(answer_each, models), fresh)
        together = f"{median_ms(merged.predict, fresh):10.3f} {merge_s:8.2f}" if merged is not None else f"{'-':>10}"
        print(f"{name:12} {one:12.3f} {each:12.3f} {together}", flush=True)


if __name__ == "__main__":
    main()
