"""What files tell of their tables without their rows being read."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from factory.data.arrow_file import arrow_size
from factory.data.dataset import infer_types
from factory.data.metadata import read_metadata
from factory.data.tables import read_table, write_table
from factory.errors import InvalidData

NAMES = ("t.parquet", "t.csv", "t.csv.gz", "t.feather", "t.tsv")


def written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    else:
        write_table(frame, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_columns_rows_and_types_are_those_of_the_table(name: str, mixed: pd.DataFrame, tmp_path: Path) -> None:
    path = written(mixed, tmp_path / name)
    told, table = read_metadata(path), read_table(str(path), max_rows=1000)
    assert told.columns == tuple(table.columns)
    assert (told.n_rows, told.exact) == (len(table), True)
    known = infer_types(table)
    assert {"amount", "visits", "member", "joined"} <= set(told.types)
    assert {name: known[name] for name in told.types} == told.types
    assert told.n_bytes == path.stat().st_size


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_the_rows_of_a_long_csv_are_estimated(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=30_000), "b": rng.integers(0, 9, 30_000), "c": "some, text"})
    told = read_metadata(written(frame, tmp_path / name))
    assert not told.exact
    assert told.n_rows == pytest.approx(30_000, rel=0.1)


def test_a_stored_row_index_is_no_column(tmp_path: Path, mixed: pd.DataFrame) -> None:
    mixed.iloc[5:].to_parquet(tmp_path / "t.parquet")
    mixed.to_csv(tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        assert read_metadata(tmp_path / name).columns == tuple(mixed.columns)


def test_a_header_longer_than_the_head_and_lines_within_quotes(tmp_path: Path) -> None:
    names = [f"a_rather_long_name_of_a_column_{i}" for i in range(4000)]
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + ",".join(["1"] * 4000) + "\n")
    assert read_metadata(tmp_path / "wide.csv").columns == tuple(names)
    row = '"' + "a line\n" * 50 + '",1\n'
    (tmp_path / "quoted.csv").write_text("text,y\n" + row * 2000)
    assert read_metadata(tmp_path / "quoted.csv").n_rows == pytest.approx(2000, rel=0.05)


@pytest.mark.parametrize(
    "name", ["absent.csv", "folder.csv", "pipe.csv", "empty.csv", "t.dat", "no.parquet", "zip.csv"]
)
def test_what_reading_would_refuse_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    match name:
        case "folder.csv":
            path.mkdir()
        case "pipe.csv":
            os.mkfifo(path)
        case "empty.csv":
            path.touch()
        case "t.dat" | "no.parquet":
            path.write_text("a,b\n1,2\n")
        case "zip.csv":
            path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidData) as caught:
        read_metadata(path)
    assert caught.value.details[0].field == "path"
    if name != "pipe.csv":
        with pytest.raises(InvalidData):
            read_table(str(path), max_rows=10)


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_an_arrow_files_size_is_told_by_its_headers(compression: str, mixed: pd.DataFrame) -> None:
    body = io.BytesIO()
    feather.write_feather(mixed, body, compression=compression, chunksize=30)
    size = arrow_size(body)
    read = feather.read_table(body)
    assert size.n_rows == read.num_rows == len(mixed)
    assert size.unpacked_bytes == pytest.approx(read.nbytes, rel=0.2)
    assert (0 < size.largest_bytes < size.unpacked_bytes) == (compression != "uncompressed")


def test_dictionaries_and_empty_batches_count_as_what_they_hold() -> None:
    batch = pa.record_batch({"a": pa.array(["x", "y", None] * 50).dictionary_encode(), "b": pa.nulls(150)})
    body = io.BytesIO()
    with ipc.new_file(body, batch.schema) as writer:
        for part in (batch.slice(0, 0), batch, batch.slice(10, 7)):
            writer.write_batch(part)
    assert arrow_size(body).n_rows == 157
    empty = io.BytesIO()
    with ipc.new_file(empty, batch.schema):
        pass
    assert arrow_size(empty).n_rows == 0


@pytest.mark.parametrize("cut", [0, 3, 12, 200, -1, -12])
def test_an_arrow_file_that_is_not_whole_is_none(cut: int, mixed: pd.DataFrame) -> None:
    body = io.BytesIO()
    feather.write_feather(mixed, body)
    with pytest.raises(ValueError, match="it"):
        arrow_size(io.BytesIO(body.getvalue()[:cut]))


def test_a_footer_beyond_all_bounds_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.data import metadata

    parquet.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "t.parquet")
    monkeypatch.setattr(metadata, "MOST_FOOTER_BYTES", 100)
    with pytest.raises(InvalidData, match="its footer would have"):
        read_metadata(tmp_path / "t.parquet")
