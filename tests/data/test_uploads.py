"""Uploads: kept whole under their digest, or refused with nothing left behind."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc, parquet

from factory.data import inspection
from factory.data.loading import load, store_table
from factory.data.uploads import Received, UploadStore, UploadTooLarge
from factory.errors import InvalidData, NotFound, StorageFault
from factory.settings import Settings
from factory.spec import FileDataset, UploadDataset

FORMATS = ("parquet", "csv", "csv.gz", "arrow")
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def small() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "amount": rng.normal(50, 12, 60).round(3),
            "city": rng.choice(["Oslo", "Rome", "Lima"], 60),
            "joined": pd.Timestamp("2021-03-01") + pd.to_timedelta(rng.integers(0, 700, 60), unit="D"),
            "bought": rng.choice(["no", "yes"], 60),
        }
    )


def as_bytes(frame: pd.DataFrame, form: str) -> bytes:
    body = io.BytesIO()
    if form == "parquet":
        frame.to_parquet(body, index=False)
    elif form == "arrow":
        feather.write_feather(frame, body, compression="lz4", chunksize=25)
    else:
        text = frame.to_csv(index=False).encode()
        return gzip.compress(text, mtime=0, mtime=0) if form == "csv.gz" else text
    return body.getvalue()


BODIES = {form: as_bytes(small(), form) for form in FORMATS}


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def store(home: Settings) -> UploadStore:
    return UploadStore(home, limit_mb=10, reserve_mb=0)


def left(store: UploadStore) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir()) if store.folder.exists() else []


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_is_kept_under_the_digest_of_its_bytes_and_read_by_it(
    form: str, mixed: pd.DataFrame, store: UploadStore, tmp_path: Path
) -> None:
    body = as_bytes(mixed, form)
    (tmp_path / f"t.{form}").write_bytes(body)
    upload = store.take([body], name=f"t.{form}", n_bytes=len(body))
    assert upload.digest == hashlib.sha256(body).hexdigest()
    assert (upload.format, upload.n_rows, upload.n_bytes) == (form.removesuffix(".gz"), len(mixed), len(body))
    assert left(store) == [f"{upload.digest}.{form}"]
    path = store.folder / left(store)[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == body
    as_file = load(FileDataset(path=str(tmp_path / f"t.{form}"), target="bought"), settings=store.settings)
    loaded = load(UploadDataset(upload=upload.digest, target="bought"), settings=store.settings)
    assert loaded.digest == as_file.digest


@pytest.mark.parametrize("form", FORMATS)
def test_the_preview_has_the_types_that_the_whole_table_has(form: str, mixed: pd.DataFrame, store: UploadStore) -> None:
    upload = store.take([as_bytes(mixed, form)], name=f"t.{form}")
    types = {column.name: column.type for column in upload.preview.columns}
    dataset = load(UploadDataset(upload=upload.digest, target="bought"), settings=store.settings)
    assert {name: types[name] for name in dataset.types} == dataset.types
    assert types["bought"] == "categorical"
    assert len(upload.preview.rows) == inspection.SHOWN_ROWS
    first = dict(zip(mixed.columns, upload.preview.rows[0], strict=True))
    assert (first["visits"], first["customer"]) == (mixed["visits"][0], mixed["customer"][0])
    assert store.preview(upload.digest) == upload.preview
    Received.model_validate_json(upload.model_dump_json())


def test_a_preview_of_nothing(store: UploadStore) -> None:
    for digest in ("0" * 64, "../ledger", "%2e%2e"):
        with pytest.raises(NotFound):
            store.preview(digest)


@given(form=st.sampled_from(FORMATS), cuts=st.lists(st.integers(0, 20_000), max_size=12))
@fuzz
def test_how_the_bytes_are_cut_into_chunks_changes_nothing(form: str, cuts: list[int]) -> None:
    body = BODIES[form]
    ends = [*sorted(min(cut, len(body)) for cut in cuts), len(body)]
    chunks = [body[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    with TemporaryDirectory() as folder:
        store = UploadStore(Settings(home=Path(folder)), limit_mb=1, reserve_mb=0)
        whole = store.take([body], name="t")
        assert store.take(chunks, name="t") == whole.model_copy(update={"known": True})
        assert left(store) == [f"{whole.digest}.{form}"]


@given(form=st.sampled_from(("parquet", "csv.gz", "arrow")), at=st.floats(0, 1, exclude_max=True))
@fuzz
def test_a_file_that_was_cut_off_is_refused_and_leaves_nothing(form: str, at: float) -> None:
    body = BODIES[form]
    with TemporaryDirectory() as folder:
        store = UploadStore(Settings(home=Path(folder)), limit_mb=1, reserve_mb=0)
        with pytest.raises(InvalidData) as caught:
            store.take([body[: int(at * len(body))]], name=f"t.{form}")
        assert caught.value.details[0].field == "path"
        assert left(store) == []


@given(form=st.sampled_from(FORMATS), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
@fuzz
def test_damaged_files_are_kept_or_refused_but_break_nothing(form: str, changes: list[tuple[float, int]]) -> None:
    body = bytearray(BODIES[form])
    for place, byte in changes:
        body[int(place * (len(body) - 1))] = byte
    kept_or_refused(bytes(body))


@given(begin=st.sampled_from([b"", b"PAR1", b"ARROW1\0\0", b"\x1f\x8b\x08", b"a,b\n"]), rest=st.binary(max_size=300))
@example(begin=b"ARROW1\0\0", rest=b"\xff\xff\xff\xff\x08\0\0\0" + b"\xff" * 40 + b"\x08\0\0\0ARROW1")
@example(begin=b"PAR1", rest=b"\0" * 16 + b"\xff\xff\xff\xffPAR1")
@example(begin=b"", rest=b"a,b\n\xe9,1\n")
@fuzz
def test_any_bytes_are_kept_or_refused(begin: bytes, rest: bytes) -> None:
    kept_or_refused(begin + rest)


def kept_or_refused(body: bytes) -> None:
    with TemporaryDirectory() as folder:
        store = UploadStore(Settings(home=Path(folder)), limit_mb=1, reserve_mb=0)
        try:
            upload = store.take([body], name="t")
        except InvalidData:
            assert left(store) == []
        else:
            assert [name.partition(".")[0] for name in left(store)] == [upload.digest]
            assert upload.n_rows > 0


def test_too_many_bytes_are_refused_while_they_arrive(home: Settings) -> None:
    store = UploadStore(home, limit_mb=0.5, reserve_mb=0)
    sent = []

    def endless() -> Iterator[bytes]:
        yield b"a,b\n"
        while True:
            sent.append(1)
            yield b"1,2\n" * 25_000

    with pytest.raises(UploadTooLarge, match=r"'t\.csv' has more than 0 MB|0\.5|1 MB"):
        store.take(endless(), name="t.csv")
    assert len(sent) == 5
    assert left(store) == []
    with pytest.raises(UploadTooLarge):
        store.receive("t.csv", n_bytes=500_001)
    assert UploadStore(home).limit_bytes == home.max_upload_mb * 1e6


@pytest.mark.parametrize("n_bytes", [len(BODIES["csv"]) - 1, len(BODIES["csv"]) + 1])
def test_another_number_of_bytes_than_was_said_is_refused(store: UploadStore, n_bytes: int) -> None:
    with pytest.raises(InvalidData, match="cut off"):
        store.take([BODIES["csv"]], name="t.csv", n_bytes=n_bytes)
    assert left(store) == []


def test_a_sender_that_goes_away_leaves_nothing(store: UploadStore) -> None:
    class GoneError(Exception):
        pass

    with pytest.raises(GoneError), store.receive("t.csv") as incoming:  # noqa: PT012
        incoming.write(BODIES["csv"][:100])
        assert len(left(store)) == 1
        raise GoneError
    assert left(store) == []


def test_what_a_killed_process_left_is_cleared_once_it_is_old(store: UploadStore) -> None:
    assert store.clear_stale() == 0
    upload = store.take([BODIES["csv"]], name="t.csv")
    old, new = store.folder / ".incoming-old", store.folder / ".incoming-new"
    for path in (old, new, store.folder / f"{upload.digest}.csv"):
        path.touch()
        if path is not new:
            os.utime(path, (1, 1))
    assert store.clear_stale() == 1
    assert left(store) == [new.name, f"{upload.digest}.csv"]


def test_old_leftovers_are_cleared_by_the_next_upload(home: Settings, store: UploadStore) -> None:
    store.folder.mkdir(parents=True)
    old = store.folder / ".incoming-old"
    old.touch()
    os.utime(old, (1, 1))
    upload = store.take([BODIES["csv"]], name="t.csv")
    assert left(store) == [f"{upload.digest}.csv"]


def test_a_full_disk_is_told_before_and_while_it_fills(
    home: Settings, store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageFault, match="kept free"):
        UploadStore(home, reserve_mb=1e12).receive("t.csv")
    assert not home.uploads.exists()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFault, match="No space left"):
        store.take([BODIES["csv"]], name="t.csv")
    assert left(store) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFault, match="cannot be stored"):
        UploadStore(Settings(home=tmp_path / "file"), reserve_mb=0).take([BODIES["csv"]], name="t.csv")


def test_the_same_bytes_at_the_same_time_are_one_file(store: UploadStore) -> None:
    with store.receive("a.csv") as one, store.receive("b.csv") as other:
        for incoming in (one, other):
            incoming.write(BODIES["csv"])
        assert [one.keep().known, other.keep().known] == [False, True]
    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(lambda _: store.take([BODIES["parquet"]], name="t.parquet"), range(8)))
    assert len({upload.digest for upload in kept}) == 1
    assert len(left(store)) == 2


def test_stored_tables_and_uploads_live_side_by_side(store: UploadStore, mixed: pd.DataFrame) -> None:
    digest = store_table(mixed, store.settings)
    upload = store.take([BODIES["csv"]], name="t.csv")
    assert {name.partition(".")[0] for name in left(store)} == {digest, upload.digest}
    assert len(load(UploadDataset(upload=digest, target="bought"), settings=store.settings)) == len(mixed)
    assert [column.name for column in store.preview(digest).columns] == list(mixed.columns)


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
    "gzipped zip": (gzip.compress(b"PK\x03\x04" + bytes(100, mtime=0)), "gzipped, and inside a ZIP"),
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
    "gzip": lambda: gzip.compress(b"a,b\n" + b"0,0\n" * 700_000, mtime=0, mtime=0),
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
