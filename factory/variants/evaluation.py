"""What a variant is worth on rows that nobody chose it by: scores, pictures, cost.

Everything here is computed from predictions of held-out rows, from the bundle
and its folder, and comes out as frozen documents that the gate judges, MLflow
stores and the model card draws.
"""

from __future__ import annotations

import itertools
import time
from functools import partial

import numpy as np
import pandas as pd
from pydantic import Field

from factory.search.metric import Metric, centred
from factory.spec import Document, Task
from factory.variants.bundle import Bundle
from factory.variants.resampling import RESAMPLES, Dependence, Interval, bootstrap
from factory.variants.windows import NextWindow, TimeOrder, foreseen, window_scores

REPORTED_RESAMPLES = 400
"""Resamples for the intervals of the scores beside the optimized one; their ends move in the third digit."""
_LATENCY_REPEATS, _LATENCY_WARM_UP = 3, 2
_POINTS = 400
"""Points of a scatter plot: the card stays small, the eye sees the same."""
IMPORTANCE_S = 2.0
"""Seconds that a permutation importance aims at."""
_LEAST_ROWS = 50
"""Rows that it takes at least: of fewer, shuffling a column says nothing."""


class Confusion(Document):
    """Counts (n_classes, n_classes): rows are true classes, columns predicted ones."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class CalibrationBin(Document):
    """Rows of similar predicted probability: what was promised and what happened."""

    predicted: float
    observed: float
    n_rows: int


class Residuals(Document):
    """Residuals (true minus predicted) and a sample of points to draw.

    Attributes:
        mean: Bias.
        std: Spread.
        quantiles: At 5, 25, 50, 75 and 95 %.
        points: Pairs (predicted, true) of a sample of rows.
    """

    mean: float
    std: float
    quantiles: tuple[float, float, float, float, float]
    points: tuple[tuple[float, float], ...]


class Importance(Document):
    """Loss of score when one column is shuffled; mean and spread over the repeats."""

    column: str
    drop: float
    spread: float


class Evaluation(Document):
    """How well a variant predicts held-out rows.

    Attributes:
        metric: scikit-learn scorer name of the metric that was optimized.
        score: Its value with a bootstrap interval, of rows in order of time with that of the next window; greater is
            better.
        scores: All reported scores by scorer name, the optimized one among them.
        intervals: Their intervals, alike.
        n_rows: Held-out rows.
        confusion: Classification only.
        calibration: Classification only; ten bins of equal size, fewer for few rows.
        residuals: Regression only.
        next_window: What the intervals promise, of rows in order of time only.
    """

    metric: str
    task: Task
    score: Interval
    scores: dict[str, float]
    intervals: dict[str, Interval] = Field(default_factory=dict)
    n_rows: int
    confusion: Confusion | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    residuals: Residuals | None = None
    next_window: NextWindow | None = None


def evaluate(
    metric: Metric,
    y: np.ndarray,
    prediction: np.ndarray,
    *,
    classes: tuple[str, ...],
    seed: int,
    weight: np.ndarray | None = None,
    threshold: float = 0.5,
    order: TimeOrder | None = None,
    dependence: Dependence | None = None,
) -> Evaluation:
    """Score the predictions of held-out rows.

    Counts, bins of probabilities and residuals are of the rows as they are; only scores weigh them.

    Args:
        metric: What was optimized; gets the interval.
        y: Class indices (n_rows,) or targets (n_rows,).
        prediction: Probabilities (n_rows, n_classes) or predictions (n_rows,).
        classes: Labels in index order; () for regression.
        seed: Of the bootstrap.
        weight: How much each row counts, (n_rows,); all the same if None.
        threshold: Probability of the second of two classes above which it is the answer.
        order: In time, where the rows have one: intervals are then of the next window's scores.
        dependence: Which rows err alike; of rows in order of time it follows from that.
    """
    decided = centred(prediction, threshold)
    windows = () if order is None else order.windows(y, prediction, weight)
    dependence = dependence if order is None else Dependence(order.moment, ordered=True)
    pieces = len(y) / len(windows[-1].y) if windows else 1.0

    def seen(one: Metric, raw: np.ndarray = prediction) -> np.ndarray:
        return centred(raw, threshold) if one.by_label else raw

    def interval(one: Metric, n: int) -> tuple[Interval, Interval, tuple[float, ...]]:
        """Return what is promised, what resampling alone says, and the windows' scores."""
        resampled = bootstrap(one, y, seen(one), seed=seed, weight=weight, dependence=dependence, n=n)
        found = window_scores(one, windows, partial(seen, one))
        return foreseen(one, resampled, found, pieces=pieces), resampled, found

    score, resampled, found = interval(metric, RESAMPLES)
    scores = {one.name: _score(one, y, seen(one), weight) for one in (metric, *metric.reported())}
    told = {name: value for name, value in scores.items() if np.isfinite(value)}
    intervals = {one.name: interval(one, REPORTED_RESAMPLES)[0] for one in metric.reported() if one.name in told}
    evaluation = Evaluation(
        metric=metric.name,
        task=metric.task,
        score=score,
        scores=told,
        intervals={metric.name: score, **intervals},
        n_rows=len(y),
        next_window=NextWindow(n_rows=len(y), days=order.days, scores=found, resampled=resampled) if order else None,
    )
    if metric.task is Task.REGRESSION:
        return evaluation.model_copy(update={"residuals": residuals(y, prediction, seed=seed)})
    return evaluation.model_copy(
        update={"confusion": confusion(y, decided, classes=classes), "calibration": calibration(y, prediction)}
    )


