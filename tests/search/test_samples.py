"""Prepared rows: fitted on a fold's training rows, made once, mapped from disk by everybody else."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.crosses import Cross
from factory.data.preparation import Preparation, Table
from factory.search.jobs import TrialData
from factory.search.probe import Representation
from factory.search.samples import (
    KEPT,
    Samples,
    fit_preparation,
    into_folder,
    preparation_folder,
    representation,
    write_array,
)
from factory.spec import Task

from .conftest import make_data, make_dataset, make_frame


@pytest.fixture
def data(tmp_path: Path) -> TrialData:
    return make_data(tmp_path, kind="cross_validation", folds=5)


def assert_equal(one: Table, other: Table) -> None:
    np.testing.assert_array_equal(one.numeric, other.numeric)
    np.testing.assert_array_equal(one.codes, other.codes)
    assert (one.numeric.dtype, one.codes.dtype) == (other.numeric.dtype, other.codes.dtype)
    shape = ("levels", "numeric_names", "categorical_names", "n_crosses")
    assert [getattr(one, name) for name in shape] == [getattr(other, name) for name in shape]


def test_rows_come_back_as_they_were_prepared(data: TrialData) -> None:
    frame, y = data.dataset.frame, data.dataset.y
    for fold, split in enumerate(data.splits):
        preparation = Preparation.fit(frame.iloc[split.train], data.dataset.types, seed=data.seed)
        for sample, rows in zip(Samples(data).of(fold), (split.train, split.validation), strict=True):
            assert_equal(sample.table, preparation.transform(frame.iloc[rows]))
            np.testing.assert_array_equal(sample.y, y[rows])


def test_training_rows_have_their_groups_where_whole_groups_validate(tmp_path: Path) -> None:
    data = make_data(tmp_path, kind="group", column="shop")
    shops = data.dataset.column("shop").to_numpy()
    for fold in (0, None):
        train, validation = Samples(data).of(fold)
        assert train.group is not None
        names = shops[data.fold_of(fold).train]
        assert len(set(zip(train.group.tolist(), names.tolist(), strict=True))) == len(set(names))
        assert len(set(train.group)) == len(set(names))
        assert validation.group is None
    for kind in ({"kind": "holdout"}, {"kind": "time", "column": "day"}):
        folder = tmp_path / kind["kind"]
        folder.mkdir()
        assert Samples(make_data(folder, **kind)).of(0)[0].group is None


def test_all_rows_are_a_fold_without_validation(data: TrialData) -> None:
    train, validation = Samples(data).of(None)
    assert (len(train), len(validation)) == (len(data.dataset), 0)
    assert validation.table.n_columns == train.table.n_columns


def test_a_preparation_sees_the_training_rows_only(tmp_path: Path) -> None:
    """Each row has a category of its own twice; the validation rows' other halves are elsewhere."""
    frame = make_frame(120).assign(city=[f"city {i // 2}" for i in range(120)])
    data = make_data(tmp_path, dataset=make_dataset(frame=frame), kind="cross_validation", folds=2)
    for k, split in enumerate(data.splits):
        train, validation = Samples(data).of(k)
        seen = set(data.dataset.frame["city"].iloc[split.train])
        known = data.dataset.frame["city"].iloc[split.validation].isin(seen).to_numpy()
        assert 0 < known.sum() < len(known)
        assert ((validation.table.codes[:, 0] > 0) == known).all()
        assert (train.table.codes[:, 0] > 0).all()


def test_rows_are_prepared_once_and_mapped_by_everybody_else(tmp_path: Path) -> None:
    data = make_data(tmp_path, dataset=make_dataset(n_rows=2_000), kind="cross_validation", folds=2)
    first = Samples(data).of(0)[0].table.numeric
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = Samples(data).of(0)[0].table.numeric
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    for array in (first, again):
        assert not array.flags.owndata, "the pages are the operating system's, shared by all workers"
        assert not array.flags.writeable
    assert {p.suffix for p in before} <= {".npy", ".npz", ".json"}
    assert not list(tmp_path.rglob(".*"))


