from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from factory.data.columns import infer_type
from factory.data.dataset import table_digest
from factory.data.tables import read_table, write_table
from factory.errors import InvalidData, StorageFault
from factory.spec import ColumnType

MANY = 10**6


def table(tmp_path: Path, name: str, content: bytes | str) -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "is empty"),
        ("blank.csv", b" \n\n", "is empty"),
        ("header.csv", b"a,b,c\n", "has a header but no rows"),
        ("ragged.csv", b"a,b\n1,2\n3\n", "cannot be read as CSV"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "a: 2 columns have this name"),
        ("unnamed.csv", b"a,,b\n1,2,3\n", "column 2: The column has no name"),
        ("picture.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is none of the known formats"),
        ("page.csv", b"<!doctype html><p>Not found", "is none of the known formats"),
        ("rows.json", b'[{"a": 1}]', "has an unknown suffix"),
        ("sheet.xlsx", b"PK\x03\x04\0\0\0", "has an unknown suffix"),
        ("text.parquet", b"a,b\n1,2\n", "is named as Parquet but looks like CSV"),
        ("cut.parquet", b"PAR1\x15\x04\x15\x0cPAR1", "cannot be read as Parquet"),
        ("cut.feather", b"ARROW1\0\0\xff\xff", "cannot be read as Arrow/Feather"),
        ("cut.csv.gz", gzip.compress(b"a,b\n1,2\n" * 999, mtime=0)[:40], "cannot be read as CSV"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(InvalidData) as caught:
        read_table(table(tmp_path, name, content), max_rows=MANY)
    assert said in caught.value.message
    assert caught.value.hint
    assert caught.value.details
    assert name in caught.value.message
    assert caught.value.exit_code == 2


def test_an_absent_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="does not exist"):
        read_table(str(tmp_path / "none.csv"), max_rows=MANY)
    with pytest.raises(InvalidData, match="cannot be opened"):
        read_table(str(tmp_path), max_rows=MANY)
    with pytest.raises(InvalidData, match="cannot be opened"):
        read_table("nosuch://bucket/a.csv", max_rows=MANY)


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "a.csv", "a,b\n" + "1,2\n" * 11)
    with pytest.raises(InvalidData, match="11 rows; at most 10"):
        read_table(path, max_rows=10)


def test_absent_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path, "a.csv", "amount,b\n1,2\n")
    assert list(read_table(path, max_rows=MANY, columns=["b"])) == ["b"]
    with pytest.raises(InvalidData) as caught:
        read_table(path, max_rows=MANY, columns=["amuont", "zzz"])
    assert [d.field for d in caught.value.details] == ["amuont", "zzz"]
    assert "Did you mean 'amount'?" in caught.value.details[0].message


def test_a_file_behind_a_url_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, "a.csv", "a,b\n1,2\n")
    assert read_table(f"file://{path}", max_rows=MANY).shape == (1, 2)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".feather"])
def test_what_is_written_is_read_back(tmp_path: Path, mixed: pd.DataFrame, suffix: str) -> None:
    write_table(mixed, tmp_path / f"t{suffix}")
    back = read_table(str(tmp_path / f"t{suffix}"), max_rows=MANY)
    assert list(back.columns) == list(mixed.columns)
    pd.testing.assert_frame_equal(back, mixed, check_dtype=False)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path: Path, separator: str) -> None:
    path = table(tmp_path, "a.txt", f"a{separator}b\n1{separator}x y\n")
    assert read_table(path, max_rows=MANY).to_numpy().tolist() == [[1, "x y"]]


