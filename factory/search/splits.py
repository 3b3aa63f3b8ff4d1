"""Which rows train, which validate, and which only the gate sees.

The evaluation rows are set aside first and are seen by nothing but the final
score and the gate.  All trials of a request share the same folds, so that
their out-of-fold predictions line up and can be blended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from factory.data.dataset import Dataset
from factory.errors import Detail, InvalidData, InvalidRequest
from factory.spec import (
    AutoValidation,
    CrossValidation,
    GroupSplit,
    Holdout,
    Task,
    TimeSplit,
    Validation,
)

CROSS_VALIDATION_ROWS = 12_000
"""Up to here five folds are worth their time on two cores in a minute (docs/decisions/validation.md)."""
AUTO_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Row positions, int64: ``train`` (n_train,) and ``validation`` (n_validation,), disjoint."""

    train: np.ndarray
    validation: np.ndarray


def evaluation_share(n_rows: int) -> float:
    """Share of rows that is kept for the gate: 600 rows, but a tenth at least and a fifth at most."""
    return float(np.clip(600 / n_rows, 0.1, 0.2))


def set_aside(dataset: Dataset, validation: Validation, *, seed: int) -> Split:
    """Return the rows for the search (``train``) and the rows for the gate (``validation``).

    Follows the validation's kind: the latest rows for a time column, whole groups for a group column.
    """
    share = evaluation_share(len(dataset.y))
    if isinstance(validation, TimeSplit):
        return _latest(dataset, validation, share)
    if isinstance(validation, GroupSplit):
        return _groups(dataset, validation, n_folds=round(1 / share), seed=seed)[0]
    return _random(dataset, share, seed)


def folds(dataset: Dataset, validation: Validation, *, seed: int) -> tuple[Split, ...]:
    """Return the splits that every trial uses; one for a holdout, several for cross-validation."""
    n_rows = len(dataset.y)
    match validation:
        case AutoValidation():
            kind: Validation = (
                CrossValidation(folds=AUTO_FOLDS)
                if n_rows <= CROSS_VALIDATION_ROWS
                else Holdout(share=float(np.clip(2_500 / n_rows, 0.1, 0.2)))
            )
            return folds(dataset, kind, seed=seed)
        case Holdout():
            return (_random(dataset, validation.share, seed),)
        case TimeSplit():
            return (_latest(dataset, validation, 0.2),)
        case GroupSplit():
            return _groups(dataset, validation, n_folds=AUTO_FOLDS, seed=seed)
        case CrossValidation():
            return _stratified(dataset, validation.folds, seed)


def _stratified(dataset: Dataset, n_folds: int, seed: int) -> tuple[Split, ...]:
    """K folds; a class with fewer rows than folds is spread over as many folds as it has rows.

    With two classes there are no more folds than that, since a fold with one class only has no AUC.
    """
    generator = np.random.default_rng(seed)
    n_folds = min(n_folds, len(dataset.y))
    if dataset.task is Task.BINARY:
        n_folds = max(2, min(n_folds, int(np.bincount(dataset.y, minlength=2).min())))
    fold = np.empty(len(dataset.y), dtype=np.int64)
    strata = [np.arange(len(dataset.y))]
    if dataset.task is not Task.REGRESSION:
        strata = [np.flatnonzero(dataset.y == k) for k in range(len(dataset.classes))]
    start = 0
    for rows in strata:
        fold[generator.permutation(rows)] = (np.arange(len(rows)) + start) % n_folds
        start += len(rows)
    return tuple(Split(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds))


def _random(dataset: Dataset, share: float, seed: int) -> Split:
    """A stratified part of the rows; each class with two rows or more stands on both sides."""
    generator = np.random.default_rng(seed)
    n_rows = len(dataset.y)
    if dataset.task is Task.REGRESSION:
        held = generator.permutation(n_rows)[: max(1, round(share * n_rows))]
    else:
        parts = []
        for k in range(len(dataset.classes)):
            rows = generator.permutation(np.flatnonzero(dataset.y == k))
            parts.append(rows[: min(max(1, round(share * len(rows))), max(len(rows) - 1, 0))])
        held = np.concatenate(parts)
    return Split(np.setdiff1d(np.arange(n_rows), held), np.sort(held))


def _latest(dataset: Dataset, split: TimeSplit, share: float) -> Split:
    times = dataset.column(split.column)
    if missing := int(times.isna().sum()):
        raise InvalidData(
            f"validation.column: {missing} of {len(times)} rows have no time in {split.column!r}.",
            hint="Fill them in, leave those rows out, or choose another validation.",
            details=[Detail("validation.column", f"{missing} missing values")],
        )
    order = np.argsort(np.asarray(times), kind="stable")
    n_held = max(1, round(share * len(order)))
    n_train = len(order) - n_held - split.gap
    if n_train < n_held:
        raise InvalidRequest(
            f"validation.gap: {split.gap} leaves {n_train} of {len(order)} rows to train on.",
            hint="Make the gap smaller or bring more rows.",
        )
    return Split(np.sort(order[:n_train]), np.sort(order[-n_held:]))


def _groups(dataset: Dataset, split: GroupSplit, *, n_folds: int, seed: int) -> tuple[Split, ...]:
    """Whole groups, dealt out by size to the fold that has the fewest rows."""
    _, group = np.unique(np.asarray(dataset.column(split.column)).astype(str), return_inverse=True)
    sizes = np.bincount(group)
    n_folds = min(n_folds, len(sizes))
    if n_folds < 2:
        raise InvalidRequest(
            f"validation.column: {split.column!r} holds one group only.", hint="Choose a column with several groups."
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    rows_in, fold_of = np.zeros(n_folds), np.empty(len(sizes), dtype=np.int64)
    for g in order:
        fold_of[g] = int(rows_in.argmin())
        rows_in[fold_of[g]] += sizes[g]
    fold = fold_of[group]
    return tuple(Split(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds))
