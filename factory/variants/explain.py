"""What each input column added to a prediction: sampled Shapley values of the whole blend.

A column's contribution is the mean change of the prediction when the column
takes the row's value instead of a background row's, over random orders in
which the columns are switched (Štrumbelj and Kononenko, "Explaining prediction
models and individual predictions with feature contributions", 2014).  Each
order is walked forwards and backwards from the same background row, which
halves the work for the same error ("antithetic", as in the permutation
explainer of Lundberg and Lee's SHAP, 2017).  A walk's changes telescope, so

    base + sum of the contributions = prediction

holds for every row exactly, however few walks there were.  Nothing is known of
the models but their predictions: preparation, blend and calibration are
explained as one, by the columns that a caller sends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from factory.errors import Conflict, Detail, InvalidRequest
from factory.variants.background import Background, canonical
from factory.variants.bundle import Bundle
from factory.variants.inputs import Columns

EXPLAIN_S = 5.0
"""Seconds after which no further walk begins."""
MOST_S = 30.0
"""Seconds that may be asked for, and after which even the first pair of walks is given up: as long as the predictor
answers one request by default (FACTORY_SERVE_DEADLINE_S)."""
MOST_ROWS = 1_000
"""Rows of one explanation; more are a report on the variant, which its model card has."""
WALKS = 64
"""Walks of each row at most; the standard error falls with their square root."""
_BATCH_CELLS = 250_000
"""Values that are predicted at a time, so that wide rows do not take much memory and time is looked at often."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Contributions to some predictions. ``base + contributions.sum(axis=1) == predictions`` for every output.

    Attributes:
        columns: Input columns, (n_columns,).
        outputs: Class labels of a classification; ``("prediction",)`` of a regression.
        base: Mean prediction of the background, float64 (n_outputs,).
        contributions: float64 (n_rows, n_columns, n_outputs), in units of the prediction.
        errors: Standard errors of the contributions, of the same shape; NaN where one pair of walks was made.
        predictions: float64 (n_rows, n_outputs).
        walks: Walks that were made for each row.
        index: Labels of the rows.
    """

    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    base: np.ndarray
    contributions: np.ndarray
    errors: np.ndarray
    predictions: np.ndarray
    walks: int
    index: pd.Index

    def frame(self, output: str | None = None) -> pd.DataFrame:
        """Return the contributions to one output, (n_rows, n_columns), the column with the largest ones first.

        Args:
            output: A class label; the last class, which is the positive one of two, where not given.

        Raises:
            ValueError: there is no such output.
        """
        k = len(self.outputs) - 1 if output is None else self.outputs.index(output)
        values = self.contributions[:, :, k]
        order = np.argsort(-np.abs(values).mean(axis=0), kind="stable")
        return pd.DataFrame(values[:, order], index=self.index, columns=[self.columns[j] for j in order])

    def _repr_html_(self) -> str:
        shown = self.frame()
        note = f"base {self.base[-1]:.4g}, contributions to {self.outputs[-1]!r}, {self.walks} walks"
        return f"{shown.to_html(float_format='{:+.4g}'.format, max_cols=20)}<p>{note}</p>"


def explain(
    bundle: Bundle, rows: Columns, *, limit_s: float = EXPLAIN_S, walks: int = WALKS, seed: int = 0
) -> Explanation:
    """Return what each input column added to the predictions of some rows.

    Args:
        bundle: The variant, with its background.
        rows: Checked rows, a frame or arrays (n_rows,) by column name; 1 to :data:`MOST_ROWS`.
        limit_s: Seconds after which no further pair of walks begins; :data:`MOST_S` at most. The first pair is always
            finished, unless it takes as long as that.
        walks: Walks of each row at most.
        seed: Of the orders and of the background rows they start from; where the time suffices for all walks, the
            same seed gives the same contributions.

    Raises:
        Conflict: the bundle has no background.
        InvalidRequest: these are too many rows, or none, or too much time is asked for; names both. Or one pair of
            walks of these rows takes longer than :data:`MOST_S`.
    """
    if bundle.background is None:
        raise Conflict(
            "This variant keeps no background rows, so its predictions cannot be explained.",
            hint="It was made by an older factory; make it again.",
        )
    began = time.monotonic()
    values, background = canonical(rows, bundle.columns), bundle.background
    names = tuple(background.columns)
    n_rows = len(next(iter(values.values())))
    _check(n_rows, limit_s)
    outputs = bundle.classes or ("prediction",)
    walker = _Walker(bundle, values, background, until=began + MOST_S)
    total = np.zeros((n_rows, len(names), len(outputs)))
    squares, base, n_pairs = np.zeros_like(total), np.zeros(len(outputs)), 0
    for order, start in _pairs(len(names), len(background), max(1, walks // 2), seed):
        if n_pairs and time.monotonic() >= began + limit_s:
            break
        try:
            forwards, base_of_start = walker.walk(order, start)
            backwards, _ = walker.walk(order[::-1], start)
        except TimeoutError as error:
            if n_pairs:
                break
            raise _refused([Detail("rows", f"{n_rows} rows take more than {MOST_S:g} s to explain.")]) from error
        mean = (forwards + backwards) / 2
        total += mean
        squares += np.square(mean)
        base += base_of_start
        n_pairs += 1
    contributions = total / n_pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (squares / n_pairs - np.square(contributions)) * n_pairs / (n_pairs - 1)
    return Explanation(
        columns=names,
        outputs=outputs,
        base=base / n_pairs,
        contributions=contributions,
        errors=np.sqrt(np.maximum(variance, 0) / n_pairs) if n_pairs > 1 else np.full_like(total, np.nan),
        predictions=_two_dimensional(bundle.predict_raw(values)),
        walks=2 * n_pairs,
        index=rows.index if isinstance(rows, pd.DataFrame) else pd.RangeIndex(n_rows),
    )


def _check(n_rows: int, limit_s: float) -> None:
    problems = []
    if not 1 <= n_rows <= MOST_ROWS:
        problems.append(Detail("rows", f"{n_rows} rows cannot be explained; 1 to {MOST_ROWS} are allowed."))
    if not 0 <= limit_s <= MOST_S:
        problems.append(Detail("limit_s", f"{limit_s:g} s are not allowed; 0 to {MOST_S:g} are."))
    if problems:
        raise _refused(problems)


def _refused(problems: list[Detail]) -> InvalidRequest:
    return InvalidRequest(
        "The predictions are not explained. " + " ".join(f"{p.field}: {p.message}" for p in problems),
        hint="Explain fewer rows at a time; what matters to the variant as a whole stands in its model card.",
        details=problems,
    )


def _pairs(n_columns: int, n_background: int, n_pairs: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield an order of the columns and a background row; every background row has its turn before one has two."""
    generator = np.random.default_rng(seed)
    turns = generator.permutation(n_background)
    for i in range(n_pairs):
        yield generator.permutation(n_columns), int(turns[i % n_background])


class _Walker:
    """Switches the columns of all rows from a background row's values to their own, one after the other."""

    def __init__(self, bundle: Bundle, values: dict[str, np.ndarray], background: Background, *, until: float) -> None:
        self._bundle, self._until = bundle, until
        self._names = tuple(background.columns)
        self._n_rows = len(next(iter(values.values())))
        # A column's values followed by the background's: every step of a walk is a position in these.
        self._pool = [np.concatenate([values[name], background.columns[name]]) for name in self._names]

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
        return _two_dimensional(self._bundle.predict_raw(columns))


def _two_dimensional(predictions: np.ndarray) -> np.ndarray:
    return predictions if predictions.ndim == 2 else predictions[:, None]
