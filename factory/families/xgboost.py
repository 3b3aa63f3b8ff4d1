"""XGBoost: gradient-boosted trees grown level by level (Chen and Guestrin 2016), saved as UBJSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory.data.graph import DrawnTable
from factory.data.preparation import Table
from factory.families._boosting import FEW_ROWS, INPUT_SPACE, INPUTS, BoosterModel, BoostingFamily, Progress, link
from factory.families._drawing import BELOW, MEMBER, GrownTrees
from factory.families._encoding import FEW_LEVELS, Inputs
from factory.families._head import Head
from factory.families._leaves import LeafTerms
from factory.families._walk import LEVELS, Trees
from factory.families.base import Bet, FitContext, Model, Sample, Shape
from factory.space import FloatDimension, IntDimension, Parameters, Space
from factory.spec import Task

FILE, WALK = "model.ubj", "walk.npz"
OBJECTIVES = {
    Task.BINARY: ("binary:logistic", "logloss"),
    Task.MULTICLASS: ("multi:softprob", "mlogloss"),
    Task.REGRESSION: ("reg:squarederror", "rmse"),
}
ABSOLUTE = ("reg:absoluteerror", "mae")

DEFAULTS: Parameters = {
    **INPUTS,
    "learning_rate": 0.08,
    "max_depth": 6,
    "min_child_weight": 1.0,
    "subsample": 1.0,
    "colsample_bylevel": 1.0,
    "colsample_bynode": 1.0,
    "reg_lambda": 1.0,
    "reg_alpha": 0.0,
}
"""What a portfolio entry leaves out; XGBoost's own values but for the learning rate."""
PYTABKIT: Parameters = {**DEFAULTS, "subsample": 0.65, "colsample_bylevel": 0.9}
"""Tuned defaults for classification (Holzmüller et al. 2024, pytabkit)."""
# DEPTH_8 and SHALLOW won in our own portfolio study over twelve tables (60 s, two cores).
DEPTH_8: Parameters = {
    **DEFAULTS, "learning_rate": 0.07, "max_depth": 8, "subsample": 0.8, "colsample_bynode": 0.5,
    "min_child_weight": 3.0,
}  # fmt: skip
MANY_ROWS = 8_000
"""From so many on every tree sees all rows: what a part of them brings where rows are few and noisy, it costs here."""
ALL_ROWS: Parameters = {**DEFAULTS, "colsample_bynode": 0.5}
DEEP_ALL_ROWS: Parameters = {**DEPTH_8, "subsample": 1.0}
SHALLOW: Parameters = {**PYTABKIT, "max_depth": 3, "colsample_bynode": 0.5}


@dataclass(frozen=True)
class _Walk:
    """A booster's trees for a few rows at a time.

    Attributes:
        trees: Each leaf's place is its value's.
        values: Of the leaves, float32 (n_answers,).
        outputs: Output that each tree adds to, int64 (n_trees,).
        intercept: Of each output on the scale of the sum, float64 (n_outputs,).
        task: How the sums become an answer.
    """

    trees: Trees
    values: np.ndarray
    outputs: np.ndarray
    intercept: np.ndarray
    task: Task

    @classmethod
    def of(cls, booster: Any, task: Task) -> _Walk | None:
        """Take a booster's trees; None where some of them split on sets of more levels than a walk can tell apart."""
        learner = json.loads(bytes(booster.save_raw("json")))["learner"]
        model = learner["gradient_booster"]["model"]
        if not model["trees"] or any(max(tree["categories"], default=0) >= LEVELS for tree in model["trees"]):
            return None
        grown = _grown(model)
        category, values = grown.kind == MEMBER, grown.value.astype(np.float32)
        sets = np.zeros(len(values), dtype=np.int32)
        for node, levels in grown.members.items():
            sets[node] = sum(1 << int(level) for level in levels)
        trees = Trees.from_children(
            roots=grown.roots,
            feature=grown.feature,
            # XGBoost sends left what is below a threshold, a walk what is not above it.
            threshold=np.nextafter(grown.threshold.astype(np.float32), np.float32(-np.inf)),
            left=np.where(category, grown.false, grown.true),
            right=np.where(category, grown.true, grown.false),
            missing_left=grown.missing_true ^ category,
            sets=sets,
        )
        intercept = _onto_margin(np.array(_intercept(learner)), learner)
        return cls(trees, values, grown.targets, intercept, task)

    @classmethod
    def load(cls, path: Path, task: Task) -> _Walk:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        trees = Trees(arrays.pop("roots"), arrays.pop("steps"), sets=bool(arrays.pop("sets")))
        return cls(trees, **arrays, task=task)

    def save(self, path: Path) -> None:
        """Write the arrays as npz."""
        trees = {"roots": self.trees.roots, "steps": self.trees.steps, "sets": np.array(self.trees.sets)}
        others = {"values": self.values, "outputs": self.outputs, "intercept": self.intercept}
        np.savez(path, allow_pickle=False, **trees, **others)

    def answer(self, X: np.ndarray) -> np.ndarray:
        """Return what the booster answers to float32 rows (n_rows, n_columns), up to the rounding of its sums."""
        n_trees, n_outputs = len(self.outputs), max(int(self.outputs.max()) + 1, len(self.intercept))
        values = self.values[self.trees.answers(X)].reshape(len(X), n_trees)
        sums = np.stack([np.bincount(self.outputs, weights=row, minlength=n_outputs) for row in values])
        return link(sums + self.intercept, self.task)


