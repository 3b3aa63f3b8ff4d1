"""Sampled Shapley values: columns are switched in random orders from background rows' values to the explained rows'.

A column's contribution is the mean change of the prediction when the column
takes the row's value instead of a background row's, over random orders in
which the columns are switched (Štrumbelj and Kononenko, "Explaining prediction
models and individual predictions with feature contributions", 2014).  Each
order is walked forwards and backwards from the same background row, which
halves the work for the same error ("antithetic", as in the permutation
explainer of Lundberg and Lee's SHAP, 2017).  A walk's changes telescope, so
that base and contributions add up to the prediction, however few walks there
were.  Nothing is known of the models but their predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Predict = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Returns predictions, float64 (n_rows, n_outputs), of canonical columns (n_rows,) each."""
_BATCH_CELLS = 250_000
"""Values that are predicted at a time, so that wide rows do not take much memory and time is looked at often."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """What walks have found.

    Attributes:
        base: Mean prediction of the background rows that walks began at, float64 (n_outputs,).
        contributions: float64 (n_rows, n_columns, n_outputs).
        errors: Their standard errors, of the same shape; NaN where one pair of walks was made.
        walks: Of each row.
    """

    base: np.ndarray
    contributions: np.ndarray
    errors: np.ndarray
    walks: int


def sample(
    predict: Predict,
    values: Mapping[str, np.ndarray],
    background: Mapping[str, np.ndarray],
    *,
    n_pairs: int,
    seed: int,
    ends: float,
    until: float,
) -> Sampled:
    """Walk from background rows to rows.

    Args:
        predict: What is explained.
        values: Rows, by column.
        background: Rows to begin at; every one has its turn before one has two.
        n_pairs: Pairs of walks of each row at most.
        seed: Of the orders, and of the background rows' turns.
        ends: Moment of the monotonic clock after which no further pair begins; the first is always made.
        until: Moment after which even that is given up.

    Raises:
        TimeoutError: it was.
    """
    walker = _Walker(predict, values, background, until=until)
    n_columns, n_background = len(background), len(next(iter(background.values())))
    nothing: np.ndarray = np.zeros(())
    total, squares, base, n = nothing, nothing, nothing, 0
    for order, start in _pairs(n_columns, n_background, n_pairs, seed):
        if n and time.monotonic() >= ends:
            break
        try:
            forwards, base_of_start = walker.walk(order, start)
            backwards, _ = walker.walk(order[::-1], start)
        except TimeoutError:
            if n:
                break
            raise
        mean = (forwards + backwards) / 2
        total, squares, base, n = total + mean, squares + np.square(mean), base + base_of_start, n + 1
    contributions = total / n
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (squares / n - np.square(contributions)) * n / (n - 1)
    errors = np.sqrt(np.maximum(variance, 0) / n) if n > 1 else np.full_like(total, np.nan)
    return Sampled(base=base / n, contributions=contributions, errors=errors, walks=2 * n)


def _pairs(n_columns: int, n_background: int, n_pairs: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield an order of the columns and a background row; every background row has its turn before one has two."""
    generator = np.random.default_rng(seed)
    turns = generator.permutation(n_background)
    for i in range(n_pairs):
        yield generator.permutation(n_columns), int(turns[i % n_background])


class _Walker:
    """Switches the columns of all rows from a background row's values to their own, one after the other."""

    def __init__(
        self,
        predict: Predict,
        values: Mapping[str, np.ndarray],
        background: Mapping[str, np.ndarray],
        *,
        until: float,
    ) -> None:
        self._predicted, self._until = predict, until
        self._names = tuple(background)
        self._n_rows = len(next(iter(values.values())))
        # A column's values followed by the background's: every step of a walk is a position in these.
        self._pool = [np.concatenate([values[name], background[name]]) for name in self._names]

    def walk(self, order: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the changes, float64 (n_rows, n_columns, n_outputs), and the prediction at the start, (n_outputs,).

        Raises:
            TimeoutError: time was up before its end.
        """
        n_rows, n_columns = self._n_rows, len(self._names)
        switched = np.empty(n_columns, dtype=np.int64)
        switched[order] = np.arange(n_columns)
        # The first step of every row is the background row itself: it is predicted once, then the others follow.
        steps = np.concatenate([[0], np.tile(np.arange(1, n_columns + 1), n_rows)])
        row = np.concatenate([[0], np.repeat(np.arange(n_rows), n_columns)])
        size = max(1, _BATCH_CELLS // n_columns)
        parts = [
            self._predict(steps[at : at + size], row[at : at + size], switched, n_rows + start)
            for at in range(0, len(steps), size)
        ]
        predictions = np.concatenate(parts)
        base = predictions[0]
        after = predictions[1:].reshape(n_rows, n_columns, -1)
        before = np.concatenate([np.broadcast_to(base, (n_rows, 1, len(base))), after[:, :-1]], axis=1)
        changes = np.empty_like(after)
        changes[:, order] = after - before
        return changes, base

    def _predict(self, steps: np.ndarray, row: np.ndarray, switched: np.ndarray, start: int) -> np.ndarray:
        if time.monotonic() >= self._until:
            raise TimeoutError
        columns = {name: self._pool[j][np.where(switched[j] < steps, row, start)] for j, name in enumerate(self._names)}
        return self._predicted(columns)
