"""Whole groups: which of them the gate keeps, and how the others are dealt to folds.

Rows of one customer, machine or document are alike, so they stand on one side
of every split.  Groups differ in size and in what they hold; both is looked at
here, so that a side neither swallows the table nor lacks a class.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from factory.errors import Detail, InvalidRequest

ENOUGH = 0.9
"""Part of the wanted rows from which on no further group is looked for: far down the order another one would be the
last at each new size of the table."""
LEFT_GROUPS = 2
"""Groups that stay when others are kept aside: to learn from, and to choose by."""
LEAST_JUDGED = 20
"""A gate does not judge by fewer rows."""
FEW_GROUPS, MORE_SHARE, MOST_ROWS = 8, 0.1, 20_000
"""Groups below which more rows are kept if that brings more groups, and the share and the number of rows up to which:
what many rows of one group say of others is as little as what few say."""
MOST_DEALT = 20_000
"""Groups that are dealt one by one, of which a million take 8 s; of more, the lightest are bundled with like ones."""


def kept_aside(names: np.ndarray, group: np.ndarray, share: float, *, column: str) -> np.ndarray:
    """Return which rows are kept for the gate, bool (n_rows,): whole groups that make up about the share.

    They are taken in the order of their names' hashes, so that siblings and later versions of a table keep the same
    ones aside. One that would overshoot by more than is lacking is passed over; where all are too large, the smallest
    is taken. Where few groups make up the share, a larger one is looked for that several make up. What is too little
    to judge by is filled up. Of the rows outside the largest group half stay with the search at least.

    Args:
        names: Of the groups, (n_groups,).
        group: Position of each row's group in ``names``, int64 (n_rows,).
        share: Of the rows.
        column: Where the names come from, for people.

    Raises:
        InvalidRequest: one group holds so much of the table that too little is left to judge by.
    """
    sizes, n_rows = np.bincount(group, minlength=len(names)), len(group)
    largest = int(sizes.argmax())
    spare = (n_rows - sizes[largest]) / 2
    wanted = min(share * n_rows, spare)
    order = np.argsort(pd.util.hash_array(names.astype(object)), kind="stable")
    chosen = _taken(sizes, order, wanted, limit=wanted, most=n_rows)
    if len(chosen) < FEW_GROUPS:
        more = max(wanted, min(MORE_SHARE * n_rows, MOST_ROWS, spare))
        chosen = max(chosen, _taken(sizes, order, wanted, limit=more, most=more / 2), key=len)
    least = min(LEAST_JUDGED, round(share * n_rows))
    enough = _filled_up(chosen, sizes, order, least=least, spare=spare)
    if enough is None:
        told = f"group {str(names[largest])!r} has {sizes[largest]:,} of {n_rows:,} rows"
        others = f"{n_rows - sizes[largest]:,} rows of other groups are too few to choose by and to judge by"
        raise InvalidRequest(
            f"validation.column: {told} in {column!r}; the {others}: half of them stay to choose by, and no whole "
            f"groups make up {least} rows of the other half.",
            hint="Choose a column with smaller groups, bring rows of more groups, or choose another validation.",
            details=[Detail("validation.column", told)],
        )
    return np.isin(group, enough)


def _filled_up(
    chosen: list[int], sizes: np.ndarray, order: np.ndarray, *, least: int, spare: float
) -> list[int] | None:
    """Return the chosen groups, with the smallest others where they have fewer rows than are needed to judge by.

    Where these do not fit, or too few groups would stay, one group is taken instead of all: the smallest of enough
    rows. None where there is none.

    Args:
        chosen: Positions of groups.
        sizes: Rows of each group.
        order: Of the groups; decides among those of a size.
        least: Rows that are needed.
        spare: Rows that there may be, where groups are added.
    """
    n_held = int(sizes[chosen].sum())
    if n_held >= least:
        return chosen
    filled, by_size = list(chosen), order[np.argsort(sizes[order], kind="stable")].tolist()
    for g in by_size:
        if len(filled) >= len(sizes) - LEFT_GROUPS or n_held + sizes[g] > spare:
            break
        if g not in chosen:
            filled.append(g)
            n_held += int(sizes[g])
        if n_held >= least:
            return filled
    return next(([g] for g in by_size if least <= sizes[g] <= spare), None)


def _taken(sizes: np.ndarray, order: np.ndarray, wanted: float, *, limit: float, most: float) -> list[int]:
    """Return the groups that make up about the wanted rows, in their order; few or none where all are too large.

    Args:
        sizes: Rows of each group.
        order: Of the groups.
        wanted: Rows.
        limit: Rows up to which further groups are taken while they are few.
        most: Rows of a group.
    """
    chosen: list[int] = []
    n_held = 0
    for g in order.tolist():
        aim = limit if len(chosen) < FEW_GROUPS else wanted
        if n_held >= ENOUGH * aim or len(chosen) == len(sizes) - LEFT_GROUPS:
            break
        if sizes[g] <= min(2 * (aim - n_held), most):
            chosen.append(g)
            n_held += int(sizes[g])
    return chosen


def dealt(group: np.ndarray, strata: np.ndarray, *, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int64 (n_rows,): whole groups, dealt so that folds are alike in strata and size.

    As scikit-learn's ``StratifiedGroupKFold`` does, groups go from the heaviest on to the fold where they raise the
    spread least; here the spread of sums of squares, of each stratum's share and of the rows' share alike, which takes
    one product for a group. Of very many groups, the light ones are dealt in bundles. Fold 0 is the one that is most
    like the whole.

    Args:
        group: Of each row, int64 (n_rows,), every number from 0 on.
        strata: Class of each row, or part of the range of its target, int64 (n_rows,).
        n_folds: No more than groups.
        seed: Of the order among groups of about the same weight.
    """
    generator = np.random.default_rng(seed)
    unit_of = _units(group, strata, generator)
    if unit_of is not None:
        group = unit_of[group]
    n_groups, n_rows, n_strata = int(group.max()) + 1, len(group), int(strata.max()) + 1
    totals = np.bincount(strata, minlength=n_strata)
    n_there = int((totals > 0).sum())
    owner, stratum, counts = _cells(group, strata)
    share = counts / totals[stratum]
    starts = np.searchsorted(owner, np.arange(n_groups + 1))
    sizes = np.bincount(group) / n_rows
    weight = np.bincount(owner, weights=share**2) / n_there + sizes**2
    order = generator.permutation(n_groups)
    order = order[np.argsort(-np.floor(np.log2(weight[order])), kind="stable")]
    of_strata, of_rows = np.zeros((n_folds, n_strata)), np.zeros(n_folds)
    fold_of = np.empty(n_groups, dtype=np.int64)
    for g in order.tolist():
        own, shares = stratum[starts[g] : starts[g + 1]], share[starts[g] : starts[g + 1]]
        fold = int((of_strata[:, own] @ shares + n_there * sizes[g] * of_rows).argmin())
        fold_of[g] = fold
        of_strata[fold, own] += shares
        of_rows[fold] += sizes[g]
    apart = np.square(of_strata[:, totals > 0] - 1 / n_folds).mean(axis=1) + np.square(of_rows - 1 / n_folds)
    place = np.empty(n_folds, dtype=np.int64)
    place[np.argsort(apart, kind="stable")] = np.arange(n_folds)
    return np.asarray(place[fold_of][group])