class XGBoostModel(BoosterModel):
    """A booster cut at its best round; a few rows walk its trees here, which takes a fraction of its own way in."""

    def __init__(self, booster: Any, head: Head, inputs: Inputs, *, walk: _Walk | None = None) -> None:
        booster.set_param({"nthread": 1})
        super().__init__(booster, head, inputs)
        self._walks: tuple[_Walk | None] | tuple[()] = (walk,) if walk else ()

    @property
    def _walk(self) -> _Walk | None:
        if not self._walks:
            self._walks = (_Walk.of(self.booster, self.head.task),)
        return self._walks[0]

    def _answer(self, table: Table) -> np.ndarray:
        if len(table) <= FEW_ROWS and (walk := self._walk) is not None:
            return walk.answer(table.matrix)
        return np.asarray(self.booster.inplace_predict(table.matrix, validate_features=False))

    def _sums(self) -> tuple[GrownTrees, np.ndarray]:
        """Return the trees, and what is added to the sum of each output, (n_outputs,)."""
        learner = json.loads(bytes(self.booster.save_raw("json")))["learner"]
        grown = _grown(learner["gradient_booster"]["model"])
        intercept = _onto_margin(np.array(_intercept(learner)), learner)
        n_outputs = max(int(grown.targets.max(initial=0)) + 1, len(intercept))
        return grown, np.broadcast_to(intercept, (n_outputs,))

    def _leaves(self) -> LeafTerms:
        grown, intercept = self._sums()
        return LeafTerms.of_trees(grown, view=self._view, owners_seen=self.inputs.owners, intercept=intercept)

    def _draw_margin(self, table: DrawnTable) -> str:
        grown, intercept = self._sums()
        n_outputs = len(intercept)
        return table.graph.add("Add", grown.draw(table.graph, table.matrix, n_targets=n_outputs), intercept)

    def _write(self, folder: Path) -> None:
        self.booster.save_model(str(folder / FILE))
        if (walk := self._walk) is not None:  # taken here (.1 to .4 s), so that nobody who predicts waits for it
            walk.save(folder / WALK)


