"""What is no table, or not the one that it says it is, is refused as an upload with one clear error."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from factory.data import inspection
from factory.data.uploads import UploadStore
from factory.errors import InvalidData
from factory.settings import Settings

from .uploading import BODIES, FORMATS, left


@pytest.mark.parametrize(
    ("name", "form", "told"),
    [
        ("t.parquet", "csv", "named as Parquet, but its content is CSV"),
        ("t.csv", "parquet", "named as CSV, but its content is Parquet"),
        ("t.feather", "csv.gz", "named as Arrow/Feather, but its content is gzipped CSV"),
    ],
)
def test_a_name_that_says_another_format_is_refused(name: str, form: str, told: str, store: UploadStore) -> None:
    with pytest.raises(InvalidData, match=told):
        store.take([BODIES[form]], name=name)
    assert left(store) == []


@pytest.mark.parametrize("name", ["", "table", "export.2026-11", "t.gz", "t.CSV"])
def test_a_name_that_says_nothing_is_no_hindrance(name: str, store: UploadStore) -> None:
    assert store.take([BODIES["csv"]], name=name).format == "csv"


NO_TABLES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "pickle": (pickle.dumps(list(range(2000))), "a pickle, which is never read"),
    "zip": (b"PK\x03\x04" + bytes(100), "Excel"),
    "json": (b'[{"a": 1}]', "is JSON"),
    "html": (b"<html><body>,</body></html>", "HTML"),
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
    "gzipped zip": (gzip.compress(b"PK\x03\x04" + bytes(100), mtime=0), "gzipped, and inside a ZIP"),
    "gzip of nothing": (gzip.compress(b"", mtime=0), "gzipped, and inside empty"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(50), "no text has"),
    "prose": (b"It was a dark and stormy night\nthe rain fell\n", "one column only"),
    "header": (b"a,b\n", "a header but no rows"),
    "ragged": (b"a,b\n1,2\n1,2,3\n", "cannot be read as CSV"),
    "same names": (b"a,a\n1,2\n", "cannot be told apart"),
    "feather 1": (b"FEA1" + bytes(60), "Feather file of version 1"),
    "binary at its end": (b"a,b\n" + b"1,2\n" * 40_000 + b"1,\x002,3\n", "cannot be read as CSV"),
}


@pytest.mark.parametrize("what", NO_TABLES)
def test_what_is_no_table_is_refused_with_one_clear_error(what: str, store: UploadStore) -> None:
    body, told = NO_TABLES[what]
    with pytest.raises(InvalidData, match=told):
        store.take([body], name="t")
    assert left(store) == []


def test_what_is_evidently_no_table_is_refused_by_its_first_bytes(store: UploadStore) -> None:
    with store.receive("t.csv") as incoming, pytest.raises(InvalidData, match="ZIP"):
        incoming.write(b"PK\x03\x04" + bytes(70_000))


@pytest.mark.parametrize(
    ("text", "encoding", "delimiter"),
    [
        ("ort;wert;ziel\nZürich;1;ja\nGenf;2;nein\n", "latin-1", ";"),
        ("ort\twert\tziel\nZürich\t1\tja\n", "utf8", "\t"),
        ("\ufefford|wert|ziel\nZürich|1|ja\n", "utf8", "|"),
        ('ort,wert,ziel\n"Zürich\nWest",1,ja\n', "utf8", ","),
        ("ort,wert,ziel\r\nZürich,1,ja\r\n", "utf8", ","),
        ("ort,wert,ziel\nBern,1,ja\n" + "Bern,1,ja\n" * 9000 + "Zürich,1,ja\n", "latin-1", ","),
    ],
)
def test_encodings_and_delimiters_are_found(text: str, encoding: str, delimiter: str, store: UploadStore) -> None:
    body = text.encode("latin-1" if encoding == "latin-1" else "utf8")
    upload = store.take([body], name="t.csv")
    assert (upload.encoding, upload.delimiter) == (encoding, delimiter)
    assert [column.name for column in upload.preview.columns][1:] == ["wert", "ziel"]
    assert str(upload.preview.rows[0][0]).startswith(("Zürich", "Bern"))


def test_rows_are_counted_whatever_their_types_become_later(store: UploadStore) -> None:
    text = "a,b\n" + "1,2\n" * 700_000 + "one,two\n" + '"x\ny",z\n'
    assert store.take([text.encode()], name="t.csv").n_rows == 700_002


def test_more_rows_than_the_settings_allow_are_refused(tmp_path: Path) -> None:
    store = UploadStore(Settings(home=tmp_path, max_rows=59), reserve_mb=0)
    for form in FORMATS:
        with pytest.raises(InvalidData, match="more than 59 rows"):
            store.take([BODIES[form]], name="t")
    assert left(store) == []


def _zeros(write: Callable[[pa.Table, io.BytesIO], None]) -> bytes:
    body = io.BytesIO()
    write(pa.table({"a": np.zeros(500_000), "b": np.zeros(500_000)}), body)
    return body.getvalue()


BOMBS = {
    "gzip": lambda: gzip.compress(b"a,b\n" + b"0,0\n" * 700_000, mtime=0),
    "arrow": lambda: _zeros(lambda t, to: feather.write_feather(t, to, compression="zstd")),
    "parquet": lambda: _zeros(lambda t, to: parquet.write_table(t, to, compression="zstd", use_dictionary=False)),
    "parquet of one value": lambda: _zeros(parquet.write_table),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_becomes_a_large_table_is_refused(
    kind: str, store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = BOMBS[kind]()
    assert store.take([body], name="t").known is False  # 8 MB are no matter, however small the file
    monkeypatch.setattr(inspection, "FREE_OF_RATIO_BYTES", 2**19)
    with pytest.raises(InvalidData, match="200 times as large"):
        store.take([body], name="t")


def test_a_compressed_batch_that_would_take_too_much_memory_is_refused(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MOST_BATCH_BYTES", 100)
    with pytest.raises(InvalidData, match="a compressed batch of more than"):
        store.take([BODIES["arrow"]], name="t.arrow")


def test_an_arrow_file_whose_texts_lie_outside_of_it_is_refused(store: UploadStore) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 10**6, 2], dtype=np.int32)), pa.py_buffer(b"ab")]
    broken = pa.Array.from_buffers(pa.string(), 2, buffers)
    body = io.BytesIO()
    with ipc.new_file(body, pa.schema({"a": pa.string(), "b": pa.int64()})) as writer:
        writer.write_batch(pa.record_batch({"a": broken, "b": pa.array([1, 2])}))
    with pytest.raises(InvalidData, match="cannot be read as Arrow"):
        store.take([body.getvalue()], name="t.arrow")


def test_columns_of_lists_are_shown_without_a_type(store: UploadStore) -> None:
    body = io.BytesIO()
    parquet.write_table(
        pa.table({"a": [1, 2], "l": [[1], [2, 3]], "d": pa.array(["x", "x"]).dictionary_encode()}), body
    )
    preview = store.take([body.getvalue()], name="t.parquet").preview
    assert [(c.name, c.type) for c in preview.columns] == [("a", "numeric"), ("l", None), ("d", "categorical")]
    assert preview.rows[0] == (1, None, "x")
