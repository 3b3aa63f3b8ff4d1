"""CatBoost: boosted symmetric trees with target statistics of categoricals, saved as cbm.

Prokhorenkova, Gusev, Vorobev, Dorogush and Gulin 2018.
"""

from __future__ import annotations

import ast
import json
import tempfile
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from factory.data.graph import CannotDraw, DrawnTable
from factory.data.preparation import Table
from factory.families._boosting import INPUT_SPACE, INPUTS, BoosterModel, BoostingFamily, Progress, link
from factory.families._drawing import SymmetricTrees
from factory.families._encoding import FEW_LEVELS, Inputs
from factory.families._head import Head
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE, WALK = "model.cbm", "walk.npz"
FEW_ROWS = 4
"""Rows up to which a walk through the trees is the shorter way."""
MOST_ONE_HOT = 300
"""Codes of levels that are looked for in a model: beyond 255 CatBoost makes no one-hot columns."""
LOSSES = {Task.BINARY: "Logloss", Task.MULTICLASS: "MultiClass", Task.REGRESSION: "RMSE"}

DEFAULTS: Parameters = {
    **INPUTS,
    "learning_rate": 0.08,
    "depth": 6,
    "l2_leaf_reg": 3.0,
    "rsm": 0.5,
    "subsample": 0.8,
    "border_count": 128,
    "random_strength": 1.0,
    "one_hot_max_size": 2,
    "max_ctr_complexity": 4,
}
"""What a portfolio entry leaves out: CatBoost's own values, but half the columns per split and half the borders, which
cost a third of the time and lost nothing on twelve tables (own portfolio study at 60 s)."""
ONE_HOT: Parameters = {**DEFAULTS, "one_hot_max_size": 64}
"""Levels as one-hot columns: on low cardinalities better than target statistics, at a fifth of their time."""
DEEP: Parameters = {**DEFAULTS, "depth": 8, "l2_leaf_reg": 5.0, "max_ctr_complexity": 2}
"""Deeper trees, with target statistics of at most two columns together."""
ENCODED: Parameters = {**ONE_HOT, "categoricals": "target"}
ALL_ROWS: Parameters = {**ONE_HOT, "subsample": 1.0}
"""For many rows of two classes, each tree sees them all (docs/decisions/portfolio.md)."""
MEASURED_EVERY = 0.2
"""Losses are measured after as many rounds as shrink what is left by a fifth, roughly: this over the learning rate."""
MOST_UNMEASURED = 25

_FEATURES: WeakKeyDictionary[Table, Any] = WeakKeyDictionary()
"""CatBoost's view of tables that are in use: the members of a blend all ask for that of the same rows."""


@dataclass(frozen=True)
class _Walk:
    """A model's trees for a few rows at a time: CatBoost's own way in takes ten times as long as the trees.

    Attributes:
        trees: All of them.
        scale: Of their sums.
        bias: Added to the scaled sums, float64 (n_outputs,).
    """

    trees: SymmetricTrees
    scale: float
    bias: np.ndarray

    @classmethod
    def of(cls, booster: Any) -> _Walk | None:
        """Take a model's trees; None where they ask for statistics of the target by level, or there are none."""
        document = _document(booster)
        try:
            trees = _symmetric(document, n_levels=MOST_ONE_HOT)
        except CannotDraw:
            return None
        scale, bias = document["scale_and_bias"]
        unknown = trees.equal & (trees.border < 0)
        return None if not len(trees.starts) or unknown.any() else cls(trees, float(scale), np.asarray(bias))

    @classmethod
    def load(cls, path: Path) -> _Walk:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        scale, bias = float(arrays.pop("scale")), arrays.pop("bias")
        return cls(SymmetricTrees(**arrays), scale, bias)

    def save(self, path: Path) -> None:
        """Write the arrays as npz."""
        arrays = {field.name: getattr(self.trees, field.name) for field in fields(self.trees)}
        np.savez(path, allow_pickle=False, scale=self.scale, bias=self.bias, **arrays)

    def margin(self, matrix: np.ndarray) -> np.ndarray:
        """Return what the booster answers to float32 rows (n_rows, n_columns), float64 (n_rows, n_outputs)."""
        return np.asarray(self.trees.sums(matrix) * self.scale + self.bias)


