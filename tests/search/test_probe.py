from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.crosses import Cross
from factory.data.dataset import Dataset, from_frame
from factory.data.preparation import Preparation
from factory.families.base import Deadline
from factory.search.metric import Metric
from factory.search.probe import FILE, KEPT_CROSSES, Representation, _Probe, represent
from factory.search.splits import Split
from factory.spec import FileDataset, Task

from .conftest import make_data, make_dataset, make_frame

RMSE = Metric("neg_root_mean_squared_error", Task.REGRESSION)
MAE = Metric("neg_mean_absolute_error", Task.REGRESSION)
AUC = Metric("roc_auc", Task.BINARY)
NEUTRAL = Representation()


def dataset(columns: dict[str, object]) -> Dataset:
    return from_frame(pd.DataFrame(columns), FileDataset(path="in memory", target="y"))


def fold(data: Dataset) -> Split:
    rows = np.arange(len(data))
    return Split(rows[rows % 8 != 0], rows[rows % 8 == 0])


def probed(data: Dataset, metric: Metric, *, seconds: float = 60) -> Representation:
    return represent(data, fold(data), metric, seed=0, deadline=Deadline.after(seconds))


def numbers(n: int = 2_500) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.2, 5, n) for name in ("a", "b", "c", "d")}


def test_a_ratio_that_makes_the_target_is_found() -> None:
    x = numbers()
    found = probed(dataset({**x, "y": x["a"] / x["b"] - x["c"] * x["d"]}), RMSE)
    assert {Cross(kind="ratio", left="a", right="b"), Cross(kind="product", left="c", right="d")} <= set(found.crosses)
    assert len(found.crosses) <= KEPT_CROSSES
    assert found.target_scale == "raw", "the target may be negative"


def test_no_crosses_where_columns_only_add_up() -> None:
    x = numbers()
    noise = np.random.default_rng(1).normal(size=2_500)
    assert probed(dataset({**x, "y": x["a"] + np.sin(4 * x["b"]) + noise}), RMSE) == NEUTRAL


def test_a_target_of_factors_is_learned_on_the_logarithm() -> None:
    x = numbers()
    noise = np.exp(np.random.default_rng(1).normal(0, 0.05, 2_500))
    y = 100 * np.exp(x["a"] * np.sin(x["b"]) / 2 + x["c"] / 2) * noise
    assert probed(dataset({**x, "y": y}), MAE).target_scale == "log"


def test_the_error_that_is_learned_by_is_the_one_that_does_better(tmp_path: Path) -> None:
    x = numbers()
    generator = np.random.default_rng(1)
    heavy = dataset({**x, "y": x["a"] + generator.standard_t(1.2, 2_500)})
    smooth = dataset({**x, "y": x["a"] * np.sin(3 * x["b"])})
    found = probed(heavy, MAE)
    assert found.loss == "absolute"
    assert probed(heavy, RMSE).loss == probed(smooth, MAE).loss == "squared"
    found.save(tmp_path)
    assert Representation.load(tmp_path) == found
    stored = json.loads((tmp_path / FILE).read_text())
    del stored["loss"]
    (tmp_path / FILE).write_text(json.dumps(stored))
    assert Representation.load(tmp_path) == replace(found, loss="squared"), "as an earlier release wrote it"


def test_heavy_tails_get_crosses_unasked() -> None:
    x = numbers()
    y = np.random.default_rng(1).standard_t(1.5, 2_500)
    assert len(probed(dataset({**x, "y": y}), RMSE).crosses) > 0


