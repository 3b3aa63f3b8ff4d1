"""Opening: created, upgraded, refused with a hint, shared by processes that start together."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import factory.ledger
from factory.errors import InvalidRequest, NotFound, StorageFault
from factory.ledger import Ledger, schema
from factory.spec import RequestState, VariantRequest

FIXTURES = Path(__file__).with_name("fixtures")
NEEDS_RIGHTS = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///").partition("?")[0])


def test_creates_folder_and_file_in_wal_mode(ledger: Ledger, url: str) -> None:
    assert file_of(url).stat().st_size > 0
    assert file_of(url).parent.stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(file_of(url)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_migrations_lead_to_the_tables_of_the_schema(ledger: Ledger, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_head_is_the_last_migration() -> None:
    folder = Path(factory.ledger.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_current_head() == schema.HEAD


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=lambda table: table.name)
def test_tables_are_understood_by_postgresql(table: schema.Table) -> None:
    assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_opening_at_head_is_quick_and_needs_no_alembic(
    ledger: Ledger, url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    code = "import sys; from factory.ledger import Ledger; Ledger.open(sys.argv[1]); print('alembic' in sys.modules)"
    process = start(code, url)
    assert process.communicate(timeout=60) == ("False\n", "")
    begin = time.perf_counter()
    Ledger.open(url).close()
    assert time.perf_counter() - begin < 0.5


def test_processes_that_create_it_together_all_get_it(url: str, start: Callable[..., subprocess.Popen[str]]) -> None:
    code = """
import sys, time
from factory.ledger import Ledger
time.sleep(max(0, float(sys.argv[2]) - time.time()))
with Ledger.open(sys.argv[1]) as ledger:
    print(len(ledger.requests()))
"""
    moment = str(time.time() + 2)
    processes = [start(code, url, moment) for _ in range(6)]
    assert [p.communicate(timeout=60) for p in processes] == [("0\n", "")] * 6


@pytest.mark.parametrize("dump", sorted(FIXTURES.glob("*.sql")), ids=lambda path: path.stem)
def test_ledger_of_every_released_schema_is_upgraded_and_read(dump: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.executescript(dump.read_text())
    connection.close()
    with Ledger.open(f"sqlite:///{tmp_path / 'old.db'}") as ledger:
        record = ledger.request("r-20261124-150405-1zaaaa")
        assert record.state is RequestState.REGISTERED
        assert record.created.utcoffset() is not None
        assert ledger.request("r-20261124-150500-00bbbb").error is not None
        assert [e.state.value for e in ledger.events(record.id)][-1] == "registered"
        assert [t.number for t in ledger.trials(record.id)] == [0, 1]
        assert ledger.alias("growth.churn", "champion") == 1
        assert ledger.variant("growth.churn", 1).request_id == record.id
        assert ledger.deployment("growth.churn")[0].version == 1
        past = ledger.past_search(record.id)
        assert [t.number for t in past.trials] == [0, 1]
        assert (past.traits is None) == (dump.stem == "schema_0001")
        new = ledger.create_request(record.request)
        assert ledger.requests(limit=1)[0].id == new.id


def test_newer_schema_is_refused_and_left_alone(ledger: Ledger, url: str) -> None:
    ledger.close()
    with sqlite3.connect(file_of(url)) as connection:
        connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    before = file_of(url).read_bytes()
    with pytest.raises(StorageFault, match="9999") as caught:
        Ledger.open(url)
    assert "newer release" in caught.value.hint
    assert file_of(url).read_bytes() == before


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


def test_locked_database_is_a_fault_after_the_wait(ledger: Ledger, url: str, order: VariantRequest) -> None:
    holder = sqlite3.connect(file_of(url), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Ledger.open(f"{url}?timeout=0.1") as impatient:
        assert impatient.requests() == []
        with pytest.raises(StorageFault, match="locked") as caught:
            impatient.create_request(order)
        assert "Another process" in caught.value.hint
        holder.execute("ROLLBACK")
        assert impatient.create_request(order)
    holder.close()


def test_ledger_that_must_exist_is_not_created(url: str) -> None:
    with pytest.raises(NotFound, match=r"ledger\.db"):
        Ledger.open(url, create=False)
    assert not file_of(url).exists()


@pytest.mark.parametrize(
    "url", ["not a url", "nosuchdb://host/x", "sqlite://", "sqlite:///:memory:", "sqlite:////tmp/l.db?timeout=soon"]
)
def test_unusable_url_is_an_invalid_request(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Ledger.open(url)
    assert caught.value.details[0].field == "FACTORY_LEDGER_URL"


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
