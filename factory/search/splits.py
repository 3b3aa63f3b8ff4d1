"""Which rows train, which validate, and which only the gate sees.

The evaluation rows are set aside first and are seen by nothing but the final
score and the gate.  All trials of a request share the same folds, so that
their out-of-fold predictions line up and can be blended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from factory.data.dataset import Dataset
from factory.errors import Detail, InvalidData, InvalidRequest, counted, listing
from factory.search.groups import dealt, kept_aside
from factory.search.metric import Metric
from factory.spec import (
    AutoValidation,
    CrossValidation,
    GroupSplit,
    Holdout,
    Task,
    TimeSplit,
    Validation,
)

AUTO_FOLDS = 8
"""The race decides how many of them a configuration sees: one where rows are many and time is short."""
FEW_GATE_ROWS, MOST_GATE_ROWS = 100, 2_000
GATE_ROWS = 25
"""A gate refuses to judge by fewer than 20 rows; stratifying may lose a few."""


@dataclass(frozen=True)
class Split:
    """Row positions, int64: ``train`` (n_train,) and ``validation`` (n_validation,), disjoint."""

    train: np.ndarray
    validation: np.ndarray


def evaluation_share(n_rows: int) -> float:
    """Share of rows that is kept for the gate: a tenth, but 100 rows at least (a fifth at most) and 2,000 at most.

    Each row kept is one that nothing is learned from, and beyond 2,000 the interval hardly narrows. Of a small table
    as many as a gate needs to judge by, up to half.
    """
    usual = max(min(0.1, MOST_GATE_ROWS / n_rows), min(FEW_GATE_ROWS / n_rows, 0.2))
    return max(usual, min(GATE_ROWS / n_rows, 0.5))


def set_aside(dataset: Dataset, validation: Validation) -> Split:
    """Return the rows for the search (``train``) and the rows for the gate (``validation``).

    Follows the validation's kind: the latest rows for a time column, whole groups for a group column, else a
    stratified part. Which rows or groups is decided by what they hold, not by a seed: a champion that was made with
    another seed, or before the table grew, has not been trained on the rows that it is compared on.
    """
    share = evaluation_share(len(dataset.y))
    if isinstance(validation, TimeSplit):
        return _latest(dataset, validation, share, parts=3)
    if isinstance(validation, GroupSplit):
        return _groups_by_content(dataset, validation, share)
    order = np.argsort(_content(dataset), kind="stable")
    return _stratified_part(dataset, order, share)


def folds(dataset: Dataset, validation: Validation, *, seed: int, metric: Metric | None = None) -> tuple[Split, ...]:
    """Return the splits that every trial uses; one for a holdout, several for cross-validation.

    Args:
        dataset: The rows of the search.
        validation: How they are split.
        seed: Of what is random.
        metric: That trials are judged by; folds of groups that do not define it are left out, and there are no more
            folds of rows than define it.
    """
    match validation:
        case AutoValidation():
            return _stratified(dataset, AUTO_FOLDS, seed, metric)
        case Holdout():
            order = np.random.default_rng(seed).permutation(len(dataset.y))
            return (_stratified_part(dataset, order, validation.share),)
        case TimeSplit():
            return (_latest(dataset, validation, 0.2, parts=2),)
        case GroupSplit():
            return _groups(dataset, validation, metric, seed=seed)
        case CrossValidation():
            return _stratified(dataset, validation.folds, seed, metric)


def check_defined(metric: Metric, dataset: Dataset, rows: np.ndarray, *, what: str) -> None:
    """Refuse rows to judge by on which the metric is not defined, before anything is searched for.

    Args:
        metric: That is optimized.
        dataset: All rows.
        rows: Positions of those that judge, int64 (n_judging,).
        what: They are, for people.

    Raises:
        InvalidData: names the classes that they lack, and how many rows of them there are elsewhere.
    """
    y, n_classes = dataset.y[rows], len(dataset.classes)
    if metric.defined(y, n_classes):
        return
    there = np.bincount(dataset.y, minlength=n_classes)
    lacking = [k for k in range(n_classes) if not (y == k).any()]
    told = (
        f"{metric.label} is not defined on the {len(y):,} {what}: there is none of class "
        f"{listing(repr(dataset.classes[k]) for k in lacking)} among them"
    )
    elsewhere = listing(f"{counted(int(there[k]), 'row')} of {dataset.classes[k]!r}" for k in lacking)
    raise InvalidData(
        f"validation: {told}. Elsewhere there are {elsewhere}.",
        hint="Choose a validation whose rows hold all classes (the latest rows of a time column, or whole groups, may "
        "not), or bring more rows of that class, or another metric.",
        details=[Detail("validation", told)],
    )


def independent(validation: Validation) -> bool:
    """Whether rows stand on a side by chance, so that any of one side are as new to a model as others."""
    return not isinstance(validation, TimeSplit | GroupSplit)


def grouping(validation: Validation) -> str | None:
    """Return the column whose groups never stand on both sides; None where there is none."""
    return validation.column if isinstance(validation, GroupSplit) else None


def group_of(dataset: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the names of a column's groups, and the position in them of each row's, int64 (n_rows,)."""
    values = np.asarray(dataset.column(column, field="validation.column")).astype(str)
    names, group = np.unique(values, return_inverse=True)
    return names, group


