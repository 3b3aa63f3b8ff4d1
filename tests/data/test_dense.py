from __future__ import annotations

import io

import numpy as np
import pytest

from factory.data.dense import DenseEncoder
from factory.data.preparation import Table


def table(numeric: np.ndarray, codes: np.ndarray, levels: tuple[int, ...]) -> Table:
    return Table(
        numeric.astype(np.float32),
        codes.astype(np.int32),
        levels,
        tuple(f"n{i}" for i in range(numeric.shape[1])),
        tuple(f"c{i}" for i in range(codes.shape[1])),
    )


@pytest.fixture
def train() -> Table:
    rng = np.random.default_rng(0)
    numeric = rng.normal([5, -3, 0], [2, 0.1, 0], (500, 3))
    numeric[rng.random(500) < 0.2, 1] = np.nan
    codes = np.column_stack([rng.integers(1, 4, 500), rng.integers(0, 3, 500)])
    return table(numeric, codes, (4, 3))


def test_numbers_are_imputed_scaled_and_indicated(train: Table) -> None:
    dense = DenseEncoder.fit(train)
    x = dense.transform(train)
    assert x.dtype == np.float32
    assert x.shape == (500, dense.n_columns) == (500, 3 + 1 + 3 + 3)
    assert not np.isnan(x).any()
    assert np.allclose(x[:, :2].mean(axis=0), 0, atol=1e-5)
    assert np.allclose(x[:, :2].std(axis=0), 1, atol=1e-4)
    assert (x[:, 2] == 0).all(), "a constant column is scaled to zero, not divided by zero"
    missing = np.isnan(train.numeric[:, 1])
    assert np.array_equal(x[:, 3], missing)
    median = np.nanmedian(train.numeric[:, 1])
    assert np.allclose(x[missing, 1] * dense.arrays()["scale"][1] + dense.arrays()["mean"][1], median, atol=1e-5)


def test_levels_are_one_hot_and_missing_only_where_training_had_it(train: Table) -> None:
    x = DenseEncoder.fit(train).transform(train)
    assert np.array_equal(x[:, 4:7], np.eye(3)[train.codes[:, 0] - 1])
    assert np.array_equal(x[:, 7:10], np.eye(3)[train.codes[:, 1]])


def test_an_encoder_from_before_target_means_is_read(train: Table) -> None:
    """It has the log frequency and the rank of each level of a column of many."""
    of_level = np.random.default_rng(1).normal(size=(101, 2)).astype(np.float32)
    stored = DenseEncoder.fit(train).arrays() | {"many": np.array([2]), "starts": np.array([0]), "values": of_level}
    many = np.random.default_rng(2).integers(1, 101, (500, 1)).astype(np.int32)
    wide = table(train.numeric, np.concatenate([train.codes, many], axis=1), (4, 3, 101))
    x = DenseEncoder.from_arrays(stored).transform(wide)
    assert np.array_equal(x[:, :10], DenseEncoder.fit(train).transform(train))
    assert np.array_equal(x[:, 10:], of_level[many[:, 0]])


def test_unseen_missing_and_wild_values_stay_finite(train: Table) -> None:
    dense = DenseEncoder.fit(train)
    odd = table(np.array([[np.nan, 1e30, 7.0]]), np.zeros((1, 2)), train.levels)
    x = dense.transform(odd)
    assert np.isfinite(x).all()
    assert x[0, 1] == 8.0
    assert (x[0, 4:7] == 0).all(), "a level never seen is all zeros"


def test_an_encoder_that_was_stored_without_scales_leaves_numbers(train: Table) -> None:
    straight = {"mean": np.zeros(3), "scale": np.ones(3), "clip": np.array(np.inf)}
    arrays = DenseEncoder.fit(train).arrays() | {name: a.astype(np.float32) for name, a in straight.items()}
    x = DenseEncoder.from_arrays(arrays).transform(train)
    known = ~np.isnan(train.numeric)
    assert np.array_equal(x[:, :3][known], train.numeric[known])


def test_empty_sides(train: Table) -> None:
    only_codes = table(np.empty((9, 0)), np.ones((9, 1)), (2,))
    assert DenseEncoder.fit(only_codes).transform(only_codes).tolist() == [[1.0]] * 9
    only_missing = table(np.full((9, 1), np.nan), np.empty((9, 0)), ())
    assert DenseEncoder.fit(only_missing).transform(only_missing).tolist() == [[0.0, 1.0]] * 9
    assert DenseEncoder.fit(train).transform(train.rows(np.array([], dtype=int))).shape == (0, 10)


def test_arrays_survive_npz(train: Table) -> None:
    dense = DenseEncoder.fit(train)
    stored = io.BytesIO()
    np.savez(stored, **dense.arrays())
    stored.seek(0)
    with np.load(stored, allow_pickle=False) as arrays:
        loaded = DenseEncoder.from_arrays({name: arrays[name] for name in arrays.files})
    assert loaded.n_columns == dense.n_columns
    assert np.array_equal(loaded.transform(train), dense.transform(train))


def test_heavy_tails_are_bent_and_order_is_kept() -> None:
    rng = np.random.default_rng(0)
    wild = np.column_stack([rng.standard_t(1, 2_000), rng.normal(size=2_000), np.where(rng.random(2_000) < 0.01, 7, 0)])
    train = table(wild, np.empty((2_000, 0)), ())
    dense = DenseEncoder.fit(train)
    assert dense.arrays()["bent"].tolist() == [0, 2]
    x = dense.transform(train)
    assert np.isfinite(x).all()
    middle = np.abs(wild[:, 0]) < 100
    assert np.array_equal(np.argsort(x[middle, 0]), np.argsort(wild[middle, 0].astype(np.float32)))
    straight = np.abs(wild[:, 0] - wild[:, 0].mean()) / wild[:, 0].std()
    assert np.median(np.abs(x[:, 0])) > 3 * np.median(straight), "the bulk is not squeezed by the tail"
    assert len(np.unique(x[:, 2])) == 2


def test_an_encoder_from_before_bent_tails_is_read(train: Table) -> None:
    dense = DenseEncoder.fit(train)
    old = {name: a for name, a in dense.arrays().items() if name not in ("bent", "width")}
    assert np.array_equal(DenseEncoder.from_arrays(old).transform(train), dense.transform(train))
