"""Metrics: any scikit-learn scorer by name, on predictions that are already there.

The usual ones have a short path in numpy (:mod:`factory.search.fast_scores`);
all others go through scikit-learn's own scorer.  Scores follow scikit-learn's
convention: greater is better, losses are negative.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from factory.errors import InvalidRequest, listing, suggest
from factory.families.base import Loss
from factory.search.domain import DOMAINS, require_inside
from factory.search.fast_scores import FAST
from factory.spec import Task

_OF_MEDIANS = frozenset({"neg_mean_absolute_error", "neg_median_absolute_error", "neg_mean_absolute_percentage_error"})
_OF_PROBABILITIES = frozenset({"roc_auc", "average_precision", "neg_log_loss", "neg_brier_score"})
REPORTED: dict[Task, tuple[str, ...]] = {
    Task.BINARY: (
        "roc_auc",
        "average_precision",
        "neg_log_loss",
        "neg_brier_score",
        "accuracy",
        "balanced_accuracy",
        "f1",
    ),
    Task.MULTICLASS: ("neg_log_loss", "accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr"),
    Task.REGRESSION: ("neg_root_mean_squared_error", "neg_mean_absolute_error", "neg_median_absolute_error", "r2"),
}
"""Scores that every variant of a task shows, whatever it was optimized for; scikit-learn scorer names."""
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
    """A named score for one task. Build it with :meth:`of`, which checks the name.

    Attributes:
        name: Of a scikit-learn scorer.
        task: What is predicted.
        floor: Least prediction that is scored, and served, of a scorer that is defined above a bound only; set by
            :meth:`on`, None of all others.
    """

    name: str
    task: Task
    floor: float | None = None

    @classmethod
    def of(cls, name: str, task: Task) -> Metric:
        """Return the metric of that scikit-learn scorer name, tried once on a tiny example.

        Raises:
            InvalidRequest: there is no such scorer, or it does not fit the task.
        """
        metric = cls(name, task)
        if name in FAST[task]:
            return metric
        from sklearn.metrics import get_scorer_names

        known = get_scorer_names()
        if name not in known:
            raise InvalidRequest(
                f"metric: there is no scikit-learn scorer {name!r}.{suggest(name, known)}",
                hint=f"Usual ones for a {task} task: {listing(FAST[task])}.",
            )
        cause = _misfit(name, task)
        if not cause:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)
                    cause = "" if np.isfinite(metric.score(*_example(task))) else "it gives no number"
            except (ValueError, TypeError, AttributeError, UserWarning) as error:
                cause = str(error).rstrip(".")
        if cause:
            akin = [other for other in known if other.startswith(f"{name}_") and not other.endswith("_samples")]
            usual = f"Usual ones for a {task} task: {listing(FAST[task])}."
            if _judges_numbers(name) and task is not Task.REGRESSION:
                usual += " If the target is a number, say so: task 'regression'."
            raise InvalidRequest(
                f"metric: the scorer {name!r} does not fit a {task} task: {cause}.",
                hint=f"Akin to it: {listing(akin)}. {usual}" if akin and task is not Task.REGRESSION else usual,
            )
        return metric

    def on(self, y: np.ndarray, *, seen: np.ndarray, target: str) -> Metric:
        """Return the metric with the floor that the targets give it; itself where it is defined for every number.

        Args:
            y: All targets, (n_rows,).
            seen: Positions of the rows that the search may see; the floor is theirs.
            target: Name of their column.

        Raises:
            InvalidData: the metric is not defined for some targets.
        """
        if (domain := DOMAINS.get(self.name)) is None:
            return self
        require_inside(self.name, y, target=target, others=FAST[Task.REGRESSION])
        return replace(self, floor=domain.floor(y[seen]))

    def score(self, y: np.ndarray, prediction: np.ndarray, *, weight: np.ndarray | None = None) -> float:
        """Return the score; greater is better. NaN where the rows do not define it.

        Args:
            y: Class indices (n_rows,) or targets (n_rows,).
            prediction: Probabilities (n_rows, n_classes) or predictions (n_rows,); those below the floor count as it.
            weight: How much each row counts, above 0, (n_rows,); all the same if None.
        """
        if (domain := DOMAINS.get(self.name)) is not None:
            if domain.outside(y).any():
                return float("nan")
            prediction = np.maximum(prediction, domain.lowest if self.floor is None else self.floor)
        fast = FAST[self.task].get(self.name)
        return fast(y, prediction, weight) if fast else self._by_scorer(y, prediction, weight=weight)

    def defined(self, y: np.ndarray, n_classes: int) -> bool:
        """Whether rows have a score, whatever is predicted: some metrics have none where a class is absent.

        Args:
            y: Class indices (n_rows,) or targets (n_rows,).
            n_classes: Number of classes; 0 for regression.
        """
        if n_classes == 0 or self.by_label:
            return True
        return bool(np.isfinite(self.score(y, np.full((len(y), n_classes), 1 / n_classes))))

    @property
    def weighs(self) -> bool:
        """Whether rows can count differently, tried once: one-vs-one has a ``sample_weight``, and refuses it."""
        y, prediction = _example(self.task)
        try:
            self.score(y, prediction, weight=np.ones(len(y)))
        except (AttributeError, TypeError, ValueError):
            return False
        return True

    @property
    def ranks(self) -> bool:
        """Whether only the order of the predictions counts."""
        return self.name.startswith(("roc_auc", "average_precision"))

    @property
    def loss(self) -> Loss:
        """Error that regressions learn by: absolute where the score is best for medians, else squared."""
        return "absolute" if self.name in _OF_MEDIANS else "squared"

    @property
    def quick(self) -> bool:
        """Whether a score takes microseconds rather than the milliseconds of scikit-learn's own scorers."""
        return self.name in FAST[self.task]

    @property
    def by_label(self) -> bool:
        """Whether only the predicted class counts: then a decision threshold matters, and calibration does not."""
        if self.task is Task.REGRESSION or self.name in _OF_PROBABILITIES:
            return False
        from sklearn.metrics import get_scorer

        return bool(get_scorer(self.name)._response_method == "predict")

    @property
    def chooser(self) -> Metric:
        """The metric that models and blends are chosen by: of two classes' labels the ranking, else this one.

        The threshold comes afterwards.  Blends chosen by the labels at 0.5 were worse in 7 of 8 comparisons on held
        out rows, and better in none (docs/decisions/calibration.md).
        """
        return Metric("roc_auc", self.task) if self.task is Task.BINARY and self.by_label else self

    def reported(self) -> tuple[Metric, ...]:
        """Return the scores that a variant of the task shows beside this one, whatever it was optimized for."""
        return tuple(Metric(name, self.task) for name in REPORTED[self.task] if name != self.name)

    def _by_scorer(self, y: np.ndarray, prediction: np.ndarray, *, weight: np.ndarray | None = None) -> float:
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
        by_row = {} if weight is None else {"sample_weight": weight}
        try:
            return float(get_scorer(self.name)(given, prediction, y, **by_row))
        except ValueError:
            if self.task is not Task.REGRESSION and len(np.unique(y)) < prediction.shape[1]:
                return float("nan")  # a class is absent among the rows, so that the score is not defined
            raise

    def display(self, score: float) -> str:
        """Return the score for people: losses without their sign, four significant digits."""
        value = 0.0 - score if self.name.startswith("neg_") else score  # -0.0 would be shown with its sign
        if 0 < abs(value) < 0.01:
            return f"{value:.4g}"
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"

    @property
    def label(self) -> str:
        """Name for people: ``neg_log_loss`` is shown as ``log loss``, ``roc_auc`` as ``ROC AUC``."""
        return label_of(self.name)


