"""The conformance suite of model families: every rule of ``factory/families/base.py`` as a test.

A family inherits all of it by supplying one fixture::

    class TestMyFamily(FamilyConformance):
        @pytest.fixture
        def family(self) -> Family:
            return plugins.load("families", "my_family")

The data are small (240 rows), of both kinds of columns, with missing values,
and read-only, as they are when Ray hands them over.
"""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from factory.data.columns import FEW
from factory.data.preparation import Table
from factory.families.base import Deadline, Family, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, Dimension, Parameters, Value
from factory.spec import NAME, Task
from factory.testing.rows import N_CLASSES, ROWS, constant_loss, frozen, half, loss, moved, sample

HEAVY = (
    "catboost",
    "keras",
    "lightgbm",
    "mlflow",
    "onnx",
    "onnxruntime",
    "ray",
    "sklearn",
    "tensorflow",
    "torch",
    "xgboost",
)
"""Packages that naming a family must not import."""
BASELINE = "constant"
"""The one family that need not learn."""
LATE_S = 3.0
"""How much later than its deadline a fit may end here: one round, and what the framework does at the end."""


class FamilyConformance:
    """What holds for every family; a subclass supplies the fixture ``family``."""

    @pytest.fixture
    def family(self) -> Family:
        """Return the family to test."""
        raise NotImplementedError("A subclass supplies the family.")

    @pytest.fixture(params=list(Task), ids=str)
    def task(self, request: pytest.FixtureRequest, family: Family) -> Task:
        """Each task that the family knows."""
        task: Task = request.param
        if task not in family.tasks:
            pytest.skip(f"{family.name} does not do {task}.")
        return task

    @pytest.fixture
    def no_pickle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever is unpickled is an error."""

        def refuse(*_args: object, **_options: object) -> None:
            raise AssertionError("Something was unpickled.")

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, refuse)

    # --- what it says of itself ---

    def test_names_itself(self, family: Family) -> None:
        assert re.match(NAME, family.name)
        assert family.framework
        assert family.pool in ("trees", "torch", "tensorflow")

    def test_portfolio_lies_within_the_space(self, family: Family, task: Task) -> None:
        space = family.space(task)
        shapes = [Shape(n_rows, 8, k, 40 * k, N_CLASSES[task]) for n_rows in (20, 5_000, 50_000) for k in (0, 2)]
        for shape in (Shape(20), Shape(5_000_000), *shapes):
            bets = family.portfolio(task, shape=shape)
            assert bets
            assert [bet.rank for bet in bets] == sorted(bet.rank for bet in bets)
            entries = [bet.parameters for bet in bets]
            assert len({tuple(sorted(entry.items(), key=str)) for entry in entries}) == len(entries)
            for entry in entries:
                assert entry.keys() == space.keys()
                assert [name for name, value in entry.items() if not _inside(space[name], value)] == []

    def test_memory_estimate_grows_with_the_rows(self, family: Family, task: Task) -> None:
        first = family.portfolio(task, shape=Shape(1_000))[0].parameters

        def estimate(n_rows: int) -> float:
            return family.memory_mb(n_rows=n_rows, n_columns=20, n_classes=N_CLASSES[task], parameters=first)

        assert 0 < estimate(1_000) <= estimate(1_000_000) < 100_000

    def test_its_module_imports_no_framework(self, family: Family) -> None:
        source = inspect.getfile(type(family))
        script = (
            "import importlib.util, sys\n"
            f"sys.path[:] = {sys.path!r}\n"
            f"spec = importlib.util.spec_from_file_location('family_under_test', {source!r})\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "sys.modules['family_under_test'] = module\n"
            "spec.loader.exec_module(module)\n"
            f"print(*[name for name in {HEAVY!r} if name in sys.modules])\n"
        )
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip() == ""

    # --- fit and predict ---

    def test_learns(self, family: Family, task: Task) -> None:
        fresh = sample(task, seed=2)
        reference = constant_loss(task, fresh)
        reached = loss(task, fresh.y, _fitted(family, task).predict(fresh.table))
        assert reached < (reference * 1.1 if family.name == BASELINE else reference * 0.9)

    def test_predictions_are_well_formed(self, family: Family, task: Task) -> None:
        fresh = sample(task, n_rows=50, seed=2)
        prediction = _fitted(family, task).predict(fresh.table)
        assert prediction.dtype == np.float64
        assert np.isfinite(prediction).all()
        if task is Task.REGRESSION:
            assert prediction.shape == (50,)
        else:
            assert prediction.shape == (50, N_CLASSES[task])
            assert (prediction >= 0).all()
            np.testing.assert_allclose(prediction.sum(axis=1), 1, atol=1e-6)

    def test_one_row_is_predicted_as_among_many(self, family: Family, task: Task) -> None:
        n_rows, atol = (FEW, 0.0) if family.rowwise else (5, 1e-5)
        model, rows = _fitted(family, task), sample(task, n_rows=n_rows, seed=2).table
        singly = np.array([model.predict(rows.rows(np.array([i])))[0] for i in range(n_rows)])
        for n in (2, n_rows):
            np.testing.assert_allclose(model.predict(rows.rows(np.arange(n))), singly[:n], rtol=atol / 100, atol=atol)

    def test_missing_and_unseen_values_are_predicted(self, family: Family, task: Task) -> None:
        rows = sample(task, n_rows=3, seed=2).table
        blank = Table(
            np.full_like(rows.numeric, np.nan),
            np.zeros_like(rows.codes),
            rows.levels,
            rows.numeric_names,
            rows.categorical_names,
        )
        assert np.isfinite(_fitted(family, task).predict(blank)).all()

    def test_same_seed_same_predictions(self, family: Family, task: Task) -> None:
        rows = sample(task, seed=2).table
        np.random.seed(12345)  # a family that draws from the global stream has to be caught
        again = _fit(family, task)
        np.testing.assert_allclose(again.predict(rows), _fitted(family, task).predict(rows), atol=1e-6)

    @pytest.mark.usefixtures("no_pickle")
    def test_saved_model_predicts_the_same_without_pickle(self, family: Family, task: Task, tmp_path: Path) -> None:
        model, rows = _fitted(family, task), sample(task, seed=2).table
        for name in ("first", "second"):  # a loaded model can be saved as well
            folder = tmp_path / name
            folder.mkdir()
            model.save(folder)
            assert [f.name for f in folder.rglob("*") if f.is_file()]
            assert [f.name for f in folder.rglob("*") if _is_pickle(f)] == []
            model = family.load(folder)
            np.testing.assert_allclose(model.predict(rows), _fitted(family, task).predict(rows), rtol=1e-6, atol=1e-6)
        assert model.rounds == _fitted(family, task).rounds

    def test_class_absent_in_training_keeps_its_column(self, family: Family, task: Task) -> None:
        if task is Task.REGRESSION:
            pytest.skip("Numbers have no classes.")
        whole = sample(task)
        held_out = sample(task, seed=1)
        rest = np.flatnonzero(whole.y != 1)
        train = frozen(Sample(whole.table.rows(rest), whole.y[rest]))
        prediction = _fit(family, task, train=train, validation=held_out).predict(held_out.table)
        assert prediction.shape == (ROWS, N_CLASSES[task])
        assert np.isfinite(prediction).all()
        # Below chance at most: where the validation rows have the class, they may stop the training at once.
        assert prediction[:, 1].mean() < 0.5

    @pytest.mark.parametrize("kind", ["numeric", "categorical"])
    def test_one_kind_of_columns_is_enough(self, family: Family, task: Task, kind: str) -> None:
        whole = sample(task)
        full = whole.table
        none_numeric, none_codes = np.empty((ROWS, 0), np.float32), np.empty((ROWS, 0), np.int32)
        table = (
            Table(full.numeric, none_codes, (), full.numeric_names, ())
            if kind == "numeric"
            else Table(none_numeric, full.codes, full.levels, (), full.categorical_names)
        )
        model = _fit(family, task, train=Sample(table, whole.y), rounds=3)
        assert np.isfinite(model.predict(table)).all()

    def test_twenty_rows_are_enough(self, family: Family, task: Task) -> None:
        few = sample(task, n_rows=20)
        assert np.isfinite(_fit(family, task, train=few).predict(few.table)).all()

    def test_targets_far_from_one_are_learned(self, family: Family) -> None:
        task = Task.REGRESSION
        if task not in family.tasks or family.name == BASELINE:
            pytest.skip(f"{family.name} does not learn numbers.")
        train, held_out, fresh = (moved(sample(task, seed=seed)) for seed in (0, 1, 2))
        prediction = _fit(family, task, train=train, validation=held_out).predict(fresh.table)
        assert loss(task, fresh.y, prediction) < 0.9 * constant_loss(task, fresh)

    def test_weights_say_how_much_a_row_counts(self, family: Family, task: Task) -> None:
        if not family.weighted:
            pytest.skip(f"{family.name} takes all rows as equal.")
        said, denied = sample(task), sample(task)
        top = max(N_CLASSES[task] - 1, 0)
        against = -denied.y if task is Task.REGRESSION else top - denied.y
        both = np.repeat(np.arange(ROWS), 2)
        y = np.stack([said.y, against], axis=1).ravel()
        train = Sample(said.table.rows(both), y, np.tile([1.9, 0.1], ROWS))
        fresh = sample(task, seed=2)
        weighted, equal = (
            loss(task, fresh.y, _fit(family, task, train=rows, rounds=40).predict(fresh.table))
            for rows in (train, Sample(train.table, train.y))
        )
        assert weighted != equal if family.name == BASELINE else weighted < 0.9 * equal

    # --- what answers are made of ---

    def test_answers_are_the_link_of_the_terms(self, family: Family, task: Task, tmp_path: Path) -> None:
        """Missing and unseen values included; so that explanations by the terms are those of the model."""
        model, known = _fitted(family, task), sample(task, seed=2).table
        numeric, codes = known.numeric.copy(), known.codes.copy()
        numeric[::3], codes[::4] = np.nan, 0
        rows = replace(known, numeric=numeric, codes=codes)
        model.save(tmp_path)
        loaded = family.load(tmp_path)
        assert loaded.link == model.link
        for each in (model, loaded):
            terms = each.terms()
            if terms is None:
                continue
            assert terms.link == each.link, "who tells terms tells their link without reading them"
            told = each.predict(rows)
            found = terms.answers(terms.margins(rows)).reshape(told.shape)
            np.testing.assert_allclose(found, told, rtol=1e-5, atol=1e-5)

    # --- several models, and more rounds ---

    def test_merged_model_answers_as_the_mean(self, family: Family, task: Task, tmp_path: Path) -> None:
        models = [_fit(family, task, train=half(task, k), rounds=5 + k) for k in range(3)]
        merged = family.merge(models)
        if merged is None:
            pytest.skip(f"{family.name} does not merge such models.")
        rows = sample(task, seed=2).table
        merged.save(tmp_path)
        each = [model.predict(rows) for model in models]
        likely = np.stack([np.log(np.maximum(p, 1e-12)) if task is not Task.REGRESSION else p for p in each])
        for model in (merged, family.load(tmp_path)):
            answer = model.predict(rows)
            if task is Task.REGRESSION or np.allclose(answer, np.mean(each, axis=0), atol=1e-5):
                np.testing.assert_allclose(answer, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
                continue
            odds = np.exp(likely.mean(axis=0))
            np.testing.assert_allclose(answer, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)

    def test_models_of_another_family_are_not_merged(self, family: Family, task: Task) -> None:
        class Foreign(Model):
            def predict(self, table: Table) -> np.ndarray:
                return np.zeros(len(table))

            def save(self, folder: Path) -> None:
                (folder / "foreign").touch()

        assert family.merge([_fitted(family, task), Foreign()]) is None

    def test_resumed_model_goes_on(self, family: Family, task: Task, tmp_path: Path) -> None:
        before = _fit(family, task, rounds=5)
        parameters = family.portfolio(task, shape=Shape(ROWS))[0].parameters
        context = FitContext(task=task, n_classes=N_CLASSES[task], seed=7, rounds=40)
        more = sample(task, n_rows=2 * ROWS, seed=3)
        after = family.resume(before, more, validation=None, parameters=parameters, context=context)
        if after is None:
            pytest.skip(f"{family.name} does not go on from such a model.")
        assert after.rounds == before.rounds + 40
        fresh = sample(task, seed=2)
        reached = loss(task, fresh.y, after.predict(fresh.table))
        assert reached < loss(task, fresh.y, before.predict(fresh.table))
        after.save(tmp_path)
        np.testing.assert_allclose(
            family.load(tmp_path).predict(fresh.table), after.predict(fresh.table), rtol=1e-5, atol=1e-5
        )

    # --- limits ---

    def test_deadline_is_kept(self, family: Family, task: Task) -> None:
        _fitted(family, task)  # imports and compilation are not part of a fit's time
        train, began = sample(task, n_rows=4_000), time.perf_counter()
        rounds = 100_000 if family.iterative else None
        model = _fit(family, task, train=train, rounds=rounds, deadline=Deadline.after(1.5))
        assert time.perf_counter() - began < 1.5 + LATE_S
        assert np.isfinite(model.predict(train.table)).all()

    def test_past_deadline_still_gives_a_model(self, family: Family, task: Task) -> None:
        model = _fit(family, task, validation=sample(task, seed=1), deadline=Deadline.after(-1))
        assert np.isfinite(model.predict(sample(task).table)).all()
        assert model.rounds <= 2

    def test_stops_when_told_to(self, family: Family, task: Task) -> None:
        asked = []

        def keep_going() -> bool:
            asked.append(True)
            return len(asked) < 3

        model = _fit(family, task, rounds=100_000 if family.iterative else None, keep_going=keep_going)
        assert np.isfinite(model.predict(sample(task).table)).all()
        if family.iterative:
            assert 3 <= len(asked) <= 10
            assert model.rounds <= 10

    def test_fixed_rounds_are_honoured(self, family: Family, task: Task) -> None:
        if not family.iterative:
            pytest.skip(f"{family.name} has no rounds.")
        assert _fit(family, task, rounds=3).rounds == 3
        assert _fit(family, task, rounds=3, validation=sample(task, seed=1)).rounds == 3

    def test_learning_curve_shows_both_losses(self, family: Family, task: Task) -> None:
        model = _fitted(family, task)
        if not family.iterative:
            assert model.curve == ()
            assert model.rounds == 0
            return
        steps = [point.step for point in model.curve]
        assert 1 <= len(steps) <= 200
        assert steps == sorted(set(steps))
        assert model.rounds >= 1
        assert all(point.validation is not None for point in model.curve)
        assert any(point.train is not None for point in model.curve)

    def test_keeps_to_one_thread(self, family: Family, task: Task) -> None:
        _fitted(family, task)
        train = sample(task, n_rows=4_000)
        wall, used = time.perf_counter(), time.process_time()
        _fit(family, task, train=train, rounds=20, deadline=Deadline.after(2)).predict(train.table)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        assert used < 1.3 * wall + 0.2


# --- the pieces ----------------------------------------------------------------------


def _fit(
    family: Family,
    task: Task,
    *,
    train: Sample | None = None,
    validation: Sample | None = None,
    rounds: int | None = None,
    deadline: Deadline | None = None,
    keep_going: Callable[[], bool] = lambda: True,
) -> Model:
    """Fit the first portfolio entry; on the usual rows with validation where nothing else is said."""
    if train is None and validation is None and rounds is None:
        validation = sample(task, seed=1)
    train = train or sample(task)
    parameters: Parameters = family.portfolio(task, shape=Shape(len(train)))[0].parameters
    context = FitContext(
        task=task,
        n_classes=N_CLASSES[task],
        seed=7,
        deadline=deadline or Deadline(),
        rounds=rounds,
        keep_going=keep_going,
    )
    return family.fit(train, validation=validation, parameters=parameters, context=context)


@cache
def _fitted(family: Family, task: Task) -> Model:
    """Return a model that several tests look at."""
    return _fit(family, task)


def _inside(dimension: Dimension, value: Value) -> bool:
    if isinstance(dimension, ChoiceDimension):
        return any(value == choice and type(value) is type(choice) for choice in dimension.choices)
    number = type(value) in ((int,) if dimension.kind == "int" else (int, float))
    return number and isinstance(value, int | float) and dimension.low <= value <= dimension.high


def _is_pickle(file: Path) -> bool:
    """Whether a file is a pickle (protocol 2 or later) or a zip archive that holds one, as torch.save writes."""
    head = file.read_bytes()
    return (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or b".pkl" in head
