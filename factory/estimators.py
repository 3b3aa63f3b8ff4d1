"""The search as scikit-learn estimators: :class:`FactoryClassifier` and :class:`FactoryRegressor`.

They follow scikit-learn's conventions, so that ``cross_val_score``,
``GridSearchCV`` and ``Pipeline`` take them, and keep no state outside of
themselves: no ledger, no MLflow, no gate, no screening of the columns, and no
ceilings: what a recipe says of latency and size does not bound them.
``factory.fit`` is the way to a registered variant.

An estimator may be pickled.  What the pickle holds of its models is the bytes
of the variant's own safe format, which :meth:`Bundle.load` reads again.
"""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_non_negative, check_X_y, validate_data

from factory.data.dataset import from_frame
from factory.errors import UserFault
from factory.families.base import Deadline
from factory.search.cluster import RaySession
from factory.search.engine import search
from factory.search.jobs import TrialData
from factory.search.near import NearWorkers
from factory.search.plan import check_request, make_plan
from factory.search.splits import folds, grouping, independent
from factory.settings import Settings, load_settings
from factory.spec import FileDataset, Task
from factory.variants.assembly import assemble, learned_calibration
from factory.variants.background import Background
from factory.variants.bundle import Bundle
from factory.variants.report import leaderboard

LEAST_ROWS = 4
"""Fewer rows cannot be split; ``factory.fit`` wants more, since a gate has to judge by some of them."""
FINISH_SHARE, FINISH_MOST_S = 0.05, 5.0
"""Part of the time that is kept for reading the members of the blend."""
_TARGET, _WEIGHTS = "target of the estimator", "weights of the estimator"


@dataclass(frozen=True)
class _Checked:
    """Rows to learn from: features, targets or labels (n_rows,), and weights (n_rows,) where there are some."""

    frame: pd.DataFrame
    y: np.ndarray
    weights: np.ndarray | None


class _FactoryEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: parameters, the search, the bundle, pickling."""

    def __init__(
        self,
        *,
        budget_s: float = 60.0,
        trials: int | None = None,
        metric: str | None = None,
        recipe: str = "tabular-auto",
        families: tuple[str, ...] | None = None,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.budget_s = budget_s
        self.trials = trials
        self.metric = metric
        self.recipe = recipe
        self.families = families
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "bundle_" in state:
            state["bundle_"] = _packed(state["bundle_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "bundle_" in state:
            state = {**state, "bundle_": _unpacked(state["bundle_"])}
        super().__setstate__(state)

    def _checked(self, X: Any, y: Any, sample_weight: Any, *, y_numeric: bool) -> _Checked:
        """Return features under the names that the bundle knows, target and weights, all as scikit-learn checks them.

        Rows of weight 0 are left out.
        """
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, skip_check_array=True)
            _, y = check_X_y(np.zeros((len(X), 1)), y, y_numeric=y_numeric, ensure_min_samples=LEAST_ROWS)
            frame = X.set_axis([str(c) for c in X.columns], axis=1)
        else:
            X, y = validate_data(
                self, X, y, y_numeric=y_numeric, ensure_all_finite="allow-nan", ensure_min_samples=LEAST_ROWS
            )
            frame = pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])])
        self._columns = tuple(frame.columns)
        if sample_weight is None:
            return _Checked(frame, y, None)
        weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weights.shape != (len(y),):
            raise ValueError(f"sample_weight has the shape {weights.shape}; expected ({len(y)},), one for each row.")
        check_non_negative(weights, "sample_weight")
        counts = weights > 0
        return _Checked(frame[counts], y[counts], weights[counts])

    def _search(self, rows: _Checked, y: np.ndarray, task: Task) -> None:
        """Search for the best blend within the budget; the clock starts here."""
        started = time.time()
        settings = load_settings()
        frame, reference = rows.frame.assign(**{_TARGET: y}), FileDataset(path="memory", target=_TARGET, task=task)
        if rows.weights is not None:
            frame = frame.assign(**{_WEIGHTS: rows.weights})
            reference = reference.model_copy(update={"weights": _WEIGHTS})
        budget = {"time_s": self.budget_s, **({} if self.trials is None else {"trials": self.trials})}
        document = {
            "team": "local",
            "name": "estimator",
            "recipe": self.recipe,
            "dataset": reference,
            "budget": budget,
            "seed": _seed(self.random_state),
            **({} if self.metric is None else {"metric": self.metric}),
            **({} if self.families is None else {"families": list(self.families)}),
        }
        request, recipe = check_request(document, settings=settings)
        plan = make_plan(request, recipe, task)
        dataset = from_frame(frame, reference, least_rows=LEAST_ROWS)
        metric = plan.metric.on(dataset.y, seen=np.arange(len(dataset)), target="y")
        until = started + self.budget_s - min(FINISH_SHARE * self.budget_s, FINISH_MOST_S)
        parallel = self.n_jobs not in (None, 1)
        if parallel and self.n_jobs is not None and self.n_jobs > 0:
            settings = settings.model_copy(update={"cpus": self.n_jobs})
        with (
            tempfile.TemporaryDirectory(prefix="factory-") as folder,
            _session(settings, parallel) as ray,
            NearWorkers() as near,
        ):
            data = TrialData(
                dataset=dataset,
                splits=folds(dataset, plan.validation, seed=request.seed, metric=metric),
                metric=metric,
                workspace=Path(folder),
                seed=request.seed,
                independent=independent(plan.validation),
                group=grouping(plan.validation),
            )
            result = search(
                plan,
                data,
                ray=ray,
                settings=settings,
                history=(),
                deadline=Deadline(until),
                record=lambda _: None,
                near=near,
            )
            weights = result.blend.weights
            learned = learned_calibration(weights, result.parts, result.candidates)
            bundle = assemble(weights, result.parts, data=data, calibration=learned)
        self.bundle_ = replace(bundle, background=Background.of(dataset.frame, bundle.columns, seed=request.seed))
        ranked = leaderboard(result.trials, weights=result.blend.weights)
        self.leaderboard_ = pd.DataFrame([row.model_dump(mode="json") for row in ranked])

    def _answer(self, X: Any) -> np.ndarray:
        """Return the blend's answer to rows that scikit-learn has checked."""
        check_is_fitted(self)
        columns: pd.DataFrame | Mapping[str, np.ndarray]
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=False, skip_check_array=True)
            columns = X.set_axis(self._columns, axis=1)
        else:
            X = validate_data(self, X, reset=False, ensure_all_finite="allow-nan")
            columns = dict(zip(self._columns, X.T, strict=True))
        with _as_value_error():
            return self.bundle_.predict_raw(columns)


