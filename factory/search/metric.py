"""Metrics: any scikit-learn scorer by name, on predictions that are already there.

A search scores the same rows thousands of times (an ensemble step scores one
blend for each candidate), so the usual metrics have a short numpy path; all
others go through scikit-learn's own scorer.  Scores follow scikit-learn's
convention: greater is better, losses are negative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from factory.errors import InvalidRequest, listing, suggest
from factory.spec import Task

Score = Callable[[np.ndarray, np.ndarray], float]


def _roc_auc(y: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve by mid-ranks (Mann and Whitney, 1947)."""
    score = p[:, 1]
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(counts) - (counts - 1) / 2
    positive = y == 1
    n_positive = int(positive.sum())
    n_negative = len(y) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = float(mid_rank[inverse[positive]].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def _neg_log_loss(y: np.ndarray, p: np.ndarray) -> float:
    floor = np.finfo(np.float64).eps
    return float(np.log(np.clip(p[np.arange(len(y)), y], floor, 1)).mean())


def _accuracy(y: np.ndarray, p: np.ndarray) -> float:
    return float((p.argmax(axis=1) == y).mean())


def _neg_mse(y: np.ndarray, p: np.ndarray) -> float:
    return -float(np.square(y - p).mean())


def _neg_rmse(y: np.ndarray, p: np.ndarray) -> float:
    return -float(np.sqrt(np.square(y - p).mean()))


def _neg_mae(y: np.ndarray, p: np.ndarray) -> float:
    return -float(np.abs(y - p).mean())


def _r2(y: np.ndarray, p: np.ndarray) -> float:
    spread, error = float(np.square(y - y.mean()).mean()), float(np.square(y - p).mean())
    return 1 - error / spread if spread else float(error == 0)


_CLASSIFICATION: dict[str, Score] = {"neg_log_loss": _neg_log_loss, "accuracy": _accuracy}
_REGRESSION: dict[str, Score] = {
    "neg_mean_squared_error": _neg_mse,
    "neg_root_mean_squared_error": _neg_rmse,
    "neg_mean_absolute_error": _neg_mae,
    "r2": _r2,
}
_FAST: dict[Task, dict[str, Score]] = {
    Task.BINARY: {**_CLASSIFICATION, "roc_auc": _roc_auc},
    Task.MULTICLASS: _CLASSIFICATION,
    Task.REGRESSION: _REGRESSION,
}
_WRITTEN = {
    "roc": "ROC",
    "auc": "AUC",
    "f1": "F1",
    "r2": "R²",
    "rmse": "RMSE",
    "ovr": "one-vs-rest",
    "ovo": "one-vs-one",
}


@dataclass(frozen=True)
class Metric:
    """A named score for one task. Build it with :meth:`of`, which checks the name."""

    name: str
    task: Task

    @classmethod
    def of(cls, name: str, task: Task) -> Metric:
        """Return the metric of that scikit-learn scorer name, tried once on a tiny example.

        Raises:
            InvalidRequest: there is no such scorer, or it does not fit the task.
        """
        metric = cls(name, task)
        if name in _FAST[task]:
            return metric
        from sklearn.metrics import get_scorer_names

        known = get_scorer_names()
        if name not in known:
            raise InvalidRequest(
                f"metric: there is no scikit-learn scorer {name!r}.{suggest(name, known)}",
                hint=f"Usual ones for a {task} task: {listing(_FAST[task])}.",
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                value = metric.score(*_example(task))
        except (ValueError, TypeError, AttributeError, UserWarning) as error:
            value, cause = float("nan"), str(error)
        else:
            cause = "it gives no number"
        if not np.isfinite(value):
            raise InvalidRequest(
                f"metric: the scorer {name!r} does not fit a {task} task ({cause}).",
                hint=f"Usual ones for a {task} task: {listing(_FAST[task])}.",
            )
        return metric

    def score(self, y: np.ndarray, prediction: np.ndarray) -> float:
        """Return the score; greater is better.

        Args:
            y: Class indices (n_rows,) or targets (n_rows,).
            prediction: Probabilities (n_rows, n_classes) or predictions (n_rows,).
        """
        fast = _FAST[self.task].get(self.name)
        return fast(y, prediction) if fast else self._by_scorer(y, prediction)

    def _by_scorer(self, y: np.ndarray, prediction: np.ndarray) -> float:
        from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
        from sklearn.metrics import get_scorer

        class Given(BaseEstimator):  # type: ignore[misc]
            """An estimator whose answer is its input: the predictions that are already there."""

            def __sklearn_is_fitted__(self) -> bool:
                return True

        class GivenClassifier(ClassifierMixin, Given):  # type: ignore[misc]
            classes_ = np.arange(prediction.shape[-1])

            def predict(self, X: np.ndarray) -> np.ndarray:
                return np.asarray(X.argmax(axis=1))

            def predict_proba(self, X: np.ndarray) -> np.ndarray:
                return X

        class GivenRegressor(RegressorMixin, Given):  # type: ignore[misc]
            def predict(self, X: np.ndarray) -> np.ndarray:
                return X

        given = GivenRegressor() if self.task is Task.REGRESSION else GivenClassifier()
        return float(get_scorer(self.name)(given, prediction, y))

    def display(self, score: float) -> str:
        """Return the score for people: losses without their sign, four significant digits."""
        value = -score if self.name.startswith("neg_") else score
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"

    @property
    def label(self) -> str:
        """Name for people: ``neg_log_loss`` is shown as ``log loss``, ``roc_auc`` as ``ROC AUC``."""
        return " ".join(_WRITTEN.get(word, word) for word in self.name.removeprefix("neg_").split("_"))


def _example(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and predictions with every class among both and some errors: every score is defined."""
    if task is Task.REGRESSION:
        return np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.1, 1.9, 3.2, 3.9])
    n_classes = 2 if task is Task.BINARY else 3
    y = np.tile(np.arange(n_classes), 4)
    said = np.roll(y, 1)
    said[n_classes:] = y[n_classes:]
    p = np.full((len(y), n_classes), 0.4 / (n_classes - 1))
    p[np.arange(len(y)), said] = 0.6
    return y, p
