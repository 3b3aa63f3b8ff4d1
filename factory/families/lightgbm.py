"""LightGBM: gradient-boosted trees grown leaf by leaf (Ke et al. 2017), saved as LightGBM's own text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import add, mul
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.graph import CannotDraw, DrawnTable
from factory.data.preparation import Table
from factory.data.target import weighted_median
from factory.families._boosting import INPUT_SPACE, INPUTS, BoosterModel, BoostingFamily, Progress
from factory.families._drawing import AT_MOST, MEMBER, GrownTrees
from factory.families._encoding import FEW_LEVELS, Inputs
from factory.families._head import Head
from factory.families._leaves import LeafTerms
from factory.families._lightgbm_row import SingleRow
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import ChoiceDimension, FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE = "model.txt"
OBJECTIVES = {
    Task.BINARY: ("binary", "binary_logloss"),
    Task.MULTICLASS: ("multiclass", "multi_logloss"),
    Task.REGRESSION: ("regression", "l2"),
}
ABSOLUTE = ("regression_l1", "l1")

_ARRAYS = ("left_child", "right_child", "feature", "threshold", "kind", "missing_true", "value")
_NO_MISSING, _ZERO = 0, 1
"""How LightGBM takes missing values at a split: as zero since training had none, zeros as missing; 2 is NaN."""

DEFAULTS: Parameters = {
    **INPUTS,
    "learning_rate": 0.04,
    "num_leaves": 64,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.5,
    "bagging_fraction": 1.0,
    "lambda_l1": 0.0,
    "lambda_l2": 0.0,
    "cat_smooth": 10.0,
    "extra_trees": False,
}
"""What a portfolio entry leaves out; LightGBM's own values but for learning_rate, num_leaves and feature_fraction."""

# The entries won in our own portfolio study over twelve tables (60 s, two cores), but for PYTABKIT and AUTOGLUON.
LEAVES_64: Parameters = {**DEFAULTS, "min_data_in_leaf": 5, "bagging_fraction": 0.9}
PLAIN_64: Parameters = {**LEAVES_64, "crosses": False}
LEAVES_128: Parameters = {**DEFAULTS, "learning_rate": 0.03, "num_leaves": 128}
LEAVES_31: Parameters = {**DEFAULTS, "learning_rate": 0.05, "num_leaves": 31, "lambda_l2": 5.0}
"""All rows for each tree: with 80 % of them the loss was 1.4 % greater on adult (docs/decisions/portfolio.md)."""
LEAVES_15: Parameters = {**LEAVES_31, "learning_rate": 0.06, "num_leaves": 15, "feature_fraction": 0.7}
ENCODED_31: Parameters = {**LEAVES_31, "categoricals": "target"}
ENCODED_50: Parameters = {**DEFAULTS, "learning_rate": 0.03, "num_leaves": 50, "categoricals": "target"}
LEAVES_8: Parameters = {**DEFAULTS, "learning_rate": 0.06, "num_leaves": 8, "lambda_l2": 3.0}
PYTABKIT: Parameters = {
    **DEFAULTS, "num_leaves": 50, "bagging_fraction": 0.75, "min_data_in_leaf": 40, "feature_fraction": 1.0
}  # fmt: skip
"""Tuned defaults for classification (Holzmüller et al. 2024, pytabkit)."""
AUTOGLUON: Parameters = {
    **DEFAULTS, "extra_trees": True, "learning_rate": 0.1, "min_data_in_leaf": 28, "feature_fraction": 0.553,
    "lambda_l1": 0.914, "lambda_l2": 1.904,
}  # fmt: skip
"""Second entry of AutoGluon 1.6's CPU portfolio (Erickson et al. 2025), with a rate that suits short budgets."""
RANDOM_64: Parameters = {
    **DEFAULTS, "extra_trees": True, "learning_rate": 0.06, "min_data_in_leaf": 5, "feature_fraction": 1.0
}  # fmt: skip
"""Thresholds at random: errs elsewhere than the others do (docs/decisions/portfolio.md)."""
RANDOM_31: Parameters = {**DEFAULTS, "extra_trees": True, "learning_rate": 0.05, "num_leaves": 31}


class LightGBMModel(BoosterModel):
    """A booster cut at its best round."""

    _row: SingleRow | None = None
    """Made at the first single row."""
    _unshared: ClassVar[tuple[str, ...]] = (*BoosterModel._unshared, "_row")

    def gains(self) -> np.ndarray | None:
        if not self.inputs.unchanged:
            return None
        return np.asarray(self.booster.feature_importance("gain"), dtype=np.float64)

    @property
    def _n_outputs(self) -> int:
        return max(self.head.n_classes, 1) if self.head.task is Task.MULTICLASS else 1

    def _answer(self, table: Table) -> np.ndarray:
        matrix = table.matrix
        if len(matrix) != 1:
            return np.asarray(self.booster.predict(matrix, num_threads=1))
        if self._row is None:
            self._row = SingleRow(self.booster, n_columns=matrix.shape[1], n_outputs=self._n_outputs)
        return self._row.answer(matrix)

    def _draw_margin(self, table: DrawnTable) -> str:
        n_outputs = self._n_outputs
        return _grown(self.booster.model_to_string(), n_outputs).draw(table.graph, table.matrix, n_targets=n_outputs)

    def _leaves(self) -> LeafTerms | None:
        try:
            trees = _grown(self.booster.model_to_string(), self._n_outputs)
        except CannotDraw:
            return None
        return LeafTerms.of_trees(
            trees, view=self._view, owners_seen=self.inputs.owners, intercept=np.zeros(self._n_outputs)
        )

    def _write(self, folder: Path) -> None:
        self.booster.save_model(str(folder / FILE))