class CatBoostModel(BoosterModel):
    """A model shrunk to its best round; a few rows walk its trees here where that can be."""

    def __init__(self, booster: Any, head: Head, inputs: Inputs, *, walk: _Walk | None = None) -> None:
        super().__init__(booster, head, inputs)
        self._walk = walk

    def _answer(self, table: Table) -> np.ndarray:
        if self._walk is not None and len(table) <= FEW_ROWS:
            return link(self._walk.margin(table.matrix), self.head.task)
        margin = self.booster.predict(_features(table), prediction_type="RawFormulaVal", thread_count=1)
        return link(np.asarray(margin).reshape(len(table), -1), self.head.task)

    def _draw_margin(self, table: DrawnTable) -> str:
        document = _document(self.booster)
        trees = _symmetric(document, n_levels=max(table.levels, default=0))
        scale, bias = document["scale_and_bias"]
        total = table.graph.add("Mul", trees.draw(table.graph, table.matrix), np.array(float(scale)))
        return table.graph.add("Add", total, np.asarray(bias, dtype=np.float64))

    def _write(self, folder: Path) -> None:
        self.booster.save_model(str(folder / FILE), format="cbm")
        # Taken here (.04 s), so that nobody who predicts waits for it.
        if (walk := self._walk or _Walk.of(self.booster)) is not None:
            walk.save(folder / WALK)


