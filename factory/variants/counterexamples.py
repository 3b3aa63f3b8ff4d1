"""Counter-examples: the nearest rows that are predicted otherwise, made of values that occur.

A change gives some columns of a row values that the variant's background rows have.  First all changes of one column
are predicted, then of two, up to :data:`MOST_CHANGED`: from the second column on, only the most promising changes so
far are joined (a beam), so that the number of predictions is bounded whatever the variant is.  Nothing is drawn: the
same row has the same counter-examples.  Changes are ranked by their number of columns, then by how far these move
(counterfactuals by sparsity and distance: Wachter, Mittelstadt and Russell 2017; Mothilal, Sharma and Tan 2020).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from factory.errors import MOST_DETAILS, Detail, InvalidRequest, first_of, listing, suggest
from factory.spec import NUMBERS, ColumnType, Task
from factory.variants.background import canonical
from factory.variants.bundle import Bundle
from factory.variants.explain import MOST_S, background_of
from factory.variants.inputs import BundleColumn, Columns

MOST_FOUND = 10
"""Counter-examples of one row."""
MOST_ROWS = 20
"""Rows of one call."""
MOST_CHANGED = 4
"""Columns that one changes; who has to change more is told nothing by it."""
MOST_TRIED = 6_000
"""Changes of one row that are predicted."""
BEAM = 200
"""Changes that are added to, and changes of one column that are added to them, the most promising ones."""
_BATCH = 512
"""Changes that are predicted at a time, so that time is looked at often enough."""

Change = tuple[tuple[int, int], ...]
"""Columns, rising, each with the place of its new value among its candidates."""


@dataclass(frozen=True)
class Wanted:
    """What a counter-example has to be predicted as.

    Attributes:
        label: Class; None where any other than the row's own will do, and for numbers.
        low: Least number; None where there is no such bound.
        high: Largest number.
    """

    label: str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CounterExample:
    """A row that is predicted as wanted.

    Attributes:
        changes: Column → value before and after: a number, a truth value, a text, or None for a missing one. A date is
            written in ISO 8601, or as the variant's column is.
        distance: Sum over the changed columns: the part of the background's range that a number or a date moves by, 1
            for another category or text, or for a value that comes or goes.
        raw: Its prediction, float64 (n_outputs,), as that of the changed row alone.
    """

    changes: Mapping[str, tuple[object, object]]
    distance: float
    raw: np.ndarray


@dataclass(frozen=True)
class CounterExamples:
    """What was found for a row.

    Attributes:
        found: The nearest first; each set of columns once, and none that holds another's.
        tried: Changes that were predicted.
        complete: Whether nothing was left out on the way: those found are the nearest, and where none was found, no
            change of up to :data:`MOST_CHANGED` columns to values of the background does it.
        reached: Whether the row itself is predicted as wanted, so that nothing was looked for.
    """

    found: tuple[CounterExample, ...]
    tried: int
    complete: bool
    reached: bool = False


def counterexamples(
    bundle: Bundle,
    rows: Columns,
    *,
    n: int = 1,
    to: object = None,
    fixed: Sequence[str] = (),
    limit_s: float = MOST_S,
) -> tuple[CounterExamples, ...]:
    """Return counter-examples of each row.

    Args:
        bundle: The variant, with its background.
        rows: Checked rows, a frame or arrays (n_rows,) by column name; 1 to :data:`MOST_ROWS`.
        n: Counter-examples of a row at most; 1 to :data:`MOST_FOUND`.
        to: Class label that is wanted, any other than the row's own where None; of a regression a range
            ``[low, high]``, either of which may be None.
        fixed: Columns that may not change.
        limit_s: Seconds after which the search ends with what it has.

    Raises:
        Conflict: the bundle has no background.
        InvalidRequest: with one detail for each argument that is not allowed.
    """
    background = background_of(bundle)
    values = canonical(rows, bundle.columns)
    n_rows = len(next(iter(values.values())))
    wanted = _checked(bundle, n_rows, n=n, to=to, fixed=fixed)
    until = time.monotonic() + limit_s
    columns = [column for column in bundle.columns if column.name in background.columns]
    return tuple(
        _Search(
            bundle,
            columns,
            {name: of[row : row + 1] for name, of in values.items()},
            background.columns,
            wanted=wanted,
            fixed=fixed,
            until=until,
        ).found(n)
        for row in range(n_rows)
    )


def _checked(bundle: Bundle, n_rows: int, *, n: int, to: object, fixed: Sequence[str]) -> Wanted:
    problems = []
    if not 1 <= n_rows <= MOST_ROWS:
        problems.append(Detail("rows", f"{n_rows} rows have no counter-examples; 1 to {MOST_ROWS} are allowed."))
    if not 1 <= n <= MOST_FOUND:
        problems.append(Detail("counterexamples", f"{n} are not found; 1 to {MOST_FOUND} are allowed."))
    names = [column.name for column in bundle.columns]
    known = set(names)
    unknown = [name for name in dict.fromkeys(fixed) if name not in known]
    near = [
        Detail("fixed", f"There is no column {name[:200]!r}.{suggest(name[:200], names)} Columns: {listing(names)}.")
        for name in unknown[:MOST_DETAILS]
    ]
    problems += first_of(near, n=len(unknown))
    wanted = Wanted()
    if bundle.task is Task.REGRESSION:
        found = _range(to)
        if found is None:
            message = f"Received {_cut(to)}; needed is a range [low, high] of float64, one of which may be null."
            problems.append(Detail("to", message))
        else:
            wanted = found
    elif to is not None:
        if not isinstance(to, str) or to not in bundle.classes:
            told = suggest(to[:200], bundle.classes) if isinstance(to, str) else ""
            problems.append(Detail("to", f"There is no class {_cut(to)}.{told} Classes: {listing(bundle.classes)}."))
        else:
            wanted = Wanted(label=to)
    if problems:
        raise InvalidRequest(
            "Counter-examples are not looked for. " + " ".join(f"{p.field}: {p.message}" for p in problems),
            hint="docs/serving.md shows how they are asked for.",
            details=problems,
        )
    return wanted


def _range(to: object) -> Wanted | None:
    if not isinstance(to, list | tuple) or len(to) != 2:
        return None
    if not all(bound is None or (isinstance(bound, int | float) and not isinstance(bound, bool)) for bound in to):
        return None
    try:
        low, high = (None if bound is None else float(bound) for bound in to)
    except OverflowError:  # a whole number beyond float64
        return None
    empty = (low is None and high is None) or (low is not None and high is not None and not low <= high)
    return None if empty else Wanted(low=low, high=high)


def _cut(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


class _Search:
    """Looks for the counter-examples of one row."""

    def __init__(
        self,
        bundle: Bundle,
        columns: Sequence[BundleColumn],
        row: Mapping[str, np.ndarray],
        background: Mapping[str, np.ndarray],
        *,
        wanted: Wanted,
        fixed: Sequence[str],
        until: float,
    ) -> None:
        self._bundle, self._columns, self._row, self._until = bundle, columns, row, until
        self._wanted = wanted
        self._values: list[np.ndarray] = []
        self._distances: list[np.ndarray] = []
        unchanged = frozenset(fixed)
        for column in columns:
            values, distances = _candidates(row[column.name], background[column.name])
            if column.name in unchanged:
                values, distances = values[:0], distances[:0]
            self._values.append(values)
            self._distances.append(distances)
        self._raw = bundle.predict_raw(dict(row))
        self._own = int(bundle.labels(self._raw)[0]) if bundle.classes else -1
        self._tried = 0

    def found(self, n: int) -> CounterExamples:
        """Return the nearest ``n``."""
        if self._score(self._raw)[0] >= 0:
            return CounterExamples((), 0, complete=True, reached=True)
        complete, found = True, list[tuple[set[int], CounterExample]]()
        singles, left_out = self._singles()
        changes, before, gains = singles, list[tuple[float, Change]](), list[tuple[float, Change]]()
        for n_changed in range(1, MOST_CHANGED + 1):
            if n_changed > 1:
                most = (MOST_TRIED - self._tried) // (MOST_CHANGED - n_changed + 1)
                changes, left_out = self._extended(before, gains, [columns for columns, _ in found], most)
            scores = self._scores(changes)
            complete = complete and not left_out and len(scores) == len(changes)
            tried = [(float(score), change) for change, score in zip(changes, scores, strict=False)]
            for distance, change in sorted((self._distance(change), change) for score, change in tried if score >= 0):
                columns = {column for column, _ in change}
                near = all(columns != known for known, _ in found)
                if near and (example := self._proved(change, distance)) is not None:
                    found.append((columns, example))
            before = sorted((pair for pair in tried if pair[0] < 0), key=self._promise)
            if n_changed == 1:
                gains = before
            if len(found) >= n or len(scores) < len(changes) or not before:
                break
        return CounterExamples(tuple(example for _, example in found[:n]), self._tried, complete=complete)

    def _promise(self, pair: tuple[float, Change]) -> tuple[float, float, Change]:
        score, change = pair
        return -score, self._distance(change), change

    def _singles(self) -> tuple[list[Change], bool]:
        """Return the changes of one column, the smallest first, and whether any was left out."""
        singles: list[Change] = [
            ((column, k),) for column, values in enumerate(self._values) for k in range(len(values))
        ]
        singles.sort(key=lambda change: (self._distance(change), change))
        return singles[:MOST_TRIED], len(singles) > MOST_TRIED

    def _extended(
        self,
        before: Sequence[tuple[float, Change]],
        singles: Sequence[tuple[float, Change]],
        known: Sequence[set[int]],
        most: int,
    ) -> tuple[list[Change], bool]:
        """Return changes of one column more, the most promising by their parts' scores, and whether any was left out.

        Columns that hold those of a counter-example are none of a near one.
        """
        promised: dict[Change, float] = {}
        for score, change in before[:BEAM]:
            changed = {column for column, _ in change}
            for gain, ((column, place),) in singles[:BEAM]:
                if column not in changed and not any(columns <= changed | {column} for columns in known):
                    extended = tuple(sorted((*change, (column, place))))
                    promised[extended] = max(score + gain, promised.get(extended, -np.inf))
        order = sorted(((promise, change) for change, promise in promised.items()), key=self._promise)
        left_out = len(before) > BEAM or len(singles) > BEAM or len(order) > most
        return [change for _, change in order[:most]], left_out

    def _scores(self, changes: Sequence[Change]) -> np.ndarray:
        """Return how near changed rows are to what is wanted, from 0 on as wanted; fewer where time is up."""
        parts = []
        for at in range(0, len(changes), _BATCH):
            if time.monotonic() >= self._until:
                break
            some = changes[at : at + _BATCH]
            parts.append(self._score(self._bundle.predict_raw(self._changed(some))))
            self._tried += len(some)
        return np.concatenate([np.zeros(0), *parts])

    def _score(self, raw: np.ndarray) -> np.ndarray:
        wanted = self._wanted
        if not self._bundle.classes:
            low = -np.inf if wanted.low is None else wanted.low
            high = np.inf if wanted.high is None else wanted.high
            beyond = np.minimum(raw - low, high - raw)
            return np.asarray(np.where(np.isnan(raw), -np.inf, np.minimum(beyond, 0.0)))
        labels = self._bundle.labels(raw)
        if wanted.label is None:
            reached, share = labels != self._own, 1 - raw[:, self._own]
        else:
            place = self._bundle.classes.index(wanted.label)
            reached, share = (labels == place), raw[:, place]
        return np.asarray(np.where(reached, 0.0, np.minimum(share - 1, -1e-12)))

    def _changed(self, changes: Sequence[Change]) -> dict[str, np.ndarray]:
        """Return the row once for each change, changed."""
        pools = [np.concatenate([self._row[c.name], v]) for c, v in zip(self._columns, self._values, strict=True)]
        places = np.zeros((len(self._columns), len(changes)), dtype=np.int64)
        for k, change in enumerate(changes):
            for column, place in change:
                places[column, k] = place + 1
        return {column.name: pools[j][places[j]] for j, column in enumerate(self._columns)}

    def _distance(self, change: Change) -> float:
        return float(sum(self._distances[column][place] for column, place in change))

    def _proved(self, change: Change, distance: float) -> CounterExample | None:
        """Return a counter-example as it is predicted alone; None where it is not reached then.

        The same row among others may differ from it in the last bits.
        """
        columns = self._changed([change])
        raw = self._bundle.predict_raw(columns)
        if self._score(raw)[0] < 0:
            return None
        changes = {}
        for at, _ in change:
            column = self._columns[at]
            changes[column.name] = (_told(self._row[column.name][0], column), _told(columns[column.name][0], column))
        return CounterExample(changes, distance, raw[0] if raw.ndim == 2 else raw)


def _candidates(own: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the background's values that differ from a row's, each once, and their distances, (n_candidates,)."""
    if background.dtype.kind == "O":
        seen = dict.fromkeys(value for value in background.tolist() if value != own[0])
        values = np.fromiter(
            sorted(seen, key=lambda value: (value is None, value or "")), dtype=object, count=len(seen)
        )
        return values, np.ones(len(values))
    missing, gone = (np.isnat if background.dtype.kind == "M" else np.isnan), bool(_missing(own)[0])
    known = np.unique(background[~missing(background)])
    values = known[known != own[0]]
    span = (known[-1] - known[0]) if len(known) else None
    if gone:
        distances = np.ones(len(values))
    else:
        moved = np.abs(values - own[0])
        whole = span if span is not None and span > span * 0 else moved.max(initial=moved.dtype.type(1))
        distances = np.asarray(moved / whole, dtype=np.float64)
    if _missing(background).any() and not gone:
        values = np.append(values, background[missing(background)][:1])
        distances = np.append(distances, 1.0)
    return values, distances


def _missing(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.isnat(values) if values.dtype.kind == "M" else np.isnan(values))


def _told(value: object, column: BundleColumn) -> object:
    """Return a canonical value as a caller sends it."""
    if value is None or (isinstance(value, float | np.datetime64) and _missing(np.asarray([value]))[0]):
        return None
    if column.type is ColumnType.BOOLEAN and value in (0.0, 1.0):
        return bool(value)
    if column.type in NUMBERS:
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, np.datetime64):
        moment = value.astype("M8[us]").item()
        return moment.strftime(column.text_format) if column.text_format else moment.isoformat()
    return value