def test_a_process_keeps_few_folds_open(data: TrialData) -> None:
    samples = Samples(data)
    opened = [samples.of(fold) for fold in range(5)]
    assert len(samples._open) == KEPT
    assert samples.of(4) is opened[4]
    samples.of(2)
    samples.of(0)
    assert samples.of(2) is opened[2], "the fold that was not used for longest is closed first"


def test_text_and_dates_survive(tmp_path: Path) -> None:
    frame = make_frame(200).assign(
        note=[f"the {'good' if i % 3 else 'bad'} box number {i} of many" for i in range(200)]
    )
    frame = frame.assign(shipped=pd.Timestamp("2024-03-01") + pd.to_timedelta(np.arange(200), unit="h"))
    data = make_data(tmp_path, dataset=make_dataset(frame=frame), kind="holdout", share=0.25)
    split = data.splits[0]
    preparation = fit_preparation(data, 0)
    assert_equal(Samples(data).of(0)[1].table, preparation.transform(data.dataset.frame.iloc[split.validation]))


# --- representation -----------------------------------------------------------


def factors(folder: Path) -> TrialData:
    """A target that is a ratio of two columns, so that the probe finds it."""
    generator = np.random.default_rng(0)
    frame = make_frame(1_200).assign(a=generator.uniform(0.2, 5, 1_200), b=generator.uniform(0.2, 5, 1_200))
    dataset = make_dataset(Task.REGRESSION, frame=frame.assign(amount=frame["a"] / frame["b"]))
    ready = make_data(folder / "ready", dataset=dataset, kind="cross_validation", folds=2)
    return TrialData(ready.dataset, ready.splits, ready.metric, folder / "workspace", ready.seed)


def test_columns_and_target_are_probed_once_for_a_search(tmp_path: Path) -> None:
    data = factors(tmp_path)
    found = representation(data)
    assert Cross(kind="ratio", left="a", right="b") in found.crosses
    other = Representation(target_scale="sqrt", crosses=found.crosses[:1])
    for path in (data.workspace / "representation").iterdir():
        path.unlink()
    other.save(data.workspace / "representation")
    assert representation(data) == other, "what is written is the answer of this search"
    for fold in (0, 1, None):
        assert Samples(data).of(fold)[0].table.n_crosses == 1


def test_a_search_of_some_rows_takes_the_preparations_of_all(tmp_path: Path) -> None:
    pooled = make_data(tmp_path / "pooled", kind="cross_validation", folds=2)
    fit_preparation(pooled, 0)
    some = TrialData(
        pooled.dataset, pooled.splits, pooled.metric, tmp_path / "segment", pooled.seed, shared=pooled.workspace
    )
    assert preparation_folder(some, 0) == preparation_folder(pooled, 0)
    before = {p: p.stat().st_mtime_ns for p in pooled.workspace.rglob("*")}
    Samples(some).of(0)
    assert {p: p.stat().st_mtime_ns for p in pooled.workspace.rglob("*")} == before
    assert sorted(p.name for p in some.workspace.iterdir()) == ["prepared"]


# --- writing ------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"

    def failing(draft: Path) -> None:
        (draft / "half").write_text("half")
        assert not target.exists()
        raise MemoryError("no more")

    for _ in range(2):
        with pytest.raises(MemoryError):
            into_folder(target, failing)
        assert not list(target.parent.iterdir())
    into_folder(target, lambda draft: (draft / "whole").write_text("one"))
    into_folder(target, lambda draft: (draft / "whole").write_text("two"))
    assert (target / "whole").read_text() == "one", "who is first stays"
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


def test_processes_that_prepare_a_fold_at_once_get_the_same(data: TrialData) -> None:
    found: list[np.ndarray] = []
    barrier = threading.Barrier(4)

    def prepare() -> None:
        barrier.wait()
        found.append(Samples(data).of(1)[0].table.numeric)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for array in found[1:]:
        np.testing.assert_array_equal(array, found[0])
    assert not list(data.workspace.rglob(".*"))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "trials" / "fold-0.npy"
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(path, np.array([object()], dtype=object))
    assert not list(path.parent.iterdir())
    write_array(path, np.arange(3))
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), np.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["fold-0.npy"]