def _score(metric: Metric, y: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None) -> float:
    """Score, or NaN where the rows at hand do not define it (a class is absent)."""
    if (
        metric.task is not Task.REGRESSION
        and len(np.unique(y)) < prediction.shape[1]
        and metric.name not in ("neg_log_loss", "accuracy")
    ):
        return float("nan")
    return metric.score(y, prediction, weight=weight)


def confusion(y: np.ndarray, prediction: np.ndarray, *, classes: tuple[str, ...]) -> Confusion:
    """Count true against predicted classes."""
    n = len(classes)
    counts = np.bincount(y * n + prediction.argmax(axis=1), minlength=n * n).reshape(n, n)
    return Confusion(labels=classes, counts=tuple(tuple(row) for row in counts.tolist()))


def calibration(y: np.ndarray, prediction: np.ndarray, *, bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Compare promised with observed frequencies in bins of equal size.

    For two classes the probability of the second one, for more that of the predicted one ("confidence calibration",
    Guo et al., 2017). A bin holds at least 10 rows.
    """
    binary = prediction.shape[1] == 2
    promised = prediction[:, 1] if binary else prediction.max(axis=1)
    happened = (y == 1) if binary else (y == prediction.argmax(axis=1))
    order = np.argsort(promised, kind="stable")
    groups = np.array_split(order, max(1, min(bins, len(y) // 10)))
    return tuple(
        CalibrationBin(predicted=float(promised[g].mean()), observed=float(happened[g].mean()), n_rows=len(g))
        for g in groups
        if len(g)
    )


def residuals(y: np.ndarray, prediction: np.ndarray, *, seed: int) -> Residuals:
    """Summarize true minus predicted."""
    difference = y - prediction
    chosen = np.random.default_rng(seed).permutation(len(y))[:_POINTS]
    quantiles = np.quantile(difference, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Residuals(
        mean=float(difference.mean()),
        std=float(difference.std()),
        quantiles=tuple(quantiles),
        points=tuple(zip(prediction[chosen].tolist(), y[chosen].tolist(), strict=True)),
    )


def permutation_importance(
    bundle: Bundle,
    frame: pd.DataFrame,
    y: np.ndarray,
    *,
    metric: Metric,
    seed: int,
    weight: np.ndarray | None = None,
    max_rows: int = 1000,
    limit_s: float = IMPORTANCE_S,
) -> tuple[Importance, ...]:
    """Return how much each column matters to the variant as a whole, the most important first (Breiman, 2001).

    A slow variant gets fewer shuffles, then fewer rows; columns that even twice the time does not suffice for are left
    out.

    Args:
        bundle: The variant.
        frame: Held-out rows with the variant's columns.
        y: Their class indices or targets (n_rows,).
        metric: What is lost.
        seed: Of the sample of rows and of the shuffles.
        weight: How much each row counts, (n_rows,); all the same if None.
        max_rows: Rows at most.
        limit_s: Seconds that it aims at.
    """
    names = [name for name in dict.fromkeys(c for p in bundle.preparations for c in p.columns) if name in frame]
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(y))[:max_rows]

    def scored(columns: dict[str, np.ndarray]) -> float:
        own = None if weight is None else weight[chosen]
        return _score(metric, y[chosen], bundle.judged(bundle.predict_raw(columns), metric), own)

    began = time.perf_counter()
    columns = {name: frame[name].to_numpy()[chosen] for name in names}
    whole = scored(columns)
    rounds = limit_s / (time.perf_counter() - began) / max(len(names), 1)
    if rounds < 1 and len(chosen) > _LEAST_ROWS:
        chosen = chosen[: max(_LEAST_ROWS, int(rounds * len(chosen)))]
        columns = {name: values[: len(chosen)] for name, values in columns.items()}
        whole = scored(columns)
    found = []
    for name in names:
        if time.perf_counter() - began > 2 * limit_s:
            break
        shuffled = ({**columns, name: generator.permutation(columns[name])} for _ in range(int(np.clip(rounds, 1, 3))))
        drops = np.array([whole - scored(one) for one in shuffled])
        if np.isfinite(drops).all():
            found.append(Importance(column=name, drop=float(drops.mean()), spread=float(drops.std())))
    return tuple(sorted(found, key=lambda one: -one.drop))


def one_row_latency_ms(bundle: Bundle, frame: pd.DataFrame, *, runs: int = 40) -> float:
    """Return the median time of predicting one row, in milliseconds, after two rows to warm up.

    The lowest of three medians: what other processes take of the machine meanwhile is not the variant's cost. Rows
    come again only where there are too few, since a row that comes again finds its way through the trees in the cache.

    Args:
        bundle: The variant.
        frame: Rows to take turns with.
        runs: Timed predictions of each median.
    """
    names = [name for name in dict.fromkeys(c for p in bundle.preparations for c in p.columns) if name in frame]
    arrays = {name: frame[name].to_numpy() for name in names}
    most = _LATENCY_WARM_UP + _LATENCY_REPEATS * runs
    rows = [{name: a[i : i + 1] for name, a in arrays.items()} for i in range(min(len(frame), most))]
    turns = itertools.cycle(rows)
    for row in itertools.islice(turns, _LATENCY_WARM_UP):
        bundle.predict_raw(row)
    times = np.empty((_LATENCY_REPEATS, runs))
    for place, row in zip(np.ndindex(*times.shape), turns, strict=False):
        start = time.perf_counter()
        bundle.predict_raw(row)
        times[place] = time.perf_counter() - start
    return float(np.median(times, axis=1).min() * 1e3)
