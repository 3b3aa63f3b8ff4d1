"""What is suspicious about the columns, each finding with a sentence for a person.

Runs once on the training rows, before any model.  A column is left out where it
is near certain that it cannot help, or that it gives the target away, since a
model that uses it is excellent here and useless where it matters; where there
is only a correlation it is named.  Who knows better names the column in
``keep`` or ``drop``.

The checks and most thresholds are those of the SanityChecker and the
RawFeatureFilter of Salesforce's TransmogrifAI (2018); each constant says where
we deviate, and why.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from factory.data import sanity
from factory.data.alone import Alone, score_alone
from factory.data.columns import DISTINCT, column_digest, factorize
from factory.data.dataset import Dataset
from factory.data.drift import Later, drifts
from factory.data.findings import Finding, Suspicion
from factory.data.words import Telling, telling_word
from factory.errors import Detail, InvalidData
from factory.spec import NUMBERS, ColumnType, Task

LEAKAGE = 0.999
"""Cross-validated score of one column alone, from which on it is taken for the target in disguise.

Far above honest columns: the best single columns of well-known sets reach .94 to .99 (breast cancer "worst
perimeter" .975 AUC, diamonds "carat" .92 R2 on ranks), and a leak with no noise reaches 1 up to a few ties.
"""
CORRELATION, CORRELATION_ROWS = 0.95, 50
"""Absolute correlation, or Cramér's V, with the target over that many rows that is worth a warning. TransmogrifAI
leaves such columns out, which costs honest columns of physical data."""
TWINS = 0.99
"""Absolute correlation of two columns that is worth a warning; TransmogrifAI leaves one of them out."""
ABSENCE = 0.95
"""Correlation of a column's absence with the target from which on it is left out: nobody decides to be missing."""
ABSENCE_ROWS = 10
"""Rows with a value, and without one, below which such a correlation may be luck."""
RULE, RULE_PRIOR, RULE_ROWS = 0.97, 0.5, 50
"""A level of that many rows that is of one class this surely (lower end of the interval), though the class has no
more than this share of all rows. TransmogrifAI asks for a confidence of 1, and has the check off by default: honest
columns have such levels as well, so it is a warning."""
FILL, FILL_ROWS = 0.001, 100
"""Least share of rows with a value, as in TransmogrifAI; a hundred values of a great table are used all the same."""
HIGH_MISSING = 0.8
"""Share of missing values that is worth a warning; trees and indicators still use such a column."""
VARIANCE, SAME_ROWS = 1e-5, 3
"""A column is nearly constant where fewer than this share of the rows, or than this many rows, differ from its most
frequent value. TransmogrifAI asks for a variance of 1e-5, which of a 0/1 column is this share; on other scales it
leaves out honest columns (wine density: 9e-6)."""
_COPY_ROWS, _COPY_ROWS_PER_CLASS = 20, 5
"""Rows, and rows of each of two classes, below which a column may equal the target by luck."""
_TWIN_ROWS = 5000
_KEEP = " Name it in 'keep' if it is known when predicting."
_LOOK = "it is used, but check that it is known when predicting"
_ID_NAME = re.compile(
    r"^(id|key|index|row|rownum|row_number|Unnamed: 0(\.\d+)*)$|[_\s.-](id|uuid|guid|key)$|[a-z](ID|Id|Uuid|Key)$",
    re.ASCII,
)
"""Names of keys; ``Unnamed: 0`` is a frame's index that pandas wrote without a name and read again."""


def screen(
    dataset: Dataset,
    *,
    keep: Collection[str] = (),
    drop: Collection[str] = (),
    later: Sequence[Later] = (),
    drift: Literal["warn", "drop"] = "warn",
    seed: int = 0,
    whole: Dataset | None = None,
    group: str | None = None,
) -> tuple[Finding, ...]:
    """Return what is suspicious, in the order of the columns; at most one finding of a column, and one of its drift.

    Args:
        dataset: Training rows.
        keep: Columns that stay whatever is found; their findings have the action ``keep``.
        drop: Columns that the request left out; they are no features of ``dataset`` any more, and are only told.
        later: Rows whose distributions are compared with the training rows'.
        drift: What happens to columns that differ altogether in later rows.
        seed: Seed of the samples and of the splits of the leakage check.
        whole: The table that the rows are a part of, in its own order: whether a column counts the rows shows there
            only. The rows are all of it if None.
        group: Column whose groups never stand on both sides of a split.

    Raises:
        InvalidData: no column would be left.
    """
    columns = list(dataset.frame.columns)
    counting = {column for column in columns if _counts_rows(whole or dataset, column)}
    found: dict[str, Suspicion] = {}
    seen: dict[bytes, str] = {}
    for column in columns:
        one = (
            _useless(dataset, column, counts_rows=column in counting, kept=column in keep)
            or (_names_groups(column) if column == group else None)
            or _copy(dataset, column)
            or _duplicate(dataset.frame[column], column, seen)
        )
        if one is not None:
            found[column] = one
    left = [c for c in columns if c not in found]
    found |= _giving_away(dataset, left, copies=list(found), seed=seed)
    found |= {c: one for c in left if c not in found and (one := next(_warnings(dataset, c), None)) is not None}
    used = [c for c in columns if c in keep or c not in found or not found[c].drops]
    found |= {one.column: one for one in _twins(dataset, used, seed=seed) if one.column not in found}
    drifted = {one.column: one for one in drifts(dataset, used, later, drift=drift)}
    result = tuple(of[c].finding(keep=c in keep) for c in columns for of in (found, drifted) if c in of)
    dropped = [f for f in result if f.action == "drop"]
    if len(dropped) == len(columns):
        raise InvalidData(
            "No column is left after the screening: " + " ".join(f.message for f in dropped),
            hint="Give columns that say something about the target, or name one in 'keep' to use it all the same.",
            details=[Detail(f.column, f.message) for f in dropped],
        )
    return (*(_on_request(column) for column in drop), *result)


def _on_request(column: str) -> Finding:
    message = f"{column!r} is left out, since the request names it in 'drop'."
    return Finding(kind="requested", column=column, action="drop", message=message)


# --- what cannot help -------------------------------------------------------------------


def _useless(dataset: Dataset, column: str, *, counts_rows: bool, kept: bool) -> Suspicion | None:
    """Return why a column cannot help; one that is kept although it names the rows has come as a category."""
    series, kind = dataset.frame[column], dataset.types[column]
    n_rows, n_missing = len(series), int(series.isna().sum())
    n_known = n_rows - n_missing
    if not n_known:
        return Suspicion("all_missing", column, "has no value in any row", value=1.0)
    if n_known < min(FILL * n_rows, FILL_ROWS):
        said = f"has a value in only {n_known} of {n_rows:,} rows"
        return Suspicion("nearly_empty", column, said, value=n_known / n_rows)
    values = series.to_numpy()
    # A float is never a key, and counting the values of thousands of them takes seconds.
    n_distinct = int(np.ptp(values[~np.isnan(values)]) > 0) + 1 if values.dtype.kind == "f" else series.nunique()
    if n_distinct == 1 and n_missing == 0:
        return Suspicion("constant", column, f"is {str(series.iloc[0])!r} in every row and says nothing")
    names = kind is ColumnType.IDENTIFIER or (
        kept and kind is ColumnType.CATEGORICAL and n_distinct >= DISTINCT * n_known
    )
    if names or counts_rows or _is_key(series, kind, n_distinct):
        said = (
            f"differs in (almost) every row ({n_distinct} values in {n_rows} rows) and names the row rather than "
            "describing it"
        )
        return Suspicion("identifier", column, said, value=n_distinct / n_rows)
    return None


def _names_groups(column: str) -> Suspicion:
    said = "names the groups that the validation keeps apart, and says nothing of groups that are not known yet"
    return Suspicion("group", column, said)


def _is_key(series: pd.Series, kind: ColumnType, n_distinct: int) -> bool:
    """Whether whole numbers are all different, and named as keys are."""
    whole_numbers = kind is ColumnType.NUMERIC and series.dtype.kind in "iu"
    return whole_numbers and n_distinct >= DISTINCT * len(series) and bool(_ID_NAME.search(str(series.name)))


def _counts_rows(table: Dataset, column: str) -> bool:
    """Whether whole numbers count a table's rows from 0 or 1 on; rows that were left out leave their numbers out."""
    values = table.frame[column].to_numpy()
    if table.types[column] is not ColumnType.NUMERIC or values.dtype.kind not in "iu":
        return False
    n_rows = len(values) + table.dropped_rows + table.weightless_rows
    within = values[0] >= 0 and values[-1] <= n_rows and values[-1] - values[0] < n_rows
    if len(values) == n_rows and values[0] not in (0, 1):
        return False
    return bool(within and (np.diff(values) > 0).all())


def _duplicate(series: pd.Series, column: str, seen: dict[bytes, str]) -> Suspicion | None:
    other = seen.setdefault(column_digest(series), column)
    return None if other == column else Suspicion("duplicate", column, f"holds the same values as {other!r}", value=1)


# --- what gives the target away ---------------------------------------------------------


def _copy(dataset: Dataset, column: str) -> Suspicion | None:
    """Find the target itself: its labels renamed, or its numbers times a factor plus a constant; gaps are allowed."""
    series, kind, target = dataset.frame[column], dataset.types[column], dataset.target
    if dataset.task is Task.REGRESSION:
        numeric = kind in NUMBERS
        if not numeric or not sanity.affine(_floats(series), dataset.y, least_rows=_COPY_ROWS):
            return None
        how = f"{target!r} times a factor plus a constant"
    else:
        codes = pd.factorize(series.to_numpy())[0] if kind is not ColumnType.TEXT else np.full(len(series), -1)
        few = int(codes.max(initial=-1)) < len(dataset.classes)
        if not few or not sanity.renames(codes, dataset.y, least_rows=_COPY_ROWS, least_per_class=_COPY_ROWS_PER_CLASS):
            return None
        how = f"one value for each class of {target!r}"
    n_known = int(series.notna().sum())
    where = "in every row" if n_known == len(series) else f"in the {n_known:,} of {len(series):,} rows that have it"
    return Suspicion(
        "target_copy",
        column,
        f"is the target under another name ({how}, {where}), which nobody knows when predicting",
        value=n_known / len(series),
    )


def _giving_away(dataset: Dataset, columns: list[str], *, copies: list[str], seed: int) -> dict[str, Suspicion]:
    """Columns that alone predict the target, or whose absence does."""
    alone = score_alone(dataset, columns, seed=seed)
    leaks = [c for c in columns if alone.whole.get(c, 0.0) >= LEAKAGE]
    found = {c: _leakage(c, alone, besides=[*leaks, *copies]) for c in leaks}
    for column in columns:
        missing = dataset.frame[column].isna().to_numpy()
        if column in found or min(missing.sum(), (~missing).sum()) < ABSENCE_ROWS:
            continue
        r = sanity.label_correlation(missing.astype(np.float64), dataset.y, n_classes=len(dataset.classes))
        if abs(r) >= ABSENCE:
            said = (
                f"gives {dataset.target!r} away by having a value or none (correlation {r:+.3f}), as columns do that "
                "are filled in after the outcome"
            )
            found[column] = Suspicion("absence", column, said, advice=_KEEP, value=r)
    return found


def _leakage(column: str, alone: Alone, *, besides: list[str]) -> Suspicion:
    score, others = alone.whole[column], alone.next_best(besides)
    against = "" if others is None else f"; the best other column reaches {others:.4f}"
    said = (
        f"alone gives the target away (cross-validated {alone.measure} {score:.4f}{against}), as columns do that are "
        "known only after the outcome"
    )
    return Suspicion("leakage", column, said, advice=_KEEP, value=score, others=others)


# --- what a person should look at -------------------------------------------------------


def _warnings(dataset: Dataset, column: str) -> Iterator[Suspicion]:
    """What may be wrong with a column, the most telling first."""
    series, kind = dataset.frame[column], dataset.types[column]
    enough = int(series.notna().sum()) >= CORRELATION_ROWS
    if enough and kind in NUMBERS:
        r = sanity.label_correlation(_floats(series), dataset.y, n_classes=len(dataset.classes))
        if abs(r) >= CORRELATION:
            said = f"almost tells {dataset.target!r} (correlation {r:+.3f})"
            yield Suspicion("correlation", column, said, _LOOK, drops=False, value=r)
    if enough and dataset.classes and kind in (ColumnType.CATEGORICAL, ColumnType.BOOLEAN):
        yield from _levels(dataset, column)
    told = _telling(dataset, column) if kind is ColumnType.TEXT else None
    if told is not None and abs(told.correlation) >= CORRELATION:
        said = f"almost tells {dataset.target!r} by the word {told.word!r} (correlation {told.correlation:+.3f})"
        yield Suspicion("correlation", column, said, _LOOK, drops=False, value=told.correlation)
    share = float(series.isna().mean())
    if share > HIGH_MISSING:
        said = f"is missing in {share:.0%} of the rows"
        yield Suspicion(
            "high_missing", column, said, "it is used, but check where it comes from", drops=False, value=share
        )
    if kind is not ColumnType.TEXT and len(series) >= 1000:
        differing = _differing(series)
        if differing < max(SAME_ROWS, VARIANCE * len(series)):
            said = f"has one and the same value in all but {differing} of {len(series):,} rows"
            value = differing / len(series)
            follows = "it is used, but says next to nothing"
            yield Suspicion("nearly_constant", column, said, follows, drops=False, value=value)


def _telling(dataset: Dataset, column: str) -> Telling | None:
    n_texts = sum(kind is ColumnType.TEXT for kind in dataset.types.values())
    return telling_word(dataset.frame[column], dataset.y, n_classes=len(dataset.classes), n_texts=n_texts)


def _differing(series: pd.Series) -> int:
    """Rows that differ from the most frequent value; of numbers from the median, which is it where it matters."""
    values = series.to_numpy()
    if values.dtype.kind in "fiub":
        known = values[~np.isnan(values.astype(np.float64))]
        return len(values) - int((known == np.quantile(known, 0.5, method="lower")).sum())
    return len(series) - int(series.value_counts(dropna=False).iloc[0])


def _levels(dataset: Dataset, column: str) -> Iterator[Suspicion]:
    codes, texts = factorize(dataset.frame[column].to_numpy())
    table = sanity.Contingency.of(codes, dataset.y)
    if (v := sanity.cramers_v(table)) >= CORRELATION:
        said = f"almost tells {dataset.target!r} (Cramér's V {v:.3f})"
        yield Suspicion("correlation", column, said, _LOOK, drops=False, value=v)
    sure = [
        rule for rule in sanity.rules(table, least_rows=RULE_ROWS) if rule.at_least >= RULE and rule.prior <= RULE_PRIOR
    ]
    if sure:
        best = max(sure, key=lambda rule: rule.n_rows)
        more = f", and {len(sure) - 1} more values are as telling" if len(sure) > 1 else ""
        said = (
            f"is {texts[best.level]!r} in {best.n_rows:,} rows, of which {best.confidence:.1%} are of class "
            f"{dataset.classes[best.label]!r}, against {best.prior:.1%} of all rows{more}"
        )
        yield Suspicion("rule", column, said, _LOOK, drops=False, value=best.confidence)


def _twins(dataset: Dataset, columns: list[str], *, seed: int) -> Iterator[Suspicion]:
    """Numbers that say the same as an earlier column; one for each later one, naming its closest twin."""
    numeric = [c for c in columns if dataset.types[c] is ColumnType.NUMERIC]
    if len(numeric) < 2:
        return
    rows = np.random.default_rng(seed).permutation(len(dataset))[:_TWIN_ROWS]
    matrix = sanity.numbers([dataset.frame[c].iloc[rows] for c in numeric])
    closest: dict[int, tuple[int, float]] = {}
    for left, right, r in sanity.twins(matrix, least=TWINS):
        if right not in closest or abs(r) > abs(closest[right][1]):
            closest[right] = (left, r)
    for right, (left, r) in sorted(closest.items()):
        said = f"says almost the same as {numeric[left]!r} (correlation {r:+.4f})"
        follows = "both are used, and share what importance they have"
        yield Suspicion("twins", numeric[right], said, follows, drops=False, value=r)


def _floats(series: pd.Series) -> np.ndarray:
    return np.asarray(series.to_numpy(), dtype=np.float64)
