"""Traits: what makes datasets siblings, and how far apart two of them are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import Dataset, from_frame
from factory.data.traits import MOST_COLUMNS, WEIGHTS, distance, traits_of
from factory.spec import FileDataset, Task


def table(n_rows: int = 200, *, prefix: str = "", seed: int = 0, share: float = 0.5, task: str = "binary") -> Dataset:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame({f"{prefix}x{i}": generator.normal(size=n_rows) for i in range(6)})
    frame[f"{prefix}city"] = generator.choice(["Bern", "Genf", "Basel"], n_rows)
    y = (
        np.where(generator.random(n_rows) < share, "yes", "no")
        if task == "binary"
        else generator.lognormal(size=n_rows)
    )
    return from_frame(frame.assign(target=y), FileDataset(path="t.parquet", target="target", task=Task(task)))


def test_weights_sum_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_a_dataset_is_at_no_distance_from_itself_and_distances_are_symmetric() -> None:
    one, other = traits_of(table()), traits_of(table(2000, seed=1, share=0.1))
    assert distance(one, one) == 0
    assert distance(one, other) == distance(other, one)
    assert 0 < distance(one, other) < 0.2


def test_tables_without_a_common_column_are_not_near() -> None:
    assert distance(traits_of(table()), traits_of(table(prefix="other_"))) >= WEIGHTS["columns"]


def test_another_task_is_as_far_as_it_gets() -> None:
    assert distance(traits_of(table()), traits_of(table(task="regression"))) == 1


def test_the_more_differs_the_farther() -> None:
    base = traits_of(table())
    rarer, rarer_and_larger = table(share=0.1), table(20_000, share=0.1)
    assert distance(base, traits_of(rarer)) < distance(base, traits_of(rarer_and_larger))


def test_traits_are_numbers_of_the_data_and_survive_json() -> None:
    dataset = table(share=0.25)
    found = traits_of(dataset)
    assert (found.n_rows, found.n_columns, found.n_classes) == (200, 7, 2)
    assert found.type_shares == pytest.approx({"categorical": 1 / 7, "numeric": 6 / 7})
    assert 0.6 < found.balance < 0.95
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert traits_of(table(task="regression")).skewness > 1


def test_hashes_of_a_wide_table_are_bounded() -> None:
    frame = pd.DataFrame({f"c{i}": np.arange(30.0) * (i + 1) % 7 for i in range(MOST_COLUMNS + 50)})
    frame["target"] = ["a", "b"] * 15
    found = traits_of(from_frame(frame, FileDataset(path="t.parquet", target="target")))
    assert len(found.columns) == MOST_COLUMNS
