"""From the blend's probabilities to frequencies, and from these to a decision.

Both are learned from out-of-fold predictions and kept only where other folds
prove them: a calibration must lower the log-loss of folds that it was not
fitted on by more than chance would, a threshold likewise raise the metric.
Everything is a handful of numbers in the variant's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from factory.search.ensemble import thinned
from factory.search.metric import Metric, centred
from factory.spec import Document, Task

LEAST_ROWS = {Task.BINARY: 3_000, Task.MULTICLASS: 500}
"""Out-of-fold rows from which a calibration may pay (AutoGluon 1.6)."""
LEAST_GAIN = 0.002
"""Part of the log-loss that a calibration has to save; less is not worth a change (docs/decisions/calibration.md)."""
SURE = 2.0
"""Standard errors by which the gain on other folds has to exceed zero."""
KNOTS = 60
"""Knots of an isotonic curve; more only follow the noise of their rows."""
TILT = 0.02
"""Part of the uncalibrated probability that is mixed into an isotonic step, so that no two rows become equal."""
HOTTEST = 5.0
"""Temperatures lie between this and its inverse; beyond, a model is broken rather than unsure."""
MOST_CELLS = 200_000
"""Out-of-fold probabilities that are looked at, evenly spaced: one temperature of 20,000 rows of ten classes takes
0.4 s (measured), nine of them are fitted for eight folds, and time grows with rows and classes."""
LEAST_THRESHOLD_ROWS = 200
THRESHOLDS = 99


class Calibration(Document):
    """What is done with a blend's answers before a caller sees them: probabilities of classes, else numbers.

    Attributes:
        method: ``temperature`` divides the log-probabilities (Guo et al., 2017), ``isotonic`` follows a rising curve
            (Zadrozny and Elkan, 2002; two classes only), ``none`` leaves them.
        temperature: Above 1 less sure, below 1 surer.
        knots: Uncalibrated probabilities of the second class, rising, (n_knots,).
        levels: Calibrated ones, (n_knots,).
        threshold: Probability of the second of two classes above which it is the answer.
        floor: Least number that is answered, of a regression whose metric is defined above a bound only.
        gain: Log-loss that the method saved on folds that it was not fitted on; 0 for ``none``.
        threshold_gain: What the threshold brought the metric on folds that it was not chosen on; 0 for 0.5.
    """

    method: Literal["none", "temperature", "isotonic"] = "none"
    temperature: float = Field(1.0, gt=0)
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    threshold: float = Field(0.5, gt=0, lt=1)
    # Manifests of variants without one stay as older factories read them.
    floor: float | None = Field(None, exclude_if=lambda floor: floor is None)
    gain: float = 0.0
    threshold_gain: float = 0.0

    def apply(self, prediction: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float64 (n_rows, n_classes), or numbers from the floor on, (n_rows,).

        The order of two classes' rows is kept.
        """
        if self.floor is not None:
            return np.asarray(np.maximum(prediction, self.floor))
        if self.method == "temperature":
            powered = np.clip(prediction, 1e-15, 1) ** (1 / self.temperature)
            return np.asarray(powered / powered.sum(axis=1, keepdims=True))
        if self.method == "isotonic":
            second = prediction[:, 1]
            risen = (1 - TILT) * np.interp(second, self.knots, self.levels) + TILT * second
            return np.stack([1 - risen, risen], axis=1)
        return prediction

    def labels(self, prediction: np.ndarray) -> np.ndarray:
        """Return the index of the answered class of each row of calibrated probabilities, int64 (n_rows,)."""
        decided = centred(prediction, self.threshold) if prediction.shape[1] == 2 else prediction
        return np.asarray(decided.argmax(axis=1))