def _cells(group: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return group, stratum and number of rows of each pair that there is, in rising order, (n_pairs,) each."""
    n_strata = int(strata.max()) + 1
    cells, counts = np.unique(group * n_strata + strata, return_counts=True)
    owner, stratum = np.divmod(cells, n_strata)
    return owner, stratum, counts


def _units(group: np.ndarray, strata: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """Return the unit that each of very many groups is dealt in, int64 (n_groups,): itself, or a bundle of light ones.

    Those of a bundle are alike in size and in the stratum that most of their rows are of, so that bundles are as good
    to deal as groups; each is a small part of the table. None where all groups are dealt by themselves.
    """
    n_groups = int(group.max()) + 1
    if n_groups <= MOST_DEALT:
        return None
    owner, stratum, counts = _cells(group, strata)
    most = np.lexsort((counts, owner))[np.searchsorted(owner, np.arange(n_groups), side="right") - 1]
    sizes, n_alone = np.bincount(group), MOST_DEALT // 2
    shuffled = generator.permutation(n_groups)
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    light = order[n_alone:]
    light = light[np.lexsort((sizes[light], stratum[most][light]))]
    unit = np.empty(n_groups, dtype=np.int64)
    unit[order[:n_alone]] = np.arange(n_alone)
    unit[light] = n_alone + np.arange(len(light)) * n_alone // len(light)
    return unit