class XGBoost(BoostingFamily):
    """Boosted trees on histograms, with native categoricals."""

    name: ClassVar[str] = "xgboost"
    framework: ClassVar[str] = "xgboost"
    modules: ClassVar[tuple[str, ...]] = ("xgboost",)
    model: ClassVar[type[BoosterModel]] = XGBoostModel

    def space(self, task: Task) -> Space:  # noqa: ARG002 - the same for every task
        return {
            **INPUT_SPACE,
            "learning_rate": FloatDimension(low=0.005, high=0.3, log=True),
            "max_depth": IntDimension(low=2, high=10),
            "min_child_weight": FloatDimension(low=0.1, high=50.0, log=True),
            "subsample": FloatDimension(low=0.5, high=1.0),
            "colsample_bylevel": FloatDimension(low=0.3, high=1.0),
            "colsample_bynode": FloatDimension(low=0.3, high=1.0),
            "reg_lambda": FloatDimension(low=0.01, high=50.0, log=True),
            "reg_alpha": FloatDimension(low=0.0, high=10.0),
        }

    def portfolio(self, task: Task, *, shape: Shape) -> list[Bet]:
        regression = task is Task.REGRESSION
        deep, usual = (DEPTH_8, PYTABKIT) if shape.n_rows <= MANY_ROWS else (DEEP_ALL_ROWS, ALL_ROWS)
        first, second = (deep, usual) if regression else (usual, deep)
        early = 30 if task is Task.BINARY else 40
        encoded = (
            [Bet({**deep, "categoricals": "target"}, 90 if regression else 97)]
            if shape.most_levels > FEW_LEVELS
            else []
        )
        shallow = [Bet(SHALLOW, 115)] if shape.n_rows <= 8_000 else []
        return [Bet(first, early), *encoded, *shallow, Bet(second, 120)]

    def load(self, folder: Path) -> Model:
        import xgboost

        booster, head = xgboost.Booster(model_file=str(folder / FILE)), Head.load(folder)
        walk = _Walk.load(folder / WALK, head.task) if (folder / WALK).is_file() else None
        return XGBoostModel(booster, head, Inputs.load(folder), walk=walk)

    def memory_mb(self, *, n_rows: int, n_columns: int, n_classes: int, parameters: Parameters) -> float:
        outputs = n_classes if n_classes > 2 else 1
        # Two float32 copies of the table and its bins; margins and gradients; histograms of a level.
        table = n_rows * n_columns * (2 * 4 + 2)
        rows = n_rows * outputs * 32
        histograms = 2 ** int(parameters.get("max_depth") or 6) * n_columns * 256 * 16
        return float((table + rows + histograms) / 1e6 + 80)

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
        import xgboost

        objective, metric = ABSOLUTE if context.loss == "absolute" else OBJECTIVES[context.task]
        options: dict[str, Any] = {
            **parameters,
            "objective": objective,
            "eval_metric": metric,
            "tree_method": "hist",
            "seed": context.seed,
            "nthread": context.threads,
            "verbosity": 0,
        }
        if context.task is Task.MULTICLASS:
            options["num_class"] = context.n_classes
        if context.task is Task.BINARY and len(np.unique(train.y)) == 1:
            # The fitted intercept would be a log-odds of infinity.
            options["base_score"] = 0.5
        kinds = ["q"] * len(train.table.numeric_names) + ["c"] * len(train.table.categorical_names)

        def frame(rows: Sample) -> dict[str, Any]:
            shared = {"feature_types": kinds, "enable_categorical": True, "nthread": context.threads}
            return {"data": rows.table.matrix, "label": rows.y, "weight": rows.weight, **shared}

        data = xgboost.QuantileDMatrix(**frame(train))
        watched = [data]
        if validation is not None:
            watched.append(xgboost.DMatrix(**frame(validation)))
        earlier = 0 if before is None else before.num_boosted_rounds()
        if before is None:
            booster = xgboost.Booster(options, watched)
        else:
            # The intercept stays the one that the earlier trees were grown on.
            options.pop("base_score", None)
            booster = xgboost.Booster(options, watched, before)
        while progress.going:
            on_curve = progress.on_curve
            booster.update(data, earlier + progress.done)
            progress.record(
                train=_loss(booster, data) if on_curve else None,
                validation=_loss(booster, watched[1]) if validation is not None else None,
            )
        return booster[: earlier + progress.best]

    def _sum(self, boosters: list[Any], weights: list[float]) -> Any:
        import xgboost

        documents = [json.loads(bytes(booster.save_raw("json"))) for booster in boosters]
        booster = xgboost.Booster()
        booster.load_model(bytearray(json.dumps(_sum_of_documents(documents, weights)).encode()))
        return booster


