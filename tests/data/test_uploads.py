"""Uploads: kept whole under their digest, or refused with nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factory.data import inspection
from factory.data.loading import load, store_table
from factory.data.uploads import Received, UploadStore, UploadTooLarge
from factory.errors import InvalidData, NotFound, StorageFault
from factory.settings import Settings
from factory.spec import FileDataset, UploadDataset

from .uploading import BODIES, FORMATS, as_bytes, fuzz, left


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