def test_csv_peculiarities(tmp_path: Path) -> None:
    latin = read_table(table(tmp_path, "l.csv", "name,n\nJosé,1\nÅse,2\n".encode("latin-1")), max_rows=MANY)
    assert latin["name"].tolist() == ["José", "Åse"]
    packed = read_table(table(tmp_path, "p.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)), max_rows=MANY)
    assert packed.shape == (1, 2)
    marked = read_table(table(tmp_path, "b.csv", b'\xef\xbb\xbfa,b\n"x\ny",2\n'), max_rows=MANY)
    assert marked.columns[0] == "a"
    assert marked["a"].tolist() == ["x\ny"]


def test_a_row_index_is_not_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[7, 3])
    frame.to_csv(tmp_path / "i.csv")
    frame.to_parquet(tmp_path / "i.parquet")
    for name in ("i.csv", "i.parquet"):
        assert list(read_table(str(tmp_path / name), max_rows=MANY)) == ["a", "b"]


def test_leading_zeros_of_labels_are_kept_and_only_theirs(tmp_path: Path) -> None:
    path = table(tmp_path, "z.csv", "zip,code,n\n007,1,1\n123,2,2\n")
    assert read_table(path, max_rows=MANY)["zip"].tolist() == [7, 123]
    kept = read_table(path, max_rows=MANY, text_columns=["zip", "code", "absent"])
    assert kept["zip"].tolist() == ["007", "123"]
    assert kept["code"].tolist() == [1, 2]


def test_rich_arrow_types_become_plain_columns(tmp_path: Path) -> None:
    rich = pa.table(
        {
            "decimal": pa.array([1, 2], pa.decimal128(9, 2)),
            "date": pa.array([0, 1], pa.date32()),
            "clock": pa.array([1_500, 2_000], pa.time32("ms")),
            "zoned": pa.array([0, 3_600_000_000], pa.timestamp("us", tz="Europe/Oslo")),
            "nanos": pa.array([1_001, 2_000], pa.timestamp("ns")),
            "levels": pa.array(["x", None]).dictionary_encode(),
            "nothing": pa.nulls(2),
        }
    )
    parquet.write_table(rich, tmp_path / "rich.parquet")
    frame = read_table(str(tmp_path / "rich.parquet"), max_rows=MANY)
    assert frame["decimal"].tolist() == [1.0, 2.0]
    assert frame["date"].tolist() == [pd.Timestamp("1970-01-01"), pd.Timestamp("1970-01-02")]
    assert frame["clock"].tolist() == [1.5, 2.0]
    assert frame["levels"].tolist() == ["x", None]
    assert frame["nothing"].isna().all()
    assert np.dtype(frame["nanos"].dtype) == np.dtype("M8[us]")


def test_writing_fails_clearly(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1]})
    with pytest.raises(InvalidData, match="suffix"):
        write_table(frame, tmp_path / "a.xlsx")
    with pytest.raises(InvalidData, match="there is no folder"):
        write_table(frame, tmp_path / "none" / "a.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(StorageFault, match="cannot be written"):
        write_table(frame, tmp_path / "folder.csv")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_numbers_that_are_categories_stay_categories(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"code": [3, 1, None], "digits": ["3", "1", None], "word": ["a", None, "b"], "n": [1, 2, 3]})
    written = frame.astype({"code": "category", "digits": "category", "word": "category"})
    written["n"] = written["n"].astype("category").cat.as_ordered()
    write_table(written, tmp_path / f"t{suffix}")
    read = read_table(str(tmp_path / f"t{suffix}"), max_rows=MANY)
    kinds = [infer_type(read[name]) for name in read]
    assert kinds == [ColumnType.CATEGORICAL, ColumnType.CATEGORICAL, ColumnType.CATEGORICAL, ColumnType.NUMERIC]
    assert table_digest(read) == table_digest(written)


def test_what_pandas_wrote_beside_the_columns_need_not_be_readable(tmp_path: Path) -> None:
    for said in (b"{", b"[]", b'{"columns": [1]}', b'{"columns": null}'):
        table = pa.table({"a": [1, 2]}).replace_schema_metadata({b"pandas": said})
        parquet.write_table(table, tmp_path / "t.parquet")
        assert read_table(str(tmp_path / "t.parquet"), max_rows=MANY)["a"].tolist() == [1, 2]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_columns_of_several_types_are_stored_as_text(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {
            "mixed": pd.Series([1, "a", 2.5, None], dtype=object),
            "dates": pd.Series([datetime(2024, 1, 2), "soon", None, True], dtype=object),
            "huge": pd.Series([2**70, 1, 2, 3], dtype=object),
            "bins": pd.cut(pd.Series([1, 2, 3, 4]), 2),
            "months": pd.period_range("2020-01", periods=4, freq="M"),
            "sparse": pd.arrays.SparseArray([0, 0, 1, 2]),
            "plain": [1, 2, 3, 4],
        }
    )
    write_table(frame, tmp_path / f"t{suffix}")
    read = read_table(str(tmp_path / f"t{suffix}"), max_rows=MANY)
    assert read["mixed"].tolist() == ["1", "a", "2.5", None]
    assert read["dates"].tolist() == ["2024-01-02 00:00:00", "soon", None, "True"]
    assert read["bins"].nunique() == 2
    assert read["months"].tolist()[:2] == ["2020-01", "2020-02"]
    assert read["sparse"].tolist() == [0, 0, 1, 2]
    assert read["plain"].tolist() == [1, 2, 3, 4]
    assert table_digest(read) == table_digest(frame)
