"""What a score of the latest rows promises for the rows that come next.

Where rows are ordered in time, the rows of one window err alike: the weather,
a promotion, a price that moves.  Resampling one window says how sure its own
score is, and nothing of how the next window may differ.  So the latest rows,
and the validation rows before them, are cut into windows; how scores changed
from one window to the next says how far the next one may lie
(docs/decisions/time-order.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from factory.search.metric import Metric
from factory.spec import Document
from factory.variants.resampling import Interval, best_score, ranks

PIECES = 2
"""Windows that the gate's rows are cut into, and validation rows alike. Scores of shorter windows differ more, which
errs on the safe side, and a few more of them make the interval much narrower: t has a thick tail."""
PIECES_ALONE = 6
"""The same where there are no validation rows before them."""
LEAST_ROWS = 20
"""Of a window; a gate does not judge by fewer either."""


class NextWindow(Document):
    """The window of time that a score holds for.

    Attributes:
        n_rows: As many rows as were judged.
        days: Days from the first to the last of them; None where the time column counts something else.
        scores: Of the windows by which the interval was widened, the earliest first.
        resampled: The score's interval by resampling the judged rows alone.
    """

    n_rows: int
    days: float | None = None
    scores: tuple[float, ...] = ()
    resampled: Interval

    @property
    def length(self) -> str:
        """How long it is, for people."""
        rows = f"{self.n_rows:,} rows"
        if self.days is None:
            return rows
        return f"{rows} ({self.days:,.0f} days)" if self.days >= 2 else f"{rows} ({24 * self.days:,.0f} hours)"

    @property
    def sentence(self) -> str:
        """What the interval promises, what it rests on, and what is not promised."""
        if len(self.scores) < 2:
            rests = "Of one window it cannot be told how much the next one differs, so that is not in the interval."
        else:
            rests = f"It tells how much {len(self.scores)} windows, one after the other, differed."
        promised = f"The score's interval is for the next window of about {self.length}; further ahead is not promised."
        return f"{promised} {rests}"


@dataclass(frozen=True, eq=False)
class Stretch:
    """Rows of a stretch of time, predicted by models that had learned from earlier rows only.

    Attributes:
        moment: Rank of each row's moment, int64 (n_rows,).
        y: Class indices or targets (n_rows,).
        prediction: Probabilities (n_rows, n_classes) or predictions (n_rows,).
        weight: How much each row counts, (n_rows,); all the same if None.
    """

    moment: np.ndarray
    y: np.ndarray
    prediction: np.ndarray
    weight: np.ndarray | None = None

    def cut(self, n_pieces: int) -> tuple[Stretch, ...]:
        """Return about so many pieces of equal length, the earliest first; a moment's rows stay in one piece."""
        n_pieces = max(1, min(n_pieces, len(self.y) // LEAST_ROWS))
        order = np.argsort(self.moment, kind="stable")
        ranked = self.moment[order]
        starts = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
        wanted = np.arange(1, n_pieces) * len(order) / n_pieces
        cuts = np.unique([starts[np.abs(starts - place).argmin()] for place in wanted]) if len(starts) else starts
        return tuple(self._rows(rows) for rows in np.split(order, cuts.astype(np.int64)) if len(rows) >= LEAST_ROWS)

    def _rows(self, rows: np.ndarray) -> Stretch:
        weight = None if self.weight is None else self.weight[rows]
        return Stretch(self.moment[rows], self.y[rows], self.prediction[rows], weight)


@dataclass(frozen=True, eq=False)
class TimeOrder:
    """The order in time of the gate's rows, and what came before them.

    Attributes:
        moment: Rank of the moment of each of the gate's rows, int64 (n_rows,).
        days: From the first to the last; None where the time column counts something else.
        before: The validation rows just before them; None where there are none.
    """

    moment: np.ndarray
    days: float | None = None
    before: Stretch | None = None

    @classmethod
    def of(cls, times: pd.Series, *, before: Stretch | None = None) -> TimeOrder:
        """Return the order of the gate's rows by their times (n_rows,)."""
        days = None
        if pd.api.types.is_datetime64_any_dtype(times) and len(times):
            days = (times.max() - times.min()) / pd.Timedelta(days=1)
        return cls(moment=ranks(times), days=days, before=before)

    def windows(self, y: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None) -> tuple[Stretch, ...]:
        """Return windows of equal length of the validation rows and of the gate's, the earliest first."""
        latest = Stretch(self.moment, y, prediction, weight)
        if self.before is None:
            return latest.cut(PIECES_ALONE)
        pieces = latest.cut(PIECES)
        length = len(y) / max(len(pieces), 1)
        return (*self.before.cut(round(len(self.before.y) / length)), *pieces)


def window_scores(
    metric: Metric, windows: Sequence[Stretch], seen: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, ...]:
    """Return the score of each window that has one: some metrics need all classes, or rows that differ.

    Args:
        metric: What is measured.
        windows: The earliest first.
        seen: Predictions as the metric judges them.
    """
    scores = []
    for one in windows:
        if one.prediction.ndim == 1 or len(np.unique(one.y)) == one.prediction.shape[1]:
            score = metric.score(one.y, seen(one.prediction), weight=one.weight)
            if np.isfinite(score):
                scores.append(score)
    return tuple(scores)


def foreseen(metric: Metric, resampled: Interval, scores: Sequence[float], *, pieces: float = 1.0) -> Interval:
    """Return the prediction interval of the score of the next stretch as long as the judged one.

    That of the naive forecast: it scores as the last one did, give or take ``t * s``, where ``s`` is the root mean
    square of the changes from window to window and ``t`` Student's quantile with as many degrees of freedom as there
    are changes (Hyndman and Athanasopoulos, 2021, "Forecasting: principles and practice", section 5.5, with t in place
    of the normal quantile since the changes are few; for unchanging scores that differ by chance, changes are sqrt(2)
    times as wide as the scores, which is what the difference of two windows needs: von Neumann et al., 1941, "The mean
    square successive difference"). Deviations from the windows' mean would count a trend as spread and lag behind it.

    Where the judged stretch is k windows long, ``s`` grows by the square root of (2 k^2 + 1) / 3 k: so much more do the
    means of k steps differ than the steps, in a random walk; where scores differ by chance only it errs on the safe
    side. Never narrower than what resampling says, and never beyond the best score there is.

    Args:
        metric: What is measured.
        resampled: The latest window's score with its bootstrap interval.
        scores: Of the windows, the earliest first.
        pieces: Windows that the judged stretch is long.
    """
    if len(scores) < 2:
        return resampled
    from scipy.special import stdtrit

    changes = np.diff(scores)
    spread = np.sqrt(np.mean(np.square(changes)) * (2 * pieces**2 + 1) / (3 * pieces))
    reach = float(stdtrit(len(changes), (1 + resampled.confidence) / 2) * spread)
    best = max(best_score(metric), resampled.high)
    low, high = min(resampled.low, resampled.value - reach), max(resampled.high, resampled.value + reach)
    return resampled.model_copy(update={"low": low, "high": min(high, best)})