class LightGBM(BoostingFamily):
    """Boosted trees with native categoricals."""

    rowwise: ClassVar[bool] = True
    name: ClassVar[str] = "lightgbm"
    framework: ClassVar[str] = "lightgbm"
    modules: ClassVar[tuple[str, ...]] = ("lightgbm",)
    model: ClassVar[type[BoosterModel]] = LightGBMModel

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            **INPUT_SPACE,
            "learning_rate": FloatDimension(low=0.005, high=0.3, log=True),
            "num_leaves": IntDimension(low=4, high=255, log=True),
            "min_data_in_leaf": IntDimension(low=1, high=200, log=True),
            "feature_fraction": FloatDimension(low=0.2, high=1.0),
            "bagging_fraction": FloatDimension(low=0.5, high=1.0),
            "lambda_l1": FloatDimension(low=0.0, high=10.0),
            "lambda_l2": FloatDimension(low=0.0, high=20.0),
            "cat_smooth": FloatDimension(low=1.0, high=100.0, log=True),
            "extra_trees": ChoiceDimension(choices=(False, True)),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        many_levels = shape.most_levels > FEW_LEVELS
        if task is Task.REGRESSION:
            plain = [Bet(PLAIN_64, 50)] if shape.n_crosses else []
            encoded = [Bet(ENCODED_50, 60)] if many_levels else []
            deep = Bet(LEAVES_128, 100 if many_levels else 60)
            shallow = [Bet(LEAVES_8, 80)] if shape.n_rows < 8_000 else []
            return sorted(
                [Bet(LEAVES_64, 20), Bet(RANDOM_64, 25), *plain, *encoded, deep, *shallow], key=lambda bet: bet.rank
            )
        if task is Task.MULTICLASS:
            encoded = [Bet(ENCODED_50, 95)] if many_levels else []
            return [Bet(LEAVES_128, 30), Bet(RANDOM_31, 65), Bet(LEAVES_8, 70), Bet(PYTABKIT, 90), *encoded]
        if shape.n_rows <= 20_000:
            encoded = [Bet(ENCODED_31, 95)] if many_levels else []
            return [Bet(LEAVES_8, 20), Bet(AUTOGLUON, 50), Bet(PYTABKIT, 70), *encoded, Bet(LEAVES_128, 110)]
        encoded = [Bet(ENCODED_31, 60)] if many_levels else []
        return [Bet(LEAVES_31, 20), Bet(LEAVES_128, 50), *encoded, Bet(LEAVES_15, 80)]

    def load(self, folder: Path) -> Model:
        import lightgbm

        booster = lightgbm.Booster(model_file=str(folder / FILE))
        return LightGBMModel(booster, Head.load(folder), Inputs.load(folder))

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = max(n_classes, 1) if n_classes > 2 else 1
        # Two float32 copies of the table and its bins; scores, gradients and Hessians; histograms of every leaf.
        table = n_rows * n_columns * (2 * 4 + 2)
        rows = n_rows * outputs * 40
        histograms = int(parameters.get("num_leaves") or 31) * n_columns * 256 * 16
        return (table + rows + histograms) / 1e6 + 60

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
        import lightgbm

        objective, metric = ABSOLUTE if context.loss == "absolute" else OBJECTIVES[context.task]
        options = {
            **parameters,
            "objective": objective,
            "metric": metric,
            "num_class": context.n_classes if context.task is Task.MULTICLASS else 1,
            # A leaf has to be possible at all in a very small table.
            "min_data_in_leaf": min(int(parameters["min_data_in_leaf"] or 1), max(1, len(train) // 10)),
            "bagging_freq": 1 if parameters["bagging_fraction"] != 1 else 0,
            "seed": context.seed,
            "num_threads": context.threads,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }
        n_numeric = len(train.table.numeric_names)
        categorical = list(range(n_numeric, n_numeric + len(train.table.categorical_names)))
        start = 0.0

        def earlier(rows: Sample) -> np.ndarray | None:
            """Return the scores that the new trees start from."""
            if before is None:
                return None
            return start + np.asarray(before.predict(rows.table.matrix, raw_score=True, num_threads=context.threads))

        if before is not None and context.loss == "absolute":
            # Where all new rows lie to one side, their gradients are equal, and no tree would be grown.
            start = weighted_median(train.y - earlier(train), train.weight)

        data = lightgbm.Dataset(
            train.table.matrix,
            train.y,
            weight=train.weight,
            init_score=earlier(train),
            categorical_feature=categorical,
            params=options,
        )
        booster = lightgbm.Booster(options, data)
        if validation is not None:
            held_out = data.create_valid(
                validation.table.matrix, validation.y, weight=validation.weight, init_score=earlier(validation)
            )
            booster.add_valid(held_out, "validation")
        while progress.going:
            on_curve = progress.on_curve
            booster.update()
            progress.record(
                train=booster.eval_train()[0][2] if on_curve else None,
                validation=booster.eval_valid()[0][2] if validation is not None else None,
            )
        # From text, so that the fitted and the loaded model are one thing and the training data are let go.
        text = booster.model_to_string(num_iteration=progress.best)
        if before is None:
            return lightgbm.Booster(model_str=text)
        return lightgbm.Booster(model_str=_sum_of_texts([before.model_to_string(), _raised(text, start)], [1.0, 1.0]))

    def _sum(self, boosters: list[Any], weights: list[float]) -> Any:
        import lightgbm

        texts = [booster.model_to_string() for booster in boosters]
        return lightgbm.Booster(model_str=_sum_of_texts(texts, weights))


def _sum_of_texts(texts: list[str], weights: list[float]) -> str:
    """Return LightGBM's text of a model that has all trees, the values of each model's leaves times its weight.

    Lines of sizes are left out; without them LightGBM reads the trees one after the other.
    """
    trees: list[str] = []
    for text, weight in zip(texts, weights, strict=True):
        body = text[text.index("\nTree=") : text.index("\nend of trees")]
        for tree in body.split("\nTree=")[1:]:
            lines = [_changed(line, partial(mul, weight)) for line in tree.split("\n")[1:]]
            trees.append("\n".join([f"Tree={len(trees)}", *lines]))
    first = texts[0]
    head = [line for line in first[: first.index("\nTree=")].split("\n") if not line.startswith("tree_sizes=")]
    return "\n".join([*head, *trees, first[first.index("\nend of trees") + 1 :]])


def _raised(text: str, by: float) -> str:
    """Return LightGBM's text of a model whose answers are that much larger: the first tree's leaves are."""
    first, mark, others = text.partition("\nTree=1\n")
    return "\n".join(_changed(line, partial(add, by)) for line in first.split("\n")) + mark + others


def _grown(text: str, n_outputs: int) -> GrownTrees:
    """Read the trees of LightGBM's text."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
    members: dict[int, np.ndarray] = {}
    roots, n_nodes = [], 0
    for tree in text[text.index("\nTree=") : text.index("\nend of trees")].split("\nTree=")[1:]:
        lines = dict(line.split("=", 1) for line in tree.split("\n")[1:] if "=" in line)

        def array(name: str, kind: type, of: dict[str, str] = lines) -> np.ndarray:
            return np.array(of.get(name, "").split(), dtype=kind)

        values = array("leaf_value", float)
        n_inner = len(values) - 1  # inner nodes first, then leaves
        kinds, threshold = array("decision_type", int), array("threshold", float)
        category = kinds & 1 == 1
        missing = kinds >> 2 & 3
        if (missing == _ZERO).any():
            raise CannotDraw("a LightGBM model that takes zeros as missing")
        # Where training had no missing value, one counts as zero.
        missing_true = np.where(missing == _NO_MISSING, threshold >= 0, kinds & 2 == 2) & ~category
        starts, bits = array("cat_boundaries", int), array("cat_threshold", np.uint32)
        for node in np.flatnonzero(category).tolist():
            at = int(threshold[node])
            words = bits[starts[at] : starts[at + 1]].astype("<u4").view(np.uint8)
            members[n_nodes + node] = np.flatnonzero(np.unpackbits(words, bitorder="little"))
        for name in ("left_child", "right_child"):
            child = array(name, int)
            child = n_nodes + np.where(child < 0, n_inner + ~child, child)
            parts[name].append(np.append(child, np.full(len(values), -1)))
        for name, of in (
            ("feature", array("split_feature", int)),
            ("threshold", threshold),
            ("kind", np.where(category, MEMBER, AT_MOST)),
            ("missing_true", missing_true),
        ):
            parts[name].append(np.append(of, np.zeros(len(values))))
        parts["value"].append(np.append(np.zeros(n_inner), values))
        roots.append(n_nodes)
        n_nodes += n_inner + len(values)
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return GrownTrees(
        roots=np.array(roots),
        targets=np.arange(len(roots)) % n_outputs,
        feature=joined["feature"].astype(np.int64),
        kind=joined["kind"],
        threshold=joined["threshold"],
        true=joined["left_child"].astype(np.int64),
        false=joined["right_child"].astype(np.int64),
        missing_true=joined["missing_true"].astype(bool),
        value=joined["value"],
        members=members,
    )


def _changed(line: str, act: Callable[[float], float]) -> str:
    """Return a line of a tree, its values changed where it holds such; internal ones explain a prediction."""
    name, _, values = line.partition("=")
    if name not in ("leaf_value", "internal_value") or not values:
        return line
    return f"{name}={' '.join(repr(act(float(value))) for value in values.split())}"


PLUGIN = LightGBM()
