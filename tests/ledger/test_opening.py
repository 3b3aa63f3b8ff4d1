"""Opening: created, refused with a hint, shared by processes that start together."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.errors import InvalidRequest, NotFound, StorageFault
from factory.ledger import Ledger, schema
from factory.spec import VariantRequest

from .conftest import file_of

NEEDS_RIGHTS = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def test_creates_folder_and_file_in_wal_mode(file_url: str) -> None:
    Ledger.open(file_url).close()
    assert file_of(file_url).stat().st_size > 0
    assert file_of(file_url).parent.stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(file_of(file_url)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_opening_at_head_needs_no_alembic(
    ledger: Ledger, url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """It takes as long to import as all the rest."""
    code = "import sys; from factory.ledger import Ledger; Ledger.open(sys.argv[1]).close()\n"
    code += "print('alembic' in sys.modules)"
    assert start(code, url).communicate(timeout=60) == ("False\n", "")


def test_processes_that_create_it_together_all_get_it(empty_url: str, together: Callable[..., list[list[str]]]) -> None:
    code = """
from factory.ledger import Ledger
begin()
with Ledger.open(sys.argv[1]) as ledger:
    print(len(ledger.requests()))
"""
    assert together(code, *[[empty_url]] * 3) == [["0"]] * 3


def test_newer_schema_is_refused_and_left_alone(file_url: str) -> None:
    Ledger.open(file_url).close()
    with sqlite3.connect(file_of(file_url)) as connection:
        connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    before = file_of(file_url).read_bytes()
    with pytest.raises(StorageFault, match="9999") as caught:
        Ledger.open(file_url)
    assert "newer release" in caught.value.hint
    assert file_of(file_url).read_bytes() == before


@pytest.mark.parametrize("content", [b"This is no database. " * 500, b"SQLite format 3\x00" + b"\xff" * 9000])
def test_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(StorageFault, match=r"ledger\.db") as caught:
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert "backup" in caught.value.hint
    assert (tmp_path / "ledger.db").read_bytes() == content


def test_another_programs_tables_are_not_taken_over(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE trials (id INTEGER)")
    connection.close()
    with pytest.raises(StorageFault, match="trials"):
        Ledger.open(f"sqlite:///{tmp_path / 'other.db'}")


@pytest.mark.parametrize("folder", ["a-file/below", "/proc/nowhere"])
def test_folder_that_cannot_be_made_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(StorageFault, match="cannot be written") as caught:
        Ledger.open(f"sqlite:///{tmp_path / folder}/ledger.db")
    assert "FACTORY_HOME" in caught.value.hint


@NEEDS_RIGHTS
def test_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageFault, match="cannot be written"):
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match="unable to open"):
        Ledger.open(f"sqlite:///{tmp_path}")


def test_locked_database_is_a_fault_after_the_wait(file_url: str, order: VariantRequest) -> None:
    Ledger.open(file_url).close()
    holder = sqlite3.connect(file_of(file_url), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for impatient in (Ledger.open(f"{file_url}?timeout=0.1"), Ledger.open(file_url, patience_s=0.1)):
        with impatient:
            assert impatient.requests() == []
            with pytest.raises(StorageFault, match="locked") as caught:
                impatient.create_request(order)
            assert "Another process" in caught.value.hint
    holder.execute("ROLLBACK")
    with Ledger.open(file_url, patience_s=0.1) as impatient:
        assert impatient.create_request(order)
    holder.close()


def test_ledger_that_must_exist_is_not_created(empty_url: str) -> None:
    for _ in range(2):
        with pytest.raises(NotFound, match="no ledger"):
            Ledger.open(empty_url, create=False)


@pytest.mark.parametrize(
    "url", ["not a url", "nosuchdb://host/x", "sqlite://", "sqlite:///:memory:", "sqlite:////tmp/l.db?timeout=soon"]
)
def test_unusable_url_is_an_invalid_request(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Ledger.open(url)
    assert caught.value.details[0].field == "FACTORY_LEDGER_URL"


def test_password_of_an_unusable_url_is_not_shown() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Ledger.open("nosuchdb://ann:hush@host/x")
    assert "hush" not in str(caught.value.as_dict())


def test_forked_child_gets_connections_of_its_own(ledger: Ledger, order: VariantRequest) -> None:
    ledger.create_request(order)
    child = os.fork()
    if child == 0:
        try:
            ledger.create_request(order, request_id="from-the-child")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.request("from-the-child").request == order
    assert len(ledger.requests()) == 2


def test_text_that_no_database_keeps_is_mended_or_refused(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    ledger.note(request_id, "kind", "nul \x00 and half a pair \ud800, " + "x" * 20_000, payload={"nul": "\x00"})
    event = ledger.events(request_id)[-1]
    assert event.message.startswith("nul \ufffd and half a pair ?")
    assert len(event.message) == 10_000
    assert event.payload == {"nul": "\x00"}
    assert ledger.verify_events(request_id) is None
    for odd in ("\ud800", "\x00", "x" * 300):
        with pytest.raises((NotFound, InvalidRequest)):
            ledger.request(odd)


def test_a_file_that_is_moved_away_is_missed_and_never_made_anew(file_url: str, order: VariantRequest) -> None:
    path, away = file_of(file_url), file_of(file_url).with_name("away.db")
    with Ledger.open(file_url) as ledger:
        made = ledger.create_request(order).id
        path.rename(away)
        for call in (ledger.ping, lambda: ledger.create_request(order)):
            with pytest.raises(StorageFault, match="unable to open"):
                call()
        assert not path.exists()
        away.rename(path)
        assert [record.id for record in ledger.requests()] == [made]


def test_a_file_that_is_replaced_is_read_from_then_on(file_url: str, order: VariantRequest) -> None:
    path = file_of(file_url)
    with Ledger.open(file_url) as ledger:
        made = ledger.create_request(order).id
        backup = path.with_name("backup.db")
        with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
            source.backup(target)
        source.close()
        target.close()
        ledger.create_request(order)
        for suffix in ("-wal", "-shm"):  # or SQLite would take what they hold for changes of the backup
            path.with_name(path.name + suffix).unlink()
        backup.replace(path)
        assert [record.id for record in ledger.requests()] == [made]
        path.with_name("empty.db").touch()
        path.with_name("empty.db").replace(path)
        with pytest.raises(StorageFault, match="no such table") as caught:
            ledger.requests()
        assert "empty file" in caught.value.hint