class CatBoost(BoostingFamily):
    """Boosted symmetric trees; the strongest single family on tables with categoricals."""

    name: ClassVar[str] = "catboost"
    framework: ClassVar[str] = "catboost"
    modules: ClassVar[tuple[str, ...]] = ("catboost",)
    model: ClassVar[type[BoosterModel]] = CatBoostModel

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            **INPUT_SPACE,
            "learning_rate": FloatDimension(low=0.01, high=0.3, log=True),
            "depth": IntDimension(low=3, high=10),
            "l2_leaf_reg": FloatDimension(low=0.01, high=30.0, log=True),
            "rsm": FloatDimension(low=0.3, high=1.0),
            "subsample": FloatDimension(low=0.5, high=1.0),
            "border_count": ChoiceDimension(choices=(128, 64, 254)),
            "random_strength": FloatDimension(low=0.1, high=10.0, log=True),
            "one_hot_max_size": ChoiceDimension(choices=(2, 16, 64, 255)),
            "max_ctr_complexity": IntDimension(low=1, high=4),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        many_levels = shape.most_levels > FEW_LEVELS
        if task is Task.REGRESSION:
            # From 12,000 rows a round is too dear for the slower rate within a minute.
            rate = 0.1 if shape.n_rows < 12_000 else 0.14
            first, deep, encoded = ({**bet, "learning_rate": rate} for bet in (DEFAULTS, DEEP, ENCODED))
            return [Bet(first, 10), *([Bet(encoded, 95)] if many_levels else []), Bet(deep, 130)]
        if task is Task.MULTICLASS:
            return [Bet(DEFAULTS, 10), *([Bet(ONE_HOT, 98)] if shape.n_categorical else []), Bet(DEEP, 130)]
        if shape.n_rows <= 20_000:
            # Without categories the default is the same as one-hot.
            default = [Bet(DEFAULTS, 90)] if shape.n_categorical else []
            return [Bet(ONE_HOT, 10), *default, Bet(DEEP, 130)]
        return [Bet(ALL_ROWS, 10), *([Bet(ENCODED, 70)] if many_levels else []), Bet(DEEP, 140)]

    def load(self, folder: Path) -> Model:
        import catboost

        booster = catboost.CatBoost().load_model(str(folder / FILE), format="cbm")
        walk = _Walk.load(folder / WALK) if (folder / WALK).is_file() else None
        return CatBoostModel(booster, Head.load(folder), Inputs.load(folder), walk=walk)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = n_classes if n_classes > 2 else 1
        # The table as float32 and, for codes, as text objects; its bins; approximations over permutations; leaf sums.
        table = n_rows * n_columns * (4 + 8 + 2)
        rows = n_rows * outputs * 4 * 48
        leaves = 2 ** int(parameters.get("depth") or 6) * outputs * n_columns * 256 * 16
        return float((table + rows + leaves) / 1e6 + 120)

    def _boost(
        self,
        train: Sample,
        validation: Sample | None,
        *,
        parameters: Parameters,
        context: FitContext,
        progress: Progress,
        before: Any,
    ) -> Any:
        import catboost

        options: dict[str, Any] = {
            **parameters,
            "loss_function": LOSSES[context.task],
            "iterations": progress.limit,
            "bootstrap_type": "Bernoulli",
            "allow_const_label": True,
            "use_best_model": False,
            "random_seed": context.seed,
            "thread_count": context.threads,
            "allow_writing_files": False,
            "verbose": False,
            # CatBoost hands all losses so far to its callback after each round, so that their number squared is what
            # they cost: 54 s of 8,000 rounds on 400 rows, which take 3 s without them.
            "metric_period": max(1, min(round(MEASURED_EVERY / progress.learning_rate), MOST_UNMEASURED)),
        }
        if context.task is Task.MULTICLASS:
            options["classes_count"] = context.n_classes
        if context.task is Task.BINARY:
            options["class_names"] = [0, 1]

        def pool(rows: Sample) -> Any:
            features = _features(rows.table)
            earlier = None if before is None else before.predict(features, prediction_type="RawFormulaVal")
            return catboost.Pool(features, label=rows.y, weight=rows.weight, baseline=earlier)

        booster = catboost.CatBoost(options)
        booster.fit(
            pool(train),
            eval_set=pool(validation) if validation is not None else None,
            callbacks=[_Watch(progress, LOSSES[context.task], period=options["metric_period"])],
        )
        # CatBoost does not count the trees after the last split, and refuses to cut among them.
        countable = np.flatnonzero(booster.get_tree_leaf_counts() > 1).max(initial=-1) + 1
        if progress.best < progress.done and progress.best <= countable:
            try:
                booster.shrink(ntree_end=progress.best)
            except catboost.CatBoostError:
                # Of one column many trees have no split, and it may miscount them. The first trees are the same.
                booster = catboost.CatBoost({**options, "iterations": progress.best}).fit(pool(train))
        return booster if before is None else self._sum([before, booster], [1.0, 1.0])

    def _sum(self, boosters: list[Any], weights: list[float]) -> Any | None:
        import catboost

        try:
            return catboost.sum_models(boosters, weights=weights, ctr_merge_policy="FailIfCtrIntersects")
        except catboost.CatBoostError:
            # Each model has target statistics of its own, and CatBoost would mix them into wrong answers.
            return None

    def _resumable(self, booster: Any) -> bool:
        """Not so where it holds target statistics: those of the new rows could not stand beside them."""
        return self._sum([booster, booster], [0.5, 0.5]) is not None


class _Watch:
    """CatBoost's callback: passes each round's losses on and stops the training when told so."""

    def __init__(self, progress: Progress, loss: str, *, period: int) -> None:
        self._progress = progress
        self._loss = loss
        self._period = period

    def after_iteration(self, info: Any) -> bool:
        """Return whether to go on after one round."""
        held_out = info.metrics.get("validation")
        last = info.iteration == self._progress.limit
        return self._progress.record(
            train=info.metrics["learn"][self._loss][-1],
            validation=held_out[self._loss][-1] if held_out else None,
            measured=last or (info.iteration - 1) % self._period == 0,
        )


