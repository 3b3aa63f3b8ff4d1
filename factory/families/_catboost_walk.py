"""CatBoost's trees in numpy, for a few rows at a time: its own way in takes ten times as long as the trees.

Everything is read from the JSON that CatBoost writes of a model.  Trees are
symmetric: all nodes of one depth ask the same, so that a row is one comparison
of all borders, one number of bits for each tree and one look-up.  Statistics of
the target by level (Prokhorenkova et al. 2018, section 3.2) depend on nothing
but the codes of some columns and the answers to some questions: they are tables.
"""

from __future__ import annotations

import ast
import json
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from factory.data.graph import CannotDraw
from factory.families._drawing import Questions, SymmetricTrees

MOST_CODES = 4_096
"""Codes of levels that are looked for in a model; one that knows others stays with CatBoost."""
MOST_VALUES = 500_000
"""Of all tables of a model: several columns together have as many as the product of their levels."""
MOST_LEAVES = 200_000
"""Values of all leaves: reading so many from JSON takes a third of a second, for each model that is saved."""
N_CHECKED = 64
"""Rows that are drawn to compare a walk with its model."""
_EMPTY = np.uint64(2**64 - 1)
_FACTOR = np.uint64(0x4906BA494954CB65)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the target by level, looked up.

    Attributes:
        questions: Asked of a row, (n_questions,).
        columns: Columns that hold codes, int64 (n_columns,).
        n_known: Codes of each column that are told apart; all others are one more, int64 (n_columns,).
        steps: By what a code, or an answer, moves the place, int64 (n_columns + n_questions, n_statistics).
        starts: First place of each statistic, int64 (n_statistics,).
        values: float32 (n_values,).
    """

    questions: Questions
    columns: np.ndarray
    n_known: np.ndarray
    steps: np.ndarray
    starts: np.ndarray
    values: np.ndarray

    def of(self, matrix: np.ndarray) -> np.ndarray:
        """Return the statistics float32 (n_rows, n_statistics) of rows float32 (n_rows, n_columns)."""
        codes = np.minimum(matrix[:, self.columns].astype(np.int64), self.n_known)
        digits = np.concatenate([codes, self.questions.answers(matrix)], axis=1)
        return np.asarray(self.values[digits @ self.steps + self.starts])

    @cached_property
    def behind(self) -> list[frozenset[int]]:
        """Columns that each statistic depends on, (n_statistics,)."""
        of = np.concatenate([self.columns, self.questions.feature])
        return [frozenset(of[np.flatnonzero(steps)].tolist()) for steps in self.steps.T]


@dataclass(frozen=True)
class Walk:
    """A model for a few rows.

    Attributes:
        trees: All of them; statistics are columns behind those of the rows.
        scale: Of their sums.
        bias: Added to the scaled sums, float64 (n_outputs,).
        statistics: What the trees ask for beside the columns; None where that is nothing.
    """

    trees: SymmetricTrees
    scale: float
    bias: np.ndarray
    statistics: Statistics | None = None

    @classmethod
    def of(cls, booster: Any) -> Walk | None:
        """Take a model; None where it cannot be walked, or does not answer drawn rows so to the last bit."""
        if booster.get_leaf_values().size > MOST_LEAVES:
            return None
        document = document_of(booster)
        try:
            # Who has no categories need not know their hashes, for which a model is trained.
            codes = hashes(MOST_CODES) if _columns(document) else {}
            statistics, places = _statistics(document, codes)
            trees = symmetric(document, codes, places=places)
        except CannotDraw:
            return None
        scale, bias = document["scale_and_bias"]
        asked = [trees.questions, *([statistics.questions] if statistics is not None else [])]
        if not len(trees.starts) or any((each.equal & (each.border < 0)).any() for each in asked):
            return None
        walk = cls(trees, float(scale), np.asarray(bias, dtype=np.float64), statistics)
        return walk if walk._answers_as(booster, document) else None

    @classmethod
    def load(cls, path: Path) -> Walk:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        trees = SymmetricTrees(Questions.taken(arrays, "trees."), *(arrays[f"trees.{n}"] for n in ("values", "starts")))
        statistics = None
        if "statistics.values" in arrays:
            names = [field.name for field in fields(Statistics)][1:]
            asked = Questions.taken(arrays, "statistics.")
            statistics = Statistics(asked, *(arrays[f"statistics.{name}"] for name in names))
        return cls(trees, float(arrays["scale"]), arrays["bias"], statistics)

    def save(self, path: Path) -> None:
        """Write the arrays as npz."""
        arrays = {"scale": np.float64(self.scale), "bias": self.bias}
        for name, part in (("trees", self.trees), ("statistics", self.statistics)):
            if part is not None:
                own = {field.name: getattr(part, field.name) for field in fields(part) if field.name != "questions"}
                arrays |= {f"{name}.{key}": value for key, value in {**own, **vars(part.questions)}.items()}
        np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]

    def margin(self, matrix: np.ndarray) -> np.ndarray:
        """Return what the booster answers to float32 rows (n_rows, n_columns), float64 (n_rows, n_outputs)."""
        return np.asarray(self.trees.sums(self.seen(matrix)) * self.scale + self.bias)

    def seen(self, matrix: np.ndarray) -> np.ndarray:
        """Return rows float32 (n_rows, n_columns) with their statistics behind their columns."""
        if self.statistics is None:
            return matrix
        return np.concatenate([matrix, self.statistics.of(matrix)], axis=1)

    def behind(self, column: int) -> frozenset[int]:
        """Return the columns of a table's matrix that a column of :meth:`seen` depends on: a statistic on several."""
        if self.statistics is None or column <= self.statistics.columns[-1]:
            return frozenset((column,))
        return self.statistics.behind[column - int(self.statistics.columns[-1]) - 1]

    def _answers_as(self, booster: Any, document: Any) -> bool:
        """Whether drawn rows, around the model's own borders and with all codes that it knows, are answered equally."""
        import catboost

        random = np.random.default_rng(0)
        about = _numeric(document)
        borders = [np.array([0.0, *(one["borders"] or ())], dtype=np.float32) for one in about]
        numbers = np.stack([random.choice(each, N_CHECKED) for each in borders], axis=1) if about else None
        n_columns = len(_columns(document))
        most = int(self.statistics.n_known.max(initial=0)) if self.statistics is not None else 0
        codes = random.integers(0, min(max(most, 300) + 2, MOST_CODES), (N_CHECKED, n_columns))
        parts = [codes]
        if numbers is not None:
            numbers += random.choice(np.array([-1e-3, 0, 0, 1e-3, np.nan], dtype=np.float32), numbers.shape)
            parts.insert(0, numbers)
        rows = catboost.FeaturesData(
            num_feature_data=numbers, cat_feature_data=texts_of(MOST_CODES)[codes] if n_columns else None
        )
        told = booster.predict(rows, prediction_type="RawFormulaVal", thread_count=1)
        matrix = np.concatenate(parts, axis=1, dtype=np.float32)
        return np.array_equal(self.margin(matrix), np.asarray(told).reshape(N_CHECKED, -1))