def calibrate(
    metric: Metric,
    folds: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    *,
    bagged: bool,
    weights: Sequence[np.ndarray] | None = None,
) -> Calibration:
    """Choose a calibration by log-loss, and for a metric of two classes' labels a threshold.

    Args:
        metric: What is optimized.
        folds: Class indices of each fold, (n_rows_of_fold,).
        predictions: The blend's out-of-fold probabilities, (n_rows_of_fold, n_classes).
        bagged: Whether the variant averages several folds' models where these predictions are of one each. An
            average is less sure than its parts: what they teach may make it surer, never less sure.
        weights: How much each row counts, (n_rows_of_fold,); all the same if None.
    """
    if metric.task is Task.REGRESSION:
        return Calibration(floor=metric.floor)
    most = max(1, MOST_CELLS // (predictions[0].shape[1] * len(folds)))
    parts = [
        _Rows(y, p, None if weights is None else weights[k]).at(thinned(len(y), most))
        for k, (y, p) in enumerate(zip(folds, predictions, strict=True))
    ]
    chosen = _calibrated(metric.task, parts, bagged=bagged)
    if metric.task is Task.BINARY and metric.by_label:
        chosen = _with_threshold(chosen, metric, [replace(rows, p=chosen.apply(rows.p)) for rows in parts])
    return chosen


@dataclass(frozen=True, eq=False)
class _Rows:
    """Out-of-fold rows: class indices (n_rows,), probabilities (n_rows, n_classes), and how much each row counts."""

    y: np.ndarray
    p: np.ndarray
    weight: np.ndarray | None

    def __len__(self) -> int:
        return len(self.y)

    def at(self, rows: np.ndarray | slice) -> _Rows:
        return _Rows(self.y[rows], self.p[rows], None if self.weight is None else self.weight[rows])

    @property
    def losses(self) -> np.ndarray:
        return np.asarray(-np.log(np.clip(self.p[np.arange(len(self.y)), self.y], 1e-15, 1)))


def _joined(parts: Sequence[_Rows]) -> _Rows:
    weights = [rows.weight for rows in parts if rows.weight is not None]
    return _Rows(
        np.concatenate([rows.y for rows in parts]),
        np.concatenate([rows.p for rows in parts]),
        np.concatenate(weights) if weights else None,
    )


Fit = Callable[[_Rows], Calibration]


def _calibrated(task: Task, parts: Sequence[_Rows], *, bagged: bool) -> Calibration:
    if sum(map(len, parts)) < LEAST_ROWS[task]:
        return Calibration()
    fits: list[Fit] = [partial(_temperature, hottest=1.0 if bagged else HOTTEST)]
    if task is Task.BINARY and not bagged:
        fits.append(_isotonic)
    rows = _joined(parts)
    plain, best = rows.losses, Calibration()
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    for fit in fits:
        gains = plain - replace(rows, p=_held_out(fit, parts)).losses
        gain = float(np.average(gains, weights=weight))
        error = float(np.sqrt(np.square(weight * (gains - gain)).sum()) / weight.sum())
        if gain > max(SURE * error, LEAST_GAIN * float(np.average(plain, weights=weight)), best.gain):
            best = fit(rows).model_copy(update={"gain": gain})
    return best


def _held_out(fit: Fit, parts: Sequence[_Rows]) -> np.ndarray:
    """Return the predictions of all rows, each calibrated by a fit on other rows: other folds, or the other half."""
    if len(parts) == 1:
        parity = np.arange(len(parts[0])) % 2
        answer = np.empty_like(parts[0].p, dtype=np.float64)
        for half in (0, 1):
            others = parity != half
            answer[~others] = fit(parts[0].at(others)).apply(parts[0].p[~others])
        return answer
    return np.concatenate(
        [fit(_joined([other for j, other in enumerate(parts) if j != k])).apply(rows.p) for k, rows in enumerate(parts)]
    )


def _temperature(rows: _Rows, *, hottest: float) -> Calibration:
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        tried = Calibration(method="temperature", temperature=np.exp(log_temperature))
        return float(np.average(replace(rows, p=tried.apply(rows.p)).losses, weights=rows.weight))

    found = minimize_scalar(loss, bounds=(-np.log(HOTTEST), np.log(hottest)), method="bounded", options={"xatol": 1e-3})
    return Calibration(method="temperature", temperature=float(np.exp(found.x)))


def _isotonic(rows: _Rows) -> Calibration:
    """Fit a rising curve through the means of rows of similar probability; its ends stay off 0 and 1."""
    from scipy.optimize import isotonic_regression

    weight, second = np.ones(len(rows)) if rows.weight is None else rows.weight, rows.p[:, 1]
    order = np.argsort(second, kind="stable")
    groups = np.array_split(order, min(KNOTS, max(2, len(rows) // 50)))
    counted = np.array([weight[g].sum() for g in groups])
    positive = np.array([weight[g] @ rows.y[g] for g in groups])
    # One row of each class more than were seen, as Platt (1999) has it: no level is certain.
    levels = (positive + 1 / KNOTS) / (counted + 2 / KNOTS)
    risen = isotonic_regression(levels, weights=counted).x
    knots, first = np.unique([np.average(second[g], weights=weight[g]) for g in groups], return_index=True)
    return Calibration(method="isotonic", knots=tuple(knots.tolist()), levels=tuple(risen[first].tolist()))


def _with_threshold(chosen: Calibration, metric: Metric, parts: Sequence[_Rows]) -> Calibration:
    """Choose the threshold by the mean over the folds; keep 0.5 unless other folds prove it."""
    if sum(map(len, parts)) < LEAST_THRESHOLD_ROWS:
        return chosen
    if len(parts) == 1:
        parts = [parts[0].at(slice(i, None, 4)) for i in range(4)]
    tried = np.append(_thresholds(_joined(parts)), 0.5)
    scores = np.array(
        [[metric.score(rows.y, centred(rows.p, float(t)), weight=rows.weight) for t in tried] for rows in parts]
    )
    scores[~np.isfinite(scores)] = -np.inf
    n = len(parts)
    others = [int(np.argmax(_smooth((scores.sum(axis=0) - scores[k]) / (n - 1)))) for k in range(n)]
    gains = np.array([scores[k, at] - scores[k, -1] for k, at in enumerate(others)])
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(n))
    if not (np.isfinite(gain) and gain > max(error, 0.0)):
        return chosen
    threshold = float(tried[int(np.argmax(_smooth(scores.mean(axis=0))))])
    return chosen.model_copy(update={"threshold": threshold, "threshold_gain": gain})


def _thresholds(rows: _Rows) -> np.ndarray:
    """Return the thresholds to try: quantiles of the second class's probability where both classes are as frequent.

    Of quantiles over all rows, a rare class would get a handful, and those that serve it would not be among them
    (docs/decisions/rare-classes.md).
    """
    order = np.argsort(rows.p[:, 1], kind="stable")
    second, share = rows.p[order, 1], 1 / np.bincount(rows.y)[rows.y[order]]
    passed = (np.cumsum(share) - share / 2) / share.sum()
    return np.unique(np.interp(np.linspace(0.005, 0.995, THRESHOLDS), passed, second).clip(1e-6, 1 - 1e-6))


def _smooth(scores: np.ndarray) -> np.ndarray:
    """Average each threshold's score with its neighbours', since a single peak is noise; the last one is 0.5 itself."""
    grid = np.pad(scores[:-1], 2, mode="edge")
    return np.append(np.convolve(grid, np.full(5, 0.2), mode="valid"), scores[-1])