def _document(booster: Any) -> Any:
    """Return a model as CatBoost's JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        booster.save_model(str(path), format="json")
        return json.loads(path.read_text(encoding="utf-8"))


def _symmetric(document: Any, *, n_levels: int) -> SymmetricTrees:
    """Read the trees of CatBoost's JSON, whose columns are the numeric ones, then the codes.

    Raises:
        CannotDraw: it holds statistics of the target by level.
    """
    trees = document["oblivious_trees"]
    about = document["features_info"].get("float_features", ())
    n_numeric = len(about)
    yes_if_missing = {one["feature_index"] for one in about if one.get("nan_value_treatment") == "AsTrue"}
    splits = [split for tree in trees for split in tree["splits"] or ()]
    if any(split["split_type"] == "OnlineCtr" for split in splits):
        raise CannotDraw("a CatBoost model with target statistics of categories")
    known = _hashes(n_levels) if any(split["split_type"] == "OneHotFeature" for split in splits) else {}
    shape = (len(trees), max([len(tree["splits"] or ()) for tree in trees], default=0) or 1)
    feature, border = np.zeros(shape, dtype=np.int64), np.full(shape, np.inf)
    equal, missing = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for i, tree in enumerate(trees):
        for j, split in enumerate(tree["splits"] or ()):
            if split["split_type"] == "OneHotFeature":
                feature[i, j], equal[i, j] = n_numeric + split["cat_feature_index"], True
                # A level that no table has is never equal.
                border[i, j] = known.get(split["value"], -1)
            else:
                feature[i, j], border[i, j] = split["float_feature_index"], split["border"]
                missing[i, j] = split["float_feature_index"] in yes_if_missing
    sizes = np.array([1 << len(tree["splits"] or ()) for tree in trees])
    values = [
        np.asarray(tree["leaf_values"], dtype=np.float64).reshape(size, -1)
        for tree, size in zip(trees, sizes, strict=True)
    ]
    return SymmetricTrees(feature, border, equal, missing, np.concatenate(values), np.cumsum(sizes) - sizes)


@cache
def _hashes(n_levels: int) -> dict[int, int]:
    """Return the code of each of CatBoost's hashes of the codes' texts.

    It tells them in one place only: the Python source that it writes of a model.
    """
    import catboost

    texts = _texts(n_levels)[:, np.newaxis]
    pool = catboost.Pool(catboost.FeaturesData(cat_feature_data=texts), label=np.arange(n_levels) % 2)
    options = {"iterations": 1, "depth": 1, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    booster = catboost.CatBoost(options).fit(pool)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.py"
        booster.save_model(str(path), format="python", pool=pool)
        source = path.read_text(encoding="utf-8")
    _, _, told = source.partition("cat_features_hashes = ")
    found: dict[str, int] = ast.literal_eval(told[: told.index("}") + 1])
    return {hash_: int(text) for text, hash_ in found.items()}


def _features(table: Table) -> Any:
    """Return a table as CatBoost's own columnar input, which takes categoricals as text only; kept with the table."""
    kept = _FEATURES.get(table)
    if kept is None:
        kept = _FEATURES[table] = _columnar(table)
    return kept


def _columnar(table: Table) -> Any:
    import catboost

    if not table.categorical_names:
        return catboost.FeaturesData(num_feature_data=np.ascontiguousarray(table.numeric))
    return catboost.FeaturesData(
        num_feature_data=np.ascontiguousarray(table.numeric) if table.numeric_names else None,
        cat_feature_data=_texts(max(table.levels))[table.codes],
    )


@cache
def _texts(n_levels: int) -> np.ndarray:
    """Return the codes below ``n_levels`` as byte strings; cached, since a single row needs them too."""
    return np.array([b"%d" % code for code in range(n_levels)], dtype=object)


PLUGIN = CatBoost()