def document_of(booster: Any) -> Any:
    """Return a model as CatBoost's JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        booster.save_model(str(path), format="json")
        return json.loads(path.read_text(encoding="utf-8"))


def symmetric(document: Any, codes: Mapping[int, int], *, places: Sequence[int] = ()) -> SymmetricTrees:
    """Read the trees of CatBoost's JSON, whose columns are the numeric ones, then the codes, then statistics.

    Args:
        document: The JSON.
        codes: Code of each of CatBoost's hashes of levels.
        places: Number of borders up to each statistic, after those of the columns; none where it has no statistics.

    Raises:
        CannotDraw: it has, and they are not given.
    """
    trees = document["oblivious_trees"]
    n_numeric, n_columns = len(_numeric(document)), len(_numeric(document)) + len(_columns(document))
    shape = (len(trees), max([len(tree["splits"] or ()) for tree in trees], default=0) or 1)
    feature, border = np.zeros(shape, dtype=np.int64), np.full(shape, np.inf)
    equal, missing = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    yes_if_missing = _yes_if_missing(document)
    for i, tree in enumerate(trees):
        for j, split in enumerate(tree["splits"] or ()):
            if split["split_type"] == "OneHotFeature":
                feature[i, j], equal[i, j] = n_numeric + split["cat_feature_index"], True
                # A level that no table has is never equal.
                border[i, j] = codes.get(split["value"], -1)
            elif split["split_type"] == "FloatFeature":
                feature[i, j], border[i, j] = split["float_feature_index"], split["border"]
                missing[i, j] = split["float_feature_index"] in yes_if_missing
            elif not places:
                raise CannotDraw("a CatBoost model with target statistics of categories")
            else:
                feature[i, j] = n_columns + bisect_right(places, split["split_index"]) - 1
                border[i, j] = split["border"]
    sizes = np.array([1 << len(tree["splits"] or ()) for tree in trees])
    values = [
        np.asarray(tree["leaf_values"], dtype=np.float64).reshape(size, -1)
        for tree, size in zip(trees, sizes, strict=True)
    ]
    questions = Questions(feature, border, equal, missing)
    return SymmetricTrees(questions, np.concatenate(values), np.cumsum(sizes) - sizes)


@cache
def hashes(n_levels: int) -> dict[int, int]:
    """Return the code of each of CatBoost's hashes of the codes' texts.

    It tells them in one place only: the Python source that it writes of a model.
    """
    import catboost

    pool = catboost.Pool(
        catboost.FeaturesData(cat_feature_data=texts_of(n_levels)[:, np.newaxis]), label=np.arange(n_levels) % 2
    )
    options = {"iterations": 1, "depth": 1, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    booster = catboost.CatBoost(options).fit(pool)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.py"
        booster.save_model(str(path), format="python", pool=pool)
        source = path.read_text(encoding="utf-8")
    _, _, told = source.partition("cat_features_hashes = ")
    found: dict[str, int] = ast.literal_eval(told[: told.index("}") + 1])
    return {hash_: int(text) for text, hash_ in found.items()}


@cache
def texts_of(n_levels: int) -> np.ndarray:
    """Return the codes below ``n_levels`` as byte strings; cached, since a single row needs them too."""
    return np.array([b"%d" % code for code in range(n_levels)], dtype=object)


# --- statistics ---------------------------------------------------------------------


def _statistics(document: Any, codes: Mapping[int, int]) -> tuple[Statistics | None, list[int]]:
    """Return the statistics of CatBoost's JSON, and how many borders come up to each of them.

    Raises:
        CannotDraw: they are of a kind, or of more levels, that a table does not hold.
    """
    asked = document["features_info"].get("ctrs") or ()
    if not asked:
        return None, []
    before = sum(len(one["borders"] or ()) for one in _numeric(document))
    before += sum(len(one.get("values") or ()) for one in _columns(document))
    places = list(accumulate((len(one["borders"]) for one in asked), initial=before))[:-1]
    told = _hash_of_code()
    n_numeric, n_columns = len(_numeric(document)), len(_columns(document))
    counted = {key: _counts(one) for key, one in document["ctr_data"].items()}
    n_known = np.zeros(n_columns, dtype=np.int64)
    for one in asked:
        columns = _combined(one)
        if len(columns) == 1:
            n_known[columns[0]] = max(n_known[columns[0]], _n_known(one, counted[one["identifier"]][0], told))
    questions = list(dict.fromkeys(_question(e, codes, n_numeric) for one in asked for e in _answered(one)))
    steps = np.zeros((n_columns + len(questions), len(asked)), dtype=np.int64)
    values: list[np.ndarray] = []
    starts, n_values = [], 0
    for k, one in enumerate(asked):
        columns = _combined(one)
        digits = columns + [n_columns + questions.index(_question(e, codes, n_numeric)) for e in _answered(one)]
        sizes = [*(n_known[columns] + 1), *(2 for _ in _answered(one))]
        if n_values + (size := int(np.prod(sizes))) > MOST_VALUES or not all(n_known[columns]):
            raise CannotDraw("a CatBoost model with target statistics of too many levels")
        steps[digits, k] = np.cumprod([1, *sizes[:0:-1]])[::-1]
        starts.append(n_values)
        values.append(_table(one, counted[one["identifier"]], [told[:n] for n in n_known[columns]]))
        n_values += size
    yes_if_missing = _yes_if_missing(document)
    return Statistics(
        Questions(
            np.array([column for column, _, _ in questions], dtype=np.int64),
            np.array([border for _, border, _ in questions], dtype=np.float64),
            np.array([equal for _, _, equal in questions], dtype=bool),
            np.array([column in yes_if_missing for column, _, _ in questions], dtype=bool),
        ),
        np.arange(n_numeric, n_numeric + n_columns),
        n_known,
        steps,
        np.array(starts),
        np.concatenate(values),
    ), places


def _table(one: Any, counted: tuple[np.ndarray, np.ndarray, int], told: Sequence[np.ndarray]) -> np.ndarray:
    """Return a statistic's values for all codes of its columns, an unknown one behind them, and all answers, flat.

    Raises:
        CannotDraw: it was counted for other codes too, or is of a kind that is not known here.
    """
    known, counts, denominator = counted
    hashes_ = _chained(told, n_answers=len(_answered(one)))
    place = np.minimum(np.searchsorted(known, hashes_), len(known) - 1)
    there = known[place] == hashes_
    if len(np.unique(hashes_[there])) != len(known):
        raise CannotDraw("a CatBoost model with target statistics of too many levels")
    kind, border = one["ctr_type"], one["target_border_idx"]
    total, of_nothing = counts.sum(axis=1), 0
    if kind == "Borders":
        good = counts[:, border + 1 :].sum(axis=1)
    elif kind == "Buckets":
        good = counts[:, border]
    elif kind in ("Counter", "FeatureFreq"):
        good, total, of_nothing = counts[:, 0], np.full(len(counts), denominator), denominator
    else:
        raise CannotDraw(f"a CatBoost model with target statistics of the kind {kind}")

    def value(good: np.ndarray, total: np.ndarray) -> np.ndarray:
        prior, weight, shift, scale = (
            np.float32(one[name]) for name in ("prior_numerator", "prior_denomerator", "shift", "scale")
        )
        share = (good.astype(np.float32) + prior) / (total.astype(np.float32) + weight)
        return np.asarray((share + shift) * scale)

    nothing = value(np.zeros(1), np.full(1, of_nothing))
    values = np.where(there, value(good, total)[place], nothing)
    columns = tuple((0, 1) for _ in told) + tuple((0, 0) for _ in _answered(one))
    return np.pad(values, columns, constant_values=nothing[0]).ravel()


def _chained(told: Sequence[np.ndarray], *, n_answers: int) -> np.ndarray:
    """Return CatBoost's hash of each combination of codes and answers, uint64 (n_codes, ..., 2, ...)."""
    hash_: np.ndarray = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in [*told, *[np.arange(2, dtype=np.uint64)] * n_answers]:
            hash_ = np.asarray(_FACTOR * (hash_[..., np.newaxis] + _FACTOR * part))
    return hash_