def label_of(name: str) -> str:
    """Return the name for people of a scikit-learn scorer.

    >>> label_of("neg_log_loss"), label_of("roc_auc")
    ('log loss', 'ROC AUC')
    """
    return " ".join(_WRITTEN.get(word, word) for word in name.removeprefix("neg_").split("_"))


def _misfit(name: str, task: Task) -> str:
    """Say why a scorer of scikit-learn is not for a task; empty if nothing is known against it."""
    from sklearn.metrics import get_scorer

    scorer, judges_numbers = get_scorer(name), _judges_numbers(name)
    if judges_numbers != (task is Task.REGRESSION):
        return (
            "it judges numbers, and this task predicts classes"
            if judges_numbers
            else "it judges classes or their probabilities, and this task predicts numbers"
        )
    if name.endswith("_samples"):
        return "it is for rows with several labels each"
    if name == "top_k_accuracy" and task is Task.BINARY:
        return "of two classes, the two likeliest are always right"
    two_classes_only = scorer._kwargs.get("average") == "binary" or "likelihood_ratio" in name or name == "roc_auc"
    return "it is for two classes only" if two_classes_only and task is Task.MULTICLASS else ""


def _judges_numbers(name: str) -> bool:
    from sklearn.metrics import get_scorer

    return bool(get_scorer(name)._score_func.__module__.endswith("._regression"))


def centred(prediction: np.ndarray, threshold: float) -> np.ndarray:
    """Return probabilities (n_rows, 2) whose odds are counted from a decision threshold.

    The class with the larger one is the second class exactly where its probability was above the threshold, so that
    a scorer of labels judges the decision; the order of the rows stays.
    """
    if threshold == 0.5:
        return prediction
    first, second = prediction[:, 0] * threshold, prediction[:, 1] * (1 - threshold)
    total = first + second
    return np.stack([first / total, second / total], axis=1)


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
