"""From the blend's probabilities to frequencies, and from these to a decision.

Both are learned from out-of-fold predictions and kept only where other folds
prove them: a calibration must lower the log-loss of folds that it was not
fitted on by more than chance would, a threshold likewise raise the metric.
Everything is a handful of numbers in the variant's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """What is done with a blend's probabilities before a caller sees them.

    Attributes:
        method: ``temperature`` divides the log-probabilities (Guo et al., 2017), ``isotonic`` follows a rising curve
            (Zadrozny and Elkan, 2002; two classes only), ``none`` leaves them.
        temperature: Above 1 less sure, below 1 surer.
        knots: Uncalibrated probabilities of the second class, rising, (n_knots,).
        levels: Calibrated ones, (n_knots,).
        threshold: Probability of the second of two classes above which it is the answer.
        gain: Log-loss that the method saved on folds that it was not fitted on; 0 for ``none``.
        threshold_gain: What the threshold brought the metric on folds that it was not chosen on; 0 for 0.5.
    """

    method: Literal["none", "temperature", "isotonic"] = "none"
    temperature: float = Field(1.0, gt=0)
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    threshold: float = Field(0.5, gt=0, lt=1)
    gain: float = 0.0
    threshold_gain: float = 0.0

    def apply(self, prediction: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float64 (n_rows, n_classes); the order of two classes' rows is kept."""
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
    metric: Metric, folds: Sequence[np.ndarray], predictions: Sequence[np.ndarray], *, bagged: bool
) -> Calibration:
    """Choose a calibration by log-loss, and for a metric of two classes' labels a threshold.

    Args:
        metric: What is optimized.
        folds: Class indices of each fold, (n_rows_of_fold,).
        predictions: The blend's out-of-fold probabilities, (n_rows_of_fold, n_classes).
        bagged: Whether the variant averages several folds' models where these predictions are of one each. An
            average is less sure than its parts: what they teach may make it surer, never less sure.
    """
    if metric.task is Task.REGRESSION:
        return Calibration()
    most = max(1, MOST_CELLS // (predictions[0].shape[1] * len(folds)))
    rows = [thinned(len(y), most) for y in folds]
    folds = [y[kept] for y, kept in zip(folds, rows, strict=True)]
    predictions = [p[kept] for p, kept in zip(predictions, rows, strict=True)]
    chosen = _calibrated(metric.task, folds, predictions, bagged=bagged)
    if metric.task is Task.BINARY and metric.by_label:
        chosen = _with_threshold(chosen, metric, folds, [chosen.apply(p) for p in predictions])
    return chosen


Fit = Callable[[np.ndarray, np.ndarray], Calibration]


def _calibrated(
    task: Task, folds: Sequence[np.ndarray], predictions: Sequence[np.ndarray], *, bagged: bool
) -> Calibration:
    if sum(map(len, folds)) < LEAST_ROWS[task]:
        return Calibration()
    fits: list[Fit] = [partial(_temperature, hottest=1.0 if bagged else HOTTEST)]
    if task is Task.BINARY and not bagged:
        fits.append(_isotonic)
    y, p = np.concatenate(folds), np.concatenate(predictions)
    plain = _losses(y, p)
    best = Calibration()
    for fit in fits:
        gains = plain - _losses(y, _held_out(fit, folds, predictions))
        gain, error = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
        if gain > max(SURE * error, LEAST_GAIN * float(plain.mean()), best.gain):
            best = fit(y, p).model_copy(update={"gain": gain})
    return best


def _held_out(fit: Fit, folds: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> np.ndarray:
    """Return the predictions of all rows, each calibrated by a fit on other rows: other folds, or the other half."""
    if len(folds) == 1:
        parity = np.arange(len(folds[0])) % 2
        answer = np.empty_like(predictions[0], dtype=np.float64)
        for half in (0, 1):
            others = parity != half
            answer[~others] = fit(folds[0][others], predictions[0][others]).apply(predictions[0][~others])
        return answer
    parts = []
    for k, own in enumerate(predictions):
        others = [j for j in range(len(folds)) if j != k]
        fitted = fit(np.concatenate([folds[j] for j in others]), np.concatenate([predictions[j] for j in others]))
        parts.append(fitted.apply(own))
    return np.concatenate(parts)


def _losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.asarray(-np.log(np.clip(p[np.arange(len(y)), y], 1e-15, 1)))


def _temperature(y: np.ndarray, p: np.ndarray, *, hottest: float) -> Calibration:
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(_losses(y, Calibration(method="temperature", temperature=np.exp(log_temperature)).apply(p)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(HOTTEST), np.log(hottest)), method="bounded", options={"xatol": 1e-3})
    return Calibration(method="temperature", temperature=float(np.exp(found.x)))


def _isotonic(y: np.ndarray, p: np.ndarray) -> Calibration:
    """Fit a rising curve through the means of rows of similar probability; its ends stay off 0 and 1."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(p[:, 1], kind="stable")
    groups = np.array_split(order, min(KNOTS, max(2, len(y) // 50)))
    rows = np.array([len(g) for g in groups])
    # One row of each class more than were seen, as Platt (1999) has it: no level is certain.
    levels = np.array([(y[g].sum() + 1 / KNOTS) / (len(g) + 2 / KNOTS) for g in groups])
    risen = isotonic_regression(levels, weights=rows).x
    knots, first = np.unique([p[g, 1].mean() for g in groups], return_index=True)
    return Calibration(method="isotonic", knots=tuple(knots.tolist()), levels=tuple(risen[first].tolist()))


def _with_threshold(
    chosen: Calibration, metric: Metric, folds: Sequence[np.ndarray], predictions: Sequence[np.ndarray]
) -> Calibration:
    """Choose the threshold by the mean over the folds; keep 0.5 unless other folds prove it."""
    if sum(map(len, folds)) < LEAST_THRESHOLD_ROWS:
        return chosen
    if len(folds) == 1:
        folds, predictions = (
            [part[i::4] for part in side for i in range(4)] for side in (list(folds), list(predictions))
        )
    seconds = np.concatenate([p[:, 1] for p in predictions])
    tried = np.unique(np.quantile(seconds, np.linspace(0.005, 0.995, THRESHOLDS)).clip(1e-6, 1 - 1e-6))
    tried = np.append(tried, 0.5)
    scores = np.array(
        [[metric.score(y, centred(p, float(t))) for t in tried] for y, p in zip(folds, predictions, strict=True)]
    )
    scores[~np.isfinite(scores)] = -np.inf
    n = len(folds)
    others = [int(np.argmax(_smooth((scores.sum(axis=0) - scores[k]) / (n - 1)))) for k in range(n)]
    gains = np.array([scores[k, at] - scores[k, -1] for k, at in enumerate(others)])
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(n))
    if not (np.isfinite(gain) and gain > max(error, 0.0)):
        return chosen
    threshold = float(tried[int(np.argmax(_smooth(scores.mean(axis=0))))])
    return chosen.model_copy(update={"threshold": threshold, "threshold_gain": gain})


def _smooth(scores: np.ndarray) -> np.ndarray:
    """Average each threshold's score with its neighbours', since a single peak is noise; the last one is 0.5 itself."""
    grid = np.pad(scores[:-1], 2, mode="edge")
    return np.append(np.convolve(grid, np.full(5, 0.2), mode="valid"), scores[-1])
