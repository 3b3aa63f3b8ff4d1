"""What a table says about its own rows: what is to be learned, as which task, and how much each row counts.

What is wrong with single values is returned, so that it is told together with
the problems of the features.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from factory.data.columns import as_numeric, factorize, infer_type
from factory.errors import Detail, InvalidData, listing
from factory.spec import NUMBERS, ColumnType, DatasetRef, Task

_MOST_CLASSES_OF_INTEGERS = 20
"""A whole-number target with more distinct values is a quantity, not a label."""
_LEAST_ROWS_PER_CLASS = 5
"""Whole numbers that repeat less than this on average are a quantity, too; so are those of which one never does."""


def target_known(frame: pd.DataFrame, ref: DatasetRef) -> np.ndarray:
    """Return which rows have a target, bool (n_rows,).

    Raises:
        InvalidData: none has.
    """
    series = frame[ref.target]
    values = series.to_numpy()
    known = factorize(values)[0] >= 0 if values.dtype.kind == "O" else series.notna().to_numpy()
    if len(frame) and not known.any():
        raise InvalidData(
            f"The target {ref.target!r} is missing in every row.",
            hint="Give a table with known outcomes, or name another target.",
            details=[Detail("dataset.target", "missing in every row")],
        )
    return np.asarray(known)


def read_weights(series: pd.Series, *, field: str, known: np.ndarray) -> tuple[np.ndarray | None, list[Detail]]:
    """Return the weights of all rows, or None and what is wrong with them.

    Args:
        series: The weights, (n_rows,).
        field: Of the request, to tell problems by.
        known: Rows with a target, bool (n_rows,); the others' weights do not matter.
    """
    numbers = as_numeric(series.to_numpy())
    kinds = {"missing or no number": np.isnan(numbers), "infinite": np.isinf(numbers), "negative": numbers < 0}
    told = []
    for what, bad in kinds.items():
        if (n_bad := int((bad & known).sum())) > 0:
            shown = listing(dict.fromkeys(repr(v) for v in series[bad & known].head(50).tolist()), most=3)
            told.append(f"{n_bad} are {what} ({shown})")
    if told:
        message = f"Of {int(known.sum())} weights in {series.name!r}, {', '.join(told)}; allowed: numbers from 0 up."
        return None, [Detail(field, message)]
    if not (numbers[known] > 0).any():
        return None, [Detail(field, f"All weights in {series.name!r} are zero, so that no row would count.")]
    return numbers, []


def read_target(series: pd.Series, ref: DatasetRef) -> tuple[Task, tuple[str, ...], np.ndarray, list[Detail]]:
    """Return the task, the classes, the encoded target (n_rows,), and what is wrong with it."""
    numbers = as_numeric(series.to_numpy())
    kind = infer_type(series)
    numeric = kind in NUMBERS and not np.isnan(numbers).any()
    if kind is ColumnType.DATETIME:
        problem = "The target holds dates; derive a number or a label from them."
        return ref.task or Task.REGRESSION, (), numbers, [Detail(ref.target, problem)]
    task = ref.task or _infer_task(series, numbers if numeric else None)
    if task is Task.REGRESSION:
        return task, (), numbers, _check_numbers(series, numbers, ref)
    codes, labels = factorize(series.to_numpy())
    order = sorted(range(len(labels)), key=lambda i: _label_key(labels[i]))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels))
    y = rank[codes]
    classes = tuple(labels[i] for i in order)
    return task, classes, y, _check_classes(task, classes, y, ref)


def weighted_median(values: np.ndarray, weights: np.ndarray | None) -> float:
    """Return the middle of some numbers (n,), of which each counts as much as its weight (n,); all the same if None."""
    if weights is None:
        return float(np.median(values))
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _label_key(label: str) -> tuple[int, float, str]:
    """Numbers first and by value, then words."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _infer_task(series: pd.Series, numbers: np.ndarray | None) -> Task:
    if numbers is None:
        return Task.BINARY if len(factorize(series.to_numpy())[1]) == 2 else Task.MULTICLASS
    values, counts = np.unique(numbers, return_counts=True)
    if len(values) <= 2:
        return Task.BINARY
    whole = np.isfinite(values).all() and bool((values == np.floor(values)).all())
    few = len(values) <= min(_MOST_CLASSES_OF_INTEGERS, len(numbers) / _LEAST_ROWS_PER_CLASS)
    return Task.MULTICLASS if whole and few and counts.min() > 1 else Task.REGRESSION


def _check_numbers(series: pd.Series, numbers: np.ndarray, ref: DatasetRef) -> list[Detail]:
    """A regression target must be finite numbers that are not all the same."""
    bad = np.flatnonzero(np.isnan(numbers))
    if len(bad):
        shown = listing({repr(v) for v in series.iloc[bad[:50]].tolist()}, most=3)
        return [Detail(ref.target, f"{len(bad)} values of the regression target are not numbers: {shown}.")]
    if n := int(np.isinf(numbers).sum()):
        return [Detail(ref.target, f"{n} values of the target are infinite.")]
    if (numbers == numbers[0]).all():
        return [Detail(ref.target, f"The target is {numbers[0]:g} in every row; there is nothing to learn.")]
    return []


def _check_classes(task: Task, classes: tuple[str, ...], y: np.ndarray, ref: DatasetRef) -> list[Detail]:
    if len(classes) == 1:
        return [Detail(ref.target, f"The target has one class only, {classes[0]!r}; at least two are needed.")]
    if task is Task.BINARY and len(classes) > 2:
        message = f"The target has {len(classes)} classes ({listing(classes)}), but task 'binary' has two."
        return [Detail(ref.target, message)]
    if task is Task.MULTICLASS and len(classes) == 2:
        return [Detail(ref.target, "The target has two classes; task 'multiclass' needs three or more: use 'binary'.")]
    single = [classes[i] for i in np.flatnonzero(np.bincount(y, minlength=len(classes)) < 2)]
    if single:
        message = (
            f"{len(single)} of {len(classes)} classes have one row only ({listing(single, most=5)}); each needs two, "
            "to learn from one and to be judged on the other. Remove or merge them, or set task 'regression' if the "
            "target is a quantity."
        )
        return [Detail(ref.target, message)]
    return []