class FactoryClassifier(ClassifierMixin, _FactoryEstimator):  # type: ignore[misc]
    """A blend of the best models of a search, for two classes or more.

    Args:
        budget_s: Wall seconds of a fit.
        trials: Trials at most; with it the same ``random_state`` gives the same model.
        metric: Name of a scikit-learn scorer to search by; the recipe's where not given.
        recipe: Which families there are, and their spaces; ``factory recipes list``.
        families: Some of the recipe's families.
        n_jobs: Trials at a time. None or 1 fits in this process; more, or -1 for all CPUs, fork workers for budgets of
            about 20 to 120 s, and start a Ray on this machine for longer ones or where networks are among the families.
        random_state: The only source of randomness.

    Attributes:
        classes_: Labels, (n_classes,).
        bundle_: The models, with their preparation.
        leaderboard_: The trials, the best first.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, where ``X`` was a data frame.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Search on rows and their labels.

        Args:
            X: Numbers, (n_rows, n_columns), NaN where missing; or a data frame, whose columns may hold text, dates,
                categories and numbers.
            y: Labels, (n_rows,).
            sample_weight: How much each row counts in training and in the scores, from 0 up, (n_rows,).

        Raises:
            ValueError: the data or a parameter cannot be used.
            TrainingFault: no trial succeeded.
        """
        rows = self._checked(X, y, sample_weight, y_numeric=False)
        check_classification_targets(rows.y)
        self.classes_, codes = np.unique(rows.y, return_inverse=True)
        if len(self.classes_) == 1:
            raise ValueError(f"y has one class only, {self.classes_[0]!r}; a classifier needs two at least.")
        with _as_value_error():
            self._search(rows, codes, Task.BINARY if len(self.classes_) == 2 else Task.MULTICLASS)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, float64 (n_rows, n_classes), in the order of ``classes_``."""
        return self._answer(X)

    def predict(self, X: Any) -> np.ndarray:
        """Return a label for each row, (n_rows,): the most probable one, unless another threshold serves the metric."""
        probabilities = self._answer(X)
        return np.asarray(self.classes_[self.bundle_.labels(probabilities)])


class FactoryRegressor(RegressorMixin, _FactoryEstimator):  # type: ignore[misc]
    """A blend of the best models of a search, for a number.

    Args:
        budget_s: Wall seconds of a fit.
        trials: Trials at most; with it the same ``random_state`` gives the same model.
        metric: Name of a scikit-learn scorer to search by; the recipe's where not given.
        recipe: Which families there are, and their spaces; ``factory recipes list``.
        families: Some of the recipe's families.
        n_jobs: Trials at a time. None or 1 fits in this process; more, or -1 for all CPUs, fork workers for budgets of
            about 20 to 120 s, and start a Ray on this machine for longer ones or where networks are among the families.
        random_state: The only source of randomness.

    Attributes:
        bundle_: The models, with their preparation.
        leaderboard_: The trials, the best first.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, where ``X`` was a data frame.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Search on rows and their targets.

        Args:
            X: Numbers, (n_rows, n_columns), NaN where missing; or a data frame, whose columns may hold text, dates,
                categories and numbers.
            y: Targets, (n_rows,).
            sample_weight: How much each row counts in training and in the scores, from 0 up, (n_rows,).

        Raises:
            ValueError: the data or a parameter cannot be used.
            TrainingFault: no trial succeeded.
        """
        rows = self._checked(X, y, sample_weight, y_numeric=True)
        with _as_value_error():
            self._search(rows, np.asarray(rows.y, dtype=np.float64), Task.REGRESSION)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions, float64 (n_rows,)."""
        return self._answer(X)


def _session(settings: Settings, parallel: bool) -> AbstractContextManager[RaySession | None]:
    return RaySession(settings) if parallel else nullcontext()


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Raise what the caller can mend as scikit-learn's users expect it."""
    try:
        yield
    except UserFault as error:
        raise ValueError(f"{error.message} {error.hint}".strip()) from error


def _packed(bundle: Bundle) -> tuple[str, bytes]:
    """Return a bundle's digest and its folder as the bytes of a ZIP archive."""
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="factory-") as name, zipfile.ZipFile(archive, "w") as packed:
        folder = Path(name)
        digest = bundle.save(folder)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            packed.write(path, path.relative_to(folder).as_posix())
    return digest, archive.getvalue()


def _unpacked(stored: tuple[str, bytes]) -> Bundle:
    digest, archive = stored
    with tempfile.TemporaryDirectory(prefix="factory-") as folder, zipfile.ZipFile(io.BytesIO(archive)) as packed:
        # extractall leaves out "..", drives and absolute paths; the bundle refuses what is no plain file.
        packed.extractall(folder)
        return Bundle.load(Path(folder), digest=digest)