def _stratified(dataset: Dataset, n_folds: int, seed: int, metric: Metric | None) -> tuple[Split, ...]:
    """K folds; a class with fewer rows than folds is spread over as many folds as it has rows.

    With two classes, or a metric that needs rows of every class, there are no more folds than that.
    """
    generator = np.random.default_rng(seed)
    n_folds, n_classes = min(n_folds, len(dataset.y)), len(dataset.classes)
    if dataset.task is Task.REGRESSION:
        fold = _dealt_by_size(dataset.y, n_folds, generator)
    else:
        rows = np.bincount(dataset.y, minlength=n_classes)
        others = np.flatnonzero(np.arange(n_classes) != rows.argmin())
        if dataset.task is Task.BINARY or (metric is not None and not metric.defined(others, n_classes)):
            n_folds = max(2, min(n_folds, int(rows.min())))
        by_class = np.concatenate([generator.permutation(np.flatnonzero(dataset.y == k)) for k in range(n_classes)])
        fold = np.empty(len(dataset.y), dtype=np.int64)
        fold[by_class] = np.arange(len(by_class)) % n_folds
    return tuple(Split(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds))


def _dealt_by_size(y: np.ndarray, n_folds: int, generator: np.random.Generator) -> np.ndarray:
    """Return the fold of each row, int64 (n_rows,): of any ``n_folds`` targets that follow each other one in each fold.

    A few targets far from the others decide a squared error. So no fold has more of them than another by chance. What
    is left over is from the middle, and the first folds get it.
    """
    order = np.lexsort((generator.random(len(y)), y))
    n_rounds, n_over = divmod(len(y), n_folds)
    rounds = generator.permuted(np.tile(np.arange(n_folds), (n_rounds, 1)), axis=1)
    low, high = rounds[: n_rounds // 2], rounds[n_rounds // 2 :]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.concatenate([low.ravel(), generator.permutation(n_over), high.ravel()])
    return fold


def _stratified_part(dataset: Dataset, order: np.ndarray, share: float) -> Split:
    """Hold out the first rows of ``order`` of each class; a class with two rows or more stands on both sides."""
    n_rows = len(dataset.y)
    if dataset.task is Task.REGRESSION:
        held = order[: max(1, round(share * n_rows))]
    else:
        parts = []
        for k in range(len(dataset.classes)):
            rows = order[dataset.y[order] == k]
            parts.append(rows[: min(max(1, round(share * len(rows))), max(len(rows) - 1, 0))])
        held = np.concatenate(parts)
    return Split(np.setdiff1d(np.arange(n_rows), held), np.sort(held))


def _content(dataset: Dataset) -> np.ndarray:
    """Return a number for what each row holds, uint64 (n_rows,); rows of equal features have equal numbers.

    Not so where most rows have a twin: there the second, third, ... of them count as different.  Columns that a request
    leaves out count as well, and a whole number as one with a fraction: the number of a row stays when its column is
    dropped, or when another row lacks a value.
    """
    left = {c: dataset.context[c] for c in dataset.context}  # which may hold lists and structures
    left = {c: series.astype(str) if series.dtype == object else series for c, series in left.items()}
    columns = pd.concat([dataset.frame, pd.DataFrame(left, index=dataset.frame.index)], axis=1)
    content = _hashed(columns[sorted(map(str, columns))])
    features = _hashed(dataset.frame) if left else content
    if features.nunique() < len(features) / 2:
        twin = content.groupby(content).cumcount()
        return _hashed(pd.DataFrame({"content": content, "twin": twin})).to_numpy()
    return content.groupby(features).transform("min").to_numpy()


def _hashed(columns: pd.DataFrame) -> pd.Series:
    """Return a number for each row, uint64 (n_rows,)."""
    plain = {c: columns[c].astype(np.float64) if columns[c].dtype.kind in "ib" else columns[c] for c in columns}
    return pd.util.hash_pandas_object(pd.DataFrame(plain, index=columns.index), index=False)


def _groups_by_content(dataset: Dataset, split: GroupSplit, share: float) -> Split:
    """Hold out whole groups, in the order of their names' hashes, that make up about the share."""
    names, group = _counted_groups(dataset, split, parts=3)
    held = kept_aside(names, group, share, column=split.column)
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def _counted_groups(dataset: Dataset, split: GroupSplit, *, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups' names and the position in them of each row's, int64 (n_rows,).

    Args:
        dataset: With the column of groups.
        split: Names it.
        parts: That the groups will be dealt to: so many groups there have to be.
    """
    names, group = group_of(dataset, split.column)
    if len(names) < parts:
        held = counted(len(names), "group")
        raise InvalidRequest(
            f"validation.column: {len(group)} rows have {held} in {split.column!r}; at least {parts} are needed: to "
            "learn from and to judge by.",
            hint="Choose a column with more groups, bring rows of more groups, or choose another validation.",
            details=[Detail("validation.column", held)],
        )
    return names, group


def _latest(dataset: Dataset, split: TimeSplit, share: float, *, parts: int) -> Split:
    """Hold out about the share of the rows that comes last; all rows of a moment stand on one side, or in the gap.

    Args:
        dataset: With the column of times.
        split: Names it, and the gap.
        share: Of the rows, to be held out.
        parts: That the moments will be cut into, this cut and later ones: so many moments there have to be.
    """
    times = _times(dataset, split)
    order = np.argsort(np.asarray(times), kind="stable")
    ordered = np.asarray(times)[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if len(starts) < parts - 1:
        raise InvalidRequest(
            f"validation.column: {len(order)} rows have {counted(len(starts) + 1, 'moment')} in {split.column!r}; "
            f"at least {parts} are needed: the earlier ones to learn from, the later ones to judge by.",
            hint="Choose a column with more moments, bring rows of more moments, or choose another validation.",
            details=[Detail("validation.column", counted(len(starts) + 1, "moment"))],
        )
    usable = starts[parts - 2 :]  # so many moments stay before the cut as later cuts will need
    cut = int(usable[np.abs(usable - (len(order) - round(share * len(order)))).argmin()])
    n_train, n_held = int(starts[starts <= cut - split.gap].max(initial=0)), len(order) - cut
    if split.gap and n_train < n_held:
        raise InvalidRequest(
            f"validation.gap: {split.gap} leaves {n_train} of {len(order)} rows to train on.",
            hint="Make the gap smaller or bring more rows.",
        )
    return Split(np.sort(order[:n_train]), np.sort(order[cut:]))


def _times(dataset: Dataset, split: TimeSplit) -> pd.Series:
    """Return the column of times, (n_rows,): dates, or numbers that grow with time; none is missing.

    Raises:
        InvalidData: it holds text, whose order says nothing of time, or there are gaps in it.
    """
    times = dataset.column(split.column, field="validation.column")
    if times.dtype.kind not in "Mfiub":
        values = [str(value) for value in times.dropna().unique()[:3]]
        shown = " or ".join(repr(value) for value in values)
        raise InvalidData(
            f"validation.column: {split.column!r} holds text, such as {shown}, which has no order in time.",
            hint=f"Write the dates as ISO 8601 (2024-01-31, or 2024-01-31T12:00), which is always read, or say "
            f"`dataset.types.{split.column}: datetime`: dates like 31/1/2024, 1/31/2024, 31.1.2024, 31 Jan 2024, "
            "Jan 2024 and 2024-01 are read then. Numbers that grow with time, as a year, are an order as well.",
            details=[Detail("validation.column", f"text such as {shown}; dates or numbers are needed")],
        )
    if missing := int(times.isna().sum()):
        raise InvalidData(
            f"validation.column: {missing} of {len(times)} rows have no time in {split.column!r}.",
            hint="Fill them in (what is not read as a date, or as a number, counts as missing), leave those rows out, "
            "or choose another validation.",
            details=[Detail("validation.column", f"{missing} missing values")],
        )
    return times


def _groups(dataset: Dataset, split: GroupSplit, metric: Metric | None, *, seed: int) -> tuple[Split, ...]:
    """Whole groups, dealt out so that folds are alike in their classes, or in their targets' range, and in size.

    A fold that does not define the metric, or validates a class that its training rows lack, is left out: its rows
    train the others. So is one that would leave less than half of the rows to learn from.

    Raises:
        InvalidData: no fold can be judged by.
    """
    names, group = _counted_groups(dataset, split, parts=2)
    if dataset.task is Task.REGRESSION:
        strata = np.searchsorted(np.quantile(dataset.y, [0.25, 0.5, 0.75]), dataset.y, side="right")
    else:
        strata = dataset.y
    n_folds = min(AUTO_FOLDS, len(names))
    if dataset.task is Task.BINARY:
        n_folds = max(2, min(n_folds, *(len(np.unique(group[dataset.y == k])) for k in (0, 1))))
    fold = dealt(group, strata, n_folds=n_folds, seed=seed)
    made = [Split(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]
    usable = [one for one in made if _judges(dataset, one, metric)]
    if not usable:
        places = [
            f"{dataset.classes[k]!r} in {counted(len(np.unique(group[dataset.y == k])), 'group')}"
            for k in np.unique(dataset.y)
        ]
        told = f"the groups of {split.column!r} cannot be dealt to folds that can be judged by: {listing(places)}"
        raise InvalidData(
            f"validation.column: {told}.",
            hint="A class has to be in two groups at least: one to learn it from, one to judge by. Choose a column "
            "with smaller groups, bring rows of more groups, or choose another validation or metric.",
            details=[Detail("validation.column", told)],
        )
    return tuple([one for one in usable if len(one.validation) <= len(one.train)] or usable)


def _judges(dataset: Dataset, split: Split, metric: Metric | None) -> bool:
    """Whether a fold's validation rows define the metric, and their classes are among its training rows."""
    if dataset.task is Task.REGRESSION:
        return True
    y, known = dataset.y[split.validation], np.unique(dataset.y[split.train])
    if dataset.task is Task.BINARY and len(known) < 2:
        return False
    return bool(np.isin(y, known).all()) and (metric is None or metric.defined(y, len(dataset.classes)))