def _grown(model: Any) -> GrownTrees:
    """Read the trees of XGBoost's JSON."""
    trees = model["trees"]

    def joined(key: str, kind: type) -> np.ndarray:
        return np.concatenate([np.asarray(tree[key], dtype=kind) for tree in trees])

    counts = np.array([len(tree["left_children"]) for tree in trees])
    roots = np.cumsum(counts) - counts
    shift = np.repeat(roots, counts)
    left, right = (joined(key, int) for key in ("left_children", "right_children"))
    leaf = left < 0
    left, right = np.where(leaf, -1, left + shift), np.where(leaf, -1, right + shift)
    # A split's threshold and a leaf's value share one list.
    conditions = joined("split_conditions", np.float32).astype(np.float64)
    members: dict[int, np.ndarray] = {}
    for root, tree in zip(roots.tolist(), trees, strict=True):
        segments = (tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"])
        for node, start, size in zip(*segments, strict=True):
            members[root + node] = np.asarray(tree["categories"][start : start + size])
    category = np.zeros(len(left), dtype=bool)
    category[list(members)] = True
    missing_left = joined("default_left", bool)
    return GrownTrees(
        roots=roots,
        targets=np.asarray(model["tree_info"], dtype=np.int64),
        feature=joined("split_indices", int),
        kind=np.where(category, MEMBER, BELOW),
        threshold=conditions,
        # Levels of the set go right.
        true=np.where(category, right, left),
        false=np.where(category, left, right),
        missing_true=missing_left ^ category,
        value=conditions,
        members=members,
    )


def _loss(booster: Any, data: Any) -> float:
    """Return the evaluation metric on cached data; XGBoost hands it out as text, ``[0]<tab>eval-rmse:0.5``."""
    return float(booster.eval(data).rpartition(":")[2])


def _sum_of_documents(documents: list[Any], weights: list[float]) -> Any:
    """Return XGBoost's JSON of a model that has all trees, the values of each model's leaves times its weight."""
    learners = [document["learner"] for document in documents]
    trees: list[Any] = []
    classes: list[int] = []
    starts = [0]
    intercept = np.zeros(1)
    for learner, weight in zip(learners, weights, strict=True):
        grown = learner["gradient_booster"]["model"]
        starts += [len(trees) + start for start in grown["iteration_indptr"][1:]]
        classes += grown["tree_info"]
        for tree in grown["trees"]:
            # A split's threshold and a leaf's value share one list; a leaf has no left child.
            values = zip(tree["split_conditions"], tree["left_children"], strict=True)
            conditions = [value * weight if left < 0 else value for value, left in values]
            base = [value * weight for value in tree["base_weights"]]
            trees.append({**tree, "id": len(trees), "split_conditions": conditions, "base_weights": base})
        intercept = intercept + weight * _onto_margin(np.array(_intercept(learner)), learner)
    total = learners[0]
    total["learner_model_param"]["base_score"] = json.dumps(_from_margin(intercept, total).tolist())
    model = total["gradient_booster"]["model"]
    model |= {"trees": trees, "tree_info": classes, "iteration_indptr": starts}
    model["gbtree_model_param"]["num_trees"] = str(len(trees))
    return documents[0]


def _intercept(learner: Any) -> list[float]:
    """Return the intercept of each output; XGBoost writes it as text, ``[3.3E-1]``."""
    return [float(value) for value in json.loads(learner["learner_model_param"]["base_score"])]


def _onto_margin(intercept: np.ndarray, learner: Any) -> np.ndarray:
    """Return what is added to the trees' sum; of two classes the intercept is a probability."""
    binary = learner["objective"]["name"] == OBJECTIVES[Task.BINARY][0]
    return np.asarray(np.log(intercept / (1 - intercept)) if binary else intercept)


def _from_margin(margin: np.ndarray, learner: Any) -> np.ndarray:
    """Undo :func:`_onto_margin`."""
    binary = learner["objective"]["name"] == OBJECTIVES[Task.BINARY][0]
    return np.asarray(1 / (1 + np.exp(-margin)) if binary else margin)


PLUGIN = XGBoost()