def weeks(n: int = 2_500) -> tuple[pd.Series, np.ndarray]:
    """Return moments of each seventh day of three years, and a target that drifts and turns with the year."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, 156, n)
    moments = pd.Series(pd.Timestamp("2020-01-05") + pd.to_timedelta(7 * place, unit="D"))
    level = np.cumsum(rng.normal(0, 0.3, 156))
    return moments, level[place] + rng.normal(0, 0.4, n)


def test_a_calendar_part_that_is_but_noise_is_left_out_of_every_date() -> None:
    moments, y = weeks()
    data = dataset({"shop": ["a", "b"] * 1_250, "sold": moments, "y": y})
    found = probed(data, RMSE)
    assert found.omitted == ("day",)
    prepared = Preparation.fit(data.frame, data.types, omitted=found.omitted).transform(data.frame)
    assert "sold:day" not in prepared.numeric_names
    assert {"sold:days", "sold:month"} <= {*prepared.numeric_names}


def test_a_calendar_part_that_the_target_turns_on_stays() -> None:
    days = pd.Series(pd.date_range("2020-01-01", periods=900))
    weekend = (days.dt.weekday >= 5).to_numpy()
    payday = (days.dt.day == 1).to_numpy()
    y = 2.0 * weekend + 3.0 * payday + np.random.default_rng(0).normal(0, 0.1, 900)
    assert probed(dataset({"sold": days, "x": np.arange(900) % 7.5, "y": y}), RMSE).omitted == ()


def test_same_seed_same_answer_and_json_keeps_it(tmp_path: Path) -> None:
    x = numbers()
    data = dataset({**x, "y": np.where(x["a"] * x["b"] > 5, "yes", "no")})
    first, again = probed(data, AUC), probed(data, AUC)
    assert first == again
    assert first.crosses
    first = replace(first, omitted=("day",))
    first.save(tmp_path)
    assert Representation.load(tmp_path) == first


def prose(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(["red", "green", "blue", "grey"], 8)) + f" {i}" for i in range(n)]


@pytest.mark.parametrize(
    "columns",
    [
        {"t": prose(200), "y": [0.5, 1.5, 7.25, 9.0] * 50},
        {"c": ["u", "v", "w", "v"] * 50, "y": np.linspace(0, 1, 200)},
        {"a": np.arange(40.0), "y": np.arange(40.0) ** 2},
        {"a": [1.0] * 199 + [2.0], "b": [None] * 200, "y": np.linspace(0, 1, 200)},
    ],
    ids=["text only", "levels only", "forty rows", "nothing varies"],
)
def test_neutral_where_there_is_nothing_to_probe(columns: dict[str, object]) -> None:
    assert probed(dataset(columns), RMSE) == NEUTRAL


def test_one_class_on_a_side_is_neutral() -> None:
    data = dataset({**numbers(200), "y": np.repeat(["no", "yes"], [150, 50])})
    rows = np.arange(200)
    split = Split(rows[:150], rows[150:])
    assert represent(data, split, AUC, seed=0, deadline=Deadline.after(60)) == NEUTRAL


def test_two_hundred_classes_are_neutral() -> None:
    data = dataset({**numbers(1_000), "y": [f"k{i % 200}" for i in range(1_000)]})
    assert probed(data, Metric("neg_log_loss", Task.MULTICLASS)) == NEUTRAL


def test_without_time_it_is_neutral_at_once() -> None:
    x = numbers()
    assert probed(dataset({**x, "y": x["a"] * x["b"]}), RMSE, seconds=-1) == NEUTRAL


def test_a_wide_table_is_probed_within_its_time() -> None:
    rng = np.random.default_rng(0)
    wide = {f"x{i}": rng.normal(size=1_500) for i in range(600)}
    data = dataset({**wide, "y": np.exp(wide["x0"] * wide["x1"])})
    assert probed(data, RMSE).target_scale in ("raw", "log")


@pytest.mark.parametrize(
    ("validation", "n_folds"),
    [
        ({"kind": "time", "column": "day"}, 1),
        ({"kind": "group", "column": "shop"}, 8),
        ({"kind": "cross_validation", "folds": 4}, 4),
    ],
    ids=lambda given: given.get("kind") if isinstance(given, dict) else "",
)
def test_rows_that_judge_are_new_to_those_that_teach(
    tmp_path: Path, validation: dict[str, object], n_folds: int
) -> None:
    """Neither earlier than a row that teaches, nor of its group; random folds judge by random rows as well."""
    data = make_data(tmp_path, dataset=make_dataset(n_rows=800), **validation)
    assert len(data.splits) == n_folds
    probe = _Probe.of(
        data.dataset, data.splits[0], data.metric, seed=0, deadline=Deadline.after(60), judging=data.judging()
    )
    assert probe is not None
    place = {row: i for i, row in enumerate(data.dataset.frame["a"].astype(np.float32))}
    a = probe.judged.table.numeric_names.index("a")
    taught, judged = (
        np.unique([place[value] for one in samples for value in one.table.numeric[:, a]])
        for samples in (probe.draws, [probe.judged])
    )
    day, shop = (data.dataset.column(name).to_numpy() for name in ("day", "shop"))
    assert not np.isin(taught, data.splits[0].validation).any()
    if validation["kind"] == "time":
        assert day[taught].max() < day[judged].min()
        assert len(taught) == len(data.splits[0].train)
    elif validation["kind"] == "group":
        assert not set(shop[taught]) & set(shop[judged])
        assert sorted(judged) == sorted(np.concatenate([s.validation for s in data.splits[:2]]))
    else:
        assert set(shop[taught]) & set(shop[judged])
        assert len(judged) == len(data.splits[0].validation) + len(data.splits[0].train) // 4


def test_of_few_groups_the_first_folds_own_rows_judge_alone(tmp_path: Path) -> None:
    frame = make_frame(800)
    few = make_dataset(frame=frame.assign(shop=[f"shop {i % 2}" for i in range(800)]))
    data = make_data(tmp_path, dataset=few, kind="group", column="shop")
    judging = data.judging()
    assert judging is not None
    assert len(judging) == 0
    part = data.part(np.arange(700), workspace=tmp_path / "part")
    assert part is not None
    assert not part.independent