def _n_known(one: Any, known: np.ndarray, told: np.ndarray) -> int:
    """Return how many codes of a statistic's one column there are up to the last that was counted."""
    seen = np.isin(_chained([told], n_answers=len(_answered(one))), known).reshape(len(told), -1).any(axis=1)
    return int(np.flatnonzero(seen)[-1]) + 1 if seen.any() else 0


def _counts(data: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the sorted hashes that a statistic was counted for, their counts (n_hashes, n_counts), and the largest."""
    rows = np.array(data["hash_map"], dtype=object).reshape(-1, data["hash_stride"])
    known = np.array([int(text) for text in rows[:, 0]], dtype=np.uint64)
    order = np.argsort(known)
    order = order[known[order] != _EMPTY]
    return known[order], rows[order, 1:].astype(np.int64), int(data["counter_denominator"])


@cache
def _hash_of_code() -> np.ndarray:
    """Return CatBoost's hash of each code's text, uint64 (MOST_CODES,)."""
    found = np.zeros(MOST_CODES, dtype=np.int64)
    for hash_, code in hashes(MOST_CODES).items():
        found[code] = hash_
    return found.view(np.uint64)


def _combined(one: Any) -> list[int]:
    """Return the columns with codes that a statistic combines, by their number among these."""
    return [e["cat_feature_index"] for e in one["elements"] if e["combination_element"] == "cat_feature_value"]


def _answered(one: Any) -> list[Any]:
    """Return the questions that a statistic's combination has beside its columns, in CatBoost's order."""
    return [element for element in one["elements"] if element["combination_element"] != "cat_feature_value"]


def _question(element: Any, codes: Mapping[int, int], n_numeric: int) -> tuple[int, float, bool]:
    if element["combination_element"] == "float_feature":
        return element["float_feature_index"], element["border"], False
    return n_numeric + element["cat_feature_index"], codes.get(element["value"], -1), True


def _numeric(document: Any) -> Any:
    return document["features_info"].get("float_features") or ()


def _columns(document: Any) -> Any:
    return document["features_info"].get("categorical_features") or ()


def _yes_if_missing(document: Any) -> set[int]:
    return {one["feature_index"] for one in _numeric(document) if one.get("nan_value_treatment") == "AsTrue"}
